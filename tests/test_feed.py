"""What stands around the computation of a corpus: the counts are the engine's, and every section runs."""

import os
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import MODELS

from flashelmo.benchmarks import feed, host
from flashelmo.benchmarks.__main__ import find
from flashelmo.benchmarks.contestant import Subject
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.worker import Pool
from flashelmo.engine.bulk.report import Report
from flashelmo.engine.bulk.units import Corpus
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.native import write_native

LINES = ["the cat sat on the mat", "the cat sat", "", "a dog sat on the mat", "the cat"] * 3
SETTINGS = replace(find("feed").defaults, rounds=1, threads=1, bulk_tokens=40)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    write_native(MODELS["skip"], tmp_path / "small")
    return Subject("small", tmp_path / "small", MODELS["skip"].config, Pool())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


def test_a_host_works_without_its_card(subject: Subject, text: Path) -> None:
    """Kernels are compiled and handed to a driver that does nothing; both ways to embed come to their end."""
    pytest.importorskip("triton")
    with subject.pool:
        rows = host.measure_host(subject, replace(SETTINGS, text=text))
    for way, size in product((host.FROM_LISTS, host.FROM_TEXT), host.SIZES):
        found = medians([row for row in rows if row.name == f"{way}, windows of {size:,} tokens"], "ms")
        parts = {host.RESULTS, *host.PARTS} - ({"token lists to windows"} if way == host.FROM_TEXT else set())
        clocks = {f"{part}, {host.CLOCK}" for part in parts}
        assert found.keys() == {host.CLOCK, host.ALL, host.QUEUEING, *parts, *clocks}
        for names, whole in ((parts, host.QUEUEING), (clocks, host.CLOCK)):
            assert 0 < sum(found[name] for name in names) < found[whole]
    (alone,) = medians([row for row in rows if row.name == "one sentence"], "µs").values()
    assert 10 < alone < 1e5


def medians(rows: Any, unit: str) -> dict[str, float]:
    assert all(isinstance(row, Row) and row.samples for row in rows)
    return {row.detail: row.median for row in rows if row.unit == unit}


def test_steps_are_those_that_the_engine_counts(subject: Subject, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "WINDOWS", (8, 64))
    monkeypatch.setattr(feed, "SHARDS", (5,))
    rows = feed.measure_sharing(subject, replace(SETTINGS, text=text))
    found = medians(rows, "x fewer steps")
    for size in feed.WINDOWS:
        embedder = ElmoEmbedder(MODELS["skip"], device="cpu", window_tokens=size)
        embedder.embed_file(text, text.with_name(f"{size}.npz"))
        statistics = embedder.statistics
        ratio = (statistics.steps + statistics.steps_saved) / statistics.steps
        assert found[f"windows of {size} tokens"] == pytest.approx(ratio, rel=1e-4)
    assert 1 < found["windows of 8 tokens"] < found["shards of 5 records"] < found["the whole text in a window"]
    assert found["its first 1/8 in a window"] < found["the whole text in a window"] == found["windows of 64 tokens"]
    assert all(0 < held < 1 for held in medians(rows, "GiB").values())


def test_texts_beside_the_checkout_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "REAL_TEXT", tmp_path / "kjv.txt")
    for name in feed.TEXTS:
        (tmp_path / name).write_bytes(name.encode() + b"\n")
    found = feed.texts(SETTINGS)
    assert list(found) == ["kjv.txt", "wordnet_text.txt", "kjv.txt + wordnet_text.txt"]
    assert found["kjv.txt + wordnet_text.txt"] == b"kjv.txt\nwordnet_text.txt\n"


def test_the_feed_reads_and_writes_all(subject: Subject, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flashelmo import open_embeddings

    monkeypatch.setattr(os, "sched_setaffinity", lambda *arguments: None, raising=False)
    fed = feed.Feed(subject.config, 1)
    assert min(fed.speed(what, text) for what in (feed.READING, feed.WRITING)) > 0
    vectors = open_embeddings(text.with_name("fed"))
    assert len(vectors) == len(LINES) and not np.any(vectors[0]) and vectors[0].shape == (subject.config.output_size,)


def test_processes_take_turns(subject: Subject, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, Any, bool]] = []

    def run(corpus: Corpus, n_workers: int, overwrite: bool) -> Report:
        assert Path(corpus.input).read_text("utf-8").split()[:3] == ["the", "cat", "sat"]
        assert load_model(corpus.model).config == subject.config
        runs.append((n_workers, corpus.options["threads"], overwrite))
        return Report(tokens=40, seconds=n_workers)

    monkeypatch.setattr(feed, "embed_with_workers", run)
    rows = feed.measure_workers(subject, replace(SETTINGS, text=text, threads=4, rounds=2))
    assert runs == [(1, 4, True), (2, 2, True), (4, 1, True)] * 2
    assert [(row.name, row.detail, row.median) for row in rows] == [
        ("1 process", "4 threads each", 40.0),
        ("2 processes", "2 threads each", 20.0),
        ("4 processes", "1 thread each", 10.0),
    ]


def test_quarters() -> None:
    assert feed.quarters([1, 5, 2, 3, 9, 4, 0, 7]) == [5, 3, 9, 7]
