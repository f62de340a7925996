"""Reading text, against Python's own split of every line."""

import bz2
import gzip
import io
import lzma
import math
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text import windows as text_module
from flashelmo.engine.text.sentences import grouped
from flashelmo.engine.text.windows import Draft, Drafts, Window, read_ahead, read_windows

SPACES = [char for char in map(chr, range(sys.maxunicode + 1)) if char.isspace() and char != "\n"]
# what looks like white space and is none: zero-width and combining ones, and halves of wide spaces
NO_SPACES = "\u200b\u2060\ufeff\u180e\u200c\u0080\u00c2\u3001\u2007a\u2030\0"

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(["a", "b", *NO_SPACES])
lines = st.lists(words | st.sampled_from(SPACES) | st.just(" "), max_size=12).map("".join)
# NULs are common in UTF-16 alone, which is refused, and a byte order mark at the beginning is none of the text
texts = st.lists(lines | st.just(""), max_size=12).map(
    lambda parts: "\n".join(parts).replace("\0", "").lstrip("\ufeff")
)


def slow_lines(text: str) -> list[str]:
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def read(data: bytes, max_sentences: int = 1000, max_tokens: int = 1000, **options: Any) -> list[Window]:
    return list(read_windows(io.BytesIO(data), max_sentences=max_sentences, max_tokens=max_tokens, **options))


def sentences(windows: Iterable[Window]) -> list[list[str]]:
    return [window.tokens(b) for window in windows for b in range(len(window))]


@given(texts, st.integers(1, 5), st.integers(1, 9), st.none() | st.integers(1, 20), st.integers(1, 40))
def test_tokens_are_those_of_split(
    text: str, max_sentences: int, max_tokens: int, first: int | None, chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "CHUNK_BYTES", chunk)
        windows = read(text.encode(), max_sentences, max_tokens, first_tokens=first)
    bounds = [min((first or max_tokens) << k, max_tokens) for k in range(len(windows))]
    assert sentences(windows) == [line.split() for line in slow_lines(text)]
    keys = [window.sentence_text(b) for window in windows for b in range(len(window))]
    assert keys == [line.strip() for line in slow_lines(text)]
    assert b"".join(window.text or b"" for window in windows).removesuffix(b"\n") == text.encode().removesuffix(b"\n")
    for window, bound in zip(windows, bounds, strict=True):
        assert len(set(window.words.to_pylist())) == len(window.words)
        assert 0 < len(window) <= max_sentences
        assert len(window.word_ids) <= bound or len(window) == 1
    # windows are as large as they may be
    for (window, following), bound in zip(pairwise(windows), bounds, strict=False):
        n_next = following.offsets[1]
        assert len(window) == max_sentences or len(window.word_ids) + n_next > bound


@given(st.lists(st.lists(words, max_size=6), max_size=6))
def test_sentences_in_memory(batch: list[list[str]]) -> None:
    window = Window.from_sentences(batch)
    assert sentences([window]) == batch and len(window) == len(batch)
    assert [window.sentence_text(b) for b in range(len(batch))] == [" ".join(sentence) for sentence in batch]
    tokens = [token for sentence in batch for token in sentence]
    assert window.words.to_pylist() == list(dict.fromkeys(tokens))
    assert window.word_ids.dtype == "int32" and window.offsets.dtype == "int64"


@given(st.lists(st.lists(words, max_size=6), min_size=2, max_size=9))
def test_halves_are_the_window(batch: list[list[str]]) -> None:
    window = Window.from_sentences(batch)
    halves = window.halves()
    assert sentences(halves) == batch
    n_tokens = [len(half.word_ids) for half in halves]
    longest = max(map(len, batch))
    for half in halves:
        assert len(half) > 0 and half.offsets[0] == 0 and half.offsets[-1] == len(half.word_ids)
        assert half.word_ids.dtype == "int32" and half.offsets.dtype == "int64" and half.text is None
        assert set(half.word_ids.tolist()) == set(range(len(half.words)))  # no word that none of its sentences has
        assert len(set(half.words.to_pylist())) == len(half.words)
    assert abs(n_tokens[0] - n_tokens[1]) <= 2 * longest  # the cut is beside the sentence in the middle


