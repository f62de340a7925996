"""The table of word vectors on the device: every word once, the oldest give way, nothing is ever mixed up."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

pytest.importorskip("triton")

from cuda_runs import AHEAD, ONE_LAYER, TORCH_DEVICE, assert_close, on_cuda
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import MODELS, WORDS

from flashelmo.engine import pipeline as pipeline_module
from flashelmo.engine.cuda import model as model_module
from flashelmo.engine.cuda.cuda_graphs import GraphCache
from flashelmo.engine.cuda.model import DeviceModel, WordVectorTable
from flashelmo.engine.cuda.transfer import Transfers
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.text.characters import WordEncoder

ROW_BYTES = 16  # of the tiny models' float32
NAMES = [*WORDS.words, *(f"unknown{i}" for i in range(3))]  # each has its own vector, or the unknown word's


def table_of(n_rows: int, model: ElmoModel = ONE_LAYER, graphs: GraphCache | None = None) -> WordVectorTable:
    encoder = WordEncoder(model.config, model.lexicon)
    transfers = Transfers(TORCH_DEVICE)
    with transfers.computing():
        return WordVectorTable(DeviceModel(model, TORCH_DEVICE, "fp32"), encoder, transfers, n_rows * ROW_BYTES, graphs)


def look_up(table: WordVectorTable, names: Sequence[str]) -> tuple[npt.NDArray[Any], int]:
    """The vectors [W, P] of words, and how many were computed."""
    with table._transfers.computing():  # the stream that their copies wait for
        rows, n_new = table.lookup(pa.array(names, pa.string()))
        vectors = table.vectors.cpu().numpy()
    assert rows.dtype == np.int32 and len(rows) == len(names)
    return vectors[rows], n_new


def expected_vectors(names: Sequence[str]) -> npt.NDArray[Any]:
    embedding = ONE_LAYER.weights.word_embedding
    assert embedding is not None and ONE_LAYER.weights.projection is None
    return embedding[[WORDS.words.get(name, WORDS.words["<UNK>"]) for name in names]]


def check(table: WordVectorTable, names: Sequence[str]) -> int:
    """Look words up and compare; then every kept word is where the table says."""
    vectors, n_new = look_up(table, names)
    np.testing.assert_array_equal(vectors, expected_vectors(names))
    kept = list(table._rows)
    np.testing.assert_array_equal(table.vectors.cpu().numpy()[list(table._rows.values())], expected_vectors(kept))
    assert len(set(table._rows.values())) == len(kept)
    assert all(table._names[row] == name for name, row in table._rows.items())
    return n_new


def test_a_word_is_computed_once() -> None:
    table = table_of(8)
    assert check(table, ["the", "cat", "x"]) == 3
    assert check(table, ["cat", "sat", "the"]) == 1
    assert check(table, ["sat", "x"]) == 0
    assert check(table, []) == 0


def test_the_least_recently_used_give_way() -> None:
    table = table_of(4)
    assert check(table, ["the", "cat"]) == 2
    assert check(table, ["sat", "x"]) == 2
    assert check(table, ["the"]) == 0  # the cat is the oldest now
    assert check(table, ["y"]) == 1
    assert check(table, ["the", "sat", "x", "y"]) == 0
    assert check(table, ["cat"]) == 1


def test_the_oldest_are_found_for_many_windows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were used since they were found stay."""
    monkeypatch.setattr(model_module, "OLDEST_AT_ONCE", 2)
    found: list[int] = []
    find = WordVectorTable._find_oldest

    def count(self: WordVectorTable, n: int) -> Any:
        found.append(n)
        return find(self, n)

    monkeypatch.setattr(WordVectorTable, "_find_oldest", count)
    table = table_of(8)
    for name in "abcdefgh":
        assert check(table, [name]) == 1
    assert check(table, ["i"]) == 1  # in place of a; b, c, d are the next
    assert check(table, ["c"]) == 0
    assert [check(table, [name]) for name in "jk"] == [1, 1] and found == [1]  # in place of b and d
    assert [check(table, [name]) for name in "cefghijk"] == [0] * 8
    assert check(table, ["l", "m"]) == 2 and found == [1, 2]  # in place of c and e
    assert [check(table, [name]) for name in "fghijklm"] == [0] * 8


