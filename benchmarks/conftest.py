"""What the pytest-benchmark suites share: a random model of the small published size, and generated text."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashelmo.benchmarks.text import Sentences, generate, write_sentences
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.initialize import random_model

TOKENS = 2_000
HOST_TOKENS = 100_000


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random small model in the native format."""
    folder = tmp_path_factory.mktemp("model") / "small"
    write_native(random_model("small", seed=0), folder)
    return folder


@pytest.fixture(scope="session")
def sentences() -> Sentences:
    """Some sentences."""
    return generate(TOKENS)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger text, one sentence a line."""
    return write_sentences(tmp_path_factory.mktemp("text") / "text.txt", generate(HOST_TOKENS))
