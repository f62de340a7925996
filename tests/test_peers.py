"""The comparison with other ELMo programs, with a peer that is made up; tests/peers.py runs those that are real."""

import sys
from pathlib import Path

import golden_outputs
import numpy as np
import peers
import pytest
from documents import without_fences

from flashelmo.benchmarks.results import Results

PEER = """
import h5py
from flashelmo import ElmoEmbedder

def dump_bilm_embeddings(vocabulary, text, options, weights, out):
    embedder = ElmoEmbedder(options, weights, stateful=True)
    with open(text, encoding="utf-8") as lines, h5py.File(out, "w") as file:
        for i, line in enumerate(lines):
            file[str(i)] = embedder.embed_sentence(line.split()) + (2e-5 if i == 3 else 0)
"""

MANYLANGS = """
from flashelmo import ElmoEmbedder

class Embedder:
    def __init__(self, folder):
        self.embedder = ElmoEmbedder.load(folder, stateful=True)

    def sents2elmo(self, sentences, output_layer):
        return self.embedder.embed_batch(sentences)
"""


def test_what_a_peer_computes_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elmoformanylangs.py").write_text(MANYLANGS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    case = golden_outputs.Case("elmoformanylangs", "manylangs")
    kept, about = case.outputs(), golden_outputs.made()["elmoformanylangs"]["models"]
    for name, path in (("FOLDER", tmp_path / "golden"), ("MADE", tmp_path / "golden" / "made.json")):
        monkeypatch.setattr(golden_outputs, name, path)
    monkeypatch.setattr(golden_outputs, "CASES", [case])
    assert peers.main(["--write-golden", "--python", f"elmoformanylangs={sys.executable}"]) == 0
    made = golden_outputs.made()["elmoformanylangs"]
    assert made["models"] == {"manylangs": about["manylangs"]} and f"numpy {np.__version__}" in made["versions"]
    found = case.outputs()
    assert found.keys() == kept.keys()
    assert all(peers.difference(kept[call], found[call]) < peers.BOUND for call in kept)


def test_only_some_peers_have_outputs_that_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.main(["--write-golden", "--python", "flair=python"])
    assert "expected PEER=PYTHON of allennlp, bilm, elmoformanylangs, found 'flair'" in capsys.readouterr().err


def test_a_peer_that_differs_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bilm.py").write_text(PEER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(peers, "GOLDEN", tmp_path / "absent")
    job = peers.job_of("bilm", tmp_path)._replace(sentences=[["the", "cat"], ["é"], ["cat"] * 5, ["sat"]])
    monkeypatch.setattr(peers, "job_of", lambda peer, folder: job)
    assert peers.main(["--python", f"bilm={sys.executable}", "--out", str(tmp_path / "out.json")]) == 1
    row, absent = Results.read(tmp_path / "out.json").rows
    assert row.failed and row.median == pytest.approx(2e-5, rel=0.1)
    assert (row.name, row.model, absent.name) == ("bilm-tf", "4 sentences, 9 tokens", "TensorFlow Hub")
    assert "bilm-tf: dump_bilm_embeddings" in capsys.readouterr().out


def test_golden_outputs_are_compared(golden: Path) -> None:
    rows = list(peers.compare_golden())
    assert len(rows) == 4 and all(row.median and row.median < peers.BOUND for row in rows)


def test_what_cannot_be_compared_is_no_agreement() -> None:
    one, other = [np.zeros((3, 2, 4)), np.ones((3, 1, 4))], [np.zeros((3, 2, 4)), np.ones((3, 1, 4)) + 1e-6]
    assert peers.difference(one, other) == pytest.approx(1e-6)
    for theirs in (one[:1], one[::-1], [one[0], one[1] * np.nan]):
        assert peers.difference(theirs, other) == float("inf")
        assert peers.row("a", peers.Call("", "b", "c"), theirs, other).failed


def test_the_committed_comparison_has_every_peer_within_the_bound(root: Path) -> None:
    (path,) = (root / "benchmarks" / "results" / "peers").glob("*.json")
    rows = Results.read(path).rows
    calls = [(peers.LABELS.get(peer, peer), call) for peer, calls in peers.CALLS.items() for call in calls]
    found = {(row.name, row.detail): row for row in rows}
    for name, call in calls:
        row = found[name, peers.detail(call)]
        assert call.why or (row.median is not None and row.median < peers.BOUND), row
    page = without_fences((root / "docs" / "coming-from.md").read_text(encoding="utf-8"))
    assert [name for name, _ in calls if name not in page] == []
