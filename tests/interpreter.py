"""Triton's interpreter, which runs the kernels on the CPU, made right.

The interpreter of Triton 3.6 holds bfloat16 as 16-bit integers and then multiplies them as integers in `tl.dot`,
converts integers to it by value, and rounds float32 to it towards zero. What follows does these three as the hardware
does. Its numbers are arrays of one element, which NumPy 2.4 no longer takes as the end of a `range`. Its exponential
warns of overflow, where a card gives infinity in silence.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import triton.language as tl
from triton.runtime import interpreter

Array = npt.NDArray[Any]


def to_float32(bits: Array) -> Array:
    """The values of bfloat16 numbers."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: Array) -> Array:
    """Rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def repair() -> None:
    """Replace what the interpreter does wrong; a second call changes nothing."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "repaired", False):
        return
    cast, dot = builder.cast_impl, builder.create_dot

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        source_type, target_type = source.dtype.scalar, target.scalar
        if tl.bfloat16 not in (source_type, target_type) or source_type == target_type:
            return cast(self, source, target)
        values = to_float32(source.data) if source_type == tl.bfloat16 else source.data
        if target_type == tl.bfloat16:
            return interpreter.TensorHandle(to_bfloat16(values), tl.bfloat16)
        return interpreter.TensorHandle(values.astype(interpreter._get_np_dtype(target_type)), target_type)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        a, b = (cast_impl(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, d, *options)

    builder.cast_impl, builder.create_dot = cast_impl, create_dot
    builder.create_fp_to_fp = lambda self, source, target, _: cast_impl(self, source, target)
    builder.repaired = True

    exponential = builder.create_exp

    def create_exp(self: Any, x: Any) -> Any:
        with np.errstate(over="ignore"):
            return exponential(self, x)

    builder.create_exp = create_exp

    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor
