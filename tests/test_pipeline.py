"""Every runtime against the reference, and the invariances of the schedule."""

import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_models import BILM, MODELS, SENTENCES, random_model

from flashelmo.engine.cpu import bilstm, word_vectors
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model import initialize
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Layers, Output, pool_tokens, select_layers
from flashelmo.engine.precision import PrecisionName, tolerance
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.settings import RuntimeName
from flashelmo.engine.text.windows import Window

Vectors = list[npt.NDArray[np.float32]]
SMALL = random_model(replace(BILM, cell_size=256, projection_size=64))


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> ElmoModel:
    return MODELS[request.param]


@pytest.fixture(params=["ort", "openvino"])
def runtime(request: pytest.FixtureRequest) -> RuntimeName:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    name: RuntimeName = request.param
    return name


def assert_close(found: Vectors, expected: Vectors, bound: float) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        assert np.abs(a - b).max(initial=0) < bound


def relative_errors(found: Vectors, expected: Vectors) -> npt.NDArray[np.float64]:
    """||a - b|| / ||b|| of each layer."""
    a, b = np.concatenate(found, axis=1), np.concatenate(expected, axis=1)
    return np.linalg.norm(a - b, axis=(1, 2)) / np.linalg.norm(b, axis=(1, 2))


@pytest.mark.usefixtures("kept_runtimes")
@pytest.mark.parametrize("keep", [False, True])
def test_stateless_equals_the_reference(model: ElmoModel, runtime: RuntimeName, keep: bool) -> None:
    expected = ReferenceRuntime(model).embed_batch(SENTENCES, keep)
    embedder = ElmoEmbedder(model, runtime=runtime, keep_sentence_boundaries=keep)
    assert_close(embedder.embed_batch(SENTENCES), expected, tolerance("fp32"))


@pytest.mark.usefixtures("kept_runtimes")
@pytest.mark.parametrize("keep", [False, True])
def test_stateful_equals_the_reference(model: ElmoModel, runtime: RuntimeName, keep: bool) -> None:
    """Batches of 2: rows that grow, shrink and hold empty sentences."""
    sentences = SENTENCES + SENTENCES[::-1]
    reference = ReferenceRuntime(model, stateful=True)
    batches = (sentences[start : start + 2] for start in range(0, len(sentences), 2))
    expected = [vectors for batch in batches for vectors in reference.embed_batch(batch, keep)]
    embedder = ElmoEmbedder(model, runtime=runtime, stateful=True, batch_size=2, keep_sentence_boundaries=keep)
    assert_close(list(embedder.embed_sentences(sentences)), expected, tolerance("fp32"))


@pytest.mark.parametrize("runtime", ["ort", "reference"])
def test_a_stateful_batch_is_one_batch(runtime: RuntimeName) -> None:
    """However many sentences it has: every row goes on from its own state, and none from another's."""
    embedder = ElmoEmbedder(MODELS["skip"], runtime=runtime, stateful=True, batch_size=2)
    rows = [ElmoEmbedder(MODELS["skip"], stateful=True) for _ in SENTENCES]
    for batch in (SENTENCES, SENTENCES[::-1]):
        expected = [row.embed_batch([sentence, []])[0] for row, sentence in zip(rows, batch, strict=True)]
        assert_close(embedder.embed_batch(batch), expected, tolerance("fp32"))
    embedder.reset_state()
    first = list(embedder.embed_sentences(SENTENCES, batch_size=5))
    alone = [ElmoEmbedder(MODELS["skip"]).embed_sentence(sentence) for sentence in SENTENCES]
    assert_close(first, alone, tolerance("fp32"))


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_an_empty_sentence_by_itself_leaves_the_state(precision: PrecisionName) -> None:
    """As AllenNLP's embed_batch does; beside other sentences its row goes through the boundaries."""
    embedder, other = (ElmoEmbedder(MODELS["skip"], precision=precision, stateful=True) for _ in range(2))
    first = embedder.embed_sentence(["cat"])
    other.embed_sentence(["cat"])
    empty = [*embedder.embed_batch([[]]), embedder.embed_sentence(" "), *embedder.embed_sentences([[]])]
    assert [(vectors.shape, vectors.dtype) for vectors in empty] == [((3, 0, 8), first.dtype)] * 3
    expected = other.embed_sentence(["cat"])
    assert np.array_equal(embedder.embed_sentence(["cat"]), expected)
    embedder.reset_state()
    embedder.embed_sentence(["cat"])
    assert embedder.embed_batch([[], []])[0].shape == (3, 0, 8)
    assert np.abs(embedder.embed_sentence(["cat"]) - expected).max() > 1e-4
    assert embedder.embed_batch([]) == []


