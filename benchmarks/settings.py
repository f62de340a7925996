"""What a run measures and how much of it: one object for every suite, and what the command line says of each field."""

# ruff: noqa: RUF009 (`_is` makes fields)
from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any


def _is(default: Any, about: str, flag: str = "", *, least: int = 1, quick: Any = None) -> Any:
    """A setting: its default, what it is, its option where that is called otherwise, the least that it may be, and the
    most that it is in a quick run.
    """
    return field(default=default, metadata={"about": about, "flag": flag, "least": least, "quick": quick})


@dataclass(frozen=True)
class Settings:
    """One run's settings; a suite ignores those that it has no use for."""

    out: Path | None = _is(None, "JSON file or folder to write the results to")
    sections: tuple[str, ...] = _is((), "what to measure", "--only")
    models: tuple[str, ...] = _is(
        ("original", "small"), "presets, with random weights; tiny, which comes with flashelmo; or paths of models"
    )
    contestants: tuple[str, ...] = _is((), "who takes part beside the reference")
    precisions: tuple[str, ...] = _is((), "which precisions take part, the most important first")
    text: Path | None = _is(None, "tokenized lines to measure with; default: a text beside the checkout, or generated")
    seed: int = _is(0, "seed of random weights and generated text", least=0)
    threads: int | None = _is(None, "CPU threads; default: all cores")
    rounds: int = _is(5, "rounds; in each, everybody is measured once", quick=1)
    limit_seconds: float | None = _is(None, "seconds after which nothing more is begun")
    commit: str | None = _is(None, "commit of the sources, where they are no checkout")
    sentences: int = _is(16, "real ones that errors are measured on", quick=4)
    tokens: int = _is(20, "tokens of a sentence, where its length is chosen")
    checked: int = _is(3, "sentences whose vectors are compared before anything is timed")
    batches: tuple[int, ...] = _is((1, 8, 32, 128), "sentences of a batch")
    sample_seconds: float = _is(0.2, "that a measurement lasts at least, in whole calls", quick=0.02)
    # the processor
    bulk_tokens: int | None = _is(None, "of bulk text; default: one window, what is computed together", quick=4096)
    reference_batches: int = _is(3, "of 32 sentences of bulk text that the reference, which is slow, computes", quick=1)
    memory_tokens: tuple[int, ...] = _is(
        (), "of two texts for peak memory; default: a window and two", quick=(4096, 8192)
    )
    load_repeats: int = _is(5, "fresh processes that load time is measured in", quick=1)
    peak_seconds: float = _is(0.3, "spent on each shape of the matrix peak", quick=0.05)
    # what a trained model knows
    data: Path | None = _is(None, "folder with text/ and tasks/; default: the one beside the checkout")
    corpus: Path | None = _is(None, "folder that `corpus` wrote: the text that models and word vectors learn from")
    snapshots: tuple[str, ...] = _is((), "models in the course of training")
    vocabulary: Path | None = _is(None, "words of a model's softmax, a line each, behind <S>, </S> and <UNK>")
    order: int = _is(5, "number of words of the longest n-grams", least=2)
    random_seeds: int = _is(3, "models with random weights of each shape", quick=1)
    examples: int | None = _is(None, "most examples of each sense", quick=5)
    resamples: int = _is(2000, "of the examples, to tell intervals", least=40, quick=100)
    tagged_tokens: int = _is(40_000, "that a tagger learns from, and half as many that it is tested on", quick=2000)
    heldout: int | None = _is(None, "most sentences of held-out text", quick=50)
    runs: int = _is(5, "of each that learns, with seeds of their own", least=2, quick=2)
    # the service
    clients: tuple[int, ...] = _is((1, 4, 16, 64), "numbers of clients of the service at once")
    requests: int = _is(512, "requests of all clients together, in each measurement", quick=64)
    memory_requests: int = _is(100_000, "requests over which the service's memory is watched", quick=200)
    # exported files
    passages: int = _is(4, "runs of 32 sentences that ragged batches are made of, drawn evenly from the text", quick=1)
    text_tokens: int = _is(32_768, "of that text", quick=4096)
    # a card
    check: bool = _is(False, "check in minutes what a card must show, the most valuable first")
    part_seconds: float | None = _is(None, "seconds that a section may take", "--seconds")
    trace: bool = _is(False, "record what the device and the host do in three calls")
    switches: tuple[str, ...] = _is((), "switches of the CUDA runtime that are reversed throughout", "--switch")
    few: bool = _is(False, "check only few sentences, as under compute-sanitizer")
    thorough: tuple[str, ...] = _is((), "precisions in which every way to embed is checked, not the batch alone")
    short_sentences: int = _is(300, "of three tokens that are checked, so that a step has many rows")
    stateful_rows: int = _is(4, "of the stateful batches that are checked")
    other_batches: tuple[int, ...] = _is((32,), "in which precisions other than the first take part")
    short_bulk_tokens: int = _is(1 << 16, "tokens for slow contestants")
    eager_batches: tuple[int, ...] = _is(
        (128, 512, 2048), "sentences of the batches that PyTorch gets of bulk text on a card"
    )
    peak_size: int = _is(8192, "of the products that measure a card's ceilings")
    copy_bytes: int = _is(2 << 30, "of the copy that measures a card's memory")
    l2_copy_bytes: int = _is(8 << 20, "of the copy that measures its L2 cache")
    # kernels
    rows: tuple[int, ...] = _is((), "numbers of rows of a step, in each direction")
    other_rows: tuple[int, ...] = _is((32, 512), "at which precisions other than bf16 and int8 are timed")
    words: tuple[int, ...] = _is((), "numbers of words of characters, highways and their projection")
    nodes: tuple[int, ...] = _is((), "numbers of nodes of other kernels")
    tile: str = _is("", "tile in place of the table's, such as 'gates 64x32x64 4w 4s'")
    card: str = _is("", "card whose limits are computed, without measuring")
    target: int | None = _is(None, "compute capability that kernels are compiled for, such as 90; default: all")
    kernel: str = _is("", "only kernels whose name begins with this")

    def quick(self) -> Settings:
        """The same with less of everything: to see that all runs, and roughly how fast."""
        less = {each.name: each.metadata["quick"] for each in fields(self) if each.metadata["quick"] is not None}
        values = {name: min(getattr(self, name) or most, most) for name, most in less.items()}
        few: dict[str, Any] = {"models": self.models[-1:], "batches": self.batches[:3], "clients": self.clients[::2]}
        return replace(self, **few, **values)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what is not set; of paths, which say something of their owner, only the last part."""
        values: dict[str, Any] = asdict(self) | {"out": None}
        for name in ("models", "snapshots"):
            values[name] = [Path(path).name for path in values[name]]
        values = {name: value.name if isinstance(value, Path) else value for name, value in values.items()}
        return {name: value for name, value in values.items() if value not in (None, "", (), [], False)}
