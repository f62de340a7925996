"""How far each exported file lies from the exact vectors."""

from __future__ import annotations

from flashelmo.benchmarks.onnx.contestants import Contestant, count_tokens, engine, onnx_file
from flashelmo.benchmarks.onnx.exported import Exported
from flashelmo.benchmarks.onnx.settings import OnnxSettings
from flashelmo.benchmarks.precision import rows
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import CONTESTANTS
from flashelmo.benchmarks.text import load_sentences
from flashelmo.benchmarks.worker import Worker


def measure_errors(exported: Exported, settings: OnnxSettings) -> list[Row]:
    """Largest absolute and relative error of every layer of each file against the reference in float64.

    Raises:
        FlashElmoError: a vector is not finite.
    """
    text, source = load_sentences(40 * settings.error_sentences, settings.text, settings.seed)
    sentences = text[: settings.error_sentences]
    note = f"{len(sentences)} sentences, {count_tokens([sentences])} tokens of {source}"
    options = {**CONTESTANTS["reference"], "precision": "fp64", "threads": settings.threads}
    with Worker(Contestant, engine, exported.subject.folder, options) as worker:
        exact = worker.call("vectors", sentences)
    found: list[Row] = []
    for precision, file in exported.files.items():
        with Worker(Contestant, onnx_file, file, settings.threads, False) as worker:
            vectors = worker.call("vectors", sentences)
        found += rows(exported.subject.name, f"onnx {precision}", vectors, exact, note)
    return sorted(found, key=lambda row: row.unit)
