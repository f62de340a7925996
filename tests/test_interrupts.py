"""Whatever is raised at whatever moment of a call, the next call is right: Ctrl-C, a callback's error, a full stop."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_pipelines import cpu_pipeline
from interrupts import count_moments, interrupt
from tiny_models import MODELS

from flashelmo.engine.cpu.lstm_c import why_not
from flashelmo.engine.devices.pool import DevicePool
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import WindowPipeline
from flashelmo.engine.precision import tolerance
from flashelmo.engine.settings import RuntimeName
from flashelmo.engine.text.windows import Draft, Window
from flashelmo.export.build import build_onnx
from flashelmo.export.onnx_elmo import OnnxElmo

Sentences = list[list[str]]

# Ctrl-C is tried so often for each kind of embedder; 400 and more by FLASHELMO_INTERRUPTS=400.
N_INTERRUPTS = int(os.environ.get("FLASHELMO_INTERRUPTS", 10))
CACHED_WORDS = 12
SECONDS = 30.0  # after which a call waits for itself
ROW_BYTES = 16  # of the tiny models' word vectors

# Where it lands in freeing an object, Python reports it and goes on.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def some_sentences(rng: np.random.Generator, n: int) -> Sentences:
    """Sentences of 1 to 6 of 30 words: more than are cached."""
    return [[f"word{word}" for word in rng.integers(0, 30, rng.integers(1, 7))] for _ in range(n)]


def are_close(found: list[Any], expected: list[Any]) -> bool:
    assert [each.shape for each in found] == [each.shape for each in expected]
    return all(np.abs(a - b).max(initial=0) < tolerance("fp32") for a, b in zip(found, expected, strict=True))


def make(runtime: RuntimeName, threads: int = 1, **settings: Any) -> ElmoEmbedder:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if runtime == "avx512":
        if why := why_not(8):
            pytest.skip(why)
        settings["precision"] = "int8"
    return ElmoEmbedder(
        MODELS["skip"], runtime=runtime, threads=threads, cache_bytes=CACHED_WORDS * ROW_BYTES, **settings
    )


def whole(embedder: ElmoEmbedder, sentences: Sentences) -> None:
    embedder.embed_batch(sentences)


def stream(embedder: ElmoEmbedder, sentences: Sentences) -> None:
    list(embedder.embed(sentences))


def begin(embedder: ElmoEmbedder, sentences: Sentences) -> None:
    next(embedder.embed_sentences(sentences))


@pytest.mark.parametrize(
    ("runtime", "threads", "use"),
    [
        *(("ort", threads, use) for threads in (1, 2) for use in (whole, stream, begin)),
        *(("avx512", threads, whole) for threads in (1, 4)),
        ("openvino", 1, whole),
        *(("reference", 1, use) for use in (whole, begin)),
    ],
)
def test_an_interrupted_call_does_not_change_the_next_ones(
    runtime: RuntimeName, threads: int, use: Callable[[ElmoEmbedder, Sentences], None]
) -> None:
    limit = {"batch_size": 3} if runtime == "reference" else {"window_tokens": 9}
    embedder, undisturbed = make(runtime, threads, **({} if use is whole else limit)), make(runtime, threads)
    rng = np.random.default_rng(0)
    n_moments = count_moments(lambda: use(embedder, some_sentences(rng, 8)))
    for moment in rng.integers(1, n_moments + 1, N_INTERRUPTS).tolist():
        sentences = some_sentences(rng, 8)
        interrupt(lambda sentences=sentences: use(embedder, sentences), moment)  # type: ignore[misc]
        for following in (some_sentences(rng, 8), sentences):
            assert are_close(embedder.embed_batch(following), undisturbed.embed_batch(following)), moment


@pytest.mark.parametrize("use", [stream, begin])
@pytest.mark.parametrize(("runtime", "threads"), [("ort", 1), ("ort", 2), ("reference", 1)])
def test_an_interrupted_batch_moves_the_state_on_as_a_whole_or_not_at_all(
    runtime: RuntimeName, threads: int, use: Callable[[ElmoEmbedder, Sentences], None]
) -> None:
    """Of two batches: each for itself, and none after one that did not."""
    embedder, undisturbed = (make(runtime, threads, stateful=True, batch_size=4) for _ in range(2))
    rng = np.random.default_rng(1)
    first, interrupted, last = (some_sentences(rng, n) for n in (4, 8, 4))

    def last_after(*batches: Sentences) -> list[Any]:
        undisturbed.reset_state()
        for batch in batches:
            undisturbed.embed_batch(batch)
        return undisturbed.embed_batch(last)

    batches = first, interrupted[:4], interrupted[4:]
    right = [last_after(*batches[:n]) for n in ((1, 2, 3) if use is stream else (1, 2))]
    n_moments = count_moments(lambda: use(embedder, interrupted))
    for moment in rng.integers(1, n_moments + 1, N_INTERRUPTS).tolist():
        embedder.reset_state()
        embedder.embed_batch(first)
        interrupt(lambda: use(embedder, interrupted), moment)
        found = embedder.embed_batch(last)
        assert any(are_close(found, expected) for expected in right), moment


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of large random weights, in the export's own check
@pytest.mark.parametrize("stateful", [False, True])
def test_an_interrupted_exported_file(stateful: bool, tmp_path: Path) -> None:
    build_onnx(MODELS["skip"], tmp_path / "model.onnx", stateful=stateful)
    elmo, undisturbed = (OnnxElmo(tmp_path / "model.onnx", threads=1) for _ in range(2))
    rng = np.random.default_rng(3)
    first, interrupted, last = (some_sentences(rng, 4) for _ in range(3))

    def last_after(*batches: Sentences) -> list[Any]:
        undisturbed.reset_state()
        for batch in batches:
            undisturbed.embed(batch)
        return undisturbed.embed(last)

    right = last_after(first), last_after(first, interrupted)
    n_moments = count_moments(lambda: elmo.embed(interrupted))
    for moment in rng.integers(1, n_moments + 1, N_INTERRUPTS).tolist():
        elmo.reset_state()
        elmo.embed(first)
        interrupt(lambda: elmo.embed(interrupted), moment)
        found = elmo.embed(last)
        assert any(are_close(found, expected) for expected in right), moment


def test_interrupted_streams_of_several_devices() -> None:
    """Each has a process of its own: what it goes on with is nobody's, and the next stream gets its own."""
    undisturbed = cpu_pipeline(MODELS["skip"], "cpu")
    rng = np.random.default_rng(4)

    def some_windows() -> list[Window]:
        return [Window.from_sentences(some_sentences(rng, 2)) for _ in range(4)]

    def run(pipeline: WindowPipeline, windows: list[Window]) -> list[Any]:
        stream = pipeline.stream(windows, Output(), lambda fraction: None)
        return [vectors for _, results in stream for vectors in results]

    with closing(DevicePool(partial(cpu_pipeline, MODELS["skip"]), ["one", "two"])) as pool:
        n_moments = count_moments(lambda: run(pool, some_windows()))
        for moment in rng.integers(1, n_moments + 1, N_INTERRUPTS).tolist():
            windows = some_windows()
            interrupt(lambda windows=windows: run(pool, windows), moment)  # type: ignore[misc]
            for following in (some_windows(), windows):
                assert are_close(run(pool, following), run(undisturbed, following)), moment


