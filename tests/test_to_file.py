"""Records of any format into single files under their own ids, and into the files of SeqVec's pipeline."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from tiny_models import BILM, MODELS, random_model

from flashelmo.cli import main
from flashelmo.engine.arrays import Array
from flashelmo.engine.bulk import to_file
from flashelmo.engine.bulk.records import open_reader
from flashelmo.engine.bulk.to_file import embed_records
from flashelmo.engine.embed_file import Summary, embed_file
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.bilm import write_bilm
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Output
from flashelmo.engine.precision import tolerance
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.sinks import open_sink
from flashelmo.engine.sinks.seqvec import MAPPING, PROTEINS, RESIDUES, SeqVecSink, open_seqvec

FILES = [RESIDUES, MAPPING, PROTEINS]  # as they are sorted
FASTA = """>sp|P12345|AATM_RABIT Aspartate aminotransferase
SSWWAHVEMG
ppd
>sp|Q9/X|Q9 with a slash and rare residues
MUZOBK
>empty

>sp|P12345|AATM_RABIT again
SSWWAHVEMGPPD
"""
IDS = ["sp|P12345|AATM_RABIT", "sp|Q9/X|Q9", "empty", "sp|P12345|AATM_RABIT"]
PROTEIN_TOKENS = [list("SSWWAHVEMGPPD"), list("MXXXXK"), [], list("SSWWAHVEMGPPD")]
SEQVEC = replace(  # its shape: 3 layers, a character a token, seven widths of convolutions
    BILM,
    cell_size=16,
    projection_size=8,
    cell_clip=3.0,
    projection_clip=3.0,
    filters=tuple((width, 2) for width in range(1, 8)),
    max_characters=50,
)

Run = Callable[..., str]


@pytest.fixture(scope="module")
def embedder() -> ElmoEmbedder:
    return ElmoEmbedder(MODELS["skip"])


def jsonl(folder: Path, ids: list[Any], text: str = "the cat") -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"id": each, "text": text}) + "\n" for each in ids))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(embedder: ElmoEmbedder, source: Path, target: Path, **options: Any) -> dict[str, str | None]:
    """A file's keys, each with what its attribute says; of .npz without."""
    with open_sink(target, Output("top"), **options) as sink:
        embed_records(embedder, open_reader(source, id_field="id"), sink)
    if target.suffix == ".npz":
        with np.load(target) as archive:
            return dict.fromkeys(archive)
    with h5py.File(target) as file:
        return {key: each.attrs.get("original_id") for key, each in file.items()}


def test_ids_are_keys(embedder: ElmoEmbedder, tmp_path: Path) -> None:
    source = jsonl(tmp_path, ["é 犬", 7, "sentence_to_index", "a" * 5000])
    wanted = {"é 犬", "7", "sentence_to_index", "a" * 5000}
    assert write(embedder, source, tmp_path / "v.npz") == dict.fromkeys(wanted)
    assert write(embedder, source, tmp_path / "v.h5") == dict.fromkeys(wanted)


def test_ids_that_hdf5_cannot_take(embedder: ElmoEmbedder, tmp_path: Path) -> None:
    """A key that is not the id has that as an attribute; a record without one has its number."""
    source = jsonl(tmp_path, ["a/b", ".", "n\0ul", "", "/"])
    wanted = {"a_b": "a/b", "_": ".", "n_ul": "n\ufffdul", "3": None, "_#2": "/"}
    assert write(embedder, source, tmp_path / "v.h5") == wanted
    assert set(write(embedder, source, tmp_path / "v.npz")) == {"a/b", ".", "n_ul", "3", "/"}


@pytest.mark.parametrize("name", ["v.h5", "v.npz"])
def test_records_of_one_id(embedder: ElmoEmbedder, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    source = jsonl(tmp_path, ["a", "b", "a", "a#2", "a"])
    found = write(embedder, source, tmp_path / name)
    assert set(found) == {"a", "b", "a#2", "a#2#2", "a#3"}
    assert name == "v.npz" or [found[key] for key in ("a#2", "a#2#2", "a#3")] == ["a", "a#2", "a"]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / name}: some records have the id of another one, as 'a'; #2 stands behind it"
    ]