@pytest.mark.parametrize(
    ("lengths", "first"),
    [
        ([1, 1], 1),
        ([0, 0], 1),
        ([5, 5, 5, 5], 2),
        ([9, 1, 1, 1], 1),
        ([1, 1, 1, 9], 3),
        ([0, 0, 9], 1),
        ([9, 0, 0], 1),
        ([2, 2, 9, 2], 2),
        ([4, 5, 0], 1),
    ],
    ids=str,
)
def test_windows_are_halved_by_their_tokens(lengths: list[int], first: int) -> None:
    halves = Window.from_sentences([["a"] * length for length in lengths]).halves()
    assert [len(half) for half in halves] == [first, len(lengths) - first]


def test_halves_of_text_that_was_read_stand_by_themselves() -> None:
    (window,) = read(b"a b\nc  a \n\nd\n")
    first, second = window.halves()
    assert [sentences([half]) for half in (first, second)] == [[["a", "b"]], [["c", "a"], [], ["d"]]]
    assert [first.sentence_text(0), second.sentence_text(2)] == ["a b", "d"]
    assert set(first.words.to_pylist()) == {"a", "b"} and set(second.words.to_pylist()) == {"a", "c", "d"}


def test_every_white_space_character_splits() -> None:
    text = "\n".join(f"a{space}b" for space in SPACES) + "\n" + "\n".join(f"a{char}b" for char in NO_SPACES)
    assert sentences(read(text.encode())) == [line.split() for line in slow_lines(text)]
    assert len(SPACES) == 28


def test_line_ends() -> None:
    assert sentences(read(b"a b\r\nc\n\n \nd")) == [["a", "b"], ["c"], [], [], ["d"]]
    assert sentences(read(b"a\n")) == sentences(read(b"a")) == [["a"]]
    assert sentences(read(b"\n\n")) == [[], []]
    assert read(b"") == []


@given(st.text("a \r\n\u3000é", max_size=40), st.integers(1, 9))
def test_universal_newlines_are_those_of_pythons_text_files(text: str, chunk: int) -> None:
    data = text.encode()
    expected = [line.split() for line in io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "CHUNK_BYTES", chunk)
        windows = read(data, universal_newlines=True)
        if "\n" in text or "\r" not in text.strip():
            assert sentences(read(data)) == [line.split() for line in slow_lines(text)]
        else:
            with pytest.raises(FlashElmoError, match=r"^text: expected a sentence a line, found lines that end with"):
                read(data)
    assert sentences(windows) == expected
    assert sum(len(window.text or b"") for window in windows) - len(data) in (0, 1)  # for progress


