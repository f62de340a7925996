"""Other ELMo programs beside flashelmo: the largest difference of their vectors, on the same weights.

    python tests/peers.py --python allennlp=ENV/bin/python --python bilm=ENV/bin/python … [--out FILE.json]
    python tests/peers.py --python allennlp=ENV/bin/python … --write-golden

Each peer's own code runs in an environment of its own (`tests/peer_worker.py` says which); flashelmo's side is what
docs/coming-from.md has in its place. The weights are those of the model in the package, written as bilm-tf
writes them; ELMoForManyLangs has the golden model. What published implementations left in `../shared/data/golden` is
compared too. The exit status is 1 where a difference is not below 1e-5; `python -m benchmarks report` makes the table.
With `--write-golden` nothing is compared: what the peers compute of small models is kept in `tests/golden`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import golden_outputs
import h5py
import numpy as np
from peer_runs import Job, Vectors, run_peer, versions

from flashelmo import Elmo, batch_to_ids
from flashelmo.benchmarks.results import FAILED, Results, Row, new_results
from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.bilm import write_bilm
from flashelmo.engine.model.named.locate import model_path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT.parent / "shared" / "data" / "golden"
GOLDEN_PEERS = ("allennlp", "bilm", "elmoformanylangs")
BOUND = 1e-5
SECTION, UNIT = "peers", "largest difference"
# Characters of one to four bytes, words longer than the 50 ids that a word has, and a sentence of one word.
ODD = ["Zoë ate naïve crêpes , 日本語 😀 .", f"{'long' * 20} words {'é' * 40} are cut", "Adam"]
PROTEINS = ["SEQWENCE", "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "M", "GAVLIPFMWXU"]
MIX = [0.2, 0.5, -0.3]
LABELS = {"bilm": "bilm-tf", "elmoformanylangs": "ELMoForManyLangs", "allennlp": "AllenNLP", "bio_embeddings": "SeqVec"}
PADDED = "its mean counts the padding of shorter sentences"
NOT_HAD = {"TensorFlow Hub": "its checkpoint comes from tfhub.dev alone, which the machine did not reach"}


class Call(NamedTuple):
    """A peer's call.

    Attributes:
        name: that the worker gives it.
        old, new: what it is called here, and what stands in its place.
        why: the reason of a larger difference, where there is one.
    """

    name: str
    old: str
    new: str
    why: str = ""


def embed(job: Job) -> dict[str, Vectors]:
    """What flashelmo computes of a job, by the text of the call."""
    sentences, one, batches, command, warm, greeted = job.sentences, *(job.load(stateful=True) for _ in range(5))
    warm.embed_batch(sentences)
    greeted.embed_batch([["hello"]])
    layers = job.load().embed_batch(sentences)
    found: dict[str, Vectors] = {
        "embed": layers,
        "stateful: embed_sentence": [one.embed_sentence(sentence) for sentence in sentences],
        "stateful: embed_sentences": list(batches.embed_sentences(sentences, batch_size=8)),
        "stateful: embed_batch of each": [command.embed_batch([sentence])[0] for sentence in sentences],
        "stateful, the second time": warm.embed_batch(sentences),
        'embed(layers="average")': list(job.load().embed(sentences, layers="average")),
        'embed(layers="top")': list(job.load().embed(sentences, layers="top")),
        "encode(normalize_embeddings=True)": list(job.load().encode(sentences, normalize_embeddings=True)),
        "embed, layers side by side": side_by_side(layers),
        'stateful: embed_batch, after "hello"': side_by_side(greeted.embed_batch(sentences)),
        'embed(mix=[1, 1, 1], pool="mean")': list(job.load().embed(sentences, mix=[1, 1, 1], pool="mean")),
    }
    if (job.folder / "options.json").is_file():
        files = job.folder / "options.json", job.folder / "weights.hdf5"
        module = Elmo(*files, 1, dropout=0.0, scalar_mix_parameters=MIX).eval()
        mixed = module(batch_to_ids(sentences))["elmo_representations"][0].detach().numpy()
        found["Elmo"] = [row[: len(sentence)] for row, sentence in zip(mixed, sentences, strict=True)]
    return found


CALLS: Mapping[str, Sequence[Call]] = {
    "allennlp": (
        Call("first batch", "embed_batch", "embed"),
        Call("embed_sentence", "embed_sentence, one after the other", "stateful: embed_sentence"),
        Call("embed_sentences", "embed_sentences(batch_size=8)", "stateful: embed_sentences"),
        Call("Elmo", "Elmo", "Elmo"),
    ),
    "bilm": (Call("dump_bilm_embeddings", "dump_bilm_embeddings", "stateful: embed_batch of each"),),
    "simple_elmo": (
        Call("all", 'get_elmo_vectors(layers="all", warmup=False)', "embed"),
        Call("average", "get_elmo_vectors(warmup=False)", 'embed(layers="average")'),
        Call("top", 'get_elmo_vectors(layers="top", warmup=False)', 'embed(layers="top")'),
        Call("a sentence", "get_elmo_vector_average(warmup=False) of each", "encode(normalize_embeddings=True)"),
        Call("after a warm-up", 'get_elmo_vectors(layers="all")', "stateful, the second time"),
        Call("sentences", "get_elmo_vector_average(warmup=False) of all", "encode(normalize_embeddings=True)", PADDED),
    ),
    "bio_embeddings": (
        Call("embed_many", "embed_many, the first batch", "embed"),
        Call("reduce_per_protein", "reduce_per_protein", 'embed(mix=[1, 1, 1], pool="mean")'),
        Call("embed", "embed, one after the other", "stateful: embed_sentence"),
    ),
    "flair": (
        Call("fresh", "ELMoEmbeddings, its state reset", "embed, layers side by side"),
        Call("carried", "ELMoEmbeddings", 'stateful: embed_batch, after "hello"'),
    ),
    "elmoformanylangs": (Call("sents2elmo", "sents2elmo(output_layer=-2)", "embed"),),
}


def side_by_side(sentences: Vectors) -> Vectors:
    """[L, T, 2P] as [T, L * 2P]."""
    return [np.concatenate(list(each), axis=-1) for each in sentences]


def job_of(peer: str, folder: Path) -> Job:
    """What a peer is compared on; the model is written into the folder, if it is not there."""
    if peer == "elmoformanylangs":
        return Job(GOLDEN / "manylangs", json.loads((GOLDEN / "manylangs" / "sentences.json").read_text("utf-8")))
    if not (folder / "tiny").is_dir():
        write_bilm(load_model(model_path("model", None)), folder / "tiny")
    if peer == "bio_embeddings":
        return Job(folder / "tiny", [list(protein) for protein in PROTEINS])
    text = (ROOT / "examples" / "genesis.txt").read_text(encoding="utf-8").splitlines()
    return Job(folder / "tiny", [line.split() for line in [*text[:24], *ODD]])


def difference(theirs: Vectors, ours: Vectors) -> float:
    """The largest of any number; infinite where they are not as many, of other shapes, or none."""
    if [each.shape for each in theirs] != [each.shape for each in ours]:
        return float("inf")
    apart = [np.abs(a - b).max() for a, b in zip(theirs, ours, strict=True) if a.size]
    return float(np.max(apart)) if np.isfinite(apart).all() and apart else float("inf")


def detail(call: Call) -> str:
    """Both calls in one text."""
    return call.old if call.new == call.old else f"{call.old} ↔ {call.new}"


def row(name: str, call: Call, theirs: Vectors, ours: Vectors) -> Row:
    """A line of the results."""
    found = difference(theirs, ours)
    wrong = call.why if found < BOUND or call.why else f"{FAILED}: expected less than {BOUND:g}"
    n_tokens = sum(each.shape[-2] for each in theirs if each.ndim > 1)
    size = f"{len(theirs)} sentences, {n_tokens} tokens" if n_tokens else f"{len(theirs)} sentences"
    made = Row(SECTION, size, name, UNIT, detail(call))
    if not np.isfinite(found):
        return replace(made, note=f"{FAILED}: other shapes, or no numbers")
    return replace(made, note=wrong).with_samples([found])


def compare(peer: str, python: str, folder: Path) -> Iterator[Row]:
    """A row for each call of a peer."""
    job = job_of(peer, folder)
    theirs, ours = run_peer(peer, python, job, folder), embed(job)
    for call in CALLS[peer]:
        yield row(LABELS.get(peer, peer), call, theirs[call.name], ours[call.new])


def compare_golden() -> Iterator[Row]:
    """A row for each golden output; nothing where they are not there."""
    for name in ("bilm_skip", "bilm_noskip"):
        streams = [list(map(str.split, each)) for each in json.loads((GOLDEN / name / "sentences.json").read_text())]
        embedder = Job(GOLDEN / name, []).load(stateful=True)
        batches = [embedder.embed_batch(list(batch)) for batch in zip(*streams, strict=True)]
        for path in sorted((GOLDEN / name).glob("lm_embeddings_*.hdf5")):
            stream = int(path.stem.rpartition("_")[2])
            ours = [np.stack(np.split(batch[stream][-1], 2, axis=-1)) for batch in batches]
            call = Call("", f"golden {name}, stream {stream}, top layer", "stateful: embed_batch")
            yield row("bilm-tf (published)", call, read_golden(path), ours)
    sentences = json.loads((GOLDEN / "manylangs" / "sentences.json").read_text("utf-8"))
    ours = Job(GOLDEN / "manylangs", []).load().embed_batch(sentences)
    theirs = read_golden(GOLDEN / "manylangs" / "expected_layers.hdf5")
    yield row("ELMoForManyLangs (published)", Call("", "golden manylangs", "embed"), theirs, ours)


def read_golden(path: Path) -> Vectors:
    """The vectors of a file, in the order of their sentences."""
    with h5py.File(path) as file:
        return [file[str(i)][()] for i in range(len(file))]


def run(pythons: Mapping[str, str]) -> Results:
    """The rows of every peer that there is an interpreter for, and of the golden outputs."""
    found = new_results(Settings(), SECTION)
    rows = list(compare_golden()) if GOLDEN.is_dir() else []
    for peer, python in pythons.items():
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(peer, python, Path(folder))
        found.versions[LABELS.get(peer, peer)] = versions(peer, python)
    rows += [Row(SECTION, name=name, unit=UNIT, note=why) for name, why in NOT_HAD.items()]
    return replace(found, settings={"suite": SECTION, "model": "tiny"}, rows=rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PYTHON", help=f"of {', '.join(CALLS)}")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--write-golden", action="store_true", help=f"keep outputs of {', '.join(GOLDEN_PEERS)}")
    given = parser.parse_args(arguments)
    pythons = dict(each.partition("=")[::2] for each in given.python)
    peers = GOLDEN_PEERS if given.write_golden else tuple(CALLS)
    if unknown := sorted(set(pythons) - set(peers)):
        parser.error(f"--python: expected PEER=PYTHON of {', '.join(peers)}, found {unknown[0]!r}")
    if given.write_golden:
        golden_outputs.write(pythons)
        return 0
    results = run(pythons)
    for each in results.rows:
        print(f"{each.name}: {each.detail or 'none'}: {each.median or ''} {each.note}")
    if given.out is not None:
        results.write(given.out)
    return int(any(each.failed for each in results.rows))


if __name__ == "__main__":
    sys.exit(main())
