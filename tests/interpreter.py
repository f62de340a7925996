"""Triton's interpreter, which runs the kernels on the CPU, made right, and made faster.

The interpreter of Triton 3.6 holds bfloat16 as 16-bit integers and then multiplies them as integers in `tl.dot`,
converts integers to it by value, and rounds float32 to it towards zero. What follows does these three as the hardware
does. Its numbers are arrays of one element, which NumPy 2.4 no longer takes as the end of a `range`. Its exponential
warns of overflow, where a card gives infinity in silence.

Most of its time goes to what does not change: it patches `triton.language` anew in every call of a function inside a
kernel (and leaves it patched), makes the types of a shape anew for every value, and computes for every sum of integers
whether it overflows, though it looks at that in debug mode alone. Here the language is patched once a launch, and
types are kept.
"""

from functools import cache
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import triton.language as tl
from triton._utils import validate_block_shape
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
    """Replace what the interpreter does wrong or again and again; a second call changes nothing."""
    if getattr(interpreter.InterpreterBuilder, "repaired", False):
        return
    _mend_bfloat16(interpreter.InterpreterBuilder)
    _mend_exponential(interpreter.InterpreterBuilder)
    _mend_numbers()
    _patch_once_a_launch()
    _keep_types()
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter.InterpreterBuilder.repaired = True


def _mend_bfloat16(builder: Any) -> None:
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


def _mend_exponential(builder: Any) -> None:
    exponential = builder.create_exp

    def create_exp(self: Any, x: Any) -> Any:
        with np.errstate(over="ignore"):
            return exponential(self, x)

    builder.create_exp = create_exp


def _mend_numbers() -> None:
    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor


def _patch_once_a_launch() -> None:
    """For the kernel and all functions that it calls, of which Triton's own know the language as `core`."""
    patch, scope_of_launch = interpreter._patch_lang, interpreter._LangPatchScope
    whole = SimpleNamespace(__globals__={"language": tl, "core": tl.core})
    patched: dict[tuple[int, str], tuple[Any, str, Any]] = {}  # place and name -> what the first launch put there

    def patch_language(kernel: Any) -> Any:
        if not patched:
            scope = patch(whole)
            for place, name, _ in scope._changes:
                patched[id(place), name] = place, name, getattr(place, name)
            return scope
        scope = scope_of_launch()
        for place, name, value in patched.values():
            scope.set_attr(place, name, value)
        return scope

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return self.rewrite()(*arguments, **options)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter._patch_lang = patch_language
    interpreter.InterpretedFunction.__call__ = call


def _keep_types() -> None:
    """One object for each shape and number type; nobody changes them."""
    numpy_type, known = interpreter._get_np_dtype, {}

    def get_np_dtype(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in known:
            known[name] = numpy_type(dtype)
        return known[name]

    @cache
    def block(sizes: tuple[int, ...]) -> tuple[Any, int, str]:
        shape = tl.core.tuple(sizes)
        return shape, validate_block_shape(shape), str(shape)

    @cache
    def constants(sizes: tuple[int, ...]) -> tuple[Any, Any]:
        return tl.core.tuple([tl.constexpr(size) for size in sizes]), tl.constexpr(prod(sizes))

    def make_block_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([size.value if isinstance(size, tl.constexpr) else size for size in shape])
        if not sizes:
            raise TypeError("0d block_type is forbidden")
        self.element_ty = element_ty
        self.shape, self.numel, text = block(sizes)
        self.name = f"<{text}, {element_ty}>"

    def make_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = constants(tuple(type.shape.values) if type.is_block() else ())

    interpreter._get_np_dtype = get_np_dtype
    tl.core.block_type.__init__ = make_block_type
    tl.core.tensor.__init__ = make_tensor
