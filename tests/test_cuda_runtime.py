"""The CUDA runtime as a whole against the reference: every model, every output, graphs and launches."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

pytest.importorskip("triton")

from cuda_runs import AHEAD, DEVICE, ONE_LAYER, Compute, assert_close, on_cuda, on_host, pipeline_of
from tiny_models import BILM, GENTLE, MODELS, SENTENCES, random_model

from flashelmo.engine import embedder as embedder_module
from flashelmo.engine import pipeline
from flashelmo.engine.cuda import executor, layout
from flashelmo.engine.cuda import pipeline as cuda_pipeline
from flashelmo.engine.cuda.layout import Sizes
from flashelmo.engine.cuda.pipeline import CudaPipeline
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.initialize import random_model as preset_model
from flashelmo.engine.output import Output
from flashelmo.engine.precision import tolerance
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.settings import CudaSettings, Settings
from flashelmo.engine.text.windows import Window

pytestmark = pytest.mark.usefixtures("little_padding")

MODEL = MODELS["skip"]
# One bucket, and so one graph: launched, then captured, then replayed.
WINDOWS = [
    [["the", "cat", "sat"], [], ["incomprehensibilities", "cat"]],
    [["sat", "é", "the"]],
    [["cat"], ["the", "cat", "the"], ["the", "cat", "é"], []],
]
SHORT = WINDOWS[0]


def n_graphs(embedder: ElmoEmbedder) -> int:
    return len(pipeline_of(embedder)._executor._graphs._graphs)


def reference(sentences: list[list[str]], model: str = "skip", keep: bool = False) -> list[Any]:
    return ReferenceRuntime(MODELS[model]).embed_batch(sentences, keep)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_equals_the_reference_by_graphs(name: str) -> None:
    embedder = on_cuda(MODELS[name])
    for window in WINDOWS:
        assert_close(embedder.embed_batch(window), reference(window, name))
    assert n_graphs(embedder) == 1


def test_buckets_whose_depths_have_fewer_and_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is made for the most rows of its depths, and serves windows with fewer."""
    monkeypatch.setattr(layout, "LEAST_ROWS", 1)
    monkeypatch.setattr(layout, "LEAST_TAIL_ROWS", 1)
    window = [["cat"] * 6, ["the", "sat", "é", "cat"], ["sat"], ["é"]]
    embedder = on_cuda(MODEL)
    for part in (window, window, window[:3], window):
        assert_close(embedder.embed_batch(part), reference(part))
    executor = pipeline_of(embedder)._executor
    (key,) = executor._graphs._graphs
    assert isinstance(key, tuple) and key[0].rows == [4, 4, 2, 2, 2, 2, 1, 1]
    assert list(executor._graphs._seen) == list(executor._graphs._graphs)  # one bucket for all


@pytest.mark.parametrize(
    ("settings", "precision"), [(CudaSettings(), "fp32"), (AHEAD, "bf16")], ids=["graphs", "ahead"]
)
def test_input_parts_by_word_are_those_by_node(
    monkeypatch: pytest.MonkeyPatch, settings: CudaSettings, precision: str
) -> None:
    """One graph serves windows of more and of fewer words."""
    model = random_model(replace(BILM, cell_size=8, projection_size=16, n_layers=1))
    windows = [[["cat", "the", word, "cat"] for word in words] for words in ("abcd", "abca", "wxyz")]

    def embed() -> tuple[list[list[Any]], list[Sizes], ElmoEmbedder]:
        computes = Compute(lambda sizes: False)
        monkeypatch.setattr(executor, "compute", computes)
        embedder = on_cuda(model, precision=precision, cuda=settings)
        return [embedder.embed_batch(window) for window in windows], computes.computed, embedder

    found, sizes, embedder = embed()
    n_computed = 2 if settings.graphs and DEVICE == "cuda" else 3  # a graph on a card is replayed, not computed again
    assert [each.n_words for each in sizes] == ([sizes[0].n_nodes - 1] * n_computed if settings.graphs else [8, 7, 8])
    assert n_graphs(embedder) == settings.graphs
    monkeypatch.setattr(executor, "pays_by_word", lambda *given: False)
    expected, sizes, _ = embed()
    assert not any(each.n_words for each in sizes)
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert np.abs(a).max() > 0 and np.abs(a - b).max() < (1e-6 if precision == "fp32" else 0.02)


