"""The engine on the card against vectors that the published implementations computed, in float32.

The folder's README says what its models and files are. Without the folder there are no checks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.benchmarks.gpu.accuracy import Check, LayerError, compare, one_vector
from flashelmo.benchmarks.gpu.subject import Place, Subject
from flashelmo.benchmarks.text import REAL_TEXT
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.model.checkpoints import load_model

GOLDEN = REAL_TEXT.parents[1] / "golden"  # beside the checkout
PUBLISHED = 1e-5  # largest absolute difference: 24 bits, published vectors are float32 themselves
PRECISION = "fp32"


def golden_checks(folder: Path, place: Place, make: Callable[..., Any], cuda: Any = None) -> Iterator[Check]:
    """From a fresh state, and with the state carried from batch to batch.

    Args:
        make, cuda: as for `Subject`.
    """

    def check(model: str, name: str, errors: Callable[[Subject, Path], list[LayerError]]) -> Check:
        def run() -> list[LayerError]:
            subject = Subject(model, load_model(folder / model), place, make, cuda)
            found = errors(subject, folder / model)
            return [error._replace(absolute_bound=PUBLISHED) for error in found]

        return Check(model, name, PRECISION, run)

    yield check("bilm_skip", "published", _lines)
    yield check("manylangs", "published", _tokens)
    yield check("bilm_skip", "published, stateful", lambda *given: _streams((0, 1), *given))
    yield check("bilm_noskip", "published, stateful", lambda *given: _streams((0,), *given))


def _lines(subject: Subject, folder: Path) -> list[LayerError]:
    sentences = [line.split() for stream in _stored(folder) for line in stream]
    return _fresh(subject, sentences, folder / "expected_stateless.hdf5")


def _tokens(subject: Subject, folder: Path) -> list[LayerError]:
    return _fresh(subject, _stored(folder), folder / "expected_layers.hdf5")


def _fresh(subject: Subject, sentences: list[list[str]], path: Path) -> list[LayerError]:
    """The first sentences, as many as have published vectors."""
    expected = _vectors(path)
    found = list(subject.embedder(PRECISION).embed(sentences[: len(expected)]))
    return compare(found, expected, PRECISION)


def _streams(published: tuple[int, ...], subject: Subject, folder: Path) -> list[LayerError]:
    """TensorFlow's bilm ran sentence i of all streams as batch i, and carried each row's state on."""
    streams = _stored(folder)
    lines = [stream[i].split() for i in range(len(streams[0])) for stream in streams]
    found = list(subject.embedder(PRECISION, stateful=True, batch_size=len(streams)).embed(lines))
    errors = []
    for stream in published:
        expected = [np.concatenate(list(both), axis=-1) for both in _vectors(folder / f"lm_embeddings_{stream}.hdf5")]
        ours = [vectors[-1] for vectors in found[stream :: len(streams)]]
        errors += one_vector(ours, expected, PRECISION, f"top layer, stream {stream}", subject.model.config.n_layers)
    return errors


def _stored(folder: Path) -> Any:
    return json.loads((folder / "sentences.json").read_text(encoding="utf-8"))


def _vectors(path: Path) -> list[Array]:
    """Of every sentence, by its number."""
    import h5py  # which a machine with a card may lack, as it may the files

    with h5py.File(path) as stored:
        return [np.asarray(stored[str(k)]) for k in range(len(stored))]
