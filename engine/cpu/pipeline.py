"""Windows to vectors on the processor: plan, word vectors, biLSTM, and gathering of the requested layers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

from flashelmo.engine.arrays import Float32, Int32
from flashelmo.engine.cpu.bilstm import BiLstm, RowStates
from flashelmo.engine.cpu.runtime import Runtime
from flashelmo.engine.cpu.word_file import WordFile
from flashelmo.engine.cpu.word_vectors import WordVectors
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Output, pool_tokens
from flashelmo.engine.pipeline import OnProgress, PipelineInfo, Planner, Statistics, Stream, stream_windows
from flashelmo.engine.precision import PRECISIONS
from flashelmo.engine.settings import Settings
from flashelmo.engine.system.forks import InEachProcess
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.engine.text.schedule import MAX_WINDOW_TOKENS, Schedule
from flashelmo.engine.text.windows import Window

Source: TypeAlias = tuple[Float32, Int32]  # states [N, P], and each token's row in them [tokens]

WINDOW_BYTES = 256 << 20  # of a window's hidden states, all layers and directions
FILE_TIMES = 8  # the word cache's file may be this many times as large as the cache in memory


class CpuPipeline:
    """Embeds windows on a runtime that executes the graph's pieces, each window when it is asked for.

    Args:
        model, runtime: what to compute, and on what.
        settings: boundaries, sharing, state and the size of the word cache.
        words: word vectors kept from earlier runs.
    """

    ahead = 0

    def __init__(self, model: ElmoModel, runtime: Runtime, settings: Settings, words: WordFile | None = None) -> None:
        self._config = model.config
        self._settings = settings
        encoder = WordEncoder(model.config, model.lexicon)
        self._planner = Planner(encoder.boundary_words, settings)
        self._words = WordVectors(model.config, encoder, runtime, settings.cache_bytes, words)
        self._bilstm = BiLstm(model.config, runtime)
        self._state = RowStates() if settings.stateful or not settings.share else None
        self._lock = InEachProcess(threading.Lock)  # one window at a time: state, cache, memory are shared
        self._running = object()  # a new object for every window
        self._run_by = threading.local()  # `window`: what this thread is computing
        self.statistics = Statistics()

    def reset_state(self) -> None:
        """Reset every row's state to zero."""
        self._check_not_inside()
        with self._lock():
            self._clear_state()

    def stream(
        self, windows: Iterable[Window], output: Output, on_progress: OnProgress, *, as_numpy: bool = True
    ) -> Stream:
        """See `WindowPipeline`; `on_progress` is called after every step and every group of new words."""

        def run(window: Window) -> Iterator[Float32]:
            self._check_not_inside()
            with self._lock():
                self._running = self._run_by.window = object()
                try:
                    return self._run(window, output, on_progress)
                finally:
                    self._run_by.window = None

        return stream_windows(windows, run, as_numpy)

    def _check_not_inside(self) -> None:
        """Raise FlashElmoError in a thread that is computing a window: it would wait for itself."""
        if self._lock().locked() and getattr(self._run_by, "window", None) is self._running:
            raise FlashElmoError("embedder: called from within its own progress callback; use another embedder there")

    def _clear_state(self) -> None:
        if self._state is not None:
            self._state = RowStates()

    def _run(self, window: Window, output: Output, on_progress: OnProgress) -> Iterator[Float32]:
        """Compute a window; then return an iterator over its sentences' results."""
        plan = self._planner.plan(window)
        schedule = plan.schedule
        n_steps = max(1, schedule.n_nodes * self._config.n_layers)
        # A word's vector takes about as many products as a step of a layer.
        vectors, n_new = self._words.lookup(plan.words, lambda n_done, n_new: on_progress(n_done / (n_new + n_steps)))
        if not self._settings.stateful:
            self._clear_state()
        state = None if self._state is None else self._state.copy()
        done = n_new
        lock, running = threading.Lock(), self._running

        def count(nodes: int) -> None:
            nonlocal done
            self._run_by.window = running  # each direction has its own thread
            with lock:
                done += nodes
                on_progress(done / (n_new + n_steps))

        layers = self._bilstm.run(schedule, vectors, state, count)
        self._state = state  # only now: had an error been raised before, the batch would not have happened
        self.statistics.count(window, schedule, n_new, self._settings.keep_sentence_boundaries)
        return _sentences(schedule, vectors, layers, output)


