"""A model that is measured, in the native format, which every contestant loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flashelmo.benchmarks.worker import Pool
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import PRESETS, random_model
from flashelmo.engine.model.weights import ElmoModel


@dataclass(frozen=True)
class Subject:
    """A model's name, its folder, beside which texts go, its dimensions, and workers that several sections measure."""

    name: str
    folder: Path
    config: ElmoConfig
    pool: Pool


def load(name: str, seed: int) -> ElmoModel:
    """A model from a path, or a random one of a preset."""
    return random_model(name, seed) if name in PRESETS and not Path(name).exists() else load_model(Path(name))


def prepare(name: str, seed: int, folder: Path, pool: Pool) -> Subject:
    """A model by its preset or path, written to `folder`; the pool lets go of those before it."""
    pool.close()
    model, target = load(name, seed), folder / Path(name).name
    write_native(model, target)
    return Subject(target.name, target, model.config, pool)
