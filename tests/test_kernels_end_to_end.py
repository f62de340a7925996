"""A layer over all depths, and whole models run by the kernels alone, against the reference and published vectors."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch

pytest.importorskip("triton")

from kernel_elmo import embed
from kernel_lstm import random_layer, real_nodes
from tiny_models import BILM, MODELS, SENTENCES, random_model
from tolerances import RELATIVE_TOLERANCES, TOLERANCES

from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.weights import ElmoModel, ElmoWeights
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.kernels import lstm_layer as layers
from flashelmo.kernels.lstm_layer import Slab, lstm_layer, slabs
from flashelmo.kernels.lstm_persistent import Barrier

SIZES = ((1, 3, 5, 40, 41, 4, 2), (1, 35, 2))
KINDS = [  # with a barrier, and without
    [("persistent", 1, 1), ("fused", 2, 1), ("persistent", 3, 1), ("fused", 4, 2), ("persistent", 6, 2)],
    [("hoisted", 1, 1), ("fused", 2, 1), ("hoisted", 3, 1), ("fused", 4, 2), ("hoisted", 6, 2)],
]


def reference(model: ElmoModel, *, keep_boundaries: bool = False) -> list[npt.NDArray[np.float32]]:
    return ReferenceRuntime(model).embed_batch(SENTENCES, keep_boundaries)


def test_depths_are_grouped_by_their_rows() -> None:
    layer = random_layer("cpu", sizes=SIZES)  # P = 12 in float32: up to 6 rows, reading the input's part is cheaper
    for persistent, expected in zip((True, False), KINDS, strict=True):
        assert list(slabs(layer.pack(), layer.nodes, persistent=persistent)) == expected
    all_hoisted = list(slabs(layer.pack(int8=True), layer.nodes, persistent=False))
    assert all_hoisted == [Slab("hoisted", 1, 7)]


def test_slabs_are_cut_where_their_input_part_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer("cpu", sizes=((1, 2, 2, 2, 2),) * 2)
    monkeypatch.setattr(layers, "HOISTED_BYTES", 2 * 4 * 24 * 4 * 4)  # four nodes of both directions
    cut = list(slabs(layer.pack(), layer.nodes, persistent=True))
    assert cut == [Slab("persistent", 1, 2), Slab("persistent", 3, 2), Slab("persistent", 5, 1)]
    outputs, _ = lstm_layer(layer.pack(), layer.nodes, layer.x, barrier=Barrier.on("cpu"))
    expected = real_nodes(layer.expected()[0], layer.nodes)
    assert (real_nodes(outputs, layer.nodes) - expected).abs().max() < TOLERANCES["fp32"]


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("n_roots", [1, 4])
def test_a_layer_matches_the_reference(device: str, n_roots: int, persistent: bool) -> None:
    layer = random_layer(device, sizes=SIZES, n_roots=n_roots)
    roots = (0.3 * torch.randn(2, n_roots, 12), 0.3 * torch.randn(2, n_roots, 24))
    roots = (roots[0].to(device), roots[1].to(device))
    barrier = Barrier.on(device) if persistent else None
    outputs, _ = lstm_layer(layer.pack(), layer.nodes, layer.x, roots=roots, barrier=barrier)
    expected = real_nodes(layer.expected(roots)[0], layer.nodes)
    assert (real_nodes(outputs, layer.nodes) - expected).abs().max() < TOLERANCES["fp32"]


def test_roots_that_do_not_fit_are_named() -> None:
    layer = random_layer("cpu", n_roots=2)
    with pytest.raises(ValueError, match=r"^roots' cell: expected shape \[2, 2, 24\], found \[2, 1, 24\]"):
        lstm_layer(layer.pack(), layer.nodes, layer.x, roots=(torch.zeros(2, 2, 12), torch.zeros(2, 1, 24)))


@pytest.mark.parametrize("name", MODELS)
def test_tiny_models_match_the_reference(device: str, name: str) -> None:
    for ours, expected in zip(embed(MODELS[name], SENTENCES, device), reference(MODELS[name]), strict=True):
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, atol=TOLERANCES["fp32"], rtol=0)


def test_kept_boundaries_match_the_reference(device: str) -> None:
    ours = embed(MODELS["skip"], SENTENCES, device, keep_boundaries=True, persistent=False)
    for one, expected in zip(ours, reference(MODELS["skip"], keep_boundaries=True), strict=True):
        np.testing.assert_allclose(one, expected, atol=TOLERANCES["fp32"], rtol=0)


@pytest.mark.parametrize("kind", ["fp16", "bf16", "int8"])
def test_rounding_types_are_near_the_reference(device: str, kind: str) -> None:
    config = replace(BILM, cell_size=64, projection_size=16, cell_clip=3.0, projection_clip=3.0)
    model = random_model(config)
    tensors = {name: 0.3 * tensor for name, tensor in model.weights.named_tensors()}  # like trained ones: not saturated
    model = replace(model, weights=ElmoWeights.from_named_tensors(tensors, config))
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float16}[kind]
    ours = np.concatenate(embed(model, SENTENCES, device, dtype=dtype, int8=kind == "int8"), axis=1)
    expected = np.concatenate(reference(model), axis=1)
    for layer, (one, other) in enumerate(zip(ours, expected, strict=True)):
        error = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert error < (layer + 1) * RELATIVE_TOLERANCES[kind], f"layer {layer}"


@pytest.mark.parametrize(
    ("name", "file", "streams"),
    [("bilm_skip", "expected_stateless.hdf5", True), ("manylangs", "expected_layers.hdf5", False)],
)
def test_published_vectors(device: str, golden: Path, name: str, file: str, streams: bool) -> None:
    sentences = json.loads((golden / name / "sentences.json").read_text(encoding="utf-8"))
    sentences = [
        sentence.split() if isinstance(sentence, str) else sentence
        for sentence in (sentences[0] if streams else sentences)
    ]
    sentences = sentences[:6]
    with h5py.File(golden / name / file) as expected:
        for key, ours in enumerate(embed(load_model(golden / name), sentences, device)):
            np.testing.assert_allclose(ours, expected[str(key)][:], atol=TOLERANCES["fp32"], rtol=0)
