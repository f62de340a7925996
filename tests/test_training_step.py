"""A step as a card takes it: static buffers, a capture, batches that do not fit. The card is played by the CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BILM

from flashelmo.engine.training import step as step_module
from flashelmo.engine.training.corpus import most_frequent, read_corpus
from flashelmo.engine.training.initial import initial_tensors
from flashelmo.engine.training.model import BiLM
from flashelmo.engine.training.settings import TrainSettings
from flashelmo.engine.training.spelling import Spelling
from flashelmo.engine.training.step import WARM_UP_STEPS, TrainingStep, _Captured
from flashelmo.engine.training.streams import Streams

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = replace(BILM, cell_clip=3.0, projection_clip=3.0)
SETTINGS = TrainSettings(batch=3, unroll=4, negatives=6, steps=12, device="cpu", precision="fp32")


def new_step(
    tmp_path: Path, settings: TrainSettings = SETTINGS, compute: torch.dtype = torch.float32, device: str = "cpu"
) -> TrainingStep:
    text = tmp_path / "text.txt"
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(30)]
    text.write_text("\n".join(" ".join(rng.choice(words, 7)) for _ in range(40)), encoding="utf-8")
    corpus = read_corpus([text])
    vocabulary = most_frequent(corpus, 1, None)
    torch.manual_seed(0)
    model = BiLM(CONFIG, initial_tensors(CONFIG, len(vocabulary), 0), dropout=0.2, compute=compute).to(device)
    streams = Streams(corpus, settings.batch, settings.unroll, 0)
    step = TrainingStep(model, settings, Spelling(CONFIG, corpus.words), corpus.rows(vocabulary), streams)
    step.streams = streams  # type: ignore[attr-defined]
    return step


class Event:
    """What is recorded here has happened."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    wait_stream = record


class Card:
    """Stands for torch.cuda: a capture runs nothing, and a replay does again what was captured."""

    def __init__(self, step: TrainingStep, fails: bool = False) -> None:
        self.step, self.fails, self.replays = step, fails, 0
        self.Event, self.Stream, self.stream = Event, type("Stream", (), {"wait_stream": lambda *_: None}), nullcontext
        self.current_stream: Callable[[], Any] = self.Stream
        self.CUDAGraph = type("CUDAGraph", (), {})
        self.graph_pool_handle = lambda: (0, 1)
        self.is_available = lambda: False  # asked by optimizers of a PyTorch that is built with CUDA
        self.get_rng_state = lambda device: torch.get_rng_state()
        self.set_rng_state = lambda state, device: torch.set_rng_state(state)

    def synchronize(self) -> None: ...

    @contextmanager
    def graph(self, graph: Any, pool: Any) -> Iterator[None]:
        if self.fails:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore of it")
        compute, calls = self.step.compute, []
        self.step.compute = lambda *arguments: calls.append(arguments)  # type: ignore[method-assign]
        yield
        self.step.compute = compute  # type: ignore[method-assign]

        def replay() -> None:
            self.replays += 1
            compute(*calls[0])

        graph.replay = replay


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Card]:
    def play(step: TrainingStep, capacity: int | None = None, fails: bool = False) -> Card:
        card = Card(step, fails)
        monkeypatch.setattr(step_module.torch, "cuda", card)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        if capacity is not None:
            monkeypatch.setattr(step_module, "_capacity", lambda streams, words: capacity)
        step._captured = _Captured(step, step.streams)  # type: ignore[attr-defined]
        return card

    return play


def losses(step: TrainingStep, number: int) -> list[tuple[float, float]]:
    found = []
    for k in range(number):
        step(step.streams[k], 0.01)  # type: ignore[attr-defined]
        found.append(step.read())
    return found


