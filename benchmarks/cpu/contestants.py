"""Who can take part on the processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashelmo.benchmarks.contestant import Contestant, engine
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.subject import Subject
from flashelmo.benchmarks.text import PASSAGE

REFERENCE = "reference"

# Who -> what `ElmoEmbedder.load` is told.
CONTESTANTS: Mapping[str, Mapping[str, Any]] = {
    REFERENCE: {"runtime": "reference", "batch_size": PASSAGE},
    "fp32": {"runtime": "ort"},
    "int8": {"runtime": "ort", "precision": "int8"},
    "bf16": {"runtime": "openvino", "precision": "bf16"},
    "fp32 unshared": {"runtime": "ort", "share": False},
    "fp32 openvino": {"runtime": "openvino"},
}


def precision_of(name: str) -> str:
    """The precision that one of CONTESTANTS computes in."""
    return str(CONTESTANTS[name].get("precision", "fp32"))


def options_of(name: str, settings: Settings, **options: Any) -> dict[str, Any]:
    """What `ElmoEmbedder.load` is told, with all threads that the run has."""
    return {**CONTESTANTS[name], "threads": settings.threads, **options}


def contestant(subject: Subject, settings: Settings, name: str, detail: str = "", **options: Any) -> Contestant:
    """One of CONTESTANTS, in other respects as the options say."""
    told = options_of(name, settings, **options)
    return Contestant(
        name,
        str(told.get("precision", "fp32")),
        engine,
        (subject.folder, told),
        detail=detail,
        is_rival=name == REFERENCE,
    )
