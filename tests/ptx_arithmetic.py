"""What PTX instructions without memory compute, for all 32 lanes of a warp at once.

Approximate functions are exact here, and subnormal numbers are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
N_LANES = 32
RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
TYPES: dict[str, Any] = {
    **{f"{kind}{bits}": RAW[bits // 8] for kind in "bu" for bits in (8, 16, 32, 64)},
    **{"s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64, "f16": np.float16, "f32": np.float32},
    **{"bf16": np.uint16, "f16x2": np.uint32, "bf16x2": np.uint32, "pred": np.bool_},
}


def from_bf16(bits: Array) -> Array:
    """float32 of bf16's bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: Array) -> Array:
    """Bits of the nearest bf16, the even one of two."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def decoder(kind: str) -> Callable[[Array], Array]:
    """What makes values of a kind of registers [32]; [32, 2] of a kind that packs two."""
    if kind.endswith("x2"):
        decode = decoder(kind[:-2])
        return lambda raw: decode(raw.view(np.uint16).reshape(N_LANES, 2))
    if kind == "bf16":
        return from_bf16
    if kind[0] in "bu" or kind == "pred":
        return lambda raw: raw
    dtype = np.dtype(TYPES[kind])
    return lambda raw: raw.view(dtype)


def encoder(kind: str) -> Callable[[Array], Array]:
    """The reverse, with a conversion to the kind."""
    if kind.endswith("x2"):
        encode = encoder(kind[:-2])
        return lambda values: np.ascontiguousarray(encode(values)).view(np.uint32).reshape(N_LANES)
    if kind == "bf16":
        return to_bf16
    dtype = np.dtype(TYPES[kind])
    raw = dtype if kind == "pred" else np.dtype(RAW[dtype.itemsize])
    return lambda values: (values if values.dtype == dtype else values.astype(dtype)).view(raw)


class Computation(NamedTuple):
    """Kinds of the result and of the operands, and the function between."""

    result: str
    operands: tuple[str, ...]
    function: Callable[..., Array]


COMPARISONS: dict[str, Callable[..., Array]] = {
    **{"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal},
    **{"eq": np.equal, "ne": np.not_equal},
}


def _fused(a: Array, b: Array, c: Array) -> Array:
    return (a.astype(np.float64) * b + c).astype(a.dtype)


def _selected(a: Array, b: Array, which: Array) -> Array:
    return np.where(which, a, b)


def _bits(a: Array, at: Array, n: Array) -> Array:
    return a >> at & (1 << n) - 1


def _signed_bits(a: Array, at: Array, n: Array) -> Array:
    return (a << (32 - at - n)) >> (32 - n)


def _permuted(a: Array, b: Array, selector: Array) -> Array:
    of_bytes = np.stack([a, b], axis=-1).view(np.uint8)
    chosen = (selector[:, None] >> (4 * np.arange(4, dtype=np.uint32))) & np.uint32(15)
    if (chosen > 7).any():
        raise NotImplementedError("prmt that repeats a sign")
    return np.take_along_axis(of_bytes, chosen.astype(np.int64), axis=1).view(np.uint32)[:, 0]


def _wide(kind: str) -> Callable[..., Array]:
    wide = TYPES[kind[0] + "64"]
    return lambda a, b, c=None: a.astype(wide) * b.astype(wide) + (0 if c is None else c)


UNARY: dict[str, Callable[..., Array]] = {
    **{"neg": np.negative, "not": np.invert, "ex2": np.exp2, "tanh": np.tanh},
}
BINARY: dict[str, Callable[..., Array]] = {
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "rem": np.fmod},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "max": np.fmax, "min": np.fmin},
}
# Modifiers that leave the value as it is computed here.
ROUNDING = {"rn", "full", "approx", "lo", "NaN", "ftz"}


def computation(name: Sequence[str]) -> Computation | None:
    """What an instruction computes, by the parts of its name; None for one that is not here."""
    first, *rest = name
    parts = [part for part in rest if part not in ROUNDING]
    kind = parts[-1] if parts else ""
    if not set(parts) <= {*TYPES, *COMPARISONS, "and", "wide", "xorsign", "abs"} or kind not in TYPES:
        return None
    match first, parts:
        case "setp", [how, _]:
            return Computation("pred", (kind, kind), COMPARISONS[how])
        case "setp", [how, "and", _]:
            return Computation("pred", (kind, kind, "pred"), lambda a, b, also: COMPARISONS[how](a, b) & also)
        case "selp", [_]:
            return Computation(kind, (kind, kind, "pred"), _selected)
        case "cvt", [_, of] if parts[0].endswith("x2"):
            return Computation(parts[0], (of, of), lambda high, low: np.stack([low, high], axis=-1))
        case "cvt", [to, of]:
            return Computation(to, (of,), lambda value: value)
        case (("mad" | "mul"), ["wide", _]):
            wide = kind[0] + "64"
            return Computation(wide, (kind, kind, *([wide] if first == "mad" else [])), _wide(kind))
        case "fma", [_]:
            return Computation(kind, (kind,) * 3, _fused)
        case "mad", [_]:
            return Computation(kind, (kind,) * 3, lambda a, b, c: a * b + c)
        case (("shl" | "shr"), [_]):
            shift = np.left_shift if first == "shl" else np.right_shift
            return Computation(kind, (kind, "u32"), lambda a, n: shift(a, n.astype(a.dtype)))
        case "bfe", ["u32"]:
            return Computation(kind, (kind,) * 3, _bits)
        case "bfe", ["s32"]:
            return Computation(kind, (kind,) * 3, _signed_bits)
        case "prmt", [_]:
            return Computation(kind, (kind,) * 3, _permuted)
        case "min", ["xorsign", "abs", _] if "NaN" in rest:
            return Computation(kind, (kind, kind), _smaller_with_both_signs)
        case (("max" | "min"), [_]) if "NaN" in rest:
            return Computation(kind, (kind, kind), np.maximum if first == "max" else np.minimum)
        case _, [_] if first in UNARY:
            return Computation(kind, (kind,), UNARY[first])
        case _, [_] if first in BINARY and (first != "div" or kind == "f32"):
            return Computation(kind, (kind, kind), BINARY[first])
    return None


def _smaller_with_both_signs(a: Array, b: Array) -> Array:
    """The smaller magnitude, negative where one of both is; NaN where one is."""
    return np.copysign(np.minimum(np.abs(a), np.abs(b)), np.copysign(1, a) * np.copysign(1, b)).astype(a.dtype)
