"""The CUDA runtime against what AllenNLP, bilm-tf and ELMoForManyLangs computed of this project's models."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

from cuda_runs import AHEAD, DEVICE, assert_close, on_host
from golden_outputs import BATCHES, CASES, Case

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.settings import CudaSettings

pytestmark = pytest.mark.usefixtures("little_padding")

ON_CARD = DEVICE == "cuda"
SETTINGS = {"graphs": CudaSettings(), "ahead": AHEAD}


def is_soon(case: Case, runs: str) -> bool:
    """Whether Triton's interpreter computes a case with a state soon; test_cuda_state.py runs other models ahead."""
    return case.name in ("skip", "manylangs") if runs == "ahead" else case.name != "tiny"


# In the interpreter the large model, the same for two programs, is compared with one's vectors.
FRESH = [case for case in CASES if ON_CARD or (case.peer, case.name) != ("bilm", "tiny")]
CARRYING = [(case, runs) for case in CASES for runs in SETTINGS if ON_CARD or is_soon(case, runs)]


def label(value: Case | str) -> str:
    return value if isinstance(value, str) else f"{value.peer}-{value.name}"


@pytest.mark.parametrize("case", FRESH, ids=label)
def test_without_state(case: Case, tmp_path: Path) -> None:
    folder = case.write_model(tmp_path / "model")
    embedder = ElmoEmbedder.load(folder, device=DEVICE, precision="fp32", cuda=AHEAD)
    expected = case.fresh_outputs()
    assert_close(on_host(embedder.embed_batch(case.sentences[: len(expected)])), expected)


@pytest.mark.parametrize(("case", "runs"), CARRYING, ids=label)
def test_with_state(case: Case, runs: str, tmp_path: Path) -> None:
    folder, size, cuda = case.write_model(tmp_path / "model"), max(map(len, BATCHES)), SETTINGS[runs]
    embedder = ElmoEmbedder.load(folder, device=DEVICE, precision="fp32", stateful=True, batch_size=size, cuda=cuda)
    assert_close(on_host(case.in_batches(embedder.embed_batch)), case.outputs()["stateful"])
