"""Ways to embed a batch, each made in a process of its own, and the line-up of those whose vectors are right."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flashelmo.benchmarks.accuracy import MAX_RELATIVE, relative_errors
from flashelmo.benchmarks.onnx.exported import Exported
from flashelmo.benchmarks.onnx.settings import ENTRANTS, OnnxSettings
from flashelmo.benchmarks.results import FAILED
from flashelmo.benchmarks.settings import CONTESTANTS
from flashelmo.benchmarks.text import Sentences
from flashelmo.benchmarks.worker import Worker
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.model.checkpoints.files import first_line
from flashelmo.engine.text.spelling import Speller
from flashelmo.export.batches import pad
from flashelmo.export.metadata import Metadata
from flashelmo.export.onnx_elmo import OnnxElmo
from flashelmo.export.open_session import options_of

# Relative error of a layer beyond which nothing is timed.
BOUNDS = {"fp32": 1e-5, "fp16": 5e-3, **MAX_RELATIVE}


class Way(NamedTuple):
    """One way to embed a batch.

    Attributes:
        vectors: arrays [L, T, 2P] of its sentences.
        timed: what is timed; its result may stay where it was computed.
    """

    vectors: Callable[[Sentences], list[Array]]
    timed: Callable[[Sentences], object]


class Start(NamedTuple):
    """How a contestant begins, and the precision that it computes in."""

    precision: str
    make: Callable[[], Worker]


class Contestant:
    """A way to embed, with a clock.

    Args:
        make: makes it from the arguments that follow.
    """

    def __init__(self, make: Callable[..., Way], *arguments: Any) -> None:
        self._way = make(*arguments)

    def vectors(self, sentences: Sentences) -> list[Array]:
        """Vectors of one batch."""
        return self._way.vectors(sentences)

    def speed(self, batches: Sequence[Sentences], seconds: float) -> float:
        """Tokens a second of these batches, over and over for so long."""
        n_tokens = count_tokens(batches)
        start, rounds = time.perf_counter(), 0
        while not rounds or time.perf_counter() - start < seconds:
            for batch in batches:
                self._way.timed(batch)
            rounds += 1
        return rounds * n_tokens / (time.perf_counter() - start)


def count_tokens(batches: Sequence[Sentences]) -> int:
    """Tokens of all of them."""
    return sum(len(sentence) for batch in batches for sentence in batch)


def start(name: str, exported: Exported, settings: OnnxSettings) -> Worker:
    """A worker with one of ENTRANTS, from tokens to vectors.

    Raises:
        FlashElmoError: this machine or this installation cannot run it; the message says why.
    """
    entrant, threads = ENTRANTS[name], settings.threads
    if entrant.runs == "onnx":
        return Worker(Contestant, onnx_file, exported.files[entrant.precision], threads, entrant.parallel)
    if entrant.runs == "openvino":
        file = exported.files["fp32"]
        return Worker(Contestant, openvino_file, file, exported.metadata, entrant.precision, threads)
    options = {**CONTESTANTS["reference" if entrant.runs == "reference" else entrant.precision], "threads": threads}
    if entrant.runs == "reference":
        options["batch_size"] = max(settings.batch_sizes)  # it pads a batch as the others do
    return Worker(Contestant, engine, exported.subject.folder, options)


def engine(folder: Path, options: dict[str, Any]) -> Way:
    """The engine, or the reference; its cache of words keeps what it has seen."""
    embed = ElmoEmbedder.load(folder, **options).embed_batch
    return Way(embed, embed)


def onnx_file(path: Path, threads: int | None, parallel: bool) -> Way:
    """An exported file in ONNX Runtime on the processor."""
    elmo = OnnxElmo(path, session_options=session_options(threads, parallel))

    def embed(sentences: Sentences) -> list[Any]:
        return elmo.embed(sentences, batch_size=len(sentences))

    return Way(embed, embed)


def session_options(threads: int | None, parallel: bool) -> Any:
    """ONNX Runtime's options as `OnnxElmo` makes them, or with two branches of the graph running at the same time."""
    options = options_of(None, threads)
    if parallel:
        import onnxruntime

        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        options.inter_op_num_threads = min(2, options.intra_op_num_threads)
        options.intra_op_num_threads = max(1, options.intra_op_num_threads // 2)
    return options


def openvino_file(path: Path, metadata: Metadata, precision: str, threads: int | None) -> Way:
    """An exported float32 file in OpenVINO, which may compute in bfloat16."""
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino", "the exported file in OpenVINO") from error
    from flashelmo.engine.cpu.openvino import has_bf16

    if precision == "bf16" and not has_bf16():
        raise FlashElmoError("this processor has no bfloat16 products (AVX-512 BF16 or AMX)")
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads or 0,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    core = openvino.Core()
    try:
        request = core.compile_model(core.read_model(str(path)), "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise FlashElmoError(f"OpenVINO cannot run the file: {first_line(error)}") from error
    speller = Speller(metadata.config, metadata.lexicon)
    names = [f"hidden_states.{layer}" for layer in metadata.layers]

    def embed(sentences: Sentences) -> list[Array]:
        request.infer(pad(sentences, speller, metadata), share_inputs=True)
        layers = [request.get_tensor(name).data for name in names]
        return [np.stack([layer[row, : len(sentence)] for layer in layers]) for row, sentence in enumerate(sentences)]

    return Way(embed, embed)


def line_up(
    stack: ExitStack, starts: Mapping[str, Start], sentences: Sentences, expected: Sequence[Array]
) -> tuple[dict[str, Worker], dict[str, str]]:
    """Those who can take part and whose vectors are right; and why the others do not.

    Args:
        stack: keeps the workers.
        starts: how each begins, by name.
        sentences, expected: a batch, and the reference's vectors of it.
    """
    workers: dict[str, Worker] = {}
    left_out: dict[str, str] = {}
    for name, begin in starts.items():
        try:
            worker = stack.enter_context(begin.make())
            wrong = why_wrong(worker.call("vectors", sentences), expected, BOUNDS[begin.precision])
        except FlashElmoError as error:
            left_out[name] = str(error)
        except RuntimeError as error:  # a worker's traceback, or that it ended
            left_out[name] = f"{FAILED}: {str(error).strip().splitlines()[-1]}"
        else:
            if wrong:
                left_out[name] = f"{FAILED}: {wrong}"
            else:
                workers[name] = worker
    return workers, left_out


def why_wrong(found: Sequence[Array], expected: Sequence[Array], bound: float) -> str:
    """Empty if every layer's relative error is within the bound; NaN never is."""
    error = float(np.max(relative_errors(found, expected)))
    return "" if error <= bound else f"expected vectors within {bound} of the reference's, found {error:.2g}"