def test_a_state_survives_smaller_batches_and_is_reset() -> None:
    model = MODELS["skip"]
    reference = ReferenceRuntime(model, stateful=True)
    embedder = ElmoEmbedder(model, stateful=True, batch_size=5)
    for batch in (SENTENCES[:1], SENTENCES[:3], SENTENCES[:1], SENTENCES):
        assert_close(embedder.embed_batch(batch), reference.embed_batch(batch), tolerance("fp32"))
    first = ElmoEmbedder(model, stateful=True).embed_sentence(SENTENCES[0])
    assert np.abs(first - embedder.embed_sentence(SENTENCES[0])).max() > 1e-3
    embedder.reset_state()
    assert_close([embedder.embed_sentence(SENTENCES[0])], [first], tolerance("fp32"))


def test_int8_stays_near(sentences: list[list[str]]) -> None:
    """At a published size: in the tiny models above a single weight's rounding is a large part of a sum."""
    model = initialize.random_model("small", seed=1)
    expected = ElmoEmbedder(model).embed_batch(sentences)
    errors = relative_errors(ElmoEmbedder(model, precision="int8").embed_batch(sentences), expected)
    assert errors[0] < tolerance("bf16")  # characters are in float32, or in 16 bits
    assert 0 < errors[1:].max() < tolerance("int8")


def test_float64_is_the_references() -> None:
    model = MODELS["skip"]
    exact = ElmoEmbedder(model, precision="fp64").embed_batch(SENTENCES)
    assert all(vectors.dtype == np.float64 for vectors in exact)
    assert_close(ElmoEmbedder(model).embed_batch(SENTENCES), exact, tolerance("fp32"))  # type: ignore[arg-type]


@pytest.fixture
def sentences(text: list[list[str]]) -> list[list[str]]:
    """Real text whose beginnings and ends repeat."""
    return [*text[:40], [], ["And"], *text[:5], text[0][:4], text[1][3:]]


@pytest.fixture
def expected(sentences: list[list[str]]) -> Vectors:
    return ReferenceRuntime(MODELS["skip"]).embed_batch(sentences)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"share": False},
        {"cache_bytes": 0},
        {"cache_bytes": 64},  # four vectors
        {"window_tokens": 1},
        {"window_tokens": 100},
        {"threads": 1},
        {"runtime": "reference", "batch_size": 7},
    ],
    ids=str,
)
def test_settings_do_not_change_the_vectors(
    settings: dict[str, object], sentences: list[list[str]], expected: Vectors
) -> None:
    embedder = ElmoEmbedder(MODELS["skip"], **settings)  # type: ignore[arg-type]
    assert_close(embedder.embed_batch(sentences), expected, tolerance("fp32"))
    assert_close(embedder.embed_batch(sentences), expected, tolerance("fp32"))  # with whatever the cache holds now


@pytest.mark.parametrize("n", [4, 1500])
def test_a_full_cache_forgets_the_word_that_was_not_used_for_longest(n: int) -> None:
    embedder, computed = ElmoEmbedder(MODELS["skip"], cache_bytes=16 * n), []
    words = [[f"word{k}"] for k in range(n - 2)]  # and both boundaries
    for batch in (words, words, [["other"]], words[1:], words[:1]):
        before = embedder.statistics.words_computed
        embedder.embed_batch(batch)
        computed.append(embedder.statistics.words_computed - before)
    assert computed == [n, 0, 1, 0, 1]


def test_order_and_company_do_not_change_the_vectors(sentences: list[list[str]], expected: Vectors) -> None:
    embedder = ElmoEmbedder(MODELS["skip"])
    assert_close(embedder.embed_batch(sentences[::-1])[::-1], expected, tolerance("fp32"))
    assert_close([embedder.embed_sentence(s) for s in sentences], expected, tolerance("fp32"))


