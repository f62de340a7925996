"""Forked processes: what was used before the fork works in the child, whatever other threads were doing."""

import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BILM, MODELS, SENTENCES, random_model

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.reference.elmo import Elmo
from flashelmo.engine.reference.reference import ReferenceElmo
from flashelmo.engine.settings import RuntimeName
from flashelmo.engine.text.characters import batch_to_ids
from flashelmo.engine.text.windows import Window
from flashelmo.export.build import build_onnx
from flashelmo.export.onnx_elmo import OnnxElmo

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # Python 3.12 warns of what is tested here
]
MANY = 40 * SENTENCES
WIDE = random_model(replace(BILM, cell_size=256, projection_size=128))  # enough work for several threads


def succeeds_in_a_fork(check: Callable[[], bool]) -> bool:
    """Whether a check holds in a forked process; one that waits for ever is ended.

    Whatever the check raises, the child never leaves this function: it would go on with the parent's tests, and write
    to whoever reads the parent's results.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # no handler in Python, which may be waiting for ever
            signal.alarm(30)
            status = 0 if check() else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def test_a_forked_process_ends_though_its_check_raises() -> None:
    def check() -> bool:
        pytest.fail("in the forked process")

    parent = os.getpid()
    assert not succeeds_in_a_fork(check)
    assert os.getpid() == parent


def gives(embed: Callable[[], list[Any]], expected: list[Any]) -> bool:
    return all(np.allclose(a, b, atol=1e-5) for a, b in zip(embed(), expected, strict=True))


@pytest.fixture(params=["ort", "openvino", "reference"])
def embedder(request: pytest.FixtureRequest) -> ElmoEmbedder:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    runtime: RuntimeName = request.param
    return ElmoEmbedder(WIDE, runtime=runtime, threads=4)  # 2 for each direction


def test_an_embedder_that_was_used_works_in_a_forked_process(embedder: ElmoEmbedder) -> None:
    expected = embedder.embed_batch(MANY)

    def check() -> bool:
        ours = gives(lambda: embedder.embed_batch(MANY), expected)
        return ours and succeeds_in_a_fork(lambda: gives(lambda: embedder.embed_batch(MANY), expected))

    assert succeeds_in_a_fork(check)
    assert gives(lambda: embedder.embed_batch(MANY), expected)


def test_a_forked_process_does_not_wait_for_the_parents_threads() -> None:
    """One of them was embedding, with the embedder's lock."""
    embedder = ElmoEmbedder(MODELS["skip"], runtime="ort", threads=2)
    expected = embedder.embed_batch(SENTENCES)
    inside, forked = threading.Event(), threading.Event()

    def wait(fraction: float) -> None:
        inside.set()
        forked.wait(60)

    thread = threading.Thread(target=lambda: list(embedder.embed_windows([Window.from_sentences(SENTENCES)], wait)))
    thread.start()
    assert inside.wait(60)
    try:
        assert succeeds_in_a_fork(lambda: gives(lambda: embedder.embed_batch(SENTENCES), expected))
    finally:
        forked.set()
        thread.join()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of large random weights, in the export's own check
@pytest.mark.parametrize("stateful", [False, True])
def test_an_exported_file_that_was_used_works_in_a_forked_process(tmp_path: Path, stateful: bool) -> None:
    build_onnx(WIDE, tmp_path / "model.onnx", stateful=stateful)
    elmo = OnnxElmo(tmp_path / "model.onnx", threads=2)
    expected = elmo.embed(MANY)
    elmo.reset_state()
    assert succeeds_in_a_fork(lambda: gives(lambda: elmo.embed(MANY), expected))


def test_a_module_that_was_used_works_in_a_forked_process() -> None:
    model = MODELS["skip"]
    elmo = Elmo(None, None, 1, module=ReferenceElmo(model.config, model.weights), dropout=0)
    ids = batch_to_ids(MANY)[..., : model.config.max_characters].contiguous()

    def embed() -> list[Any]:
        with torch.no_grad():
            return [elmo(ids)["elmo_representations"][0].numpy()]

    expected = embed()
    assert succeeds_in_a_fork(lambda: gives(embed, expected))
