"""The CUDA runtime with the kernels for Hopper, which its interpreter does not choose: as on that card, but slowly."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from cuda_runs import DEVICE
from gluon_interpreter import run_all
from triton.experimental.gluon._runtime import GluonJITFunction

from flashelmo.engine.cuda import layout
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.precision import tolerance
from flashelmo.engine.settings import CudaSettings
from flashelmo.kernels import launch
from flashelmo.kernels.lstm import few_rows, persistent, proven, warp_specialized
from flashelmo.kernels.lstm.hopper import HALVES

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a card chooses by itself"),
    pytest.mark.filterwarnings("ignore:.*in matmul:RuntimeWarning"),  # of padding, whatever is in memory there
]

WINDOWS = [
    [["In", "the", "beginning"], [], ["And", "the", "light"]],
    [["the", "beginning", "light"]],
    [["light"], ["And", "light", "the"], ["And", "light"], []],
    [["light"], ["And", "light", "the"], ["And", "light"], []],  # nothing is left to be proven
]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The kernels in Gluon that are launched."""
    found: list[str] = []
    run = launch.Launch.run

    def run_any(self: launch.Launch) -> None:
        if isinstance(self.kernel, GluonJITFunction):
            found.append(self.kernel.fn.__name__)
            run_all([self])
        else:
            run(self)

    monkeypatch.setattr(launch.Launch, "run", run_any)
    for variant in (few_rows, persistent, warp_specialized):
        monkeypatch.setattr(variant, "is_served", lambda dtype, device: dtype in HALVES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(proven, "_verdicts", {})
    monkeypatch.setattr(proven, "ROWS", (1, 20))
    monkeypatch.setattr(proven, "TIMES", 1)
    monkeypatch.setattr(proven, "TIMES_OF_NEW", 1)
    monkeypatch.setattr(layout, "LEAST_NODES", 8)  # the interpreter computes padding too
    yield found


@pytest.mark.parametrize("graphs", [False, True])
def test_few_rows_are_one_launch_a_layer(names: list[str], graphs: bool) -> None:
    """Proven first; by buckets, and by the exact sizes of each window."""
    expected = ElmoEmbedder.load(device="cpu", precision="fp32")
    embedder = ElmoEmbedder.load(device=DEVICE, precision="bf16", cuda=CudaSettings(graphs=graphs))
    for window in WINDOWS:
        names.clear()
        for found, exact in zip(embedder.embed_batch(window), expected.embed_batch(window), strict=True):
            assert found.shape == exact.shape and np.isfinite(found).all()
            assert np.linalg.norm(found - exact) <= tolerance("bf16", "cuda") * np.linalg.norm(exact)
    assert names == ["persistent_kernel"] * expected.config.n_layers