@pytest.mark.parametrize(("step_rows", "table_bytes"), [(1, 0), (3, 0), (3, 1 << 20), (256, 0)])
def test_how_rows_are_cut_into_steps_does_not_change_the_vectors(
    step_rows: int,
    table_bytes: int,
    sentences: list[list[str]],
    expected: Vectors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bilstm, "STEP_ROWS", step_rows)
    monkeypatch.setattr(bilstm, "WORD_TABLE_BYTES", table_bytes)
    assert_close(ElmoEmbedder(MODELS["skip"]).embed_batch(sentences), expected, tolerance("fp32"))


@pytest.mark.parametrize(
    ("settings", "step_rows"),
    [({}, 1), ({}, 3), ({"share": False}, 64), ({"cache_bytes": 0, "window_tokens": 1}, 512), ({"threads": 1}, 512)],
    ids=str,
)
def test_in_8_bits_a_sentence_has_its_own_bits(
    settings: dict[str, Any], step_rows: int, sentences: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is beside it, and however rows are cut: its inputs are quantized row by row."""
    expected = ElmoEmbedder(SMALL, precision="int8", threads=2).embed_batch(sentences)
    monkeypatch.setattr(bilstm, "STEP_ROWS", step_rows)
    embedder = ElmoEmbedder(SMALL, precision="int8", **settings)
    for found in (embedder.embed_batch(sentences[::-1])[::-1], [embedder.embed_sentence(each) for each in sentences]):
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_runs_are_bit_identical(precision: str, sentences: list[list[str]]) -> None:
    def run() -> Vectors:
        return ElmoEmbedder(MODELS["skip"], precision=precision).embed_batch(sentences)  # type: ignore[arg-type]

    for a, b in zip(run(), run(), strict=True):
        assert np.array_equal(a, b)


def test_statistics_count_what_sharing_saved() -> None:
    embedder = ElmoEmbedder(MODELS["skip"])
    embedder.embed_batch([["a", "b"], ["a", "b"], ["a", "c"], []])
    assert (embedder.statistics.sentences, embedder.statistics.tokens) == (4, 6)
    assert embedder.statistics.words_computed == 5  # a, b, c and the two boundaries
    # forward: <S>, a, b, c; backward: </S>, b a, c a
    assert embedder.statistics.steps == 4 + 5
    assert embedder.statistics.steps_saved == 2 * 3 * 3 - 9
    embedder.embed_batch([["a", "b"]])
    assert embedder.statistics.words_computed == 5
    embedder = ElmoEmbedder(MODELS["skip"], share=False)
    embedder.embed_batch([["a", "b"], ["a", "b"], ["a", "c"], []])
    assert (embedder.statistics.steps, embedder.statistics.steps_saved) == (2 * 3 * 3, 0)


def test_progress_ends_at_the_whole(sentences: list[list[str]]) -> None:
    shares: list[float] = []
    next(ElmoEmbedder(MODELS["skip"]).embed_windows([Window.from_sentences(sentences)], shares.append))
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_progress_counts_new_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_vectors, "GROUP_POSITIONS", 8)
    embedder = ElmoEmbedder(MODELS["skip"], threads=1)
    windows = [Window.from_sentences([[f"w{i}" for i in range(20)]])] * 2
    shares: list[float] = []
    for _, sentences in embedder.embed_windows(windows[:1], shares.append):
        list(sentences)
    n_words, n_steps = embedder.statistics.words_computed, 2 * embedder.statistics.steps
    again: list[float] = []
    for _, sentences in embedder.embed_windows(windows[1:], again.append):
        list(sentences)
    words, steps = shares[: -len(again)], shares[-len(again) :]
    assert n_words == 22 and again == sorted(again) and again[-1] == 1.0
    assert len(words) > 5 and words == sorted(words)
    assert words[0] < 6 / (n_words + n_steps) and words[-1] == n_words / (n_words + n_steps)
    np.testing.assert_allclose(steps, [(n_words + share * n_steps) / (n_words + n_steps) for share in again])


@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupted_window_leaves_the_embedder_whole(
    threads: int, sentences: list[list[str]], expected: Vectors
) -> None:
    """Ctrl-C or an error in a progress bar: both directions stop, and the next call is not disturbed."""
    embedder = ElmoEmbedder(MODELS["skip"], threads=threads)
    shares: list[float] = []

    def interrupt(share: float) -> None:
        shares.append(share)
        if len(shares) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(embedder.embed_windows([Window.from_sentences(sentences)], interrupt))
    assert max(shares) < 1
    assert_close(embedder.embed_batch(sentences), expected, tolerance("fp32"))


@pytest.mark.parametrize("kind", [ValueError, InterruptedError])
@pytest.mark.parametrize("backward", [True, False])
def test_what_either_direction_raises_comes_without_how_the_other_was_stopped(
    kind: type[Exception], backward: bool, sentences: list[list[str]]
) -> None:
    error = kind("of the progress bar")
    caller = threading.current_thread()
    embedder = ElmoEmbedder(MODELS["skip"], threads=2)
    embedder.embed_batch(sentences)  # no words are left to be computed

    def fail(share: float) -> None:
        if (threading.current_thread() is not caller) is backward:
            raise error
        time.sleep(0.02)  # the other comes first

    with pytest.raises(kind) as caught:
        next(embedder.embed_windows([Window.from_sentences(sentences)], fail))
    assert caught.value is error and caught.value.__context__ is None


def test_embedding_streams() -> None:
    """Vectors come out while input is still being read, and nothing is read before they are asked for."""
    read = 0

    def lines() -> Iterator[list[str]]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield ["a", "b", "c"]

    stream = ElmoEmbedder(MODELS["skip"], window_tokens=30).embed(lines(), layers="top")
    assert read == 0
    next(stream)
    assert read <= 12


@pytest.fixture(
    scope="module",
    params=[
        {"model": "skip"},
        {"model": "three layers, no highway", "keep_sentence_boundaries": True, "window_tokens": 4},
        {"model": "manylangs", "share": False},
        {"model": "skip", "stateful": True, "batch_size": 2},
        {"model": "skip", "runtime": "reference"},
        {"model": "no skip", "runtime": "reference", "precision": "fp64", "keep_sentence_boundaries": True},
    ],
    ids=str,
)
def embedder(request: pytest.FixtureRequest) -> ElmoEmbedder:
    settings = dict(request.param)
    return ElmoEmbedder(MODELS[settings.pop("model")], **settings)


@pytest.mark.parametrize("as_numpy", [True, False])
@pytest.mark.parametrize("pool", [None, "mean", "max"])
@pytest.mark.parametrize("layers", ["all", "top", "average", 0, 1, (1, 0)])
def test_what_is_asked_for_is_what_would_be_chosen_of_all_layers(
    embedder: ElmoEmbedder, layers: Layers, pool: str | None, as_numpy: bool
) -> None:
    """To the last bit, in the same number type, and without holding on to more."""
    embedder.reset_state()
    everything = list(embedder.embed(SENTENCES))
    embedder.reset_state()
    found = list(embedder.embed(SENTENCES, layers=layers, pool=pool, convert_to_numpy=as_numpy))
    assert len(found) == len(SENTENCES)
    for result, vectors in zip(found, everything, strict=True):
        expected = select_layers(vectors, layers)
        expected = pool_tokens(expected, pool) if pool else expected
        assert type(result) is (np.ndarray if as_numpy else torch.Tensor)
        array = np.asarray(result)
        assert array.dtype == vectors.dtype and array.shape == expected.shape
        assert np.array_equal(array, expected)


@pytest.mark.parametrize("pool", [None, "mean", "max"])
def test_a_mix_is_the_sum_of_the_layers_by_its_coefficients(embedder: ElmoEmbedder, pool: str | None) -> None:
    embedder.reset_state()
    everything = list(embedder.embed(SENTENCES))
    embedder.reset_state()
    mix = [0.5, -1.0, 2.0, 0.25][: embedder.config.n_layers + 1]
    for result, vectors in zip(embedder.embed(SENTENCES, mix=mix, pool=pool), everything, strict=True):
        expected = sum(factor * layer for factor, layer in zip(mix, vectors.astype(np.float64), strict=True))
        np.testing.assert_allclose(result, pool_tokens(expected, pool) if pool else expected, atol=1e-6)


@pytest.mark.parametrize("as_numpy", [True, False])
@pytest.mark.parametrize("runtime", ["ort", "reference"])
@pytest.mark.parametrize("output", [{"layers": "all"}, {"layers": "average"}, {"mix": [2e38] * 3}], ids=str)
def test_vectors_that_overflow_are_refused_by_their_sentence(
    output: dict[str, Any], runtime: RuntimeName, as_numpy: bool
) -> None:
    """Of finite weights, or of finite vectors by a mix; those of the sentences before come."""
    model = MODELS["manylangs, words alone"]
    if "layers" in output:
        weights = model.weights
        assert model.lexicon is not None and weights.word_embedding is not None and weights.projection is not None
        embedding = weights.word_embedding.copy()
        embedding[model.lexicon.words["the"]] = 3e38 * np.sign(weights.projection.weight[:, 0])
        model = replace(model, weights=replace(weights, word_embedding=embedding))
    embedder = ElmoEmbedder(model, runtime=runtime, window_tokens=2, batch_size=2)
    stream = embedder.embed([[], [], [], ["the", "cat"], ["sat"]], convert_to_numpy=as_numpy, **output)
    for _ in range(3):
        next(stream)
    with pytest.raises(
        FlashElmoError, match=r"^sentence 3 \('the cat'\): expected finite vectors, found infinity or NaN"
    ):
        next(stream)


@pytest.mark.parametrize("pool", [None, "mean", "max"])
@pytest.mark.parametrize("layers", ["all", "top", "average", 0])
def test_a_result_holds_no_memory_beyond_its_own(layers: str | int, pool: str | None) -> None:
    (result,) = ElmoEmbedder(MODELS["skip"]).embed([SENTENCES[3]], layers=layers, pool=pool)
    assert result.base is None or result.base.nbytes == result.nbytes


def test_one_layer_of_a_long_sentence_takes_no_room_for_all() -> None:
    """Beyond the hidden states, which are there for all layers, the result and half a layer."""
    embedder = ElmoEmbedder(MODELS["skip"])
    ((_, results),) = list(
        embedder.embed_windows([Window.from_sentences([["cat"] * 20_000])], output=Output("average"))
    )
    tracemalloc.start()
    try:
        (result,) = results
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.nbytes <= peak < 2 * result.nbytes


def test_streams_may_be_read_in_turns_and_from_two_threads(sentences: list[list[str]], expected: Vectors) -> None:
    """Each asks one embedder for something else."""
    embedder = ElmoEmbedder(MODELS["skip"], window_tokens=60)
    outputs = [Output("top"), Output("average", pool="mean")]
    wanted = [[output.choose(vectors) for vectors in expected] for output in outputs]
    streams = [embedder.embed(sentences, layers=output.layers, pool=output.pool) for output in outputs]
    in_turns = list(zip(*streams, strict=True))
    for k, right in enumerate(wanted):
        assert_close([results[k] for results in in_turns], right, tolerance("fp32"))
    windows = [Window.from_sentences(sentences[i : i + 4]) for i in range(0, len(sentences), 4)]
    both = threading.Barrier(2, timeout=60)

    def read(output: Output) -> Vectors:
        found: Vectors = []
        for window, results in embedder.embed_windows(windows, output=output):
            both.wait()  # both have a window computed whose results are not gathered yet
            found += results
            assert len(found) <= len(sentences) and len(window) <= 4
        return found

    with ThreadPoolExecutor(2) as pool:
        for found, right in zip(pool.map(read, outputs), wanted, strict=True):
            assert_close(found, right, tolerance("fp32"))
    assert embedder.statistics.sentences == 4 * len(sentences)


@pytest.mark.parametrize("runtime", ["ort", "reference"])
def test_a_window_comes_with_its_own_sentences(runtime: RuntimeName) -> None:
    embedder = ElmoEmbedder(MODELS["skip"], runtime=runtime)
    parts: list[list[list[str]]] = [SENTENCES[:2], [], [[]], SENTENCES[2:]]
    windows = [Window.from_sentences(part) for part in parts]
    shares: list[float] = []
    found = [(window, list(results)) for window, results in embedder.embed_windows(windows, shares.append)]
    assert [id(window) for window, _ in found] == [id(window) for window in windows]
    assert [len(results) for _, results in found] == [2, 0, 1, 3]
    expected = ReferenceRuntime(MODELS["skip"]).embed_batch(SENTENCES)
    assert_close([*found[0][1], *found[3][1]], expected, tolerance("fp32"))
    assert shares and max(shares) == 1.0
