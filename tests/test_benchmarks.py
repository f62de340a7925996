"""The benchmarks measure what they say: text, work, ceilings, turns, runs, results, and the documents' figures."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock, PropertyMock

import numpy as np
import pytest
from rich.console import Console
from tiny_models import BILM, MODELS

from flashelmo.benchmarks import __main__ as command
from flashelmo.benchmarks import plots, report, roofline
from flashelmo.benchmarks.accuracy import error_rows, layers, why_wrong
from flashelmo.benchmarks.contestant import PROCESSOR, Clock, Contestant, Entry, Way, compete, engine, line_up, load
from flashelmo.benchmarks.cpu import WARM, faster_lines
from flashelmo.benchmarks.results import Results, Row, median_ratio, new_results
from flashelmo.benchmarks.roofline import Roofline, Work, recurrent_weights, streamed_weights
from flashelmo.benchmarks.run import Job, Run
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tables import CACHED, SHARED, blocks, notes, print_rows
from flashelmo.benchmarks.text import (
    Workload,
    batches,
    bulk,
    draw_passages,
    equal_batch,
    generate,
    load_sentences,
    ragged_batch,
    spell,
)
from flashelmo.benchmarks.worker import Here, Pool, Worker, WorkerError
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.named.locate import bundled
from flashelmo.engine.model.weights import expected_shapes
from flashelmo.engine.text.schedule import Boundaries, build_schedule
from flashelmo.engine.text.windows import Window

SECTIONS = command.find("cpu").defaults.sections

# ---------------------------------------------------------------------------------------------------------------- text


def test_generated_text_has_the_statistics_it_claims() -> None:
    """Those of the docstring of `text.py`: value, how far off it may be."""
    sentences = generate(30_000)
    window = Window.from_sentences(sentences)
    lengths, n_words = np.diff(window.offsets), len(window.words)
    schedule = build_schedule(window.word_ids, window.offsets, Boundaries(n_words, n_words + 1))
    for found, value, margin in (
        (lengths.mean(), 26.0, 1.0),
        (lengths.std(), 12.5, 1.0),
        (np.mean([len(token.encode()) for tokens in sentences for token in tokens]), 3.55, 0.1),
        (np.mean([len(word.encode()) for word in window.words.to_pylist()]), 6.5, 0.5),
        (n_words / lengths.sum(), 0.07, 0.01),
        ((schedule.forward.n_nodes - 1) / lengths.sum(), 0.91, 0.02),  # the boundary is no token
        ((schedule.backward.n_nodes - 1) / lengths.sum(), 0.92, 0.02),
    ):
        assert abs(found - value) <= margin
    assert generate(500, seed=3) == generate(500, seed=3) != generate(500, seed=4)
    assert len({spell(rank) for rank in range(40_000)}) == 40_000


def test_text_is_cut_to_the_tokens_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a b c\n\nd e\n", encoding="utf-8")
    assert load_sentences(4, path) == ([["a", "b", "c"], [], ["d"]], "text.txt")
    with pytest.raises(FlashElmoError, match=r"text\.txt: expected 6 tokens or more, found 5"):
        load_sentences(6, path)
    again = [["a", "b", "c"], [], ["d", "e"], ["a"]]
    assert load_sentences(6, path, again=True) == (again, "text.txt, 2 times over")
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(FlashElmoError, match="expected 3 tokens or more, found 0"):
        load_sentences(3, path, again=True)
    monkeypatch.setattr("flashelmo.benchmarks.text.REAL_TEXT", tmp_path / "nothing here")
    sentences, source = load_sentences(100, seed=5)
    assert (sum(map(len, sentences)), source) == (100, "generated text, seed 5")
    assert sentences[:-1] == generate(100, seed=5)[: len(sentences) - 1]


def test_workloads_are_cut_from_a_text() -> None:
    text = [["a", "b", "c"], ["d"], ["e", "f"]]
    assert equal_batch(text, 2, 3) == Workload("batch", "2 sentences of 3", [["a", "b", "c"], ["d", "e", "f"]])
    assert equal_batch(text, 1, 2, "single") == Workload("single", "a sentence of 2", [["a", "b"]], waits=True)
    with pytest.raises(FlashElmoError, match="text: expected 8 tokens or more, found 6"):
        equal_batch(text, 2, 4)
    assert ragged_batch(text, 2) == Workload("ragged", "2 sentences", text[:2])
    assert bulk(text, 5) == Workload("bulk", "5 tokens", [["a", "b", "c"], ["d"], ["e"]])
    assert bulk(text, 6).tokens == 6 and list(batches(text, 2)) == [text[:2], text[2:]]
    sentences = [[str(k)] for k in range(300)]
    drawn = [int(sentence[0]) for sentence in draw_passages(sentences, 3)]
    assert drawn == [*range(34, 66), *range(134, 166), *range(234, 266)]
    with pytest.raises(FlashElmoError, match="3 batches of 32 sentences, found 95"):
        draw_passages(sentences[:95], 3)


# ------------------------------------------------------------------------------------------------------------ roofline


def test_work_counts_distinct_words_at_their_lengths() -> None:
    # BILM: D 3, filters of widths 1, 2, 3 and numbers 3, 4, 5, two highways of F 12, projection 12 -> 4
    def word(positions: int) -> int:
        windows = {width: min(positions, 12 - width + 1) for width in (1, 2, 3)}
        convolutions = 2 * 3 * (1 * 3 * windows[1] + 2 * 4 * windows[2] + 3 * 5 * windows[3])
        return convolutions + 2 * 2 * 2 * 12 * 12 + 2 * 12 * 4

    work = Work.of(BILM, [["cat", "é"], ["cat"], [], ["incomprehensible"]])
    assert work.tokens == 4
    assert work.lstm == 4 * BILM.lstm_flops_per_token
    assert work.characters == word(5) + word(4) + word(12)
    limits: Any = SimpleNamespace(peak={"fp32": 1e6, "bf16": 2e6}.get)
    both = 4 / (work.lstm / 2e6 + work.characters / 1e6)
    assert work.ceilings(limits, "bf16") == pytest.approx((2e6 / BILM.lstm_flops_per_token, both))
    assert work.ceilings(limits, "int8") == (None, None)


@pytest.mark.parametrize("name", ["skip", "no projection", "three layers, no highway"])
def test_streamed_weights_are_the_models(name: str) -> None:
    config = MODELS[name].config
    shapes = {name: shape for name, shape in expected_shapes(config).items() if name.startswith("lstm.")}
    matrices = {name: int(np.prod(shape)) for name, shape in shapes.items() if not name.endswith(".bias")}
    once = sum(size for name, size in matrices.items() if name.endswith("input_weight"))
    again = sum(matrices.values()) - once
    assert streamed_weights(config, 20) == once + 20 * again
    assert recurrent_weights(config) == again


def test_peaks_and_bandwidths_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "SHAPES", ((64, 256, 256),))
    limits = Roofline(threads=1, seconds=0.02)
    peaks = limits.peaks()
    assert {"fp32", "int8"} <= peaks.keys() <= {"fp32", "int8", "bf16"}
    rates = [*peaks.values(), *limits.bandwidths(1 << 18).values()]
    assert all(1e7 < rate < 1e14 for rate in rates)


# ------------------------------------------------------------------------------------------- contestants and turns


def test_a_worker_answers_and_refuses_in_its_callers_words(model: Path) -> None:
    psutil = pytest.importorskip("psutil")
    with Pool() as pool:
        worker = pool.worker(Clock, engine, model, dict(PROCESSOR["reference"]))
        assert worker is pool.worker(Clock, engine, model, dict(PROCESSOR["reference"]))
        assert worker.call("vectors", [["the", "cat"]])[0].shape == (3, 2, 8)
        with pytest.raises(WorkerError, match=r"^FileNotFoundError: .*no such text"):
            worker.call("seconds", [model / "no such text"])
        assert worker.call("seconds", [generate(200)]) > 0  # it goes on after an error

        process = psutil.Process(worker.process.pid)  # and leaves the processor alone while it is idle
        time.sleep(0.1)
        before = sum(process.cpu_times()[:2])
        time.sleep(0.4)
        assert sum(process.cpu_times()[:2]) - before < 0.1
        process.kill()
        with pytest.raises(WorkerError, match="ended with exit code -9"):
            worker.call("window_tokens")
        assert pool.worker(Clock, engine, model, dict(PROCESSOR["reference"])).process.pid != process.pid
    with pytest.raises(FlashElmoError, match="no precision 'bf16'"):
        Worker(Clock, engine, model, {"runtime": "ort", "precision": "bf16"})


def embedding(factor: float) -> Way:
    """A way to embed that is off by a factor."""
    return Way(lambda batch: [np.full((2, 3, 4), factor, np.float32)], len)


def fail(error: Exception) -> Way:
    raise error


def test_tiny_is_what_it_is_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashelmo.benchmarks.contestant.random_model", lambda name, seed: (name, seed))
    assert load("tiny", 0).path.parent == bundled() and load("small", 3) == ("small", 3)


def test_who_is_wrong_or_absent_is_not_timed() -> None:
    found = [("right", 1.0), ("off", 1.001), ("nan", np.nan)]
    contestants = [Contestant(name, "fp32", embedding, (factor,)) for name, factor in found]
    contestants.append(Contestant("absent", "fp32", fail, (FlashElmoError("no such thing here"),)))
    contestants.append(Contestant("broken", "fp32", fail, (KeyError("line 1\nline 2"),)))
    contestants.append(Contestant("rival", "fp32", fail, (MemoryError("too large"),), is_rival=True))
    workers, absent = line_up(contestants, [["a"]], [np.ones((2, 3, 4), np.float32)])
    assert list(workers) == [("right", "")]
    assert absent == {
        "off": "FAILED: layer 0: max abs error 0.001, expected less than 1e-05",
        "nan": "FAILED: layer 0: max abs error nan, expected less than 1e-05",
        "absent": "no such thing here",
        "broken": "FAILED: KeyError: 'line 1\\nline 2'",
        "rival": "MemoryError: too large",
    }


class Turns:
    """Takes 2 seconds, or longer, for each piece of work; fails after that many calls."""

    log: ClassVar[list[str]] = []

    def __init__(self, name: str, seconds: float, most: int = 99) -> None:
        self._name, self._seconds, self._most = name, seconds, most

    def warm_up(self, work: Sequence[Any], passes: int) -> float:
        self.log.append(self._name + "w" * passes)
        return 0.0

    def seconds(self, work: Sequence[Any], at_least: float = 0.0) -> float:
        self.log.append(self._name)
        if self.log.count(self._name) > self._most:
            raise MemoryError("too large")
        return self._seconds * len(work)


def test_contestants_take_turns_and_one_failure_is_its_own() -> None:
    entries, workers = [], {}
    for name, seconds, most, is_rival in (
        *(("a", 2.0, 99, False), ("b", 2.0, 1, False)),
        *(("r", 4.0, 99, True), ("s", 4.0, 0, True)),
    ):
        who = Contestant(name, "fp32", fail, is_rival=is_rival)
        workers[name, ""] = Here(Turns, name, seconds, most)
        row = Row("speed", "m", name, "tokens/s", "x" if is_rival else "")
        entries.append(Entry(who, row, [1, 2], amount=8, limits=lambda: (4.0, 3.0)))
    entries.append(Entry(Contestant("absent", "fp32", fail), Row("speed"), []))
    limits = {"peak": partial(Turns("peak", 1.0).seconds, [1])}
    rows = compete(entries, workers, Settings(rounds=2), limits, at_least=0.1, warm_ups=1, pause=0)
    assert " ".join(Turns.log) == "aw bw rw sw peak a b r s peak a b r"
    assert [row.samples for row in rows] == [[2.0, 2.0], [], [1.0, 1.0], []]
    assert [row.note for row in rows] == ["", "FAILED: MemoryError: too large", "", "MemoryError: too large"]
    assert [row.ratios for row in rows] == [{"r, x": 2.0}, {}, {}, {}]
    assert (rows[0].ceiling, rows[0].ceiling_both, rows[0].utilisation) == (4.0, 3.0, 0.5)
    apart = [entries[0]._replace(group="1"), entries[2]._replace(group="2")]
    assert compete(apart, workers, Settings(rounds=1), pause=0)[0].ratios == {}
    single = entries[0]._replace(row=Row("single", unit="ms"), amount=1)
    assert compete([single], workers, Settings(rounds=1), pause=0)[0].median == 4000.0


def test_a_clock_counts_passes_and_waits_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host and a device: a call queues work, which is done when somebody waits."""
    now, queued, log = [0.0], [0.0], list[str]()

    def run(work: float) -> None:
        queued[0] += work
        log.append("run")

    def wait() -> None:
        now[0] += queued[0]
        queued[0] = 0.0
        log.append("wait")

    monkeypatch.setattr("flashelmo.benchmarks.contestant.time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock, once = Clock(lambda: Way(lambda batch: [], run, 7, wait)), ["wait", "run", "wait"]
    assert clock.seconds([0.01], at_least=0.045) == pytest.approx(0.01)
    assert log == [*once, "wait", *["run"] * 5, "wait"] and clock.window_tokens() == 7
    for work, passes in ((1.0, 2), (0.1, 4)):  # two calls warm up who is slow
        log.clear()
        clock.warm_up([work], 4)
        assert log == once * passes


# ------------------------------------------------------------------------------------------------ accuracy and results


def test_errors_are_what_they_are_called() -> None:
    exact = [np.ones((2, 3, 4), np.float32), np.ones((2, 1, 4), np.float32)]
    found = [array.copy() for array in exact]
    found[0][1, 0, 0] += 0.5
    assert why_wrong(found, exact, "int8") == "layer 1: relative error 0.12, expected less than 0.03"
    assert why_wrong(exact, exact, "fp32") == ""
    rows = error_rows(Row("error", "m", "n", note="by hand"), layers(found, exact))
    assert [(row.unit, row.detail, row.median, row.note) for row in rows] == [
        (unit, f"layer {k}", error, "by hand")
        for k, both in enumerate(((0.0, 0.0), (0.5, 0.125)))
        for unit, error in zip(("max abs error", "relative error"), both, strict=True)
    ]
    found[0][1, 0, 0] = np.nan
    assert [row.failed for row in error_rows(Row("error"), layers(found, exact))] == [False, False, True, True]
    for wrong, message in (
        (exact[:1], "vectors of 2 sentences, found 1"),
        (exact[::-1], r"sentence 0: expected shape"),
    ):
        with pytest.raises(FlashElmoError, match=message):
            list(layers(wrong, exact))


def test_ratios_and_shares_count_in_the_units_direction() -> None:
    assert median_ratio([10, 30, 90], [10, 10, 10], "tokens/s") == 3
    assert median_ratio([10, 10, 20], [10, 40, 40], "ms") == 2
    speed = Row.of([50, 60, 70], section="bulk", unit="tokens/s", ceiling=120, ceiling_both=50)
    assert (speed.low, speed.p25, speed.median, speed.p75, speed.high) == (50, 55, 60, 65, 70)
    assert (speed.utilisation, speed.utilisation_both) == (0.5, 1.2)
    duration = Row.of([40], section="single", unit="ms", ceiling=10)
    assert (duration.utilisation, duration.utilisation_both) == (0.25, None)
    assert notes([speed, speed, replace(duration, ceiling=41)]) == [SHARED, CACHED] and notes([duration]) == []


def results(**changes: Any) -> Results:
    """Made-up results."""
    speed = {"section": "bulk", "model": "original", "unit": "tokens/s"}
    reference = Row.of([100, 100], **speed, name="reference", detail="by length", ceiling=2000, note="by hand")
    ours = Row.of([1500, 1700], **speed, name="fp32", ceiling=2000, ceiling_both=1800, note="by hand")
    rows = [reference, replace(ours, ratios={reference.label: 16.0})]
    rows.append(Row("bulk", "original", "bf16", "tokens/s", note="not on this processor"))
    error = {"section": "error", "model": "original", "unit": "relative error"}
    rows += [Row.of([0.01 * layer], **error, name="int8", detail=f"layer {layer}") for layer in range(3)]
    rows.append(Row.of([0.25], section="load", model="original", name="fp32", detail="load", unit="s"))
    machine = {"processor": "Abacus", "cores": 2, "instruction_sets": ["beads"], "memory_gib": 1}
    commit = {"id": "0123456789abcdef", "dirty": False}
    made = Results(machine, {"python": "3.12", "torch": None}, commit, "2030-01-02T03:04:05", {"rounds": 2}, rows)
    return replace(made, **changes)


def test_many_details_are_columns_where_everybody_has_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    speed = {"section": "speed", "model": "m", "unit": "tokens/s"}
    rows = [
        Row.of([100.0 * n], **speed, name=name, detail=f"{n} sentences", ceiling=1000)
        for name, most in (("onnx fp32", 3), ("onnx int8", 3), ("engine fp32", 2))
        for n in range(1, most + 1)
    ]
    (wide,) = blocks(rows[:6], spread=False)
    assert wide.title == "m: ragged batches, tokens/s (share of the LSTM's ceiling)"
    assert wide.headings == ["", "1 sentences", "2 sentences", "3 sentences"]
    assert wide.lines[0] == ["onnx fp32", "100 (10%)", "200 (20%)", "300 (30%)"]
    (narrow,) = blocks(rows, spread=False)
    assert narrow.headings[:2] == ["", "median"] and len(narrow.lines) == 8
    print_rows(Console(width=160), [Row("cuda", "small", "onnx on a card", "tokens/s", note="no CUDA provider")])
    assert capsys.readouterr().out == "small: on a card: not measured: onnx on a card: no CUDA provider\n"


# ----------------------------------------------------------------------------------------------------------- documents


def test_documents_show_the_committed_results_and_nothing_else(root: Path) -> None:
    for name in report.documents(root):
        text = (root / name).read_text(encoding="utf-8")
        assert text == report.fill(name, text, root / "benchmarks" / "results"), name


def test_markdown_of_results(tmp_path: Path) -> None:
    results().write(tmp_path / "abacus.json")
    (tmp_path / "abacus.svg").touch()
    text = "\n\n".join(filter(None, report.generate("cpu", tmp_path, "../")))
    assert "Abacus, 2 cores (beads), 1 GiB; python 3.12, commit 0123456789ab; 2030-01-02." in text
    assert "| fp32 | 1,600 | 16.0 | 2,000 | 80% | 1,800 | 89% |" in text
    assert (
        "**original: distance from the exact vectors, relative error**\n\n|  | layer 0 | layer 1 | layer 2 |\n" in text
    )
    assert "| int8 | 0 | 0.01 | 0.02 |" in text
    assert "**original: load, s**\n\n|  | median |\n| --- | ---: |\n| fp32, load | 0.25 |" in text
    assert "by hand.\n" in text and text.endswith("Not measured: bf16 (bulk): not on this processor.")
    assert "(../benchmarks/results/abacus.svg)" in text
    for other in ('{"rows": []}', '{"rows": ' + "[" * 100_000):
        (tmp_path / "x.json").write_text(other, encoding="utf-8")
        with pytest.raises(FlashElmoError, match=r"x\.json: expected results of the benchmark"):
            Results.read(tmp_path / "x.json")
    (tmp_path / "x.json").unlink()
    assert Results.read(tmp_path / "abacus.json") == results()
    newer = results(date="2031-01-01T00:00:00")
    newer.write(tmp_path / "aa.json")
    (tmp_path / "aa.svg").touch()
    (image,) = report.generate("plot", tmp_path, "")
    assert image.endswith("(benchmarks/results/aa.svg)")


def test_a_summary_compares_like_with_like(tmp_path: Path) -> None:
    """On a card: the same sentences, the same precision or a more exact one, and the ratio of the run itself."""
    single = {"section": "single", "model": "original", "unit": "ms"}
    rows = [*results().rows, Row.of([90], **single, name="reference")]
    for name in ("fp32", "int8"):
        rows.append(Row.of([30], **single, name=name, detail="cold cache", ratios={"reference": 3.1}))
    bulk = {"section": "bulk", "model": "original", "unit": "tokens/s", "ratios": {"reference, by length": 15.0}}
    rows += [Row.of([1500], **bulk, name=name) for name in ("int8", "bf16")]
    results(rows=rows, settings={"reference_batches": 3}).write(tmp_path / "abacus.json")
    assert list(report.summary(tmp_path)) == []

    def row(section: str, detail: str, name: str, speed: float, **ratios: float) -> Row:
        named = {f"PyTorch eager {key}": ratio for key, ratio in ratios.items()}
        return Row.of(
            [speed], section=section, model="original", unit="tokens/s", detail=detail, name=name, ratios=named
        )

    on_card = [
        row("bulk", "many", "flashelmo bf16", 9000),
        row("bulk", "few", "flashelmo bf16", 5000, fp32=50),
        row("bulk", "few", "flashelmo fp32", 2000, fp32=21),
        row("bulk", "few", "PyTorch eager fp32", 100),
        row("ragged", "8 sentences", "flashelmo bf16", 300, fp32=7, bf16=6),
        row("ragged", "64 sentences", "flashelmo bf16", 4000, fp32=11, bf16=13),
        *(row("ragged", f"{n} sentences", "PyTorch eager fp32", 60 * n) for n in (8, 64)),
        *(row("ragged", f"{n} sentences", "PyTorch eager bf16", 50 * n) for n in (8, 64)),
    ]
    machine = {"gpu": {"name": "a card"}}
    card = results(rows=on_card, machine=machine, settings={"eager_batch": 32})
    card.write(tmp_path / "gpu" / "gpu-card.json")
    table, said = report.summary(tmp_path)
    assert "| bulk text, bf16 | 1,500 tokens/s | 100 tokens/s, fp32 | 15.0 |" in table
    assert "| bulk text, fp32, on a card | 2,000 tokens/s | 100 tokens/s, fp32 | 21.0 |  |" in table
    assert "| 64 sentences in one call, bf16, on a card | 4,000 tokens/s | 3,840 tokens/s, fp32 | 11.0 |  |" in table
    assert "random weights" in said and "bulk text in batches of 32 as they come" in said
    at_once = {"fp32, 32 at once": 30.0, "fp32, 64 at once": 19.0, "bf16, 64 at once": 14.0}
    later = [
        *(row("bulk", "few", f"flashelmo {name}", 5000, **at_once) for name in ("bf16", "fp32")),
        *(row("bulk", "few", f"PyTorch eager {name}", 5000 / ratio) for name, ratio in at_once.items()),
    ]
    replace(card, rows=later, settings={}).write(tmp_path / "gpu" / "gpu-card.json")
    table, said = report.summary(tmp_path)
    assert "| bulk text, fp32, on a card | 5,000 tokens/s | 263 tokens/s, fp32, 64 at once | 19.0 |  |" in table
    assert "| bulk text, bf16, on a card | 5,000 tokens/s | 357 tokens/s, bf16, 64 at once | 14.0 |  |" in table
    assert "bulk text sorted by length" in said
    (tmp_path / "older").mkdir()
    (tmp_path / "abacus.json").rename(tmp_path / "older" / "abacus.json")
    first, second, third, _ = report.speeds(tmp_path)
    assert "(#olderabacus) | 1,600 (16.0) | 1,500 (15.0) | 1,500 (15.0) | 100 | 6% | 2030-01-02, older code |" in first
    assert "| 30 (3.1) |  | 30 (3.1) | 90 | 0% | 2030-01-02, older code |" in second
    assert "| few of bulk text | 5,000 (14.0) |  | 5,000 (19.0) | 263 | 357 |  | 0% |" in third
    assert next(report.generate("older", tmp_path)) == "### older/abacus"
    replace(card, rows=later[1:], settings={}).write(tmp_path / "gpu" / "gpu-card.json")
    (tmp_path / "older" / "abacus.json").rename(tmp_path / "abacus.json")
    with pytest.raises(FlashElmoError, match=r"gpu-card\.json: expected flashelmo bf16 beside PyTorch eager bf16"):
        list(report.summary(tmp_path))


def test_errors_are_one_line_for_each_precision(tmp_path: Path) -> None:
    absolute = [Row.of([0.1 * k], section="error", model="original", unit="max abs error", name="int8") for k in (1, 2)]
    results(rows=[*absolute, *results().rows]).write(tmp_path / "precision" / "trained" / "a.json")
    head, table = report.generate("trained", tmp_path)
    assert head.endswith("(`benchmarks/results/precision/trained/a.json`).")
    assert "| original, int8 | 0 | 0.01 | 0.02 | 0.2 |" in table


def test_markers_are_filled_wherever_they_are(tmp_path: Path) -> None:
    begin, end = "<!-- precision:begin -->", "<!-- precision:end -->"
    path = Path("docs/any.md")
    filled = f"a\n{begin}\n\nNone measured yet.\n\n{end}\nb"
    assert report.fill(path, f"a\n{begin}old{end}\nb", tmp_path) == filled
    assert report.fill(path, filled * 2, tmp_path) == filled * 2
    with pytest.raises(FlashElmoError, match=r"any\.md: expected markers of summary, speeds, .*, found 'figures'"):
        report.fill(path, "<!-- figures:begin --><!-- figures:end -->", tmp_path)
    for unpaired in (begin, f"{end}{begin}", f"{begin}<!-- cpu:end -->"):
        with pytest.raises(FlashElmoError, match=r"any\.md: expected <!-- NAME:begin --> and .* in pairs"):
            report.fill(path, unpaired, tmp_path)


def test_plot_shows_every_figure_and_is_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    (a,), (b,) = (plots.draw(results(), tmp_path / f"{name}.json") for name in "ab")
    svg = a.read_text(encoding="utf-8")
    assert svg == b.read_text(encoding="utf-8")
    assert all(f"<!-- {text} -->" in svg for text in ("1,600", "100", "fp32", "reference, by length"))
    assert "bf16" not in svg
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "matplotlib.figure", unable := Mock())
        type(unable).Figure = PropertyMock(side_effect=ValueError("not a valid backend"))
        with pytest.raises(FlashElmoError, match=r"^matplotlib: not a valid backend$"):
            plots.draw(results(), tmp_path / "a.json")
    (tmp_path / "README.md").touch()
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    results(rows=[]).write(tmp_path / "c.json")
    with pytest.raises(FlashElmoError, match=r"c\.json: expected results of bulk text, found none"):
        report.command(Settings(), Console())