def test_a_window_with_more_words_than_rows_gets_a_larger_table() -> None:
    table = table_of(2)
    first = table.vectors
    assert check(table, ["the", "cat", "sat"]) == 3
    assert table.vectors is not first and len(table.vectors) == 3
    assert check(table, ["cat", "x", "sat"]) == 1
    assert check(table, ["the"]) == 1


def test_without_a_cache_no_word_is_kept() -> None:
    table = table_of(0)
    for _ in range(3):
        assert check(table, ["the", "cat", "sat"]) == 3
        assert check(table, ["the"]) == 1
    assert len(table.vectors) == 3 and not table._rows


@pytest.mark.parametrize("n_rows", [0, 4, 6, 20])
def test_a_word_that_a_window_names_twice(n_rows: int) -> None:
    """A text's own "<S>" beside the boundary: two rows for a while, and none is lost or freed twice."""
    table = table_of(n_rows)
    for names in (["<S>", "cat", "<S>"], ["cat"], ["the", "sat", "x"], ["y", "z"], ["<S>", "<S>"], ["the", "<S>"]):
        check(table, names)
        check(table, ["the", "cat", "sat", "x"])


windows = st.lists(st.lists(st.sampled_from(NAMES), max_size=7), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(windows, st.integers(0, 9) | st.just(100), st.integers(1, 4), st.booleans())
def test_any_windows_through_any_table(windows: list[list[str]], n_rows: int, at_once: int, by_graph: bool) -> None:
    table = table_of(n_rows, graphs=GraphCache(TORCH_DEVICE, 8) if by_graph else None)
    seen: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "WORDS_AT_ONCE", at_once)
        for names in windows:
            n_new = check(table, names)
            new = [name for name in names if name not in seen]
            assert n_new == len(new) if n_rows == 100 else len({*new}) <= n_new <= len(names)
            seen |= set(names)


def test_rows_are_whole_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words of groups that were computed are kept, those of the failing one and after it are not."""
    table = table_of(6)
    check(table, ["the", "cat", "x"])
    monkeypatch.setattr(model_module, "WORDS_AT_ONCE", 2)
    word_vectors, calls = DeviceModel.word_vectors, []

    def fail(self: DeviceModel, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("CUDA error: an illegal address")
        return word_vectors(self, *arguments)

    monkeypatch.setattr(DeviceModel, "word_vectors", fail)
    names = ["a", "b", "c", "d", "sat"]
    with pytest.raises(RuntimeError, match="illegal address"):
        look_up(table, names)
    assert set(table._rows) == {"a", "b"} | set(table._rows) - set(names)
    assert check(table, names) == 3
    others = ["the", "cat", "x", "sat", "e", "f"]
    kept = set(table._rows)
    assert "sat" in kept
    assert [check(table, others) for _ in range(2)] == [len(set(others) - kept), 0]


def test_vectors_of_every_kind_of_model() -> None:
    """By characters, by words, by both, in groups; the encoder's own order is kept whatever the words' lengths.

    By graphs too: words are launched, then captured, then replayed, each time others and fewer.
    """
    names = ["the", "incomprehensibilities", "é", "cat", "ca", "t"]
    others = ["catt", "a", "incomprehensibly", "ü"]
    for name in ("skip", "words alone", "manylangs"):
        model = MODELS[name]
        graphs = GraphCache(TORCH_DEVICE, 8)
        table = table_of(20, model, graphs)
        for part in (names, others, ["x"], [*names, "y", *others]):
            layers = ReferenceRuntime(model).embed_batch([part])[0]
            for vectors, n_new in (look_up(table, part), look_up(table_of(12, model), part)):
                assert_close([vectors], [layers[0][:, :4]])
                assert n_new > 0
        assert look_up(table, [*names, *others, "x", "y"])[1] == 0
        assert list(graphs._graphs) == [16]


def test_numbers_of_words_share_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each power of two; many words are launched, and so are those of a table that has moved."""
    monkeypatch.setattr(model_module, "LEAST_WORDS", 2)
    monkeypatch.setattr(model_module, "MOST_CAPTURED_WORDS", 4)
    graphs = GraphCache(TORCH_DEVICE, 8)
    table, new = table_of(60, graphs=graphs), iter(f"new{i}" for i in range(100))

    def look_up_new(n: int) -> list[Hashable]:
        assert check(table, [next(new) for _ in range(n)]) == n
        return list(graphs._graphs)

    assert [look_up_new(n) for n in (1, 2, 3, 5, 6, 5)] == [[], [2], [2], [2], [2], [2]]
    assert look_up_new(4) == [2, 4] and look_up_new(2) == [4, 2]
    assert look_up_new(61) == []
    assert look_up_new(1) == [2]


