"""Windows that do not fit the device's memory are halved; what cannot be halved is an error, and nothing is lost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from cuda_runs import (
    AHEAD,
    DEVICE,
    ONE_LAYER,
    TORCH_DEVICE,
    Compute,
    assert_close,
    driver_out_of_memory,
    on_cuda,
    on_host,
    out_of_memory,
    pipeline_of,
)
from tiny_models import BILM

from flashelmo.engine.cuda import executor, layout, memory, pipeline
from flashelmo.engine.cuda.layout import Sizes
from flashelmo.engine.cuda.model import WordVectorTable
from flashelmo.engine.cuda.pipeline import make_cuda_pipeline
from flashelmo.engine.cuda.transfer import Transfers
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.initialize import preset_config
from flashelmo.engine.output import Output
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.settings import CudaSettings, Settings
from flashelmo.engine.text.windows import Window
from flashelmo.kernels.pytorch import is_out_of_memory

SENTENCES = [["the", "cat"], ["sat"], [], ["é", "the"], ["cat"], ["the", "sat"]]  # 8 tokens


@pytest.fixture
def expected() -> list[Any]:
    return ReferenceRuntime(ONE_LAYER).embed_batch(SENTENCES)


def install(patch: pytest.MonkeyPatch, most_tokens: int, error: Callable[[], Exception] = out_of_memory) -> Compute:
    """Let windows of more tokens find the memory used up."""
    compute = Compute(lambda sizes: sizes.n_tokens > most_tokens, error)
    patch.setattr(executor, "compute", compute)
    return compute


def n_tokens(computed: list[Sizes]) -> list[int]:
    return [sizes.n_tokens for sizes in computed]


@pytest.mark.parametrize("error", [out_of_memory, driver_out_of_memory])
def test_a_window_is_halved_until_it_fits(
    error: Callable[[], Exception], expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = install(monkeypatch, 2, error)
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD)
    window = Window.from_sentences(SENTENCES)
    ((given, results),) = embedder.embed_windows([window])
    assert_close(list(results), expected)
    assert given is window
    assert n_tokens(compute.failed) == [8, 3]  # 5 tokens are more than half of 8
    assert n_tokens(compute.computed) == [2, 1, 2, 1, 2]  # the empty sentence by itself is no work
    assert pipeline_of(embedder).max_tokens == 1


def test_later_windows_are_halved_before_they_fail(expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compute = install(monkeypatch, 4)
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD)
    for _ in range(2):
        assert_close(embedder.embed_batch(SENTENCES), expected)
    assert n_tokens(compute.failed) == [8]
    assert pipeline_of(embedder).max_tokens == 4
    assert sum(n_tokens(compute.computed)) == 16
    assert (embedder.statistics.sentences, embedder.statistics.tokens) == (12, 16)


def test_buckets_are_halved_and_graphs_make_room(expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "LEAST_NODES", 4)
    embedder = on_cuda(ONE_LAYER)
    graphs = pipeline_of(embedder)._executor._graphs
    for _ in range(2):
        embedder.embed_batch(SENTENCES[:1])
    (before,) = graphs._graphs.values()
    compute = install(monkeypatch, 6)
    assert_close(embedder.embed_batch(SENTENCES), expected)
    assert n_tokens(compute.failed) == [8]
    assert before not in graphs._graphs.values()


@pytest.mark.parametrize("settings", [CudaSettings(), AHEAD], ids=["graphs", "ahead"])
def test_stateful_halves_keep_their_rows(settings: CudaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "LEAST_NODES", 4)
    other = ElmoEmbedder(ONE_LAYER, device="cpu", stateful=True)
    embedder = on_cuda(ONE_LAYER, stateful=True, cuda=settings)
    assert_close(embedder.embed_batch(SENTENCES), other.embed_batch(SENTENCES))
    compute = install(monkeypatch, 12 if settings.graphs else 4)  # 20 nodes of 8 tokens make a bucket
    for batch in (SENTENCES[::-1], SENTENCES[:4]):
        assert_close(embedder.embed_batch(batch), other.embed_batch(batch))
    # On a card a capture fails before the launches do; the interpreter captures nothing.
    tries = 2 if settings.graphs and DEVICE == "cuda" else 1
    assert n_tokens(compute.failed) == [20 if settings.graphs else 8] * tries


@pytest.mark.parametrize("output", [Output("top"), Output(pool="mean")], ids=str)
def test_halves_of_every_output(output: Output, expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compute = install(monkeypatch, 4)
    for as_numpy in (True, False):
        embedder = on_cuda(ONE_LAYER, cuda=AHEAD)
        found = embedder.embed(SENTENCES, layers=output.layers, pool=output.pool, convert_to_numpy=as_numpy)
        assert_close(on_host(found), [output.choose(vectors) for vectors in expected])
    assert len(compute.failed) == 2


def test_a_sentence_that_does_not_fit_is_named_with_sizes(expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD)
    monkeypatch.setattr(memory, "free_memory", lambda device: "0.25 GiB")
    with monkeypatch.context() as patch:
        compute = install(patch, 4)
        stream = embedder.embed([*SENTENCES, ["cat", "sat"] * 3])
        with pytest.raises(FlashElmoError) as error:
            list(stream)
    assert n_tokens(compute.failed) == [14, 6, 6]
    assert str(error.value) == (
        f"sentence of 6 tokens: needs about 0.00 GiB on {TORCH_DEVICE}, where 0.25 GiB are free"
    )
    assert error.value.__cause__ is None and error.value.__suppress_context__ is False
    assert_close(embedder.embed_batch(SENTENCES), expected)
    assert len(embedder.embed_sentence(["cat", "sat"] * 3)[0]) == 6


def test_other_errors_are_not_swallowed(expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD)
    with monkeypatch.context() as patch:
        compute = install(patch, 3, lambda: RuntimeError("CUDA error: an illegal memory access was encountered"))
        with pytest.raises(RuntimeError, match="illegal memory access"):
            embedder.embed_batch(SENTENCES)
        assert n_tokens(compute.failed) == [8]
    assert pipeline_of(embedder).max_tokens > 8
    assert_close(embedder.embed_batch(SENTENCES), expected)


def test_memory_that_is_lacking_for_word_vectors(expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Some words of the window have their rows when it fails; they keep them, and the others get theirs later."""
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD)
    monkeypatch.setattr("flashelmo.engine.cuda.model.WORDS_AT_ONCE", 2)
    compute, calls = WordVectorTable._compute, []

    def fail(self: WordVectorTable, words: Any, rows: Any) -> None:
        calls.append(words.to_pylist())
        if len(calls) == 2:
            raise out_of_memory()
        compute(self, words, rows)

    monkeypatch.setattr(WordVectorTable, "_compute", fail)
    for _ in range(2):
        assert_close(embedder.embed_batch(SENTENCES), expected)
    failed = calls.pop(1)
    assert len(failed) == 2 and pipeline_of(embedder).max_tokens == 4
    words = [word for group in calls for word in group]
    assert sorted(words) == sorted({*words, *failed}) == sorted(["the", "cat", "sat", "é", "<S>", "</S>"])


