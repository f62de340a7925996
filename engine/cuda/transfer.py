"""Copies between host and device that overlap with computing, and the results that come down, sentence by sentence.

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
from itertools import pairwise
from operator import sub
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flashelmo.engine.autocast import without_autocast
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text.schedule import Int64
from flashelmo.engine.threads import in_order

Int32 = npt.NDArray[np.int32]

# During a capture, in whatever thread, PyTorch ignores `record_stream` and would free memory too early: the two exclude
# each other.
CAPTURE_LOCK = threading.RLock()

# Results come down in pieces of about this size: while one is read, the next one is copied. Pinned memory is allocated
# in powers of two, and a piece may be a sentence longer.
PIECE_BYTES = 60 << 20

TENSORS_AT_ONCE = 256  # of a window's thousands: where there are 700 objects more than before, Python looks for garbage

COPIERS = 4  # threads; on an H200's host 512 sentences of 22 tokens take 74 ms by one, 14 by 4, 12 by 8
COPIED_BYTES = 4 << 20  # of a piece: with fewer, starting threads takes longer

PIECES_IN_TURN = 3  # of a staging: one that is filled, and those of two windows in flight


class Transfers:
    """The three streams of one device: copies up, computing, copies down. On the CPU everything happens at once.

    Args:
        device: a CUDA device, or the CPU for Triton's interpreter.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            self._up, self._compute, self._down = (torch.cuda.Stream(device) for _ in range(3))

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

    def wait(self) -> npt.NDArray[Any]:
        """Its values, in memory that is used again once this object and the array are gone."""
        self.done.wait()
        values: npt.NDArray[Any] = self.host.numpy()
        return values


class Results:
    """What was asked for of a window's sentences.

    Args:
        values: [O, rows, 2P] on the device.
        offsets: [B + 1]; sentence b's rows are offsets[b]:offsets[b + 1].
        single: O is 1, and a result is to have no dimension for it.
        pooled: a sentence has one row, and a result is to have no dimension for that.
        transfers, ready: bring them to the host, once the computing stream has come to the mark.
        as_numpy: arrays in the host's memory, which the caller owns; otherwise views of `values`.
        overflowed: whether some window that is computed had a result that is infinite or NaN; only then are these
            looked at.
        refuse: makes the error of a sentence of these numbers, which is raised in its place.
        on_read: called with the number of sentences that have come to the host so far, piece by piece.
        lent: whatever is queued next overwrites the values, perhaps more rows than there are tokens: they are copied to
            the host at once. Only with `as_numpy`.

    Attributes:
        ready, as_numpy: see above.
    """

    def __init__(
        self,
        values: Tensor,
        offsets: Int64,
        *,
        single: bool,
        pooled: bool,
        transfers: Transfers,
        ready: Mark,
        as_numpy: bool,
        overflowed: Callable[[], bool],
        refuse: Callable[[int], FlashElmoError],
        on_read: Callable[[int], None] = lambda n: None,
        lent: bool = False,
    ) -> None:
        self.ready = ready
        self._overflowed, self._refuse, self._on_read = overflowed, refuse, on_read
        self._values = values
        self._offsets = offsets
        self._single = single
        self._pooled = pooled
        self._transfers = transfers
        self.as_numpy = as_numpy
        self._cuts = [(0, len(offsets) - 1)]
        self._first: Download | None = None
        if lent:
            self._first = transfers.download_now(values)
            self.ready = self._first.done
        elif as_numpy:
            self._cuts = _cuts(offsets, values.shape[0] * values.shape[2] * values.element_size())
            self._first = self._download(0)

    def __iter__(self) -> Iterator[Any]:
        return self._arrays() if self.as_numpy else self._tensors()

    def confirm(self) -> None:
        """Wait until the values are computed; tensors that are left on the device are looked at where that is needed.

        Raises:
            FlashElmoError: of the first sentence whose tensor is not finite.
        """
        self.ready.wait()
        if not self.as_numpy and self._overflowed() and not bool(self._values.isfinite().all()):
            for b, tensor in enumerate(self._tensors()):
                if not bool(tensor.isfinite().all()):
                    raise self._refuse(b)

    def _tensors(self) -> Iterator[Tensor]:
        values = self._transfers.hand_over(self._values, self.ready)
        values = values[0] if self._single else values
        dimension, offsets = values.ndim - 2, self._offsets.tolist()
        for first in range(0, len(offsets) - 1, TENSORS_AT_ONCE):
            part = offsets[first : first + TENSORS_AT_ONCE + 1]
            rows = values.narrow(dimension, part[0], part[-1] - part[0])
            if self._pooled:
                yield from rows.unbind(dimension)
            else:  # unsafe is what nobody does here, who asks for gradients; it takes half of the time
                yield from rows.unsafe_split_with_sizes(list(map(sub, part[1:], part)), dimension)

    def _arrays(self) -> Iterator[npt.NDArray[Any]]:
        download = self._first or self._download(0)
        self._first = None
        for piece, (first, last) in enumerate(self._cuts):
            values = download.wait()[:, : self._offsets[last] - self._offsets[first]]
            if piece + 1 < len(self._cuts):
                download = self._download(piece + 1)
            self._on_read(last)
            results = self._cut(values[0] if self._single else values, first, last)
            yield from self._checked(results, first) if self._overflowed() else results

    def _checked(self, results: Iterator[npt.NDArray[Any]], first: int) -> Iterator[npt.NDArray[Any]]:
        """Results of the sentences from `first` on, each of which is looked at."""
        for b, result in enumerate(results, first):
            if not np.isfinite(result).all():
                raise self._refuse(b)
            yield result

    def _cut(self, values: npt.NDArray[Any], first: int, last: int) -> Iterator[npt.NDArray[Any]]:
        """The results of some sentences, whose rows are all that there are; copies, as this memory is used again."""
        if self._pooled:
            return (rows.copy() for rows in values.swapaxes(0, -2))
        offsets = (self._offsets[first : last + 1] - self._offsets[first]).tolist()
        sentences = [values[..., start:stop, :] for start, stop in pairwise(offsets)]
        return copies(sentences) if values.nbytes >= COPIED_BYTES else (rows.copy() for rows in sentences)

    def _download(self, piece: int) -> Download:
        first, last = self._cuts[piece]
        return self._transfers.download(self._values[:, self._offsets[first] : self._offsets[last]], self.ready)


def copies(arrays: list[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Copies in order, by some threads: most of their time the system takes, which finds memory page by page."""
    size = max(1, len(arrays) // (2 * COPIERS))
    batches = (arrays[k : k + size] for k in range(0, len(arrays), size))
    for batch in in_order(lambda batch: [array.copy() for array in batch], batches, COPIERS):
        yield from batch


def _cuts(offsets: Int64, row_bytes: int) -> list[tuple[int, int]]:
    """Runs of sentences of about `PIECE_BYTES`; one that is longer by itself stays whole."""
    if offsets[-1] * row_bytes < PIECE_BYTES:
        return [(0, len(offsets) - 1)]
    ends = offsets[1:] * row_bytes // PIECE_BYTES
    breaks = (np.flatnonzero(np.diff(ends)) + 1).tolist()
    firsts = [0, *breaks]
    return list(zip(firsts, [*breaks, len(offsets) - 1], strict=True))
