"""Words in context are judged as they should be: neighbours, their rules, intervals, and static vectors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import MODELS

from flashelmo.benchmarks import __main__ as command
from flashelmo.benchmarks import report
from flashelmo.benchmarks.plots import draw, plane
from flashelmo.benchmarks.results import Results
from flashelmo.benchmarks.senses.nearest import (
    all_others,
    by_resampling,
    can_be_right,
    neighbours,
    same_sense,
    shares,
    without_shared_words,
)
from flashelmo.benchmarks.senses.precisions import losses, softmax_of
from flashelmo.benchmarks.senses.suite import progress_of
from flashelmo.benchmarks.senses.vectors import around
from flashelmo.benchmarks.tasks import Example, Word
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.training.softmax_files import Softmax

SENTENCES = (
    ("a", "he cast a line into the deep lake", 3),
    ("a", "they threw the line off a boat", 3),
    ("b", "we stood in Line for tickets", 3),
    ("b", "people wait IN line for bread", 3),
    ("c", "line one", 0),
)
WORD = Word("line", [Example(text.split(), place, sense) for sense, text, place in SENTENCES])
SENSES = [example.sense for example in WORD.examples]


def test_the_nearest_neighbour_decides_and_ties_share() -> None:
    vectors = np.array([[1, 0], [5, 0.1], [0, 1], [0.3, 1], [-1, 0]], np.float32)
    allowed = all_others(WORD)
    assert same_sense(vectors, SENSES, allowed).tolist() == [1, 1, 1, 1, 0]
    assert same_sense(vectors[[0, 2, 1, 3, 4]], SENSES, allowed).tolist() == [0, 0, 0, 0, 0]
    same = np.outer([1, 2, 3, 0.1, 7], [3, 4]).astype(np.float32)  # as the characters' layer
    chance = shares(allowed, SENSES)
    assert chance.tolist() == [0.25] * 4 + [0]
    np.testing.assert_array_equal(same_sense(same, SENSES, allowed), chance)
    np.testing.assert_array_equal(same_sense(np.zeros((5, 2), np.float32), SENSES, allowed), chance)
    assert can_be_right(allowed, SENSES).tolist() == [True] * 4 + [False]


def test_neighbours_that_share_a_word_around_do_not_count() -> None:
    assert neighbours(WORD.examples[0]) == {"cast", "a", "into", "the"}
    assert neighbours(WORD.examples[4]) == {"one"}
    expected = np.array(
        [
            [0, 0, 1, 1, 1],  # "a" and "the" are shared with the second
            [0, 0, 1, 1, 1],
            [1, 1, 0, 0, 1],  # "in" and "for", whatever their case
            [1, 1, 0, 0, 1],
            [1, 1, 1, 1, 0],
        ],
        bool,
    )
    np.testing.assert_array_equal(without_shared_words(WORD), expected)
    assert not can_be_right(without_shared_words(WORD), SENSES).any()
    far = np.array([[1, 0], [1, 0.1], [0, 1], [0, 1], [0.9, 0.2]], np.float32)
    assert (
        same_sense(far, ["a", "b", "b", "b", "a"], without_shared_words(WORD))[0] == 1
    )  # not the second, though nearer


def test_an_interval_is_that_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random(900) < 0.3).astype(np.float64)
    margin = 1.96 * np.sqrt(scores.mean() * (1 - scores.mean()) / 900)
    found = by_resampling(scores, 4000)
    np.testing.assert_allclose(found, [scores.mean() - margin, scores.mean() + margin], atol=0.003)
    np.testing.assert_allclose(by_resampling(np.stack([scores] * 3), 4000), found, atol=0.003)
    apart = by_resampling(np.stack([scores * 0, scores * 0 + 1]), 500)  # two runs that agree in nothing
    assert apart == [0.0, 1.0]
    weighted = by_resampling(np.array([0.0, 1.0] * 50), 500, np.array([1.0, 3.0] * 50))
    assert weighted[0] < 0.75 < weighted[1] and weighted[0] > 0.6


def test_static_vectors_are_of_the_words_around() -> None:
    names = ["cast", "a", "into", "the", "he"]
    static = {name: np.eye(256, dtype=np.float32)[k] for k, name in enumerate([*names, "line"])}
    found = around(static, WORD.examples, 2)
    np.testing.assert_allclose(found[0, :6], [0.25] * 4 + [0, 0])
    np.testing.assert_allclose(around(static, WORD.examples, None)[0, :6], [0.2] * 5 + [0])
    assert not found[4].any()  # no word that is known


def test_the_plane_holds_what_differs_most() -> None:
    rng = np.random.default_rng(1)
    vectors = 0.01 * rng.standard_normal((40, 8)).astype(np.float32)
    vectors[:, 0] += 1
    vectors[:20, 5] += 0.8
    points = plane(vectors)
    assert points.shape == (40, 2)
    assert abs(points[:20, 0].mean() - points[20:, 0].mean()) > 10 * points[:20, 0].std()


def test_snapshots_tell_how_far_they_are(tmp_path: Path) -> None:
    assert progress_of(tmp_path / "runs" / "step-000120") == (120, "steps")
    for points, expected in (([], 0), ([{"tokens": 5}, {"tokens": 2_500_000}], 2.5)):
        (tmp_path / "curve.json").write_text(json.dumps({"points": points}), "utf-8")
        assert progress_of(tmp_path) == (expected, "million tokens")
    with pytest.raises(FlashElmoError, match=r"--snapshots: expected curve\.json in the folder or a number"):
        progress_of(Path("run2/last"))


def test_perplexity_is_by_the_states_before_and_behind(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    vectors = [rng.standard_normal((3, n + 2, 8)).astype(np.float32) for n in (3, 1)]
    weight, bias = rng.standard_normal((6, 4)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    softmax = Softmax(weight, bias, ["<S>", "</S>", "<UNK>", "a", "b", "c"])
    forward, backward = losses(lambda _: iter(vectors), [["a", "x", "b"], ["c"]], softmax)

    def loss(state: np.ndarray[Any, Any], row: int) -> float:
        logits = weight.astype(np.float64) @ state + bias
        return float(np.log(np.exp(logits).sum()) - logits[row])

    ids = [[0, 3, 2, 4, 1], [0, 5, 1]]
    expected = [
        loss(v[-1, k, :4], row[k + 1]) for v, row in zip(vectors, ids, strict=True) for k in range(len(row) - 1)
    ]
    np.testing.assert_allclose(forward, expected, rtol=1e-5)
    expected = [
        loss(v[-1, k + 1, 4:], row[k]) for v, row in zip(vectors, ids, strict=True) for k in range(len(row) - 1)
    ]
    np.testing.assert_allclose(backward, expected, rtol=1e-5)
    write_native(MODELS["skip"], tmp_path / "model")
    with pytest.raises(FlashElmoError, match=r"expected softmax\.safetensors with vocab\.txt beside it .*, found none"):
        softmax_of(load_model(tmp_path / "model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three words with two senses each, and tagged sentences."""
    (tmp_path / "text").mkdir()
    (tmp_path / "tasks").mkdir()
    for file, lemmas in (("text/senses.json", ["life"]), ("tasks/senses_hard_line.json", ["hard", "line"])):
        words = [{"lemma": lemma, "pos": "n", "senses": _senses(lemma)} for lemma in lemmas]
        (tmp_path / file).write_text(json.dumps(words), "utf-8")
    for part in ("train", "dev", "test"):
        (tmp_path / f"tasks/pos_masc_{part}.txt").write_text("the\tDT\ncat\tNN\n\nit\tPRP\nsat\tVBD\n\n" * 10, "utf-8")
    return tmp_path


