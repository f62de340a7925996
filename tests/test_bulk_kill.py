"""Whatever ends a run at whatever moment, going on gives the files of a run that was never ended."""

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from bulk_corpora import contents
from bulk_worker import begin, said_by
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
N_LINES, SHARD_RECORDS = 2000, 50
DISK_BYTES = 1 << 20
SECONDS = 60.0
MOMENT = 0.03  # seconds, within which a killed run is killed once so many shards are finished

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model, a text, and what a run makes of it that is not ended."""
    folder = tmp_path_factory.mktemp("kill")
    write_native(MODELS["skip"], folder / "model")
    rng = random.Random(0)
    lines = [" ".join(f"w{rng.randrange(300)}" for _ in range(rng.randrange(30))) for _ in range(N_LINES)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    finish(folder, "whole")
    return folder


def run(folder: Path, name: str) -> ForkServerProcess:
    return begin(folder, name, "--shard-records", str(SHARD_RECORDS), "--device", "cpu", "--threads", "1")


def finish(folder: Path, name: str) -> None:
    """A run that comes to its end."""
    process = run(folder, name)
    process.join(SECONDS)
    assert (process.exitcode, said_by(folder, name)) == (0, "")


def n_finished(folder: Path) -> int:
    return len(list(folder.glob("shard-*.json")))


def end(place: Path, name: str, number: signal.Signals, n_shards: int, seconds: float) -> int | None:
    """Send a signal to a run when it has finished so many shards, and some time has passed; its exit status.

    On a busy machine the run may come to its end before; then its folder is removed, and another one is begun.
    """
    for _ in range(10):
        process, wanted = run(place, name), n_finished(place / name) + n_shards
        while process.is_alive() and n_finished(place / name) < wanted:
            time.sleep(0.002)
        time.sleep(seconds)
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)
        process.join(SECONDS)
        if process.exitcode != 0:
            return process.exitcode
        shutil.rmtree(place / name)
    return 0


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_end(place: Path) -> None:
    out, rng = place / "killed", random.Random(int(os.environ.get("FLASHELMO_SEED", 0)))
    most = N_LINES // SHARD_RECORDS // N_KILLS // 2
    for _ in range(N_KILLS):
        assert end(place, "killed", signal.SIGKILL, rng.randrange(1 + most), rng.random() * MOMENT) == -signal.SIGKILL
    finish(place, "killed")
    assert contents(out) == contents(place / "whole") and verify(out) == []


def test_a_run_that_is_asked_to_stop_leaves_what_is_finished(place: Path) -> None:
    out, whole = place / "stopped", contents(place / "whole")
    assert end(place, "stopped", signal.SIGTERM, 5, 0.0) == 128 + signal.SIGTERM
    assert said_by(place, "stopped") == "flashelmo: interrupted\n"
    assert n_finished(out) >= 5 and not list(out.glob(".shard*"))
    assert all(whole[name] == content for name, content in contents(out).items())
    finish(place, "stopped")
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

    def embed(resume: bool) -> None:
        reader = open_reader(place / "text.txt")
        reader.n_bytes = None  # of which nobody knows how large the output will be
        embed_corpus(embedder, reader, small_disk / "out", shard_records=SHARD_RECORDS, resume=resume)

    for resume, told in ((False, os.strerror(errno.ENOSPC)), (True, "bytes of free disk, found")):
        with pytest.raises(FlashElmoError, match=told):
            embed(resume)
        whole, found = contents(place / "whole"), contents(small_disk / "out")
        assert 3 < len(found) < len(whole) and not [name for name in found if name.startswith(".")]
        assert all(whole[name] == content for name, content in found.items() if name.endswith(".json"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    embed(resume=True)
    assert contents(small_disk / "out") == whole
