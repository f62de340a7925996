"""The exported files on ONNX Runtime's CUDA provider, beside the native kernels: tokens in, vectors left on the card.

ONNX Runtime drives a Scan from the host, step by step (onnxruntime#11986), and copies what one device has computed and
another needs (nodes named Memcpy) again in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import onnx
import onnxruntime

from flashelmo.benchmarks.contestant import Contestant, Way, absentees
from flashelmo.benchmarks.onnx.contestants import Exported
from flashelmo.benchmarks.onnx.speed import compare, draw_batches, time_all
from flashelmo.benchmarks.results import Row, with_ratios
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import Sentences
from flashelmo.benchmarks.worker import Pool
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.precision import PrecisionName
from flashelmo.export.onnx_elmo import OnnxElmo
from flashelmo.export.open_session import options_of

PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "fp16")
PROVIDER = "CUDAExecutionProvider"
WARM_UPS = 4  # the native runtime compiles with the first, captures a graph with the second, and replays it then


def measure_cuda(exported: Exported, settings: Settings) -> list[Row]:
    """Tokens a second of both, and the copies in ONNX Runtime's graphs; or one row that says why there are none."""
    model, work = exported.subject.name, draw_batches(settings)
    if PROVIDER not in onnxruntime.get_available_providers():
        return absentees("cuda", model, {"onnx on a card": "this ONNX Runtime has no CUDA provider"})
    contestants = []
    for precision in PRECISIONS:
        given = exported.files[precision], _optimized(exported, precision)
        contestants.append(Contestant(f"onnx {precision}", precision, file_on_card, given, "onnx"))
        native = exported.subject.folder, precision
        contestants.append(Contestant(f"engine {precision}", precision, native_on_card, native, "cuda"))
    with Pool() as pool:
        workers, absent = compare(contestants, work, exported, settings, pool)
        timings = time_all(workers, work, settings, WARM_UPS)

    rows = []
    for batches, precision in product(work, PRECISIONS):
        names = [name for name, _ in workers if name.endswith(precision)]
        pair = [batches.row("cuda", model, name, timings[name, batches.size]) for name in names]
        rows += with_ratios(pair, {row.name: row for row in pair if row.name.startswith("onnx")})
    for precision in PRECISIONS:
        if (f"onnx {precision}", "") in workers:
            rows += copy_rows(model, precision, _optimized(exported, precision))
    return [*rows, *absentees("cuda", model, absent)]


def _optimized(exported: Exported, precision: str) -> Path:
    """Where the graph goes that ONNX Runtime makes of a file."""
    return exported.folder / f"{precision} on a card.onnx"


def file_on_card(path: Path, optimized: Path) -> Way:
    """An exported file on the CUDA provider.

    Args:
        optimized: where ONNX Runtime writes the graph that it runs.
    """
    options = options_of(None, None)
    options.optimized_model_filepath = str(optimized)
    elmo = OnnxElmo(path, providers=[PROVIDER], session_options=options)
    outputs = [f"hidden_states.{layer}" for layer in elmo.layers]

    def run(sentences: Sentences) -> object:
        return elmo.run(outputs=outputs, on_device=True, **elmo.inputs(sentences))

    return Way(lambda sentences: elmo.embed(sentences, batch_size=len(sentences)), run)


def native_on_card(folder: Path, precision: PrecisionName) -> Way:
    """The engine's kernels."""
    embedder = ElmoEmbedder.load(folder, device="cuda", precision=precision)
    import torch  # which is there, as the engine runs on the card

    def run(sentences: Sentences) -> None:
        list(embedder.embed(sentences, convert_to_numpy=False))
        torch.cuda.synchronize()

    return Way(embedder.embed_batch, run)


def copy_rows(model: str, precision: str, optimized: Path) -> list[Row]:
    """How many copies between host and card are in a graph, and in the bodies of its Scans, which run in every step."""
    graph = onnx.load(optimized, load_external_data=False).graph
    within = sum(_copies(body) for body in _bodies(graph))
    copies = {"copies a run": _copies(graph) - within, "copies a step": within}
    row = Row("cuda", model, f"onnx {precision}", "Memcpy nodes")
    return [replace(row, detail=detail).with_samples([number]) for detail, number in copies.items()]


def _copies(graph: onnx.GraphProto) -> int:
    """Nodes of a graph, and of all graphs in it, that ONNX Runtime put in to copy between devices."""
    here = [node for node in graph.node if node.op_type.startswith("Memcpy")]
    return len(here) + sum(_copies(body) for body in _bodies(graph))


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Graphs of a graph's nodes, as a Scan's step."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
