"""Records of a reader: as rows to compare, and the same from any place on."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from flashelmo.engine.bulk import parquet, text_reader
from flashelmo.engine.bulk.parts import Part, Place, Reader, Records

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
few = settings(max_examples=40)
