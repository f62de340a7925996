"""The CUDA runtime on the card where there is one, otherwise in Triton's interpreter, for tests."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from interpreter import repair
from tiny_models import WORD_MODEL, WORDS, random_model

from flashelmo.engine.cuda import executor
from flashelmo.engine.cuda.layout import Sizes
from flashelmo.engine.cuda.pipeline import CudaPipeline
from flashelmo.engine.cuda.requirements import find_device
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import tolerance
from flashelmo.engine.settings import CudaSettings, Settings

Sentences = Sequence[Sequence[str]]
Vectors = list[npt.NDArray[Any]]

DEVICE = "interpreter" if os.environ.get("TRITON_INTERPRET") else "cuda"
if DEVICE == "interpreter":
    repair()  # in a process of a pool too
TORCH_DEVICE = find_device(DEVICE)  # with its number, as messages have it
AHEAD = CudaSettings(graphs=False)
ONE_LAYER = random_model(replace(WORD_MODEL, n_layers=1), WORDS)  # little to compute, where the loop is tested


def on_cuda(model: ElmoModel, **settings: Any) -> ElmoEmbedder:
    """An embedder on the device, in float32 and with room for some hundred words if nothing else is said."""
    return ElmoEmbedder(model, **{"device": DEVICE, "precision": "fp32", "cache_bytes": 1 << 13, **settings})


def pipeline_of(embedder: ElmoEmbedder) -> CudaPipeline:
    assert isinstance(embedder._pipeline, CudaPipeline)
    return embedder._pipeline


def on_host(results: Iterable[Any]) -> Vectors:
    """Results as arrays, whether they are arrays already or tensors on the device."""
    return [torch.as_tensor(result).cpu().numpy() for result in results]


def assert_close(found: Sequence[npt.NDArray[Any]], expected: Sequence[npt.NDArray[Any]]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        assert np.abs(a - b).max(initial=0) < tolerance("fp32", "cuda")


def out_of_memory() -> Exception:
    """As PyTorch's allocator says it."""
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def driver_out_of_memory() -> Exception:
    """As the driver says it through Triton."""
    return RuntimeError("Triton Error [CUDA]: out of memory")


class Compute:
    """Stands for `executor.compute`: fails as it is told, and knows the sizes of every window that it was called for.

    Args:
        fails: whether windows of these sizes do.
        error: makes what they raise.
    """

    def __init__(self, fails: Callable[[Sizes], bool], error: Callable[[], Exception] = out_of_memory) -> None:
        self._fails = fails
        self._error = error
        self._compute = executor.compute
        self.computed: list[Sizes] = []
        self.failed: list[Sizes] = []

    def __call__(self, *arguments: Any, **options: Any) -> torch.Tensor:
        sizes: Sizes = arguments[3]
        if self._fails(sizes):
            self.failed.append(sizes)
            raise self._error()
        self.computed.append(sizes)
        return self._compute(*arguments, **options)


def of_any_name(model: ElmoModel, name: str) -> CudaPipeline:
    """A pipeline for a pool, whose devices are one here."""
    return CudaPipeline(model, TORCH_DEVICE, "fp32", Settings(cache_bytes=1 << 13, threads=1, cuda=AHEAD))