@pytest.mark.parametrize("name", MODELS)
def test_models_equal_the_reference_launched_ahead(name: str) -> None:
    embedder = on_cuda(MODELS[name], cuda=AHEAD)
    assert_close(embedder.embed_batch(SENTENCES), reference(SENTENCES, name))
    assert n_graphs(embedder) == 0


@pytest.mark.parametrize(
    ("settings", "share", "keep"),
    [
        (CudaSettings(), False, False),
        (CudaSettings(), False, True),
        (AHEAD, False, True),
        (AHEAD, True, True),
        (AHEAD, False, False),
    ],
    ids=str,
)
def test_switches_and_sharing_and_boundaries(settings: CudaSettings, share: bool, keep: bool) -> None:
    embedder = on_cuda(MODEL, cuda=settings, share=share, keep_sentence_boundaries=keep)
    for window in WINDOWS if settings.graphs else WINDOWS[2:]:
        assert_close(embedder.embed_batch(window), reference(window, keep=keep))


@pytest.mark.parametrize(
    ("settings", "output"),
    [
        *(
            (CudaSettings(), Output(layers, pool=pool, mix=mix))
            for layers, mix in [
                *((layers, None) for layers in ("all", "top", "average", 0, 1, (1, 0))),
                ("average", (0.5, -2.0)),
            ]
            for pool in (None, "mean", "max")
        ),
        (AHEAD, Output("all", pool="mean")),
        (AHEAD, Output("all", pool="max")),
        (AHEAD, Output("average")),
    ],
)
def test_every_output(settings: CudaSettings, output: Output) -> None:
    embedder = on_cuda(ONE_LAYER, cuda=settings)
    found = list(embedder.embed(SHORT, layers=output.layers, pool=output.pool, mix=output.mix))
    assert all(array.dtype == np.float32 for array in found)
    assert_close(found, [output.choose(vectors) for vectors in ReferenceRuntime(ONE_LAYER).embed_batch(SHORT)])


def test_outputs_in_turns_have_graphs_of_their_own() -> None:
    embedder = on_cuda(ONE_LAYER)
    expected = ReferenceRuntime(ONE_LAYER).embed_batch(SHORT)
    for _ in range(3):
        for output in (Output("top"), Output(0)):
            found = list(embedder.embed(SHORT, layers=output.layers, pool=output.pool))
            assert_close(found, [output.choose(vectors) for vectors in expected])
    assert n_graphs(embedder) == 2


def test_nothing_to_compute() -> None:
    """Windows without sentences and without tokens, in the middle of others, are computed without a launch."""
    parts: list[list[list[str]]] = [[], [[], []], SHORT, [[]], []]
    windows = [Window.from_sentences(part) for part in parts]
    for as_numpy in (True, False):
        stream = on_cuda(MODEL).embed_windows(windows, convert_to_numpy=as_numpy)
        found = [(window, on_host(results)) for window, results in stream]
        assert [id(window) for window, _ in found] == [id(window) for window in windows]
        for (_, results), part in zip(found, parts, strict=True):
            assert_close(results, reference(part) if part else [])
    embedder = on_cuda(MODEL)
    assert list(embedder.embed([])) == []
    assert embedder.encode([]).shape == (0, 8)
    assert embedder.encode(["", ""]).tolist() == [[0.0] * 8] * 2
    ((_, pooled),) = embedder.embed_windows([Window.from_sentences([])], output=Output(pool="mean"))
    assert list(pooled) == []