def stop_reading(sentences: Sentences) -> Iterator[list[str]]:
    yield from sentences
    raise ValueError("the caller's own")


def read_a_broken_input(embedder: ElmoEmbedder, sentences: Sentences) -> None:
    with pytest.raises(ValueError, match="the caller's own"):
        list(embedder.embed(stop_reading(sentences)))


def read_one(embedder: ElmoEmbedder, sentences: Sentences) -> None:
    next(embedder.embed(sentences))


@pytest.mark.parametrize("stop", [read_a_broken_input, read_one])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_stream_that_is_not_read_to_its_end(threads: int, stop: Callable[[ElmoEmbedder, Sentences], None]) -> None:
    embedder, undisturbed = make("ort", threads, window_tokens=9), make("ort", threads)
    rng = np.random.default_rng(2)
    for _ in range(5):
        stop(embedder, some_sentences(rng, 8))
        following = some_sentences(rng, 8)
        assert are_close(embedder.embed_batch(following), undisturbed.embed_batch(following))


def in_time(run: Callable[[], Any]) -> Any:
    """What a call gives that must not wait for itself."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), f"still runs after {SECONDS:.0f} s"
    return found[0]


@pytest.mark.parametrize(("runtime", "stateful"), [("ort", False), ("ort", True), ("reference", False)])
def test_sentences_may_be_made_by_the_embedder_itself(runtime: RuntimeName, stateful: bool) -> None:
    embedder = make(runtime, threads=2, stateful=stateful, batch_size=1)
    inner: list[Any] = []

    def sentences() -> Iterator[list[str]]:
        for sentence in (["the", "cat"], ["sat"], []):
            yield sentence
            embedder.reset_state()
            inner.extend(embedder.embed([["the", "cat"]]))
            embedder.reset_state()

    outer = in_time(lambda: list(embedder.embed(sentences())))
    fresh = make(runtime, stateful=stateful)
    expected: list[Any] = []
    for sentence in (["the", "cat"], ["sat"], []):
        fresh.reset_state()
        expected += fresh.embed([sentence])
    assert are_close(outer, expected) and are_close(inner, [expected[0]] * 3)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_callback_that_embeds_is_refused(threads: int) -> None:
    """In whichever direction's thread it is called; others wait for their turn, and the embedder goes on."""
    embedder = make("ort", threads)
    sentence = ["the", "cat", "sat"]
    expected = list(embedder.embed([sentence]))
    refused = []

    def embed(fraction: float) -> None:
        for call in (lambda: list(embedder.embed(["cat"])), embedder.reset_state):
            with pytest.raises(FlashElmoError, match="called from within its own progress callback"):
                call()
            refused.append(threading.get_ident())

    def run() -> list[Any]:
        window = Draft.of([sentence], "").window()
        return [list(results) for _, results in embedder.embed_windows([window], embed)]

    ((found,),) = in_time(run)
    assert are_close([found], expected) and len(set(refused)) == threads
    assert are_close(list(embedder.embed([sentence])), expected)
