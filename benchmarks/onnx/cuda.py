"""The exported files on ONNX Runtime's CUDA provider, beside the native kernels: tokens in, vectors left on the card.

ONNX Runtime drives a Scan from the host, step by step (onnxruntime#11986), and copies what one device has computed and
another needs (nodes named Memcpy) again in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime

from flashelmo.benchmarks.contestant import REFERENCE, Contestant, Way, absentees, line_up
from flashelmo.benchmarks.onnx.contestants import Exported, contestant
from flashelmo.benchmarks.onnx.speed import batches_of, passages_of, row_of, time_all, timed
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
NO_PROVIDER = "this ONNX Runtime has no CUDA provider"
WARM_UPS = 4  # the native runtime compiles with the first, captures a graph with the second, and replays it then


def measure_cuda(exported: Exported, settings: Settings) -> list[Row]:
    """Tokens a second of both, and the copies in ONNX Runtime's graphs; or one row that says why there are none."""
    model = exported.subject.name
    if PROVIDER not in onnxruntime.get_available_providers():
        return absentees("cuda", model, {"onnx on a card": NO_PROVIDER})
    passages, source = passages_of(settings)
    work = {size: batches_of(passages, size) for size in settings.batches}
    checked = passages[0][: settings.checked]
    expected = contestant(REFERENCE, exported, settings).start(exported.subject.pool).call("vectors", checked)
    with Pool() as pool:
        workers, absent = line_up(contestants(exported), checked, expected, pool)
        timings = time_all(workers, work, settings, WARM_UPS)

    rows = []
    for size, batches in work.items():
        for precision in PRECISIONS:
            pair = [
                timed(row_of("cuda", model, name, size, batches, source), timings[name, size], batches)
                for name in (f"onnx {precision}", f"engine {precision}")
                if (name, "") in workers
            ]
            rows += with_ratios(pair, {row.name: row for row in pair if row.name.startswith("onnx")})
    for precision in PRECISIONS:
        if (f"onnx {precision}", "") in workers:
            rows += copy_rows(model, precision, optimized_file(exported, precision))
    return [*rows, *absentees("cuda", model, absent)]


def contestants(exported: Exported) -> list[Contestant]:
    """The files, and the native kernels in the same precisions."""
    found = []
    for precision in PRECISIONS:
        given = exported.files[precision], optimized_file(exported, precision)
        found.append(Contestant(f"onnx {precision}", precision, file_on_card, given, place="onnx"))
        native = exported.subject.folder, precision
        found.append(Contestant(f"engine {precision}", precision, native_on_card, native, place="cuda"))
    return found


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


def optimized_file(exported: Exported, precision: str) -> Path:
    """Where the graph goes that ONNX Runtime makes of a file."""
    return exported.folder / f"{precision} on a card.onnx"


def copy_rows(model: str, precision: str, optimized: Path) -> Iterator[Row]:
    """How many copies between host and card are in a graph, and in the bodies of its Scans, which run in every step."""
    graph = onnx.load(optimized, load_external_data=False).graph
    common = {"section": "cuda", "model": model, "name": f"onnx {precision}", "unit": "Memcpy nodes"}
    within = sum(_copies(body) for body in _bodies(graph))
    for detail, number in (("copies a run", _copies(graph) - within), ("copies a step", within)):
        yield Row.of([number], **common, detail=detail)


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
