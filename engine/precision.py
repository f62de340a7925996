"""Precisions: what each computes in, where it runs, and how far its vectors may be from the reference.

Every literal type, tolerance and bound of the engine, of export verification, the benchmarks and the tests comes from
`PRECISIONS`. A new precision is a new row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

PrecisionName: TypeAlias = Literal["fp32", "bf16", "fp16", "tf32", "int8", "fp64"]
Backend: TypeAlias = Literal["cpu", "cuda", "onnx"]  # the processor, a card, an exported file
NumberType: TypeAlias = Literal["float64", "float32", "bfloat16", "float16", "int8"]


@dataclass(frozen=True)
class Bound:
    """How far vectors may be from the reference's: errors must be less, the cosine more; None for no requirement.

    Attributes:
        max_abs: largest absolute difference; hidden states are in about [-3, 3].
        relative: ||a - b|| / ||b|| of a layer, over all compared vectors.
        worst_vector: the same for one vector, so that one wrong token is not lost among many.
        cosine: of a vector and the reference's.
    """

    max_abs: float | None = None
    relative: float | None = None
    worst_vector: float | None = None
    cosine: float | None = None

    @property
    def tightest(self) -> float:
        """The absolute bound if there is one, else the relative one."""
        return next(bound for bound in (self.max_abs, self.relative) if bound is not None)


@dataclass(frozen=True)
class Arithmetic:
    """How a precision is computed on one backend. Sums and cells are float32 throughout, or float64 in fp64.

    Attributes:
        dtype: number type of word vectors and hidden states.
        bound: on the difference from the reference.
        lstm_weights: number type of the LSTM's matrices; on a card only of the gates'.
        products: "tf32" where float32 values are multiplied with 11 bits, otherwise "ieee".
    """

    dtype: NumberType
    bound: Bound
    lstm_weights: NumberType
    products: Literal["ieee", "tf32"] = "ieee"


@dataclass(frozen=True)
class Precision:
    """One precision.

    Attributes:
        name: as users write it.
        computes_in: a description for people.
        runtimes: the CPU runtimes that have it, the preferred one first.
        capability: the least compute capability of a card that has it.
        cpu, cuda, onnx: its arithmetic on the processor, on a card and in an exported file; None if not available
            there.
    """

    name: PrecisionName
    computes_in: str
    runtimes: tuple[str, ...] = ()
    capability: tuple[int, int] = (8, 0)  # below, Triton multiplies 16-bit numbers and TF32 one by one
    cpu: Arithmetic | None = None
    cuda: Arithmetic | None = None
    onnx: Arithmetic | None = None

    def on(self, backend: Backend) -> Arithmetic:
        """Return its arithmetic on a backend; KeyError if it is not available there."""
        found: Arithmetic | None = getattr(self, backend)
        if found is None:
            raise KeyError(f"{self.name} does not run on {backend}")
        return found

    @property
    def bits(self) -> Literal[8, 16]:
        """The bits of the numbers that the LSTM multiplies on the processor, 8 or 16; KeyError for other types."""
        found: Mapping[str, Literal[8, 16]] = {"bfloat16": 16, "int8": 8}
        return found[self.on("cpu").lstm_weights]

    @property
    def bounds(self) -> Mapping[Backend, Bound]:
        """Its bounds on all backends that have it."""
        backends: tuple[Backend, ...] = ("cpu", "cuda", "onnx")
        return {backend: self.on(backend).bound for backend in backends if getattr(self, backend) is not None}


# Exported files also have bounds for single vectors. `worst_vector` is 3 to 5 times `relative`, which is over all
# vectors together (100 times in fp32), and `cosine` is 1 - worst_vector ** 2.
_ROWS = (
    # The same sums in another order, 24 bits: also the bound for published vectors, which are themselves float32.
    # Measured: CPU 2.3e-6, an H200 8.8e-6 (relative 1.3e-6), exported files 2.3e-6.
    Precision(
        "fp32",
        "float32",
        ("ort", "openvino", "reference"),
        capability=(7, 5),
        cpu=Arithmetic("float32", Bound(max_abs=1e-5, relative=1e-5), "float32"),
        cuda=Arithmetic("float32", Bound(max_abs=1e-5, relative=1e-5), "float32"),
        onnx=Arithmetic("float32", Bound(max_abs=1e-5, relative=1e-5, worst_vector=1e-3, cosine=0.999999), "float32"),
    ),
    # 8 bits of mantissa: each rounding is off by 0.4% at most, and a sum averages them. Measured: CPU 0.0069, H200
    # 0.0074.
    Precision(
        "bf16",
        "16 bits (8 of mantissa), sums and cells float32",
        ("avx512", "ort", "openvino"),
        cpu=Arithmetic("bfloat16", Bound(relative=0.01), "bfloat16"),
        cuda=Arithmetic("bfloat16", Bound(relative=0.01), "bfloat16"),
    ),
    # 11 bits. Measured: H200 8.6e-4, exported files 8.2e-4.
    Precision(
        "fp16",
        "16 bits (11 of mantissa), sums and cells float32",
        cuda=Arithmetic("float16", Bound(relative=2e-3), "float16"),
        onnx=Arithmetic("float16", Bound(relative=2e-3, worst_vector=0.01, cosine=0.9999), "float16"),
    ),
    # Triton truncates to 10 bits instead of rounding: 7e-4 per product, and words take four. Measured: H200 0.0019.
    Precision(
        "tf32",
        "float32, products of 11 bits",
        cuda=Arithmetic("float32", Bound(relative=3e-3), "float32", products="tf32"),
    ),
    # 8-bit LSTM weights by column, 8-bit inputs by row: on the CPU and in files those of every product, measured 0.0140
    # (by `lstm.c`, which has words in 16 bits, 0.0144), and 0.0239 with weights of 7 bits, as x86 without VNNI needs;
    # the worst vector 0.016 and 0.030. On a card only the gates', measured 0.0127 in Triton's interpreter.
    Precision(
        "int8",
        "LSTM products in 8 bits (on a card: those of the gates, all else as bf16)",
        ("avx512", "ort"),
        cpu=Arithmetic("float32", Bound(relative=0.03), "int8"),
        cuda=Arithmetic("bfloat16", Bound(relative=0.03), "int8"),
        onnx=Arithmetic("float32", Bound(relative=0.03, worst_vector=0.1, cosine=0.99), "int8"),
    ),
    # The same sums in another order: 53 bits, some thousand additions deep.
    Precision(
        "fp64", "float64", ("reference",), cpu=Arithmetic("float64", Bound(max_abs=1e-12, relative=1e-12), "float64")
    ),
)
PRECISIONS: Mapping[str, Precision] = {row.name: row for row in _ROWS}


def precisions_on(backend: Backend) -> tuple[PrecisionName, ...]:
    """Return the names of the precisions that a backend has."""
    return tuple(row.name for row in _ROWS if getattr(row, backend) is not None)


def tolerance(precision: str, backend: Backend = "cpu") -> float:
    """Return the main bound of a precision on a backend: the absolute one if there is one, else the relative one."""
    return PRECISIONS[precision].on(backend).bound.tightest
