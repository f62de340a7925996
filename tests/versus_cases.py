"""What `tests/versus.py` compares: models, precisions, ways to load, calls, sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import PRESETS, random_model
from flashelmo.engine.model.weights import ElmoModel, ElmoWeights, expected_shapes

Sentences = list[list[str]]
Named = Mapping[str, Mapping[str, Any]]

PARTS = ("cpu", "interpreter", "speed")
TINY, GOLDEN = "toy", ("bilm_skip", "bilm_noskip", "manylangs")
MODELS = {"cpu": (TINY, *GOLDEN, "small"), "interpreter": (TINY,), "speed": ("original", "small")}
TINY_CONFIG = ElmoConfig(
    family="bilm", cell_size=6, projection_size=4, n_layers=2, cell_clip=0.5, projection_clip=0.4,
    skip_connections=True, filters=((1, 3), (2, 4), (3, 5)), n_highway=2, activation="relu", character_size=3,
    n_characters=262, max_characters=12,
)  # fmt: skip
ON_CPU: Named = {
    "fp32": {"runtime": "ort"},
    "int8": {"runtime": "ort", "precision": "int8"},
    "bf16": {"runtime": "openvino", "precision": "bf16"},
    "fp32 openvino": {"runtime": "openvino"},
    "fp32 reference": {"runtime": "reference", "batch_size": 4},
    "fp64 reference": {"runtime": "reference", "precision": "fp64"},
}
FAST = ("fp32", "int8", "bf16")  # of these, those that are timed and that whole texts are compared in
IN_INTERPRETER: Named = {name: {"precision": name} for name in ("fp32", "tf32", "bf16", "fp16", "int8")}
WAYS: Named = {
    "": {},
    "small windows": {"keep_sentence_boundaries": True, "window_tokens": 12, "share": False, "cache_bytes": 0},
    "stateful": {"stateful": True, "batch_size": 3},
}
CALLS: Named = {"all": {}, "mean": {"layers": "average", "pool": "mean"}, "mix": {"mix": [0.25, -0.5, 1.75]}}
BULK_TOKENS = {TINY: 500, "small": 16_000, "original": 4_000}  # of a round
SINGLE_TOKENS, SINGLE_REPEATS = 20, 10


@dataclass(frozen=True)
class Settings:
    """What is compared.

    Attributes:
        parts: of PARTS.
        models: None takes each part's of MODELS.
        precisions: of ON_CPU and IN_INTERPRETER.
        text: tokenized lines; None takes the Bible beside the checkout, or Genesis, which comes with it.
        lines: of the text, for whole texts.
        rounds: in which the sides take turns.
        home: a checkout, for text, golden data and what mends Triton's interpreter.
    """

    parts: Sequence[str] = PARTS
    models: Sequence[str] | None = None
    precisions: Sequence[str] = (*ON_CPU, *IN_INTERPRETER)
    text: Path | None = None
    lines: int = 1000
    rounds: int = 9
    home: Path = Path()

    @property
    def data(self) -> Path:
        """Golden data and texts."""
        return self.home.resolve().parent / "shared" / "data"


def cases(
    part: str, model: str, settings: Settings
) -> Iterator[tuple[dict[str, str], dict[str, Any], list[tuple[str, Sentences]]]]:
    """Names, what `load` is told, and calls with their sentences: all combinations; of what is slow or long, some."""
    calls = [(call, _sentences(model, settings)) for call in CALLS]
    plan = dict.fromkeys(WAYS, calls)
    if part == "interpreter":
        long = [[word for line in _lines(settings, 20) for word in line][:40]]
        plan = {way: calls[:1] for way in WAYS} | {"": [*calls, ("all", long)]}
    elif model in PRESETS:
        plan = {"": [("all", _lines(settings, settings.lines))]}
    loads = IN_INTERPRETER if part == "interpreter" else ON_CPU
    for precision in FAST if model in PRESETS else loads:
        if precision in settings.precisions:
            for way, sentences_of_calls in plan.items():
                names = {"part": part, "model": model, "precision": precision, "way": way}
                yield names, {"device": part, **loads[precision], **WAYS[way]}, sentences_of_calls


def make_model(name: str, settings: Settings, folder: Path) -> Path:
    """Where both sides load a model: golden data beside the checkout, or a random one written to the folder."""
    if name in GOLDEN:
        return settings.data / "golden" / name
    if not (folder / name).exists():
        write_native(tiny_model() if name == TINY else random_model(name, seed=0), folder / name)
    return folder / name


def tiny_model() -> ElmoModel:
    """A random model of a few cells."""
    rng, shapes = np.random.default_rng(0), sorted(expected_shapes(TINY_CONFIG).items())
    tensors = {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in shapes}
    return ElmoModel(TINY_CONFIG, ElmoWeights.from_named_tensors(tensors, TINY_CONFIG), None, Path(TINY), "native")


def _sentences(model: str, settings: Settings) -> Sentences:
    """A few ragged ones; for a golden model its own, of which three streams take turns."""
    if model not in GOLDEN:
        words = [word for line in _lines(settings, 20) for word in line]
        return [words[:3], words[:1], [], words[5:10], ["incomprehensibilities", "é"]]
    found = json.loads((settings.data / "golden" / model / "sentences.json").read_text(encoding="utf-8"))
    return found if model == "manylangs" else [line.split() for batch in zip(*found, strict=True) for line in batch]


def _lines(settings: Settings, n_lines: int | None = None) -> Sentences:
    """Of the text, or of the one that comes with the project."""
    path = settings.text or settings.data / "text" / "kjv.txt"
    if settings.text is None and not path.is_file():
        path = settings.home / "examples" / "genesis.txt"
    with path.open(encoding="utf-8") as lines:
        return [line.split() for line in islice(lines, n_lines)]


def texts(settings: Settings, n_tokens: int) -> Iterator[Sentences]:
    """The text in pieces of n_tokens tokens or a few more, again and again."""
    if not any(_lines(settings)):
        raise FlashElmoError(f"{settings.text}: expected tokenized lines, found none")
    piece: Sentences = []
    while True:
        for line in _lines(settings):
            piece.append(line)
            if sum(map(len, piece)) >= n_tokens:
                yield piece
                piece = []
