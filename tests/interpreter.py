"""Triton's interpreter, which runs the kernels on the CPU, made right, and made faster.

The interpreter of Triton 3.6 holds bfloat16 as 16-bit integers and then multiplies them as integers in `tl.dot`,
converts integers to it by value, and rounds float32 to it towards zero. What follows does these three as the hardware
does. Its numbers are arrays of one element, which NumPy 2.4 no longer takes as the end of a `range`. Its exponential
warns of overflow, where a card gives infinity in silence.

Most of its time goes to what does not change: it patches `triton.language` anew in every call of a function inside a
kernel (and leaves it patched), makes the types of a shape anew for every value, and computes for every sum of integers
whether it overflows, though it looks at that in debug mode alone. Here the language is patched once a launch, and
types are kept. Where two operands are of one type nothing is compared, as they are nearly always; NumPy broadcasts
them. What a kernel reduces by a function of its own is so slice by slice, in place of number by number.
"""

from functools import cache
from inspect import unwrap
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import triton.language as tl
from triton._utils import validate_block_shape
from triton.language.semantic import TritonSemantic
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
    _call_at_once()
    _take_operands_as_they_are()
    interpreter.ReduceOps.generic_reduce = _reduce_slices
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


def _call_at_once() -> None:
    """What a kernel calls, without looking at each argument on the way."""
    constexpr, tensor, unwrap_constexpr = tl.constexpr, tl.tensor, tl.core._unwrap_if_constexpr
    to_tensor = TritonSemantic.to_tensor

    def patch_attribute(place: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        inner, semantic = unwrap(member), TritonSemantic(builder)

        def call(*arguments: Any, **options: Any) -> Any:
            options["_semantic"] = semantic
            return inner(*arguments, **options)

        scope.set_attr(place, name, call)

    def unwrap_if_constexpr(value: Any) -> Any:
        kind = type(value)
        if kind is constexpr:
            return value.value
        return unwrap_constexpr(value) if kind in (list, tuple, tl.tuple) else value

    def tensor_of(self: Any, value: Any, check_type: bool = True) -> Any:
        return value if type(value) is tensor else to_tensor(self, value, check_type)

    def make_handle(self: Any, data: Any, dtype: Any, attr: Any = None) -> None:
        self.data, self.dtype, self.attr = data, dtype, {} if attr is None else attr
        if type(dtype) is not tl.pointer_type and 8 * data.itemsize > max(8, dtype.primitive_bitwidth):
            raise ValueError(f"expected numbers of at most {dtype.primitive_bitwidth} bits, found {data.dtype}")

    interpreter._patch_attr = patch_attribute
    tl.core._unwrap_if_constexpr = unwrap_if_constexpr
    TritonSemantic.to_tensor = tensor_of
    interpreter.TensorHandle.__init__ = make_handle


def _take_operands_as_they_are() -> None:
    """Operands of one number type, or a pointer and an offset, and what is brought to one shape."""
    tensor, slowly = tl.tensor, TritonSemantic.binary_op_type_checking_impl
    # What may stand beside a tensor of a type as a number of it, and NumPy's type; a type is one object.
    known = {
        id(tl.int32): ((int,), np.int32),
        id(tl.int64): ((int,), np.int64),
        id(tl.float32): ((int, float), np.float32),
    }

    @cache
    def broadcast_sizes(left: tuple[int, ...], right: tuple[int, ...]) -> list[int]:
        return list(np.broadcast_shapes(left, right))

    def typed_alike(lhs: Any, rhs: Any) -> tuple[Any, Any]:
        """Of types that say the same shape; what they hold is broadcast where it meets."""
        if lhs.shape is rhs.shape:
            return lhs, rhs
        if not rhs.type.is_block():
            return lhs, tensor(rhs.handle, lhs.type.with_element_ty(rhs.dtype))
        if not lhs.type.is_block():
            return tensor(lhs.handle, rhs.type.with_element_ty(lhs.dtype)), rhs
        sizes = broadcast_sizes(tuple(lhs.type.shape.values), tuple(rhs.type.shape.values))
        left, right = tl.block_type(lhs.dtype, sizes), tl.block_type(rhs.dtype, sizes)
        return tensor(lhs.handle, left), tensor(rhs.handle, right)

    def constant(number: Any, beside: Any) -> Any:
        """None where the type is to be found out."""
        numbers, numpy_type = known.get(id(beside.dtype), ((), None))
        if type(number) not in numbers or (type(number) is int and not -(2**31) <= number < 2**31):
            return None
        return tensor(interpreter.TensorHandle(np.array([number], numpy_type), beside.dtype), beside.type)

    def operands(self: Any, lhs: Any, rhs: Any, *rules: Any, **named_rules: Any) -> tuple[Any, Any]:
        is_division = len(rules) > 2 or bool(named_rules)  # of which 16 bits are others
        if type(lhs) is tensor and type(rhs) is tensor:
            left, right = lhs.dtype, rhs.dtype
            if left is right and (id(left) in known or not (is_division or left.is_ptr())):
                alike = True
            else:
                alike = right is tl.int32 and rules == (True, True) and left.is_ptr()
            if alike:
                return typed_alike(lhs, rhs)
        elif not is_division:
            if type(lhs) is tensor and (number := constant(rhs, lhs)) is not None:
                return lhs, number
            if type(rhs) is tensor and (number := constant(lhs, rhs)) is not None:
                return number, rhs
        return slowly(self, lhs, rhs, *rules, **named_rules)

    def broadcast(self: Any, lhs: Any, rhs: Any) -> list[Any]:
        def filled(value: Any, typed: Any) -> Any:
            if value is typed:
                return value
            data = np.broadcast_to(value.handle.data, typed.type.shape.values).copy()  # Triton takes no view
            return tensor(interpreter.TensorHandle(data, value.handle.dtype), typed.type)

        return list(map(filled, (lhs, rhs), typed_alike(lhs, rhs)))

    TritonSemantic.binary_op_type_checking_impl = operands
    TritonSemantic.broadcast_impl_value = broadcast


def _reduce_slices(self: Any, values: Any) -> list[Any]:
    """`ReduceOps.generic_reduce` along an axis: its function takes two slices at once."""
    original, (values, axis) = self.axis, self.unravel(values, self.axis)
    slices = [
        [self.to_tensor(np.take(value.handle.data, k, axis=axis), value.dtype) for value in values]
        for k in range(values[0].handle.data.shape[axis])
    ]
    found = slices[0]
    for more in slices[1:]:
        combined = self.combine_fn.fn(*found, *more)
        found = list(combined) if isinstance(combined, tuple) else [combined]
    result = []
    for each, value in zip(found, values, strict=True):
        data = each.handle.data
        if self.keep_dims:
            data = np.expand_dims(data, axis if original is not None else tuple(range(1, value.handle.data.ndim)))
        elif original is None:
            data = data.item()
        result.append(self.to_tensor(data, value.dtype))
    return result
