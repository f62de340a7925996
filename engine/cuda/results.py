"""A window's results, sentence by sentence: on the device as they are, or copied to the host piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from flashelmo.engine.cuda.transfer import Download, Mark, Transfers
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text.schedule import Int64

# Of pinned memory at a time: while one piece is read, the next one is copied. Such memory comes in powers of two, and a
# piece may be a sentence longer.
PIECE_BYTES = 60 << 20


class Results:
    """What was asked for of a window's sentences.

    Args:
        values: [O, rows, 2P] on the device.
        offsets: [B + 1]; sentence b's rows are offsets[b]:offsets[b + 1].
        single: O is 1, and a result is to have no dimension for it.
        pooled: a sentence has one row, and a result is to have no dimension for that.
        transfers, ready: bring them to the host, once the computing stream has come to the mark.
        as_numpy: arrays in the host's memory, which the caller owns; otherwise views of `values`.
        timed_out: int32 [1], not 0 where the values are wrong.

    Attributes:
        ready: see above.
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
        timed_out: Tensor | None = None,
    ) -> None:
        self.ready = ready
        self._values = values
        self._offsets = offsets
        self._single = single
        self._pooled = pooled
        self._transfers = transfers
        self._as_numpy = as_numpy
        self._cuts = _cuts(offsets, values.shape[0] * values.shape[2] * values.element_size())
        self._first = self._download(0) if as_numpy else None
        self._timed_out = None if timed_out is None else transfers.download(timed_out, ready)

    @property
    def are_wrong(self) -> bool:
        """Whether a launch gave up waiting. Waits for the device, but only where one could."""
        return self._timed_out is not None and bool(self._timed_out.wait().any())

    def __iter__(self) -> Iterator[Any]:
        return self._arrays() if self._as_numpy else self._tensors()

    def _tensors(self) -> Iterator[Tensor]:
        values = self._transfers.hand_over(self._values, self.ready)
        values = values[0] if self._single else values
        dimension = values.ndim - 2
        if self._pooled:
            yield from values.unbind(dimension)
        else:
            yield from values.split_with_sizes(np.diff(self._offsets).tolist(), dimension)

    def _arrays(self) -> Iterator[npt.NDArray[Any]]:
        download = self._first or self._download(0)
        self._first = None
        for piece, (first, last) in enumerate(self._cuts):
            values = download.wait()
            if piece + 1 < len(self._cuts):
                download = self._download(piece + 1)
            if values.dtype == np.float16 and not np.isfinite(values).all():
                raise FlashElmoError("output: expected finite values within float16's range, found others; use float32")
            values = values[0] if self._single else values
            start = self._offsets[first]
            for b in range(first, last):
                rows: Any = slice(self._offsets[b] - start, self._offsets[b + 1] - start)
                if self._pooled:
                    rows = b - first
                yield values[..., rows, :].copy()

    def _download(self, piece: int) -> Download:
        first, last = self._cuts[piece]
        return self._transfers.download(self._values[:, self._offsets[first] : self._offsets[last]], self.ready)


def _cuts(offsets: Int64, row_bytes: int) -> list[tuple[int, int]]:
    """Runs of sentences of about `PIECE_BYTES`; one that is longer by itself stays whole."""
    ends = offsets[1:] * row_bytes // PIECE_BYTES
    breaks = (np.flatnonzero(np.diff(ends)) + 1).tolist()
    firsts = [0, *breaks]
    return list(zip(firsts, [*breaks, len(offsets) - 1], strict=True))
