"""A corpus on a Ray cluster of this machine. Too heavy for every run of the tests: `make test-ray`."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from bulk_corpora import contents, make_corpus, of_one_process

from flashelmo.engine.bulk.folder import verify
from flashelmo.engine.bulk.on_ray import embed_on_ray
from flashelmo.engine.errors import FlashElmoError

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def kill_an_actor(folder: Path, killed: list[int]) -> None:
    """Kill the first of this test's actors that is found when shards begin to appear."""
    started = time.time()
    while not killed:
        time.sleep(0.005)
        if not list(folder.glob("shard-*.json")):
            continue
        for process in psutil.process_iter(["cmdline", "create_time"]):
            name = (process.info["cmdline"] or [""])[0]
            if name.startswith("ray::MapWorker") and process.info["create_time"] > started:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return


def test_two_actors_write_the_files_of_one_process(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    expected = of_one_process(corpus)
    report = embed_on_ray(corpus, 2)
    assert contents(corpus.folder) == expected and verify(corpus.folder) == []
    assert (report.shards, report.records, report.kept) == (5, 24, 0)
    (corpus.folder / "shard-00000002.json").unlink()
    report = embed_on_ray(corpus, 2, resume=True)
    assert (report.shards, report.kept) == (1, 4)
    assert contents(corpus.folder) == expected
    assert embed_on_ray(corpus, 2, resume=True).kept == 5
    with pytest.raises(FlashElmoError, match=r"run.json: tokens: expected true, with which this output was begun"):
        embed_on_ray(replace(corpus, keep_tokens=False), 1, resume=True)


def test_an_actor_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, times=400, shard_records=100)
    expected = of_one_process(corpus)
    killed: list[int] = []
    threading.Thread(target=kill_an_actor, args=(corpus.folder, killed), daemon=True).start()
    report = embed_on_ray(corpus, 2)
    assert killed and (report.shards, report.kept) == (96, 0)
    assert contents(corpus.folder) == expected and verify(corpus.folder) == []


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    with pytest.raises(FlashElmoError, match=r"^ray: .*; finished shards are kept"):
        embed_on_ray(make_corpus(tmp_path), 1, "auto")