@pytest.mark.parametrize("chunk", [1, 2, 4, 1 << 20])
def test_a_byte_order_mark_is_no_part_of_the_text(chunk: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(text_module, "CHUNK_BYTES", chunk)
    windows = read("\ufeffa b\n\ufeffc\n".encode())
    assert sentences(windows) == [["a", "b"], ["\ufeffc"]]  # within the text it is a character like others
    assert windows[0].sentence_text(0) == "a b"
    (tmp_path / "text").write_text("\ufeffa b", encoding="utf-8")
    with (tmp_path / "text").open(encoding="utf-8") as file:
        assert sentences(read_windows(file, max_sentences=9, max_tokens=9)) == [["a", "b"]]


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("text", ["And God said\nLet there be light\n", "И сказал Бог :\nда будет свет .\n"])
def test_utf16_is_refused(text: str, encoding: str, errors: str) -> None:
    with pytest.raises(FlashElmoError, match=r"^text: expected UTF-8, found text that looks like UTF-16"):
        read(text.encode(encoding), errors=errors)


def test_a_rare_nul_is_a_character() -> None:
    assert sentences(read(b"a" * 99 + b"\0b\n")) == [["a" * 99 + "\0b"]]


def test_windows_end_at_their_bounds() -> None:
    data = b"a b\nc\n\nd e f g h\ni\nj k\n"
    windows = read(data, max_sentences=10, max_tokens=3)
    assert [sentences([window]) for window in windows] == [
        [["a", "b"], ["c"], []],
        [["d", "e", "f", "g", "h"]],  # more than three tokens: a window by itself
        [["i"], ["j", "k"]],
    ]
    assert [len(window) for window in read(data, max_sentences=2)] == [2, 2, 2]
    assert [len(window) for window in read(data, max_sentences=4, max_tokens=1 << 62)] == [4, 2]


def test_windows_end_at_a_bound_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "CHUNK_BYTES", 8)
    monkeypatch.setattr(text_module, "MAX_WINDOW_BYTES", 20)
    data = b"".join(b"a%d\n" % i for i in range(40))
    windows = read(data)
    assert sentences(windows) == [[f"a{i}"] for i in range(40)]
    assert max(len(window.text or b"") for window in windows) < 32


def test_bytes_that_are_not_utf8() -> None:
    data = "good\nü ok\nnaïve x".encode() + b"\xff y\nz \xc3\n"
    with pytest.raises(FlashElmoError, match=r"^text: line 3, byte 9: expected UTF-8, found 0xff \(invalid start"):
        read(data)
    assert sentences(read(data, errors="replace"))[2:] == [["naïve", "x\ufffd", "y"], ["z", "\ufffd"]]
    assert sentences(read(data, errors="replace"))[:2] == [["good"], ["ü", "ok"]]
    with pytest.raises(FlashElmoError, match="line 1, byte 1: expected UTF-8, found 0xed"):
        read(b"\xed\xa0\x80")  # a surrogate, encoded
    with pytest.raises(FlashElmoError, match="errors: expected 'strict' or 'replace', found 'ignore'"):
        read(b"a", errors="ignore")


def test_line_numbers_count_across_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(text_module, "CHUNK_BYTES", 5)
    path = tmp_path / "bad.txt"
    path.write_bytes(b"a b\n" * 20 + b"ab\xfe\n")
    with pytest.raises(FlashElmoError, match=r"bad\.txt: line 21, byte 3: "):
        list(read_windows(path, max_sentences=1, max_tokens=1))