def make_cpu_pipeline(model: ElmoModel, runtime: str, precision: str, settings: Settings) -> PipelineInfo:
    """Return the pipeline on the named runtime, "ort", "avx512" or "openvino".

    Raises:
        MissingExtraError: the runtime's package is not installed.
        FlashElmoError: the processor lacks the precision.
    """
    words = None if settings.word_cache is None else _word_file(model, runtime, precision, settings)
    pipeline = CpuPipeline(model, make_runtime(model, runtime, precision, settings.threads or 0), settings, words)
    return PipelineInfo(pipeline, "cpu", runtime, precision, _tokens_at_once(model.config))


def _word_file(model: ElmoModel, runtime: str, precision: str, settings: Settings) -> WordFile:
    """Return the file of word vectors of this model, in this precision, on this runtime."""
    config = json.dumps(model.config.to_dict(), sort_keys=True)
    belongs_to = {"sha256": model.sha256, "configuration": config, "precision": precision, "runtime": runtime}
    path, size = Path(settings.word_cache or ""), model.config.projection_size
    return WordFile(path, belongs_to, size, FILE_TIMES * settings.cache_bytes)


def make_runtime(model: ElmoModel, name: str, precision: str, threads: int) -> Runtime:
    """Return the named runtime, "ort", "avx512" or "openvino", on `threads` threads; 0 takes all cores."""
    from flashelmo.engine.graph.tensors import prepare_tensors  # needs onnx, which a CUDA device does not

    if name == "avx512":
        from flashelmo.engine.cpu.avx512 import Avx512Runtime

        return Avx512Runtime(model.config, model.weights, PRECISIONS[precision].bits, threads)
    arithmetic = PRECISIONS[precision].on("cpu")
    if name == "openvino":
        from flashelmo.engine.cpu.openvino import OpenVinoRuntime

        tensors = prepare_tensors(model.config, model.weights, "float32")
        return OpenVinoRuntime(model.config, tensors, arithmetic.dtype, threads)
    from flashelmo.engine.cpu.ort import OrtRuntime

    tensors = prepare_tensors(model.config, model.weights, arithmetic.lstm_weights)
    return OrtRuntime(model.config, tensors, arithmetic.lstm_weights, threads)


def _tokens_at_once(config: ElmoConfig) -> int:
    return min(MAX_WINDOW_TOKENS, max(1, WINDOW_BYTES // (4 * config.output_size * config.n_layers)))


def _sentences(
    schedule: Schedule, vectors: Float32, layers: list[tuple[Float32, Float32]], output: Output
) -> Iterator[Float32]:
    """Yield what is requested of each sentence and no more. Layer 0 is [x, x], the others are [forward, backward]."""
    words, nodes = schedule.token_words, (schedule.forward.token_nodes, schedule.backward.token_nodes)
    sources = [((vectors, words), (vectors, words))]
    sources += [((forward, nodes[0]), (backward, nodes[1])) for forward, backward in layers]
    groups = [[sources[layer] for layer in group] for group in output.groups(len(sources))]
    for start, stop in zip(schedule.offsets[:-1], schedule.offsets[1:], strict=True):
        yield _sentence(groups, slice(start, stop), 2 * vectors.shape[1], output)


def _sentence(groups: list[list[tuple[Source, Source]]], tokens: slice, size: int, output: Output) -> Float32:
    """Return the result for the tokens of one sentence; at any time, at most one extra layer is held."""
    n_tokens = tokens.stop - tokens.start
    result = np.empty((len(groups), size) if output.pool else (len(groups), n_tokens, size), np.float32)
    for row, group in zip(result, groups, strict=True):
        chosen = np.empty((n_tokens, size), np.float32) if output.pool else row
        for k, halves in enumerate(group):
            _gather(halves, tokens, chosen, add=k > 0, factor=None if output.mix is None else float(output.mix[k]))
        if output.mix is None and len(group) > 1:
            chosen /= len(group)
        if output.pool:
            row[:] = pool_tokens(chosen, output.pool)
    return result[0] if output.single else result


def _gather(
    halves: tuple[Source, Source], tokens: slice, into: Float32, *, add: bool, factor: float | None = None
) -> None:
    """Write a layer's vectors, times a factor, into [T, 2P], or add them to what is there."""
    size = into.shape[1] // 2
    for half, (states, rows) in zip((into[:, :size], into[:, size:]), halves, strict=True):
        found = states[rows[tokens]]
        if factor is not None:
            found *= np.float32(factor)
        if add:
            half += found
        else:
            half[:] = found
        del found  # frees memory before the next half takes as much
