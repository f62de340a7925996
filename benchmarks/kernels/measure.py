"""Every GPU kernel on this card: correct first, then how fast: `python -m benchmarks.kernels.measure --out DIR`.

Beside each time stand the model's (`model.py`, with the ceilings that this run measured), the roofline's, and those
of cuBLAS at the same shapes and of `torch.compile` of the reference's step. Results go to DIR/gpu-kernels-CARD.json and
plots beside it. What a time limit leaves out is said. The exit status is 1 if a kernel is wrong or fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from flashelmo.benchmarks import machine
from flashelmo.benchmarks.kernels import model as kernel_model
from flashelmo.benchmarks.kernels import report as gpu_report
from flashelmo.benchmarks.kernels.checks import FLOAT_KINDS, Sizes, checks, run_checks
from flashelmo.benchmarks.kernels.contestants import (
    OTHER_KINDS,
    Chain,
    Contestant,
    Group,
    Layer,
    ceiling_groups,
    input_group,
    token_group,
    word_groups,
)
from flashelmo.benchmarks.kernels.model import Card, Cost
from flashelmo.benchmarks.kernels.timing import Deadline, GraphTimer, Timer, Timing, one_line
from flashelmo.benchmarks.results import FAILED, Results, Row, median_ratio
from flashelmo.benchmarks.text import load_sentences
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import PRESETS, preset_config

NO_DEVICE = "no CUDA device: this benchmark needs one"
TARGET_ROWS = (512, 32)
COMPILE_SECONDS = 30  # that a torch.compile may take

# Sizes that fit no block, in both kinds of rounding.
ODD = ElmoConfig(
    family="bilm",
    cell_size=20,
    projection_size=12,
    n_layers=2,
    cell_clip=0.5,
    projection_clip=0.4,
    skip_connections=True,
    filters=((1, 3), (2, 4), (3, 6)),
    n_highway=1,
    activation="tanh",
    character_size=3,
    n_characters=262,
    max_characters=12,
)


@dataclass(frozen=True)
class GpuSettings:
    """What a run on a GPU checks and times.

    Attributes:
        model: preset of the sizes.
        rows: of a step, in each direction.
        words, tokens, input_nodes: of characters and highways; of token layers; of the hoisted input product.
        other_rows: rows at which kinds other than bf16 and int8 are timed.
        compiled_rows: rows at which torch.compile takes part.
        kinds: of arithmetic.
        sizes, odd_sizes: that are checked, at the model's sizes and at `ODD` ones; None leaves the latter out.
        chain: length of the chains of steps.
        peak_size, copy_bytes, l2_copy_bytes: of the products and the copies, of memory and of L2 cache, that measure
            ceilings.
        rounds: samples of each time.
        seed: of random numbers.
        limit_seconds: what has not begun by then is left out.
    """

    model: str = "original"
    rows: tuple[int, ...] = kernel_model.ROWS
    words: tuple[int, ...] = kernel_model.WORDS
    tokens: int = kernel_model.TOKENS
    input_nodes: int = 2048
    other_rows: tuple[int, ...] = (32, 512)
    compiled_rows: tuple[int, ...] = (32, 512)
    kinds: tuple[str, ...] = FLOAT_KINDS
    sizes: Sizes = field(default_factory=Sizes)
    odd_sizes: Sizes | None = field(default_factory=lambda: Sizes((1, 5), (1, 5), (35,), (3, 70)))
    chain: Chain = field(default_factory=Chain)
    peak_size: int = 8192
    copy_bytes: int = 2 << 30
    l2_copy_bytes: int = 8 << 20
    rounds: int = 9
    seed: int = 0
    limit_seconds: float = 270.0


class Job(NamedTuple):
    """Groups that are built together, where there is still so much time."""

    section: str
    detail: str
    build: Callable[[], Iterator[Group]]
    seconds: float = 0.0


class Run:
    """One run: results as they come, printed and written.

    Args:
        card: the model's, its ceilings the table's until they are measured.
        out: folder of the results.
        say: takes each line for people.
    """

    def __init__(
        self,
        settings: GpuSettings,
        config: ElmoConfig,
        results: Results,
        *,
        device: str,
        timer: Timer,
        card: Card,
        out: Path,
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.config, self.results = settings, config, results
        self.card = card
        self._device, self._timer, self._out, self._say = device, timer, out, say
        self._deadline = Deadline(settings.limit_seconds)
        self._failed: set[tuple[str, str]] = set()
        self._costs: dict[tuple[str, str, str], Cost] = {}
        self._layer: Layer | None = None

    @property
    def path(self) -> Path:
        """Of the results."""
        return self._out / f"gpu-kernels-{gpu_report.slug(self.results.machine['gpu']['name'])}.json"

    def run(self) -> bool:
        """Check, measure the ceilings, time, and report; whether no kernel failed."""
        self._say(gpu_report.head(self.results))
        if self._check():
            self._measure_ceilings()
            for job in self._jobs():
                self._do(job)
        for line in ["", *gpu_report.summary(self.results), ""]:
            self._say(line)
        self._keep(gpu_report.targets(self.results, self._costs, self.card, self.settings.model))
        failures = [row for row in self.results.rows if row.note.startswith(FAILED)]
        for row in failures:
            self._say(f"{row.section}, {row.label}: {row.note}")
        self._say(f"failures: {len(failures)}; {self._deadline.seconds - self._deadline.left:.0f} s; {self.path}")
        self._draw()
        return not failures

    def _check(self) -> bool:
        """Whether the device can go on."""
        settings = self.settings
        found = checks(self.config, settings.sizes, self._device, settings.seed, settings.kinds)
        rows, self._failed, lost = run_checks(found, settings.model, self._deadline, self._say, self._device)
        if settings.odd_sizes is not None and not lost:
            kinds = [kind for kind in ("bf16", "fp32") if kind in settings.kinds]
            odd = checks(ODD, settings.odd_sizes, self._device, settings.seed + 1, kinds)
            more, failed, lost = run_checks(odd, "odd sizes", self._deadline, self._say, self._device)
            rows += more
            self._failed |= failed
        self.results.rows.extend(rows)
        self.results.write(self.path)
        for line in gpu_report.worst_errors(rows):
            self._say(line)
        return not lost

    def _jobs(self) -> Iterator[Job]:
        """What is timed, the targets first."""
        settings, config = self.settings, self.config
        words = text_words(max(settings.words))
        rows = sorted(settings.rows, key=lambda n: (n not in TARGET_ROWS, n))
        sizes = sorted(settings.words, reverse=True)

        def step(n: int) -> Job:
            kinds = [k for k in settings.kinds if k not in OTHER_KINDS or n in settings.other_rows]
            return Job("step", f"{n} rows", lambda: self._lstm.groups(n, kinds))

        def characters(n: int) -> Job:
            return Job(
                "characters",
                f"{n} words",
                lambda: word_groups(config, words[:n], "bf16", self._device, settings.seed),
            )

        def compiled(n: int) -> Job:
            return Job("compiled step", f"{n} rows", lambda: iter([self._lstm.compiled(n)]), COMPILE_SECONDS)

        targets = [n for n in rows if n in TARGET_ROWS]
        yield from map(step, targets)
        yield from map(characters, sizes[:1])
        yield from (step(n) for n in rows if n not in targets)
        yield from map(characters, sizes[1:])
        yield Job(
            "input",
            f"{settings.input_nodes} nodes",
            lambda: iter([input_group(config, settings.input_nodes, settings.kinds, self._device)]),
        )
        yield Job(
            "token layers",
            f"{settings.tokens} tokens",
            lambda: iter([token_group(config, settings.tokens, "bf16", self._device, settings.seed)]),
        )
        for n in settings.compiled_rows:
            yield compiled(n)

    @property
    def _lstm(self) -> Layer:
        if self._layer is None:
            self._layer = Layer(self.config, self._device, self.settings.chain, self.settings.seed)
        return self._layer

    def _do(self, job: Job) -> None:
        """A job's rows; one that fails takes no other with it."""
        if self._deadline.left <= job.seconds:
            self._keep([Row(job.section, self.settings.model, "all", "µs", job.detail, note=self._deadline.over)])
            return
        try:
            for group in job.build():
                self._keep(self._measure(group))
        except Exception as error:
            note = f"{FAILED}: {one_line(error)}"
            self._keep([Row(job.section, self.settings.model, "all", "µs", job.detail, note=note)])

    def _measure_ceilings(self) -> None:
        """Matrix peaks and copy bandwidth; the card has them from then on, and the table's where measuring fails."""
        settings = self.settings
        if self._deadline.left <= 0:
            self._keep([Row("ceiling", settings.model, "all", "TFLOP/s", note=self._deadline.over)])
            return
        try:
            self._time_ceilings()
        except Exception as error:
            self._keep([Row("ceiling", settings.model, "all", "TFLOP/s", note=f"{FAILED}: {one_line(error)}")])

    def _time_ceilings(self) -> None:
        settings = self.settings
        copies = settings.copy_bytes, settings.l2_copy_bytes
        for group in ceiling_groups(self._device, settings.peak_size, copies, settings.kinds):
            (each,) = group.contestants
            (timing,) = self._timer.time([each.task])
            if each.kind in ("bytes", "L2 bytes"):
                copied = settings.copy_bytes if each.kind == "bytes" else settings.l2_copy_bytes
                speeds, unit = [2 * copied / us / 1e3 for us in timing.samples], "GB/s"
            else:
                speeds, unit = [2 * settings.peak_size**3 / us / 1e6 for us in timing.samples], "TFLOP/s"
            row = Row("ceiling", settings.model, each.task.name, unit, group.detail, note=timing.note)
            if speeds:
                row = replace(row, **_quantiles(speeds))
            self._keep([row])
            self.card = _with_ceiling(self.card, each.kind, row.median)

    def _measure(self, group: Group) -> list[Row]:
        """A row for each contestant, and one for the model's time of each kernel."""
        ready = [each.task for each in group.contestants if not self._why_not(each)]
        timings = dict(zip((task.name for task in ready), self._timer.time(ready), strict=True))
        rows = []
        for each in group.contestants:
            timing = timings.get(each.task.name, Timing([], self._why_not(each)))
            if timing.samples and each.verify:
                try:
                    each.verify()
                except RuntimeError as error:
                    timing = Timing([], one_line(error))
            rows.append(self._timed(group, each, timing, timings.get(each.peer, Timing([])).samples))
            if each.cost is not None:
                time, bound = each.cost.microseconds(self.card, each.kind)
                name = gpu_report.MODEL + each.task.name
                tiled, tiled_bound = each.cost.as_tiled(self.card, each.kind)
                note = f"bound by {bound}; as tiled {tiled:.1f} µs, bound by {tiled_bound}"
                row = Row(group.section, self.settings.model, name, "µs", group.detail, note=note)
                rows.append(replace(row, median=float(f"{time:.4g}")))
        return rows

    def _timed(self, group: Group, each: Contestant, timing: Timing, peer: list[float]) -> Row:
        row = Row(group.section, self.settings.model, each.task.name, "µs", group.detail, note=timing.note)
        if not timing.samples:
            failed = each.checks and not self._why_not(each)
            return replace(row, note=f"{FAILED}: {timing.note}") if failed else row
        row = replace(row, **_quantiles(timing.samples))
        if each.cost is not None:
            self._costs[group.section, group.detail, each.task.name] = each.cost
            row = replace(row, ceiling=float(f"{each.cost.roofline(self.card, each.kind):.4g}"))
        if peer:
            row = replace(row, ratios={each.peer: median_ratio(timing.samples, peer, "µs")})
        return row

    def _why_not(self, each: Contestant) -> str:
        """Why a contestant is not timed; empty if it is."""
        wrong = [name for name in each.checks if (name, each.kind) in self._failed]
        return f"not timed, as its check did not pass: {', '.join(wrong)}" if wrong else ""

    def _keep(self, rows: Sequence[Row]) -> None:
        self.results.rows.extend(rows)
        self.results.write(self.path)
        for line in gpu_report.lines(rows):
            self._say(line)

    def _draw(self) -> None:
        try:
            for path in gpu_report.draw(self.results, self.path.with_suffix("")):
                self._say(f"drawn: {path}")
        except ImportError:
            self._say("not drawn, as matplotlib is not installed")
        except Exception as error:  # plots are the least of a run
            self._say(f"not drawn: {one_line(error)}")