# ------------------------------------------------------------------------------------------------------------- the run


def test_a_job_that_fails_takes_no_other_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> Any:
        logging.getLogger("flashelmo").warning("CUDA graphs are not used: %s", "not permitted")
        yield [Row.of([1], section="bulk", model="m", name="first", unit="s")]
        raise KeyError("gone")

    good = Job("size", "m", "", lambda: [Row.of([2], section="size", model="m", name="second", unit="MB")])
    settings = Settings(out=tmp_path / "deep")
    run = Run(settings, Console(width=160), new_results(settings, "tests"), "tests.json")
    run.do([Job("bulk", "m", "", fail), good])
    assert run.finish() == 1 and run.path == tmp_path / "deep" / "tests.json"
    assert [(row.name, row.note) for row in Results.read(run.path).rows] == [
        ("flashelmo", "CUDA graphs are not used: not permitted"),
        ("first", ""),
        ("all", "FAILED: KeyError: 'gone'"),
        ("second", ""),
    ]
    printed = capsys.readouterr().out
    assert "m, bulk, all, FAILED: KeyError: 'gone'" in printed and "failures: 1; " in printed


def test_a_quick_run_measures_every_section(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny.json"
    text = tmp_path / "text.txt"
    text.write_text("".join(" ".join(sentence) + "\n" for sentence in generate(100_000)), encoding="utf-8")
    arguments = f"--quick --models {model} --contestants fp32 --text {text} --out {out}"
    assert command.main(arguments.split()) == 0
    found = Results.read(out)
    assert {row.section for row in found.rows} == {*SECTIONS, "limits"}
    assert all(row.median is not None and np.isfinite(row.samples).all() for row in found.rows)
    assert str(tmp_path) not in out.read_text(encoding="utf-8")

    bulk = {row.label: row for row in found.section("bulk", "tiny")}
    assert list(bulk) == ["reference, file order", "reference, by length", "fp32"]
    assert bulk["fp32"].ratios.keys() == {"reference, file order", "reference, by length"}
    assert bulk["fp32"].utilisation_both is not None and 0 < bulk["fp32"].utilisation_both < 1
    assert "4096 tokens of text.txt" in bulk["fp32"].note
    singles = {row.label: row for row in found.section("single", "tiny")}
    assert list(singles) == ["reference", "fp32, cold cache", "fp32, warm cache"]
    assert all(row.unit == "ms" and row.ceiling and row.ceiling_both for row in singles.values())
    assert singles["fp32, warm cache"].ceiling_both == singles["fp32, warm cache"].ceiling
    assert max(row.median or 0 for row in found.section("error")) < 1e-5
    printed = capsys.readouterr().out
    assert "tiny: bulk text, tokens/s" in printed and "failures: 0; " in printed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("beauty", f"suite: expected one of {', '.join(command.SUITES)}, found 'beauty'"),
        ("--only bulk,beauty", f"--only: expected some of {', '.join(SECTIONS)}, found 'beauty'"),
        ("--models gigantic", "--models: expected some of tiny, small, medium, original, or paths, found 'gigantic'"),
        ("--contestants x", f"--contestants: expected some of {', '.join(list(PROCESSOR)[1:])}, found 'x'"),
        ("--rounds 0", "--rounds: expected 1 or more, found 0"),
        ("--rounds 1,2", "--rounds: expected 1 or more, found 1,2"),
        ("--seed -1", "--seed: expected 0 or more, found -1"),
        ("onnx --seconds x", "unrecognized arguments: --seconds x"),
    ],
)
def test_wrong_arguments_get_one_line(arguments: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments.split()) == 1
    assert capsys.readouterr().err == f"flashelmo bench: {line}\n"