@pytest.mark.parametrize(("name", "n"), [("v.npz", 70000), ("v.h5", 65520)])
def test_an_id_that_is_too_long(embedder: ElmoEmbedder, tmp_path: Path, name: str, n: int) -> None:
    source = jsonl(tmp_path, ["b", "a" * n])
    with pytest.raises(FlashElmoError, match=f"{name}: line 2: the key 'a{{60}}' is taken already, or no key of .*t$"):
        write(embedder, source, tmp_path / name)
    assert names(tmp_path) == ["in.jsonl"]


def test_a_group_of_a_sentence_that_hdf5_cannot_hold(embedder: ElmoEmbedder, tmp_path: Path) -> None:
    source = jsonl(tmp_path, ["a"], "1/" + "a" * 65_520 + "/" + "b" * 99)
    with pytest.raises(FlashElmoError, match=r"v\.h5: line 1: the key '1/a{58}' is taken already, or no key of this"):
        write(embedder, source, tmp_path / "v.h5", use_sentence_keys=True)


def test_numpy_finds_each_record_by_its_key(embedder: ElmoEmbedder, tmp_path: Path) -> None:
    """By `a.npy` it finds `a`, where there is one."""
    source = jsonl(tmp_path, ["a", "a.npy", "b.npy", "b"])
    assert set(write(embedder, source, tmp_path / "v.npz")) == {"a", "a.npy#2", "b.npy", "b#2"}


def test_sentences_may_be_keys_beside_ids(embedder: ElmoEmbedder, tmp_path: Path) -> None:
    source = jsonl(tmp_path, ["a"], "the cat")
    assert write(embedder, source, tmp_path / "v.h5", use_sentence_keys=True) == {"the cat": None}


@pytest.mark.parametrize("limits", [(1, 4), (3, 100), (1 << 20, 1 << 20)])
def test_records_without_ids_are_as_lines(
    embedder: ElmoEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]
) -> None:
    """Whatever the windows: the file that a text gives."""
    path = tmp_path / "text.txt"
    path.write_text("the cat sat\n\n  cat the \nsat\nthe cat\n" * 4)
    with open_sink(tmp_path / "a.h5") as sink:
        expected = embed_file(embedder, path, sink)
    monkeypatch.setattr(embedder, "window_limits", limits)
    reports = []
    with open_sink(tmp_path / "b.h5") as sink:
        found = embed_records(embedder, open_reader(path), sink, on_progress=lambda *done: reports.append(done))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert (found.sentences, found.tokens) == (expected.sentences, expected.tokens)
    assert reports == sorted(reports) and reports[-1] == pytest.approx((path.stat().st_size, found.tokens))


def test_batches_of_a_state_do_not_end_where_records_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_file, "RECORDS", 4)
    path = tmp_path / "text.txt"
    path.write_text("the cat sat\n\ncat the \nsat\nthe cat\n" * 4)
    for name in ("a.h5", "b.h5"):
        embedder = ElmoEmbedder(MODELS["skip"], stateful=True, batch_size=3)
        with open_sink(tmp_path / name) as sink:
            if name == "a.h5":
                embed_file(embedder, path, sink)
            else:
                embed_records(embedder, open_reader(path), sink)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_the_command_reads_any_input(here: Path, embedder: ElmoEmbedder, succeed: Run) -> None:
    write_native(MODELS["skip"], here / "model")
    Path("in.csv").write_text("key,text\nx,the cat\ny,sat\n")
    Path("in.txt").write_text("the\tDET\ncat\tNOUN\n\nsat\tVERB\n")
    succeed("embed", "in.csv", "a.npz", "--id-field", "key", "--model", "model", "--pool", "max")
    succeed("embed", "in.txt", "b.npz", "--input-format", "tags", "--model", "model", "--pool", "max")
    Path("json.txt").write_text('{"text": "a b"}\n')
    for output in ("lines.h5", "lines"):
        succeed("embed", "json.txt", output, "--input-format", "lines", "--model", "model")
    expected = list(embedder.embed(["the cat", "sat"], pool="max"))
    for name, keys in (("a.npz", ["x", "y"]), ("b.npz", ["0", "1", "sentence_to_index"])):
        with np.load(name) as archive:
            assert list(archive) == keys
            for key, vectors in zip(keys, expected, strict=False):
                np.testing.assert_allclose(archive[key], vectors, atol=1e-6)