def test_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("ä b\nc\n", encoding="utf-8")
    expected = [["ä", "b"], ["c"]]
    assert sentences(read_windows(path, max_sentences=9, max_tokens=9)) == expected
    assert sentences(read_windows(str(path), max_sentences=9, max_tokens=9)) == expected
    with path.open(encoding="utf-8") as file:
        assert sentences(read_windows(file, max_sentences=9, max_tokens=9)) == expected
        assert not file.closed
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert sentences(read_windows("-", max_sentences=9, max_tokens=9)) == expected
    with pytest.raises(FileNotFoundError, match="absent"):
        list(read_windows(tmp_path / "absent", max_sentences=1, max_tokens=1))
    with pytest.raises(FlashElmoError, match="at least one sentence"):
        read(b"a", max_sentences=0)


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"some words that go on and on\n" * 400_000)  # 11 MB
    tracemalloc.start()
    n_tokens = 0
    for window in read_windows(path, max_sentences=1000, max_tokens=10_000):
        n_tokens += len(window.word_ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_tokens == 400_000 * 7
    assert peak < 30 << 20  # of which a chunk's arrays take most


def test_one_line_of_many_tokens() -> None:
    (window,) = read(b"tick tock " * 50_000, max_tokens=1000)
    assert len(window) == 1 and len(window.word_ids) == 100_000
    assert window.words.to_pylist() == ["tick", "tock"]


def test_real_text(text: list[list[str]], root: Path) -> None:
    windows = list(read_windows(root / "examples" / "genesis.txt", max_sentences=7, max_tokens=100))
    assert sentences(windows) == text


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (lzma.compress(b"a b\n"), "expected text, found xz"),
        (bz2.compress(b"a b\n"), "expected text, found bzip2"),
        (gzip.compress(b"a b\n", mtime=0), "expected text, found gzip"),
        (b"PK\3\4", "expected text, found a ZIP archive, as .docx and .odt are"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "expected text, found an Office file, as .doc is"),
        (b"{\\rtf1\\ansi a b}\n", "expected a sentence a line, found RTF"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<a>b</a>\n', "expected a sentence a line, found XML"),
        (b"\n<!Doctype HTML>\n<p>a</p>\n", "expected a sentence a line, found HTML"),
        (b'{"text": "a b"}\n', "expected a sentence a line, found JSON lines"),
        (b'[{"text": "a b"}, {"text": "c"}]', "expected a sentence a line, found JSON;"),
        (b'{\n  "text": "a b",\n', "expected a sentence a line, found JSON;"),
        ("a b\nc d\n".encode("utf-16-le"), "found text that looks like UTF-16; `iconv -f UTF-16"),
    ],
    ids=["xz", "bzip2", "gzip", "ZIP", "Office", "RTF", "XML", "HTML", "JSON lines", "a list", "an object", "UTF-16"],
)
def test_what_is_no_text_is_named(data: bytes, found: str) -> None:
    with pytest.raises(FlashElmoError, match=found):
        read(data)
    assert read(b"a\0b c\nlast\n")[0].tokens(0) == ["a\0b", "c"]
    others = "PAR1 is here\n", "BZh was here\n", "<s> a\n", "{ }\n", '[ { " so " : } ]\n', "1\tthe cat sat\n2\ta dog\n"
    for text in (*others, '[{"a": 1}, {"a": 2}] is a list\nof what ?\n'):
        assert read(text.encode())[0].tokens(0) == text.split("\n")[0].split()


def test_windows_that_are_read_ahead_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a b\n\nc\nd e f\n" * 50)
    limits: dict[str, Any] = {"max_sentences": 7, "max_tokens": 9}
    plain = list(read_windows(path, **limits))
    ahead = list(read_ahead(read_windows(path, **limits)))
    assert len(plain) > 20
    for ours, expected in zip(ahead, plain, strict=True):
        assert [ours.tokens(b) for b in range(len(ours))] == [expected.tokens(b) for b in range(len(expected))]


def test_what_goes_wrong_while_reading_ahead_is_raised_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a\n" * (1 << 19) + b"b\n" * 3 + b"\xff\n")
    windows = read_ahead(read_windows(path, max_sentences=1 << 18, max_tokens=1 << 18))
    assert len(next(windows)) == 1 << 18
    with pytest.raises(FlashElmoError, match="line 524292, byte 1"):
        list(windows)


def test_a_read_that_blocks_holds_nobody_up() -> None:
    """As Ctrl-C while a terminal's next line is waited for."""
    may_go_on = threading.Event()

    def windows() -> Iterator[Window]:
        yield Window.from_sentences([["a"]])
        may_go_on.wait(30)

    ahead = read_ahead(windows())
    assert next(ahead).words.to_pylist() == ["a"]
    begin = time.monotonic()
    ahead.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begin < 5
    may_go_on.set()


def test_reading_ahead_stops_with_the_reader() -> None:
    taken = 0

    def windows() -> Iterator[Window]:
        nonlocal taken
        while taken < 1000:
            taken += 1
            yield Window.from_sentences([["a"]])

    ahead = read_ahead(windows())
    next(ahead)
    ahead.close()  # type: ignore[attr-defined]
    time.sleep(0.3)
    assert taken <= 4


# -------------------------------------------------------------------------------------------------------------- groups


