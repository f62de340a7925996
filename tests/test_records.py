"""Records of every format: the same from any place on and in parts of any sizes, and what bad input gets."""

import csv
import errno
import gzip
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashelmo.engine.bulk import inputs, parquet, text_reader
from flashelmo.engine.bulk.records import Part, Place, Reader, Records, open_reader
from flashelmo.engine.errors import FlashElmoError, MissingExtraError

Row = tuple[int, str | None, list[str], str | None]  # number, id, tokens, text


def rows(records: Records) -> list[Row]:
    """Of decoded records."""
    tokens, offsets = records.tokens.to_pylist(), records.offsets
    assert records.offsets.dtype == records.numbers.dtype == "int64"
    assert len(offsets) == len(records) + 1 and offsets[0] == 0 and offsets[-1] == len(tokens)
    nothing: list[None] = [None] * len(records)
    ids, texts = records.ids or nothing, records.texts or nothing
    assert len(ids) == len(texts) == len(records)
    return [
        (int(number), ids[b], tokens[offsets[b] : offsets[b + 1]], texts[b]) for b, number in enumerate(records.numbers)
    ]


def parts(reader: Reader, sizes: list[int]) -> Iterator[Part]:
    """All that follow, of these sizes in turn."""
    while (part := reader.take(sizes[0])) is not None:
        yield part
        sizes = [*sizes[1:], sizes[0]]


def taken(reader: Reader, n: int = 1 << 20) -> Part:
    """Of an input that has records."""
    part = reader.take(n)
    assert part is not None
    return part


def check_any_place(opened: Callable[[], Reader], sizes: list[int], chunk: int) -> list[Row]:
    """The rows, which are the same however they are taken and from wherever one begins."""
    whole = opened().take(1 << 20)
    if whole is None:
        assert opened().take(sizes[0]) is None
        return []
    records = whole.records()
    expected = rows(records)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_reader, "CHUNK_BYTES", chunk)
        patch.setattr(text_reader, "HEAD_BYTES", max(chunk, 24))  # a header of columns stands in the head
        patch.setattr(parquet, "BATCH_ROWS", chunk)
        reader = opened()
        found = list(parts(reader, sizes))
        assert reader.take(1) is None
        decoded = [part.records() for part in found]
        assert [row for each in decoded for row in rows(each)] == expected
        assert [line for each in decoded for line in each.skipped] == records.skipped
        assert whole.begin == found[0].begin == Place() and whole.end == found[-1].end
        for part, following in pairwise(found):
            assert part.end == following.begin
        for part in reversed(found):  # back, by the same reader, and by a fresh one
            for other in (reader, opened()):
                other.seek(part.begin)
                again = other.take(part.n_records)
                assert again is not None and again.sha256 == part.sha256
                assert (again.begin, again.end) == (part.begin, part.end)
                assert rows(again.records()) == rows(part.records())
        fresh = opened()
        fresh.seek(whole.end)
        assert fresh.take(1) is None
    return expected


sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3)
chunks = st.integers(1, 40)


@given(st.text("ab \r\n\u3000é", max_size=40), sizes, chunks)
def test_lines(tmp_path_factory: pytest.TempPathFactory, text: str, sizes: list[int], chunk: int) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(text.encode())
    found = check_any_place(lambda: open_reader(path), sizes, chunk)
    lines = text.split("\n") if text[-1:] not in ("", "\n") else text.split("\n")[:-1]
    assert found == [(number, None, line.split(), line.strip()) for number, line in enumerate(lines)]


# ------------------------------------------------------------------------------------------ the formats, from any place


