"""What a program has PyTorch do elsewhere changes no vector: autocast, a default device or type, inference mode."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BILM, MODELS, SENTENCES, random_model

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.reference.elmo import Elmo
from flashelmo.engine.training.language_model import LanguageModel
from flashelmo.engine.training.model import BiLM


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another default device": lambda: torch.device("meta"),
    "another default type": float64,
    "inference mode": torch.inference_mode,
}
Embed = Callable[[], list[Any]]


def engine(**options: Any) -> Embed:
    embedder = ElmoEmbedder(MODELS["skip"], **options)
    return lambda: list(embedder.embed_batch(SENTENCES))


def tensors(**options: Any) -> Embed:
    embedder = ElmoEmbedder(MODELS["skip"], **options)
    return lambda: [
        *(vectors.numpy() for vectors in embedder.embed(SENTENCES, convert_to_numpy=False)),
        *(embedder.encode(some, convert_to_tensor=True).numpy() for some in ([], ["the cat"])),
    ]


def interpreted(**options: Any) -> Embed:
    pytest.importorskip("triton")
    from cuda_runs import on_cuda

    embedder = on_cuda(MODELS["skip"], **options)
    return lambda: [vectors.cpu().numpy() for vectors in embedder.embed(SENTENCES, convert_to_numpy=False)]


def module(folder: Path) -> Embed:
    write_native(MODELS["skip"], folder / "model", overwrite=True)
    elmo = Elmo(folder / "model", None, 1, dropout=0.0)
    return lambda: [elmo(elmo.batch_to_ids(SENTENCES))["elmo_representations"][0].detach().numpy()]


def language_model() -> Embed:
    model = random_model(BILM, seed=1)
    words = ["</S>", "<S>", "<UNK>", "the", "cat"]
    softmax = {
        "softmax.weight": np.eye(5, BILM.projection_size, dtype=np.float32),
        "softmax.bias": np.ones(5, np.float32),
    }
    trained = LanguageModel(BiLM(BILM, {**dict(model.weights.named_tensors()), **softmax}), words)
    return lambda: [each for scores in trained.log_probabilities(SENTENCES) for each in scores]


WAYS: dict[str, Callable[[Path], Embed]] = {
    "float32": lambda folder: engine(device="cpu"),
    "int8": lambda folder: engine(device="cpu", precision="int8"),
    "tensors": lambda folder: tensors(device="cpu"),
    "the reference": lambda folder: engine(runtime="reference"),
    "the reference, stateful": lambda folder: engine(runtime="reference", stateful=True),
    "the card's runtime": lambda folder: interpreted(),
    "the card's runtime, stateful": lambda folder: interpreted(stateful=True),
    "Elmo": module,
    "the language model": lambda folder: language_model(),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
def test_vectors_are_the_same_in_any_mode(way: str, mode: str, tmp_path: Path) -> None:
    """Made before it or in it."""
    if (way, mode) == ("Elmo", "autocast"):
        pytest.skip("a module of PyTorch's, which goes with it")
    expected, embed = WAYS[way](tmp_path)(), WAYS[way](tmp_path)
    with MODES[mode]():
        found = embed(), WAYS[way](tmp_path)()
    assert len(expected) > 0
    for each in found:
        for a, b in zip(each, expected, strict=True):
            assert a.dtype == b.dtype or (way, mode) == ("Elmo", "another default type")  # whose mix has that type
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
