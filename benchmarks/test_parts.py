"""What the suites measure, by pytest-benchmark, on the small model: each contestant, and the host's side of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flashelmo.benchmarks.accuracy import why_wrong
from flashelmo.benchmarks.contestant import PROCESSOR, REFERENCE, Subject, contestant, prepare
from flashelmo.benchmarks.cpu.costs import INPUTS, SCHEDULES, WORDS, Host
from flashelmo.benchmarks.cpu.suite import CACHES, COLD
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import Sentences, equal_batch, generate, spell, write_sentences
from flashelmo.benchmarks.worker import Here, Pool
from flashelmo.engine.errors import FlashElmoError

TEXT = generate(2_000)
WORK: dict[str, Sentences] = {
    "bulk, 2,000 tokens": TEXT,
    "a sentence of 20": equal_batch(TEXT, 1, 20).sentences,
    "500 distinct words": [[spell(rank)] for rank in range(500)],  # their characters cost far more than their steps
}
HOST_TOKENS = 100_000  # in 0.033 s they are 3M tokens a second


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return prepare("small", 0, tmp_path_factory.mktemp("model"), Pool())


def made(subject: Subject, name: str, cache: str) -> Here:
    try:
        return contestant(subject, Settings(), name, **({} if name == REFERENCE else CACHES[cache])).here()
    except FlashElmoError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("cache", list(CACHES))
@pytest.mark.parametrize("name", list(PROCESSOR))
@pytest.mark.parametrize("work", list(WORK))
def test_embed(benchmark: BenchmarkFixture, subject: Subject, work: str, name: str, cache: str) -> None:
    benchmark.group = f"{work}, {cache}"
    clock, expected = made(subject, name, cache), made(subject, REFERENCE, COLD).call("vectors", WORK[work])
    precision = str(PROCESSOR[name].get("precision", "fp32"))
    assert not why_wrong(clock.call("vectors", WORK[work]), expected, precision)
    benchmark(clock.call, "seconds", [WORK[work]])


@pytest.mark.benchmark(group=f"the host's side, {HOST_TOKENS:,} tokens, a core")
@pytest.mark.parametrize("what", [WORDS, SCHEDULES, INPUTS])
def test_host(benchmark: BenchmarkFixture, tmp_path: Path, what: str) -> None:
    path = write_sentences(tmp_path / "text.txt", generate(HOST_TOKENS))
    with Pool() as pool:
        worker = pool.worker(Host)
        assert worker.call("speed", what, path, 1 << 17) > 0
        benchmark(worker.call, "speed", what, path, 1 << 17)