def _senses(lemma: str) -> dict[str, list[dict[str, object]]]:
    return {
        sense: [{"index": 1, "tokens": [word, lemma, other]} for word in first for other in second]
        for sense, first, second in (("A", "ab", "cd"), ("B", "ef", "gh"))
    }


def test_a_run_has_everybody_and_a_plot(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("trained", "step-3", "step-20"):
        write_native(MODELS["skip"], tmp_path / name)
    snapshots = ",".join(str(tmp_path / name) for name in ("step-20", "step-3"))
    arguments = ["--data", str(data), "--models", str(tmp_path / "trained"), "--snapshots", snapshots]
    arguments += ["--only", "senses,gain,training,speech,picture", "--tagged-tokens", "40", "--resamples", "40"]
    assert command.main(["senses", *arguments, "--random-seeds", "1", "--out", str(tmp_path / "out")]) == 0
    results = Results.read(tmp_path / "out" / "senses.json")
    names = [row.name for row in results.section("senses") if row.detail == "hard"]
    layers = ["layer 0", "layer 1", "layer 2", "average"]
    random = [f"random weights ({kind}), {layer}" for kind in ("of `init`", "PyTorch's") for layer in layers]
    assert names == ["chance", *random, *(f"trained, {layer}" for layer in layers)]
    figures = {(row.name, row.detail): row.median for row in results.section("senses")}
    assert figures["chance", "WordNet"] == figures["trained, layer 0", "WordNet"] == pytest.approx(3 / 7)
    assert [row.name for row in results.section("training") if row.detail == "line"] == [
        f"{step} steps, {layer}" for step in (3, 20) for layer in layers[1:]
    ]
    speech = {row.name: row.median for row in results.section("speech") if row.detail == "all"}
    assert speech["each word's most frequent tag"] == 1.0 and len(speech) == 13
    place = tmp_path / "senses" / "senses.json"
    results.write(place)
    assert "![" not in "".join(report.generate("senses", tmp_path))
    assert [path.name for path in draw(results, place)] == ["senses-words.svg", "senses-training.svg"]
    words = tmp_path / "senses" / "senses-words.svg"
    first = words.read_bytes()
    draw(results, place)
    assert words.read_bytes() == first and b"trained" in first
    text = "\n".join(report.generate("senses", tmp_path, "../"))
    assert "| chance | 0.429 (0.429 to 0.429) |" in text and "line: trained" not in text
    assert "](../benchmarks/results/senses/senses-words.svg)" in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["senses"], "--models: expected folders of trained models"),
        (["downstream"], "--models: expected folders of trained models"),
        (["ngrams"], "--corpus: expected a folder"),
    ],
)
def test_what_is_missing_gets_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 1
    said = capsys.readouterr()
    assert line in said.err + said.out