texts = st.text("ab ,\"'\t\n\ré\u3000", max_size=8)
quoted = texts.map(lambda text: text.replace("\r", "\r\n"))  # Python does not quote a \r by itself
values = st.lists(texts | st.lists(texts, max_size=3), max_size=6)
words = st.text("ab#1é", min_size=1, max_size=3)
blanks = st.sampled_from(["", "\n", "\r\n", " \n\n"])
few = settings(max_examples=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@few
@given(values, blanks, st.booleans(), sizes, chunks)
def test_json_lines(
    folder: Path, values: list[str | list[str]], blank: str, ascii_only: bool, sizes: list[int], chunk: int
) -> None:
    path = folder / "a.jsonl"
    objects: list[dict[str, Any]] = [{"n": 10 * i, "a": value, "b": [{}]} for i, value in enumerate(values)]
    lines = [blank + json.dumps(each, ensure_ascii=ascii_only) for each in objects]
    path.write_bytes("\n".join([*lines, blank]).encode())
    expected = [
        (i, str(10 * i), value.split(), value.strip())
        if isinstance(value, str)
        else (i, str(10 * i), value, " ".join(value))
        for i, value in enumerate(values)
    ]
    assert check_any_place(lambda: open_reader(path, field="a", id_field="n"), sizes, chunk) == expected


@few
@given(
    st.lists(texts.map(lambda text: text.replace("\r", "\r\n")), max_size=6),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    sizes,
    chunks,
)
def test_csv(folder: Path, texts: list[str], end: str, mark: bool, sizes: list[int], chunk: int) -> None:
    path = folder / "a.csv"
    with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=end)
        writer.writerow(['the "id"', "x", "text"])
        for i, text in enumerate(texts):
            writer.writerow([f"{i},é", text[::-1], text])
            file.write(end)  # an empty line
    expected = [(i, f"{i},é", text.split(), text.strip()) for i, text in enumerate(texts)]
    assert check_any_place(lambda: open_reader(path, id_field='the "id"'), sizes, chunk) == expected


@few
@given(st.lists(st.text('ab "é', max_size=6), max_size=6), st.booleans(), sizes, chunks)
def test_tsv(folder: Path, texts: list[str], named: bool, sizes: list[int], chunk: int) -> None:
    path = folder / "a.tsv"
    path.write_text("x\ttext\ti\n" * named + "".join(f"x\t{text}\t{i}\n" for i, text in enumerate(texts)), "utf-8")
    fields: Any = {"field": "text", "id_field": "i"} if named else {"field": "2", "id_field": "3"}
    expected = [(i, str(i), text.split(), text.strip()) for i, text in enumerate(texts)]
    if named or texts:
        assert check_any_place(lambda: open_reader(path, **fields), sizes, chunk) == expected


@few
@given(st.lists(st.lists(words, min_size=1, max_size=3), max_size=5), blanks, st.booleans(), sizes, chunks)
def test_conllu(
    folder: Path, sentences: list[list[str]], blank: str, commented: bool, sizes: list[int], chunk: int
) -> None:
    path, rest = folder / "a.conllu", 8 * "\t_"
    expected: list[Row] = []
    text = blank
    for i, sentence in enumerate(sentences):
        text += f"# sent_id = s{i}\n# text =  {sentence[0]}é\n" if commented else ""
        text += f"1-2\tab{rest}\n" + "".join(f"{j}\t{word}{rest}\r\n" for j, word in enumerate(sentence, 1))
        text += f"9.1\tellipsis{rest}\n\n" + blank
        own = (f"s{i}", sentence, f"{sentence[0]}é") if commented else (str(i), sentence, " ".join(sentence))
        expected.append((i, *own))
    path.write_text(text.rstrip(), encoding="utf-8", newline="")
    assert check_any_place(lambda: open_reader(path), sizes, chunk) == expected


@few
@given(st.lists(st.lists(words, min_size=1, max_size=3), max_size=5), blanks, st.sampled_from("\t "), sizes, chunks)
def test_tokens_with_tags(
    folder: Path, sentences: list[list[str]], blank: str, tab: str, sizes: list[int], chunk: int
) -> None:
    path = folder / "a.txt"
    path.write_text(blank + "\n".join("".join(f"{w}{tab}T\n" for w in s) + blank for s in sentences), "utf-8")
    found = check_any_place(lambda: open_reader(path, "tags"), sizes, chunk)
    assert found == [(i, None, sentence, None) for i, sentence in enumerate(sentences)]


