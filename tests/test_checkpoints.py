"""The native format, detection by contents, conversion and description; each published format has a file of its own."""

import hashlib
import json
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import edit_json, fails, same_model
from manylangs_files import write as write_manylangs
from safetensors.numpy import load_file, save_file
from tiny_models import MODELS

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import is_model_file, load_model
from flashelmo.engine.model.checkpoints.bilm import write_bilm
from flashelmo.engine.model.checkpoints.convert import convert, describe
from flashelmo.engine.model.checkpoints.native import read_safetensors, release_pages, write_native
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import check_tensors


@pytest.fixture
def folder(tmp_path) -> Path:
    write_native(MODELS["manylangs"], tmp_path / "model")
    return tmp_path / "model"


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_header(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:begin])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[begin:])


def test_what_a_file_holds_stands_in_one_short_line_of_an_error(folder: Path) -> None:
    edit_json(folder / "config.json", lambda values: values.update({"a\nb\x1b[2J\u2028" + 5000 * "y" + 5000 * "\0": 1}))
    with pytest.raises(FlashElmoError, match=r"config.json: unknown keys .*a.*\.\.\. .*'word_size'\]$") as caught:
        load_model(folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 1000
    assert len(str(FlashElmoError(5000 * "\0"))) == 1000
    assert str(FlashElmoError("a\nb\x1b[2J\ud800é")) == r"a\nb\x1b[2J\ud800é"


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read(name, tmp_path):
    write_native(MODELS[name], tmp_path / "deep" / "model")
    model = load_model(tmp_path / "deep" / "model")
    same_model(model, MODELS[name])
    assert (model.format, model.path.name) == ("native", "model.safetensors")
    same_model(load_model(model.path), MODELS[name])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


def test_the_file_is_an_ordinary_safetensors_file(folder):
    expected = dict(MODELS["manylangs"].weights.named_tensors())
    for tensors in (load_file(folder / "model.safetensors"), read_safetensors(folder / "model.safetensors")):
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, expected[name])


def test_all_files_may_be_read_by_whoever_may_read_one(folder):
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_tensors_are_views_of_the_mapped_file(folder):
    weights = load_model(folder).weights
    for name, tensor in weights.named_tensors():
        base: Any = tensor
        while base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap) and np.shares_memory(base, tensor), name
        assert not tensor.flags.writeable and tensor.flags.aligned and tensor.flags.c_contiguous, name
    release_pages(weights)  # and what is read again is the same
    np.testing.assert_array_equal(weights.lstm[0][0].bias, MODELS["manylangs"].weights.lstm[0][0].bias)


def test_a_header_of_odd_length_is_read(folder):
    def change(header):
        header["__metadata__"] = {"by": "x"}
        while len(json.dumps(header)) % 4 != 1:
            header["__metadata__"]["by"] += "x"

    edit_header(folder, change)
    model = load_model(folder)
    same_model(model, MODELS["manylangs"])
    assert all(tensor.flags.aligned for _, tensor in model.weights.named_tensors())
    assert ElmoEmbedder(model).embed_sentence(["a"]).shape == (3, 1, 8)


def test_archives(folder, tmp_path):
    model = load_model(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "model"))
    same_model(model, MODELS["manylangs"])
    assert model.path == tmp_path / "packed.zip"
    files = describe(model)["files"]
    assert [file["name"] for file in files] == ["packed.zip"]


def test_weights_are_known_by_their_contents(folder):
    (folder / "model.safetensors").rename(folder / "weights.bin")
    same_model(load_model(folder / "weights.bin"), MODELS["manylangs"])
    fails(folder, r"model\.safetensors: cannot be read")


