"""Records of every format: the same from any place on and in parts of any sizes, and what bad input gets."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashelmo.engine.bulk import text_reader
from flashelmo.engine.bulk.records import Part, Place, Reader, Records, open_reader
from flashelmo.engine.errors import FlashElmoError

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
    expected = rows(whole.records())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_reader, "CHUNK_BYTES", chunk)
        reader = opened()
        found = list(parts(reader, sizes))
        assert reader.take(1) is None
        assert [row for part in found for row in rows(part.records())] == expected
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
