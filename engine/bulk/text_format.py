"""How records are stored in a text: what every format of text has, and its records before they are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flashelmo.engine.arrays import Int64
from flashelmo.engine.bulk.parts import Place, Records
from flashelmo.engine.text.lines import NEWLINE


@dataclass(frozen=True)
class RawRecords:
    """Whole records.

    Attributes:
        name: of the input.
        place: where `data` begins.
        data: their bytes.
        ends: [B] where each ends in `data`, the last one at its end.
    """

    name: str
    place: Place
    data: bytes
    ends: Int64

    def where(self, position: int) -> str:
        """Return the input's name, and the line and its byte of a position in `data`, both counted from 1."""
        line = self.place.line + self.data.count(b"\n", 0, position)
        byte = position - self.data.rfind(b"\n", 0, position)
        return f"{self.name}: line {line}, byte {byte}"


class TextFormat(Protocol):
    """How records are stored in a text.

    Attributes:
        kinds: what `kind_of` may take such a text for, the format itself first.
        blank_records: whether white space after the last record is one more.
    """

    kinds: tuple[str, ...]
    blank_records: bool

    def begin(self, head: bytes, name: str) -> int:
        """Look at the first bytes of the text; return how many of them precede the first record.

        Raises:
            FlashElmoError: such a text cannot begin like this.
        """
        return 0

    def cut(self, data: bytes) -> Int64:
        """Return where each record ends that is whole whatever follows; a last one without an end does not count."""

    def end_of_first(self, data: bytes) -> int:
        """Return where the first record ends if `cut` finds no whole one, and no more text may belong to it."""
        return len(data)

    def decode(self, raw: RawRecords) -> Records:
        """The records."""


def line_ends(data: bytes) -> Int64:
    r"""Return the positions after each \n."""
    return (np.flatnonzero(np.frombuffer(data, np.uint8) == NEWLINE) + 1).astype(np.int64)
