"""Every GPU kernel on this machine's card: correct first, then how fast: `python -m benchmarks kernels --out DIR`.

Beside each time stand the model's (`model.py`, with the ceilings that this run measured) and that of cuBLAS at the same
shapes. Results go to DIR/gpu-kernels-CARD.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain, cycle, islice

from rich.console import Console

from flashelmo.benchmarks.kernels import checks, groups
from flashelmo.benchmarks.kernels.card import CARD, RUN_OPTIONS, Card, Device, begin
from flashelmo.benchmarks.kernels.graph_timing import Task, Timer, measure_ceilings, time_graphs
from flashelmo.benchmarks.kernels.groups import Group
from flashelmo.benchmarks.kernels.lstm import LstmLayer
from flashelmo.benchmarks.kernels.model import ROWS, TOKENS, WORDS
from flashelmo.benchmarks.results import FAILED, Row, median_ratio, rounded
from flashelmo.benchmarks.run import Job, Run, Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import load_sentences
from flashelmo.benchmarks.timing import Timing
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import preset_config

FIRST_ROWS = (512, 32)  # the most valuable
TURNS = groups.Chain(least=8, most=8)  # depths of a layer before the other's turn


class Kernels:
    """A model's kernels on a device.

    Args:
        card: the device's, its ceilings the table's until they are measured.
        timer: times tasks.
        sizes: that are checked, at the model's sizes and at those that fit no block.
    """

    def __init__(
        self,
        settings: Settings,
        config: ElmoConfig,
        device: Device,
        card: Card,
        timer: Timer = time_graphs,
        sizes: tuple[checks.Sizes, checks.Sizes] = (checks.SIZES, checks.ODD_SIZES),
        chain: groups.Chain = groups.CHAIN,
    ) -> None:
        self.settings, self.config, self.device, self.card = settings, config, device, card
        self.model, self.timer, self.chain, self._sizes = settings.models[0], timer, chain, sizes
        self.passed: dict[str, dict[str, bool]] = {}  # by kernel with precision, and by model with size

    def jobs(self) -> Iterator[Job]:
        """Checks, the ceilings, and what is timed, the most valuable first."""
        settings, config, device, seed = self.settings, self.config, self.device.torch, self.settings.seed
        yield from self.check_jobs(settings.precisions)
        yield from self.odd_check_jobs()
        yield Job("ceiling", CARD, "", self._ceilings)
        words = text_words(max(settings.words))
        yield from map(self._steps, sorted(settings.rows, key=lambda n: (n not in FIRST_ROWS, n)))
        for n in sorted(settings.words, reverse=True):
            build = partial(groups.word_groups, config, words[:n], "bf16", device, seed)
            yield self._job("characters", f"{n} words", build)
        n, N = settings.input_nodes, settings.layer_tokens
        yield self._job("input", f"{n} nodes", lambda: [groups.input_group(config, n, settings.precisions, device)])
        yield self._job("token layers", f"{N} tokens", lambda: [groups.token_group(config, N, "bf16", device, seed)])

    @cached_property
    def layer(self) -> LstmLayer:
        """The LSTM layer that all steps are those of."""
        return LstmLayer(self.config, self.device.torch, self.settings.seed)

    def _steps(self, n: int) -> Job:
        settings = self.settings
        precisions = [each for each in settings.precisions if each not in groups.OTHERS or n in settings.other_rows]
        return self._job("step", f"{n} rows", lambda: groups.step_groups([self.layer], n, precisions, self.chain))

    def _job(self, section: str, detail: str, build: Callable[[], Iterable[Group]]) -> Job:
        return Job(section, self.model, detail, lambda: map(self.measure, build()))

    def served_steps(self, n: int) -> Job:
        """Steps of bf16 in each variant that serves so many rows, two layers in turn, beside the library's products."""
        build = partial(groups.step_groups, self._two_layers, n, ("bf16",), TURNS, served=True)
        return self._job("step", f"{n} rows", build)

    @cached_property
    def _two_layers(self) -> list[LstmLayer]:
        return [self.layer, LstmLayer(self.config, self.device.torch, self.settings.seed + 1)]

    def check_jobs(self, precisions: Sequence[str], steps_alone: bool = False) -> Iterator[Job]:
        """The checks at the model's sizes."""
        given = self.config, self._sizes[0], self.device.torch, self.settings.seed, precisions
        found = checks.checks(*given)
        yield from (self._check(self.model, check) for check in found if check.name.endswith("step") or not steps_alone)

    def odd_check_jobs(self) -> Iterator[Job]:
        """The checks at sizes that fit no block."""
        few = tuple(each for each in ("bf16", "fp32") if each in self.settings.precisions)
        found = checks.checks(checks.ODD, self._sizes[1], self.device.torch, self.settings.seed + 1, few)
        yield from (self._check("odd sizes", check) for check in found)

    def _check(self, model: str, check: checks.Check) -> Job:
        """What is timed under this name and precision is timed only if all its checks pass."""
        self.passed.setdefault(f"{check.name} {check.precision}", {}).setdefault(f"{model}, {check.detail}", False)

        def rows() -> list[list[Row]]:
            row = checks.check_row(check, model)
            self.know(row)
            return [[row]]

        return Job("error", model, f"{check.name} {check.precision}, {check.detail}", rows)

    def know(self, row: Row) -> None:
        """A check's row, perhaps of a process before this one."""
        self.passed.setdefault(row.name, {})[f"{row.model}, {row.detail}"] = not row.note

    def _ceilings(self) -> Iterator[list[Row]]:
        settings = self.settings
        for row, card in measure_ceilings(settings, self.device, self.card, settings.precisions, self.timer):
            self.card = card
            yield [row]

    def measure(self, group: Group) -> list[Row]:
        """A row for each member of a group."""
        ready = [each for each in group.members if not self._why_not(each)]
        timings = dict(zip((task.name for task in ready), self.timer(self.settings.rounds, ready), strict=True))
        return [
            self._timed(Row(group.section, self.model, each.name, "µs", group.detail), each, timings)
            for each in group.members
        ]

    def _timed(self, row: Row, each: Task, timings: Mapping[str, Timing]) -> Row:
        """The row with its timing, the model's time and how many times faster it is than its peer."""
        if each.name not in timings:
            return replace(row, note=self._why_not(each))
        timing, peer = timings[each.name], timings.get(each.peer, Timing([])).samples
        if not timing.samples:
            return replace(row, note=f"{FAILED}: {timing.note}" if each.checks else timing.note)
        row = replace(row, note=timing.note).with_samples(timing.samples)
        if each.cost is not None:
            row = replace(row, ceiling=rounded(each.cost.microseconds(self.card, each.precision).microseconds))
        return replace(row, ratios={each.peer: median_ratio(timing.samples, peer, "µs")}) if peer else row

    def _why_not(self, each: Task) -> str:
        """Why somebody is not timed; empty if it is."""
        wrong = [
            name for name in each.checks if not all(self.passed.get(f"{name} {each.precision}", {"": False}).values())
        ]
        return f"not timed, as its check did not pass: {', '.join(wrong)}" if wrong else ""


def text_words(n: int) -> list[str]:
    """The first n distinct words of a text, again from the beginning where there are fewer."""
    sentences, _ = load_sentences(max(1000, 50 * n))
    return list(islice(cycle(dict.fromkeys(chain.from_iterable(sentences))), n))


def measure(run: Run, kernels: Kernels) -> int:
    """Check and time; the exit status."""
    run.do(kernels.jobs())
    return run.finish()


def command(settings: Settings, console: Console) -> int:
    """Measure on the current CUDA device; the exit status."""
    run, device, card = begin(settings, console, "kernels")
    return measure(run, Kernels(run.settings, preset_config(settings.models[0]), device, card))


SUITE = Suite(
    "Every GPU kernel on this machine's card: correct first, then how fast beside its model and cuBLAS.",
    Settings(
        models=("original",),
        precisions=("bf16", "fp16", "fp32", "tf32"),
        rounds=9,
        limit_seconds=270.0,
        rows=ROWS,
        words=WORDS,
        layer_tokens=TOKENS,
    ),
    ("precisions", "rows", *RUN_OPTIONS),
    command,
)
