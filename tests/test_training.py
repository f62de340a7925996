"""Whole runs of training: what they leave, resuming, and what bad input gets."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tiny_models import BILM, random_model

from flashelmo import ElmoEmbedder, FlashElmoError, load_model
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.training import checkpoint, trainer
from flashelmo.engine.training.corpus import SPECIAL, most_frequent, read_corpus, read_vocabulary
from flashelmo.engine.training.results import RunRecord, draw_curve
from flashelmo.engine.training.settings import TrainSettings
from flashelmo.engine.training.step import TrainingStep
from flashelmo.engine.training.streams import Streams
from flashelmo.engine.training.task import Task
from flashelmo.engine.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = replace(BILM, cell_clip=3.0, projection_clip=3.0)
SETTINGS = TrainSettings(batch=4, unroll=5, negatives=4, steps=12, log_every=2, device="cpu", precision="fp32", lr=0.02)
TEXT = "the cat sat on the mat .\na dog saw the cat .\n\nthe dog sat .\non the mat a cat saw the dog and sat .\n" * 6


def curve(folder: Path) -> list[tuple[int, float, float]]:
    points = json.loads((folder / "curve.json").read_text(encoding="utf-8"))["points"]
    return [(point["step"], point["forward"], point["backward"]) for point in points]


@pytest.fixture
def task(text_file: Path, tmp_path: Path) -> Task:
    return Task([text_file], tmp_path / "model", CONFIG)


def test_a_run_leaves_a_model_that_everything_reads(text_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    task = Task(
        [text_file, text_file], output, CONFIG, heldout=text_file, license_text="Public domain.", dtype="float16"
    )
    record = train(task, replace(SETTINGS, steps=150, snapshots=2, negatives=0))
    first, last = curve(output)[0], curve(output)[-1]
    assert last[0] == 150 and last[1] < 0.7 * first[1] and last[2] < 0.7 * first[2]
    native, bilm = load_model(output), load_model(output / "bilm")
    assert native.config == bilm.config == CONFIG
    for (name, ours), (_, theirs) in zip(native.weights.named_tensors(), bilm.weights.named_tensors(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-6, err_msg=name)
    assert (output / "model.safetensors").stat().st_size < 0.7 * native.weights.n_parameters * 4 + 4000
    assert ElmoEmbedder.load(output, device="cpu").embed_sentence(["the", "cat"]).shape == (3, 2, 8)
    by_count = sorted(Counter(TEXT.split()).items(), key=lambda item: (-item[1], item[0]))
    assert read_vocabulary(output / "vocab.txt") == [*SPECIAL, *(word for word, _ in by_count)]
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "Public domain." in card and "text.txt" in card and f"{record.evaluations[-1].forward:.1f}" in card
    snapshots = sorted((tmp_path / "model.training" / "snapshots").iterdir())
    assert [folder.name for folder in snapshots] == ["000", "050", "100"]
    assert load_model(snapshots[2]).sha256 == native.sha256 != load_model(snapshots[1]).sha256


def test_streams_read_every_prediction_once(text_file: Path) -> None:
    corpus = read_corpus([text_file])
    streams = Streams(corpus, batch=2, unroll=3, seed=5)
    forward, backward = [], []
    for step in range(streams.batches):
        batch = streams[step]
        forward.append(np.stack([batch.inputs[0], batch.targets[0]], -1))
        backward.append(np.stack([batch.inputs[1], batch.targets[1]], -1))
    words = np.array(corpus.words)
    seen = []
    for pairs in (forward, backward):
        rows = np.concatenate(pairs).transpose(1, 0, 2)  # [B, steps, 2]
        seen.append(words[np.concatenate(rows)].tolist())
    sentences = [words[corpus.word_ids[a:b]].tolist() for a, b in zip(corpus.offsets, corpus.offsets[1:], strict=False)]
    order = np.random.default_rng([5, 0]).permutation(len(corpus))
    expected: list[list[list[str]]] = [[], []]
    for s in order:
        for each, line in zip(
            expected, (["<S>", *sentences[s], "</S>"], ["</S>", *sentences[s][::-1], "<S>"]), strict=True
        ):
            each += [[a, b] for a, b in pairwise(line)]
    for found, wanted in zip(seen, expected, strict=True):
        assert found == wanted[: len(found)] and len(wanted) - len(found) < 6
    assert not np.array_equal(streams[streams.batches].inputs, streams[0].inputs), "another order in another epoch"
    half = Streams(corpus, batch=2, unroll=3, seed=5, rows=slice(1, 2))
    np.testing.assert_array_equal(half[4].targets, streams[4].targets[:, :, 1:])


def test_a_killed_run_goes_on_as_if_nothing_had_been(text_file: Path, tmp_path: Path) -> None:
    whole = train(Task([text_file], tmp_path / "whole", CONFIG), SETTINGS)
    command = (
        "import os, signal, torch; torch.set_num_threads(1)\n"
        "from test_training import *\n"
        "def on_progress(progress):\n"
        "    if progress.point.step == 8:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"train(Task([Path({str(text_file)!r})], Path({str(tmp_path / 'killed')!r}), CONFIG),\n"
        "      replace(SETTINGS, save_every=1e-9), on_progress)"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", command], env={**os.environ, "PYTHONPATH": paths}, timeout=120)
    assert done.returncode == -signal.SIGKILL
    work = tmp_path / "killed.training"
    assert [path.name for path in checkpoint.checkpoints(work)] == ["step-000000006.pt", "step-000000007.pt"]
    record = train(Task([text_file], tmp_path / "killed", CONFIG), replace(SETTINGS, save_every=1e-9))
    assert record.points[2].step == 6 and curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert len(whole.points) == 6
    assert load_model(tmp_path / "killed").sha256 == load_model(tmp_path / "whole").sha256


def step_that(does: Callable[[TrainingStep], None], n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step n does something first."""
    step, taken = TrainingStep.__call__, [0]

    def call(self: TrainingStep, *arguments: Any) -> None:
        taken[0] += 1
        if taken[0] == n:
            does(self)
        step(self, *arguments)

    monkeypatch.setattr(TrainingStep, "__call__", call)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_an_interrupted_run_saves_the_step_that_it_is_in(
    task: Task,
    text_file: Path,
    tmp_path: Path,
    number: int,
    raised: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(Task([text_file], tmp_path / "whole", CONFIG), SETTINGS)
    before = signal.getsignal(number)
    with monkeypatch.context() as patched, pytest.raises(raised):
        step_that(lambda step: os.kill(os.getpid(), number), 5, patched)
        train(task, SETTINGS)
    assert signal.getsignal(number) is before
    assert [path.name for path in checkpoint.checkpoints(task.work)] == ["step-000000005.pt"]
    assert caplog.messages == ["interrupted: step 5 is saved, and the same command goes on from it"]
    train(task, SETTINGS)
    assert curve(tmp_path / "model") == curve(tmp_path / "whole")


def test_a_snapshot_that_is_interrupted_is_written_by_the_run_that_goes_on(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = trainer.write_results, list[Path]()

    def interrupted(target: Path, *arguments: Any, **options: Any) -> None:
        written.append(target)
        if len(written) == 2:
            raise KeyboardInterrupt
        write(target, *arguments, **options)

    settings = replace(SETTINGS, snapshots=2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(trainer, "write_results", interrupted)
        train(task, settings)
    snapshots = task.work / "snapshots"
    assert [path.name for path in snapshots.iterdir()] == ["000"]
    train(task, settings)
    assert sorted(path.name for path in snapshots.iterdir()) == ["000", "050", "100"]


def test_an_interrupt_saves_nothing_that_is_not_finite(
    task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(step: TrainingStep) -> None:
        next(iter(step.model.parameters())).data.fill_(float("nan"))
        os.kill(os.getpid(), signal.SIGINT)

    step_that(spoil, 5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(task, SETTINGS)
    assert not checkpoint.checkpoints(task.work) and "step 5 is not saved, as its loss or" in caplog.text


def test_an_error_of_a_step_is_told_whatever_signal_came_with_it(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: TrainingStep) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise FlashElmoError("a fault")

    step_that(fail, 5, monkeypatch)
    with pytest.raises(FlashElmoError, match="a fault"):
        train(task, SETTINGS)
    assert not checkpoint.checkpoints(task.work)


def test_a_corpus_may_be_a_pipe(text_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe")
    writing = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(text_file.read_bytes(),))
    writing.start()
    train(Task([tmp_path / "pipe"], tmp_path / "out", CONFIG), SETTINGS)
    writing.join()
    train(Task([text_file], tmp_path / "other", CONFIG), SETTINGS)
    assert load_model(tmp_path / "out").sha256 == load_model(tmp_path / "other").sha256
    train(Task([tmp_path / "pipe"], tmp_path / "out", CONFIG, overwrite=True), SETTINGS)
    assert caplog.messages == [
        "the run goes on with the text that it began with; what comes through the pipe is not read"
    ]


def test_fine_tuning_begins_where_the_model_stands(text_file: Path, tmp_path: Path) -> None:
    train(Task([text_file], tmp_path / "first", CONFIG), replace(SETTINGS, steps=300))
    (tmp_path / "more.txt").write_text(TEXT + "the zebra sat .\n", encoding="utf-8")
    record = train(
        Task([tmp_path / "more.txt"], tmp_path / "second", start=tmp_path / "first", heldout=text_file),
        replace(SETTINGS, steps=2, snapshots=1, lr=1e-6, negatives=0, dropout=0.0),
    )
    before, after = record.evaluations[0], record.evaluations[-1]
    assert before.step == 0 and before.forward < 0.8 * 13, "it knows what it has learned"
    assert after.forward == pytest.approx(before.forward, rel=1e-2)
    assert "zebra" in read_vocabulary(tmp_path / "second" / "vocab.txt")
    write_native(random_model(CONFIG), tmp_path / "published")
    train(Task([text_file], tmp_path / "third", start=tmp_path / "published"), replace(SETTINGS, steps=2))


def test_adagrad_learns_too(task: Task) -> None:
    settings = replace(SETTINGS, optimizer="adagrad", lr=0.1, steps=150, negatives=0)
    record = train(task, settings)
    forward = [point.forward for point in record.points]
    assert np.mean(forward[-10:]) < 0.97 * np.mean(forward[:5])
    resumed = train(replace(task, overwrite=True), settings)
    assert resumed.points == record.points, "a run that is over is not begun again"


def test_held_out_sentences_are_not_trained_on(task: Task, text_file: Path) -> None:
    few = read_corpus([text_file]).split(0.999, 0)
    assert len(few[0]) == 1, "something is left to train on"
    settings = replace(SETTINGS, heldout_share=0.25)
    with pytest.raises(FlashElmoError, match="heldout_share: expected one of heldout and heldout_share, found both"):
        train(replace(task, heldout=text_file), settings)
    record = train(task, settings)
    whole = read_corpus([text_file])
    kept, held_out = whole.split(0.25, 0)
    assert len(kept) + len(held_out) == len(whole) and len(held_out) == 6
    assert record.evaluations[-1].tokens == held_out.n_tokens
    assert record.run["tokens"] == kept.n_tokens


def test_rare_words_are_unknown_to_the_softmax(text_file: Path) -> None:
    corpus = read_corpus([text_file])
    words = most_frequent(corpus, min_count=10, max_words=6)
    assert words == [*SPECIAL, "the", ".", "cat"]
    rows = corpus.rows(words)
    assert rows[corpus.words.index("mat")] == 2 and rows[corpus.words.index("cat")] == 5


def test_a_softmax_begins_as_the_unigrams(task: Task, text_file: Path) -> None:
    record = train(replace(task, heldout=text_file), replace(SETTINGS, steps=1, snapshots=1))
    counts = np.array([*Counter(TEXT.split()).values(), 24 / 2, 24 / 2])  # begin or end: each in one direction
    shares = counts / counts.sum()
    assert record.evaluations[0].step == 0
    assert record.evaluations[0].forward == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=0.15)


def test_bad_corpora_are_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n", encoding="utf-8")
    task = Task([empty], tmp_path / "model", CONFIG)
    with pytest.raises(FlashElmoError, match=r"empty\.txt: expected a sentence a line, found no token"):
        train(task, SETTINGS)
    with pytest.raises(FlashElmoError, match=r"absent\.txt: expected a file of text, found none"):
        train(replace(task, corpus=[tmp_path / "absent.txt"]), SETTINGS)
    empty.write_text("one word\n", encoding="utf-8")
    with pytest.raises(FlashElmoError, match="corpus: expected 20 for 4 streams of 5, found 3 tokens"):
        train(task, SETTINGS)


def test_vocabularies_need_their_special_words(task: Task, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("<S>\n</S>\nthe\n", encoding="utf-8")
    task = replace(task, vocabulary=vocabulary)
    with pytest.raises(FlashElmoError, match=r"vocab\.txt: line 3: expected <UNK>, which stands nowhere, found 'the'"):
        train(task, SETTINGS)
    for choosing in (replace(SETTINGS, max_words=5), replace(SETTINGS, min_count=2)):
        with pytest.raises(FlashElmoError, match=r"^vocabulary: expected one, or min_count and max_words to choose"):
            train(task, choosing)
    vocabulary.write_text("<S>\n</S>\n<UNK>\nthe\nthe\n", encoding="utf-8")
    with pytest.raises(FlashElmoError, match="expected every word once, found 'the' twice"):
        train(task, SETTINGS)
    vocabulary.write_text("<S>\n</S>\n<UNK>\nthe 8\ncat 5\n", encoding="utf-8")
    with pytest.raises(FlashElmoError, match="line 4: expected one word, found 'the 8'"):
        train(task, SETTINGS)
    vocabulary.write_text("<S>\n</S>\n<UNK>\nthe\n\ncat\n", encoding="utf-8")
    with pytest.raises(FlashElmoError, match="line 5: expected one word, found ''"):
        train(task, SETTINGS)
    lines = "<S>\r\n</S>\r\n<UNK>\r\nthe\r\n!!!MAXTERMID\r\ncat\r\na\u2028\x85b\r\n\r\n"
    vocabulary.write_text(lines, encoding="utf-8-sig", newline="")
    train(task, SETTINGS)
    assert read_vocabulary(tmp_path / "model" / "vocab.txt")[3:] == ["the", "cat", "a\u2028\x85b"]
    assert read_vocabulary(vocabulary, n_rows=7)[6:] == [""], "which bilm-tf counts"


def test_a_checkpoint_of_another_run_is_refused(task: Task) -> None:
    train(task, SETTINGS)
    saved = checkpoint.checkpoints(task.work)
    with pytest.raises(FlashElmoError, match=r"step-000000012\.pt: expected batch 4, .* 2; to start over, delete"):
        train(replace(task, overwrite=True), replace(SETTINGS, batch=2))
    with pytest.raises(FlashElmoError, match=r"expected config .* as it was made with"):
        train(replace(task, overwrite=True, config=replace(CONFIG, n_highway=1)), SETTINGS)
    with pytest.raises(FlashElmoError, match="model: exists already"):
        train(task, SETTINGS)
    assert checkpoint.checkpoints(task.work) == saved


def test_a_damaged_checkpoint_gives_way_to_the_one_before(task: Task) -> None:
    train(task, replace(SETTINGS, save_every=1e-9))
    before, last = checkpoint.checkpoints(task.work)
    last.write_bytes(last.read_bytes()[:1000])
    points = train(replace(task, overwrite=True), replace(SETTINGS, save_every=1e-9)).points
    assert before.name == "step-000000011.pt" and points[-1].step == 12


def test_a_loss_that_is_not_finite_ends_the_run(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:

    def read(step: TrainingStep) -> tuple[float, float]:
        losses = true_read(step)
        return (float("nan"), 1.0) if int(step.optimizer.state_dict()["state"][0]["step"]) == 8 else losses

    true_read = TrainingStep.read
    monkeypatch.setattr(TrainingStep, "read", read)
    message = r"step 8: expected a finite loss, found nan forward .* last checkpoint: step-000000007\.pt"
    with pytest.raises(FlashElmoError, match=message):
        train(task, replace(SETTINGS, save_every=1e-9))
    assert not task.output.exists() and checkpoint.load_checkpoint(task.work, saved_fingerprint(task.work)) is not None


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float32", np.nan, "step 12: expected finite parameters, found infinity or NaN"),
        ("float16", 1e5, r"softmax\.safetensors: tensor bias: expected values within float16's range"),
    ],
)
def test_no_model_is_left_that_nobody_could_read(
    task: Task, monkeypatch: pytest.MonkeyPatch, dtype: str, value: float, message: str
) -> None:
    """Neither of parameters that the last step spoils, nor of some that are too large for float16."""

    def spoil(step: TrainingStep) -> None:
        step.optimizer.register_step_post_hook(lambda *_: step.model.tensors["softmax_bias"].data.fill_(value))

    task = replace(task, dtype=dtype)
    step_that(spoil, 12, monkeypatch)
    with pytest.raises(FlashElmoError, match=message):
        train(task, SETTINGS)
    assert not task.output.exists()


def test_a_full_disk_leaves_the_last_checkpoint(
    task: Task, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_save, calls = torch.save, []

    def save(values: object, file: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            file.write(b"half of it")  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")
        true_save(values, file)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", save)
    message = r"step-000000003\.pt: cannot be written: No space left on device; last checkpoint: step-000000002\.pt"
    with pytest.raises(FlashElmoError, match=message):
        train(task, replace(SETTINGS, save_every=1e-9))
    assert not list(task.work.glob(".step-*"))
    monkeypatch.undo()
    whole = train(Task([text_file], tmp_path / "whole", CONFIG), SETTINGS)
    resumed = train(task, replace(SETTINGS, save_every=1e-9))
    assert [point.forward for point in resumed.points] == [point.forward for point in whole.points]


def test_a_full_disk_is_named_where_the_writer_speaks_of_positions(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullAfter:
        def __init__(self, file: Any, left: int) -> None:
            self.file, self.left, self.flush = file, left, file.flush

        def write(self, data: bytes) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return int(self.file.write(data))

    true_save: Any = torch.save
    train(task, replace(SETTINGS, save_every=1e-9))
    saved = {path: path.read_bytes() for path in checkpoint.checkpoints(task.work)}
    monkeypatch.setattr(torch, "save", lambda values, file: true_save(values, FullAfter(file, 40_000)))
    message = r"step-000000013\.pt: cannot be written: No space left on device; last checkpoint: step-000000012\.pt$"
    with pytest.raises(FlashElmoError, match=message):
        checkpoint.save_checkpoint(task.work, 13, {"tensor": torch.zeros(10_000)})
    monkeypatch.setattr(torch, "save", failing_writer)
    with pytest.raises(FlashElmoError, match=r"written: unexpected pos 1 vs 2; [\d,]+ bytes are free there; last"):
        checkpoint.save_checkpoint(task.work, 13, {})
    assert {path: path.read_bytes() for path in task.work.glob("*step-*")} == saved


def failing_writer(values: object, file: object) -> None:
    raise RuntimeError("unexpected pos 1 vs 2")


def saved_fingerprint(work: Path) -> dict[str, object]:
    values: dict[str, object] = torch.load(checkpoint.checkpoints(work)[-1], weights_only=True)["fingerprint"]
    return values


def test_a_time_limit_ends_the_run_and_its_decay(task: Task, text_file: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=None, seconds=0.5)
    started = time.monotonic()
    record = train(task, settings)
    assert time.monotonic() - started < 20
    at_once = train(Task([text_file], tmp_path / "at once", CONFIG), replace(settings, seconds=1e-9))
    assert [point.step for point in at_once.points] == [1] and load_model(tmp_path / "at once").config == CONFIG
    assert 0.5 <= record.points[-1].seconds < 10 and record.points[-1].rate < 0.5 * settings.peak


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch: expected 1 or more, found 0"),
        ({"dropout": 1.0}, "dropout: expected 0 or more and less than 1, found 1.0"),
        ({"dropout": "a"}, "dropout: expected 0 or more and less than 1, found 'a'"),
        ({"lr": "a"}, "lr: expected a positive number in float32's range, found 'a'"),
        ({"epochs": True}, "epochs: expected a positive number in float32's range, found True"),
        ({"lr": -1.0}, "lr: expected a positive number in float32's range, found -1.0"),
        ({"lr": 1e39}, "lr: expected a positive number in float32's range, found 1e+39"),
        ({"clip": None}, "clip: expected a positive number in float32's range, found None"),
        ({"snapshots": 101}, "snapshots: expected 0 to 100, found 101"),
        ({"seconds": 5.0}, "length: expected one of epochs, steps and seconds, found 'steps and seconds'"),
        ({"optimizer": "sgd"}, "optimizer: expected one of adam, adagrad, found 'sgd'"),
        ({"precision": "fp8"}, "precision: expected one of auto, fp32, bf16, found 'fp8'"),
    ],
)
def test_settings_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(FlashElmoError) as caught:
        replace(SETTINGS, **change)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_settings_of_numpy_are_those_of_python() -> None:
    """The card and the curve are JSON, which is written when all is learned."""
    given: dict[str, Any] = {name: np.int64(7) for name in ("steps", "log_every", "seed", "snapshots", "max_words")}
    given |= {name: np.float32(0.5) for name in ("lr", "dropout", "save_every")}
    expected = replace(SETTINGS, **{name: value.item() for name, value in given.items()})
    assert json.loads(json.dumps(asdict(replace(SETTINGS, **given)))) == asdict(expected)


def test_bf16_products_learn_the_same(text_file: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, dropout=0.0, steps=20)
    for precision in ("fp32", "bf16"):
        train(Task([text_file], tmp_path / precision, CONFIG), replace(settings, precision=precision))
    np.testing.assert_allclose(curve(tmp_path / "bf16")[-1], curve(tmp_path / "fp32")[-1], rtol=0.05)
    assert curve(tmp_path / "bf16") != curve(tmp_path / "fp32")


def test_devices_that_are_not_there_are_named(task: Task) -> None:
    for device, message in (("tpu", "expected auto, cpu or cuda, found 'tpu'"), ("meta", "found 'meta'")):
        with pytest.raises(FlashElmoError, match=message):
            train(task, replace(SETTINGS, device=device))
    assert trainer.choose_device("cpu", trainer.Processes()).type == "cpu"


def test_a_picture_that_cannot_be_drawn_costs_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where MPLBACKEND, of the notebook whose cell started the command, names what is not here."""
    figure = pytest.importorskip("matplotlib.figure")
    monkeypatch.setattr(figure, "Figure", unable := Mock(side_effect=ValueError("not a valid backend\nmore of it")))
    draw_curve(RunRecord({}, [], []), tmp_path / "curve.png")
    assert unable.called and caplog.messages == ["no picture of the curve: not a valid backend"]
