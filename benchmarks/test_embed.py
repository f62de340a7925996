"""Bulk text and single sentences on the small model: the engine's precisions beside the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flashelmo.benchmarks.accuracy import why_wrong
from flashelmo.benchmarks.contestant import PROCESSOR
from flashelmo.benchmarks.cpu.suite import CACHES
from flashelmo.benchmarks.text import Sentences
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError


@pytest.fixture(scope="module")
def expected(model_folder: Path, sentences: Sentences) -> list[Array]:
    return ElmoEmbedder.load(model_folder, **PROCESSOR["reference"]).embed_batch(sentences)


def load(model_folder: Path, name: str, **options: Any) -> ElmoEmbedder:
    try:
        return ElmoEmbedder.load(model_folder, **PROCESSOR[name], **options)
    except FlashElmoError as error:
        pytest.skip(str(error))


@pytest.mark.benchmark(group="bulk, 2,000 tokens, no word known")
@pytest.mark.parametrize("name", list(PROCESSOR))
def test_bulk(
    benchmark: BenchmarkFixture, model_folder: Path, sentences: Sentences, expected: list[Array], name: str
) -> None:
    embedder = load(model_folder, name, cache_bytes=0)
    assert not why_wrong(embedder.embed_batch(sentences), expected, PROCESSOR[name].get("precision", "fp32"))
    benchmark.extra_info["tokens"] = sum(map(len, sentences))
    benchmark(embedder.embed_batch, sentences)


@pytest.mark.benchmark(group="one sentence of 20 tokens")
@pytest.mark.parametrize("cache", list(CACHES))
@pytest.mark.parametrize("name", ["fp32", "int8", "bf16"])
def test_single(
    benchmark: BenchmarkFixture, model_folder: Path, sentences: Sentences, expected: list[Array], name: str, cache: str
) -> None:
    time_single(benchmark, load(model_folder, name, **CACHES[cache]), sentences, expected, name)


@pytest.mark.benchmark(group="one sentence of 20 tokens")
def test_single_reference(
    benchmark: BenchmarkFixture, model_folder: Path, sentences: Sentences, expected: list[Array]
) -> None:
    time_single(benchmark, load(model_folder, "reference"), sentences, expected, "reference")


def time_single(
    benchmark: BenchmarkFixture, embedder: ElmoEmbedder, sentences: Sentences, expected: list[Array], name: str
) -> None:
    k = next(k for k, sentence in enumerate(sentences) if len(sentence) >= 20)
    assert not why_wrong(
        [embedder.embed_sentence(sentences[k])], [expected[k]], PROCESSOR[name].get("precision", "fp32")
    )
    benchmark(embedder.embed_sentence, sentences[k][:20])
