"""The exported file beside the engine and the PyTorch reference: speed, what a file costs, and how exact it is.

Ragged batches are real sentences in the order of their text, as a caller may pass them; equal sentences show what share
of the matrix peak is reached without padding. On a card ONNX Runtime drives a Scan from the host, step by step
(onnxruntime#11986); there, it is compared with unrolled files of the batches' shapes, which it replays as CUDA graphs,
and with the published algorithm in PyTorch. If such a file can be opened, none of its nodes is left to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from flashelmo.benchmarks import machine
from flashelmo.benchmarks.contestant import (
    REFERENCE,
    Contestant,
    Entry,
    Subject,
    Way,
    absentees,
    compete,
    contestant,
    engine,
    errors_of,
    line_up,
    options_of,
    prepare,
)
from flashelmo.benchmarks.cpu import measure_loads
from flashelmo.benchmarks.fresh import run_fresh
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.roofline import Limits, Work
from flashelmo.benchmarks.run import PROCESSOR_OPTIONS, Suite, run_sections
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import (
    PASSAGE,
    Sentences,
    batches,
    draw_passages,
    equal_batch,
    first_sentences,
    load_sentences,
)
from flashelmo.benchmarks.worker import Pool
from flashelmo.engine.cpu.sessions import onnxruntime
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.precision import PrecisionName
from flashelmo.export import open_session
from flashelmo.export.build import build_buckets, build_onnx
from flashelmo.export.onnx_elmo import OnnxElmo
from flashelmo.export.write import DEFAULTS

FILE_PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "fp16", "int8")
CARD_PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "fp16")
CONTESTANTS = ("engine fp32", "engine int8", "onnx fp32", "onnx int8")  # what runs the model, in what precision
PROVIDER = "CUDAExecutionProvider"
EQUAL = (32, 16)  # sentences and their tokens
CARD_WARM_UPS = 4  # the native runtime compiles in the first, captures a graph in the second, and then replays it
NATIVE = "native fp32"
LARGER = 32  # steps of files beyond the usual sizes are multiples of this


def export(name: str, seed: int, folder: Path, pool: Pool) -> Subject:
    """Write a model, by preset or path, in the native format and in all precisions of ONNX."""
    subject = prepare(name, seed, folder, pool)
    model = load_model(subject.folder)
    for precision in FILE_PRECISIONS:
        file_of(subject, precision).parent.mkdir(exist_ok=True)
        build_onnx(model, file_of(subject, precision), precision=precision)
    return subject


def file_of(subject: Subject, precision: str) -> Path:
    """Return the path of a model's exported file."""
    return subject.folder.with_name(f"{subject.name} onnx") / f"{precision}.onnx"


# ------------------------------------------------------------------------------------------------------ who takes part


def taking_part(name: str, subject: Subject, settings: Settings) -> Contestant:
    """Return the reference, or one of CONTESTANTS, from tokens to vectors."""
    folder, threads = subject.folder, settings.threads
    if name == REFERENCE:  # it pads a batch as the others do
        return contestant(subject, settings, REFERENCE, batch_size=max(settings.batches))
    runs, precision = name.split()
    if runs == "onnx":
        return Contestant(name, precision, onnx_file, (file_of(subject, precision), threads), "onnx")
    return Contestant(name, precision, engine, (folder, options_of(precision, settings)), words_known=True)


def on_card(subject: Subject, work: Sequence[Batches]) -> list[Contestant]:
    """Return files on ONNX Runtime's CUDA provider and the engine's kernels, in each precision of both; and PyTorch."""
    folder, found = subject.folder, []
    for precision in CARD_PRECISIONS:
        unrolled = unroll(subject, precision, work)
        for kind, file in (("onnx", file_of(subject, precision)), ("onnx unrolled", unrolled)):
            given, is_rival = (file, None, PROVIDER), file is not unrolled
            found.append(Contestant(f"{kind} {precision}", precision, onnx_file, given, "onnx", is_rival=is_rival))
        found.append(Contestant(f"engine {precision}", precision, native_on_card, (folder, precision), "cuda"))
    eager = (folder, max(len(batch) for each in work for batch in each.batches))
    # PyTorch's own settings: convolutions, but not products, may round to TF32
    found.append(Contestant("PyTorch eager fp32", "tf32", eager_on_card, eager, "cuda", is_rival=True))
    return found


