"""Units of work: several processes write the files that one process writes, whatever becomes of them."""

import errno
import fcntl
import gzip
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bulk_corpora import LINES, contents, make_corpus, of_one_process

from flashelmo.cli import main
from flashelmo.engine.bulk import inputs, workers
from flashelmo.engine.bulk.folder import verify
from flashelmo.engine.bulk.locks import locked
from flashelmo.engine.bulk.on_ray import RayUnit, embed_on_ray
from flashelmo.engine.bulk.source import Unit
from flashelmo.engine.bulk.units import DONE, MOST_SHARDS, Corpus, EmbedUnit, make_plan
from flashelmo.engine.bulk.workers import embed_with_workers
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.output import Output


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Five shards of five lines at most."""
    return make_corpus(tmp_path)


@pytest.fixture
def expected(corpus: Corpus) -> dict[str, bytes]:
    """What one process writes."""
    return of_one_process(corpus)


def batch(units: list[Unit]) -> dict[str, Any]:
    """Units as columns."""
    return {name: np.array([asdict(unit)[name] for unit in units]) for name in asdict(units[0])}


def test_units_in_any_order_are_the_files_of_one_process(corpus: Corpus, expected: dict[str, bytes]) -> None:
    plan = make_plan(corpus)
    units = list(plan.units)
    assert [unit.shard for unit in units] == list(range(5))
    embed = EmbedUnit(plan.corpus)
    done = embed(batch([units[k] for k in (3, 0, 4)]))
    assert tuple(done) == DONE and done["shard"].tolist() == [3, 0, 4] and not done["kept"].any()
    assert done["records"].tolist() == [5, 5, 4] and done["steps"].all()
    embed(batch([units[1], units[2]]))
    assert contents(corpus.folder) == expected
    again = embed(batch(units))
    assert again["kept"].tolist() == [1] * 5 and not again["bytes_written"].any()
    assert not [name for name in os.listdir(corpus.folder) if name.startswith(".lock-")]


def test_units_in_order_are_read_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed input would be read from its beginning for each unit otherwise."""
    packed = Path(f"{corpus.input}.gz")
    packed.write_bytes(gzip.compress(Path(corpus.input).read_bytes()))
    plan = make_plan(replace(corpus, input=str(packed)))
    embed, units, opened = EmbedUnit(plan.corpus), list(plan.units), list[Any]()

    class Counted(inputs.Decompressed):
        def __init__(self, *arguments: Any) -> None:
            opened.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(inputs, "Decompressed", Counted)
    assert embed.run(units).shards == 5 and len(opened) == 1


