"""Runs another ELMo program's own code, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flashelmo import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError

WORKER = Path(__file__).resolve().parent / "peer_worker.py"
PACKAGES = ("allennlp", "torch", "tensorflow", "tensorflow_cpu")  # that peers compute with

Vectors = Sequence[np.ndarray[Any, Any]]


class Job(NamedTuple):
    """A model, as its folder, and what is embedded with it.

    Attributes:
        batches, mix: for outputs that are kept (`tests/golden_outputs.py`): the sentences as batches, and what
            AllenNLP calls scalar_mix_parameters.
    """

    folder: Path
    sentences: list[list[str]]
    batches: Sequence[list[list[str]]] = ()
    mix: Sequence[float] = ()

    def load(self, **options: Any) -> ElmoEmbedder:
        """flashelmo with the model."""
        return ElmoEmbedder.load(self.folder, device="cpu", precision="fp32", **options)


def versions(peer: str, python: str, packages: Sequence[str] = PACKAGES) -> str:
    """Of Python, the peer, and those of the packages that are there."""
    about = "import platform; print(platform.python_version())"
    number = subprocess.run([python, "-c", about], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    command = [python, "-m", "pip", "list", "--disable-pip-version-check", "--format=json"]
    listed = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    installed = {each["name"].lower().replace("-", "_"): each["version"] for each in listed}
    found = [f"{name} {installed[name]}" for name in dict.fromkeys([peer, *packages]) if name in installed]
    return ", ".join([*found, f"Python {number}"])


def run_peer(peer: str, python: str, job: Job, folder: Path) -> dict[str, Vectors]:
    """Vectors by call of a peer's own code."""
    options, weights = job.folder / "options.json", job.folder / "weights.hdf5"
    values = {"folder": job.folder, "options": options, "weights": weights, "text": folder / "text.txt"}
    (folder / "text.txt").write_text("".join(f"{' '.join(each)}\n" for each in job.sentences), encoding="utf-8")
    stated: dict[str, Any] = {name: str(value) for name, value in values.items()}
    vocabulary = job.folder / "vocab.txt"
    stated["vocabulary"] = str(vocabulary) if vocabulary.is_file() else None
    stated |= {"sentences": job.sentences, "batches": job.batches, "mix": job.mix}
    (folder / "job.json").write_text(json.dumps(stated), encoding="utf-8")
    command = [python, str(WORKER), peer, "job.json", "out.npz"]
    if status := subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
        raise FlashElmoError(f"{peer}: expected vectors from {python}, found status {status}")
    found: dict[str, list[np.ndarray[Any, Any]]] = {}
    with np.load(folder / "out.npz") as file:
        for name in file.files:
            found.setdefault(name.rpartition("/")[0], []).append(file[name])
    return dict(found)
