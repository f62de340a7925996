"""The suites' contestants by pytest-benchmark, on the small model: `pytest benchmarks`."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flashelmo.benchmarks.accuracy import why_wrong
from flashelmo.benchmarks.contestant import PROCESSOR, REFERENCE, Clock, Subject, contestant, prepare
from flashelmo.benchmarks.cpu import CACHES, COLD
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import Sentences, equal_batch, generate, spell
from flashelmo.benchmarks.worker import Here, Pool
from flashelmo.engine.errors import FlashElmoError

TEXT = generate(2_000)
WORK: dict[str, Sentences] = {
    "bulk, 2,000 tokens": TEXT,
    "a sentence of 20": equal_batch(TEXT, 1, 20).sentences,
    "500 distinct words": [[spell(rank)] for rank in range(500)],  # their characters cost far more than their steps
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return prepare("small", 0, tmp_path_factory.mktemp("model"), Pool())


def clock_of(subject: Subject, name: str, cache: str) -> Here:
    found = contestant(subject, Settings(), name, **({} if name == REFERENCE else CACHES[cache]))
    try:
        return Here(Clock, found.make, *found.arguments)
    except FlashElmoError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("cache", list(CACHES))
@pytest.mark.parametrize("name", list(PROCESSOR))
@pytest.mark.parametrize("work", list(WORK))
def test_embed(benchmark: BenchmarkFixture, subject: Subject, work: str, name: str, cache: str) -> None:
    benchmark.group = f"{work}, {cache}"
    clock, expected = clock_of(subject, name, cache), clock_of(subject, REFERENCE, COLD).call("vectors", WORK[work])
    precision = str(PROCESSOR[name].get("precision", "fp32"))
    assert not why_wrong(clock.call("vectors", WORK[work]), expected, precision)
    benchmark(clock.call, "seconds", [WORK[work]])