def test_empty_sentences_with_kept_boundaries() -> None:
    found = on_cuda(MODEL, keep_sentence_boundaries=True, cuda=AHEAD).embed_batch([[], []])
    assert_close(found, reference([[], []], keep=True))
    assert found[0].shape == (3, 2, 8)


def test_ragged_text_in_many_windows(text: list[list[str]]) -> None:
    """Windows of several sizes in turn, of which some share a bucket."""
    cut = [line[: (2 * i) % 5] for i, line in enumerate(text[:10])]
    ragged = [*cut[:3], text[0][:7], *cut[3:]]
    embedder = on_cuda(MODEL, window_tokens=8)
    assert_close(embedder.embed_batch(ragged), reference(ragged))
    assert embedder.statistics.steps_saved > 0


def test_order_and_company_do_not_change_the_vectors() -> None:
    embedder = on_cuda(ONE_LAYER)
    expected = ReferenceRuntime(ONE_LAYER).embed_batch(SENTENCES)
    assert_close([embedder.embed_sentence(sentence) for sentence in SENTENCES], expected)
    assert_close(embedder.embed_batch(SENTENCES[::-1] * 4), expected[::-1] * 4)


def test_schedules_made_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "PLAN_INLINE_TOKENS", 3)  # tokens: windows of one are planned in between
    windows = [Window.from_sentences(part) for part in (SHORT, [["cat"]], SHORT[::-1], [["the"]], SHORT, SHORT)]
    read: list[Window] = []

    def source() -> Iterator[Window]:
        for window in windows:
            read.append(window)
            yield window

    embedder = on_cuda(ONE_LAYER, threads=2)
    for k, (window, results) in enumerate(embedder.embed_windows(source())):
        assert window is windows[k] and len(read) <= k + 1 + pipeline_of(embedder).ahead
        sentences = [window.tokens(b) for b in range(len(window))]
        assert_close(list(results), ReferenceRuntime(ONE_LAYER).embed_batch(sentences))
    assert k == len(windows) - 1


def test_the_first_plans_are_given_before_much_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has nothing to do waits for one window, not for as many as are planned ahead later."""
    monkeypatch.setattr(pipeline, "PLAN_INLINE_TOKENS", 0)
    read: list[Window] = []

    def source() -> Iterator[Window]:
        for _ in range(9):
            read.append(Window.from_sentences(SHORT))
            yield read[-1]

    planner = pipeline.Planner(("<S>", "</S>"), Settings(threads=3))
    numbers = []
    for k, plan in enumerate(planner.plan_ahead(source())):
        assert plan.window is read[k]
        numbers.append(len(read))
    assert numbers == [1, 3, 5, 7, 8, 9, 9, 9, 9]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, [3, 6, 8, 8, 8, 8, 7]), ({"stateful": True, "batch_size": 40}, [40, 8]), ({"window_tokens": 2}, [2] * 24)],
    ids=str,
)
@pytest.mark.parametrize("from_file", [False, True], ids=["lists", "file"])
def test_the_first_windows_are_smaller(
    settings: dict[str, Any], expected: list[int], from_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a device begins soon; never the batches of rows that carry a state."""
    monkeypatch.setattr(embedder_module, "FIRST_TOKENS", 3)
    embedder = on_cuda(ONE_LAYER, **{"window_tokens": 8, **settings})
    n_tokens: list[int] = []
    stream = CudaPipeline.stream

    def count(self: CudaPipeline, windows: Iterable[Window], *arguments: Any, **options: Any) -> Any:
        given = list(windows)
        n_tokens.extend(int(window.offsets[-1]) for window in given)
        return stream(self, given, *arguments, **options)

    monkeypatch.setattr(CudaPipeline, "stream", count)
    right = ReferenceRuntime(ONE_LAYER).embed_batch([["cat"]])
    if from_file:
        text = tmp_path / "text"
        text.write_text("cat\n" * 48, encoding="utf-8")
        embedder.embed_file(text, tmp_path / "vectors.h5")
        with h5py.File(tmp_path / "vectors.h5") as file:
            assert_close([file["0"][()]], right)
    else:
        assert_close(list(embedder.embed([["cat"]] * 48))[:1], right)
    assert n_tokens == expected


