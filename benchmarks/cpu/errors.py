"""How far the vectors of each precision lie from the exact ones."""

from __future__ import annotations

from flashelmo.benchmarks.accuracy import absolute_errors, relative_errors
from flashelmo.benchmarks.cpu.contestants import REFERENCE, contestant, precision_of
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.subject import Subject
from flashelmo.benchmarks.text import Sentences, load_sentences
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.errors import FlashElmoError


def measure_errors(subject: Subject, settings: Settings) -> list[Row]:
    """Relative error of every layer against float32, and float32 against the reference in float64."""
    text, _ = load_sentences(40 * settings.sentences, settings.text, settings.seed)
    sentences = text[: settings.sentences]
    exact = _vectors(subject, settings, REFERENCE, sentences, precision="fp64")
    ours = _vectors(subject, settings, "fp32", sentences)
    rows = _rows(subject, "fp32", "max abs error against fp64", absolute_errors(ours, exact))
    for name in settings.contestants:
        if precision_of(name) == "fp32":
            continue
        try:
            found = _vectors(subject, settings, name, sentences)
        except FlashElmoError as reason:
            rows.append(Row("error", subject.name, name, "relative error", note=str(reason)))
            continue
        rows += _rows(subject, name, "relative error", relative_errors(found, ours))
    return rows


def _vectors(subject: Subject, settings: Settings, name: str, sentences: Sentences, **options: str) -> list[Array]:
    vectors: list[Array] = contestant(subject, settings, name, **options).start(subject.pool).call("vectors", sentences)
    return vectors


def _rows(subject: Subject, name: str, unit: str, by_layer: list[float]) -> list[Row]:
    return [
        Row("error", subject.name, name, unit, f"layer {layer}").with_samples([error])
        for layer, error in enumerate(by_layer)
    ]
