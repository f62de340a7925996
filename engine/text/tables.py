"""Files that hold no sentences: their headers and columns would be embedded as words."""

from __future__ import annotations

import re

from flashelmo.engine.errors import FlashElmoError

MAX_LINES = 100  # that are looked at

RESIDUES = re.compile(r"[A-Za-z*.-]+")
CONLLU_ID = re.compile(r"[0-9]+([-.][0-9]+)?")
CONLLU_TABS = 9


def check_is_text(head: bytes, name: str) -> None:
    """Raise FlashElmoError where the first lines of a file are plainly those of a FASTA, CoNLL-U or table file.

    Tokens may stand between tabs; a table is told by its equal number of columns and the blanks within them.
    """
    lines = [line.strip() for line in head.decode("utf-8", "replace").split("\n", MAX_LINES)[:MAX_LINES]]
    lines = [line for line in lines if line]
    columns = [line.split("\t") for line in lines if not line.startswith("#")]
    if _is_fasta(lines):
        _refuse(name, "FASTA", "leave out the headers and put a blank between residues")
    if columns and all(len(row) == 1 + CONLLU_TABS and CONLLU_ID.fullmatch(row[0]) for row in columns):
        _refuse(name, "CoNLL-U", "put a sentence's second column on a line")
    if _is_table(columns):
        _refuse(name, "a table", "`cut -f` picks a column")
    if name.endswith(".csv") and lines and "," in lines[0]:
        _refuse(name, "a table", "take the column of sentences out of it")


def _is_fasta(lines: list[str]) -> bool:
    """Headers with > and, below each, lines of one word of letters."""
    is_header = [re.match(r">\S", line) is not None for line in lines]
    if len(lines) < 2 or not is_header[0] or is_header[1]:
        return False
    return all(header or RESIDUES.fullmatch(line) for header, line in zip(is_header, lines, strict=True))


def _is_table(rows: list[list[str]]) -> bool:
    """Lines of as many columns each, blanks in one of them."""
    if len(rows) < 2 or len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
        return False
    return any(" " in cell.strip() for row in rows for cell in row)


def _refuse(name: str, found: str, advice: str) -> None:
    raise FlashElmoError(f"{name}: expected a sentence a line, found {found}; {advice}")
