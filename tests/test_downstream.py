"""Tasks on frozen vectors and with a fine-tuned model: what can be learned is learned, and is judged rightly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import MODELS

from flashelmo.benchmarks import __main__ as command
from flashelmo.benchmarks.downstream import tuned
from flashelmo.benchmarks.results import Results
from flashelmo.benchmarks.senses import linear
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tasks import Sample, Task, load_task
from flashelmo.engine.model.checkpoints.native import write_native

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_layer_that_knows_is_learned_from() -> None:
    rng = np.random.default_rng(0)
    vectors, classes = rng.standard_normal((2200, 3, 8)).astype(np.float32), rng.integers(0, 4, 2200)
    vectors[np.arange(2200), 1, classes] += 6
    parts = [linear.part(vectors[a:b], classes[a:b]) for a, b in ((0, 2000), (2000, 2100), (2100, 2200))]
    learned = linear.learn(parts[0], parts[1], 4, seed=0)
    assert linear.right(learned, parts[2]).mean() > 0.95
    assert learned.shares()[1] > 0.4
    blind = [linear.part(vectors[a:b], classes[a:b], slice(0, 1)) for a, b in ((0, 2000), (2000, 2100), (2100, 2200))]
    assert linear.right(linear.learn(blind[0], blind[1], 4, seed=0), blind[2]).mean() < 0.5
    nothing = linear.part(vectors[2100:], np.full(100, -1))  # classes that cannot be learned are never right
    assert linear.right(learned, nothing).sum() == 0


@pytest.mark.parametrize("by_token", [True, False])
def test_a_fine_tuned_model_is_judged_as_the_engine_with_its_weights(by_token: bool, tmp_path: Path) -> None:
    write_native(MODELS["skip"], tmp_path / "model")
    samples = [
        Sample(["the", "cat", word], ["a", "b", label] if by_token else [label])
        for word, label in (("sat", "x"), ("ran", "y")) * 20
    ]
    task = Task("task", by_token, samples, samples[:10], samples)
    model = tuned.learn(tmp_path / "model", task, seed=0, epochs=2)
    changed = dict(model.elmo.to_model().weights.named_tensors())
    assert all(
        np.abs(changed[name] - tensor).max() > 0
        for name, tensor in MODELS["skip"].weights.named_tensors()
        if tensor.size > 300
    )
    model.eval()
    with torch.no_grad():
        expected = model(samples).argmax(dim=1).numpy() == task.numbers(samples)
    np.testing.assert_array_equal(model.right(samples), expected)


def test_tasks_have_their_parts(tmp_path: Path) -> None:
    data = _data(tmp_path)
    questions = load_task("questions", Settings(data=data))
    assert (len(questions.train), len(questions.dev), len(questions.test)) == (18, 2, 4)
    assert questions.classes == ["NUM", "WHO"]
    polarity = load_task("polarity", Settings(data=data))
    assert (len(polarity.train), len(polarity.dev), len(polarity.test)) == (20, 6, 4)
    speech = load_task("speech", Settings(data=data, tagged_tokens=8))
    assert speech.numbers([Sample(["cat", "odd"], ["NN", "UH"])]).tolist() == [1, -1]
    assert [sum(len(each.tokens) for each in part) for part in (speech.train, speech.dev, speech.test)] == [8, 2, 4]


def test_a_run_has_everybody_in_every_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_native(MODELS["skip"], tmp_path / "trained")
    arguments = ["--data", str(_data(tmp_path)), "--models", str(tmp_path / "trained"), "--runs", "2"]
    arguments += ["--tagged-tokens", "8", "--resamples", "40", "--only", "speech,polarity", "--out", str(tmp_path)]
    assert command.main(["downstream", *arguments]) == 0
    rows = Results.read(tmp_path / "downstream.json").rows
    names = [f"random weights ({kind}), mix" for kind in ("of `init`", "PyTorch's")]
    names += [f"trained, {what}" for what in ("layer 0", "layer 1", "layer 2", "mix", "fine-tuned")]
    assert [(row.name, row.detail) for row in rows] == [
        (name, task) for task in ("speech", "polarity") for name in names
    ]
    assert all(len(row.samples) == 2 and row.interval[0] <= (row.median or 0) <= row.interval[1] for row in rows)


def _data(folder: Path) -> Path:
    (folder / "tasks").mkdir(exist_ok=True)
    for part, n in (("train", 10), ("dev", 3), ("test", 2)):
        (folder / f"tasks/pos_masc_{part}.txt").write_text("the\tDT\ncat\tNN\n\n" * 2 * n, "utf-8")
        (folder / f"tasks/polarity_{part}.tsv").write_text("pos\ta good one\nneg\ta bad one\n" * n, "utf-8")
        if part != "dev":
            (folder / f"tasks/questions_{part}.tsv").write_text("NUM\thow many ?\nWHO\twho is it ?\n" * n, "utf-8")
    return folder
