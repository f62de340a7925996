"""Words to character ids and to vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flashelmo.benchmarks.text import spell
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.initialize import preset_config
from flashelmo.engine.settings import RuntimeName
from flashelmo.engine.text.characters import BYTES, WordEncoder, batch_to_ids

WORDS = [spell(rank) for rank in range(10_000)]


def ids_of(word: str) -> list[int]:
    """One word's ids, as plain as can be."""
    ids = [BYTES.begin_word, *(byte + 1 for byte in word.encode()), BYTES.end_word]
    return ids + [BYTES.padding] * (50 - len(ids))


@pytest.mark.benchmark(group="character ids of 10,000 words")
def test_character_ids(benchmark: BenchmarkFixture) -> None:
    encoder = WordEncoder(preset_config("small"), None)
    found = encoder.character_ids(WORDS)
    assert found is not None
    np.testing.assert_array_equal(found, [ids_of(word) for word in WORDS])
    benchmark(encoder.character_ids, WORDS)


@pytest.mark.benchmark(group="character ids of 10,000 words")
def test_batch_to_ids(benchmark: BenchmarkFixture) -> None:
    batch = [WORDS[k : k + 20] for k in range(0, len(WORDS), 20)]
    np.testing.assert_array_equal(batch_to_ids(batch).flatten(0, 1), [ids_of(word) for word in WORDS])
    benchmark(batch_to_ids, batch)


@pytest.mark.benchmark(group="vectors of 500 distinct words")
@pytest.mark.parametrize("runtime", ["reference", "ort", "openvino"])
def test_word_vectors(benchmark: BenchmarkFixture, model_folder: Path, runtime: RuntimeName) -> None:
    # sentences of one word: their characters cost far more than their two LSTM steps
    batch = [[word] for word in WORDS[:500]]
    expected = ElmoEmbedder.load(model_folder, runtime="reference").embed_batch(batch)
    embedder = ElmoEmbedder.load(model_folder, runtime=runtime, cache_bytes=0)
    for a, b in zip(embedder.embed_batch(batch), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    benchmark(embedder.embed_batch, batch)
