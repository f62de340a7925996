"""What a run of the engine on a GPU measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SECTIONS = ("correctness", "speed", "stages", "switches")
PRECISIONS = ("bf16", "fp32", "int8", "fp16", "tf32")  # by what is measured first


@dataclass(frozen=True)
class EngineSettings:
    """One run's settings.

    Attributes:
        models: presets of random models, the one that targets are set for first.
        sections: those of SECTIONS that are measured.
        precisions: that take part.
        thorough: precisions in which every way to embed is checked, not the batch alone.
        text: file of tokenized lines; None takes the real text beside the checkout, or generated text.
        golden: folder of small models with published vectors; None leaves them out.
        seed: of random weights and generated text.
        off: switches of the CUDA runtime that are off throughout.
        real_sentences, short_sentences: that are checked: as the text has them, and of three tokens, so that a step
            has many rows.
        stateful_rows: of the stateful batches that are checked.
        tokens: of a sentence in batches of equal ones.
        batches: their sentences.
        other_batches: those in which precisions other than the first take part.
        bulk_tokens, short_bulk_tokens: of bulk text, for who is fast and for who is slow; on a slow card fewer.
        eager_batch: sentences of the reference's batches in bulk text.
        peak_size, copy_bytes, l2_copy_bytes: of the products and copies that measure ceilings.
        rounds, sample_seconds: samples of each time, and how long one is at least.
        compile_seconds: that torch.compile may take.
        onnx: an exported model that ONNX Runtime runs.
        sanitize: run the checks again under compute-sanitizer.
        limit_seconds: what has not begun by then is left out.
    """

    models: tuple[str, ...] = ("original", "small")
    sections: tuple[str, ...] = SECTIONS
    precisions: tuple[str, ...] = PRECISIONS
    thorough: tuple[str, ...] = ("bf16", "fp32")
    text: Path | None = None
    golden: Path | None = None
    seed: int = 0
    off: tuple[str, ...] = ()
    real_sentences: int = 24
    short_sentences: int = 300
    stateful_rows: int = 4
    tokens: int = 20
    batches: tuple[int, ...] = (32, 128, 512)
    other_batches: tuple[int, ...] = (32,)
    bulk_tokens: int = 1 << 21
    short_bulk_tokens: int = 1 << 16
    eager_batch: int = 32
    peak_size: int = 8192
    copy_bytes: int = 2 << 30
    l2_copy_bytes: int = 8 << 20
    rounds: int = 5
    sample_seconds: float = 0.05
    compile_seconds: float = 75.0
    onnx: Path | None = None
    sanitize: bool = False
    limit_seconds: float = 480.0
