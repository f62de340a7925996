"""Records into every sink, and read back: the same vectors under the records' own ids, whatever is kept of them."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_models import MODELS

from flashelmo.engine.arrays import Array
from flashelmo.engine.bulk.embeddings import open_embeddings
from flashelmo.engine.bulk.records import open_reader
from flashelmo.engine.bulk.run import embed_corpus
from flashelmo.engine.bulk.to_file import embed_records
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.output import Output
from flashelmo.engine.sinks import open_sink
from flashelmo.engine.sinks.seqvec import PROTEINS, RESIDUES, open_seqvec

SENTENCES = {"one": ["the", "cat", "sat"], "two": ["cat"], "three": [], "four": ["sat", "naïve", "the", "cat"]}
MIX = [0.5, -0.25, 1.0]
OUTPUTS = [
    Output(layers, dtype, pool, mix)
    for layers, mix in (("all", None), ("top", None), ("average", MIX))
    for pool in (None, "mean", "max")
    for dtype in ("float32", "float16")
]


@pytest.fixture(scope="module")
def embedder() -> ElmoEmbedder:
    made = ElmoEmbedder(MODELS["skip"])
    list(made.embed(SENTENCES.values()))  # a word's vector may differ in the last bit by the words it was computed with
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "records.jsonl"
    path.write_text("".join(json.dumps({"key": key, "text": text}) + "\n" for key, text in SENTENCES.items()))
    return path


def read_hdf5(path: Path) -> dict[str, Array]:
    """By the ids of records."""
    with h5py.File(path) as file:
        return {str(each.attrs.get("original_id", key)): each[()] for key, each in file.items()}


def written(name: str, embedder: ElmoEmbedder, source: Path, folder: Path, output: Output) -> dict[str, Array]:
    """What a sink holds, by the ids of records."""
    reader = open_reader(source, id_field="key")
    if name in ("native", "parquet"):
        embed_corpus(embedder, reader, folder / "out", output, format=name)  # type: ignore[arg-type]
        found = open_embeddings(folder / "out")
        return {each: found[each] for each in found.ids()}
    if name == "seqvec":
        with open_seqvec(folder / "out", output) as seqvec:
            embed_records(embedder, reader, seqvec)
        return read_hdf5(folder / "out" / (PROTEINS if output.pool else RESIDUES))
    path = folder / f"out{name}"
    with open_sink(path, output) as sink:
        embed_records(embedder, reader, sink)
    if name == ".h5":
        return read_hdf5(path)
    with np.load(path) as archive:
        return dict(archive)


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: f"{output.layers}-{output.pool}-{output.dtype}")
@pytest.mark.parametrize("name", ["native", "parquet", ".h5", ".npz", "seqvec"])
def test_what_is_read_back(name: str, output: Output, embedder: ElmoEmbedder, source: Path, tmp_path: Path) -> None:
    found = written(name, embedder, source, tmp_path, output)
    assert list(found) == (list(SENTENCES) if name not in (".h5",) else sorted(SENTENCES))
    kept = output
    if name == "seqvec" and output.pool and output.layers == "all":
        kept = Output("average", output.dtype, output.pool, [1.0, 1.0, 1.0])  # a protein has one vector
    expected = embedder.embed(SENTENCES.values(), layers=kept.layers, pool=kept.pool, mix=kept.mix)
    for key, vectors in zip(SENTENCES, expected, strict=True):
        assert found[key].dtype == output.dtype and found[key].shape == vectors.shape
        np.testing.assert_array_equal(found[key], vectors.astype(output.dtype))
