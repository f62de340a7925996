"""Runs kernels in Gluon, which Triton's interpreter does not: by that interpreter, with what Gluon adds to it.

All programs of a launch run at once, each in a thread, and so do the partitions of one that specializes its warps, so
that they wait for each other as on a card. Layouts mean nothing here, and assembly is replaced by what it does.
"""

from __future__ import annotations

import ctypes
import inspect
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.experimental.gluon import language as gluon_language
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.runtime import interpreter

from flashelmo.kernels.launch import Launch

PATIENCE = 60.0  # seconds of a wait
POISON = 0xFF  # of shared memory before anything is stored in it: NaN, or -1

_here = threading.local()
_all = SimpleNamespace(dawdle=None, errors=[])  # of all threads: what slows them, and what any of them raised


def run_all(launches: Iterable[Launch], dawdle: random.Random | None = None) -> None:
    """Run launches, on a card as they are, else those of Gluon by this file.

    Args:
        dawdle: makes programs stop and go at random.
    """
    for launch in launches:
        if isinstance(launch.kernel, GluonJITFunction) and triton.knobs.runtime.interpret:
            run(launch, dawdle)
        else:
            launch.run()


def run(launch: Launch, dawdle: random.Random | None = None) -> None:
    """Run all programs of a launch of a kernel in Gluon.

    Raises:
        AssertionError: a program waited in vain.
    """
    _all.dawdle, _all.errors = dawdle, []
    kernel = _adapted(launch.kernel)
    names = inspect.signature(kernel).parameters
    constants = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    arguments = {
        name: value if name in constants else _converted(value)
        for name, value in launch.arguments.items()
        if name in names
    }
    grid = (*launch.grid, 1, 1)[:3]
    scope = interpreter._patch_lang(_patched)
    try:
        _together([partial(_program, kernel, arguments, at, grid) for at in product(*map(range, grid))])
    finally:
        scope.restore()


def _patched() -> object:
    """A function in whose module Triton's language is visible, as its interpreter wants."""
    return tl


def _program(kernel: Callable[..., None], arguments: dict[str, Any], at: Sequence[int], grid: Sequence[int]) -> None:
    _here.at, _here.grid = at, grid
    kernel(**arguments)


def _together(tasks: Sequence[Callable[[], None]]) -> None:
    """Run tasks, each in a thread; the first error ends all waits, and is raised once all have ended."""

    def run_one(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            _all.errors.append(error)

    threads = [threading.Thread(target=run_one, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if _all.errors:
        raise _all.errors[0]


def _wait_until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert not _all.errors, "another one failed"
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0)


# ------------------------------------------------------------------------------------------------------- the language


def _converted(value: Any) -> Any:
    """An argument as kernels are given it."""
    if hasattr(value, "block_shape"):
        return Descriptor(value)
    return interpreter._implicit_cvt(value)


def _plain(value: Any) -> Any:
    """A number of Triton's as Python's."""
    if isinstance(value, tl.constexpr):
        return value.value
    return value.handle.data.item() if isinstance(value, tl.tensor) else value


def _tensor(data: np.ndarray[Any, Any], dtype: Any) -> tl.tensor:
    kind = tl.block_type(dtype, list(data.shape)) if data.shape else dtype
    return tl.tensor(interpreter.TensorHandle(data if data.shape else data.reshape(1), dtype), kind)


def _number(value: int) -> tl.tensor:
    return interpreter._implicit_cvt(int(value))


def _as_tensor(value: Any) -> tl.tensor:
    return value if isinstance(value, tl.tensor) else _number(value)


def _values(data: np.ndarray[Any, Any], dtype: Any) -> torch.Tensor:
    """What raw data means, for products."""
    if dtype == tl.bfloat16:
        return torch.from_numpy(data.copy().view(np.int16)).view(torch.bfloat16).float()
    found = torch.from_numpy(data.copy())
    return found.float() if found.is_floating_point() else found.int()


@dataclass
class Shared:
    """Shared memory: raw values, of which views are made."""

    data: np.ndarray[Any, Any]
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def index(self, i: Any) -> Shared:
        """See Gluon, as of the others."""
        assert 0 <= _plain(i) < len(self.data)
        return Shared(self.data[_plain(i)], self.dtype)

    def slice(self, start: Any, length: int, dim: int = 0) -> Shared:
        at = [slice(None)] * self.data.ndim
        assert 0 <= _plain(start) <= self.data.shape[dim] - length
        at[dim] = slice(_plain(start), _plain(start) + length)
        return Shared(self.data[tuple(at)], self.dtype)

    def permute(self, order: Sequence[int]) -> Shared:
        return Shared(self.data.transpose(order), self.dtype)

    def store(self, value: tl.tensor) -> None:
        assert list(value.shape) == list(self.data.shape) and value.dtype == self.dtype
        self.data[...] = value.handle.data


@dataclass
class Barrier:
    """An mbarrier: its phase ends when all have arrived and all bytes are here."""

    count: int = 0
    arrived: int = 0
    n_bytes: int = 0
    phase: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, arrivals: int, n_bytes: int) -> None:
        with self.lock:
            self.arrived += arrivals
            self.n_bytes += n_bytes
            assert self.arrived <= self.count
            if self.arrived == self.count and self.n_bytes == 0:
                self.arrived, self.phase = 0, self.phase + 1


class Barriers:
    """Some of them in shared memory."""

    def __init__(self, n: int) -> None:
        self._barriers = [Barrier() for _ in range(n)]

    def index(self, i: Any) -> Barrier:
        return self._barriers[_plain(i)]


class Descriptor:
    """Of a tensor in global memory, copied in blocks."""

    def __init__(self, described: Any) -> None:
        base = described.base
        self.block = list(described.block_shape)
        raw = base.view(torch.int16) if base.dtype == torch.bfloat16 else base
        self.data = raw.reshape(list(described.shape)).numpy()
        self.dtype = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.int8: tl.int8}[base.dtype]
        self.layout = described.layout
        self.block_type = SimpleNamespace(nbytes=self.block[0] * self.block[1] * base.itemsize)

    def copy(self, at: Sequence[Any], barrier: Barrier, to: Shared) -> None:
        """A block to shared memory; zero beyond the tensor's end."""
        first, second = map(_plain, at)
        assert list(to.data.shape) == self.block and first >= 0 and second >= 0
        found = self.data[first : first + self.block[0], second : second + self.block[1]].view(to.data.dtype)
        to.data[...] = 0
        to.data[: found.shape[0], : found.shape[1]] = found
        barrier.add(0, -self.block_type.nbytes)


