"""An input's reader, chosen by its format."""

from __future__ import annotations

from pathlib import Path

from flashelmo.engine.arguments import check, is_decimal
from flashelmo.engine.bulk.delimited import Delimited
from flashelmo.engine.bulk.fasta import Fasta
from flashelmo.engine.bulk.inputs import Input
from flashelmo.engine.bulk.json_lines import JsonLines
from flashelmo.engine.bulk.parquet import ParquetReader
from flashelmo.engine.bulk.parts import Reader, RecordErrors
from flashelmo.engine.bulk.plain import PlainLines
from flashelmo.engine.bulk.text_format import TextFormat
from flashelmo.engine.bulk.text_reader import TextReader
from flashelmo.engine.bulk.token_lines import ConllU, Tags
from flashelmo.engine.bulk.tokenizers import Tokenizer, tokenizer_of
from flashelmo.engine.errors import FlashElmoError

FORMATS = ("lines", "jsonl", "csv", "tsv", "tsv-quoted", "parquet", "conllu", "tags", "fasta")
SUFFIXES = {  # those that mean another format than lines
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".conllu": "conllu",
    ".fasta": "fasta",
    ".fas": "fasta",
    ".fa": "fasta",
    ".faa": "fasta",
}
OF_ANY_TEXT = ("lines", "csv", "tsv", "tsv-quoted")  # which any text can be read as
WITH_FIELDS = ("jsonl", "csv", "tsv", "tsv-quoted", "parquet")
WITH_TOKENS = ("conllu", "tags", "fasta")
DEFAULT_FIELD = "text"


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
        source: a path, "-" for standard input, or an address that fsspec opens; decompressed if it ends in .gz or .zst.
        format: "lines", one sentence each, also for all suffixes that mean nothing else; "jsonl", one object per line;
            "csv"; "tsv", in which quotes are ordinary characters; "tsv-quoted", in which they enclose tabs and line
            ends; "parquet"; "conllu"; "tags", a token and its tag per line; "fasta". Text that is clearly of another
            format is refused, unless lines or a table are requested by name.
        field: for formats with fields, the one to embed, by default "text". JSON's and Parquet's may be lists of
            tokens, and Parquet's may be binary, if that is UTF-8. A number, from 1, is a column of a CSV or TSV without
            a header.
        id_field: the field of a record's own id. CoNLL-U and FASTA have ids of their own; with FASTA a number selects a
            part of the header as SeqVec's --id does.
        tokenizer: of raw text, as for `tokenizer_of`.
        errors: what happens to a record that cannot be read: "strict", an error; "skip", a line in `Records.skipped`;
            with "replace", bytes that are not UTF-8 become U+FFFD, and other faults are errors.

    Raises:
        FlashElmoError: an argument is none of these.
        MissingExtraError: a package that the tokenizer needs is missing.
    """
    check(errors in ("strict", "replace", "skip"), "errors", "strict, replace or skip", errors)
    given = Input(source)
    kind = _format_of(given, format)
    _check_fields(kind, field, id_field)
    if kind in WITH_TOKENS:
        check(tokenizer == "whitespace", "tokenizer", f"none with format {kind}, which has tokens", tokenizer)
    split = tokenizer_of(tokenizer)
    field = field or DEFAULT_FIELD
    options = {"format": kind, "field": field, "id_field": id_field, "tokenizer": tokenizer, "errors": errors}
    if kind == "parquet":
        return ParquetReader(given, options, field, id_field, split, errors)
    text_format = _text_format(kind, field, id_field, split, errors)
    return TextReader(given, options, text_format, trusted=format in OF_ANY_TEXT)


def is_plain_text(source: str | Path) -> bool:
    """Whether an input, judged by its name, is uncompressed lines, in a file on this machine or on standard input."""
    given = Input(source)
    return given.is_plain and _format_of(given, None) == "lines"


def _format_of(given: Input, format: str | None) -> str:
    kind = format or SUFFIXES.get(given.suffix, "lines")
    check(kind in FORMATS, "format", f"one of {', '.join(FORMATS)}", format)
    return kind


def _check_fields(kind: str, field: str | None, id_field: str | None) -> None:
    with_ids = (*WITH_FIELDS, "fasta")
    for name, value, kinds in (("field", field, WITH_FIELDS), ("id_field", id_field, with_ids)):
        if value is not None and (kind not in kinds or not value):
            raise FlashElmoError(f"{name}: expected a name with format {', '.join(kinds)}, found {value!r} with {kind}")
    if kind == "fasta" and id_field is not None:
        check(is_decimal(id_field.removeprefix("-")), "id_field", "a number with format fasta", id_field)


def _text_format(kind: str, field: str, id_field: str | None, split: Tokenizer, errors: RecordErrors) -> TextFormat:
    if kind == "lines":
        return PlainLines(split, errors)
    if kind == "jsonl":
        return JsonLines(field, id_field, split, errors)
    if kind == "conllu":
        return ConllU(errors)
    if kind == "tags":
        return Tags(errors)
    if kind == "fasta":
        return Fasta(None if id_field is None else int(id_field), errors)
    return Delimited("," if kind == "csv" else "\t", kind != "tsv", field, id_field, split, errors)
