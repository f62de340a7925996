"""Graphs of buckets: which are captured, which are kept, and what happens where a device captures none."""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from cuda_runs import (
    ONE_LAYER,
    assert_close,
    driver_out_of_memory,
    on_cuda,
    out_of_memory,
    pipeline_of,
)

from flashelmo.engine.cuda import cuda_graphs as graphs_module
from flashelmo.engine.cuda import state, transfer
from flashelmo.engine.cuda.cuda_graphs import Captured, GraphCache
from flashelmo.engine.cuda.executor import Executor
from flashelmo.engine.cuda.layout import Sizes
from flashelmo.engine.cuda.transfer import Transfers, streams_of
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.settings import CudaSettings
from flashelmo.engine.system.captures import abandon

pytestmark = pytest.mark.usefixtures("little_padding")

CPU = torch.device("cpu")
SENTENCE = ["the", "cat"]


class Runs:
    """Work that doubles its integers, and counts how often it is queued."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, ints: torch.Tensor) -> torch.Tensor:
        self.n += 1
        return 2.0 * ints


def captured(cache: GraphCache, key: str, run: Callable[[torch.Tensor], torch.Tensor] | None = None) -> bool:
    return cache.get(key, 4, run or Runs()) is not None


def test_a_bucket_is_captured_when_it_comes_again() -> None:
    cache, run = GraphCache(CPU, 8), Runs()
    assert not captured(cache, "a", run) and run.n == 0  # the first window is launched, which compiles
    graph = cache.get("a", 4, run)
    assert graph is not None and graph.packed_schedule.tolist() == [0] * 4
    assert cache.get("a", 4, run) is graph
    outs = []
    for k in range(3):
        graph.packed_schedule.copy_(torch.arange(4) + k)
        outs.append(graph.replay())
        assert outs[-1].tolist() == [2.0 * (i + k) for i in range(4)]
    assert len({out.data_ptr() for out in outs}) == 1  # a replay writes where the last one did


def test_the_least_recently_used_gives_way() -> None:
    cache = GraphCache(CPU, 2)
    for key in "aabb":
        captured(cache, key)
    assert captured(cache, "a")
    assert not captured(cache, "c") and captured(cache, "c")  # b is gone
    assert list(cache._graphs) == ["a", "c"]
    assert captured(cache, "b")  # it was seen before
    assert list(cache._graphs) == ["c", "b"]


def test_what_was_seen_is_bounded() -> None:
    cache = GraphCache(CPU, 1)
    for i in range(40):
        captured(cache, str(i))
    assert len(cache._seen) == 16
    assert captured(cache, "39") and not captured(cache, "0")


def test_cleared_graphs_are_captured_again_at_once() -> None:
    cache = GraphCache(CPU, 2)
    before = [cache.get("a", 4, Runs()) for _ in range(2)][1]
    cache.clear()
    after = cache.get("a", 4, Runs())
    assert before is not None and after is not None and after is not before


def failing(error: Callable[[], Exception]) -> Callable[..., Captured]:
    """Stands for `GraphCache._capture`."""

    def fail(*arguments: Any) -> Captured:
        raise error()

    return fail


def test_a_device_that_captures_nothing_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    message = "CUDA error: operation not permitted when stream is capturing"
    monkeypatch.setattr(GraphCache, "_capture", failing(lambda: RuntimeError(message + "\nand more lines")))
    cache = GraphCache(CPU, 2)
    with caplog.at_level(logging.WARNING, "flashelmo"):
        assert [captured(cache, key) for key in "aabba"] == [False] * 5
    assert [record.getMessage() for record in caplog.records] == [f"CUDA graphs are not used: {message}"]
    assert not cache.works


@pytest.mark.parametrize("error", [out_of_memory, driver_out_of_memory])
def test_memory_that_is_lacking_is_no_fault_of_graphs(
    error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others make room, and what was to be captured is launched, though its graph is tried again."""
    cache = GraphCache(CPU, 2)
    assert [captured(cache, "a") for _ in range(2)] == [False, True]
    with monkeypatch.context() as patch:
        patch.setattr(GraphCache, "_capture", failing(error))
        assert [captured(cache, "b") for _ in range(3)] == [False] * 3 and not cache._graphs
    assert cache.works and captured(cache, "b")


