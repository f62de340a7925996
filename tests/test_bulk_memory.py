"""The memory of a run: it does not grow with the corpus, and what is freed goes back to the system."""

import platform
import random
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from bulk_worker import begin, said_by
from tiny_models import BILM, random_model

from flashelmo.engine.model.checkpoints.native import write_native

WINDOW_TOKENS, SIZE = 1 << 14, 64  # of each window, states of 4 MiB a layer and direction
N_WINDOWS, SHARD_WINDOWS = 40, 2
SENTENCE_TOKENS = 32
MIB = 2**20
# In threads that begin at once, arrays that are smaller than one which was freed before.
THREADS = """
import threading
import numpy as np
from flashelmo.engine.system.allocator import return_large_arrays
from test_bulk_memory import own_bytes

return_large_arrays()
np.ones(31 << 17)
begun = threading.Barrier(8)

def fill():
    begun.wait()
    arrays = [np.ones(6 << 17) for _ in range(4)]
    begun.wait()

before = own_bytes("self")
threads = [threading.Thread(target=fill) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(own_bytes("self") - before)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what a process holds")


def own_bytes(pid: int | str | None) -> int:
    """What a process holds without the files that it has mapped."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) << 10 if found else 0


def test_memory_does_not_grow_from_window_to_window(tmp_path: Path) -> None:
    write_native(random_model(replace(BILM, projection_size=SIZE)), tmp_path / "model")
    rng, n_lines = random.Random(0), WINDOW_TOKENS // SENTENCE_TOKENS
    lines = [" ".join(f"w{rng.randrange(300)}" for _ in range(SENTENCE_TOKENS)) for _ in range(N_WINDOWS * n_lines)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    options = ["--device", "cpu", "--threads", "2", "--pool", "mean", "--window-tokens", str(WINDOW_TOKENS)]
    process = begin(tmp_path, "out", *options, "--shard-records", str(SHARD_WINDOWS * n_lines))
    held = [0] * (N_WINDOWS // SHARD_WINDOWS + 1)  # by the number of finished shards
    while process.is_alive():
        with suppress(OSError):  # it has just ended
            n_finished = len(list((tmp_path / "out").glob("shard-*.json")))
            held[n_finished] = max(held[n_finished], own_bytes(process.pid))
        time.sleep(0.01)
    assert (process.exitcode, said_by(tmp_path, "out")) == (0, "")
    # The least of the last: where the machine is busy, more windows wait for each other than at the beginning.
    assert min(filter(None, held[-6:])) < max(held[4:10]) + 24 * MIB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_arrays_that_are_freed_go_back_to_the_system() -> None:
    path = [str(Path(__file__).parent), *sys.path]
    code = f"import sys; sys.path[:] = {path!r}\n{THREADS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 24 * MIB
