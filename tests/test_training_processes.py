"""Several processes of one training run: they learn as one does, save, go on, and are refused alike.

All their runs are done by one pair of processes, one after the other: to begin two takes longer than what they do.
"""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_training import CONFIG, SETTINGS, TEXT, curve

from flashelmo import FlashElmoError
from flashelmo.cli import main
from flashelmo.engine.training import checkpoint, identity, trainer
from flashelmo.engine.training.processes import Processes
from flashelmo.engine.training.results import Point
from flashelmo.engine.training.settings import TrainSettings
from flashelmo.engine.training.task import Task
from flashelmo.engine.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")

OFTEN = replace(SETTINGS, dropout=0.0, batch=2, steps=8, save_every=1e-9, log_every=1000)
RUNS = {
    "plain": ("text.txt", replace(SETTINGS, dropout=0.0, batch=2, steps=8)),
    "often": ("text.txt", OFTEN),
    "often again": ("text.txt", OFTEN),
    "locked": ("text.txt", OFTEN),
    "empty": ("empty.txt", OFTEN),
}


def run_all(folder: Path, ports: list[str]) -> None:
    """What each of the two does; the first one prints what is found after each run, and both print its error."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for (name, (text, settings)), port in zip(RUNS.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        output, error = folder / name.removesuffix(" again"), ""
        try:
            train(Task([folder / text], output, CONFIG, overwrite=True), settings)
        except FlashElmoError as refused:
            error = str(refused)
        found[name] = {"error": error}
        if os.environ["RANK"] == "0" and not error:
            saved = checkpoint.checkpoints(output.with_name(f"{output.name}.training"))
            found[name] |= {"curve": curve(output), "saved": [path.name for path in saved]}
            if name == "often":
                saved[-1].unlink()
    print(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both processes print."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    with ExitStack() as free:
        sockets = [free.enter_context(socket.socket()) for _ in RUNS]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [str(each.getsockname()[1]) for each in sockets]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    several = {"PYTHONPATH": paths, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    script = f"from test_training_processes import *; run_all(Path({str(folder)!r}), {ports})"
    with identity.only_run(folder / "locked.training", Processes()):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script],
                env={**os.environ, **several, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        printed = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in printed)
    return first, second


def test_two_processes_give_the_curve_of_one_with_twice_the_batch(found: Any, text_file: Path, tmp_path: Path) -> None:
    train(Task([text_file], tmp_path / "one", CONFIG), replace(SETTINGS, dropout=0.0, steps=8))
    one, two = np.array(curve(tmp_path / "one")), np.array(found[0]["plain"]["curve"])
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert len(one) == 4 and not np.allclose(one[1:, 1], one[:-1, 1], rtol=1e-2), "a curve that says something"


def test_several_processes_save_between_points_and_go_on(found: Any) -> None:
    first = found[0]["often"]
    assert first["saved"] == found[0]["often again"]["saved"] == ["step-000000007.pt", "step-000000008.pt"]
    assert first["curve"] == found[0]["often again"]["curve"] and found[1]["often again"]["error"] == ""


def test_all_processes_of_a_run_are_refused_alike(found: Any) -> None:
    for each in found:
        assert each["locked"]["error"].endswith("locked.training: another run is writing here")
        assert each["empty"]["error"].endswith("empty.txt: expected a sentence a line, found no token")


@pytest.mark.parametrize(("rank", "says"), [("0", True), ("1", False)])
def test_only_the_first_process_says_what_was_done(
    rank: str, says: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(task: Task, settings: TrainSettings, on_progress: Any) -> SimpleNamespace:
        assert (on_progress is not None) == says
        return SimpleNamespace(points=[Point(7, 70, 1.0, 0.1, 2.0, 2.0)], evaluations=[], run={"device": "this"})

    monkeypatch.setattr(trainer, "train", run)
    for name, value in (("WORLD_SIZE", "2"), ("RANK", rank), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, value)
    assert main(["train", str(tmp_path / "text"), "--output", str(tmp_path / "model")]) == 0
    assert ("7 steps, 70 tokens, 1.0 s (this)" in capsys.readouterr().err) == says
