"""What a run measures, and who takes part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flashelmo.engine.model.config import ElmoConfig

SECTIONS = ("bulk", "single", "memory", "load", "host", "error")
BATCH = 32  # sentences of the reference's batches

# Who can take part -> what `ElmoEmbedder.load` is told.
CONTESTANTS: Mapping[str, Mapping[str, Any]] = {
    "reference": {"runtime": "reference", "batch_size": BATCH},
    "fp32": {"runtime": "ort"},
    "int8": {"runtime": "ort", "precision": "int8"},
    "bf16": {"runtime": "openvino", "precision": "bf16"},
    "fp32 unshared": {"runtime": "ort", "share": False},
    "fp32 openvino": {"runtime": "openvino"},
}


def precision_of(contestant: str) -> str:
    """The precision that a contestant computes in."""
    return str(CONTESTANTS[contestant].get("precision", "fp32"))


@dataclass(frozen=True)
class Settings:
    """One run's settings.

    Attributes:
        models: presets of random models, or paths of models.
        sections: those of SECTIONS that are measured.
        contestants: those of CONTESTANTS that take part; the reference always does.
        text: file of tokenized lines; None takes the real text beside the checkout, or generated text.
        seed: of random weights and generated text.
        threads: processor threads; None takes all cores.
        rounds: every contestant is measured once in each.
        bulk_tokens: tokens of bulk text for the engine; None takes what it computes together, one window.
        reference_batches: batches of 32 sentences that the reference, which is slow, computes of the same text.
        peak_seconds: spent on each shape of the matrix peak.
        single_tokens, single_repeats: length of the single sentence, and how often a round embeds it.
        memory_tokens: lengths of the two texts that peak memory is measured on; None takes one window and two.
        load_repeats: fresh processes that load time is measured in.
        host_tokens: length of the text that the host side is measured on.
        error_sentences: sentences that errors are measured on.
    """

    models: tuple[str, ...] = ("original", "small")
    sections: tuple[str, ...] = SECTIONS
    contestants: tuple[str, ...] = ("fp32", "int8", "bf16")
    text: Path | None = None
    seed: int = 0
    threads: int | None = None
    rounds: int = 5
    bulk_tokens: int | None = None
    reference_batches: int = 3
    peak_seconds: float = 0.3
    single_tokens: int = 20
    single_repeats: int = 5
    memory_tokens: tuple[int, int] | None = None
    load_repeats: int = 5
    host_tokens: int = 600_000
    error_sentences: int = 16

    def quick(self) -> Settings:
        """The same with less of everything: to see that all runs, and roughly how fast."""
        return replace(
            self,
            rounds=min(self.rounds, 2),
            bulk_tokens=4096,
            reference_batches=1,
            peak_seconds=0.05,
            single_repeats=2,
            memory_tokens=(4096, 8192),
            load_repeats=2,
            host_tokens=100_000,
            error_sentences=4,
        )


@dataclass(frozen=True)
class Subject:
    """A model that is measured: its name, its folder in the native format, its dimensions."""

    name: str
    folder: Path
    config: ElmoConfig