def test_records_that_are_skipped(embedder: ElmoEmbedder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers are those of the input; the first of them are named."""
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "cat"}\n' + "nope\n" * 12 + '{"text": "sat"}\n')
    with open_sink(tmp_path / "v.h5", forget_sentences=True) as sink:
        summary = embed_records(embedder, open_reader(path, errors="skip"), sink)
    assert (summary.sentences, summary.skipped) == (2, 12)
    with h5py.File(tmp_path / "v.h5") as file:
        assert set(file) == {"0", "13"}
    assert len(caplog.records) == 11
    assert (
        caplog.records[0].message.startswith(f"{path}: line 2, byte ") and "it is skipped" in caplog.records[0].message
    )
    assert caplog.records[-1].message == f"{path}: 12 records were skipped, the first 10 are named"


@pytest.mark.parametrize("output", [["v.h5"], ["v.npz"], ["shards"], ["proteins", "--format", "seqvec"]])
def test_every_summary_counts_the_records_that_are_skipped(here: Path, succeed: Run, output: list[str]) -> None:
    write_native(MODELS["skip"], here / "model")
    Path("in.txt").write_bytes(b"the cat\n\xff\nsat\n\xfe\n")
    command = ["embed", "in.txt", *output, "--model", "model", "--errors", "skip", "--overwrite"]
    assert ", 2 records skipped\n" in succeed(*command)
    printed = succeed(*command, "--json")
    assert json.loads(printed[: printed.index("\n}") + 2])["skipped"] == 2
    named = [
        f"flashelmo: in.txt: line {line}, byte 1: expected UTF-8, found {byte} "
        for line, byte in ((2, "0xff"), (4, "0xfe"))
    ]
    quiet = succeed(*command, "--quiet").splitlines()
    assert len(quiet) == 2 and all(map(str.startswith, quiet, named)), quiet
    Path("in.txt").write_text("the cat\n")
    assert "skipped" not in succeed(*command)


@pytest.mark.parametrize("kind", ["text", "file", "records", "seqvec"])
def test_the_disk_is_looked_at_before_anything_is_computed(
    embedder: ElmoEmbedder, here: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """For the whole text, judged by the beginning of it: 200 sentences take 100 KB and more."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=90_000))
    monkeypatch.setattr(embedder, "window_limits", (10, 20))
    monkeypatch.setattr(to_file, "RECORDS", 10)

    def embed(output: Output) -> Summary:
        opened = open_seqvec("v", output) if kind == "seqvec" else open_sink("v", output)
        with open("text.txt", "rb") as file, opened as sink:
            if isinstance(sink, SeqVecSink) or kind == "records":
                return embed_records(embedder, open_reader("text.txt"), sink)
            return embed_file(embedder, "text.txt" if kind == "text" else file, sink)

    Path("text.txt").write_text("the cat\n" * 200)
    before = embedder.statistics.sentences
    message = r'^v: expected about (98,400|177,600) bytes of free disk, found 90,000; layers="top", dtype'
    with pytest.raises(FlashElmoError, match=message):
        embed(Output())
    assert embedder.statistics.sentences == before and names(here) == ["text.txt"]
    for output, advice in (
        (Output("top"), '; dtype="float16" and pool="mean" take less'),
        (Output(mix=[1, 2, 3], dtype="float16"), '; pool="mean" takes less'),
        (Output(1, "float16", "max"), ""),
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
        with pytest.raises(FlashElmoError, match=rf"^v: expected about [0-9,]+ bytes of free disk, found 100{advice}$"):
            embed(output)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=200_000))
    assert embed(Output("top", "float16", "mean")).sentences == 200


