"""The benchmarks measure what they say: text, work, ceilings, turns, results, and README's figures."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import BILM, MODELS

from flashelmo.benchmarks import compare, report
from flashelmo.benchmarks.accuracy import check, max_error, relative_errors
from flashelmo.benchmarks.contestant import Contestant, take_turns
from flashelmo.benchmarks.fresh import import_seconds
from flashelmo.benchmarks.host import STAGES
from flashelmo.benchmarks.results import Results, Row, median_ratio, with_ratios
from flashelmo.benchmarks.roofline import Roofline, Work, recurrent_weights, streamed_weights
from flashelmo.benchmarks.settings import CONTESTANTS, SECTIONS, Settings
from flashelmo.benchmarks.speed import draw_batches
from flashelmo.benchmarks.tables import figure, grid, notes
from flashelmo.benchmarks.text import generate, load_sentences, spell, statistics
from flashelmo.benchmarks.worker import Worker
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.weights import expected_shapes

# ---------------------------------------------------------------------------------------------------------------- text


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


def test_generated_text_depends_on_the_seed_alone() -> None:
    assert generate(500, seed=3) == generate(500, seed=3) != generate(500, seed=4)


def test_every_rank_has_a_word_of_its_own() -> None:
    assert len({spell(rank) for rank in range(40_000)}) == 40_000


def test_loaded_text_is_cut_to_the_tokens_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a b c\n\nd e\n", encoding="utf-8")
    assert load_sentences(4, path) == ([["a", "b", "c"], [], ["d"]], "text.txt")
    with pytest.raises(FlashElmoError, match=r"text\.txt: expected 6 tokens or more, found 5"):
        load_sentences(6, path)


def test_without_a_file_text_is_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashelmo.benchmarks.text.REAL_TEXT", tmp_path / "nothing here")
    sentences, source = load_sentences(100, seed=5)
    assert source == "generated text, seed 5"
    assert sum(map(len, sentences)) == 100
    assert sentences[:-1] == generate(100, seed=5)[: len(sentences) - 1]


def test_batches_are_drawn_evenly() -> None:
    sentences = [[str(k)] for k in range(300)]
    drawn = [int(sentence[0]) for sentence in draw_batches(sentences, 3)]
    assert drawn == [*range(34, 66), *range(134, 166), *range(234, 266)]
    with pytest.raises(FlashElmoError, match="3 batches of 32 sentences, found 95"):
        draw_batches(sentences[:95], 3)


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


# -------------------------------------------------------------------------------------------------- workers and turns


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the native format."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    write_native(MODELS["skip"], path)
    return path


def test_a_worker_answers_and_refuses_in_its_callers_words(folder: Path) -> None:
    with Worker(Contestant, folder, {"runtime": "ort"}) as worker:
        vectors = worker.call("vectors", [["the", "cat"]])
        assert vectors[0].shape == (3, 2, 8)
        with pytest.raises(RuntimeError, match="FileNotFoundError"):
            worker.call("bulk", folder / "no such text")
        assert worker.call("single", ["the", "cat"], 2) > 0  # it goes on after an error
    with pytest.raises(FlashElmoError, match="no precision 'bf16'"):
        Worker(Contestant, folder, {"runtime": "ort", "precision": "bf16"})


def test_an_idle_worker_leaves_the_processor_alone(folder: Path) -> None:
    psutil = pytest.importorskip("psutil")
    with Worker(Contestant, folder, dict(CONTESTANTS["reference"])) as worker:
        worker.call("vectors", generate(200))
        process = psutil.Process(worker.pid)
        time.sleep(0.1)
        before = sum(process.cpu_times()[:2])
        time.sleep(0.4)
        assert sum(process.cpu_times()[:2]) - before < 0.1


def test_contestants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashelmo.benchmarks.contestant.PAUSE", 0)
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    samples = take_turns(2, {"a": lambda: measure("a"), "b": lambda: measure("b")})
    assert order == ["a", "b", "a", "b"]
    assert samples == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


# ------------------------------------------------------------------------------------------------ accuracy and results


def test_errors_are_what_they_are_called() -> None:
    exact = [np.ones((2, 3, 4), np.float32), np.ones((2, 1, 4), np.float32)]
    found = [array.copy() for array in exact]
    found[0][1, 0, 0] += 0.5
    assert relative_errors(found, exact) == pytest.approx([0, 0.5 / 4])
    assert max_error(found, exact) == 0.5
    with pytest.raises(FlashElmoError, match=r"int8: expected vectors within 0\.08 of the reference's, found 0\.12"):
        check("int8", found, exact)
    check("fp32", exact, exact)
    found[0][1, 0, 0] = np.nan
    for name in ("fp32", "int8"):
        with pytest.raises(FlashElmoError, match="found nan"):
            check(name, found, exact)


def test_ratios_are_of_figures_of_the_same_round() -> None:
    assert median_ratio([10, 30, 90], [10, 10, 10], "tokens/s") == 3
    assert median_ratio([10, 10, 20], [10, 40, 40], "ms") == 2
    slow, fast = (Row.of(x, section="bulk", model="m", name="n", unit="tokens/s") for x in ([1, 2], [4, 4]))
    rows = with_ratios([slow, fast], {"slow": slow})
    assert [row.ratios for row in rows] == [{}, {"slow": 3.0}]


def test_utilisation_counts_in_the_units_direction() -> None:
    speed = Row.of([50, 60, 70], section="bulk", model="m", name="n", unit="tokens/s", ceiling=120, ceiling_both=80)
    assert (speed.low, speed.p25, speed.median, speed.p75, speed.high) == (50, 55, 60, 65, 70)
    assert (speed.utilisation, speed.utilisation_both) == (0.5, 0.75)
    duration = Row.of([40], section="single", model="m", name="n", unit="ms", ceiling=10)
    assert (duration.utilisation, duration.utilisation_both) == (0.25, None)


def results() -> Results:
    """Made-up results."""
    speed = {"section": "bulk", "model": "small", "unit": "tokens/s"}
    reference = Row.of([100, 100], **speed, name="reference", detail="file order", ceiling=2000, note="by hand")
    engine = Row.of([1500, 1700], **speed, name="fp32", ceiling=2000, ceiling_both=1800, note="by hand")
    rows = with_ratios([reference, engine], {reference.label: reference})
    rows.append(Row("bulk", "small", "bf16", "tokens/s", note="not on this processor"))
    error = {"section": "error", "model": "small", "unit": "relative error"}
    rows += [Row.of([0.01 * layer], **error, name="int8", detail=f"layer {layer}") for layer in range(3)]
    rows.append(Row.of([0.25], section="load", model="small", name="fp32", detail="load", unit="s"))
    machine = {"processor": "Abacus", "cores": 2, "instruction_sets": ["beads"], "memory_gib": 1}
    commit = {"id": "0123456789abcdef", "dirty": False}
    return Results(machine, {"python": "3.12", "torch": None}, commit, "2030-01-02T03:04:05", {"rounds": 2}, rows)


def test_results_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    results().write(path)
    assert Results.read(path) == results()
    path.write_text('{"rows": []}', encoding="utf-8")
    with pytest.raises(FlashElmoError, match=r"results\.json: expected results of the benchmark"):
        Results.read(path)


def test_the_ceiling_stands_beside_the_figure() -> None:
    rows = results().section("bulk")
    headings, lines = grid(rows, spread=False)
    assert headings == [
        "", "median", "x reference, file order", "LSTM ceiling", "share", "ceiling of both parts", "share"
    ]  # fmt: skip
    assert lines == [
        ["reference, file order", "100", "", "2,000", "5%", "", ""],
        ["fp32", "1,600", "16.0", "2,000", "80%", "1,800", "89%"],
        ["bf16", "none", "", "", "", "", ""],
    ]
    assert notes(rows) == ["by hand", "bf16: not on this processor"]
    assert [figure(x) for x in (None, 0.012345, 12.3456, 1234.5)] == ["", "0.0123", "12.3", "1,234"]


# -------------------------------------------------------------------------------------------------------- README, plot


def test_readme_shows_the_committed_results_and_nothing_else(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert readme == report.in_readme(readme, root / "benchmarks" / "results")


def test_markdown_of_results(tmp_path: Path) -> None:
    assert report.figures(tmp_path) == "None measured yet."
    results().write(tmp_path / "abacus.json")
    text = report.figures(tmp_path)
    assert "Abacus, 2 cores (beads), 1 GiB; python 3.12, commit 0123456789ab; 2030-01-02." in text
    assert "| fp32 | 1,600 | 16.0 | 2,000 | 80% | 1,800 | 89% |" in text
    assert "| small | int8 | 0 | 0.01 | 0.02 |" in text
    assert "| small | fp32, load | s | 0.25 |" in text
    assert "by hand.\n" in text and text.endswith("Not measured: bf16. not on this processor.")
    assert "(benchmarks/results/abacus.svg)" in text


def test_readme_without_markers_is_refused() -> None:
    begin, end = "<!-- figures:begin -->", "<!-- figures:end -->"
    assert report.replace_between(f"a\n{begin}old{end}\nb", "figures", "new") == f"a\n{begin}\n\nnew\n\n{end}\nb"
    with pytest.raises(FlashElmoError, match="expected the lines"):
        report.replace_between("no markers", "figures", "new")


def test_precisions_are_shown_by_layer(tmp_path: Path) -> None:
    assert report.precision_errors(tmp_path) == "None measured yet."
    rows = [
        Row.of([error], section="error", model="small", name=name, unit=unit, detail=f"layer {layer}")
        for name, unit, errors in (
            ("fp32", "max abs error", (1e-6, 2e-6)),
            ("bf16", "max abs error", (0.1, 0.2)),
            ("bf16", "relative error", (0.003, 0.004)),
        )
        for layer, error in enumerate(errors)
    ]
    replace(results(), rows=rows).write(tmp_path / "precision" / "abacus.json")
    text = report.precision_errors(tmp_path)
    assert "| small | bf16 (relative error) | 0.003 | 0.004 |\n" in text
    assert text.endswith("| small | fp32 (max abs error) | 1e-06 | 2e-06 |")


def test_plot_shows_every_figure_and_is_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        report.draw(results(), path)
    svg = paths[0].read_text(encoding="utf-8")
    assert svg == paths[1].read_text(encoding="utf-8")
    assert all(f"<!-- {text} -->" in svg for text in ("1,600", "100", "fp32", "reference, file order"))
    assert "bf16" not in svg
    with pytest.raises(FlashElmoError, match="expected results of bulk text"):
        report.draw(replace(results(), rows=[]), paths[0])


# ------------------------------------------------------------------------------------------------------------- the run


def test_a_quick_run_measures_every_section(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny.json"
    text = tmp_path / "text.txt"
    text.write_text("".join(" ".join(sentence) + "\n" for sentence in generate(100_000)), encoding="utf-8")
    sections = [section for section in SECTIONS if section != "single"]  # it is like bulk, and starts as many processes
    arguments = (
        f"--quick --rounds 1 --models {folder} --contestants fp32 --only {','.join(sections)} --text {text} --out {out}"
    )
    assert compare.main(arguments.split()) == 0
    found = Results.read(out)
    assert {row.section for row in found.rows} == {*sections, "limits"}
    assert all(row.median is not None and np.isfinite(row.samples).all() for row in found.rows)
    assert str(tmp_path) not in out.read_text(encoding="utf-8")

    bulk = {row.label: row for row in found.section("bulk", "tiny")}
    assert list(bulk) == ["reference, file order", "reference, by length", "fp32"]
    assert bulk["fp32"].ratios.keys() == {"reference, file order", "reference, by length"}
    assert bulk["fp32"].utilisation_both is not None and 0 < bulk["fp32"].utilisation_both < 1
    assert "4096 tokens of text.txt" in bulk["fp32"].note
    assert max(row.median or 0 for row in found.section("error")) < 1e-5
    stages = {row.detail: row.median or 0 for row in found.section("host") if row.unit.startswith("%")}
    assert stages.keys() == {*STAGES, "between"}
    assert sum(stages.values()) == pytest.approx(100, abs=0.1)
    assert all(share > 0 for share in stages.values())
    assert "tiny: bulk, tokens/s" in capsys.readouterr().out


def test_wrong_options_get_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--only", "bulk,beauty"]) == 1
    assert capsys.readouterr().err == (
        f"flashelmo bench: --only: expected some of {', '.join(SECTIONS)}, found 'beauty'\n"
    )
    assert compare.main(["--models", "gigantic", "--only", "error"]) == 1
    assert "preset: expected one of small, medium, original, found 'gigantic'" in capsys.readouterr().err


def test_quick_takes_less_of_everything() -> None:
    settings, out = compare.parse(["--quick", "--rounds", "1"])
    assert (settings.models, settings.rounds, out) == (("small",), 1, None)
    full = Settings()
    assert settings.host_tokens < full.host_tokens and settings.peak_seconds < full.peak_seconds
    json.dumps(compare.without_paths(replace(settings, text=Path("/home/someone/text.txt"))))


def test_import_time_is_a_fresh_processs() -> None:
    assert 0 < import_seconds() < 5
