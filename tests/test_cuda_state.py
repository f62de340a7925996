"""Stateful runs of the CUDA runtime, whose rows carry their LSTM states from window to window."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from cuda_runs import AHEAD, DEVICE, ONE_LAYER, Compute, assert_close, on_cuda, on_host, pipeline_of
from tiny_models import MODELS

from flashelmo.engine.cuda import executor, state
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.settings import CudaSettings

pytestmark = pytest.mark.usefixtures("little_padding")

# Batches of several sizes, of which some hold empty sentences: rows rest, and come back.
BATCHES = [
    [["the", "cat"], ["sat"], []],
    [["cat"]],
    [[], ["the"], ["sat", "sat"], ["é", "cat"]],
    [["sat"], [], ["the", "cat"]],
]


def both(model: ElmoModel, **settings: Any) -> tuple[ElmoEmbedder, ElmoEmbedder]:
    """A stateful embedder on the device, and one on the CPU."""
    other = ElmoEmbedder(model, device="cpu", stateful=True, batch_size=130)
    return on_cuda(model, stateful=True, batch_size=130, **settings), other


@pytest.mark.parametrize("settings", [CudaSettings(), AHEAD], ids=["graphs", "ahead"])
def test_equals_the_cpu_engine_over_batches_of_many_sizes(settings: CudaSettings) -> None:
    ours, other = both(MODELS["skip"], cuda=settings)
    for batch in BATCHES:
        assert_close(ours.embed_batch(batch), other.embed_batch(batch))
    assert ours.statistics == other.statistics


@pytest.mark.parametrize("name", ["no projection", "three layers, no highway"])
def test_equals_the_cpu_engine_on_other_models_with_boundaries(name: str) -> None:
    ours = on_cuda(MODELS[name], stateful=True, cuda=AHEAD, keep_sentence_boundaries=True)
    other = ElmoEmbedder(MODELS[name], device="cpu", stateful=True, keep_sentence_boundaries=True)
    for batch in BATCHES[:2]:
        assert_close(ours.embed_batch(batch), other.embed_batch(batch))


def test_a_graph_starts_from_the_state_of_its_moment() -> None:
    """One batch again and again: the fourth is as near the reference as the first, and all differ."""
    ours, other = both(ONE_LAYER)
    batch = [["the", "cat"], ["sat"]]
    found = []
    for _ in range(4):
        found.append(ours.embed_batch(batch))
        assert_close(found[-1], other.embed_batch(batch))
    assert all(np.abs(a[0][1:] - b[0][1:]).max() > 1e-4 for a, b in pairwise(found))
    ours.reset_state()
    assert_close(ours.embed_batch(batch), found[0])
    assert ours.statistics.words_computed == 5  # a reset leaves the words where they are


def test_the_state_grows_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rows there were keep their state; a graph of the smaller state is not used any more."""
    monkeypatch.setattr(state, "INITIAL_ROWS", 1)
    ours, other = both(ONE_LAYER)
    for n in (1, 1, 3, 1, 17, 2):
        batch = [["cat", "sat"][: 1 + k % 2] for k in range(n)]
        assert_close(ours.embed_batch(batch), other.embed_batch(batch))
    kept = pipeline_of(ours)._executor._state
    assert kept is not None and kept.n_rows >= 17


def test_a_first_batch_of_many_rows_fits_a_bucket_of_more() -> None:
    ours, other = both(ONE_LAYER)
    batch = [["cat"], ["the"]] * 65  # a bucket of 256 rows, and a state of 64
    assert_close(ours.embed_batch(batch), other.embed_batch(batch))


def test_the_state_survives_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that fails changes nothing, whether its kernels fail or what is done with its states."""
    ours, other = both(MODELS["skip"], cuda=AHEAD)
    ours.embed_batch(BATCHES[0])
    other.embed_batch(BATCHES[0])
    broken = Compute(lambda sizes: True, lambda: RuntimeError("CUDA error: an illegal instruction"))
    for target, name in ((executor, "compute"), (state.DeviceState, "write_back"), (state.DeviceState, "reserve")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, broken if name == "compute" else _raise)
            with pytest.raises(RuntimeError, match="illegal instruction"):
                ours.embed_batch(BATCHES[1])
    assert_close(ours.embed_batch(BATCHES[2]), other.embed_batch(BATCHES[2]))


def _raise(*arguments: Any) -> None:
    raise RuntimeError("CUDA error: an illegal instruction")


def test_the_state_survives_memory_that_is_lacking_for_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "INITIAL_ROWS", 2)
    ours, other = both(ONE_LAYER, cuda=AHEAD)
    assert_close(ours.embed_batch(BATCHES[0][:2]), other.embed_batch(BATCHES[0][:2]))
    zeros, calls = torch.zeros, []

    def fail(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 2:  # the cells', when the hidden states' are there
            raise RuntimeError("CUDA error: an illegal address")
        return zeros(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(state.torch, "zeros", fail)
        with pytest.raises(RuntimeError, match="illegal address"):
            ours.embed_batch(BATCHES[2])
    assert_close(ours.embed_batch(BATCHES[2]), other.embed_batch(BATCHES[2]))


def test_halves_keep_their_rows() -> None:
    """A batch that is larger than a window may be; its halves' graphs differ in their rows."""
    ours, other = both(ONE_LAYER, window_tokens=2)
    batch = [["the"], ["sat"], ["é"], ["cat"]]
    for _ in range(3):
        assert_close(ours.embed_batch(batch), other.embed_batch(batch))
    assert ours.statistics == other.statistics


def test_a_state_may_be_made_and_carried_on_in_any_mode() -> None:
    """What is kept is no inference tensor, which only inference mode could write to; nothing asks for gradients."""
    other = ElmoEmbedder(ONE_LAYER, device="cpu", stateful=True)
    with torch.inference_mode():
        ours = on_cuda(ONE_LAYER, stateful=True)
        assert_close(ours.embed_batch([["cat"]]), other.embed_batch([["cat"]]))
    for _ in range(2):
        (found,) = ours.embed([["cat"]], convert_to_numpy=False)
        assert not found.requires_grad and not found.is_inference()
        assert_close(on_host([found]), other.embed_batch([["cat"]]))


def test_a_window_without_sentences_changes_nothing() -> None:
    ours, other = both(ONE_LAYER, cuda=AHEAD)
    batches: list[list[list[str]]] = [[["cat"]], [], [["cat"]], [[], []], [["the"]]]
    for batch in batches:
        assert_close(ours.embed_batch(batch), other.embed_batch(batch) if batch else [])


def test_published_streams(golden: Path) -> None:
    """TensorFlow's bilm carried each stream's state from sentence to sentence; one stream's is a row by itself.

    Of the second sentence the beginning is enough: its forward vectors are those of the whole.
    """
    first, second = json.loads((golden / "bilm_skip" / "sentences.json").read_text(encoding="utf-8"))[1][:2]
    settings: dict[str, Any] = {"stateful": True, "batch_size": 1, "cuda": AHEAD}
    embedder = ElmoEmbedder.load(golden / "bilm_skip", device=DEVICE, precision="fp32", **settings)
    found = list(embedder.embed([first.split(), second.split()[:3]], layers="top"))
    with h5py.File(golden / "bilm_skip" / "lm_embeddings_1.hdf5") as file:
        assert_close(found[:1], [np.concatenate(list(file["0"]), axis=-1)])
        assert_close([found[1][:, :16]], [file["1"][0, :3]])
