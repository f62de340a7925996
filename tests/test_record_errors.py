"""What records get that cannot be read, and files that are of another format or fail."""

import errno
import gzip
import io
import os
import re
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_rows import check_any_place, chunks, few, parts, rows, sizes, taken

from flashelmo.engine.bulk import inputs, parquet, text_reader
from flashelmo.engine.bulk.parts import Place, Reader
from flashelmo.engine.bulk.records import open_reader
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.system.threads import Background


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


def test_lines_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa b\nc \xff\n\nd\n\xe9")
    reader = open_reader(path)
    part = taken(reader, 1)
    assert part.end == Place(1, 2, 7) and rows(part.records()) == [(0, None, ["a", "b"], "a b")]
    part = taken(reader, 9)
    with pytest.raises(FlashElmoError, match=r"a.txt: line 2, byte 3: expected UTF-8, found 0xff"):
        part.records()
    part = taken(open_reader(path, errors="skip"), 9)
    records = part.records()
    assert rows(records) == [(0, None, ["a", "b"], "a b"), (2, None, [], ""), (3, None, ["d"], "d")]
    assert [line.partition("a.txt: ")[2] for line in records.skipped] == [
        "line 2, byte 3: expected UTF-8, found 0xff (invalid start byte)",
        "line 5, byte 1: expected UTF-8, found 0xe9 (invalid continuation byte)",
    ]
    part = taken(open_reader(path, errors="replace"), 9)
    assert [row[2] for row in rows(part.records())] == [["a", "b"], ["c", "\ufffd"], [], ["d"], ["\ufffd"]]


BAD = [  # file, its bytes, options, what is said of the record, the tokens of the others
    ("a.jsonl", b'{"text": "a b"}\n\n{text: 1}\n{"text": "c"}\n', {}, "line 3, byte 2: expected JSON, found 'text", 3),
    ("a.jsonl", b'{"text": "a b"}\n["c"]\n', {}, "line 2, byte 1: expected an object with fields, found ['c']", 2),
    ("a.jsonl", b'{"text": 1}\n', {}, "line 1, byte 1: expected text or a list of tokens in field 'text', found 1", 0),
    ("a.jsonl", b'{"text": ["a", null]}', {}, "line 1, byte 1: expected text or a list of tokens in field 'text', ", 0),
    ("a.jsonl", b'{"x": "a"}', {}, "line 1, byte 1: expected a field 'text', found 'x'; field and id_field name", 0),
    ("a.jsonl", b'{"text": "a", "x": {}}', {"id_field": "x"}, "text or a whole number in field 'x', found {}", 0),
    ("a.jsonl", b'{"text": "a \\ud800"}', {}, "expected characters, found half of a surrogate pair, \\ud800", 0),
    ("a.jsonl", b'{"text": "a"}\n {"text": "\xff"}', {}, "line 2, byte 12: expected UTF-8, found 0xff", 1),
    ("a.jsonl", b"[" * 9999 + b"\n", {}, "line 1, byte 1", 0),  # where Python gives up, or the 10,000th
    ("a.jsonl", b'{"text":\n', {}, "line 1, byte 9: expected JSON, found '' (Expecting value)", 0),
    ("a.csv", b'x,text\n1,"a\nb"\n1\n2,c\n', {}, "line 4, byte 1: expected a row of 2 columns, found 1", 3),
    ("a.csv", b"text\na\rb\nc\n", {}, "line 2, byte 1: expected a row of 1 column, found 2 rows", 1),
    ("a.csv", b'x,text\n1,"a" b\n2,c\n', {}, "line 2, byte 1: expected a row of 2 columns, found a quote that", 1),
    ("a.csv", b'x,text\n1,a\n2,"c\n', {}, "line 3, byte 1: expected a row of 2 columns, found a quote that is", 1),
    ("a.csv", b"x,text\n1,a\n2,b\xe9\n3,c", {}, "line 3, byte 4: expected UTF-8, found 0xe9 (invalid", 2),
    ("a.tsv", b'x\ttext\n1\t"a\tb"\n2\tc', {}, "found 3; format tsv-quoted reads columns between quotes", 1),
    ("a.conllu", b"1\ta" + 8 * b"\t_" + b"\n\n1\tb\n", {}, "line 3, byte 1: expected 10 columns between tabs", 1),
    ("a.conllu", b"# a\nx\ta" + 8 * b"\t_", {}, "line 2, byte 1: expected a word's number and form, found 'x' and", 0),
    ("a.conllu", b"# a\n1\t\xff" + 8 * b"\t_", {}, "line 2, byte 3: expected UTF-8, found 0xff", 0),
    ("a.tags", b"a\tA\n\nb\tB\nc\n\nd D\n", {"format": "tags"}, "line 4, byte 1: expected a token and its tag", 2),
    ("a.fa", b">a\nAC\n>b\nAC\nA1C\n", {}, "line 5, byte 2: expected a residue (A to Z or *), found '1'", 2),
    ("a.fa", b">a\nA\xc3\xa9C\n", {}, "line 2, byte 2: expected a residue (A to Z or *), found '\u00e9'", 0),
    ("a.fa", b"\nAC\n>b\nA\n", {}, "line 2, byte 1: expected a header that begins with >, found 'AC'", 1),
    ("a.fa", b">a|b\nA\n>b\nA\n", {"id_field": "1"}, "line 3, byte 1: expected a header with a field 1 between |", 1),
    ("a.fa", b"\n>\xff\nA\n", {}, "line 2, byte 2: expected UTF-8, found 0xff", 0),
    ("a.fa", b"\n>a\rAC\n>b\nA", {}, "line 2, byte 3: expected a header's line that ends with \\n, found one", 1),
]


