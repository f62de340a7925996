"""What other ELMo programs' own code computed of this project's models: `tests/golden`, which every clone compares.

`python tests/peers.py --write-golden` runs that code and writes the folder; its README says with which versions. A
case is a model in a program: the model of the package, or a random one of another kind, written as that program reads
it. Of the outputs `stateless` are one batch, `stateful` the batches one after the other, `one by one` each sentence as
a batch, one after the other, and `mix` the layers' softmax-weighted mean.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import manylangs_files
import numpy as np
from peer_runs import PACKAGES, Job, Vectors, run_peer, versions
from tiny_models import BILM, WORD_MODEL, WORDS, random_model

from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.bilm import write_bilm
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.named.locate import model_path
from flashelmo.engine.model.weights import ElmoModel, Lexicon

FOLDER = Path(__file__).resolve().parent / "golden"
MADE = FOLDER / "made.json"
# Characters of one to four bytes, words longer than the 50 ids that a word has, sentences of one word and of none, the
# same sentence after others, and a batch of two rows, after which the state of the third goes on.
BATCHES = [
    [["Zoë", "ate", "日本語", "😀", "."], ["Adam"], ["the", "cat", "sat"]],
    [["long" * 20, "é" * 40], []],
    [["Adam"], ["cat"], ["and", "God"]],
]
MIX = [0.2, 0.5, -0.3, 0.1]
PACKAGES_SAID = (*PACKAGES, "numpy", "h5py")

LONG_WORDS = replace(BILM, max_characters=50, projection_clip=0.2)  # both clips cut, in every model that has them
# Not all that the words have.
CHARACTERS = ["<oov>", "<bow>", "<eow>", "<pad>", "<bos>", "<eos>", *"Zoateshclng日本😀."]
LEXICON = Lexicon(
    {character: row for row, character in enumerate(CHARACTERS)},
    {word: row for row, word in enumerate(["<oov>", "<pad>", "<bos>", "<eos>", "cat", "日本語", "Adam"])},
)
BOTH = replace(
    LONG_WORDS, family="manylangs", word_size=5, n_words=len(LEXICON.words), n_characters=len(LEXICON.characters)
)
RANDOM: Mapping[str, tuple[ElmoConfig, Lexicon | None]] = {
    "skip": (LONG_WORDS, None),
    "no skip": (replace(LONG_WORDS, skip_connections=False), None),
    "no clips, tanh": (replace(LONG_WORDS, cell_clip=None, projection_clip=None, activation="tanh"), None),
    "no projection": (replace(LONG_WORDS, cell_size=4), None),
    "three layers, no highway": (replace(LONG_WORDS, n_layers=3, n_highway=0), None),
    "no character projection": (replace(LONG_WORDS, cell_size=16, projection_size=12), None),
    "words alone": (replace(WORD_MODEL, projection_clip=0.2), WORDS),
    "manylangs": (BOTH, LEXICON),
    "manylangs, characters alone": (replace(BOTH, word_size=0, n_words=0), LEXICON),
    "manylangs, words alone": (replace(BOTH, filters=(), n_highway=0, character_size=0, n_characters=0), LEXICON),
}


class Case(NamedTuple):
    """A model in a program."""

    peer: str
    name: str

    @property
    def batches(self) -> list[list[list[str]]]:
        """ELMoForManyLangs sorts the rows of a batch, longest first."""
        if self.peer == "elmoformanylangs":
            return [sorted(batch, key=len, reverse=True) for batch in BATCHES]
        return BATCHES

    @property
    def sentences(self) -> list[list[str]]:
        """All that have words, in order: by itself an empty one is none to AllenNLP, and carries no state on there."""
        return [sentence for batch in self.batches for sentence in batch if sentence]

    @property
    def model(self) -> ElmoModel:
        """The same each time."""
        if self.name == "tiny":
            return load_model(model_path("model", None))
        return random_model(*RANDOM[self.name], deviation=0.5)  # vectors as large as a trained model's

    @property
    def mix(self) -> list[float]:
        """A coefficient for each layer."""
        return MIX[: self.model.config.n_layers + 1]

    def write_model(self, folder: Path) -> Path:
        """In the files that the program reads."""
        if self.peer == "elmoformanylangs":
            return manylangs_files.write(self.model, folder)
        write_bilm(self.model, folder)
        return folder

    def outputs(self) -> dict[str, Vectors]:
        """By call, for each sentence [L, T, 2P], or [T, 2P] of `mix`."""
        ends = np.cumsum([len(sentence) for sentence in self.sentences])
        with np.load(FOLDER / f"{self.peer}.npz") as file:
            names = [name for name in file.files if name.startswith(f"{self.name}/")]
            return {name.rpartition("/")[2]: np.split(file[name], ends[:-1], axis=-2) for name in names}

    def in_batches(self, embed: Callable[[list[list[str]]], Iterable[Any]]) -> list[Any]:
        """What `embed` gives for the batches one after the other, of sentences that have words."""
        rows = [(row, sentence) for batch in self.batches for row, sentence in zip(embed(batch), batch, strict=True)]
        return [row for row, sentence in rows if sentence]

    def fresh_outputs(self) -> Vectors:
        """Of all sentences, or of the first ones: those whose state began at zero."""
        outputs = self.outputs()
        return outputs.get("stateless", outputs["stateful"][: len(self.batches[0])])


CASES = [
    *(Case("allennlp", name) for name in ("tiny", "skip", "no clips, tanh", "three layers, no highway")),
    *(Case("bilm", name) for name in ("tiny", *RANDOM) if "manylangs" not in name),
    *(Case("elmoformanylangs", name) for name in RANDOM if "manylangs" in name),
]


def made() -> dict[str, Any]:
    """By program: `versions`, and the models' sha256 by their names."""
    found: dict[str, Any] = json.loads(MADE.read_text(encoding="utf-8"))
    return found


def write(pythons: Mapping[str, str]) -> None:
    """Run each program's code, and keep what it computes."""
    FOLDER.mkdir(exist_ok=True)
    about = made() if MADE.is_file() else {}
    for peer, python in pythons.items():
        cases = [case for case in CASES if case.peer == peer]
        arrays: dict[str, Any] = {}
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                job = Job(case.write_model(Path(folder) / "model"), case.sentences, case.batches, case.mix)
                found = run_peer(f"golden_{peer}", python, job, Path(folder))
            arrays |= {f"{case.name}/{call}": joined(vectors) for call, vectors in found.items()}
        np.savez_compressed(FOLDER / f"{peer}.npz", **arrays)
        models = {case.name: case.model.sha256 for case in cases}
        about[peer] = {"versions": versions(peer, python, PACKAGES_SAID), "models": models}
    MADE.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def joined(vectors: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The tokens of all sentences in one array; what AllenNLP gives for none has a size of its own."""
    return np.concatenate([each for each in vectors if each.shape[-2]], axis=-2).astype(np.float32)