def _allocate(dtype: Any, shape: Sequence[Any], layout: Any) -> Any:
    sizes = [_plain(each) for each in shape]
    if dtype == tl.int64:
        return Barriers(sizes[0])
    data = np.empty(sizes, interpreter._get_np_dtype(dtype))
    data.view(np.uint8)[...] = POISON
    return Shared(data, dtype)


def _product(a: Any, b: Shared, acc: tl.tensor, *, use_acc: Any = True, is_async: bool = False) -> tl.tensor:
    """warpgroup_mma, at once."""
    left = _values(a.data if isinstance(a, Shared) else a.handle.data, a.dtype)
    found = (left @ _values(b.data, b.dtype)).numpy().astype(acc.handle.data.dtype)
    return _tensor(found + acc.handle.data if _plain(use_acc) else found, acc.dtype)


def _specialize(functions: Sequence[tuple[Any, tuple[Any, ...]]], *_: Any) -> None:
    at, grid = _here.at, _here.grid

    def run_one(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        _here.at, _here.grid = at, grid
        function(*arguments)

    _together([partial(run_one, function, arguments) for function, arguments in functions])


def _wait(barrier: Barrier, phase: Any, pred: Any = True) -> None:
    if _plain(pred):
        _wait_until(lambda: (barrier.phase - 1) % 2 == _plain(phase), f"barrier {barrier}")


def _init(barrier: Barrier, count: int) -> None:
    barrier.count = count


class _Language:
    """`gl` for kernels."""

    static_range = staticmethod(lambda *bounds: range(*map(_plain, bounds)))
    program_id = staticmethod(lambda axis: _number(_here.at[axis]))
    num_programs = staticmethod(lambda axis: _number(_here.grid[axis]))
    allocate_shared_memory = staticmethod(_allocate)
    warp_specialize = staticmethod(_specialize)
    arange = staticmethod(lambda start, end, layout=None: tl.arange(_plain(start), _plain(end)))
    zeros = staticmethod(lambda shape, dtype, layout=None: tl.zeros([_plain(each) for each in shape], dtype))
    convert_layout = staticmethod(lambda value, layout, assert_trivial=False: value)
    cast = staticmethod(lambda value, dtype: _as_tensor(value).to(dtype))

    def __getattr__(self, name: str) -> Any:
        if name in ("load", "store", "where", "join", "split", "atomic_add"):
            return getattr(tl, name)
        return getattr(gluon_language, name)


_barriers = SimpleNamespace(
    MBarrierLayout=lambda: None,
    init=_init,
    expect=lambda barrier, n: barrier.add(1, _plain(n)),
    arrive=lambda barrier, count: barrier.add(count, 0),
    wait=_wait,
)


# ------------------------------------------------------------------------------------------------------------ assembly


def _words(addresses: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """The word of 64 bits at each address, as two of 32."""
    for address in addresses:
        yield np.ctypeslib.as_array((ctypes.c_uint32 * 2).from_address(int(address)))


def _at(pointers: tl.tensor, words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The addresses of words that are numbered from some pointers on."""
    return np.broadcast_to(pointers.handle.data.astype(np.int64), words.shape) + 8 * words.astype(np.int64)


def _dawdle() -> None:
    if _all.dawdle is not None and _all.dawdle.random() < 0.2:
        time.sleep(_all.dawdle.random() * 2e-3)


def _await_words(addresses: np.ndarray[Any, Any], tag: int) -> np.ndarray[Any, Any]:
    """Values of 32 bits, once they are there with their tag."""
    _dawdle()
    found = np.empty(len(addresses), np.uint32)
    for k, word in enumerate(_words(addresses)):
        _wait_until(partial(_has_tag, word, tag), f"a word of tag {tag}")
        found[k] = word[0]
    return found


def _has_tag(word: np.ndarray[Any, Any], tag: int) -> bool:
    return int(word[1]) == tag & 0xFFFFFFFF


def _receive(p_words: tl.tensor, row: tl.tensor, tag: Any, polls: Any, stride: Any, n: Any) -> tl.tensor:
    rows = np.broadcast_to(row.handle.data, np.broadcast_shapes(row.handle.data.shape, p_words.handle.data.shape))
    there, found = rows >= 0, np.zeros(rows.shape, np.uint32)
    found[there] = _await_words(_at(p_words, rows * _plain(stride))[there], _plain(tag))
    return _tensor(found.view(np.int32), tl.int32)


def _receive_sums(
    p_words: tl.tensor, word: tl.tensor, tag: Any, polls: Any, splits: Any, stride: Any
) -> tuple[tl.tensor, ...]:
    words = word.handle.data
    there, sums = words >= 0, [np.zeros(words.shape, np.float32) for _ in range(2)]
    for split, which in product(range(_plain(splits)), range(2)):
        numbers = words + split * _plain(stride) + which
        sums[which][there] += _await_words(_at(p_words, numbers)[there], _plain(tag)).view(np.float32)
    return tuple(_tensor(each, tl.float32) for each in sums)


def _send(p_words: tl.tensor, word: tl.tensor, values: tl.tensor, tag: Any) -> None:
    _dawdle()
    there = np.broadcast_to(word.handle.data, values.handle.data.shape) >= 0
    addresses = _at(p_words, np.broadcast_to(word.handle.data, there.shape))[there]
    for to, value in zip(_words(addresses), values.handle.data.view(np.uint32)[there], strict=True):
        to[0] = value
        to[1] = _plain(tag) & 0xFFFFFFFF


def _wait_for_splits(p_counter: tl.tensor, arrived: tl.tensor, polls: Any) -> float:
    """As `hopper_projection.wait_for_splits`."""
    first = _plain(arrived)

    def all_here() -> bool:
        return bool(_plain(tl.atomic_add(p_counter, 0)) - first >= -first % 8)

    _wait_until(all_here, "splits")
    return 0.0


INSTEAD = {
    "gl": _Language(),
    "async_load": lambda desc, at, barrier, to: desc.copy(at, barrier, to),
    "barrier": lambda: None,
    "mbarrier": _barriers,
    "fence_async_shared": lambda: None,
    "warpgroup_mma": _product,
    "warpgroup_mma_wait": lambda num_outstanding, deps: deps[0] if len(deps) == 1 else tuple(deps),
    "wait_for_launch_before": lambda: None,
    "opaque_zero": lambda: _number(0),
    "touch": lambda pointers: None,
    "wait_for_splits": _wait_for_splits,
    "receive": _receive,
    "receive_sums": _receive_sums,
    "send": _send,
}


def _adapted(function: GluonJITFunction[Any]) -> Callable[..., Any]:
    """A function in Gluon as one in Python, whose globals are those above, or its own."""
    original = function.fn
    names: dict[str, Any] = {}
    found = FunctionType(original.__code__, names, original.__name__, original.__defaults__)
    found.__kwdefaults__ = original.__kwdefaults__
    for name in _names(original.__code__):
        value = original.__globals__.get(name)
        if name in INSTEAD:
            names[name] = INSTEAD[name]
        elif isinstance(value, GluonJITFunction):
            names[name] = found if value is function else _adapted(value)
        elif value is not None:
            names[name] = value.value if isinstance(value, tl.constexpr) else value
    names["__builtins__"] = __builtins__
    return found


def _names(code: Any) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            yield from _names(constant)
