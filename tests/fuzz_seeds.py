"""Small files of every kind that the package reads, as `{path: bytes}`; the fuzzer mutates them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from manylangs_files import write as write_manylangs
from tiny_models import MODELS

from flashelmo.benchmarks.results import Results, Row
from flashelmo.engine.model.checkpoints.bilm import write_bilm
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.export.build import build_onnx

Files = dict[str, bytes]
TEXT = "In the beginning God created the heaven and the earth .\n\nthe cat sat\nnaïve 漢字 \U0001f600\n"
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": lambda data: gzip.compress(data, 1, mtime=0),
    "tar.bz2": bz2.compress,
    "tar.xz": lambda data: lzma.compress(data, preset=0),
}


@dataclass(frozen=True)
class Seed:
    """Files that are right.

    Attributes:
        reader: "model", "text", "onnx" or "results": what reads them.
        entry: the path in the folder that is given to it; "" is the folder.
        files: by path.
        archive: a suffix; they are packed, and that file is given.
    """

    name: str
    reader: str
    entry: str
    files: Files
    archive: str = ""


def make_seeds() -> list[Seed]:
    """All of them; the same bytes whenever they are made, but for what archives and HDF5 note of the time."""
    bilm, words = _folder(_bilm("skip")), _folder(_bilm("words alone"))
    zipped = {f"vocab.txt{suffix}": data for suffix, data in ((".gz", gzip.compress(words["vocab.txt"], mtime=0)),)}
    packed_words = {name: data for name, data in words.items() if name != "vocab.txt"} | zipped
    manylangs = _folder(lambda path: write_manylangs(MODELS["manylangs"], path))
    old = {"_use_new_zipfile_serialization": False}
    old_pickles = _folder(lambda path: write_manylangs(MODELS["manylangs, words alone"], path, **old))
    natives = [_folder(_native(name)) for name in ("no projection", "words alone", "manylangs")]
    seeds = [
        Seed("bilm", "model", "weights.hdf5", bilm),
        Seed("bilm folder", "model", "", {"model/" + name: data for name, data in bilm.items()}),
        Seed("words", "model", "", words),
        Seed("words, packed vocabulary", "model", "weights.hdf5", packed_words),
        Seed("manylangs", "model", "", manylangs),
        Seed("manylangs, old pickles", "model", "", old_pickles),
        *(Seed(f"native {k}", "model", "", files) for k, files in enumerate(natives)),
        Seed("native weights", "model", "model.safetensors", natives[0]),
        Seed("allennlp archive", "model", "", _allennlp(bilm), "tar.gz"),
        *(Seed(suffix, "model", "", bilm, suffix) for suffix in COMPRESSIONS),
        Seed("zip", "model", "", manylangs, "zip"),
        Seed("zip of words", "model", "", packed_words, "zip"),
        Seed("text", "text", "text.txt", {"text.txt": TEXT.encode()}),
        Seed("results", "results", "results.json", _results()),
    ]
    for name, options in (("fp32", {}), ("int8", {"precision": "int8"}), ("stateful", {"stateful": True})):
        seeds.append(Seed(f"onnx {name}", "onnx", "model.onnx", _onnx("skip", **options)))
    seeds.append(Seed("onnx words", "onnx", "onnx/model.onnx", _onnx("manylangs", characters="dynamic", where="onnx/")))
    return [*seeds, Seed("onnx data", "onnx", "model.onnx", _onnx("skip", external_data=True))]


def pack(files: Files, suffix: str) -> bytes:
    """An archive of the files."""
    image = io.BytesIO()
    if suffix == "zip":
        with zipfile.ZipFile(image, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name or "."), data, zipfile.ZIP_DEFLATED)
        return image.getvalue()
    with tarfile.open(fileobj=image, mode="w") as archive:
        for name, data in files.items():
            archive.addfile(_member(name, size=len(data)), io.BytesIO(data))
    return COMPRESSIONS[suffix](image.getvalue())


def _member(name: str, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def pack_members(members: Iterable[tuple[str, dict[str, object]]], files: Files) -> bytes:
    """A tar archive of files behind members of any kind, whose fields are given."""
    image = io.BytesIO()
    with tarfile.open(fileobj=image, mode="w") as archive:
        for name, fields in members:
            archive.addfile(_member(name, **fields))
        for name, data in files.items():
            archive.addfile(_member(name, size=len(data)), io.BytesIO(data))
    return image.getvalue()


def _folder(write: Callable[[Path], object]) -> Files:
    """What a function writes into a new folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        write(folder)
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }


def _bilm(name: str) -> Callable[[Path], None]:
    return lambda folder: write_bilm(MODELS[name], folder)


def _native(name: str) -> Callable[[Path], None]:
    return lambda folder: write_native(MODELS[name], folder)


def _onnx(name: str, where: str = "", **options: object) -> Files:
    def write(folder: Path) -> None:
        (folder / where).mkdir(parents=True)
        build_onnx(MODELS[name], folder / where / "model.onnx", **options)  # type: ignore[arg-type]

    return _folder(write)


def _allennlp(bilm: Files) -> Files:
    """A model of AllenNLP's own archives, whose weights are a state dict: it is refused, or its ELMo found."""
    image = io.BytesIO()
    torch.save({"elmo._elmo_lstm._char_embedding_weights": torch.zeros(3, 4)}, image)
    config = {"model": {"text_field_embedder": {"elmo": {"options_file": "fta/options.json"}}}}
    return {
        "config.json": json.dumps(config).encode(),
        "weights.th": image.getvalue(),
        "fta/options.json": bilm["options.json"],
        "vocabulary/tokens.txt": b"the\ncat\n",
    }


def _results() -> Files:
    def write(folder: Path) -> None:
        folder.mkdir()
        row = Row.of([1.0, 2.0], section="bulk", model="small", name="flashelmo", unit="tokens/s")
        Results({"cpu": "a"}, {"numpy": "2"}, {"id": "0"}, "2026", {"suite": "cpu"}, [row]).write(
            folder / "results.json"
        )

    return _folder(write)