def test_memory_that_is_lacking_for_a_larger_table(expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD, cache_bytes=5 * 16)  # SENTENCES need six rows
    make = WordVectorTable._make

    def fail(self: WordVectorTable, n_rows: int) -> None:
        if n_rows > 5:
            raise out_of_memory()
        make(self, n_rows)

    monkeypatch.setattr(WordVectorTable, "_make", fail)
    assert_close(embedder.embed_batch(SENTENCES), expected)
    assert pipeline_of(embedder).max_tokens == 4


def test_a_window_whose_results_find_no_memory_is_not_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows have moved on by then: a second run would start from the later state."""
    other = ElmoEmbedder(ONE_LAYER, device="cpu", stateful=True)
    embedder = on_cuda(ONE_LAYER, stateful=True, cuda=AHEAD)

    def fail(*arguments: Any) -> None:
        raise driver_out_of_memory()

    with monkeypatch.context() as patch:
        patch.setattr(Transfers, "download", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            embedder.embed_batch(SENTENCES)
    other.embed_batch(SENTENCES)
    assert_close(embedder.embed_batch(SENTENCES), other.embed_batch(SENTENCES))
    assert embedder.statistics == other.statistics


def test_a_model_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (out_of_memory, driver_out_of_memory):

        def fail(*arguments: Any, error: Callable[[], Exception] = error, **options: Any) -> None:
            raise error()

        monkeypatch.setattr(pipeline, "DeviceModel", fail)
        with pytest.raises(FlashElmoError, match=rf"^device '{DEVICE}': expected memory for a model of 0\.00 GiB"):
            make_cuda_pipeline(DEVICE, model=ONE_LAYER, precision="fp32", settings=Settings())

    def fail_otherwise(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("CUDA error: an illegal address")

    monkeypatch.setattr(pipeline, "DeviceModel", fail_otherwise)
    with pytest.raises(RuntimeError, match="illegal address"):
        make_cuda_pipeline(DEVICE, model=ONE_LAYER, precision="fp32", settings=Settings())


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (out_of_memory(), True),
        (driver_out_of_memory(), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA driver error: Out Of Memory"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (MemoryError("out of memory"), False),
        (ValueError("out of memory"), False),
    ],
    ids=repr,
)
def test_what_is_out_of_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one


def test_a_window_is_as_large_as_the_free_memory_allows() -> None:
    config = preset_config("original")
    sizes = [memory.tokens_that_fit(config, 2, gib << 30) for gib in (0, 1, 2, 4, 8, 16, 24, 80, 1000)]
    assert sizes == sorted(sizes)
    assert sizes[0] == memory.LEAST_WINDOW_TOKENS and sizes[5:7] == [memory.MAX_WINDOW_TOKENS] * 2
    assert sizes[6] < sizes[7] < sizes[8] == memory.LARGEST_WINDOW_TOKENS
    assert 1.8 < sizes[4] / sizes[3] < 2.6
    assert memory.tokens_that_fit(config, 4, 8 << 30) < sizes[4] < memory.tokens_that_fit(BILM, 2, 8 << 30)
    assert memory.window_tokens(config, 2, torch.device("cpu")) == memory.MAX_WINDOW_TOKENS


@pytest.mark.parametrize("preset", ["small", "original"])
@pytest.mark.parametrize("gib", [2, 8, 40, 140])
def test_windows_that_fit_leave_room_by_the_estimate_of_their_peak(preset: str, gib: int) -> None:
    """A window of sentences of six tokens, all layers asked for, and two whose results are on their way."""
    config = preset_config(preset)
    n = memory.tokens_that_fit(config, 2, gib << 30)
    rows = n // memory.TOKENS_PER_ROW
    depths = (0, *range(1, 1 + 7 * rows, rows))
    sizes = Sizes((depths, depths), n_roots=1, n_nodes=1 + n, n_tokens=n)
    results = 4 * n * (config.n_layers + 1) * 2 * config.projection_size
    needed = memory.peak_bytes(config, 2, sizes, Output()) + (memory.RESULTS_HELD - 1) * results
    assert needed < gib << 30
    assert needed > 0.3 * (gib << 30) or n >= memory.MAX_WINDOW_TOKENS
    assert needed < 1.1 * memory.ROOM_FRACTION * (gib << 30) or n <= memory.MAX_WINDOW_TOKENS
    assert memory.peak_bytes(config, 2, sizes, Output("top")) < memory.peak_bytes(config, 2, sizes, Output())


@pytest.mark.parametrize(("limit", "expected"), [(None, memory.MAX_WINDOW_TOKENS), (7, 7)])
def test_window_limits_are_those_of_the_device(
    limit: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "window_tokens", lambda config, value_bytes, device: memory.MAX_WINDOW_TOKENS)
    embedder = on_cuda(ONE_LAYER, window_tokens=limit)
    assert embedder.window_limits == (expected, expected)
    assert pipeline_of(embedder).max_tokens == expected
    stateful = on_cuda(ONE_LAYER, window_tokens=limit, stateful=True, batch_size=3)
    assert stateful.window_limits[0] == 3 and pipeline_of(stateful).max_tokens == expected


def test_windows_grow_again_once_the_shortage_has_passed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pipeline, "FITS_BEFORE_GROWING", 8)
    embedder = on_cuda(ONE_LAYER, window_tokens=16, cuda=CudaSettings(graphs=False))
    real = executor.compute

    def short(model: Any, vectors: Any, ints: Any, sizes: Sizes, *arguments: Any, **options: Any) -> Any:
        if sizes.n_tokens > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, vectors, ints, sizes, *arguments, **options)

    monkeypatch.setattr(executor, "compute", short)
    sentences = [["cat"] * n for n in (3, 1, 2, 2)]
    with caplog.at_level("WARNING", "flashelmo"):
        embedder.embed_batch(sentences)
        embedder.embed_batch(sentences)
    assert [record.getMessage() for record in caplog.records] == [
        f"device {TORCH_DEVICE}: out of memory, windows of 8 tokens are halved"
    ]
    assert pipeline_of(embedder).max_tokens < 8
    monkeypatch.setattr(executor, "compute", real)
    for _ in range(12):
        embedder.embed_sentence(["cat"])
    assert pipeline_of(embedder).max_tokens == 16


def test_boundaries_that_are_kept_do_not_halve_a_full_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window's bound counts the words of its text."""
    monkeypatch.setattr(Window, "halves", lambda self: pytest.fail("halved"))
    embedder = on_cuda(ONE_LAYER, window_tokens=4, keep_sentence_boundaries=True)
    assert [len(vectors[0]) for vectors in embedder.embed_batch([["the"], ["cat"], ["sat"], ["the"]])] == [3] * 4
