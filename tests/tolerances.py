"""How far two computations of the same vectors may lie apart: one table, by number type, each with its reason."""

# Largest absolute difference. Hidden states lie in about [-3, 3], so an absolute bound is a fair one.
TOLERANCES = {
    "fp64": 1e-12,  # the same sums in another order: 53 bits, some thousand additions deep
    "fp32": 1e-5,  # the same in 24 bits; also the bound against published outputs, which are float32 themselves
}

# Largest relative error of a layer, ||a - b|| / ||b||: rounding of weights and inputs dominates, not order.
RELATIVE_TOLERANCES = {
    "tf32": 2e-3,  # products of 10 bits of mantissa, sums of 24
    "fp16": 2e-3,  # 11 bits
    "bf16": 0.01,  # 8 bits of mantissa: each rounding is off by 0.4% at most, and a sum averages them
    "int8": 0.05,  # 8-bit weights per channel, inputs by their range; 2.4% at most in benchmarks/results
}
