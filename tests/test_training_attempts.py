"""Attempts of a training run: what is refused to go on, what keeps other runs out, and when a checkpoint is due."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from test_training import CONFIG, SETTINGS, TEXT, curve, step_that

from flashelmo import FlashElmoError, load_model
from flashelmo.cli import main
from flashelmo.engine.training import checkpoint, identity, processes
from flashelmo.engine.training.checkpoint import SaveClock
from flashelmo.engine.training.processes import Processes, Result
from flashelmo.engine.training.softmax_files import find_softmax, write_softmax
from flashelmo.engine.training.step import TrainingStep
from flashelmo.engine.training.task import Task
from flashelmo.engine.training.trainer import Progress, train

pytestmark = pytest.mark.usefixtures("one_thread")

OFTEN = replace(SETTINGS, save_every=1e-9, log_every=1000)


@pytest.fixture
def task(text_file: Path, tmp_path: Path) -> Task:
    return Task([text_file], tmp_path / "model", CONFIG)


def names(work: Path) -> list[str]:
    return [path.name for path in checkpoint.checkpoints(work)]


def stop_at(step: int, task: Task, settings: Any = OFTEN) -> None:
    """A run that ends before a step."""

    def fail(_: object) -> None:
        raise FlashElmoError("stopped")

    with pytest.MonkeyPatch.context() as patched, pytest.raises(FlashElmoError, match="stopped"):
        step_that(fail, step, patched)
        train(task, settings)


@pytest.mark.parametrize("ends", [False, True])
def test_a_text_that_changed_and_kept_its_size_is_refused(task: Task, text_file: Path, ends: bool) -> None:
    task = replace(task, overwrite=True)
    if ends:
        train(task, SETTINGS)
    else:
        stop_at(4, task)
    text_file.write_text("".join(sorted(TEXT.splitlines(keepends=True))), encoding="utf-8")
    assert text_file.stat().st_size == len(TEXT)
    before = names(task.work)
    with pytest.raises(
        FlashElmoError, match=r"\.pt: expected sha256 of text\.txt .*, as it was made with, found .* over"
    ):
        train(task, SETTINGS)
    assert names(task.work) == before
    text_file.write_text(TEXT, encoding="utf-8")
    assert train(task, SETTINGS).points[-1].step == 12


def test_a_vocabulary_and_a_softmax_to_begin_with_are_told_from_others_of_their_sizes(
    text_file: Path, tmp_path: Path
) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("<S>\n</S>\n<UNK>\nthe\ncat\n", encoding="utf-8")
    task = Task([text_file], tmp_path / "first", CONFIG, vocabulary=vocabulary, overwrite=True)
    train(task, SETTINGS)
    vocabulary.write_text("<S>\n</S>\n<UNK>\nthe\ndog\n", encoding="utf-8")
    with pytest.raises(FlashElmoError, match="expected sha256 of the vocabulary '"):
        train(task, SETTINGS)
    tuned = Task([text_file], tmp_path / "tuned", start=tmp_path / "first", overwrite=True)
    train(tuned, SETTINGS)
    softmax = find_softmax(load_model(tmp_path / "first"))
    assert softmax is not None
    write_softmax(replace(softmax, bias=softmax.bias + 1), tmp_path / "first")
    with pytest.raises(FlashElmoError, match="expected sha256 of the softmax '"):
        train(tuned, SETTINGS)


def test_a_second_run_into_the_same_folder_is_refused(task: Task, text_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("cat", "pig"), encoding="utf-8")
    refused = list[str]()

    def on_progress(progress: Progress) -> None:
        being_written = task.work / f"{checkpoint.TEMPORARY}abc"
        being_written.write_bytes(b"half of it")
        with pytest.raises(FlashElmoError) as caught:
            train(replace(task, corpus=[other]), replace(SETTINGS, seed=5))
        refused.append(str(caught.value))
        assert being_written.exists()

    whole = train(Task([text_file], tmp_path / "whole", CONFIG), SETTINGS)
    record = train(task, SETTINGS, on_progress)
    assert {*refused} == {f"{task.work}: another run is writing here"}
    assert [point.forward for point in record.points] == [point.forward for point in whole.points]
    assert not (task.work / identity.LOCK).exists()


def test_what_killed_runs_left_is_removed_and_a_run_that_fails_at_once_leaves_nothing(
    task: Task, tmp_path: Path
) -> None:
    with pytest.raises(FlashElmoError, match="absent: expected a file of text, found none"):
        train(replace(task, corpus=[tmp_path / "absent"]), SETTINGS)
    assert not task.work.exists()
    for name in (".corpus.ab12cd", "snapshots/.050.ab12cd"):
        (task.work / name / "new").mkdir(parents=True)
    (task.work / f"{checkpoint.TEMPORARY}ab12cd").touch()
    (task.work / "mine").touch()
    train(task, SETTINGS)
    assert sorted(path.name for path in task.work.iterdir()) == ["corpus", "mine", "snapshots", "step-000000012.pt"]
    assert not list((task.work / "snapshots").iterdir())


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (None, "WORLD_SIZE, RANK, LOCAL_RANK: expected whole numbers, as torchrun sets them, found 2, None, None"),
        ("one", "WORLD_SIZE, RANK, LOCAL_RANK: expected whole numbers, .*, found 2, one, None"),
        ("0", "processes: expected 2 that reach each other, started by torchrun: .* MASTER_ADDR"),
    ],
)
def test_an_environment_that_is_half_torchruns(
    task: Task, monkeypatch: pytest.MonkeyPatch, rank: str | None, message: str
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", rank), ("LOCAL_RANK", None), ("MASTER_ADDR", None)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(FlashElmoError, match=message):
        train(task, SETTINGS)


def without_others(monkeypatch: pytest.MonkeyPatch) -> dict[str, timedelta]:
    """Let processes be joined that are not there; returns how long each step would wait for them."""
    waits: dict[str, timedelta] = {}

    class Store:
        def set_timeout(self, timeout: timedelta) -> None:
            waits["store"] = timeout

    def meet(url: str, timeout: timedelta = timedelta(minutes=30)) -> Iterator[tuple[Store, int, int]]:  # the default
        waits["meet"] = timeout
        yield Store(), 1, 2

    def begin(backend: str, *, timeout: timedelta = timedelta(minutes=30), **_: Any) -> None:  # the default
        waits["begin"] = timeout

    monkeypatch.setattr(processes, "rendezvous", meet)
    monkeypatch.setattr("torch.distributed.init_process_group", begin)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    return waits


@pytest.mark.parametrize("error", [RuntimeError("[/gloo/pair.cc:1] Read error: reset"), RuntimeError("else")], ids=str)
def test_a_process_that_ends_is_told_by_the_others(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    without_others(monkeypatch)
    expected = "processes: expected 2 until the end, one does not answer: .* Read error: reset; the same|^else$"
    with (
        pytest.raises(FlashElmoError if "gloo" in str(error) else RuntimeError, match=expected),
        processes.joined_processes("cpu"),
    ):
        raise error


def test_the_encoded_corpus_is_the_checkpoint_s(
    task: Task, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(old: Path, new: Path) -> None:  # as Windows
        assert not [file.path for file in psutil.Process().open_files() if Path(file.path).is_relative_to(old)]
        os.rename(old, new)

    monkeypatch.setattr(Path, "rename", rename)
    whole = train(Task([text_file], tmp_path / "whole", CONFIG), OFTEN)
    other = tmp_path / "other.txt"
    other.write_text("a pig saw it .\n" * 30, encoding="utf-8")
    train(Task([other], tmp_path / "other", CONFIG), OFTEN)
    task = replace(task, overwrite=True)
    stop_at(4, task)
    assert names(task.work) == ["step-000000002.pt", "step-000000003.pt"]
    for damage in ("another", "half", "none"):
        words = task.work / "corpus" / "train" / "word_ids.npy"
        if damage == "another":
            for file in words.parent.iterdir():
                file.write_bytes((tmp_path / "other.training" / "corpus" / "train" / file.name).read_bytes())
        elif damage == "half":
            words.write_bytes(words.read_bytes()[:200])
        else:
            words.unlink()
        stop_at(2, task)
    resumed = train(task, OFTEN)
    assert [point.forward for point in resumed.points] == [point.forward for point in whole.points]
    assert load_model(task.output).sha256 == load_model(tmp_path / "whole").sha256


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_another_text_through_the_pipe_is_refused_where_the_old_one_is_lost(text_file: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    task = Task([pipe], tmp_path / "model", CONFIG)

    def give(content: str) -> None:
        threading.Thread(target=pipe.write_text, args=(content,)).start()

    give(TEXT)
    stop_at(4, task)
    (task.work / "corpus" / "train" / "offsets.npy").unlink()
    give(TEXT.replace("cat", "pig"))
    message = "pipe: expected the text of the last checkpoint, found a different one; to start over, delete"
    with pytest.raises(FlashElmoError, match=message):
        train(task, OFTEN)
    give(TEXT)
    assert train(task, OFTEN).points[-1].step == 12


def test_a_checkpoint_that_does_not_fit_is_one_line(task: Task) -> None:
    stop_at(4, task)
    path = checkpoint.checkpoints(task.work)[-1]
    values = torch.load(path, weights_only=True)
    first = next(iter(values["model"]))
    changes: list[dict[str, object]] = [
        {"model": {**values["model"], first: torch.zeros(1, 1)}}, {"states": []}, {"points": [{"step": 1}]}
    ]  # fmt: skip
    for change in changes:
        torch.save({**values, **change}, path)
        message = r"step-000000003\.pt: expected a checkpoint of this run, found one that does not fit \(\w+: "
        with pytest.raises(FlashElmoError, match=message):
            train(task, OFTEN)
    torch.save({name: value for name, value in values.items() if name != "random"}, path)
    with pytest.raises(FlashElmoError, match=r"does not fit \(KeyError: 'random'\); to start over, delete"):
        train(task, OFTEN)


def test_checkpoints_and_snapshots_wait_for_no_point_of_the_curve(task: Task, text_file: Path, tmp_path: Path) -> None:
    train(Task([text_file], tmp_path / "whole", CONFIG), replace(SETTINGS, log_every=1000))
    settings = replace(OFTEN, snapshots=4)
    stop_at(9, task, settings)
    assert names(task.work) == ["step-000000007.pt", "step-000000008.pt"]
    assert sorted(path.name for path in (task.work / "snapshots").iterdir()) == ["000", "025", "050"]
    record = train(task, settings)
    assert [point.step for point in record.points] == [12] and curve(tmp_path / "model") == curve(tmp_path / "whole")
    assert load_model(tmp_path / "model").sha256 == load_model(tmp_path / "whole").sha256


def test_what_is_not_finite_is_not_saved_between_points(task: Task) -> None:
    def spoil(step: TrainingStep) -> None:
        next(iter(step.model.parameters())).data.fill_(float("nan"))

    with (
        pytest.MonkeyPatch.context() as patched,
        pytest.raises(FlashElmoError, match="step 12: expected a finite loss"),
    ):
        step_that(spoil, 5, patched)
        train(task, OFTEN)
    assert names(task.work) == ["step-000000003.pt", "step-000000004.pt"]


def test_time_that_runs_out_while_a_run_looks_at_its_snapshots_ends_it_behind_a_point(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_due(clock: SaveClock, taken: int) -> bool:
        time.sleep(0.1)
        return False

    monkeypatch.setattr(SaveClock, "is_due", is_due)
    record = train(task, replace(OFTEN, steps=None, seconds=0.3))
    assert record.points and record.points[-1].seconds >= 0.3


def test_several_processes_wait_for_the_first_one_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may read a corpus for hours; but not for one whose address is wrong."""
    waits = without_others(monkeypatch)
    monkeypatch.setattr(processes, "LET_GO_SECONDS", 0)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with processes.joined_processes("cpu"):
        assert waits["meet"] <= timedelta(hours=1) and min(waits["store"], waits["begin"]) > timedelta(days=1)


