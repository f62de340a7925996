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
N_LINES, SHARD_RECORDS = 1800, 50
DISK_BYTES = 1 << 20
SECONDS = 60.0
MOMENT = 0.05  # seconds, within which a killed run is killed once so many shards are finished

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
    n_shards, ends = N_LINES // SHARD_RECORDS, []
    for _ in range(N_KILLS):
        process = run(place, "killed")
        wait_for(out, min(n_shards - 1, n_finished(out) + rng.randrange(1 + n_shards // N_KILLS)))
        time.sleep(rng.random() * MOMENT)
        process.kill()
        process.join(SECONDS)
        assert process.exitcode in (-signal.SIGKILL, 0)
        ends.append(n_finished(out))
    assert ends[0] < n_shards
    finish(place, "killed")
    assert contents(out) == contents(place / "whole") and verify(out) == []


def test_a_run_that_is_asked_to_stop_leaves_what_is_finished(place: Path) -> None:
    out = place / "stopped"
    process = run(place, "stopped")
    wait_for(out, 5)
    process.terminate()
    process.join(SECONDS)
    assert (process.exitcode, said_by(place, "stopped")) == (128 + signal.SIGTERM, "flashelmo: interrupted\n")
    assert n_finished(out) >= 5 and not list(out.glob(".shard*"))
    whole = contents(place / "whole")
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