def _quantiles(samples: list[float]) -> dict[str, Any]:
    row = Row.of(samples, section="", model="", name="", unit="")
    return {name: getattr(row, name) for name in ("low", "p25", "median", "p75", "high", "samples")}


def _with_ceiling(card: Card, kind: str, speed: float | None) -> Card:
    """The card with a ceiling that was measured, in GB/s or TFLOP/s."""
    if speed is None:
        return card
    if kind == "bytes":
        return kernel_model.measured(card, memory=1e9 * speed)
    if kind == "L2 bytes":  # a copy's; products, which only read, may get more, but not less
        return kernel_model.measured(card, l2=max(card.l2, 1e9 * speed))
    if kind == "fp16":  # as fast as bf16, whose peak counts
        return card
    return kernel_model.measured(card, **{"half" if kind == "bf16" else kind: 1e12 * speed})


def text_words(n: int) -> list[str]:
    """The first n distinct words of a text, again from the beginning where there are fewer."""
    sentences, _ = load_sentences(max(1000, 50 * n))
    return list(islice(cycle(dict.fromkeys(chain.from_iterable(sentences))), n))


def gpu(device: torch.device) -> dict[str, Any]:
    """Name, memory, multiprocessors, L2 cache and compute capability of a CUDA device."""
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "memory_gib": round(found.total_memory / 2**30),
        "multiprocessors": found.multi_processor_count,
        "l2_bytes": found.L2_cache_size,
        "capability": f"{found.major}.{found.minor}",
    }


