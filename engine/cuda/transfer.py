"""Copies between host and device that overlap with computing.

Copies have streams of their own, and pinned memory.

Pinned memory comes from PyTorch's allocator, which hands a freed block out again once the copies that used it are over;
so buffers alternate by themselves, as many as are in flight. Tensors that one stream makes and another uses are
recorded on both, so that the device's memory is not handed out too early either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashelmo.engine.arrays import Array, Int32
from flashelmo.engine.system.autocast import without_autocast
from flashelmo.engine.system.captures import own_stream

# During a capture, in whatever thread, PyTorch ignores `record_stream` and would free memory too early: the two exclude
# each other.
CAPTURE_LOCK = threading.RLock()

PIECES_IN_TURN = 3  # of a staging: one that is filled, and those of two windows in flight


class DeviceStreams(NamedTuple):
    """Of a device: copies up, computing, copies down, and captures, which compute nothing."""

    up: torch.cuda.Stream
    compute: torch.cuda.Stream
    down: torch.cuda.Stream
    capture: torch.cuda.Stream


_streams: dict[torch.device, DeviceStreams] = {}
_streams_lock = threading.Lock()


def streams_of(device: torch.device) -> DeviceStreams:
    """The streams that all embedders of this process share on a CUDA device.

    Programs of some kernels wait for each other: two such kernels side by side, each with half of the card, would wait
    for ever.
    """
    with _streams_lock:
        if device not in _streams:
            _streams[device] = DeviceStreams(*(own_stream(device) for _ in DeviceStreams._fields))
        return _streams[device]


class Transfers:
    """The three streams of one device: copies up, computing, copies down. On the CPU everything happens at once.

    Args:
        device: a CUDA device, or the CPU for Triton's interpreter.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            self._up, self._compute, self._down, _ = streams_of(device)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Work that is queued inside goes to the computing stream."""
        stream: AbstractContextManager[Any] = nullcontext()
        if self._is_cuda:
            stream = self._queuing(self._compute)
        # What is kept from call to call must not become an inference tensor, which later calls could not write to.
        mode = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
        with stream, mode, without_autocast(self.device):
            yield

    def upload(self, size: int, fill: Callable[[Int32], None]) -> Tensor:
        """int32 [size] on the device, for the computing stream; `fill` writes it in the host's memory."""
        host = self.host(size)
        fill(host.numpy())
        return self.send(host)

    def host(self, size: int) -> Tensor:
        """int32 [size] in memory that `send` copies from; in any thread."""
        if not self._is_cuda:
            return torch.empty(size, dtype=torch.int32, device="cpu")
        with CAPTURE_LOCK, torch.cuda.device(self.device):
            return torch.empty(size, dtype=torch.int32, device="cpu", pin_memory=True)

    def send(self, host: Tensor) -> Tensor:
        """A copy on the device, for the computing stream."""
        if not self._is_cuda:
            return host
        with self._queuing(self._up):
            tensor = host.to(self.device, non_blocking=True)
        self._compute.wait_stream(self._up)
        _record(tensor, self._compute)
        return tensor

    def mark(self) -> Mark:
        """The end of what is queued on the computing stream so far."""
        return Mark(self._compute.record_event() if self._is_cuda else None)

    def download(self, tensor: Tensor, ready: Mark) -> Download:
        """Begin to copy [O, rows, 2P], perhaps a part of the rows, once the computing stream has come to a mark."""
        if not self._is_cuda:
            return Download(tensor, ready)
        with self._queuing(self._down):
            self._down.wait_event(ready.event)
            host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
            for ours, theirs in zip(host, tensor, strict=True):  # each contiguous: no copy on the device before
                ours.copy_(theirs, non_blocking=True)
            _record(tensor, self._down)
            return Download(host, Mark(self._down.record_event()))

    def download_now(self, tensor: Tensor) -> Download:
        """As `download`, in the computing stream itself: what is queued there next may write to the tensor."""
        if not self._is_cuda:
            return Download(tensor.clone(), self.mark())
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        return Download(host, self.mark())

    def hand_over(self, tensor: Tensor, ready: Mark) -> Tensor:
        """A tensor for the caller's own stream, which waits for the mark; the host does not."""
        if self._is_cuda:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(ready.event)
            _record(tensor, stream)
        return tensor

    def wait(self) -> None:
        """Wait until everything that was queued is done."""
        if self._is_cuda:  # the device itself may not be waited for while another thread captures a graph
            for stream in (self._up, self._compute, self._down):
                stream.synchronize()

    @contextmanager
    def _queuing(self, stream: torch.cuda.Stream) -> Iterator[None]:
        """Work goes to a stream; its device first, as leaving a stream would set up the device of before."""
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            yield


class Staging:
    """The host's side of a tensor that is written again and again: pinned memory, some pieces in turn.

    Args:
        tensor: int32 [size] on a device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        is_cuda = tensor.device.type == "cuda"
        self._pieces: list[tuple[Tensor, Int32, Any]] = []
        self._turn = 0
        for _ in range(PIECES_IN_TURN):
            host = torch.empty(len(tensor), dtype=torch.int32, device="cpu", pin_memory=is_cuda)
            self._pieces.append((host, host.numpy(), torch.cuda.Event() if is_cuda else None))

    def upload(self, fill: Callable[[Int32], None]) -> None:
        """Bring what `fill` writes to the tensor, in the current stream; waits where all pieces are on their way."""
        self._turn = (self._turn + 1) % len(self._pieces)
        host, array, copied = self._pieces[self._turn]
        if copied is not None:
            copied.synchronize()
        fill(array)
        self._tensor.copy_(host, non_blocking=True)
        if copied is not None:
            copied.record()


def _record(tensor: Tensor, stream: torch.cuda.Stream) -> None:
    """Keep a tensor's memory until a stream has finished the work queued on it so far (record_stream)."""
    with CAPTURE_LOCK:
        tensor.record_stream(stream)


@dataclass(frozen=True)
class Mark:
    """A point in a stream; on the CPU everything lies before it."""

    event: Any

    @property
    def is_past(self) -> bool:
        """Whether the device has come so far."""
        return self.event is None or bool(self.event.query())

    def wait(self) -> None:
        """Wait until the device has come so far."""
        if self.event is not None:
            self.event.synchronize()


@dataclass(frozen=True)
class Download:
    """A tensor on its way to the host."""

    host: Tensor
    done: Mark

    def wait(self) -> Array:
        """Its values, in memory that is used again once this object and the array are gone."""
        self.done.wait()
        values: Array = self.host.numpy()
        return values
