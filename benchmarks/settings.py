"""What a run measures and how much of it: one object for every suite, which begins from its own defaults."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """One run's settings; a suite ignores those that it has no use for.

    Attributes:
        out: file or folder of the results; None writes none.
        sections: what is measured.
        models: presets of random models, or paths of models.
        contestants: who takes part; the reference always does.
        precisions: that take part, the first one thoroughly.
        text: file of tokenized lines; None takes the real text beside the checkout, or generated text.
        seed: of random weights and generated text.
        threads: processor threads; None takes all cores.
        rounds: everybody is measured once in each.
        limit_seconds: what has not begun by then is left out; None knows no limit.
        commit: of the sources, where they are no checkout.
        sentences, tokens: real sentences that errors are measured on; tokens of a single sentence, and of each in
            batches of equal ones.
        checked: sentences whose vectors are compared before anything is timed.
        batches: sentences of a batch.
        sample_seconds: that a measurement lasts at least, in whole calls.
        bulk_tokens: of bulk text; None takes what the engine computes together, one window.
        reference_batches: batches of 32 sentences of bulk text that the reference, which is slow, computes.
        single_repeats: calls with a single sentence in a round, of which the median counts.
        memory_tokens: lengths of the two texts that peak memory is measured on; None takes one window and two.
        load_repeats: fresh processes that load time is measured in.
        host_tokens: length of the text that the host side is measured on.
        peak_seconds: spent on each shape of the matrix peak.
        passages, text_tokens: runs of 32 sentences that ragged batches are made of, drawn evenly from so long a text.
        peak_rows, peak_steps, peak_repeats: equal sentences and their tokens that the share of the peak is measured
            on, and calls in a round.
        golden: folder of small models with published vectors; None leaves them out.
        onnx: an exported model that ONNX Runtime runs on the card.
        off: switches of the CUDA runtime that are off throughout.
        few: check few sentences, of random models alone.
        sanitize: run the checks again under compute-sanitizer.
        thorough: precisions in which every way to embed is checked, not the batch alone.
        short_sentences: sentences of three tokens that are checked, so that a step has many rows.
        stateful_rows: of the stateful batches that are checked.
        other_batches: those in which precisions other than the first take part.
        short_bulk_tokens: of bulk text for slow contestants.
        eager_batch: sentences of the reference's batches in bulk text on a card.
        peak_size, copy_bytes, l2_copy_bytes: of the products and copies that measure a card's ceilings.
        compile_seconds: that torch.compile may take.
        rows, other_rows, compiled_rows: of a step, in each direction; those at which precisions other than bf16 and
            int8 are timed, and those at which torch.compile takes part.
        words, layer_tokens, input_nodes: of characters and highways, of token layers, of the hoisted input product.
        operations: whose tiles are compared.
        card: whose times are predicted.
        target, kernel: compute capability that kernels are compiled for, None being all, and how their names begin.
        show: results whose tables are printed.
    """

    out: Path | None = None
    sections: tuple[str, ...] = ()
    models: tuple[str, ...] = ("original", "small")
    contestants: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    text: Path | None = None
    seed: int = 0
    threads: int | None = None
    rounds: int = 5
    limit_seconds: float | None = None
    commit: str | None = None
    sentences: int = 16
    tokens: int = 20
    checked: int = 3
    batches: tuple[int, ...] = (1, 8, 32, 128)
    sample_seconds: float = 0.2
    # the processor
    bulk_tokens: int | None = None
    reference_batches: int = 3
    single_repeats: int = 5
    memory_tokens: tuple[int, int] | None = None
    load_repeats: int = 5
    host_tokens: int = 600_000
    peak_seconds: float = 0.3
    # exported files
    passages: int = 4
    text_tokens: int = 32_768
    peak_rows: int = 32
    peak_steps: int = 16
    peak_repeats: int = 3
    # a card
    golden: Path | None = None
    onnx: Path | None = None
    off: tuple[str, ...] = ()
    few: bool = False
    sanitize: bool = False
    thorough: tuple[str, ...] = ()
    short_sentences: int = 300
    stateful_rows: int = 4
    other_batches: tuple[int, ...] = (32,)
    short_bulk_tokens: int = 1 << 16
    eager_batch: int = 32
    peak_size: int = 8192
    copy_bytes: int = 2 << 30
    l2_copy_bytes: int = 8 << 20
    compile_seconds: float = 75.0
    # kernels
    rows: tuple[int, ...] = ()
    other_rows: tuple[int, ...] = (32, 512)
    compiled_rows: tuple[int, ...] = (32, 512)
    words: tuple[int, ...] = ()
    layer_tokens: int = 0
    input_nodes: int = 2048
    operations: tuple[str, ...] = ()
    card: str = "H200"
    target: int | None = None
    kernel: str = ""
    show: Path | None = None

    def quick(self) -> Settings:
        """The same with less of everything: to see that all runs, and roughly how fast."""
        return replace(
            self,
            models=self.models[-1:],
            rounds=1,
            sentences=min(self.sentences, 4),
            batches=self.batches[:3],
            sample_seconds=0.02,
            bulk_tokens=4096,
            reference_batches=1,
            single_repeats=2,
            memory_tokens=(4096, 8192),
            load_repeats=1,
            host_tokens=100_000,
            peak_seconds=0.05,
            passages=1,
            text_tokens=4096,
            peak_repeats=2,
            short_sentences=min(self.short_sentences, 30),
            short_bulk_tokens=4096,
            peak_size=1024,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what is not set; of paths, which say something of their owner, only the last part."""
        values = asdict(self) | {"models": [Path(name).name for name in self.models]}
        del values["out"]
        return {
            name: value.name if isinstance(value, Path) else value
            for name, value in values.items()
            if value not in (None, "", (), False)
        }
