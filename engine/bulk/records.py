"""An input's reader, chosen by its format."""

from __future__ import annotations

from pathlib import Path

from flashelmo.engine.arguments import path_of
from flashelmo.engine.bulk.parts import Part, Place, Reader, RecordErrors, Records
from flashelmo.engine.bulk.plain import PlainLines
from flashelmo.engine.bulk.text_reader import TextReader
from flashelmo.engine.errors import FlashElmoError

__all__ = ["Part", "Place", "Reader", "RecordErrors", "Records", "open_reader"]


def open_reader(
    source: str | Path,
    format: str | None = None,
    *,
    field: str | None = None,
    id_field: str | None = None,
    tokenizer: str = "whitespace",
    errors: RecordErrors = "strict",
) -> Reader:
    """Open an input; its format is that of its suffix, or the given one.

    Args:
        source: a path.
        format: "lines".
        field, id_field: of formats with fields, which is embedded, and which tells a record's own id.
        tokenizer: of formats of raw text: "whitespace".
        errors: what a record that cannot be read gets: "strict", an error; "skip", a line in `Records.skipped`; with
            "replace" bytes that are not UTF-8 become U+FFFD.

    Raises:
        FlashElmoError: an argument that is none of these.
    """
    if errors not in ("strict", "replace", "skip"):
        raise FlashElmoError(f"errors: expected strict, replace or skip, found {errors!r}")
    if format not in (None, "lines"):
        raise FlashElmoError(f"format: expected lines, found {format!r}")
    path = path_of("input", source)
    return TextReader(str(source), lambda: open(path, "rb"), PlainLines(errors=errors))