@few
@given(st.lists(st.text("acUZobX* \n", max_size=8), max_size=5), blanks, sizes, chunks)
def test_fasta(folder: Path, proteins: list[str], blank: str, sizes: list[int], chunk: int) -> None:
    path = folder / "a.fasta"
    path.write_text(blank + "".join(f">P{i}|é{i} a > protein\n{p}\n" for i, p in enumerate(proteins)), "utf-8")
    residues = [["X" if r in "UZOB" else r for r in "".join(protein.split()).upper()] for protein in proteins]
    for id_field, own_id in ((None, "P{0}|é{0}"), ("1", "é{0} a > protein"), ("-1", "P{0}|é{0} a > protein")):
        found = check_any_place(partial(open_reader, path, id_field=id_field), sizes, chunk)
        assert found == [(i, own_id.format(i), tokens, None) for i, tokens in enumerate(residues)]


def arrow_columns(texts: list[str]) -> list[pa.Array]:
    lists = [[text, "b"] for text in texts]
    return [
        pa.array(texts, pa.string()),
        pa.array(texts, pa.large_string()),
        pa.array(texts, pa.string()).dictionary_encode(),
        pa.array(lists, pa.list_(pa.string())),
        pa.array(lists, pa.list_(pa.string(), 2)),
    ]


@few
@given(st.lists(texts, max_size=8), st.integers(0, 4), st.integers(1, 3), sizes, chunks)
def test_parquet(folder: Path, texts: list[str], kind: int, group: int, sizes: list[int], chunk: int) -> None:
    path, numbers = folder / "a.parquet", pa.array(range(len(texts)), pa.int64())
    table = pa.table({"x": numbers, "text": arrow_columns(texts)[kind]})
    pa.parquet.write_table(table, path, row_group_size=group)
    found = check_any_place(lambda: open_reader(path, id_field="x"), sizes, chunk)
    if kind < 3:
        assert found == [(i, str(i), text.split(), text.strip()) for i, text in enumerate(texts)]
    else:
        assert found == [(i, str(i), [text, "b"], None) for i, text in enumerate(texts)]


# ------------------------------------------------------------------------------------------------ where bytes come from


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    lines = [json.dumps({"text": f"a {i}"}).encode() + b"\n" for i in range(9)]
    compress = gzip.compress if suffix == ".gz" else lambda data: pa.compress(data, "zstd", asbytes=True)
    path.write_bytes(compress(b"".join(lines[:5])) + compress(b"".join(lines[5:])))  # as of files that were joined
    found = check_any_place(lambda: open_reader(path), [2, 3], 20)
    assert [tokens for _, _, tokens, _ in found] == [["a", str(i)] for i in range(9)]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(FlashElmoError, match=rf"a.jsonl{suffix}: expected a file compressed as its name says, found: "):
        open_reader(path).take(9)
    path.write_bytes(b"a b\n")
    with pytest.raises(FlashElmoError, match=rf"a.jsonl{suffix}: expected a file compressed as its name says, found: "):
        open_reader(path).take(9)


def test_addresses(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.pipe("/corpus/a.txt", b"a b\nc\n\nd")
    files.pipe("/corpus/a.txt.gz", gzip.compress(b"a b\nc\n\nd"))
    table = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"text": ["a b", "c", "", "d"]}), table)
    files.pipe("/corpus/a.parquet", table.getvalue().to_pybytes())
    for name in ("a.txt", "a.txt.gz", "a.parquet"):
        found = check_any_place(partial(open_reader, f"memory://corpus/{name}"), [1, 2], 3)
        assert [tokens for _, _, tokens, _ in found] == [["a", "b"], ["c"], [], ["d"]]
    with pytest.raises(FlashElmoError, match=r"nothing://a: expected an address that fsspec opens, found: .*nothing"):
        open_reader("nothing://a").take(1)
    with pytest.raises(FileNotFoundError):
        open_reader("memory://corpus/absent").take(1)
    with pytest.raises(FileNotFoundError):
        open_reader(tmp_path / "absent").take(1)