# --------------------------------------------------------------------------------------------------------------- SeqVec


@pytest.fixture(scope="module")
def seqvec() -> ElmoModel:
    return random_model(SEQVEC)


@pytest.fixture(scope="module")
def truth(seqvec: ElmoModel) -> list[Array]:
    """All layers [3, L, 2P] of the proteins by the reference."""
    return ReferenceRuntime(seqvec).embed_batch(PROTEIN_TOKENS)


def in_folder(here: Path, model: ElmoModel) -> None:
    (here / "proteins.fasta").write_text(FASTA)
    write_bilm(model, here / "model")


def check_proteins(path: Path, expected: list[Array], dtype: str = "float32") -> None:
    with h5py.File(path) as file:
        assert list(file) == ["0", "1", "2", "3"]
        for each, own_id, vectors in zip(file.values(), IDS, expected, strict=True):
            assert each.attrs["original_id"] == own_id
            assert each.dtype == dtype and each.shape == vectors.shape
            rtol, atol = (1e-7, tolerance("fp32")) if dtype == "float32" else (2.0**-10, 1e-3)
            np.testing.assert_allclose(each[()], vectors, rtol=rtol, atol=atol)


def test_seqvec_files_are_what_the_reference_computes(
    here: Path, seqvec: ElmoModel, truth: list[Array], succeed: Run
) -> None:
    """All layers of each residue; the mean over residues of the layers' sum; and the keys' ids."""
    in_folder(here, seqvec)
    said = succeed("embed", "proteins.fasta", "out", "--format", "seqvec", "--model", "model", "--runtime", "ort")
    n_bytes = sum(path.stat().st_size for path in (here / "out").iterdir())
    assert "4 sentences, 32 tokens" in said and f"out: {n_bytes / 1e3:,.1f} kB" in said
    assert names(here / "out") == FILES
    check_proteins(here / "out" / RESIDUES, truth)
    sums = [layers.astype(np.float64).sum(axis=0) for layers in truth]
    check_proteins(here / "out" / PROTEINS, [each.mean(axis=0) if len(each) else np.zeros(16) for each in sums])
    with open(here / "out" / MAPPING, newline="") as file:
        columns = list(zip(*csv.reader(file), strict=True))
    assert columns == [("", *"0123"), ("original_id", *IDS), ("sequence_length", "13", "6", "0", "13")]


@pytest.mark.parametrize(
    ("flags", "output", "one"),
    [
        (["--layers", "top"], Output("top"), Output("top", pool="mean")),
        (["--mix", "1,1,1", "--dtype", "float16"], Output(mix=[1, 1, 1]), Output(mix=[1, 1, 1], pool="mean")),
        (["--layers", "0,2"], Output((0, 2)), Output(mix=[1, 0, 1], pool="mean")),
        (["--pool", "mean"], None, Output(mix=[1, 1, 1], pool="mean")),
        (["--pool", "max"], None, Output(mix=[1, 1, 1], pool="max")),
        (["--pool", "max", "--layers", "2,1"], None, Output(mix=[0, 1, 1], pool="max")),
        (["--pool", "max", "--layers", "0"], None, Output(0, pool="max")),
    ],
)
def test_what_seqvec_files_keep(
    here: Path,
    seqvec: ElmoModel,
    truth: list[Array],
    succeed: Run,
    flags: list[str],
    output: Output | None,
    one: Output,
) -> None:
    in_folder(here, seqvec)
    command = ("embed", "proteins.fasta", "out", "--format", "seqvec", "--model", "model", "--quiet")
    succeed(*command)
    succeed(*command, "--overwrite", *flags)  # which leaves no file of the run before
    assert names(here / "out") == (FILES if output else FILES[1:])
    dtype = "float16" if "float16" in flags else "float32"
    check_proteins(here / "out" / PROTEINS, [one.choose(layers) for layers in truth], dtype)
    if output is not None:
        check_proteins(here / "out" / RESIDUES, [output.choose(layers) for layers in truth], dtype)