@pytest.mark.parametrize(("name", "data", "options", "said", "n_tokens"), BAD, ids=[f"{b[0]}-{b[3][:40]}" for b in BAD])
def test_records_that_cannot_be_read(
    name: str, data: bytes, options: dict[str, Any], said: str, n_tokens: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(FlashElmoError) as raised:
        taken(open_reader(path, **options)).records()
    assert str(raised.value).startswith(f"{path}: line ") and said in str(raised.value)
    records = taken(open_reader(path, errors="skip", **options)).records()
    rows(records)
    assert records.skipped == [str(raised.value)] and len(records.tokens) == n_tokens
    if "UTF-8" in said:
        assert rows(taken(open_reader(path, errors="replace", **options)).records())


ANYTHING = {  # format: what stands before the records, and what is put together at random
    "lines": (b"", [b"a", b" ", b"\n", b"\r", b"\xff", b"\xc3", b"\xa9"]),
    "jsonl": (b"", [b'{"text": "a b"}', b'{"text": ["a"]}', b"{", b'"', b"\n", b"\r\n", b" ", b"\xff"]),
    "csv": (b"text,b\n", [b"a", b",", b'"', b'""', b"\n", b"\r\n", b"\r", b"\xff", b'"a\n",']),
    "tsv-quoted": (b"text\tb\n", [b"a", b"\t", b'"', b'""', b"\n", b"\n\n", b"\xff"]),
    "tsv": (b"text\tb\r\n", [b"a", b"\t", b'"', b"\n", b"\r", b"\n\n", b"\xff"]),
    "conllu": (b"", [b"1\ta" + 8 * b"\t_" + b"\n", b"# sent_id = a\n", b"#", b"1\t", b"\n", b"\n\n", b" ", b"\x1c"]),
    "tags": (b"", [b"a\tA\n", b"a b\n", b"a", b"\t", b" ", b"\n", b"\r\n", b"\xff"]),
    "fasta": (b"", [b">", b">a\n", b"A", b"1", b" ", b"\n", b"\r\n", b"\n>", b"\xff"]),
}


@pytest.mark.parametrize("format", ANYTHING)
@few
@given(st.data(), sizes, chunks)
def test_what_is_skipped_does_not_depend_on_where_one_begins(
    folder: Path, format: str, data: st.DataObject, sizes: list[int], chunk: int
) -> None:
    before, pieces = ANYTHING[format]
    path = folder / "anything"
    path.write_bytes(before + b"".join(data.draw(st.lists(st.sampled_from(pieces), max_size=20))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_reader, "kind_of", lambda head: None)
        check_any_place(lambda: open_reader(path, format, errors="skip"), sizes, chunk)


def test_a_record_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_reader, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(text_reader, "CHUNK_BYTES", 100)
    monkeypatch.setattr(text_reader, "HEAD_BYTES", 100)
    path = tmp_path / "a.csv"
    path.write_text('text\n"a\nb"\nc' + 999 * "d " + "\n")
    for size in (1, 9):
        with pytest.raises(
            FlashElmoError, match=r"a.csv: line 4, byte 1: expected records of at most 1000 bytes, found"
        ):
            list(parts(open_reader(path), [size]))


@pytest.mark.parametrize("longest", [1 << 28, 1000])
@pytest.mark.parametrize("strays", [[0], [5], [5, 150], [199]])
@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv"])
def test_a_stray_quote_takes_no_other_record(
    suffix: str, strays: list[int], longest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where no quote follows in the whole text, nor where none does in what a record may hold."""
    monkeypatch.setattr(text_reader, "MAX_RECORD_BYTES", longest)
    monkeypatch.setattr(text_reader, "HEAD_BYTES", 100)
    between, format = ("\t", "tsv-quoted") if suffix == "tsv" else (",", None)
    texts = [
        f'\n{number}{between}"a stray quote' if number in strays else f"{number}{between}here" for number in range(200)
    ]
    text = "\n".join([between.join(("id", "text")), *texts, f'200{between}""', f'201{between}"the last\none"'])
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix == "csv.gz" else text.encode())

    def opened() -> Reader:
        return open_reader(path, format, id_field="id", errors="skip")

    for chunk in (30, 500):
        found = check_any_place(opened, [1, 120, 3], chunk)
        assert [number for number, *_ in found] == [number for number in range(202) if number not in strays]
        assert all(own_id == str(number) for number, own_id, *_ in found)
    places = [f"{path}: line {3 + number + i}, byte 1: " for i, number in enumerate(strays)]
    said = taken(opened()).records().skipped
    assert [line[: len(place)] for line, place in zip(said, places, strict=True)] == places


def test_a_stray_quote_in_a_header_takes_no_record(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,"text\n0,a b\n1,c\n')
    with pytest.raises(FlashElmoError, match=r"a.csv: expected a column 'text', found 'id', 'text\\n'; field and"):
        taken(open_reader(tmp_path / "a.csv"))
    found = check_any_place(lambda: open_reader(tmp_path / "a.csv", field="2", errors="skip"), [1, 2], 30)
    assert [tokens for _, _, tokens, _ in found] == [["a", "b"], ["c"]]


@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "parquet"])
def test_what_failed_is_read_again(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CHUNK_BYTES", 8), ("HEAD_BYTES", 8)):
        monkeypatch.setattr(text_reader, name, value)
    monkeypatch.setattr(parquet, "BATCH_ROWS", 3)
    path, lines = tmp_path / f"a.{suffix}", [f"a {i}" for i in range(9)]
    data = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(data) if suffix == "txt.gz" else data)
    if suffix == "parquet":
        pa.parquet.write_table(pa.table({"text": lines}), path, row_group_size=2)

    class Flaky(io.BytesIO):
        """Its reads fail once, as a network's do."""

        def read(self, n_bytes: int | None = -1) -> bytes:
            if next(failing, False):
                raise TimeoutError(errno.ETIMEDOUT, "no answer")
            return super().read(n_bytes)

    monkeypatch.setattr(inputs, "_opener", lambda source: partial(Flaky, path.read_bytes()))
    n_failures = 0
    for n_before in range(12):
        failing, reader, found = iter([False] * n_before + [True]), open_reader(path), []
        while True:
            try:
                part = reader.take(3)
            except TimeoutError:
                n_failures += 1
                continue
            if part is None:
                break
            found += [row[2] for row in rows(part.records())]
        assert found == [line.split() for line in lines]
    assert n_failures > 1


def test_rows_of_parquet_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    wrong = pa.array([b"a b", b"\xff", None, b"c"], pa.binary())
    texts = pa.StringArray.from_buffers(4, *wrong.buffers()[1:], wrong.buffers()[0], 1)
    pa.parquet.write_table(pa.table({"text": texts, "list": [["a", "b"], None, [None], ["c"]]}), path)
    said = {
        "text": [
            "row 2, column 'text': expected UTF-8, found 0xff (invalid start byte) at byte 1",
            "row 3, column 'text': expected text, found nothing",
        ],
        "list": [f"row {row}, column 'list': expected text, found nothing" for row in (2, 3)],
    }
    for field, lines in said.items():
        with pytest.raises(FlashElmoError, match=re.escape(f"a.parquet: {lines[0]}")):
            taken(open_reader(path, field=field)).records()
        reader = open_reader(path, field=field, errors="skip")
        assert rows(taken(reader, 1).records())[0][2] == ["a", "b"]
        records = taken(reader).records()
        assert [(number, tokens) for number, _, tokens, _ in rows(records)] == [(3, ["c"])]
        assert records.skipped == [f"{path}: {line}" for line in lines]
    replaced = open_reader(path, errors="replace")
    assert rows(taken(replaced, 2).records())[1][2] == ["\ufffd"]
    binary = pa.table(
        {"text": ["a", "b"], "id": pa.array([b"\xff", b"c"]), "list": pa.array([[b"a"], [b"b", b"c\xfe"]])}
    )
    pa.parquet.write_table(binary, path)
    told = "row 1, column 'id': expected UTF-8, found 0xff (invalid start byte) at byte 1"
    with pytest.raises(FlashElmoError, match=re.escape(f"a.parquet: {told}") + "$"):
        taken(open_reader(path, id_field="id")).records()
    assert taken(open_reader(path, id_field="id", errors="skip")).records().ids == ["c"]
    with pytest.raises(FlashElmoError, match=r"row 2, column 'list': expected UTF-8, found 0xfe .* at byte 2$"):
        taken(open_reader(path, field="list")).records()
    numbers = pa.table({"text": [["a"]], "x": [1.5]})
    pa.parquet.write_table(numbers, path)
    with pytest.raises(FlashElmoError, match=r"a.parquet: expected a column 'x' of texts or lists of texts, found"):
        open_reader(path, field="x").take(1)
    with pytest.raises(FlashElmoError, match=r"a.parquet: expected a column 'x' of texts or whole numbers, found"):
        open_reader(path, id_field="x").take(1)
    with pytest.raises(FlashElmoError, match=r"a.parquet: expected a column 'y', found 'text', 'x'; field and"):
        open_reader(path, field="y").take(1)
    pa.parquet.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), path)
    with pytest.raises(FlashElmoError, match=r"a.parquet: expected one column 'text', found 2 of that name$"):
        open_reader(path).take(1)
    path.write_bytes(b"text")
    with pytest.raises(FlashElmoError, match=r"a.parquet: expected Parquet, found something else: "):
        open_reader(path).take(1)


HELD = {  # what a file holds: its bytes, and what reads it
    "FASTA": (b">a\nACDE\n", "format fasta reads it"),
    "CoNLL-U": (b"1\ta" + 8 * b"\t_" + b"\n", "format conllu reads it"),
    "JSON lines": (b'{"text": "a"}\n{"text": "b"}\n', "format jsonl reads them"),
    "JSON": (b'[\n  {\n    "text": "a"\n  }\n]\n', r"`jq -c '\.\[\]'` puts each object of a list on a line, .*"),
    "HTML": (b"\xef\xbb\xbf<!DOCTYPE html>\n<p>a b\n", "take the text out of it"),
    "tokens with tags": (9 * b"a\tDT\nb\tNN\n\n", "format tags reads them"),
    "a table": (b"a b\tc\nd\te f\n", "format csv or tsv reads a column of it"),
    r"lines that end with \\r alone": (b"a b\rc\r", r"`tr '\\r' '\\n'` turns them into others"),
    "Parquet": (b"PAR1\x15\0\0\0", "format parquet reads a column of it"),
    "gzip": (gzip.compress(b"a\n"), r"a name that ends in \.gz is decompressed"),
    "Zstandard": (pa.compress(b"a\n", "zstd", asbytes=True), r"a name that ends in \.zst is decompressed"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "it is not read"),
    "PDF": (b"%PDF-1.4\n1 0 obj\n", "it is not read"),
}


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize("format", [None, "jsonl", "fasta"])
def test_files_that_are_plainly_of_another_format(kind: str, format: str | None, tmp_path: Path) -> None:
    data, advice = HELD[kind]
    (tmp_path / "a").write_bytes(data)
    reader = open_reader(tmp_path / "a", format)
    if (kind, format) in (("JSON lines", "jsonl"), ("FASTA", "fasta")):
        assert taken(reader).n_records > 0
        return
    with pytest.raises(FlashElmoError, match=rf"/a: expected .*, found {kind}; {advice}$"):
        reader.take(1)


@pytest.mark.parametrize("kind", ["FASTA", "CoNLL-U", "JSON lines", "HTML", "tokens with tags", "a table"])
def test_lines_and_tables_that_are_asked_for_by_name_are_such(kind: str, tmp_path: Path) -> None:
    data, _ = HELD[kind]
    (tmp_path / "a").write_bytes(data)
    found = taken(open_reader(tmp_path / "a", "lines")).records()
    assert found.texts == data.decode("utf-8-sig").rstrip("\n").split("\n") + [""] * (kind == "tokens with tags")
    if kind == "CoNLL-U":
        assert taken(open_reader(tmp_path / "a", "tsv", field="2")).records().texts == ["a"]
    (tmp_path / "a").write_bytes(HELD["HDF5"][0])
    with pytest.raises(FlashElmoError, match="/a: expected text, found HDF5; it is not read"):
        taken(open_reader(tmp_path / "a", "lines"))


@pytest.mark.parametrize(
    ("name", "data", "options"),
    [
        ("a", b"a\rb\n", {}),
        ("a.jsonl", b'{"id": 1,\r"text": "a b"}\n', {}),
        ("a.csv", b'"a\rb",c\n', {"field": "1"}),
    ],
    ids=["lines", "jsonl", "csv"],
)
def test_a_return_within_the_only_record(name: str, data: bytes, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    texts = taken(open_reader(tmp_path / name, **options)).records().texts
    assert texts is not None and [text.split() for text in texts] == [["a", "b"]]


def test_two_tokens_a_line_between_tabs_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("".join(f"a{i}\tb{i}\n\n" for i in range(20)))
    assert taken(open_reader(tmp_path / "a")).n_records == 40


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "text"}, "format: expected one of lines, jsonl, .* found 'text'"),
        ({"errors": "ignore"}, "errors: expected strict, replace or skip, found 'ignore'"),
        ({"tokenizer": "words"}, "tokenizer: expected whitespace, characters, moses, .* found 'words'"),
        ({"tokenizer": "moses", "format": "conllu"}, "tokenizer: expected none with format conllu, which has tokens"),
        ({"field": "x"}, "field: expected a name with format jsonl, .* found 'x' with lines"),
        ({"id_field": "x"}, "id_field: expected a name with format jsonl, .*fasta, found 'x' with lines"),
        ({"id_field": "x", "format": "fasta"}, "id_field: expected a number with format fasta, found 'x'"),
        ({"id_field": "9" * 20, "format": "fasta"}, "id_field: expected a number with format fasta, found '999"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(FlashElmoError, match=said):
        open_reader("a.txt", **options)


@pytest.mark.parametrize(
    ("header", "options", "said"),
    [
        ("x,y", {}, "expected a column 'text', found 'x', 'y'; field .* no header$"),
        ("id;x", {}, "expected a column 'text', found 'id;x'; .* header; columns are separated by ',' or ';'$"),
        ("id|text", {"format": "tsv"}, r"expected a column 'text', found 'id\|text'; field .* no header$"),
        ("id;text", {"format": "tsv"}, r"expected a column 'text', found 'id;text'; .* are separated by '\\t'$"),
        ("x,y", {"field": "3"}, "expected a column '3', found 'x', 'y'; "),
        ("x,y", {"field": "9" * 5000}, "expected a column '999.*', found 'x', 'y'; "),
        ("text,x,text", {}, "expected one column 'text', found 2 of that name$"),
        (
            "text,x\ra b,1\rc,2\r",
            {"format": "csv"},
            r"expected rows that end with \\n, found a header that ends with \\r alone$",
        ),
        ("text," + "x" * (1 << 17) + "x", {}, "expected a header with the names of columns, found: field larger than"),
        ("text," + "x," * (1 << 19), {}, "expected a header of less than 1 MiB, found a longer one$"),
    ],
    ids=range(10),
)
def test_headers_that_cannot_be_read(header: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n1,2\n", newline="")
    with pytest.raises(FlashElmoError, match=f"a.csv: {said}"):
        open_reader(path, **options).take(1)


def test_a_table_of_many_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "".join(
            ",".join([*(f"{each}{i:05}" for i in range(20_000)), last]) + "\n"
            for each, last in (("c", "text"), ("v", "a b"))
        )
    )
    assert rows(taken(open_reader(path)).records()) == [(0, None, ["a", "b"], "a b")]


def test_a_table_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n")
    with pytest.raises(FlashElmoError, match=r"a.csv: expected a header with the names of columns, found an empty"):
        open_reader(path).take(1)


def test_who_closes_a_pipe_does_not_wait_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = open_reader(tmp_path / "pipe")
    taking = Background(lambda: reader.take(1))
    writer = os.open(tmp_path / "pipe", os.O_WRONLY)
    try:
        while not isinstance(reader, text_reader.TextReader) or reader._file is None:
            time.sleep(0.01)
        time.sleep(0.1)  # now it reads
        closing = threading.Thread(target=reader.close)
        closing.start()
        closing.join(5.0)
        assert not closing.is_alive()
    finally:
        os.write(writer, b"a b\n")
        os.close(writer)
        closing.join()
        with suppress(AssertionError):  # it is closed
            taking.result()
