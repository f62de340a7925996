"""Records of every format: the same from any place on and in parts of any sizes."""

import csv
import gzip
import io
import json
import random
import re
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_rows import Row, check_any_place, chunks, few, parts, rows, sizes, taken

from flashelmo.engine.bulk.inputs import Input
from flashelmo.engine.bulk.parts import Reader
from flashelmo.engine.bulk.records import FORMATS, SUFFIXES, open_reader
from flashelmo.engine.errors import FlashElmoError, MissingExtraError

texts = st.text("ab ,\"'\t\n\ré\u3000", max_size=8)
quoted = texts.map(lambda text: text.replace("\r", "\r\n"))  # Python does not quote a \r by itself
values = st.lists(texts | st.lists(texts, max_size=3), max_size=6)
words = st.text("ab#1é", min_size=1, max_size=3)
blanks = st.sampled_from(["", "\n", "\r\n", " \n\n"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@few
@given(st.text("ab \r\n\u3000é", max_size=40), sizes, chunks)
def test_lines(folder: Path, text: str, sizes: list[int], chunk: int) -> None:
    path = folder / "lines.txt"
    path.write_bytes(text.encode())
    found = check_any_place(lambda: open_reader(path, "lines"), sizes, chunk)
    lines = text.split("\n") if text[-1:] not in ("", "\n") else text.split("\n")[:-1]
    assert found == [(number, None, line.split(), line.strip()) for number, line in enumerate(lines)]


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
    st.sampled_from(",;"),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    sizes,
    chunks,
)
def test_csv(
    folder: Path, texts: list[str], delimiter: str, end: str, mark: bool, sizes: list[int], chunk: int
) -> None:
    path = folder / "a.csv"
    with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
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


def encoded(kind: pa.DataType) -> pa.DataType:
    return pa.dictionary(pa.int32(), kind)


PLAIN_TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]
TEXTS = [*PLAIN_TEXTS, encoded(pa.string()), encoded(pa.large_string()), encoded(pa.binary())]
LISTS = [
    *map(pa.list_, [*PLAIN_TEXTS, encoded(pa.string())]),
    pa.large_list(pa.large_string()),
    pa.list_(pa.string(), 2),
    pa.list_(pa.string_view(), 2),
]


@pytest.mark.parametrize("kind", [*TEXTS, *LISTS], ids=str)
@settings(max_examples=8)
@given(st.lists(texts, max_size=8), st.integers(1, 3), sizes, chunks)
def test_parquet(folder: Path, kind: pa.DataType, texts: list[str], group: int, sizes: list[int], chunk: int) -> None:
    """Texts, and lists of them, of every type of Arrow's that may hold them; ids too."""
    path, ids = folder / "a.parquet", list(range(len(texts)))
    if kind in TEXTS:
        table = pa.table({"x": pa.array(map(str, ids), kind), "text": pa.array(texts, kind)})
        expected: list[Row] = [(i, str(i), text.split(), text.strip()) for i, text in enumerate(texts)]
    else:
        table = pa.table({"x": pa.array(ids, pa.int64()), "text": pa.array([[text, "b"] for text in texts], kind)})
        expected = [(i, str(i), [text, "b"], None) for i, text in enumerate(texts)]
    pa.parquet.write_table(table, path, row_group_size=group)
    assert check_any_place(lambda: open_reader(path, id_field="x"), sizes, chunk) == expected


@pytest.mark.parametrize("kind", [pa.int32(), pa.dictionary(pa.int8(), pa.int64())], ids=str)
def test_ids_of_parquet_may_be_whole_numbers(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": ["a", "b c", "d"], "n": pa.array([5, -6, 5], kind)})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    assert taken(open_reader(tmp_path / "a.parquet", id_field="n")).records().ids == ["5", "-6", "5"]


# ------------------------------------------------------------------------------------------------ where bytes come from


def test_the_page_has_the_formats_and_their_suffixes(root: Path) -> None:
    page = (root / "docs" / "bulk.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:3] for row in page.split("| format | suffixes")[1].split("\n\n")[0].split("\n")[2:]]
    assert tuple(name.strip(" `") for name, _ in rows) == FORMATS
    said = {suffix: name.strip(" `") for name, suffixes in rows for suffix in re.findall(r"`(.+?)`", suffixes)}
    assert said == SUFFIXES
    assert all(Input(f"a.b{suffix.upper()}.gz").suffix == suffix for suffix in said)


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


@pytest.mark.parametrize("name", ["a.txt", "a.parquet"])
@pytest.mark.parametrize("where", ["file", "address"])
def test_places_add_up_to_the_size_of_the_input(name: str, where: str, tmp_path: Path) -> None:
    """So that a bar ends where the input does."""
    fsspec = pytest.importorskip("fsspec")
    path = tmp_path / name
    pa.parquet.write_table(pa.table({"text": ["a b", "c", "", "d"]}), path)
    if name == "a.txt":
        path.write_text("a b\nc\n\nd\n")
    fsspec.filesystem("memory").pipe(f"/sizes/{name}", path.read_bytes())
    reader = open_reader(path if where == "file" else f"memory://sizes/{name}")
    ends = [part.end.byte for part in iter(partial(reader.take, 1), None)]
    assert reader.n_bytes == path.stat().st_size == ends[-1] and sorted({0, *ends}) == [0, *ends]
    assert open_reader("memory://sizes/absent").n_bytes is None


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("where", ["file", "address"])
def test_how_large_a_compressed_text_is_shows_as_it_is_read(suffix: str, where: str, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    rng, path = random.Random(0), tmp_path / f"a.txt.{suffix}"
    text = "".join(f"{rng.randrange(10**9)} {rng.randrange(10**9)}\n" for _ in range(200_000)).encode()
    with pa.CompressedOutputStream(str(path), "gzip" if suffix == "gz" else "zstd") as file:
        file.write(text)
    fsspec.filesystem("memory").pipe(f"/sizes/{path.name}", path.read_bytes())
    reader = open_reader(path if where == "file" else f"memory://sizes/{path.name}")
    assert reader.n_bytes is None
    judged: list[int | None] = []
    while (part := reader.take(20_000)) is not None:
        judged.append(reader.n_bytes)
        assert part.end.byte <= (reader.n_bytes or 0) <= len(text)
    assert judged == pytest.approx([len(text)] * 10, rel=0.2) and judged[-1] == len(text)
    assert open_reader("memory://sizes/absent.gz").n_bytes is None


@pytest.mark.parametrize("name", ["a.parquet.gz", "-"])
def test_parquet_is_read_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(FlashElmoError, match=f"{name}: expected a Parquet file, not compressed as a whole"):
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


# -------------------------------------------------------------------------------------------------------------- windows


@few
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
