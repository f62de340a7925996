"""The benchmarks measure what they say: text, work, ceilings, turns, runs, results, and the documents' figures."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_models import BILM, MODELS

from flashelmo.benchmarks import __main__ as command
from flashelmo.benchmarks import report
from flashelmo.benchmarks.accuracy import error_rows, relative_errors, why_wrong
from flashelmo.benchmarks.contestant import PROCESSOR, Clock, Contestant, Way, engine, line_up
from flashelmo.benchmarks.cpu.costs import STAGES
from flashelmo.benchmarks.fresh import import_seconds
from flashelmo.benchmarks.results import Results, Row, median_ratio, new_results, with_ratios
from flashelmo.benchmarks.roofline import Roofline, Work, recurrent_weights, streamed_weights
from flashelmo.benchmarks.run import Job, Run
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tables import CACHED, SHARED, blocks, figure, grid, notes, print_rows
from flashelmo.benchmarks.text import Sentences, draw_passages, generate, load_sentences, spell
from flashelmo.benchmarks.timing import Timing, take_turns
from flashelmo.benchmarks.worker import Pool, Worker, WorkerError
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.weights import expected_shapes
from flashelmo.engine.text.schedule import Boundaries, build_schedule
from flashelmo.engine.text.windows import Window

SECTIONS = command.find("cpu").defaults.sections

# ---------------------------------------------------------------------------------------------------------------- text


def statistics(sentences: Sentences) -> dict[str, float]:
    """The numbers of the docstring of `text.py`."""
    window = Window.from_sentences(sentences)
    lengths, n_words = np.diff(window.offsets), len(window.words)
    schedule = build_schedule(window.word_ids, window.offsets, Boundaries(n_words, n_words + 1))
    return {
        "tokens a sentence, mean": float(lengths.mean()),
        "tokens a sentence, deviation": float(lengths.std()),
        "bytes a token": float(np.mean([len(token.encode()) for tokens in sentences for token in tokens])),
        "bytes a distinct word": float(np.mean([len(word.encode()) for word in window.words.to_pylist()])),
        "distinct words a token": n_words / int(lengths.sum()),
        "forward nodes a token": (schedule.forward.n_nodes - 1) / int(lengths.sum()),  # the boundary is no token
        "backward nodes a token": (schedule.backward.n_nodes - 1) / int(lengths.sum()),
    }


def test_generated_text_has_the_statistics_it_claims() -> None:
    found = statistics(generate(30_000))
    expected = {  # value, how far off it may be
        "tokens a sentence, mean": (26.0, 1.0),
        "tokens a sentence, deviation": (12.5, 1.0),
        "bytes a token": (3.55, 0.1),
        "bytes a distinct word": (6.5, 0.5),
        "distinct words a token": (0.07, 0.01),
        "forward nodes a token": (0.91, 0.02),
        "backward nodes a token": (0.92, 0.02),
    }
    assert found.keys() == expected.keys()
    for name, (value, margin) in expected.items():
        assert abs(found[name] - value) <= margin, name


def test_real_text_has_the_statistics_that_the_generator_imitates(shared: Path) -> None:
    real = statistics(load_sentences(30_000, shared / "data" / "text" / "kjv.txt")[0])
    made = statistics(generate(30_000))
    for name in ("distinct words a token", "forward nodes a token", "backward nodes a token", "bytes a token"):
        assert made[name] == pytest.approx(real[name], rel=0.05), name


def test_statistics_of_a_text_small_enough_to_count() -> None:
    found = statistics([["a", "b"], ["a", "cc"], ["a", "cc"]])
    assert found["distinct words a token"] == 3 / 6
    assert found["forward nodes a token"] == 3 / 6  # a, a b, a cc
    assert found["backward nodes a token"] == 4 / 6  # b, b a, cc, cc a
    assert found["bytes a token"] == 8 / 6


def test_generated_text_depends_on_the_seed_alone_and_every_rank_has_its_word() -> None:
    assert generate(500, seed=3) == generate(500, seed=3) != generate(500, seed=4)
    assert len({spell(rank) for rank in range(40_000)}) == 40_000


def test_text_is_cut_to_the_tokens_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a b c\n\nd e\n", encoding="utf-8")
    assert load_sentences(4, path) == ([["a", "b", "c"], [], ["d"]], "text.txt")
    with pytest.raises(FlashElmoError, match=r"text\.txt: expected 6 tokens or more, found 5"):
        load_sentences(6, path)
    monkeypatch.setattr("flashelmo.benchmarks.text.REAL_TEXT", tmp_path / "nothing here")
    sentences, source = load_sentences(100, seed=5)
    assert source == "generated text, seed 5"
    assert sum(map(len, sentences)) == 100
    assert sentences[:-1] == generate(100, seed=5)[: len(sentences) - 1]


def test_passages_are_drawn_evenly() -> None:
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
    assert work.lstm_ceiling(1e6) == pytest.approx(1e6 / BILM.lstm_flops_per_token)
    seconds = work.lstm / 2e6 + work.characters / 1e6
    assert work.both_ceiling(2e6, 1e6) == pytest.approx(4 / seconds)


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
    from flashelmo.benchmarks import roofline

    monkeypatch.setattr(roofline, "SHAPES", ((64, 256, 256),))
    monkeypatch.setattr(roofline, "COPY_BYTES", 1 << 20)
    limits = Roofline(threads=1, seconds=0.02)
    peaks = limits.peaks()
    assert {"fp32", "int8"} <= peaks.keys() <= {"fp32", "int8", "bf16"}
    rates = [*peaks.values(), limits.copy_bandwidth(), *(limits.stream_bandwidth(1 << 18, p) for p in ("fp32", "int8"))]
    assert all(1e7 < rate < 1e14 for rate in rates)


# ------------------------------------------------------------------------------------------- contestants and turns


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the native format."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    write_native(MODELS["skip"], path)
    return path


def test_a_worker_answers_and_refuses_in_its_callers_words(folder: Path) -> None:
    psutil = pytest.importorskip("psutil")
    with Pool() as pool:
        worker = pool.worker(Clock, engine, folder, dict(PROCESSOR["reference"]))
        assert worker is pool.worker(Clock, engine, folder, dict(PROCESSOR["reference"]))
        assert worker.call("vectors", [["the", "cat"]])[0].shape == (3, 2, 8)
        with pytest.raises(WorkerError, match=r"^FileNotFoundError: .*no such text"):
            worker.call("seconds", [folder / "no such text"])
        assert worker.call("seconds", [generate(200)]) > 0  # it goes on after an error

        process = psutil.Process(worker.process.pid)  # and leaves the processor alone while it is idle
        time.sleep(0.1)
        before = sum(process.cpu_times()[:2])
        time.sleep(0.4)
        assert sum(process.cpu_times()[:2]) - before < 0.1
        process.kill()
        with pytest.raises(WorkerError, match="ended with exit code -9"):
            worker.call("window_tokens")
        assert pool.worker(Clock, engine, folder, dict(PROCESSOR["reference"])).process.pid != process.pid
    with pytest.raises(FlashElmoError, match="no precision 'bf16'"):
        Worker(Clock, engine, folder, {"runtime": "ort", "precision": "bf16"})


def embedding(factor: float, exact: Any) -> Way:
    """A way to embed that is off by a factor."""
    return Way(lambda batch: [exact[0] * np.float32(factor)], len)


def refuse() -> Way:
    raise FlashElmoError("no such thing here")


def crash() -> Way:
    raise KeyError("line 1\nline 2")


def test_who_is_wrong_or_absent_is_not_timed() -> None:
    exact = [np.ones((2, 3, 4), np.float32)]
    found = [("right", 1.0), ("off", 1.001), ("nan", np.nan)]
    contestants = [Contestant(name, "fp32", embedding, (factor, exact)) for name, factor in found]
    contestants += [Contestant("absent", "fp32", refuse), Contestant("broken", "fp32", crash)]
    workers, absent = line_up(contestants, [["a"]], exact)
    assert list(workers) == [("right", "")]
    assert absent == {
        "off": "FAILED: expected vectors within 1e-05 of the reference's (absolute), found 0.001",
        "nan": "FAILED: expected vectors within 1e-05 of the reference's (absolute), found nan",
        "absent": "no such thing here",
        "broken": "FAILED: KeyError: 'line 1\\nline 2'",
    }


def test_a_clock_counts_passes_and_calls() -> None:
    seen: list[int] = []
    clock = Clock(lambda: Way(lambda batch: [], lambda batch: seen.append(len(batch)), 7))
    assert 0 < clock.seconds([[["a", "b"]], [["c"], ["d"]]]) < 1
    assert (seen, clock.window_tokens()) == ([1, 2], 7)
    clock.seconds([[["a"]]], repeats=3, warm_ups=2)
    assert seen[2:] == [1] * 5
    assert clock.seconds([[["a"]]], at_least=0.01) < 0.01 and len(seen) > 20


def test_contestants_take_turns_and_one_failure_is_its_own() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        if order.count("b") == 2 and name == "b":
            raise MemoryError("too large")
        return float(len(order))

    measures: dict[str, Callable[[], float]] = {name: lambda name=name: measure(name) for name in "abc"}  # type: ignore[misc]
    timings = take_turns(3, measures, pause=0)
    assert "".join(order) == "abcabcac"
    assert timings == {"a": Timing([1, 4, 7]), "b": Timing([], "MemoryError: too large"), "c": Timing([3, 6, 8])}
    row = Row("bulk", "m", "n", "tokens/s")
    assert row.timed(timings["a"], lambda seconds: 28 / seconds).samples == [28, 7, 4]
    assert row.timed(timings["b"]).note == "FAILED: MemoryError: too large" and row.timed(timings["b"]).failed


# ------------------------------------------------------------------------------------------------ accuracy and results


def test_errors_are_what_they_are_called() -> None:
    exact = [np.ones((2, 3, 4), np.float32), np.ones((2, 1, 4), np.float32)]
    found = [array.copy() for array in exact]
    found[0][1, 0, 0] += 0.5
    assert relative_errors(found, exact) == pytest.approx([0, 0.5 / 4])
    assert why_wrong(found, exact, "int8") == "expected vectors within 0.03 of the reference's (relative), found 0.12"
    assert why_wrong(found, exact, "fp32").startswith("expected vectors within 1e-05 of the reference's (absolute)")
    assert why_wrong(exact, exact, "fp32") == ""
    rows = error_rows("m", "n", found, exact, "by hand")
    assert [(row.unit, row.detail, row.median) for row in rows] == [
        (unit, f"layer {layer}", error)
        for unit, errors in (("max abs error", (0, 0.5)), ("relative error", (0, 0.125)))
        for layer, error in enumerate(errors)
    ]
    found[0][1, 0, 0] = np.nan
    assert all("found nan" in why_wrong(found, exact, precision) for precision in ("fp32", "int8"))
    assert [row.note for row in error_rows("m", "n", found, exact, "")] == [
        "FAILED: expected finite vectors, found others"
    ]


def test_ratios_and_shares_count_in_the_units_direction() -> None:
    assert median_ratio([10, 30, 90], [10, 10, 10], "tokens/s") == 3
    assert median_ratio([10, 10, 20], [10, 40, 40], "ms") == 2
    slow, fast = (Row.of(x, section="bulk", model="m", name="n", unit="tokens/s") for x in ([1, 2], [4, 4]))
    rows = with_ratios([slow, fast, Row("bulk", "m", "absent", "tokens/s")], {"slow": slow})
    assert [row.ratios for row in rows] == [{}, {"slow": 3.0}, {}]  # the median of the rounds' own
    speed = Row.of([50, 60, 70], section="bulk", unit="tokens/s", ceiling=120, ceiling_both=80)
    assert (speed.low, speed.p25, speed.median, speed.p75, speed.high) == (50, 55, 60, 65, 70)
    assert (speed.utilisation, speed.utilisation_both) == (0.5, 0.75)
    duration = Row.of([40], section="single", unit="ms", ceiling=10)
    assert (duration.utilisation, duration.utilisation_both) == (0.25, None)


def results(**changes: Any) -> Results:
    """Made-up results."""
    speed = {"section": "bulk", "model": "original", "unit": "tokens/s"}
    reference = Row.of([100, 100], **speed, name="reference", detail="by length", ceiling=2000, note="by hand")
    ours = Row.of([1500, 1700], **speed, name="fp32", ceiling=2000, ceiling_both=1800, note="by hand")
    rows = with_ratios([reference, ours], {reference.label: reference})
    rows.append(Row("bulk", "original", "bf16", "tokens/s", note="not on this processor"))
    error = {"section": "error", "model": "original", "unit": "relative error"}
    rows += [Row.of([0.01 * layer], **error, name="int8", detail=f"layer {layer}") for layer in range(3)]
    rows.append(Row.of([0.25], section="load", model="original", name="fp32", detail="load", unit="s"))
    machine = {"processor": "Abacus", "cores": 2, "instruction_sets": ["beads"], "memory_gib": 1}
    commit = {"id": "0123456789abcdef", "dirty": False}
    made = Results(machine, {"python": "3.12", "torch": None}, commit, "2030-01-02T03:04:05", {"rounds": 2}, rows)
    return replace(made, **changes)


def test_results_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    results().write(path)
    assert Results.read(path) == results()
    for other in ('{"rows": []}', '{"rows": ' + "[" * 100_000):
        path.write_text(other, encoding="utf-8")
        with pytest.raises(FlashElmoError, match=r"results\.json: expected results of the benchmark"):
            Results.read(path)


def test_the_ceiling_stands_beside_the_figure() -> None:
    rows = results().section("bulk")
    headings, lines = grid(rows, spread=False)
    assert headings == [
        "", "median", "x reference, by length", "LSTM ceiling", "share", "ceiling of both parts", "share"
    ]  # fmt: skip
    assert lines == [
        ["reference, by length", "100", "", "2,000", "5%", "", ""],
        ["fp32", "1,600", "16.0", "2,000", "80%", "1,800", "89%"],
        ["bf16", "none", "", "", "", "", ""],
    ]
    assert notes(rows) == ["by hand", "bf16: not on this processor"]
    assert [figure(x) for x in (None, 0.012345, 12.3456, 1234.5)] == ["", "0.0123", "12.3", "1,234"]


def test_shares_above_a_whole_are_explained() -> None:
    fast = Row.of([30], section="bulk", unit="tokens/s", ceiling=20)
    short = Row.of([1], section="single", unit="ms", ceiling=0.5, ceiling_both=1.1)
    assert notes([fast, fast]) == [SHARED] and notes([short]) == [CACHED]
    assert notes([replace(fast, ceiling=30), replace(short, ceiling_both=1)]) == []


def test_what_is_not_measured_is_a_line_instead_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row("cuda", "small", "onnx on a card", "tokens/s", note="this ONNX Runtime has no CUDA provider")]
    print_rows(Console(width=160), rows)
    assert capsys.readouterr().out == (
        "small: on a card: not measured: onnx on a card: this ONNX Runtime has no CUDA provider\n"
    )


# ----------------------------------------------------------------------------------------------------------- documents


def test_documents_show_the_committed_results_and_nothing_else(root: Path) -> None:
    for name in report.documents(root):
        text = (root / name).read_text(encoding="utf-8")
        assert text == report.fill(name, text, root / "benchmarks" / "results"), name


def test_markdown_of_results(tmp_path: Path) -> None:
    results().write(tmp_path / "abacus.json")
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
    newer = results(date="2031-01-01T00:00:00")
    newer.write(tmp_path / "aa.json")
    (image,) = report.generate("plot", tmp_path, "")
    assert image.endswith("(benchmarks/results/aa.svg)")


def test_markers_are_filled_wherever_they_are(tmp_path: Path) -> None:
    begin, end = "<!-- precision:begin -->", "<!-- precision:end -->"
    path = Path("docs/any.md")
    filled = f"a\n{begin}\n\nNone measured yet.\n\n{end}\nb"
    assert report.fill(path, f"a\n{begin}old{end}\nb", tmp_path) == filled
    twice = f"{filled}{filled}"
    assert report.fill(path, twice, tmp_path) == twice
    assert report.fill(path, "no markers", tmp_path) == "no markers"
    with pytest.raises(FlashElmoError, match=r"any\.md: expected markers of summary, plot, .*, found 'figures'"):
        report.fill(path, "<!-- figures:begin --><!-- figures:end -->", tmp_path)
    for unpaired in (begin, f"{end}{begin}", f"{begin}<!-- cpu:end -->"):
        with pytest.raises(FlashElmoError, match=r"any\.md: expected <!-- NAME:begin --> and .* in pairs"):
            report.fill(path, unpaired, tmp_path)


def test_the_summary_has_six_rows_of_the_newest_results(tmp_path: Path) -> None:
    assert list(report.generate("summary", tmp_path, "")) == []
    singles = [("reference", ""), ("fp32", "cold cache"), ("int8", "cold cache")]
    rows = results().rows[:2] + [
        Row.of([speed], section="bulk", model="original", name=name, unit="tokens/s", ceiling=4000)
        for name, speed in (("int8", 3000), ("bf16", 2000))
    ]
    rows += [
        Row.of([10.0 / k], section="single", model="original", name=name, detail=detail, unit="ms", ceiling=2)
        for k, (name, detail) in enumerate(singles, 1)
    ]
    results(rows=rows).write(tmp_path / "abacus.json")
    bulk = {"section": "bulk", "model": "original", "unit": "tokens/s"}
    card = [
        Row.of([5e6], **bulk, name="flashelmo bf16", detail="2,000 tokens", ceiling=1e7),
        Row.of([1e6], **bulk, name="flashelmo bf16", detail="100 tokens", ratios={"PyTorch eager fp32": 9}),
        Row.of([1e5], **bulk, name="PyTorch eager fp32", detail="100 tokens"),
    ]
    machine = results().machine | {"gpu": {"name": "Slide rule"}}
    results(rows=card, machine=machine).write(tmp_path / "gpu" / "gpu-rule.json")
    table, note = report.generate("summary", tmp_path, "")
    assert table.splitlines()[2:] == [
        "| bulk text, fp32 | 1,600 tokens/s | 100 tokens/s | 16.0 | 80% |",
        "| bulk text, int8 | 3,000 tokens/s | 100 tokens/s | 30.0 | 75% |",
        "| bulk text, bf16 | 2,000 tokens/s | 100 tokens/s | 20.0 | 50% |",
        "| one sentence, fp32 | 5 ms | 10 ms | 2.0 | 40% |",
        "| one sentence, int8 | 3.33 ms | 10 ms | 3.0 | 60% |",
        "| bulk text, bf16, on a card | 5,000,000 tokens/s | 100,000 tokens/s | 50.0 | 50% |",
    ]
    assert "Abacus, 2 cores, 2030-01-02, and on Slide rule" in note and "(2,000 tokens, for PyTorch 100 tokens)" in note
    results(rows=rows[:3] + rows[4:]).write(tmp_path / "abacus.json")
    with pytest.raises(FlashElmoError, match=r"abacus\.json: expected a figure of original, bulk, bf16"):
        list(report.generate("summary", tmp_path, ""))


def test_many_details_are_columns_where_everybody_has_them_all() -> None:
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


def test_the_engines_precisions_are_a_table(tmp_path: Path) -> None:
    (table,) = report.generate("precisions", tmp_path)
    assert f"| `fp32` | float32 | {3 * '1e-05 absolute, 1e-05 relative | '}7.5 |\n" in table
    assert "| `tf32` | float32, products of 11 bits |  | 0.003 relative |  | 8.0 |\n" in table


def test_plot_shows_every_figure_and_is_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        report.draw(results(), path)
    svg = paths[0].read_text(encoding="utf-8")
    assert svg == paths[1].read_text(encoding="utf-8")
    assert all(f"<!-- {text} -->" in svg for text in ("1,600", "100", "fp32", "reference, by length"))
    assert "bf16" not in svg
    with pytest.raises(FlashElmoError, match="expected results of bulk text"):
        report.draw(results(rows=[]), paths[0])


# ------------------------------------------------------------------------------------------------------------- the run


def run_of(jobs: Sequence[Job], settings: Settings, is_lost: Callable[[], bool] = lambda: False) -> tuple[int, Run]:
    """A run of some jobs; its exit status."""
    run = Run(settings, Console(width=160), new_results(settings, "tests"), "tests.json", is_lost)
    run.do(jobs)
    return run.finish(), run


def test_a_job_that_fails_takes_no_other_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> Any:
        yield [Row.of([1], section="bulk", model="m", name="first", unit="s")]
        raise KeyError("gone")

    good = Job("size", "m", "", lambda: [[Row.of([2], section="size", model="m", name="second", unit="MB")]])
    status, run = run_of([Job("bulk", "m", "", fail), good], Settings(out=tmp_path / "deep"))
    assert status == 1 and run.path == tmp_path / "deep" / "tests.json"
    found = Results.read(run.path)
    assert [(row.name, row.note) for row in found.rows] == [
        ("first", ""), ("all", "FAILED: KeyError: 'gone'"), ("second", "")
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "m, bulk, all, FAILED: KeyError: 'gone'" in printed and "failures: 1; " in printed
    assert run_of([good], Settings())[0] == 0


def test_a_deadline_and_a_lost_device_leave_the_rest_out() -> None:
    job = Job("size", "m", "x", lambda: [[Row.of([2], section="size", model="m", name="n", unit="MB")]], seconds=5)
    status, run = run_of([job], Settings(limit_seconds=4))
    assert (status, [row.note for row in run.results.rows]) == (0, ["skipped, as the 4 seconds were over"])
    status, run = run_of([job, job], Settings(), is_lost=lambda: True)
    assert status == 1
    lost = ["", "FAILED: the device is lost after this", "skipped, as the device is lost"]
    assert [row.note for row in run.results.rows] == lost


def test_a_quick_run_measures_every_section(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny.json"
    text = tmp_path / "text.txt"
    text.write_text("".join(" ".join(sentence) + "\n" for sentence in generate(100_000)), encoding="utf-8")
    arguments = f"--quick --models {folder} --contestants fp32 --text {text} --out {out}"
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
    stages = {row.detail: row.median or 0 for row in found.section("host") if row.unit.startswith("%")}
    assert stages.keys() == {*STAGES, "between"}
    assert sum(stages.values()) == pytest.approx(100, abs=0.1)
    assert all(share > 0 for share in stages.values())
    printed = capsys.readouterr().out
    assert "tiny: bulk text, tokens/s" in printed and "failures: 0; " in printed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("beauty", f"suite: expected one of {', '.join(command.SUITES)}, found 'beauty'"),
        ("--only bulk,beauty", f"--only: expected some of {', '.join(SECTIONS)}, found 'beauty'"),
        ("--models gigantic", "--models: expected some of small, medium, original, or paths, found 'gigantic'"),
        (
            "--contestants reference",
            f"--contestants: expected some of {', '.join(list(PROCESSOR)[1:])}, found 'reference'",
        ),
        ("--rounds 0", "--rounds: expected 1 or more, found 0"),
        ("--threads -1", "--threads: expected 1 or more, found -1"),
        ("--rounds many", "--rounds: expected 1 or more, found many"),
        ("--rounds 1,2", "--rounds: expected 1 or more, found 1,2"),
        ("--seed -1", "--seed: expected 0 or more, found -1"),
        ("--beauty", "unrecognized arguments: --beauty"),
        ("onnx --golden x", "unrecognized arguments: --golden x"),
    ],
)
def test_wrong_arguments_get_one_line(arguments: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments.split()) == 1
    assert capsys.readouterr().err == f"flashelmo bench: {line}\n"


def test_an_output_that_cannot_be_written_is_known_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert command.main(["--out", str(tmp_path / "file" / "results.json")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["cpu", "onnx"])
def test_quick_takes_less_of_everything(name: str) -> None:
    suite = command.find(name)
    full, quick = (command.parse(name, suite, given) for given in ([], ["--quick", "--threads", "3"]))
    assert (full, full.models) == (suite.defaults, ("original", "small"))
    assert (quick.models, quick.rounds, quick.out, quick.threads) == (("small",), 1, None, 3)
    assert command.parse(name, suite, ["--quick", "--models", "medium"]).models == ("medium",)
    for field in ("host_tokens", "peak_seconds", "text_tokens", "load_repeats", "sample_seconds", "sentences"):
        assert getattr(quick, field) < getattr(full, field), field
    for settings in (full, quick):
        assert max(settings.batches) <= 32 * settings.passages
    written = replace(quick, text=Path("/home/someone/text.txt"), models=("/home/someone/model",)).to_dict()
    assert (written["text"], written["models"], "out" in written) == ("text.txt", ["model"], False)
    assert "someone" not in json.dumps(written)


def test_import_time_is_a_fresh_processs() -> None:
    assert 0 < import_seconds() < 5