def test_windows_gets_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    assert command.main(["--rounds", "0"]) == 1
    assert capsys.readouterr().err.startswith("flashelmo bench: expected Linux or macOS")


@pytest.mark.parametrize("name", ["cpu", "onnx"])
def test_quick_takes_less_of_everything(name: str) -> None:
    suite = command.find(name)
    full, quick = (command.parse(name, suite, given) for given in ([], ["--quick", "--threads", "3"]))
    assert (full, full.models) == (suite.defaults, ("original", "small"))
    assert (quick.models, quick.rounds, quick.out, quick.threads) == (("small",), 1, None, 3)
    assert command.parse(name, suite, ["--quick", "--models", "medium"]).models == ("medium",)
    assert all(max(each.batches) <= 32 * each.passages for each in (full, quick))
    written = replace(quick, text=Path("/home/someone/text.txt"), models=("/home/someone/model",)).to_dict()
    assert (written["text"], written["models"], "out" in written) == ("text.txt", ["model"], False)
    assert "someone" not in json.dumps(written)


def test_what_this_machine_does_faster_is_said_with_its_error() -> None:
    """Of the error the worst layer, or the bound where it was not measured; nothing of what is slower."""
    rows = [
        *(Row.of([speed], section="bulk", model="m", name=name, unit="tokens/s") for name, speed in
          (("fp32", 100.0), ("int8", 250.0), ("bf16", 90.0), ("fp32 unshared", 300.0), ("fp32 matrix peak", 400.0))),
        *(Row.of([ms], section="single", model="m", name=name, unit="ms", detail=WARM) for name, ms in
          (("fp32", 60.0), ("bf16", 40.0))),
        *(Row.of([error], section="error", model="m", name="int8", unit="relative error", detail=f"layer {layer}")
          for layer, error in enumerate((0.004, 0.014))),
    ]  # fmt: skip
    assert list(faster_lines(rows)) == [
        "m, bulk text: int8 is 2.5 times as fast as fp32, relative error 0.014 (below 0.03)",
        "m, one sentence: bf16 is 1.5 times as fast as fp32, relative error below 0.01",
    ]
    assert len(list(faster_lines(rows[1:]))) == 1  # without float32's bulk text there is nothing to compare it with
