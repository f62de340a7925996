"""The PyTorch reference as a pipeline: windows of sentences in, results out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

from flashelmo.engine.arrays import Array
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import OnProgress, PipelineInfo, Statistics, Stream, stream_windows
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.settings import Settings
from flashelmo.engine.system.forks import InEachProcess
from flashelmo.engine.text.windows import Window


class ReferencePipeline:
    """The reference with the interface of `WindowPipeline`.

    Args:
        runtime: processes whole sentences.
        keep_boundaries: also return the vectors of the begin and end of every sentence.
    """

    ahead = 0

    def __init__(self, runtime: ReferenceRuntime, keep_boundaries: bool) -> None:
        self._runtime = runtime
        self._keep_boundaries = keep_boundaries
        self._lock = InEachProcess(threading.Lock)
        self.statistics = Statistics()

    def reset_state(self) -> None:
        """Reset every row's state to zero."""
        with self._lock():
            self._runtime.reset_state()

    def stream(
        self, windows: Iterable[Window], output: Output, on_progress: OnProgress, *, as_numpy: bool = True
    ) -> Stream:
        """See `WindowPipeline`; `on_progress` is called when a window is computed."""

        def run(window: Window) -> Iterator[Array]:
            with self._lock():
                layers = self._run(window)
            on_progress(1.0)
            return map(output.choose, layers)

        return stream_windows(windows, run, as_numpy)

    def _run(self, window: Window) -> list[Array]:
        """Return the layers [L, T, 2P] of a window's sentences."""
        sentences = [window.tokens(b) for b in range(len(window))]
        results: list[Any] = self._runtime.embed_batch(sentences, self._keep_boundaries)
        tokens = sum(map(len, sentences))
        self.statistics.sentences += len(sentences)
        self.statistics.tokens += tokens
        self.statistics.words_computed += tokens + 2 * len(sentences)
        self.statistics.steps += 2 * tokens + 4 * len(sentences)
        return results


def make_reference_pipeline(model: ElmoModel, precision: str, settings: Settings) -> PipelineInfo:
    """Return the reference's pipeline, in float32 or float64. If stateful, a window is one batch."""
    runtime = ReferenceRuntime(
        model,
        precision=precision,
        threads=settings.threads,
        stateful=settings.stateful,
        batch_size=settings.batch_size,
    )
    pipeline = ReferencePipeline(runtime, settings.keep_sentence_boundaries)
    return PipelineInfo(pipeline, "cpu", "reference", precision, None)
