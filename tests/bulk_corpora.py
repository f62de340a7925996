"""Small corpora for tests of several processes, and what one process makes of them."""

from pathlib import Path

from tiny_models import MODELS

from flashelmo.engine.bulk.run import embed_corpus
from flashelmo.engine.bulk.units import Corpus
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.output import Output

LINES = ["the cat sat", "cat", "", "the cat sat on a mat", "incomprehensibilities é", "sat cat the cat"] * 4
OPTIONS = {"device": "cpu", "threads": 1}


def make_corpus(folder: Path, times: int = 1, shard_records: int = 5) -> Corpus:
    """Lines and a model under a folder, to be written to `out` there, which does not exist."""
    write_native(MODELS["skip"], folder / "model")
    (folder / "text").write_text("\n".join(LINES * times) + "\n", encoding="utf-8")
    out = folder / "out"
    return Corpus(
        folder / "model", str(folder / "text"), out, Output("top"), shard_records=shard_records, options=OPTIONS
    )


def of_one_process(corpus: Corpus) -> dict[str, bytes]:
    """The files that one process writes, in another folder."""
    embedder = ElmoEmbedder.load(corpus.model, device="cpu", threads=1)
    folder = corpus.folder.with_name("one")
    embed_corpus(embedder, corpus.open(), folder, corpus.output, shard_records=corpus.shard_records)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".lock")}