def test_nothing_is_replaced_unasked(folder, tmp_path):
    for write in (write_native, write_bilm):
        with pytest.raises(FlashElmoError, match="model: exists already"):
            write(MODELS["skip"], folder)
    write_native(MODELS["skip"], folder, overwrite=True)
    same_model(load_model(folder), MODELS["skip"])
    assert not (folder / "lexicon.json").exists()
    write_bilm(MODELS["skip"], folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["options.json", "weights.hdf5"]
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(FlashElmoError, match=r"thesis\.tex"):
        write_native(MODELS["skip"], folder, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(FlashElmoError, match="file: expected a folder"):
        write_native(MODELS["skip"], tmp_path / "file", overwrite=True)
    with pytest.raises(FlashElmoError, match="cannot be written"):
        write_native(MODELS["skip"], tmp_path / "file" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]


def test_a_truncated_file(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for size in [*range(0, 24), 300, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:size])
        fails(folder, r"model\.safetensors: ")
    path.unlink()
    fails(folder, r"model\.safetensors: cannot be read")


def shift(header, name, *offsets):
    header[name]["data_offsets"] = list(offsets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda h: h["projection.bias"].update(dtype="BF16"),
            r"tensor projection\.bias has type BF16, expected F32 or F16",
        ),
        (lambda h: h["projection.bias"].update(shape=[5]), r"tensor projection\.bias has 16 bytes, expected 20"),
        (lambda h: h["projection.bias"].update(shape=[-2, -2]), r"tensor projection\.bias"),
        (lambda h: h["projection.bias"].update(shape=["4"]), r"tensor projection\.bias"),
        (lambda h: h["projection.bias"].update(shape=4), r"tensor projection\.bias"),
        (lambda h: h["projection.bias"].update(shape=[2**40, 2**40]), r"tensor projection\.bias"),
        (lambda h: h["projection.bias"].update(shape=[10**4000, 10**4000]), r"bias: expected a shape and two offsets"),
        (lambda h: h["projection.bias"].update(shape=[4] + [1] * 100), r"bias: expected a shape and two offsets"),
        (lambda h: shift(h, "projection.bias", 10**9, 10**9 + 16), r"tensor projection\.bias .*truncated"),
        (lambda h: shift(h, "projection.bias", 16, 0), r"tensor projection\.bias "),
        (lambda h: shift(h, "projection.bias", -16, 0), r"tensor projection\.bias"),
        (lambda h: shift(h, "projection.bias", 0.0, 16.0), r"tensor projection\.bias"),
        (lambda h: shift(h, "projection.bias", 0), r"tensor projection\.bias"),
        # over another tensor
        (lambda h: shift(h, "convolutions.0.bias", *h["projection.bias"]["data_offsets"]), r"tensor \S+ "),
        (lambda h: shift(h, "projection.bias", 4, 20), r"tensor \S+ begins at byte \d+ of the data, expected \d+"),
        (lambda h: h["projection.bias"].pop("dtype"), r"no readable header"),
        (lambda h: h.update({"projection.bias": 3}), r"no readable header"),
        (lambda h: [1], r"no readable header"),
        (lambda h: {}, r"tensor \S+ is missing"),
    ],
)
def test_wrong_headers(folder, change, message):
    edit_header(folder, change)
    fails(folder, rf"model\.safetensors: .*{message}")


