"""One settings object: what is chosen is checked where it is made, and shown where it is taken."""

import inspect
import os
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from tiny_models import MODELS

from flashelmo.cli import main
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.settings import Options, Settings
from flashelmo.export.open_session import options_of


def test_keywords_are_the_fields() -> None:
    assert list(Options.__annotations__) == [field.name for field in fields(Settings)]


@pytest.mark.parametrize("function", [ElmoEmbedder.__init__, ElmoEmbedder.load])
def test_every_option_is_shown_with_its_type_and_default(function: Any) -> None:
    shown = inspect.signature(function).parameters
    for field in fields(Settings):
        assert shown[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert shown[field.name].default == field.default
        assert shown[field.name].annotation == field.type
    assert not [each for each in shown.values() if each.kind is inspect.Parameter.VAR_KEYWORD]


def test_an_unknown_keyword_is_named_with_those_there_are_before_a_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(FlashElmoError) as error:
        ElmoEmbedder.load(tmp_path / "nothing here", precison="int8")  # type: ignore[call-arg]
    known = ", ".join(field.name for field in fields(Settings))
    assert str(error.value) == f"option: expected some of {known}, found 'precison'"


@pytest.mark.parametrize("threads", [-1, 0, 100_000, 10**20])
def test_numbers_of_threads_that_libraries_do_not_survive(
    threads: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    most = max(64, os.cpu_count() or 1)
    message = f"threads: expected 1 to {most}, found {threads}"
    assert Settings(threads=most).threads == most
    for call in (lambda: Settings(threads=threads), lambda: options_of(None, threads)):
        with pytest.raises(FlashElmoError) as error:
            call()
        assert str(error.value) == message
    (tmp_path / "text").write_text("a\n", encoding="utf-8")
    write_native(MODELS["skip"], tmp_path / "model")
    arguments = [str(tmp_path / "text"), str(tmp_path / "vectors.npz"), "--model", str(tmp_path / "model")]
    assert main(["embed", *arguments, f"--threads={threads}"]) == 1
    assert capfd.readouterr().err == f"flashelmo: {message}\n"


def test_settings_do_not_change_and_do_not_share_what_was_given() -> None:
    devices = ["cuda:0", "cuda:1"]
    settings = Settings(device=devices)
    devices.append("cuda:2")
    assert settings.device == ("cuda:0", "cuda:1")
    with pytest.raises(FrozenInstanceError):
        settings.share = False  # type: ignore[misc]