def test_finished_units_are_not_planned_and_damaged_ones_are(corpus: Corpus, expected: dict[str, bytes]) -> None:
    plan = make_plan(corpus)
    EmbedUnit(plan.corpus)(batch(list(plan.units)))
    with pytest.raises(FlashElmoError, match="exists already; resume=True goes on"):
        make_plan(corpus)
    (corpus.folder / "shard-00000001.safetensors").write_bytes(b"damaged")
    (corpus.folder / "shard-00000003.json").unlink()
    (corpus.folder / ".shard-00000003.safetensors.tmp").write_bytes(b"left by a killed run")
    plan = make_plan(replace(corpus, shard_records=None), resume=True)
    units = list(plan.units)
    assert ([unit.shard for unit in units], plan.kept, plan.corpus.shard_records) == ([1, 3], {0, 2, 4}, 5)
    EmbedUnit(plan.corpus)(batch(units))
    assert contents(corpus.folder) == expected
    assert [unit.shard for unit in make_plan(corpus, resume=True).units] == [0], "for the comparison of options"
    assert len(list(make_plan(corpus, overwrite=True).units)) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"stateful": True}}, "stateful: expected an embedder that carries no state"),
        ({"options": {"precision": "fp16", "device": "cpu"}}, "precision 'fp16': expected one of"),
        ({"options": {"threads": 0}}, "threads: expected 1 "),
        ({"options": {"word_cache": "/dev/null"}}, "/dev/null: cannot be opened as a file of word vectors"),
        ({"shard_records": 0}, "shard_records: expected 1 or more, found 0"),
        ({"output": Output(3)}, "layers: expected a layer from 0 to 2, found 3"),
        ({"reader": {"format": "jsonl"}}, "text: line 1, byte 1: expected JSON, found"),
    ],
)
def test_nothing_is_removed_where_the_new_run_could_not_begin(
    corpus: Corpus, changes: dict[str, Any], message: str
) -> None:
    plan = make_plan(corpus, overwrite=True)  # of nothing
    EmbedUnit(plan.corpus)(batch(list(plan.units)))
    before = contents(corpus.folder)
    with pytest.raises(FlashElmoError, match=message):
        list(make_plan(replace(corpus, **changes), overwrite=True).units)
    assert contents(corpus.folder) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--threads 0", "threads: expected 1 to"),
        ("--window-tokens 0", "window_tokens: expected 1 or more, found 0"),
        ("--shard-records 0", "shard_records: expected 1 or more, found 0"),
        ("--stateful", "stateful: expected an embedder that carries no state"),
        ("--precision fp16", "precision 'fp16': expected one of"),
        ("--shard-id 0", "--shard-id: not allowed with --workers or --ray"),
        ("--num-shards 1 --shard-id 0", "--num-shards: not allowed with --workers or --ray"),
    ],
)
def test_what_no_process_could_do_creates_no_folder(
    corpus: Corpus, capfd: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    command = ["embed", corpus.input, str(corpus.folder), "--model", str(corpus.model), "--workers", "2"]
    assert main([*command, *arguments.split()]) == 1
    assert capfd.readouterr().err.startswith(f"flashelmo: {message}") and not corpus.folder.exists()


def test_what_differs_on_resume_is_named(corpus: Corpus) -> None:
    plan = make_plan(corpus)
    EmbedUnit(plan.corpus)(batch(list(plan.units)))
    with pytest.raises(FlashElmoError, match=r"run.json: output.dtype: expected \"float32\""):
        EmbedUnit(replace(plan.corpus, output=Output("top", "float16")))
    Path(corpus.input).write_text("\n".join(["other", *LINES[1:]]) + "\n", encoding="utf-8")
    with pytest.raises(FlashElmoError, match="records 0 to 4 are not those of shard 0"):
        list(make_plan(corpus, resume=True).units)


def test_an_input_that_became_shorter_is_told(corpus: Corpus) -> None:
    plan = make_plan(corpus)
    units, embed = list(plan.units), EmbedUnit(plan.corpus)
    Path(corpus.input).write_text("\n".join(LINES[:8]) + "\n", encoding="utf-8")
    for unit, message in (
        (units[1], "expected 5 records from record 5 on, found 3; the input has changed: overwrite=True starts over"),
        (units[4], "expected record 20, found the end"),
    ):
        with pytest.raises(FlashElmoError, match=f"text: {message}"):
            embed(batch([unit]))
        assert list(contents(corpus.folder)) == ["run.json"]
    embed._reader.close()


def test_a_unit_waits_for_a_process_that_was_given_up(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    from flashelmo.engine.bulk import units as module

    plan = make_plan(corpus)
    units = list(plan.units)
    embed = EmbedUnit(plan.corpus)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    with (
        locked(corpus.folder, MOST_SHARDS, 2),
        pytest.raises(FlashElmoError, match="another run is writing here"),
    ):
        embed(batch([units[2]]))
    assert embed(batch([units[2]]))["records"] == [5]


def test_on_ray_an_error_is_a_row(corpus: Corpus) -> None:
    plan = make_plan(corpus)
    units, embed = list(plan.units), RayUnit(plan.corpus)
    done = embed(batch(units[1:2]))
    assert (done["records"].tolist(), done["error"].tolist()) == ([5], [""])
    path = Path(corpus.input)
    path.write_bytes(path.read_bytes().replace(b"cat", b"\xff\xff\xff"))
    done = embed(batch(units[:1]))
    assert done["shard"] == [0] and "expected UTF-8" in done["error"][0] and not done["records"].any()
    done = RayUnit(replace(plan.corpus, keep_tokens=False))(batch(units[2:3]))
    assert set(done) == {*DONE, "error"} and "run.json: tokens: expected true" in done["error"][0]


def test_ray_is_named_where_it_is_not_installed(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'flashelmo\[ray\]'"):
        embed_on_ray(corpus)


def test_the_command(corpus: Corpus, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["embed", corpus.input, str(corpus.folder), "--model", str(corpus.model), "--layers", "top"]
    arguments += ["--shard-records", "5", "--threads", "1"]
    for more, message in (
        (["--workers", "2", "--num-shards", "2"], "--num-shards: not allowed with --workers or --ray"),
        (["--workers", "2", "--shard-id", "3"], "--shard-id: not allowed with --workers or --ray"),
        (
            ["--ray", "local", "--num-shards", "1", "--shard-id", "0"],
            "--num-shards: not allowed with --workers or --ray",
        ),
        (["--workers", "0"], "workers: expected 1 to 1024, found 0"),
        (["--workers", "2", "--device", "cuda"], "workers: expected device cpu, found cuda"),
    ):
        assert main([*arguments, *more]) == 1
        assert message in capsys.readouterr().err
    words = str(corpus.folder.with_name("words"))
    assert main([*arguments, "--workers", "1", "--word-cache", words]) == 0
    assert contents(corpus.folder) == expected and Path(words).stat().st_size
    assert "(1 process)" in capsys.readouterr().err
    assert main([*arguments, "--workers", "2"]) == 1
    assert "exists already; --resume goes on with it" in capsys.readouterr().err


def test_what_other_machines_have_is_not_asked_here_before_shards_are_removed(corpus: Corpus) -> None:
    plan = make_plan(corpus)
    EmbedUnit(plan.corpus)(batch(list(plan.units)))
    there = replace(corpus, options={**corpus.options, "precision": "fp16"})
    for options, message in (({"stateful": True}, "stateful"), ({"threads": "all"}, "threads")):
        with pytest.raises(FlashElmoError, match=f"^{message}: expected"):
            make_plan(replace(corpus, options={**corpus.options, **options}), overwrite=True, elsewhere=True)
    with pytest.raises(FlashElmoError, match=r"^precision 'fp16': expected one of"):
        make_plan(there, overwrite=True)
    assert len(contents(corpus.folder)) > 1
    assert len(list(make_plan(there, overwrite=True, elsewhere=True).units)) == 5


def test_jobs_that_begin_at_the_same_moment_share_the_folder(tmp_path: Path) -> None:
    """The first one holds the lock alone while it writes their number."""
    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threading.Timer(0.05, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with locked(tmp_path, 2, 0), locked(tmp_path, 2, 1):
            assert (tmp_path / ".lock-1").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_where_there_are_no_locks_a_warning_says_so(
    jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path, jobs, 0), locked(tmp_path, jobs, 0):
        assert [record.getMessage() for record in caplog.records] == [
            f"{tmp_path}: no file locks here, so nothing keeps another run from writing to it"
        ] * 2


@pytest.mark.parametrize("text", ["", "\n", "one line"])
def test_short_inputs(text: str, corpus: Corpus) -> None:
    Path(corpus.input).write_text(text, encoding="utf-8")
    plan = make_plan(corpus)
    EmbedUnit(plan.corpus)(batch(list(plan.units)))
    assert contents(corpus.folder) == of_one_process(corpus)


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Kill one of the processes when it gets a unit, so many times."""

    def prepare(n_kills: int) -> None:
        give, left = workers._Worker.give, [n_kills]

        def give_and_kill(worker: Any, unit: Unit | None) -> None:
            if unit is not None and left[0]:
                left[0] -= 1
                worker.process.send_signal(signal.SIGKILL)
            give(worker, unit)

        monkeypatch.setattr(workers._Worker, "give", give_and_kill)

    return prepare


def test_two_processes_of_which_one_is_killed(
    corpus: Corpus, expected: dict[str, bytes], kills: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    kills(1)
    seen: list[tuple[float, float]] = []
    report = embed_with_workers(corpus, 2, on_progress=lambda *place: seen.append(place))
    assert contents(corpus.folder) == expected and verify(corpus.folder) == []
    assert (report.shards, report.records, report.kept) == (5, len(LINES), 0)
    assert (len(seen), seen[-1]) == (5, (Path(corpus.input).stat().st_size, report.tokens))
    assert "killed by SIGKILL; its shards are done again" in caplog.text


def test_all_processes_are_killed(corpus: Corpus, expected: dict[str, bytes], kills: Callable[[int], None]) -> None:
    """The run ends, and the next one goes on."""
    kills(1)
    with pytest.raises(FlashElmoError, match="all processes ended: killed by SIGKILL; finished shards are kept"):
        embed_with_workers(corpus, 1)
    assert embed_with_workers(corpus, 1, resume=True).shards == 5
    report = embed_with_workers(corpus, 1, resume=True)
    assert (report.shards, report.kept, report.bytes_written) == (0, 5, 0)
    assert contents(corpus.folder) == expected


def test_what_a_process_finished_before_it_was_killed_counts(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finish, left = workers._Pool._finish, [1]

    def finish_and_kill(pool: Any, worker: Any, meta: dict[str, Any]) -> None:
        finish(pool, worker, meta)
        if left[0]:
            left[0] -= 1
            worker.process.send_signal(signal.SIGKILL)

    monkeypatch.setattr(workers._Pool, "_finish", finish_and_kill)
    report = embed_with_workers(corpus, 1)
    assert "killed by SIGKILL" in caplog.text
    entries = [json.loads(path.read_text()) for path in corpus.folder.glob("shard-*.json")]
    assert (report.shards, report.records) == (5, len(LINES))
    assert report.tokens == sum(entry["tokens"] for entry in entries)
    assert report.bytes_written == sum(file["bytes"] for entry in entries for file in entry["files"].values())


def test_a_run_that_is_refused_leaves_the_others_files(corpus: Corpus) -> None:
    """It was planned while nobody held the folder, as other processes had not loaded their model."""
    plan = make_plan(corpus)
    pool = workers._Pool(plan, 1, lambda *place: None)
    begun = corpus.folder / ".shard-00000000.safetensors.tmp"
    with locked(corpus.folder, 1, 0):
        begun.write_bytes(b"half written")
        try:
            with pytest.raises(FlashElmoError, match="another run is writing here"):
                pool.run()
        finally:
            pool.end()
        assert begun.exists()


def test_an_error_of_a_process_is_the_runs(corpus: Corpus) -> None:
    Path(corpus.input).write_bytes(b"one\ntwo\n\xff\n")
    with pytest.raises(FlashElmoError, match="text: line 3, byte 1"):
        embed_with_workers(corpus, 1)
    assert not corpus.folder.exists()  # as it was before
    with pytest.raises(FlashElmoError, match="input: expected a file, as several processes read it"):
        embed_with_workers(replace(corpus, input="-"), 1)
    with pytest.raises(FlashElmoError, match="as several processes read it, found a pipe or a device: /dev/null"):
        embed_with_workers(replace(corpus, input=os.devnull), 1)


def test_workers_on_windows(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(FlashElmoError, match=r"^expected Linux or macOS for .* workers .*, found Windows$"):
        embed_with_workers(corpus, 2)