@pytest.mark.parametrize("name", ["skip", "words alone", "manylangs"])
def test_words_are_packed_ahead_where_none_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many ones, in pieces; nothing is packed twice, and vectors are the same."""
    monkeypatch.setattr(model_module, "WORDS_AT_ONCE", 2)
    words = pa.array(["the", "incomprehensibilities", "é", "cat", "ca"], pa.string())
    table = table_of(0, MODELS[name])
    expected, _ = look_up(table, words.to_pylist())
    packed = table.pack(words)
    assert [len(each) for each in packed if each is not None] == [table._layout(n).size for n in (2, 2, 1)]
    monkeypatch.setattr(WordVectorTable, "_fill", None)
    with table._transfers.computing():
        assert table.lookup(words, packed)[1] == 5
        np.testing.assert_array_equal(table.vectors[:5].cpu().numpy(), expected)
    monkeypatch.undo()
    assert table_of(8, MODELS[name]).pack(words) == []
    assert table_of(0, MODELS[name], GraphCache(TORCH_DEVICE, 8)).pack(words) == [None]  # few, by a graph


def test_schedules_and_words_made_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "PLAN_INLINE_TOKENS", 0)
    embedder = on_cuda(ONE_LAYER, cache_bytes=0, cuda=AHEAD, window_tokens=8, threads=2)
    sentences = [["the", "cat", "sat"], ["é", "x", "the"], [], ["cat"], ["a", "b", "c", "d"]] * 3
    assert_close(embedder.embed_batch(sentences), ReferenceRuntime(ONE_LAYER).embed_batch(sentences))


@pytest.mark.parametrize("cache_bytes", [0, 4 * ROW_BYTES])
def test_a_small_cache_does_not_change_the_vectors(cache_bytes: int) -> None:
    """Sentences by themselves: each computes the words that the ones before it have displaced."""
    embedder = on_cuda(ONE_LAYER, cache_bytes=cache_bytes, cuda=AHEAD)
    sentences = [["the"], ["cat", "sat"], ["<S>"], [], ["the", "é", "cat"]]
    expected = ReferenceRuntime(ONE_LAYER).embed_batch(sentences)
    assert_close([embedder.embed_sentence(sentence) for sentence in sentences], expected)


def test_distinct_words_are_those_that_the_cpu_counts(text: list[list[str]]) -> None:
    """Where nothing has to give way; and a text's own "<S>" counts as it does there."""
    embedders = [on_cuda(ONE_LAYER, cuda=AHEAD), ElmoEmbedder(ONE_LAYER, device="cpu")]
    for batch in ([line[:3] for line in text[:6]], [["<S>", "cat"]], [line[1:4] for line in text[:6]]):
        for embedder in embedders:
            embedder.embed_batch(batch)
    counts = [embedder.statistics.words_computed for embedder in embedders]
    assert counts[0] == counts[1] > 10
