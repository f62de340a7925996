"""What others read of a folder of shards without flashelmo: pyarrow always, the rest where it is installed.

`pip install datasets lancedb` and `pytest tests/test_ecosystem.py` show those that no extra has.
"""

import json
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import MODELS

from flashelmo import open_embeddings
from flashelmo.engine.arrays import Array
from flashelmo.engine.bulk.records import open_reader
from flashelmo.engine.bulk.run import embed_corpus
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.output import Output

SENTENCES = {f"id {k}": ["the", "cat", "sat", "on"][: k % 5] * (k % 3) for k in range(20)}
OUTPUTS = [
    Output(layers, dtype, pool)  # type: ignore[arg-type]
    for layers in ("all", "top")
    for pool in (None, "mean")
    for dtype in ("float32", "float16")
]
each_output = pytest.mark.parametrize("output", OUTPUTS, ids=lambda each: f"{each.layers}-{each.pool}-{each.dtype}")


@pytest.fixture(scope="module")
def embedder() -> ElmoEmbedder:
    return ElmoEmbedder(MODELS["skip"])


def shards(embedder: ElmoEmbedder, folder: Path, output: Output) -> list[str]:
    """The Parquet files of three shards."""
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in SENTENCES.items()))
    reader = open_reader(source, id_field="id")
    embed_corpus(embedder, reader, folder / "out", output, format="parquet", shard_records=8)
    found = sorted(glob(f"{folder}/out/*.parquet"))
    assert len(found) == 3
    return found


def check_rows(rows: list[dict[str, Any]], folder: Path, output: Output) -> None:
    """Rows as Python's lists are the vectors that `open_embeddings` gives: a row a token, or one a record."""
    vectors = open_embeddings(folder / "out")
    assert [row["id"] for row in rows] == list(SENTENCES) == list(vectors.ids())
    for number, (row, tokens) in enumerate(zip(rows, SENTENCES.values(), strict=True)):
        expected = vectors[row["id"]]
        if not output.single and not output.pool:
            expected = expected.transpose(1, 0, 2)
        found = np.array(row["values"], output.dtype)
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)
        assert (row["record"], row["n_tokens"], row["tokens"]) == (number, len(tokens), tokens)


@each_output
def test_pyarrow(embedder: ElmoEmbedder, tmp_path: Path, output: Output) -> None:
    files = shards(embedder, tmp_path, output)
    check_rows(pq.read_table(files).to_pylist(), tmp_path, output)
    vector = pa.list_(pa.from_numpy_dtype(output.dtype), 8)
    row = vector if output.single else pa.list_(vector, 3)
    found = pq.read_schema(files[0]).field("values").type
    assert found == row if output.pool else found.value_type == row


@each_output
def test_duckdb(embedder: ElmoEmbedder, tmp_path: Path, output: Output) -> None:
    duckdb = pytest.importorskip("duckdb")
    shards(embedder, tmp_path, output)
    found = duckdb.sql(f"SELECT * FROM '{tmp_path}/out/*.parquet' ORDER BY record")
    check_rows([dict(zip(found.columns, row, strict=True)) for row in found.fetchall()], tmp_path, output)


@each_output
def test_datasets(embedder: ElmoEmbedder, tmp_path: Path, output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    files = shards(embedder, tmp_path, output)
    found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    check_rows(list(found), tmp_path, output)


def nearest(vectors: Array, query: Array) -> list[int]:
    """Numbers of the two records that are closest by cosine, of which no two are equally close."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return np.argsort(-(vectors @ query) / np.where(lengths > 0, lengths, np.inf), kind="stable")[:2].tolist()


DISTINCT = {"a": ["the", "cat"], "b": ["sat"], "c": ["on", "the", "the"], "d": ["cat", "sat", "on"]}


@pytest.fixture
def means(embedder: ElmoEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Array]:
    """Files of one mean a record, and the means."""
    distinct = {f"{key} {k}": [*text, str(k)] for k in range(5) for key, text in DISTINCT.items()}
    monkeypatch.setattr(f"{__name__}.SENTENCES", distinct)
    return shards(embedder, tmp_path, Output("top", pool="mean")), np.stack(list(open_embeddings(tmp_path / "out")))


def test_faiss_is_filled_from_what_open_embeddings_gives(means: tuple[list[str], Array], tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    index, vectors = faiss.IndexFlatIP(8), means[1]
    for start in range(0, 20, 8):
        rows = np.stack(open_embeddings(tmp_path / "out")[start : start + 8])
        faiss.normalize_L2(rows)
        index.add(rows)
    queries = vectors[[3, 7]] + 0.01
    faiss.normalize_L2(queries)
    assert index.search(queries, 2)[1].tolist() == [nearest(vectors, query) for query in queries]


def test_lancedb_is_filled_from_the_files(means: tuple[list[str], Array], tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    (files, vectors), query = means, means[1][3] + 0.01
    table = lancedb.connect(tmp_path / "lance").create_table("vectors", pq.read_table(files))
    found = table.search(query, vector_column_name="values").distance_type("cosine").limit(2).to_list()
    assert [row["record"] for row in found] == nearest(vectors, query)