@pytest.mark.parametrize("length", [0, 3, 2**40, 2**64 - 1])
def test_wrong_lengths_of_the_header(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    fails(folder, r"model\.safetensors: expected a safetensors file, found no readable header")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lstm.1.backward.projection"), r"tensor lstm\.1\.backward\.projection is missing"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), r"tensor extra has no place"),
        (lambda t: t.update({"projection.bias": np.zeros(3, np.float32)}), r"projection\.bias .*\(3,\).*\(4,\)"),
        (lambda t: t["highways.1.gate.weight"].__setitem__((2, 3), np.nan), r"highways\.1\.gate\.weight holds NaN"),
        (lambda t: t["lstm.0.forward.bias"].__setitem__((0, 1), -np.inf), r"lstm\.0\.forward\.bias holds NaN or inf"),
        (lambda t: t.update({"projection.bias": np.zeros(4)}), r"projection\.bias has type F64"),
    ],
)
def test_wrong_tensors(folder, change, message):
    edit_tensors(folder, change)
    fails(folder, rf"model\.safetensors: .*{message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=2), r"expected format_version 1, found 2"),
        (lambda c: c.pop("cell_size"), r"missing keys \['cell_size'\]"),
        (lambda c: c.update(colour="red"), r"unknown keys \['colour'\]"),
        (lambda c: c.update(cell_size="6"), r"cell_size: .*'6'"),
        (lambda c: c.update(projection_size=10**4299), r"projection_size: expected at most 2147483647, found 1000"),
        (lambda c: c["filters"][0].__setitem__(1, 10**4299), r"filters: expected pairs of positive whole numbers"),
        (lambda c: c.update(skip_connections="no"), r"skip_connections: .*'no'"),
        (lambda c: c.update(filters=3), r"wrong type"),
        (lambda c: c.update(family="bert"), r"family: .*'bert'"),
        (lambda c: c.update(n_highway=-1), r"n_highway: .*-1"),
        (lambda c: c.update(max_characters=2.5), r"max_characters: .*2\.5"),
    ],
)
def test_wrong_configurations(folder, change, message):
    edit_json(folder / "config.json", change)
    fails(folder, rf"config\.json: .*{message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("words"), r"'words'"),
        (lambda v: v.update(characters=[1]), r"'characters'"),
        (lambda v: v["words"].update(cat="1"), r"'words'"),
        (lambda v: v["words"].update(cat=6), r"'cat'.* 6"),
        (lambda v: v["characters"].update(a=-1), r"'a'.*-1"),
    ],
)
def test_wrong_lexicons(folder, change, message):
    edit_json(folder / "lexicon.json", change)
    fails(folder, rf"lexicon\.json: .*{message}")


def test_a_missing_lexicon(folder):
    (folder / "lexicon.json").unlink()
    fails(folder, r"lexicon\.json: cannot be read")


def test_files_of_a_model_are_not_the_model(folder, tmp_path):
    fails(folder / "config.json", r"config\.json: expected .*folder")
    (tmp_path / "text.txt").write_text("no model at all\n" * 100)
    fails(tmp_path / "text.txt", r"text\.txt: expected HDF5")
    fails(tmp_path / "absent", "absent: no such file or folder")


@pytest.mark.parametrize(("name", "write"), [("skip", write_bilm), ("manylangs", write_manylangs)])
def test_convert(name, write, tmp_path):
    write(MODELS[name], tmp_path / "model")
    model = convert(tmp_path / "model", tmp_path / "native")
    converted = load_model(tmp_path / "native")
    same_model(converted, model)
    again = convert(tmp_path / "native", tmp_path / "again")
    same_model(load_model(tmp_path / "again"), again)
    for file in (tmp_path / "native").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    facts = describe(converted)
    assert (facts["format"], facts["source_format"]) == ("native", model.format)
    with pytest.raises(FlashElmoError, match="exists already"):
        convert(tmp_path / "model", tmp_path / "native")
    for folder in ("native", "empty"):  # macOS leaves these files in any folder
        (tmp_path / folder).mkdir(exist_ok=True)
        for foreign in (".DS_Store", "._config.json"):
            (tmp_path / folder / foreign).touch()
    convert(tmp_path / "model", str(tmp_path / "native"), overwrite=True)
    convert(tmp_path / "model", tmp_path / "empty")


def test_convert_does_not_write_over_its_source(folder):
    for source in (folder, folder / "model.safetensors"):
        with pytest.raises(FlashElmoError, match="model: expected another folder"):
            convert(source, folder, overwrite=True)
    same_model(load_model(folder), MODELS["manylangs"])


def test_a_model_is_not_written_over_where_case_is_ignored(folder, monkeypatch):
    """There one folder has two paths, which a link stands for here."""
    other = folder.with_name("Model")
    other.symlink_to(folder.name)
    monkeypatch.setattr(os.path, "realpath", lambda path, **_: os.path.abspath(path))
    assert is_model_file(other / "config.json", folder, None)
    with pytest.raises(FlashElmoError, match="Model: expected another folder"):
        convert(folder, other, overwrite=True)