def test_a_captured_step_is_the_step(tmp_path: Path, played: Callable[..., Card]) -> None:
    plain = new_step(tmp_path)
    expected = losses(plain, 10)
    step = new_step(tmp_path)
    card = played(step)
    np.testing.assert_allclose(losses(step, 10), expected, rtol=1e-5)
    assert card.replays == 10 - WARM_UP_STEPS
    for name, parameter in plain.model.tensors.items():
        torch.testing.assert_close(step.model.tensors[name], parameter, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(step.state, plain.state, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_loss_is_the_mean_of_the_steps_since_the_last_one(tmp_path: Path) -> None:
    first, *others = losses(new_step(tmp_path), 4)
    step = new_step(tmp_path)
    assert losses(step, 1) == [first]
    for k in range(1, 4):
        step(step.streams[k], 0.01)  # type: ignore[attr-defined]
    np.testing.assert_allclose(step.read(), np.mean(others, axis=0), rtol=1e-6)


@pytest.mark.parametrize("clip", [1e-2, 1e6])
def test_steps_by_kernels_are_those_by_operations(tmp_path: Path, clip: float) -> None:
    """Cells and Adagrad, in Triton's interpreter."""
    pytest.importorskip("triton")
    settings = replace(SETTINGS, optimizer="adagrad", clip=clip)
    plain, step = new_step(tmp_path, settings), new_step(tmp_path, settings)
    step.model.kernels = True
    found = []
    for each in (plain, step):
        torch.manual_seed(1)  # what dropout and negatives are drawn by
        found.append(losses(each, 3))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    for name, parameter in plain.model.tensors.items():
        torch.testing.assert_close(step.model.tensors[name], parameter, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("clip", [1e-2, 1e6])
def test_adagrad_changes_the_rows_that_a_step_reads_as_by_whole_gradients(
    tmp_path: Path, played: Callable[..., Card], clip: float, compute: torch.dtype
) -> None:
    """Also where the common norm is bounded, and in a captured step."""
    settings = replace(SETTINGS, optimizer="adagrad", clip=clip)
    whole = new_step(tmp_path, settings, compute)
    whole._by_rows = None
    expected = losses(whole, 8)
    by_rows = new_step(tmp_path, settings, compute)
    assert by_rows._by_rows is by_rows.optimizer
    played(by_rows)
    assert whole.model.tensors["softmax_weight"].grad is not None
    np.testing.assert_allclose(losses(by_rows, 8), expected, rtol=1e-5)
    assert by_rows.model.tensors["softmax_weight"].grad is None
    for name, parameter in whole.model.tensors.items():
        ours = by_rows.model.tensors[name]
        torch.testing.assert_close(ours, parameter, rtol=1e-5, atol=1e-6)
        accumulators = [
            step.optimizer.state[each]["accumulator"] for step, each in ((by_rows, ours), (whole, parameter))
        ]
        torch.testing.assert_close(*accumulators, rtol=1e-5, atol=1e-6)


def test_whole_gradients_where_rows_are_not_enough(tmp_path: Path) -> None:
    """Adam moves all rows; without negatives all are read; processes exchange whole gradients."""
    assert new_step(tmp_path)._by_rows is None
    adagrad = replace(SETTINGS, optimizer="adagrad")
    assert new_step(tmp_path, replace(adagrad, negatives=0))._by_rows is None
    one = new_step(tmp_path, adagrad)
    streams = one.streams  # type: ignore[attr-defined]
    exchanged = torch.nn.Module()
    assert TrainingStep(one.model, adagrad, one._spelling, one._rows, streams, exchanged)._by_rows is None


def test_batches_of_too_many_words_are_computed_without_the_graph(tmp_path: Path, played: Callable[..., Card]) -> None:
    plain = new_step(tmp_path)
    sizes = [len(plain._spelling.distinct(plain.streams[k].inputs)[0]) for k in range(12)]  # type: ignore[attr-defined]
    expected = losses(plain, 12)
    capacity = int(np.median(sizes))
    fitting = sum(size <= capacity for size in sizes)
    assert WARM_UP_STEPS < fitting < 12
    step = new_step(tmp_path)
    card = played(step, capacity)
    np.testing.assert_allclose(losses(step, 12), expected, rtol=1e-5)
    assert card.replays == fitting - WARM_UP_STEPS


LIBRARY_HAS_NONE = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), LIBRARY_HAS_NONE], ids=repr)
def test_a_graph_gives_its_memory_to_a_batch_that_does_not_fit(
    changed: bool, error: RuntimeError, tmp_path: Path, played: Callable[..., Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is captured again; where parameters have changed already, the error remains, as another one does."""
    expected = losses(new_step(tmp_path), 12)
    step = new_step(tmp_path)
    card, compute, graphs = played(step, 16), step.compute, list[Any]()

    def compute_unless_full(*arguments: torch.Tensor) -> None:
        graph: Any = step._captured._graph  # type: ignore[union-attr]
        if len(arguments[0]) > 16 and graph is not None:
            graphs.append(graph)
            torch.rand(7)  # what it had drawn by then
            step._updates = changed
            raise error
        compute(*arguments)

    monkeypatch.setattr(step, "compute", compute_unless_full)
    if changed:
        with pytest.raises(type(error)) as raised:
            losses(step, 12)
        assert raised.value is error
        return
    np.testing.assert_allclose(losses(step, 12), expected, rtol=1e-5)
    assert len(graphs) == 1 and step._captured._graph not in (None, *graphs)  # type: ignore[union-attr]
    assert card.replays == 12 - WARM_UP_STEPS - 3

    def measure() -> str:
        if step._captured._graph is not None or lacks_more:  # type: ignore[union-attr]
            raise error
        return "measured"

    lacks_more = False
    assert step.with_room(measure) == "measured"
    lacks_more = True
    with pytest.raises(type(error)):
        step.with_room(measure)
    losses(step, WARM_UP_STEPS)
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal"):
        step.with_room(measure)
    assert step._captured._graph is not None  # type: ignore[union-attr]


def test_what_cannot_be_captured_is_launched(
    tmp_path: Path, played: Callable[..., Card], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = losses(new_step(tmp_path), 6)
    step, abandoned = new_step(tmp_path), list[Any]()
    monkeypatch.setattr(step_module, "abandon", lambda graph, pool: abandoned.append(pool))
    card = played(step, fails=True)
    np.testing.assert_allclose(losses(step, 6), expected, rtol=1e-5)
    warning = (
        "the step cannot be captured as a CUDA graph: CUDA error: operation not permitted when stream is capturing"
    )
    assert abandoned == [(0, 1)]
    assert card.replays == 0 and [record.getMessage() for record in caplog.records] == [warning]
