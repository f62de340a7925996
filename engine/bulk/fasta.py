"""FASTA: proteins, whose tokens are residues."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from flashelmo.engine.arguments import shown
from flashelmo.engine.arrays import Int64
from flashelmo.engine.bulk.parts import RecordErrors, Records
from flashelmo.engine.bulk.text_format import Fault, RawRecords, TextFormat, decode_utf8, each_record

HEADER = re.compile(rb"\n>")
WHITE_SPACE = string.whitespace.encode()
# SeqVec's input is in capitals, and it treats rare and ambiguous residues as X.
RARE = str.maketrans("UZOB", "XXXX")
AS_SEQVEC = bytes.maketrans(string.ascii_letters.encode(), string.ascii_letters.upper().translate(RARE).encode())
NO_RESIDUE = re.compile(rb"[^A-Za-z*\s]")


@dataclass(frozen=True)
class Fasta(TextFormat):
    """A header with > and lines of residues. See `TextFormat`.

    As in SeqVec, white space between residues is ignored, lower case becomes upper case, and * stays a residue; U, Z, O
    and B become X. Anything else, such as the - of a gap, is not a residue. A protein's own id is the first word of its
    header; with `id_field`, a number like SeqVec's --id, it is the part of the header between two |, counted from 0, or
    with -1 all of it.
    """

    id_field: int | None
    errors: RecordErrors
    kinds = ("FASTA",)

    def cut(self, data: bytes) -> Int64:
        """See `TextFormat`."""
        ends = [match.start() + 1 for match in HEADER.finditer(data)]
        if ends and not data[: ends[0]].strip():  # blank lines before the first header
            del ends[0]
        return np.array(ends, np.int64)

    def decode(self, raw: RawRecords) -> Records:
        """See `TextFormat`."""
        numbers, rows, skipped = each_record(raw, self.errors, self._read)
        residues = b"".join(sequence for _, sequence in rows)
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(sequence) for _, sequence in rows], out=offsets[1:])
        ends = pa.py_buffer(np.arange(len(residues) + 1, dtype=np.int32))
        tokens = pa.StringArray.from_buffers(len(residues), ends, pa.py_buffer(residues))
        ids = [own_id or str(number) for number, (own_id, _) in zip(numbers, rows, strict=True)]
        return Records(numbers, ids, tokens, offsets, None, skipped)

    def _read(self, record: bytes) -> tuple[str, bytes]:
        first = len(record) - len(record.lstrip())
        header, _, lines = record[first:].partition(b"\n")
        if not header.startswith(b">"):
            raise Fault(first, "a header that begins with >", shown(decode_utf8(header, "replace")))
        if (end := header.rstrip().find(b"\r")) >= 0:
            raise Fault(first + end, "a header's line that ends with \\n", "one that ends with \\r alone")
        own_id = self._id(decode_utf8(header, self.errors, first)[1:].strip(), first)
        if wrong := NO_RESIDUE.search(lines):
            character = lines[wrong.start() : wrong.start() + 4].decode("utf-8", "replace")[0]
            raise Fault(len(record) - len(lines) + wrong.start(), "a residue (A to Z or *)", repr(character))
        return own_id, lines.translate(AS_SEQVEC, WHITE_SPACE)

    def _id(self, header: str, first: int) -> str:
        if self.id_field is None:
            return (header.split(maxsplit=1) or [""])[0]
        if self.id_field < 0:
            return header
        fields = header.split("|")
        if self.id_field >= len(fields):
            raise Fault(first, f"a header with a field {self.id_field} between |, from 0", shown(header))
        return fields[self.id_field]