@pytest.mark.parametrize("name", ["a.parquet.gz", "-"])
def test_parquet_is_read_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(FlashElmoError, match=f"{name}: expected Parquet in a file that is not compressed as a whole"):
        open_reader(name, "parquet").take(1)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def stdin() -> Reader:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\nb c\nd\n")))
        return open_reader("-")

    reader = stdin()
    first, second = taken(reader, 1), taken(reader, 1)
    fresh = stdin()
    fresh.seek(second.begin)
    assert rows(taken(fresh, 1).records()) == rows(second.records()) == [(1, None, ["b", "c"], "b c")]
    with pytest.raises(FlashElmoError, match="-: expected an input that can be read again, found standard input"):
        reader.seek(first.begin)


# ----------------------------------------------------------------------------------------------------------- tokenizers


def tokens(text: str, tokenizer: str, folder: Path) -> list[list[str]]:
    (folder / "a.txt").write_text(text, encoding="utf-8")
    return [row[2] for row in rows(taken(open_reader(folder / "a.txt", tokenizer=tokenizer)).records())]


@few
@given(st.text("aé\u3000 中\U0001f600\n", min_size=1, max_size=12))
def test_characters(folder: Path, text: str) -> None:
    lines = text.removesuffix("\n").split("\n")
    assert tokens(text, "characters", folder) == [[c for c in line if not c.isspace()] for line in lines]


def test_moses(tmp_path: Path) -> None:
    pytest.importorskip("sacremoses")
    found = tokens('"Don\'t", he said: 3.5% & [more].\n\nMr. B.\n', "moses", tmp_path)
    assert found[0] == ['"', "Don", "'t", '"', ",", "he", "said", ":", "3.5", "%", "&", "[", "more", "]", "."]
    assert found[1:] == [[], ["Mr.", "B."]]


def test_spacy(tmp_path: Path) -> None:
    pytest.importorskip("spacy")
    assert tokens("I don't.  Why?\n\n", "spacy:blank:en", tmp_path) == [["I", "do", "n't", ".", "Why", "?"], []]
    with pytest.raises(FlashElmoError, match="tokenizer: expected an installed model of spaCy, found nothing: "):
        tokens("a", "spacy:nothing", tmp_path)


@pytest.mark.parametrize(
    ("package", "tokenizer", "extra"), [("sacremoses", "moses", "bulk"), ("spacy", "spacy:en", "spacy")]
)
def test_a_missing_tokenizer_names_its_extra(
    package: str, tokenizer: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"the tokenizer {tokenizer} needs .*'flashelmo\[{extra}\]'"):
        open_reader("a.txt", tokenizer=tokenizer)


# ------------------------------------------------------------------------------------------------------------ bad input


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
    ("a.jsonl", b"[" * 9999 + b"\n", {}, "line 1, byte 1: expected JSON, found ", 0),
    ("a.csv", b'x,text\n1,"a\nb"\n1\n2,c\n', {}, "line 4, byte 1: expected a row of 2 columns, found 1", 3),
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
    path.write_text('text\n"a\nb"\n"c' + 999 * "d\n" + '"\n')
    for size in (1, 9):
        with pytest.raises(
            FlashElmoError, match=r"a.csv: line 4, byte 1: expected records of at most 1000 bytes, found"
        ):
            list(parts(open_reader(path), [size]))


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
            "row 2: expected UTF-8, found 0xff (invalid start byte) at byte 1",
            "row 3: expected text, found nothing",
        ],
        "list": ["row 2: expected text, found nothing", "row 3: expected text, found nothing"],
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
    numbers = pa.table({"text": [["a"]], "x": [1.5]})
    pa.parquet.write_table(numbers, path)
    with pytest.raises(FlashElmoError, match=r"a.parquet: expected a column 'x' of texts or lists of texts, found"):
        open_reader(path, field="x").take(1)
    with pytest.raises(FlashElmoError, match=r"a.parquet: expected a column 'x' of texts or whole numbers, found"):
        open_reader(path, id_field="x").take(1)
    with pytest.raises(FlashElmoError, match=r"a.parquet: expected a column 'y', found 'text', 'x'; field and"):
        open_reader(path, field="y").take(1)
    path.write_bytes(b"text")
    with pytest.raises(FlashElmoError, match=r"a.parquet: expected Parquet, found something else: "):
        open_reader(path).take(1)