def card_of(found: dict[str, Any], say: Callable[[str], None]) -> Card:
    """The model's card, with the size that the device tells; an unknown card takes an A100's launch and barrier."""
    try:
        card = kernel_model.card_named(found["name"])
    except FlashElmoError:
        card = replace(kernel_model.card_named("A100"), name=found["name"])
        say(f"{found['name']} is not in the table of cards: launch, barrier and L2 bandwidth are taken from the A100")
    return replace(card, l2_bytes=found["l2_bytes"], multiprocessors=found["multiprocessors"])


def new_results(settings: GpuSettings, found: dict[str, Any], commit: str | None) -> Results:
    """Results without rows."""
    return Results(
        machine=machine.machine() | {"gpu": found},
        versions=machine.versions() | {"triton": triton.__version__, "cuda": torch.version.cuda},
        commit={"id": commit, "dirty": False} if commit else machine.commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=asdict(settings),
        rows=[],
    )


def parse(arguments: Sequence[str] | None) -> tuple[GpuSettings, argparse.Namespace]:
    """Settings, and what else was given."""
    default = GpuSettings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for results and plots")
    parser.add_argument("--model", choices=list(PRESETS), default=default.model, help="default: %(default)s")
    parser.add_argument("--rows", help=f"with commas (default: {','.join(map(str, default.rows))})")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=default.seed, help="of random numbers")
    parser.add_argument("--limit-seconds", type=float, default=default.limit_seconds, help="default: %(default)s")
    parser.add_argument("--commit", metavar="ID", help="of the sources, where they are no checkout")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {given.rounds}")
    rows = default.rows
    if given.rows:
        try:
            rows = tuple(int(value) for value in given.rows.split(","))
        except ValueError:
            rows = ()
        if not rows or min(rows) < 1:
            parser.error(f"--rows: expected positive whole numbers with commas, found {given.rows!r}")
    settings = replace(
        default,
        model=given.model,
        rows=rows,
        rounds=given.rounds,
        seed=given.seed,
        limit_seconds=given.limit_seconds,
    )
    return settings, given


def why_no_folder(out: Path) -> str:
    """Make the folder of the results; why that cannot be, empty if it is there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"--out: expected a folder or a path where one can be made, found {out} ({error.strerror})"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run on the current CUDA device; the exit status."""
    settings, given = parse(arguments)
    if not torch.cuda.is_available():
        print(f"kernels.measure: {NO_DEVICE}", file=sys.stderr)
        return 1
    if problem := why_no_folder(given.out):
        print(f"kernels.measure: {problem}", file=sys.stderr)
        return 1

    def say(line: str) -> None:
        print(line, flush=True)

    device = torch.device("cuda", torch.cuda.current_device())
    found = gpu(device)
    free, _ = torch.cuda.mem_get_info(device)
    settings = replace(settings, copy_bytes=min(settings.copy_bytes, free // 8))
    run = Run(
        settings,
        preset_config(settings.model),
        new_results(settings, found, given.commit),
        device=str(device),
        timer=GraphTimer(settings.rounds),
        card=card_of(found, say),
        out=given.out,
        say=say,
    )
    return 0 if run.run() else 1


if __name__ == "__main__":
    sys.exit(main())