def one_by_one(sentences: list[list[str]], max_sentences: int, max_tokens: int, bound: int) -> list[list[list[str]]]:
    """As `grouped` groups them."""
    groups: list[list[list[str]]] = []
    bound = min(bound, max_tokens)
    n_tokens = 0
    for sentence in sentences:
        if groups and len(groups[-1]) < max_sentences and n_tokens + len(sentence) <= bound:
            groups[-1].append(sentence)
            n_tokens += len(sentence)
        else:
            bound = min(2 * bound, max_tokens) if groups else bound
            groups.append([sentence])
            n_tokens = len(sentence)
    return groups


@given(
    lengths=st.lists(st.integers(0, 9), max_size=200),
    max_sentences=st.integers(1, 80),
    bounds=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    errors=st.tuples(st.integers(0, 250), st.integers(0, 250)),
)
def test_groups_end_before_they_pass_a_bound_and_errors_come_in_their_place(
    lengths: list[int], max_sentences: int, bounds: tuple[int, int], errors: tuple[int, int]
) -> None:
    sentences = [["a"] * n for n in lengths]
    expected = one_by_one(sentences, max_sentences, *bounds)
    texts = [" ".join(sentence) if n % 7 == 3 else sentence for n, sentence in enumerate(sentences)]
    assert list(grouped(iter(texts), max_sentences, *bounds)) == expected

    bad, broken = errors
    read = 0

    def given() -> Iterator[Any]:
        nonlocal read
        for n, sentence in enumerate([*texts, ["end"]]):
            read = n + 1
            if n == broken:
                raise OSError("broken")
            yield 3 if n == bad else sentence

    found, first = [], min(bad, broken)
    if first > len(texts):
        found = list(grouped(given(), max_sentences, *bounds))
        assert found == one_by_one([*sentences, ["end"]], max_sentences, *bounds)
        return
    with pytest.raises(OSError if broken <= bad else FlashElmoError, match=rf"broken|sentence {bad}: expected"):
        for group in grouped(given(), max_sentences, *bounds):
            found.append(group)
            assert read == sum(map(len, found)) + 1
    whole = one_by_one(sentences[:first], max_sentences, *bounds)
    assert found == whole[:-1]


# -------------------------------------------------------------------------------------------------------------- drafts


@given(st.lists(st.lists(words, max_size=5), max_size=6))
def test_many_tokens_are_joined_and_split_again(sentences: list[list[str]]) -> None:
    """As few ones are converted one by one; a token that has the separator in it goes that way too."""
    expected = Draft.of(sentences)
    assert expected.tokens == [token for sentence in sentences for token in sentence]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "FEW_TOKENS", 1)
        draft = Draft.of(sentences)
    flat = [token for sentence in sentences for token in sentence]
    assert isinstance(draft.tokens, bytes) == (bool(flat) and not any("\0" in token for token in flat))
    for sentence in sentences:
        sentence.clear()  # whoever gave them may do what he likes
    windows = [expected.window(), draft.window(), *Drafts([draft])]
    for window in windows:
        assert [token for b in range(len(window)) for token in window.tokens(b)] == flat
        assert window.offsets.tolist() == expected.offsets.tolist() and len(draft) == len(window) == len(sentences)
        assert window.words.equals(windows[0].words)


@pytest.mark.parametrize("few", [1, 1 << 10])
def test_tokens_that_are_no_text_are_told_whatever_their_number(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "FEW_TOKENS", few)
    assert Window.from_sentences([["the", "a\ud800b"], [], ["cat"]]).tokens(0) == ["the", "ab"]
    for token in list[Any]([None, 3, b"a", math.nan]):
        draft = Draft.of([["x"], [], ["a", token]])
        with pytest.raises(FlashElmoError) as raised:
            draft.window()
        assert str(raised.value) == f"sentence ['a', {token!r}]: token 1: expected text, found {token!r}"