def test_what_the_command_seqvec_writes(here: Path, seqvec: ElmoModel, truth: list[Array], succeed: Run) -> None:
    """The sum of the layers under the header's part that --id names; and a mean with --protein, in .npz."""
    in_folder(here, seqvec)
    command = ("embed", "proteins.fasta", "--model", "model", "--id-field", "1", "--errors", "skip", "--mix", "1,1,1")
    succeed(*command, "v.h5")
    succeed(*command, "v.npz", "--pool", "mean")
    with h5py.File(here / "v.h5") as file, np.load(here / "v.npz") as archive:
        assert set(file) == {"P12345", "Q9_X", "P12345#2"} and set(archive) == {"P12345", "Q9/X", "P12345#2"}
        for key, name, layers in (("P12345", "P12345", truth[0]), ("Q9_X", "Q9/X", truth[1])):
            np.testing.assert_allclose(file[key][()], layers.sum(axis=0), atol=tolerance("fp32"))
            np.testing.assert_allclose(archive[name], layers.sum(axis=0).mean(axis=0), atol=tolerance("fp32"))


def test_seqvec_folders_that_cannot_be_written(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "proteins.fasta").write_text(FASTA)
    (here / "old").mkdir()
    (here / "old" / MAPPING).touch()
    (here / "shards").mkdir()
    (here / "shards" / "run.json").touch()
    for arguments, message in (
        (["v.h5"], "v.h5: expected a folder's name for SeqVec's files, found a file's"),
        (["shards"], "shards: expected a folder for SeqVec's files, found a folder of shards"),
        (["shards", "--overwrite"], "shards: expected a folder for SeqVec's files, found a folder of shards"),
        (["proteins.fasta"], "proteins.fasta: is the input text itself"),
        (["old"], f"old/{MAPPING}: exists already; --overwrite replaces it"),
        (["absent/out"], "absent/out: cannot write: No such file or directory"),
        (["out", "--use-sentence-keys"], "--use-sentence-keys: requires a single file as output"),
        (
            ["out", "--resume"],
            "--resume: expected a folder of shards as output (no suffix,",
        ),
        (["out"], "absent: no such file or folder"),  # the model, whereupon no folder is left
    ):
        command = ["embed", "proteins.fasta", *arguments, "--format", "seqvec", "--model", "absent"]
        assert main(command) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"flashelmo: {message}")
        assert names(here) == ["old", "proteins.fasta", "shards"] and names(here / "old") == [MAPPING]
        assert names(here / "shards") == ["run.json"]


def test_seqvec_files_are_whole_or_not_there(embedder: ElmoEmbedder, here: Path) -> None:
    (here / "proteins.fasta").write_text(FASTA + ">last\nAC1\n")
    with pytest.raises(FlashElmoError, match="expected a residue"), open_seqvec("out") as sink:
        embed_records(embedder, open_reader("proteins.fasta"), sink)
    assert names(here) == ["proteins.fasta"]
    (here / "proteins.fasta").write_text(FASTA)
    with (
        pytest.raises(FlashElmoError, match=r"out/.*: exists already|out: exists already"),
        open_seqvec("out") as late,
        open_seqvec("out") as early,
    ):
        embed_records(embedder, open_reader("proteins.fasta"), early)
        embed_records(embedder, open_reader("proteins.fasta"), late)
    assert names(here / "out") == FILES
