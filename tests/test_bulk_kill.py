"""Whatever ends a run at whatever moment, going on gives the files of a run that was never ended."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import MODELS

from flashelmo.engine.bulk import run as run_module
from flashelmo.engine.bulk.folder import verify
from flashelmo.engine.bulk.records import open_reader
from flashelmo.engine.bulk.run import embed_corpus
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native

# So often a run is killed; more by FLASHELMO_KILLS=20.
N_KILLS = int(os.environ.get("FLASHELMO_KILLS", 3))
N_LINES, SHARD_RECORDS = 1800, 50
DISK_BYTES = 1 << 20
SECONDS = 60.0

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model, a text, and what a run makes of it that is not ended."""
    folder = tmp_path_factory.mktemp("kill")
    write_native(MODELS["skip"], folder / "model")
    rng = random.Random(0)
    lines = [" ".join(f"w{rng.randrange(300)}" for _ in range(rng.randrange(30))) for _ in range(N_LINES)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    with begin(folder, "whole") as run:
        assert run.wait(SECONDS) == 0
    return folder


def begin(folder: Path, name: str) -> "subprocess.Popen[str]":
    """A run in a process of its own, which goes on with what is there."""
    program = [sys.executable, "-m", "flashelmo.cli", "embed", "text.txt", name, "--model", "model", "--resume", "-q"]
    options = ["--shard-records", str(SHARD_RECORDS), "--device", "cpu", "--threads", "1"]
    return subprocess.Popen([*program, *options], cwd=folder, stderr=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def n_finished(folder: Path) -> int:
    return len(list(folder.glob("shard-*.json")))


def wait_for(folder: Path, n_shards: int) -> None:
    """Until so many shards are finished."""
    deadline = time.monotonic() + SECONDS
    while n_finished(folder) < n_shards and time.monotonic() < deadline:
        time.sleep(0.002)


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_end(place: Path) -> None:
    out, rng = place / "killed", random.Random(int(os.environ.get("FLASHELMO_SEED", 0)))
    n_shards = N_LINES // SHARD_RECORDS
    for k in range(N_KILLS):
        with begin(place, "killed") as run:
            wait_for(out, min(n_shards - 1, k * n_shards // N_KILLS + rng.randrange(1, 1 + n_shards // N_KILLS)))
            time.sleep(rng.random() * 0.02)
            run.kill()
        assert run.returncode in (-signal.SIGKILL, 0)
    assert 0 < n_finished(out) < n_shards or N_KILLS > 3
    with begin(place, "killed") as run:
        _, said = run.communicate(timeout=SECONDS)
    assert (run.returncode, said) == (0, "")
    assert contents(out) == contents(place / "whole") and verify(out) == []


def test_a_run_that_is_asked_to_stop_leaves_what_is_finished(place: Path) -> None:
    out = place / "stopped"
    with begin(place, "stopped") as run:
        wait_for(out, 5)
        run.terminate()
        _, said = run.communicate(timeout=SECONDS)
    assert (run.returncode, said) == (128 + signal.SIGTERM, "flashelmo: interrupted\n")
    assert n_finished(out) >= 5 and not list(out.glob(".shard*"))
    whole = contents(place / "whole")
    assert all(whole[name] == content for name, content in contents(out).items())
    with begin(place, "stopped") as run:
        _, said = run.communicate(timeout=SECONDS)
    assert (run.returncode, said) == (0, "")
    assert contents(out) == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a disk is not permitted")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_runs_full_keeps_what_is_finished(
    place: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "RETRY_SECONDS", (0.0, 0.0))
    embedder = ElmoEmbedder.load(place / "model", device="cpu", threads=1)

    def run(resume: bool) -> None:
        reader = open_reader(place / "text.txt")
        reader.n_bytes = None  # of which nobody knows how large the output will be
        embed_corpus(embedder, reader, small_disk / "out", shard_records=SHARD_RECORDS, resume=resume)

    for resume, told in ((False, os.strerror(errno.ENOSPC)), (True, "bytes of free disk, found")):
        with pytest.raises(FlashElmoError, match=told):
            run(resume)
        whole, found = contents(place / "whole"), contents(small_disk / "out")
        assert 3 < len(found) < len(whole) and not [name for name in found if name.startswith(".")]
        assert all(whole[name] == content for name, content in found.items() if name.endswith(".json"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    run(resume=True)
    assert contents(small_disk / "out") == whole