@pytest.mark.parametrize("error", [out_of_memory, driver_out_of_memory])
def test_a_sentence_whose_graphs_find_no_memory_is_launched(
    error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of its words, and its own."""
    monkeypatch.setattr(GraphCache, "_capture", failing(error))
    embedder = on_cuda(ONE_LAYER, cache_bytes=0)
    expected = ReferenceRuntime(ONE_LAYER).embed_batch([SENTENCE])
    for _ in range(2):
        assert_close(embedder.embed_batch([SENTENCE]), expected)


def test_a_capture_that_failed_is_not_under_way_for_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which PyTorch tells of a capture's end only where that succeeds."""

    class Graph:
        is_capturing = False

        def capture_begin(self, **_: Any) -> None:
            Graph.is_capturing = True

        def capture_end(self) -> None:
            if not launched:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            Graph.is_capturing = False

        def reset(self) -> None: ...

    launched: list[int] = []
    for name, instead in {
        "CUDAGraph": Graph,
        "Stream": lambda *_, **__: None,
        "stream": lambda _: nullcontext(),
        "_sleep": launched.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, instead)
    graph = Graph()
    with pytest.raises(ValueError, match="what it stops at"):
        graphs_module._record(graph, (0, 1), lambda: int("what it stops at"))  # type: ignore[arg-type, return-value]
    assert Graph.is_capturing
    abandon(graph, (0, 1))
    assert not Graph.is_capturing


def test_results_of_graphs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few they are; the newest is kept though it is too large by itself."""
    sizes = {"a": 600, "b": 600, "c": 300, "d": 2000}

    class Sized(GraphCache):
        def _capture(self, size: int, run: Callable[[torch.Tensor], torch.Tensor]) -> Captured:
            return Captured(lambda: torch.zeros(1), torch.zeros(1), size)

    monkeypatch.setattr(graphs_module, "MAX_RESULT_BYTES", 1000)
    cache, kept = Sized(CPU, 8), []
    for key, size in sizes.items():
        cache.get(key, size, Runs())
        cache.get(key, size, Runs())
        kept.append("".join(map(str, cache._graphs)))
    assert kept == ["a", "b", "bc", "d"]


def test_vectors_are_the_same_without_captures(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(GraphCache, "_capture", failing(lambda: RuntimeError("CUDA error: a capture failed")))
    embedder = on_cuda(ONE_LAYER)
    expected = ReferenceRuntime(ONE_LAYER).embed_batch([SENTENCE])
    with caplog.at_level(logging.WARNING, "flashelmo"):
        for _ in range(3):
            assert_close(embedder.embed_batch([SENTENCE]), expected)
    assert caplog.text.count("CUDA graphs are not used: CUDA error: a capture failed") == 1


def executor_of(embedder: ElmoEmbedder) -> Executor:
    return pipeline_of(embedder)._executor


def graphs_of(embedder: ElmoEmbedder) -> list[Captured]:
    return list(executor_of(embedder)._graphs._graphs.values())


def test_graphs_go_when_the_table_moves() -> None:
    """A window with more words than rows has another table; a graph would read the old one."""
    embedder = on_cuda(ONE_LAYER, cache_bytes=64)
    for _ in range(2):
        embedder.embed_sentence(SENTENCE)
    (before,) = graphs_of(embedder)
    sentence = ["the", "cat", "sat"]
    for _ in range(2):
        assert_close([embedder.embed_sentence(sentence)], ReferenceRuntime(ONE_LAYER).embed_batch([sentence]))
    (after,) = graphs_of(embedder)
    assert after is not before
    assert_close([embedder.embed_sentence(SENTENCE)], ReferenceRuntime(ONE_LAYER).embed_batch([SENTENCE]))
    assert graphs_of(embedder) == [after]  # words that come and go leave the table where it is


def test_graphs_go_when_the_state_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "INITIAL_ROWS", 16)
    embedder = on_cuda(ONE_LAYER, stateful=True)
    other = ElmoEmbedder(ONE_LAYER, device="cpu", stateful=True)
    graphs = []
    for n in (1, 1, 17, 1):
        batch = [["cat"]] * n
        assert_close(embedder.embed_batch(batch), other.embed_batch(batch))
        graphs.append(graphs_of(embedder))
    assert [len(kept) for kept in graphs] == [0, 1, 0, 1]
    assert graphs[1] != graphs[3]


def test_graphs_stay_when_the_state_is_reset() -> None:
    embedder = on_cuda(ONE_LAYER, stateful=True)
    for _ in range(2):
        embedder.embed_sentence(SENTENCE)
    before = graphs_of(embedder)
    embedder.reset_state()
    embedder.embed_sentence(SENTENCE)
    assert len(before) == 1 and graphs_of(embedder) == before


@pytest.mark.parametrize(
    ("settings", "is_small"),
    [
        (CudaSettings(), True),
        (CudaSettings(graphs=False), False),
        (CudaSettings(graph_rows=3), True),
        (CudaSettings(graph_rows=2), False),
        (CudaSettings(graph_depths=4), True),
        (CudaSettings(graph_depths=3), False),
        (CudaSettings(graph_rows=0), False),
    ],
    ids=str,
)
def test_large_windows_are_launched_ahead(settings: CudaSettings, is_small: bool) -> None:
    sizes = Sizes(((0, 1, 2, 5, 7, 8), (0, 1, 2, 4, 6, 7)), n_roots=1, n_nodes=8, n_tokens=7)
    assert executor_of(on_cuda(ONE_LAYER, cuda=settings))._is_small(sizes) == is_small


def test_buckets_in_turn_displace_each_other() -> None:
    """With room for one graph, two are captured again and again, and stay right."""
    embedder = on_cuda(ONE_LAYER, cuda=CudaSettings(max_graphs=1))
    sentences = [["cat"], ["the"] * 4]
    expected = ReferenceRuntime(ONE_LAYER).embed_batch(sentences)
    for _ in range(3):
        assert_close([embedder.embed_sentence(sentence) for sentence in sentences], expected)
    assert len(graphs_of(embedder)) == 1


def test_a_process_has_the_same_streams_of_a_device_for_all_embedders(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no two kernels whose programs wait for each other run side by side; captures are in none of them.

    And none is given to the rest of the program, which PyTorch gives its streams in turn.
    """
    given = Counter[tuple[int, int]]()

    def stream(device: Any, priority: int = 0) -> tuple[int, int, int]:
        given[device.index, priority] += 1
        return device.index, priority, given[device.index, priority] % 32

    monkeypatch.setattr(transfer, "_streams", {})
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert streams_of(first) is streams_of(first)
    ours: set[Any] = {stream for device in (first, second) for stream in streams_of(device)}
    assert len(ours) == 8
    assert ours.isdisjoint(stream(device, priority) for device in (first, second) for priority in [0, -1] * 33)
    assert Transfers(first)._compute is Transfers(first)._compute is streams_of(first).compute
