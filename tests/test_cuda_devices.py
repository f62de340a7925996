"""The kernels in several processes: a pool of devices gives what the reference gives, though one of them ends."""

import logging
import os
import pickle
import re
import signal
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton")

from cuda_runs import AHEAD, DEVICE, ONE_LAYER, Vectors, assert_close, of_any_name
from device_pipelines import choosing

from flashelmo.engine import choice
from flashelmo.engine.cuda.pipeline import CudaPipeline
from flashelmo.engine.devices.pool import DevicePool
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.precision import PrecisionName
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.text.schedule import MAX_WINDOW_TOKENS
from flashelmo.engine.text.windows import Window


@pytest.fixture(scope="module")
def pool() -> Iterator[DevicePool]:
    with closing(DevicePool(partial(of_any_name, ONE_LAYER), ["one", "two"])) as pool:
        yield pool


@pytest.fixture(scope="module")
def windows(text: list[list[str]]) -> list[Window]:
    """Real text, cut short; two windows have nothing to compute."""
    cut = [line[: i % 4] for i, line in enumerate(text[:16])]
    parts: list[list[list[str]]] = [*(cut[start : start + 2] for start in range(0, 16, 2)), [], [[]]]
    return [Window.from_sentences(part) for part in parts]


def expected_of(windows: list[Window], output: Output) -> Vectors:
    sentences = [window.tokens(b) for window in windows for b in range(len(window))]
    return [output.choose(vectors) for vectors in ReferenceRuntime(ONE_LAYER).embed_batch(sentences)]


def test_vectors_are_those_of_the_reference(pool: DevicePool, windows: list[Window]) -> None:
    output = Output("average", pool="mean")
    pairs = [(window, list(results)) for window, results in pool.stream(windows, output, lambda share: None)]
    assert [id(window) for window, _ in pairs] == [id(window) for window in windows]
    assert_close([array for _, results in pairs for array in results], expected_of(windows, output))
    assert pool.precision == "fp32"
    assert pool.statistics.sentences == 17
    assert 0 < pool.statistics.words_computed < 2 * pool.statistics.tokens


def test_work_of_a_process_that_is_killed_is_done_again(
    pool: DevicePool, windows: list[Window], caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of the stream, when it holds windows; the pool goes on with the other one."""
    doomed = pool._processes[0]

    def read() -> Iterator[Window]:
        for k, window in enumerate(windows):
            if k == 4:
                os.kill(doomed.pid, signal.SIGKILL)
            yield window

    with caplog.at_level(logging.WARNING, "flashelmo"):
        for source in (read(), iter(windows[:3])):
            pairs = [(window, list(results)) for window, results in pool.stream(source, Output(), lambda share: None)]
            given = [window for window, _ in pairs]
            assert [id(window) for window in given] == [id(window) for window in windows[: len(given)]]
            assert_close([array for _, results in pairs for array in results], expected_of(given, Output()))
    assert len(given) == 3
    (message,) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"device one: .*(SIGKILL|signal 9).*; windows done again: [1-9]", message)


@pytest.mark.skipif(DEVICE == "cuda", reason="what is lacking is a card")
def test_what_a_device_lacks_is_said_as_of_one(caplog: pytest.LogCaptureFixture) -> None:
    message = r"^device 'cuda:[01]': expected kernels on the card, found TRITON_INTERPRET set; unset it$"
    with pytest.raises(FlashElmoError, match=message):
        ElmoEmbedder(ONE_LAYER, device=["cuda:0", "cuda:1"])
    assert not caplog.records


def test_an_embedder_of_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process gets what one device's pipeline is made of."""
    made: list[tuple[Any, tuple[str, ...]]] = []

    def make_pool(make: Any, devices: tuple[str, ...]) -> SimpleNamespace:
        made.append((pickle.loads(pickle.dumps(make)), devices))
        return SimpleNamespace(ahead=1, precision="fp32")

    monkeypatch.setattr(choice, "DevicePool", make_pool)
    embedder = ElmoEmbedder(
        ONE_LAYER, device=["cuda:0", "cuda:1"], precision="fp32", keep_sentence_boundaries=True, share=False,
        cache_bytes=160, window_tokens=9, threads=2, cuda=AHEAD,
    )  # fmt: skip
    assert (embedder.device, embedder.precision, embedder.window_limits) == ("cuda:0, cuda:1", "fp32", (9, 9))
    ((make, devices),) = made
    assert devices == ("cuda:0", "cuda:1")
    pipeline: CudaPipeline = make(DEVICE)
    executor = pipeline._executor
    assert (pipeline.precision, pipeline.max_tokens, pipeline._planner.threads) == ("fp32", 9, 2)
    assert executor._switches == AHEAD and len(executor._table.vectors) == 10 and executor._state is None
    ((_, results),) = pipeline.stream([Window.from_sentences([["cat"], ["cat"]])], Output(), lambda share: None)
    assert_close(list(results), ReferenceRuntime(ONE_LAYER).embed_batch([["cat"], ["cat"]], True))
    assert pipeline.statistics.steps_saved == 0
    unlimited = ElmoEmbedder(ONE_LAYER, device=["cuda:0", "cuda:1"])
    assert (unlimited.precision, unlimited.window_limits) == ("fp32", (MAX_WINDOW_TOKENS,) * 2)


@pytest.mark.parametrize(
    ("devices", "asked", "found"),
    [(("cuda:0", "cuda:2"), "auto", "bf16"), (("cuda:1", "cuda:2"), "fp16", "fp16")],
    ids=["same", "asked for"],
)
def test_precision_is_what_the_devices_decided(
    devices: tuple[str, ...], asked: PrecisionName, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashelmo.engine.cuda.pipeline.make_cuda_pipeline", choosing)
    embedder = ElmoEmbedder(ONE_LAYER, device=devices, precision=asked)
    assert isinstance(embedder._pipeline, DevicePool)
    with closing(embedder._pipeline):
        assert (embedder.device, embedder.precision) == (", ".join(devices), found)


def test_devices_that_decided_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashelmo.engine.cuda.pipeline.make_cuda_pipeline", choosing)
    with pytest.raises(FlashElmoError) as error:
        ElmoEmbedder(ONE_LAYER, device=["cuda:0", "cuda:1"])
    assert str(error.value) == (
        "precision: expected one for all devices, found bf16 on cuda:0 and fp32 on cuda:1; pass one that both have"
    )
