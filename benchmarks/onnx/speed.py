"""The exported files' speed from tokens to vectors: ragged batches, equal sentences, and on a card.

Ragged batches are of real sentences in the order of their text, as a caller may give them; equal sentences show what
share of the matrix peak is reached where nothing is padded. On a card ONNX Runtime drives a Scan from the host, step by
step (onnxruntime#11986), and copies what one device has computed and another needs (nodes named Memcpy) in every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import onnx
import onnxruntime

from flashelmo.benchmarks.contestant import REFERENCE, Contestant, Entry, absentees, compete, line_up
from flashelmo.benchmarks.onnx.contestants import CARD_PRECISIONS, PROVIDER, Exported, on_card, taking_part
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.roofline import Limits, Work
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import PASSAGE, Sentences, batches, draw_passages, equal_batch, load_sentences
from flashelmo.benchmarks.worker import Pool
from flashelmo.engine.model.config import ElmoConfig

CARD_WARM_UPS = 4  # the native runtime compiles with the first, captures a graph with the second, and replays it then


@dataclass(frozen=True)
class Batches:
    """Batches of one size from a text: of few sentences, the first ones of each passage; of 32 and more, one batch."""

    detail: str
    batches: list[Sentences]
    source: str

    @property
    def tokens(self) -> int:
        """Of all of them."""
        return sum(len(sentence) for batch in self.batches for sentence in batch)

    @property
    def note(self) -> str:
        """How many tokens, and positions with padding."""
        positions, number = sum(len(batch) * max(map(len, batch)) for batch in self.batches), len(self.batches)
        words = len({word for batch in self.batches for sentence in batch for word in sentence})
        said = f"{number} batch{'es' * (number > 1)}, {self.tokens} tokens in {positions} positions"
        return f"{self.detail}: {said}, {words} distinct words of {self.source}"

    def work(self, config: ElmoConfig, words_known: bool) -> Work:
        """What there is to compute: the words of each batch, if they are not known; padding is no work."""
        works = [Work.of(config, batch) for batch in self.batches]
        characters = 0 if words_known else sum(work.characters for work in works)
        return Work(self.tokens, sum(work.lstm for work in works), characters)


def draw_batches(settings: Settings) -> list[Batches]:
    """Batches of every size, of runs of 32 sentences that are evenly spaced over the text."""
    text, source = load_sentences(settings.text_tokens, settings.text, settings.seed)
    drawn, found = draw_passages(text, settings.passages), []
    for size in settings.batches:
        few = [passage[:size] for passage in batches(drawn, PASSAGE)]
        detail = f"{size} sentence{'s' * (size > 1)}"
        found.append(Batches(detail, few if size < PASSAGE else [drawn[:size]], source))
    return found


def measure_speed(exported: Exported, settings: Settings) -> list[Row]:
    """Tokens a second of everybody at every size of batch; the engine knows the words from the round before."""
    return _measure("speed", exported, settings, draw_batches(settings))


def measure_peak(exported: Exported, settings: Settings) -> list[Row]:
    """The same of sentences of equal length."""
    rows, steps = settings.peak_rows, settings.peak_steps
    text, source = load_sentences(rows * steps, settings.text, settings.seed)
    equal = equal_batch(text, rows, steps)
    return _measure("peak", exported, settings, [Batches(equal.detail, [equal.sentences], source)])


def measure_cuda(exported: Exported, settings: Settings) -> list[Row]:
    """Tokens a second of the files and of the native kernels, and the copies in ONNX Runtime's graphs; or why not."""
    model = exported.subject.name
    if PROVIDER not in onnxruntime.get_available_providers():
        return absentees("cuda", model, {"onnx on a card": "this ONNX Runtime has no CUDA provider"})
    rows = _measure("cuda", exported, settings, draw_batches(settings), on_card(exported))
    for precision in CARD_PRECISIONS:
        if any(row.name == f"onnx {precision}" and row.median for row in rows):
            rows += copy_rows(model, precision, exported.optimized(precision))
    return rows


def _measure(
    section: str, exported: Exported, settings: Settings, work: Sequence[Batches], cards: Sequence[Contestant] = ()
) -> list[Row]:
    """Who computes the reference's vectors, in turns, with the processor's ceilings; or those on a card, without."""
    config, model = exported.subject.config, exported.subject.name
    reference, limits = taking_part(REFERENCE, exported, settings), Limits(exported.subject.pool, settings)
    everybody = cards or [reference, *(taking_part(name, exported, settings) for name in settings.contestants)]
    entries = []
    for each, who in ((each, who) for each in work for who in everybody):
        row = Row(section, model, who.name, "tokens/s", each.detail, note=each.note)
        entry = Entry(who, row, each.batches, each.tokens, group=each.detail)
        if cards:
            entry = entry._replace(group=f"{each.detail} {who.precision}")
        else:
            cost = each.work(config, who.words_known)
            entry = entry._replace(limits=partial(cost.ceilings, limits, who.precision))
        entries.append(entry)
    checked = max(work, key=lambda each: len(each.batches[0])).batches[0][: settings.checked]
    expected = reference.start(exported.subject.pool).call("vectors", checked)
    with Pool() as pool:
        workers, absent = line_up(everybody, checked, expected, pool)
        peaks = {} if cards else {"peaks": limits.measure_peaks}
        warm_ups = CARD_WARM_UPS if cards else 1  # new shapes take longer at first
        rows = compete(entries, workers, settings, peaks, clock=(settings.sample_seconds,), warm_ups=warm_ups)
    return [*limits.rows(model, section), *rows, *absentees(section, model, absent)]


def copy_rows(model: str, precision: str, optimized: Path) -> list[Row]:
    """How many copies between host and card are in a graph, and in the bodies of its Scans, which run in every step."""
    graph = onnx.load(optimized, load_external_data=False).graph
    within = sum(_copies(body) for body in _bodies(graph))
    copies = {"copies a run": _copies(graph) - within, "copies a step": within}
    row = Row("cuda", model, f"onnx {precision}", "Memcpy nodes")
    return [replace(row, detail=detail).with_samples([number]) for detail, number in copies.items()]


def _copies(graph: onnx.GraphProto) -> int:
    """Nodes of a graph, and of all graphs in it, that ONNX Runtime put in to copy between devices."""
    here = [node for node in graph.node if node.op_type.startswith("Memcpy")]
    return len(here) + sum(map(_copies, _bodies(graph)))


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Graphs of a graph's nodes, as a Scan's step."""
    attributes = chain.from_iterable(node.attribute for node in graph.node)
    return (each.g for each in attributes if each.type == onnx.AttributeProto.GRAPH)