HELD = {  # what a file holds: its bytes, and what reads it
    "FASTA": (b">a\nACDE\n", "format fasta reads it"),
    "CoNLL-U": (b"1\ta" + 8 * b"\t_" + b"\n", "format conllu reads it"),
    "JSON lines": (b'{"text": "a"}\n{"text": "b"}\n', "format jsonl reads them"),
    "tokens with tags": (9 * b"a\tDT\nb\tNN\n\n", "format tags reads them"),
    "a table": (b"a b\tc\nd\te f\n", "format csv or tsv reads a column of it"),
    "Parquet": (b"PAR1\0\0\0\0", "format parquet reads a column of it"),
    "gzip": (gzip.compress(b"a\n"), r"a name that ends in \.gz is decompressed"),
    "Zstandard": (pa.compress(b"a\n", "zstd", asbytes=True), r"a name that ends in \.zst is decompressed"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "it is not read"),
}


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize("format", ["lines", "jsonl", "fasta"])
def test_files_that_are_plainly_of_another_format(kind: str, format: str, tmp_path: Path) -> None:
    data, advice = HELD[kind]
    (tmp_path / "a").write_bytes(data)
    reader = open_reader(tmp_path / "a", format)
    if (kind, format) in (("JSON lines", "jsonl"), ("FASTA", "fasta")):
        assert taken(reader).n_records > 0
        return
    with pytest.raises(FlashElmoError, match=rf"/a: expected .*, found {kind}; {advice}$"):
        reader.take(1)


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
    ],
    ids=str,
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(FlashElmoError, match=said):
        open_reader("a.txt", **options)


def test_columns_that_a_table_lacks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(FlashElmoError, match=r"a.csv: expected a column 'text', found 'a', 'b'; field .* no header$"):
        open_reader(path).take(1)
    with pytest.raises(FlashElmoError, match=r"a.csv: expected a column '3', found 'a', 'b'; "):
        open_reader(path, field="3").take(1)
    path.write_text("\n")
    with pytest.raises(FlashElmoError, match=r"a.csv: expected a header with the names of columns, found an empty"):
        open_reader(path).take(1)


# -------------------------------------------------------------------------------------------------------------- windows


@given(st.lists(st.integers(0, 5), max_size=9), st.integers(1, 4), st.integers(1, 6))
def test_windows_of_records(folder: Path, lengths: list[int], max_sentences: int, max_tokens: int) -> None:
    path = folder / "windows.txt"
    path.write_text("".join(" ".join("abcde"[:n]) + "\n" for n in lengths))
    reader = open_reader(path)
    if not lengths:
        assert reader.take(1) is None
        return
    windows = list(taken(reader).records().windows(max_sentences, max_tokens))
    assert [window.tokens(b) for window in windows for b in range(len(window))] == [list("abcde"[:n]) for n in lengths]
    for window, following in pairwise(windows):
        assert len(window) == max_sentences or window.offsets[-1] + following.offsets[1] > max_tokens
    assert all(len(window) <= max_sentences for window in windows)
    assert all(len(window) == 1 or window.offsets[-1] <= max_tokens for window in windows)


def test_shared_data(root: Path) -> None:
    tags = root.parent / "shared" / "data" / "tasks" / "pos_masc_dev.txt"
    if not tags.is_file():
        pytest.skip(f"{tags} is absent")
    text = tags.read_text(encoding="utf-8")
    sentences = [
        [line.split("\t")[0] for line in block.split("\n") if line] for block in text.split("\n\n") if block.strip()
    ]
    reader = open_reader(tags, "tags")
    found = [row for part in parts(reader, [1000, 1]) for row in rows(part.records())]
    assert [tokens for _, _, tokens, _ in found] == sentences
