"""Word vectors that outlive a run: read back to the bit, by several runs, whatever ends them."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import MODELS, SENTENCES

from flashelmo.engine.cpu.word_file import PAGE_BYTES, WordFile
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError

SIZE = 512  # as published models have: a page holds 7 vectors, and almost an eighth
ONE = {"sha256": "one", "precision": "fp32"}


def opened(path: Path, belongs_to: dict[str, str] = ONE, max_bytes: int = 1 << 20) -> WordFile:
    return WordFile(path, belongs_to, SIZE, max_bytes)


def vectors_of(names: list[str]) -> Any:
    return np.array([[len(name) + k for k in range(SIZE)] for name in names], np.float32).reshape(-1, SIZE)


def known(file: WordFile, names: list[str]) -> list[str]:
    """The words that the file has, each with its own vector."""
    values = np.full((len(names), SIZE), np.nan, np.float32)
    unknown = set(file.read(names, values).tolist())
    found = [name for i, name in enumerate(names) if i not in unknown]
    assert np.array_equal(values[[i for i in range(len(names)) if i not in unknown]], vectors_of(found))
    return found


def embedder(path: Path, model: str = "skip", **options: Any) -> ElmoEmbedder:
    return ElmoEmbedder(MODELS[model], device="cpu", word_cache=path, **options)


def test_a_second_run_computes_no_word_and_has_the_same_bits(tmp_path: Path) -> None:
    plain = ElmoEmbedder(MODELS["skip"], device="cpu").embed_batch(SENTENCES)
    n_computed = []
    for _ in range(2):
        run = embedder(tmp_path / "words")
        assert all(map(np.array_equal, run.embed_batch(SENTENCES), plain))
        n_computed.append(run.statistics.words_computed)
    assert n_computed[0] > 0 and n_computed[1] == 0


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"model": "no projection"}, "sha256"),
        ({"model": "no skip"}, "configuration"),
        ({"precision": "int8"}, "precision"),
    ],
    ids=str,
)
def test_another_models_file_is_refused(other: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = tmp_path / "words"
    embedder(path)
    with pytest.raises(FlashElmoError, match=rf"^{path}: expected word vectors of {what} .+, found those of "):
        embedder(path, **other)
    embedder(path)


@pytest.mark.parametrize("contents", [b"no database, but longer than a header of one" * 9, "other", "folder"])
def test_other_files_are_refused_and_stay(contents: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "words"
    if contents == "folder":
        path.mkdir()
    elif contents == "other":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE mine (word TEXT)")
        database.close()
    else:
        path.write_bytes(contents)  # type: ignore[arg-type]
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(FlashElmoError, match=f"^{path}: "):
        opened(path)
    assert before == (path.read_bytes() if path.is_file() else None)


def test_only_runtimes_of_the_processor_take_it(tmp_path: Path) -> None:
    with pytest.raises(FlashElmoError, match="word_cache: expected one of the CPU's runtimes"):
        embedder(tmp_path / "words", runtime="reference")


@pytest.mark.parametrize("n_letters", [1, 1000])
@pytest.mark.parametrize("n_at_once", [100, 1000])
def test_it_never_grows_beyond_its_bound(n_at_once: int, n_letters: int, tmp_path: Path) -> None:
    path, bound = tmp_path / "words", 100 * PAGE_BYTES
    file = opened(path, max_bytes=bound)
    names = [f"word {k * 919 % 1000:{n_letters}}" for k in range(1000)]  # in no order, so that pages are split
    for start in range(0, len(names), n_at_once):
        part = names[start : start + n_at_once]
        file.write(part, vectors_of(part))
    assert 0.75 * bound < path.stat().st_size <= bound
    found = known(opened(path), names)
    assert 200 < len(found) < len(names) and found[:200] == names[:200]


def test_odd_words_and_a_damaged_vector(tmp_path: Path) -> None:
    names = ["", "a\0b", "a", "ä", "a" * 10_000, "'; DROP TABLE words"]
    file = opened(tmp_path / "words")
    file.write(names, vectors_of(names))
    assert known(file, [*names, "A", "a\0"]) == names
    with sqlite3.connect(tmp_path / "words") as database:
        database.execute("UPDATE words SET vector = zeroblob(?) WHERE word = ?", (4 * SIZE, b"a"))
    assert known(file, names) == [name for name in names if name != "a"]
    file.write(["a"], vectors_of(["a"]))
    assert known(file, names) == names
    database.close()


WRITE = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_word_file import opened, vectors_of
file = opened(Path(sys.argv[1]), max_bytes=1 << 30)  # never full
print("begun", flush=True)
for k in range(int(sys.argv[2]), int(sys.argv[3])):
    names = [f"word {{k}} {{i}}" for i in range(100)]
    file.write(names, vectors_of(names))
    time.sleep(0.02)  # a run computes between writes; one that does nothing else would starve the others
"""


def started(path: Path, first: int, last: int) -> "subprocess.Popen[str]":
    code = WRITE.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(path), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_two_runs_at_once_and_one_that_is_killed(tmp_path: Path) -> None:
    """Batches are there whole or not at all, and the file goes on to work."""
    path = tmp_path / "words"
    runs = [started(path, 0, 4), started(path, 2, 6), started(path, 1000, 1_000_000)]
    for run in runs:
        assert run.stdout is not None and run.stdout.readline() == "begun\n"
        run.stdout.close()
    assert [run.wait(60) for run in runs[:2]] == [0, 0]
    runs[2].kill()
    assert runs[2].wait(60) == -signal.SIGKILL
    file, values = opened(path, max_bytes=1 << 30), np.empty((100, SIZE), np.float32)

    def n_missing(k: int) -> int:
        return len(file.read([f"word {k} {i}" for i in range(100)], values))

    assert [n_missing(k) for k in range(6)] == [0] * 6
    assert {n_missing(k) for k in range(1000, 1100)} <= {0, 100}
    file.write(["more"], vectors_of(["more"]))
    assert known(opened(path), ["more"]) == ["more"]


def test_a_file_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = opened(tmp_path / "words")
    with sqlite3.connect(tmp_path / "words") as database:
        database.execute("DROP TABLE words")
    database.close()
    with caplog.at_level(logging.WARNING, "flashelmo"):
        for _ in range(2):
            file.write(["a"], vectors_of(["a"]))
        for _ in range(2):
            assert known(file, ["a"]) == []
    assert [record.getMessage().partition(": ")[2].partition(":")[0] for record in caplog.records] == [
        "cannot be written",
        "cannot be read",
    ]
