"""What a run on exported files measures, and who takes part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flashelmo.engine.precision import PrecisionName

SECTIONS = ("speed", "peak", "load", "size", "error", "cuda")
FILE_PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "fp16", "int8")
REFERENCE = "reference"
BASELINE = "onnx fp32"  # whose speed others are given in
PRODUCTS = "products"  # begins the names of rows of products alone


@dataclass(frozen=True)
class Entrant:
    """One who takes part.

    Attributes:
        runs: "onnx" is ONNX Runtime on the exported file, "openvino" OpenVINO on the float32 one.
        precision: that it computes in.
        parallel: ONNX Runtime runs the two directions, which know nothing of each other, at the same time, each with
            half of the threads.
    """

    runs: Literal["reference", "engine", "onnx", "openvino"]
    precision: str
    parallel: bool = False


ENTRANTS: Mapping[str, Entrant] = {
    REFERENCE: Entrant("reference", "fp32"),
    "engine fp32": Entrant("engine", "fp32"),
    "engine int8": Entrant("engine", "int8"),
    "onnx fp32": Entrant("onnx", "fp32"),
    "onnx fp32 parallel": Entrant("onnx", "fp32", parallel=True),
    "onnx int8": Entrant("onnx", "int8"),
    "onnx int8 parallel": Entrant("onnx", "int8", parallel=True),
    "openvino fp32": Entrant("openvino", "fp32"),
    "openvino bf16": Entrant("openvino", "bf16"),
}


@dataclass(frozen=True)
class OnnxSettings:
    """One run's settings.

    Attributes:
        models: presets of random models, or paths of models.
        sections: those of SECTIONS that are measured.
        contestants: those of ENTRANTS that take part in speed and peak; the reference always does in speed.
        text: file of tokenized lines; None takes the real text beside the checkout, or generated text.
        seed: of random weights and generated text.
        threads: processor threads; None takes all cores.
        rounds: every contestant is measured once in each.
        batch_sizes: sentences of a batch.
        passages: runs of 32 sentences that batches are made of, drawn evenly from the text.
        text_tokens: length of the text that they are drawn from.
        checked: sentences whose vectors are compared before anything is timed.
        sample_seconds: that a measurement lasts at least, in whole calls.
        peak_rows, peak_steps: sentences, and tokens of each, that the share of the peak is measured on.
        peak_repeats: calls in a round, of which the median counts.
        peak_seconds: spent on each shape of the matrix peak.
        load_repeats: fresh processes that load time is measured in.
        error_sentences: sentences that errors are measured on.
    """

    models: tuple[str, ...] = ("original", "small")
    sections: tuple[str, ...] = SECTIONS
    contestants: tuple[str, ...] = tuple(ENTRANTS)[1:]
    text: Path | None = None
    seed: int = 0
    threads: int | None = None
    rounds: int = 4
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128)
    passages: int = 4
    text_tokens: int = 32_768
    checked: int = 8
    sample_seconds: float = 0.2
    peak_rows: int = 32
    peak_steps: int = 16
    peak_repeats: int = 3
    peak_seconds: float = 0.3
    load_repeats: int = 5
    error_sentences: int = 16

    def quick(self) -> OnnxSettings:
        """The same with less of everything: to see that all runs, and roughly how fast."""
        return replace(
            self,
            rounds=min(self.rounds, 2),
            batch_sizes=(1, 8, 32),
            passages=1,
            text_tokens=4096,
            checked=3,
            sample_seconds=0.02,
            peak_repeats=2,
            peak_seconds=0.05,
            load_repeats=1,
            error_sentences=4,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; of paths, which say something of the machine's owner, only the last part."""
        models = [Path(name).name for name in self.models]
        return {**asdict(self), "models": models, "text": self.text and self.text.name}