def test_convert_with_options_elsewhere(tmp_path):
    write_bilm(MODELS["skip"], tmp_path / "model")
    (tmp_path / "model" / "options.json").rename(tmp_path / "o.json")
    convert(tmp_path / "model", tmp_path / "native", options_file=tmp_path / "o.json")
    assert load_model(tmp_path / "native").config == MODELS["skip"].config
    own, other = tmp_path / "native" / "config.json", tmp_path / "o.json"
    assert load_model(tmp_path / "native" / "model.safetensors", own).config == MODELS["skip"].config
    with pytest.raises(FlashElmoError, match=r"o\.json: expected HDF5 weights with an options file, found .*native, "):
        load_model(tmp_path / "native", other)


def test_describe(folder):
    facts = describe(load_model(folder))
    path = folder / "model.safetensors"
    assert json.loads(json.dumps(facts)) == facts
    assert facts["files"] == [
        {
            "name": "model.safetensors",
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    ]
    assert facts["parameters"] == sum(tensor.size for tensor in load_file(path).values())
    assert facts["inputs"] == ["characters", "words"] and facts["output_size"] == 8
    assert (facts["layers"], facts["lstm_layers"]) == (3, 2) and "n_layers" not in facts
    assert (facts["cell_size"], facts["projection_size"], facts["family"]) == (6, 4, "manylangs")
    assert describe(MODELS["skip"])["files"] == []


@pytest.mark.parametrize("clip", ["cell_clip", "projection_clip"])
@pytest.mark.parametrize("value", [True, float("inf"), float("nan"), 10**400, -(10**400), 1e39, 0, -1.0, "3"], ids=str)
def test_clips_that_bound_nothing(clip, value):
    config = MODELS["skip"].config.to_dict()
    with pytest.raises(
        FlashElmoError, match=rf"^file: {clip}: expected a positive number in float32's range or none, "
    ):
        ElmoConfig.from_dict({**config, clip: value}, "file")
    assert getattr(ElmoConfig.from_dict({**config, clip: 3}), clip) == 3


def test_a_clip_beyond_all_integer_types_bounds_nothing():
    model = MODELS["no clips, tanh"]
    clipped = replace(model, config=replace(model.config, cell_clip=10**20, projection_clip=10**38))
    for runtime in ("reference", "ort"):
        found, expected = (ElmoEmbedder(m, runtime=runtime).embed_sentence("the cat") for m in (clipped, model))
        np.testing.assert_array_equal(found, expected)


def test_describe_names_both_pickles(tmp_path):
    folder = write_manylangs(MODELS["manylangs"], tmp_path / "model")
    files = describe(load_model(folder))["files"]
    assert [file["name"] for file in files] == ["token_embedder.pkl", "encoder.pkl"]
    encoder = (folder / "encoder.pkl").read_bytes()
    assert files[1]["sha256"] == hashlib.sha256(encoder).hexdigest() and files[1]["bytes"] == len(encoder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_in_memory_is_checked_as_one_in_files(value):
    weights = MODELS["skip"].weights
    assert weights.projection is not None
    bias = np.full_like(weights.projection.bias, value)
    with pytest.raises(FlashElmoError, match=r"^random: tensor projection\.bias holds NaN or infinity$"):
        replace(MODELS["skip"], weights=replace(weights, projection=replace(weights.projection, bias=bias)))


def test_check_tensors_looks_at_every_tensor():
    model = MODELS["skip"]
    check_tensors(model.weights, model.config, "model")
    with pytest.raises(FlashElmoError, match=r"model: tensor projection\.bias is missing, expected shape \(4,\)"):
        check_tensors(replace(model.weights, projection=None), model.config, "model")
    with pytest.raises(FlashElmoError, match=r"model: tensor highways\.1\.\S+ is not part of this configuration"):
        check_tensors(model.weights, replace(model.config, n_highway=1), "model")
    double: Any = np.zeros((262, 3))
    double = replace(model.weights, character_embedding=double)
    with pytest.raises(FlashElmoError, match=r"tensor character_embedding has type float64, expected float32"):
        check_tensors(double, model.config, "model")