@pytest.mark.parametrize("batch_size", [None, 7], ids=str)
@pytest.mark.parametrize("from_file", [False, True], ids=["lists", "file"])
def test_a_window_has_no_more_sentences_than_kernels_count(
    batch_size: int | None, from_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tokens it may have, and however many sentences a caller asks for."""
    monkeypatch.setattr(embedder_module, "MAX_WINDOW_SENTENCES", 5)
    embedder = ElmoEmbedder(ONE_LAYER, device="cpu", window_tokens=9)
    assert embedder.window_limits == (5, 9)
    read: list[int] = []
    stream = type(embedder._pipeline).stream

    def count(self: Any, windows: Iterable[Window], *arguments: Any, **options: Any) -> Any:
        given = list(windows)
        read.extend(map(len, given))
        return stream(self, given, *arguments, **options)

    monkeypatch.setattr(type(embedder._pipeline), "stream", count)
    if from_file:
        (tmp_path / "text").write_text("cat\n" * 12, encoding="utf-8")
        embedder.embed_file(tmp_path / "text", tmp_path / "vectors.h5", batch_size=batch_size)
    else:
        list(embedder.embed_sentences([["cat"]] * 12, batch_size))
    assert read == [5, 5, 2]


@pytest.mark.parametrize("settings", [{}, {"stateful": True, "batch_size": 3}], ids=str)
def test_windows_of_too_many_sentences_are_halved(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_pipeline, "MAX_WINDOW_SENTENCES", 2)
    embedder, reference = on_cuda(ONE_LAYER, **settings), ReferenceRuntime(ONE_LAYER, **settings)
    queued: list[int] = []
    queue = executor.Executor.queue

    def count(self: Any, plan: Any, *arguments: Any, **options: Any) -> Any:
        queued.append(len(plan.window))
        return queue(self, plan, *arguments, **options)

    monkeypatch.setattr(executor.Executor, "queue", count)
    for _ in range(2):
        window = Window.from_sentences(SHORT)
        ((_, found),) = embedder.embed_windows([window])
        assert_close(list(found), reference.embed_batch(SHORT))
    assert sum(queued) == 2 * len(SHORT) and max(queued) == 2


def test_two_threads_share_an_embedder() -> None:
    embedder = on_cuda(ONE_LAYER)
    parts = [SHORT, SHORT[::-1], WINDOWS[2], WINDOWS[1]]
    expected = [ReferenceRuntime(ONE_LAYER).embed_batch(part) for part in parts]
    with ThreadPoolExecutor(2) as pool:
        for found, right in zip(pool.map(embedder.embed_batch, parts), expected, strict=True):
            assert_close(found, right)


def test_an_error_of_a_planning_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "PLAN_INLINE_TOKENS", 0)
    embedder = on_cuda(ONE_LAYER)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "build_schedule", lambda *arguments, **options: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            embedder.embed_batch(SHORT)
    assert_close(embedder.embed_batch(SHORT), ReferenceRuntime(ONE_LAYER).embed_batch(SHORT))


def test_statistics_are_those_of_the_other_runtimes() -> None:
    batch = [["cat", "sat"], ["cat", "sat"], ["cat", "the"], []]
    for share, n_saved in ((True, 2 * 3 * 3 - 9), (False, 0)):
        embedder = on_cuda(ONE_LAYER, share=share, cuda=AHEAD)
        other = ElmoEmbedder(ONE_LAYER, device="cpu", share=share)
        assert_close(embedder.embed_batch(batch), other.embed_batch(batch))
        assert embedder.statistics == other.statistics and embedder.statistics.steps_saved == n_saved


@pytest.mark.skipif(DEVICE == "cuda", reason="depends on the card")
def test_the_precision_that_the_device_decides_is_said() -> None:
    embedder = on_cuda(ONE_LAYER, precision="auto")
    assert (embedder.device, embedder.precision) == ("cpu", "bf16")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_rounding_types_are_near_the_reference(precision: str) -> None:
    expected = np.concatenate(ReferenceRuntime(GENTLE).embed_batch(SHORT), axis=1)
    found = np.concatenate(on_cuda(GENTLE, precision=precision, cuda=AHEAD).embed_batch(SHORT), axis=1)
    assert found.dtype == np.float32
    for layer, (one, other) in enumerate(zip(found, expected, strict=True)):
        error = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert 0 < error < tolerance(precision, "cuda"), f"layer {layer}"


def short_ones(folder: Path, most: int) -> dict[int, list[str]]:
    """The sentences of at most so many tokens, and the first of 20, by their number in the file of vectors."""
    sentences = json.loads((folder / "sentences.json").read_text(encoding="utf-8"))
    if (folder / "expected_stateless.hdf5").is_file():
        sentences = [line.split() for stream in sentences[:2] for line in stream]
    long_one = next((key for key, sentence in enumerate(sentences) if len(sentence) == 20), None)
    return {key: sentence for key, sentence in enumerate(sentences) if len(sentence) <= most or key == long_one}


@pytest.mark.parametrize(
    ("name", "file"), [("bilm_skip", "expected_stateless.hdf5"), ("manylangs", "expected_layers.hdf5")]
)
def test_published_vectors(golden: Path, name: str, file: str) -> None:
    sentences = short_ones(golden / name, 5)
    embedder = ElmoEmbedder.load(golden / name, device=DEVICE, precision="fp32", cuda=AHEAD)
    with h5py.File(golden / name / file) as expected:
        found = embedder.embed_batch(list(sentences.values()))
        assert_close(found, [expected[str(key)][()] for key in sentences])


def test_published_vectors_without_skip_connections(golden: Path) -> None:
    """A beginning has the forward vectors of the whole, an end the backward ones, and both are soon computed."""
    sentence = json.loads((golden / "bilm_noskip" / "sentences.json").read_text(encoding="utf-8"))[0][0].split()
    embedder = ElmoEmbedder.load(golden / "bilm_noskip", device=DEVICE, precision="fp32", cuda=AHEAD)
    first, last = embedder.embed([sentence[:4], sentence[-4:]], layers="top")
    with h5py.File(golden / "bilm_noskip" / "lm_embeddings_0.hdf5") as file:
        forward, backward = file["0"][()]
    assert_close([first[:, :16], last[:, 16:]], [forward[:4], backward[-4:]])


@pytest.mark.skipif(DEVICE != "cuda", reason="programs of two launches side by side, which a card alone has")
def test_embedders_side_by_side_have_the_vectors_they_have_alone() -> None:
    """Programs whose splits wait for each other, of two launches at once: neither keeps the other's from running."""
    model = preset_model("medium", 0)
    embedders = [ElmoEmbedder(model, device="cuda", precision="bf16", cuda=cuda) for cuda in (CudaSettings(), AHEAD)]
    batches = [[["the", "cat", "sat", "é"][: 1 + k % 4] for k in range(n)] + [["cat"] * 30] * 3 for n in (1, 40, 300)]

    def bits(embedder: ElmoEmbedder) -> list[bytes]:
        return [np.concatenate(list(embedder.embed(batch)), axis=1).tobytes() for batch in batches]

    alone = [bits(embedder) for embedder in embedders]
    assert [bits(embedder) for embedder in embedders] == alone
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda k: [bits(embedders[k]) == alone[k] for _ in range(100)], range(2)):
            assert all(found)