def test_several_processes_seldom_ask_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [100.0], list[int]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Two(Processes):
        def first(self, make: Callable[[], Result]) -> Result:
            asked.append(step)
            return make()

    saved: dict[int, list[int]] = {}
    for number in (1, 2):
        asked.clear()
        clock, saved[number] = SaveClock(60.0, Two(number=number), 1000), []
        for step in range(1001, 2801):
            now[0] += 0.1 if step < 1900 else 0.2
            if clock.is_due(step):
                saved[number].append(step)
                clock.restart()
    np.testing.assert_allclose(saved[1], [1600, 2050, 2350, 2650], atol=4)
    assert np.abs(np.subtract(saved[1], saved[2])).max() < 5 and len(asked) < 60


def test_another_held_out_text_is_measured_anew(task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held_out = tmp_path / "heldout.txt"
    held_out.write_text("the cat sat .\n", encoding="utf-8")
    task, settings = replace(task, heldout=held_out), replace(SETTINGS, snapshots=2)
    first = train(task, settings)
    again = train(replace(task, overwrite=True), settings)
    assert again.evaluations == first.evaluations and len(first.evaluations) == 3 and not caplog.messages
    held_out.write_text("mat the on .\n", encoding="utf-8")
    other = train(replace(task, overwrite=True), settings).evaluations
    expected = train(replace(task, output=tmp_path / "fresh"), settings).evaluations[-1]
    assert other == [expected] and expected.forward != first.evaluations[-1].forward
    assert caplog.messages == ["the held-out text is another one: of the one before, heldout.txt, nothing is kept"]
    (tmp_path / "renamed.txt").write_bytes(held_out.read_bytes())
    renamed = train(replace(task, heldout=tmp_path / "renamed.txt", overwrite=True), settings).evaluations
    assert [each.text for each in renamed] == ["renamed.txt"] and renamed[0].forward == expected.forward
    assert not train(replace(task, heldout=None, overwrite=True), settings).evaluations


def test_a_corpus_that_a_full_disk_does_not_take_says_so(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(path: Path, array: object) -> None:
        raise OSError("1000 requested and 17 written")  # as NumPy has it

    monkeypatch.setattr(np, "save", save)
    message = r"corpus: cannot be written: 1000 requested and 17 written; [\d,]+ bytes are free there"
    with pytest.raises(FlashElmoError, match=message):
        train(task, SETTINGS)


def test_an_output_without_a_name_is_one_line(text_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for output in (".", "..", "/"):
        assert main(["train", str(text_file), "--output", output, "--overwrite"]) == 1
        assert capfd.readouterr().err == f"flashelmo: output: expected the name of a new folder, found {output!r}\n"
