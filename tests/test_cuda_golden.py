"""The CUDA runtime against what AllenNLP, bilm-tf and ELMoForManyLangs computed of this project's models."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

from cuda_runs import AHEAD, DEVICE, assert_close, on_host
from golden_outputs import BATCHES, CASES, Case

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.settings import CudaSettings

pytestmark = pytest.mark.usefixtures("little_padding")

SOON = [case for case in CASES if DEVICE == "cuda" or case.name != "tiny"]  # computed, in Triton's interpreter


def name(case: Case) -> str:
    return f"{case.peer}-{case.name}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_without_state(case: Case, tmp_path: Path) -> None:
    folder = case.write_model(tmp_path / "model")
    embedder = ElmoEmbedder.load(folder, device=DEVICE, precision="fp32", cuda=AHEAD)
    expected = case.fresh_outputs()
    assert_close(on_host(embedder.embed_batch(case.sentences[: len(expected)])), expected)


@pytest.mark.parametrize("settings", [CudaSettings(), AHEAD], ids=["graphs", "ahead"])
@pytest.mark.parametrize("case", SOON, ids=name)
def test_with_state(case: Case, settings: CudaSettings, tmp_path: Path) -> None:
    folder, size = case.write_model(tmp_path / "model"), max(map(len, BATCHES))
    embedder = ElmoEmbedder.load(folder, device=DEVICE, precision="fp32", stateful=True, batch_size=size, cuda=settings)
    assert_close(on_host(case.in_batches(embedder.embed_batch)), case.outputs()["stateful"])
