"""Recognises files that are clearly not one sentence per line: their headers and columns would be embedded as words."""

from __future__ import annotations

import json
import re

from flashelmo.engine.errors import FlashElmoError

MAX_LINES = 100  # that are examined
FEW_LINES = 10  # of two columns, which may be sentences

RESIDUES = re.compile(r"[A-Za-z*.-]+")
CONLLU_ID = re.compile(r"[0-9]+([-.][0-9]+)?")
CONLLU_COLUMNS = 10
MARKUP = {"{\\rtf": "RTF", "<?xml ": "XML", "<!doctype html": "HTML"}  # how the first line begins, in lower case
JSON = re.compile(r'(?:\[\s*\{\s*|\{\n)"[^"\n]*":')  # a list of objects, or one over several lines

RETURNS = "lines that end with \\r alone"

# What such a file is called, and how to turn it into lines of sentences.
KINDS = {
    "FASTA": "leave out the headers and put a blank between residues",
    "CoNLL-U": "put a sentence's second column on a line",
    "JSON lines": "take the field of sentences out of them",
    "JSON": "`jq -c '.[]'` puts each object of a list on a line, `jq -c .` a single one",
    "tokens with tags": "put a sentence's first column on a line",
    "a table": "`cut -f` picks a column",
    RETURNS: "`tr '\\r' '\\n'` turns them into others",
    **dict.fromkeys(MARKUP.values(), "take the text out of it"),
}
SURE = ("FASTA", "CoNLL-U", "JSON lines", "JSON", RETURNS, *MARKUP.values())  # which readers of text never accept
BEGINNINGS = {
    b"PAR1\x15": "Parquet",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\xfd7zXZ": "xz",
    **{b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)},
    b"\x89HDF": "HDF5",
    b"PK\x03\x04": "a ZIP archive, as .docx and .odt are",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Office file, as .doc is",
    b"%PDF-": "PDF",
}


def check_is_text(head: bytes, name: str) -> None:
    """Raise FlashElmoError if a file's first lines are clearly not sentences, according to `kind_of`."""
    _refuse(kind_of(head), name)
    if name.endswith(".csv") and re.search(b"[,;]", head.lstrip().partition(b"\n")[0]):
        advice = "take the column of sentences out of it"
        raise FlashElmoError(f"{name}: expected a sentence a line, found a table; {advice}")


def check_is_no_other_format(head: bytes, name: str) -> None:
    """Do as `check_is_text`, but allow what may be intended: tables, and tokens with tags."""
    kind = kind_of(head)
    _refuse(kind if kind in SURE else None, name)


def _refuse(kind: str | None, name: str) -> None:
    if kind is not None:
        raise FlashElmoError(f"{name}: expected a sentence a line, found {kind}; {KINDS[kind]}")


def kind_of(head: bytes) -> str | None:
    """Return which of KINDS the first lines of a file clearly belong to.

    Tokens may be separated by tabs; a table is recognised by its constant number of columns and the blanks within them.
    """
    every = [line.strip() for line in head.decode("utf-8", "replace").split("\n", MAX_LINES)[:MAX_LINES]]
    lines = [line for line in every if line]
    for beginning, kind in MARKUP.items():
        if lines and lines[0].lower().startswith(beginning):
            return kind
    if len(every) == 1 and "\r" in every[0]:
        return RETURNS
    columns = [line.split("\t") for line in lines if not line.startswith("#")]
    if _is_fasta(lines):
        return "FASTA"
    if columns and all(len(row) == CONLLU_COLUMNS and CONLLU_ID.fullmatch(row[0]) for row in columns):
        return "CoNLL-U"
    if _is_json(lines):
        return "JSON lines"
    if JSON.match("\n".join(lines[:3])) and (len(lines) == 1 or lines[0].endswith(tuple("[{,]}"))):
        return "JSON"
    if "" in every[:-1] and _is_tagged([line.split("\t") for line in lines]):
        return "tokens with tags"
    return "a table" if _is_table(columns) else None


def binary_kind_of(head: bytes) -> str | None:
    """Return a file's kind, if its first bytes say that it is not text."""
    return next((kind for beginning, kind in BEGINNINGS.items() if head.startswith(beginning)), None)


def _is_fasta(lines: list[str]) -> bool:
    """Whether there are headers with > and, below each, lines of one word of letters."""
    is_header = [re.match(r">\S", line) is not None for line in lines]
    if len(lines) < 2 or not is_header[0] or is_header[1]:
        return False
    return all(header or RESIDUES.fullmatch(line) for header, line in zip(is_header, lines, strict=True))


def _is_json(lines: list[str]) -> bool:
    """Whether each line is an object."""
    if not lines or not all(line.startswith("{") and line.endswith("}") for line in lines):
        return False
    try:
        first = json.loads(lines[0])
        return isinstance(first, dict) and len(first) > 0
    except (ValueError, RecursionError):
        return False


def _is_tagged(rows: list[list[str]]) -> bool:
    """Whether lines have two columns of one word each, the second of which often repeats."""
    if len(rows) < FEW_LINES or not all(len(row) == 2 and " " not in row[0] + row[1] for row in rows):
        return False
    return 2 * len({tag for _, tag in rows}) < len(rows)


def _is_table(rows: list[list[str]]) -> bool:
    """Whether all lines have the same number of columns, with blanks in one of them."""
    if len(rows) < 2 or len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
        return False
    return any(" " in cell.strip() for row in rows for cell in row)
