"""Copies of embedders and of exported files, also in another process: by path and settings."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx_toy import toy_model
from tiny_models import MODELS, SENTENCES

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.export.onnx_elmo import OnnxElmo


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ElmoEmbedder:
    """Loaded by a path that means something else in another folder."""
    write_native(MODELS["skip"], tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    embedder = ElmoEmbedder.load("model", runtime="ort", threads=1, keep_sentence_boundaries=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return embedder


def test_a_copy_of_an_embedder_has_its_files_and_settings(embedder: ElmoEmbedder) -> None:
    for other in (pickle.loads(pickle.dumps(embedder)), copy.deepcopy(embedder), copy.copy(embedder)):
        assert other is not embedder and other.settings == embedder.settings
        assert_equal(other.embed_batch(SENTENCES), embedder.embed_batch(SENTENCES))
        assert pickle.dumps(other) == pickle.dumps(embedder)  # whoever takes it for a fingerprint finds the same


def test_an_embedder_works_in_a_spawned_process(embedder: ElmoEmbedder) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert_equal(pool.submit(embedder.embed_batch, SENTENCES).result(60), embedder.embed_batch(SENTENCES))


def test_an_embedder_of_a_model_in_memory_says_what_to_do() -> None:
    with pytest.raises(FlashElmoError, match=r"expected one made by `ElmoEmbedder\.load`.* make it where it is used"):
        pickle.dumps(ElmoEmbedder(MODELS["skip"]))


@pytest.mark.parametrize("error", [FlashElmoError("a: b"), MissingExtraError("httpx", "client", "flashelmo.Client")])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_copy_of_an_error(error: FlashElmoError, protocol: int) -> None:
    """A pool whose process raises what cannot be copied waits for ever."""
    error.__dict__["__notes__"] = ["in chapter 1"]  # as by `add_note`, which Python 3.10 lacks
    for other in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert (type(other), str(other), other.__dict__) == (type(error), str(error), error.__dict__)


def test_a_model_is_shown_in_short_and_is_a_key_of_a_cache() -> None:
    model = MODELS["manylangs"]
    assert str(model.path) in repr(model) and len(repr(model)) < 600
    assert {model: 1, copy.copy(model): 2}[model] == 1


def test_a_copy_of_an_exported_file(tmp_path: Path) -> None:
    elmo = OnnxElmo(toy_model(tmp_path / "model.onnx"), threads=1)
    for other in (pickle.loads(pickle.dumps(elmo)), copy.deepcopy(elmo)):
        assert_equal(other.embed(SENTENCES), elmo.embed(SENTENCES))


def test_session_options_are_not_copied(tmp_path: Path) -> None:
    elmo = OnnxElmo(toy_model(tmp_path / "model.onnx"), session_options=onnxruntime.SessionOptions())
    with pytest.raises(FlashElmoError, match="session_options: an OnnxElmo that has them cannot"):
        pickle.dumps(elmo)
