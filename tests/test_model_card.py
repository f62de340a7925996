"""A model's folder for hubs: its card, what may be replaced, and what is uploaded, to a hub that is made up."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_models import MODELS

from flashelmo import ElmoEmbedder, FlashElmoError, MissingExtraError
from flashelmo.engine.model.card import model_card


@pytest.fixture
def elmo() -> ElmoEmbedder:
    return ElmoEmbedder(MODELS["skip"], precision="fp32")


class Hub:
    """What is asked of huggingface_hub."""

    def __init__(self, broken: bool = False) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.broken = broken

    def HfApi(self, token: str | None = None) -> Any:
        self.calls.append(("token", token))
        return SimpleNamespace(create_repo=self.create_repo, upload_folder=self.upload_folder)

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
        if self.broken:
            raise RuntimeError("401: who are you?\nmore")
        self.calls.append((repo_id, (private, exist_ok)))
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.calls.append((repo_id, commit_message))
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


def test_a_saved_folder_is_the_model_with_its_card(elmo: ElmoEmbedder, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    elmo.save_pretrained(folder, license="CC-BY-4.0", language="en")
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    sentence = ["the", "cat", "sat"]
    again = ElmoEmbedder.load(folder, precision="fp32").embed_sentence(sentence)
    np.testing.assert_array_equal(again, elmo.embed_sentence(sentence))
    card = (folder / "README.md").read_text(encoding="utf-8")
    head = ["---", "language: en", "library_name: flashelmo", "pipeline_tag: feature-extraction", "license: cc-by-4.0"]
    assert card.splitlines()[:5] == head
    for fact in (
        MODELS["skip"].sha256,
        "8 (forward half",
        f"{MODELS['skip'].weights.n_parameters:,}",
        "| characters |",
    ):
        assert fact in card
    assert "@inproceedings{peters-etal-2018-deep,\n" in card and "{}" not in card


def test_a_card_is_replaced_but_no_other_readme(elmo: ElmoEmbedder, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    elmo.save_pretrained(folder)
    with pytest.raises(FlashElmoError, match="exists already"):
        elmo.save_pretrained(folder)
    elmo.save_pretrained(folder, license="Ours", overwrite=True)
    assert 'license: other\nlicense_name: "Ours"\n' in (folder / "README.md").read_text()
    (folder / "README.md").write_text("mine")
    with pytest.raises(FlashElmoError, match=r"found other files in it: README\.md"):
        elmo.save_pretrained(folder, overwrite=True)
    assert (folder / "README.md").read_text() == "mine"


def test_a_hub_gets_the_folder(elmo: ElmoEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    address = elmo.push_to_hub("me/elmo", private=True, token="t", license="mit")
    assert address == "https://hub/me/elmo"
    assert hub.calls == [("token", "t"), ("me/elmo", (True, True)), ("me/elmo", "Upload an ELMo model")]
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"}
    assert b"license: mit" in hub.files["README.md"]
    with pytest.raises(FlashElmoError, match=r"^public: no such option; expected license, language, private"):
        elmo.push_to_hub("me/elmo", public=True)  # type: ignore[call-arg]


def test_what_the_hub_refuses_is_one_line(elmo: ElmoEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(broken=True))
    with pytest.raises(FlashElmoError, match=r"^me/elmo: 401: who are you\?$"):
        elmo.push_to_hub("me/elmo")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"flashelmo\[hub\]"):
        elmo.push_to_hub("me/elmo")


def test_words_are_an_input_too() -> None:
    card = model_card(MODELS["manylangs"])
    assert "| characters and words |" in card and "license: unknown" in card and "language:" not in card