def unroll(subject: Subject, precision: PrecisionName, work: Sequence[Batches]) -> Path:
    """Return a folder of unrolled files for this work: of the sizes that `flashelmo export` makes, or larger."""
    folder = file_of(subject, precision).with_name(f"cuda {precision}")
    needed = [(len(batch), max(map(len, batch))) for each in work for batch in each.batches]
    sizes = [
        (
            next((size for size in DEFAULTS["batch"] if size >= sentences), sentences),
            next((size for size in DEFAULTS["steps"] if size >= tokens), -(-tokens // LARGER) * LARGER),
        )
        for sentences, tokens in needed
    ]
    folder.mkdir(exist_ok=True)
    build_buckets(load_model(subject.folder), folder, sorted(set(sizes)), precision=precision)
    return folder


def onnx_file(path: Path, threads: int | None, provider: str = "CPUExecutionProvider") -> Way:
    """Return an exported file in ONNX Runtime; its outputs stay on a card."""
    elmo = OnnxElmo(path, providers=[provider], session_options=open_session.options_of(None, threads))
    outputs, on_device = [f"hidden_states.{layer}" for layer in elmo.layers], provider == PROVIDER

    def embed(sentences: Sentences) -> list[Any]:
        return elmo.embed(sentences, batch_size=len(sentences))

    def run(sentences: Sentences) -> object:
        return elmo.run(outputs=outputs, on_device=True, **elmo.inputs(sentences))

    return Way(embed, run if on_device else embed)


def eager_on_card(folder: Path, batch_size: int) -> Way:
    """Return the published algorithm in PyTorch, one padded batch at a time, with its vectors left on the card."""
    import torch  # available, as the reference needs it

    if not torch.cuda.is_available():
        raise FlashElmoError("PyTorch: expected a CUDA device, found none")
    from flashelmo.benchmarks.gpu.speed import Eager
    from flashelmo.benchmarks.kernels.card import Device

    return Eager(load_model(folder), Device("cuda", "cuda:0"), "fp32").way(batch_size)


def native_on_card(folder: Path, precision: PrecisionName) -> Way:
    """Return the engine's kernels, with the vectors left on the card."""
    embedder = ElmoEmbedder.load(folder, device="cuda", precision=precision)
    import torch  # available, as the engine runs on the card

    def run(sentences: Sentences) -> None:
        list(embedder.embed(sentences, convert_to_numpy=False))
        torch.cuda.synchronize()

    return Way(embedder.embed_batch, run)


# --------------------------------------------------------------------------------------------------------------- speed


@dataclass(frozen=True)
class Batches:
    """Batches of one size from a text: of few sentences, the first ones of each passage; of 32 and more, one batch."""

    detail: str
    batches: list[Sentences]
    source: str

    @property
    def tokens(self) -> int:
        """The number of tokens in all of them."""
        return sum(len(sentence) for batch in self.batches for sentence in batch)

    @property
    def note(self) -> str:
        """How many tokens there are, and positions with padding."""
        positions, number = sum(len(batch) * max(map(len, batch)) for batch in self.batches), len(self.batches)
        said = f"{number} batch{'es' * (number > 1)}, {self.tokens} tokens in {positions} positions"
        return f"{self.detail}: {said} of {self.source}"

    def work(self, config: ElmoConfig, words_known: bool) -> Work:
        """Return what must be computed: the words of each batch, unless they are known; padding is not work."""
        works = [Work.of(config, batch) for batch in self.batches]
        characters = 0 if words_known else sum(work.characters for work in works)
        return Work(self.tokens, sum(work.lstm for work in works), characters)


def draw_batches(settings: Settings) -> list[Batches]:
    """Return batches of every size, from runs of 32 sentences evenly spaced over the text, and one without padding."""
    text, source = load_sentences(settings.text_tokens, settings.text, settings.seed)
    drawn, found = draw_passages(text, settings.passages), []
    for size in settings.batches:
        few = [passage[:size] for passage in batches(drawn, PASSAGE)]
        detail = f"{size} sentence{'s' * (size > 1)}"
        found.append(Batches(detail, few if size < PASSAGE else [drawn[:size]], source))
    equal = equal_batch(text, *EQUAL)
    return [*found, Batches(equal.detail, [equal.sentences], source)]


def measure_speed(subject: Subject, settings: Settings) -> list[Row]:
    """Measure all tokens per second at every size of batch; the engine knows the words from the previous round."""
    return _measure("speed", subject, settings, draw_batches(settings))


def measure_cuda(subject: Subject, settings: Settings) -> list[Row]:
    """Measure tokens per second of the files, the native kernels and PyTorch on a card; or say why not."""
    if PROVIDER not in onnxruntime.get_available_providers():
        why = {"onnx on a card": "this ONNX Runtime has no CUDA provider"}
        return absentees("cuda", subject.name, why)
    work = draw_batches(settings)
    return _measure("cuda", subject, settings, work, on_card(subject, work))


def _measure(
    section: str, subject: Subject, settings: Settings, work: Sequence[Batches], cards: Sequence[Contestant] = ()
) -> list[Row]:
    """Measure those with the reference's vectors, in turns, with the processor's ceilings; or on a card, without."""
    config, model = subject.config, subject.name
    reference, limits = taking_part(REFERENCE, subject, settings), Limits(subject.pool, settings)
    everybody = cards or [reference, *(taking_part(name, subject, settings) for name in settings.contestants)]
    entries = []
    for each, who in ((each, who) for each in work for who in everybody):
        row = Row(section, model, who.name, "tokens/s", each.detail, note=each.note)
        entry = Entry(who, row, each.batches, each.tokens, group=each.detail)
        if cards:
            entry = entry._replace(group=f"{each.detail} {who.name.split()[-1]}")  # the precision
        else:
            cost = each.work(config, who.words_known)
            entry = entry._replace(limits=partial(cost.ceilings, limits, who.precision))
        entries.append(entry)
    checked = max(work, key=lambda each: len(each.batches[0])).batches[0][: settings.checked]
    expected = reference.start(subject.pool).call("vectors", checked)
    with Pool() as pool:
        workers, absent = line_up(everybody, checked, expected, pool)
        peaks = {} if cards else {"peaks": limits.measure_peaks}
        warm_ups = CARD_WARM_UPS if cards else 1  # new shapes take longer at first
        rows = compete(entries, workers, settings, peaks, at_least=settings.sample_seconds, warm_ups=warm_ups)
    return [*limits.rows(model, section), *rows, *absentees(section, model, absent)]


# --------------------------------------------------------------------------------------------------------------- costs


def measure_load(subject: Subject, settings: Settings) -> list[Row]:
    """Measure seconds to open each file in fresh processes, and to import what that needs; and the native format."""
    options = {"threads": settings.threads}
    runs = {f"onnx {name}": partial(run_fresh, "load", file_of(subject, name), options) for name in FILE_PRECISIONS}
    runs[NATIVE] = partial(run_fresh, "load", subject.folder, options_of("fp32", settings))
    return measure_loads(subject.name, runs, settings)


def measure_errors(subject: Subject, settings: Settings) -> list[Row]:
    """Measure how far each file is from the reference in float64."""
    exact = contestant(subject, settings, REFERENCE, precision="fp64")
    files = [
        Contestant(f"onnx {name}", name, onnx_file, (file_of(subject, name), settings.threads))
        for name in FILE_PRECISIONS
    ]
    with Pool() as pool:
        return errors_of(subject.name, files, exact, *first_sentences(settings), pool)


SECTIONS = {"speed": measure_speed, "load": measure_load, "error": measure_errors, "cuda": measure_cuda}


def command(settings: Settings, console: Console) -> int:
    """Measure everything that the settings ask for; return the exit status."""
    card = machine.card() if "cuda" in settings.sections else None
    return run_sections("onnx", settings, console, SECTIONS, export, card).finish()


SUITE = Suite(
    "The exported ONNX file beside the engine and the PyTorch reference.",
    Settings(sections=tuple(SECTIONS), contestants=CONTESTANTS, rounds=4, checked=8),
    PROCESSOR_OPTIONS,
    command,
)
