"""bilm-tf's and AllenNLP's HDF5: layout, every variant met in published files, and what damaged ones get."""

import gzip
import io
import json
import shutil
import tarfile
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from checkpoint_files import edit_json, fails, same_model
from tiny_models import BILM, MODELS, SENTENCES, WORDS, random_model, with_tensors

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.bilm import write_bilm
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.weights import ElmoModel, check_tensors
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.text.characters import WordEncoder

BILM_MODELS = [name for name, model in MODELS.items() if model.config.family == "bilm"]
CELL = "RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell"
LOST_IN_FORGET_BIAS = 2.0**-22  # 1 is taken off and added again; the tiny models' biases lie within 4


@pytest.fixture
def folder(tmp_path) -> Path:
    write_bilm(MODELS["skip"], tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def word_folder(tmp_path) -> Path:
    write_bilm(MODELS["words alone"], tmp_path / "words")
    return tmp_path / "words"


def edit_options(folder: Path, change) -> None:
    edit_json(folder / "options.json", change)


def edit_weights(folder: Path, change) -> None:
    with h5py.File(folder / "weights.hdf5", "r+") as file:
        change(file)


def put(file, name, value) -> None:
    if name in file:
        del file[name]
    file[name] = value


def datasets(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, entry: found.update({name: entry[()]}) if hasattr(entry, "shape") else None)
    return found


def with_zero_rows(model: ElmoModel) -> ElmoModel:
    """Row 0 of an embedding is no token: zero, and not in the file."""
    tensors = {name: tensor.copy() for name, tensor in model.weights.named_tensors()}
    for name in {"character_embedding", "word_embedding"} & tensors.keys():
        tensors[name][0] = 0
    return with_tensors(model, tensors)


@pytest.mark.parametrize("name", BILM_MODELS)
def test_what_is_written_is_read(name, tmp_path):
    write_bilm(MODELS[name], tmp_path / "one")
    once = load_model(tmp_path / "one")
    expected = with_zero_rows(MODELS[name])
    if not expected.config.character_size:  # the options of a model of words have no place for a word's length
        expected = replace(expected, config=replace(expected.config, max_characters=50))
    same_model(once, expected, forget_bias=LOST_IN_FORGET_BIAS)
    assert (once.format, once.path) == ("bilm-hdf5", tmp_path / "one" / "weights.hdf5")
    assert once.lexicon == MODELS[name].lexicon


@pytest.mark.parametrize("name", ["bilm_skip", "bilm_noskip"])
def test_published_to_native_to_published_is_bit_identical(name, golden, tmp_path):
    original = load_model(golden / name)
    write_native(original, tmp_path / "native")
    write_bilm(load_model(tmp_path / "native"), tmp_path / "again")
    same_model(load_model(tmp_path / "again"), original)
    expected, found = datasets(golden / name / "lm_weights.hdf5"), datasets(tmp_path / "again" / "weights.hdf5")
    assert found.keys() == expected.keys()
    for key, value in found.items():  # the sum of bias and 1 was rounded when the model was read
        np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-6 if key.endswith("/B") else 0, err_msg=key)


def test_golden_model_has_its_dimensions(golden):
    model = load_model(golden / "bilm_noskip")
    config, lstm = model.config, model.weights.lstm
    assert (config.cell_size, config.projection_size, config.n_layers, config.n_filters) == (64, 16, 2, 124)
    assert (config.cell_clip, config.projection_clip, config.skip_connections, config.n_highway) == (3, 3, False, 2)
    assert [cell.input_weight.shape for cells in lstm for cell in cells] == [(4, 16, 64)] * 4
    assert lstm[0][0].projection is not None and lstm[0][0].projection.shape == (64, 16)


def test_tensors_lie_where_the_published_code_puts_them(folder):
    """Gates i, j, f, o in columns; input rows above hidden rows; the forget bias without its 1."""
    model, stored = load_model(folder), datasets(folder / "weights.hdf5")
    tensors = dict(model.weights.named_tensors())
    size, cell = model.config.projection_size, model.config.cell_size
    forward = model.weights.lstm[0][0]
    for gate, column in enumerate((0, 2, 1, 3)):  # canonical i, f, g, o
        columns = slice(column * cell, (column + 1) * cell)
        np.testing.assert_array_equal(forward.input_weight[gate], stored[f"{CELL}/W_0"][:size, columns])
        np.testing.assert_array_equal(forward.recurrent_weight[gate], stored[f"{CELL}/W_0"][size:, columns])
        shift = np.float32(1.0 if column == 2 else 0.0)
        np.testing.assert_array_equal(forward.bias[gate], stored[f"{CELL}/B"][columns] + shift)
    np.testing.assert_array_equal(tensors["character_embedding"][1:], stored["char_embed"])
    assert not tensors["character_embedding"][0].any()
    np.testing.assert_array_equal(model.weights.convolutions[1].weight, stored["CNN/W_cnn_1"][0])
    np.testing.assert_array_equal(model.weights.highways[1].gate.weight, stored["CNN_high_1/W_carry"])
    np.testing.assert_array_equal(model.weights.highways[1].transform.bias, stored["CNN_high_1/b_transform"])


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        (lambda o: o["char_cnn"].update(n_characters=261), "n_characters", 262),
        (lambda o: o["char_cnn"].pop("n_characters"), "n_characters", 262),
        (lambda o: o["char_cnn"].pop("activation"), "activation", "relu"),
        (lambda o: o["char_cnn"].update(activation="tanh"), "activation", "tanh"),
        (lambda o: o["char_cnn"].update(max_characters_per_token=70), "max_characters", 70),
        (lambda o: o["lstm"].pop("use_skip_connections"), "skip_connections", False),
        (lambda o: o["lstm"].pop("cell_clip"), "cell_clip", None),
        (lambda o: o["lstm"].update(cell_clip=None), "cell_clip", None),
        (lambda o: o["lstm"].update(proj_clip=0), "projection_clip", None),
        (lambda o: o.update(n_epochs=10, batch_size=128, bidirectional=True, dropout=0.1), "n_layers", 2),
        (lambda o: (o.update(all_clip_norm_val=10.0), o["lstm"].update(dim_hidden=3)), "n_layers", 2),
    ],
)
def test_options_that_vary(folder, change, field, value):
    edit_options(folder, change)
    model = load_model(folder)
    assert getattr(model.config, field) == value
    expected = replace(MODELS["skip"].config, **{field: value})
    same_model(model, with_zero_rows(replace(MODELS["skip"], config=expected)), LOST_IN_FORGET_BIAS)


def test_absent_parts_may_go_unmentioned(tmp_path):
    write_bilm(MODELS["three layers, no highway"], tmp_path / "a")
    edit_options(tmp_path / "a", lambda o: o["char_cnn"].pop("n_highway"))
    assert load_model(tmp_path / "a").weights.highways == ()
    write_bilm(MODELS["no projection"], tmp_path / "b")
    edit_options(tmp_path / "b", lambda o: o["lstm"].pop("projection_dim"))
    assert load_model(tmp_path / "b").weights.lstm[0][0].projection is None


@pytest.mark.parametrize("mentioned", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_a_single_layer(tmp_path, alone, mentioned):
    """bilm-tf makes no stack of one cell, and takes one layer where the options name no number."""
    expected = random_model(replace(BILM, n_layers=1))
    folder = tmp_path / "model"
    write_bilm(expected, folder)
    if alone:
        for direction in ("RNN_0/RNN", "RNN_1/RNN"):
            edit_weights(folder, lambda f, at=direction: f.move(f"{at}/MultiRNNCell/Cell0/LSTMCell", f"{at}/LSTMCell"))
    if not mentioned:
        edit_options(folder, lambda o: o["lstm"].pop("n_layers"))
    same_model(load_model(folder), with_zero_rows(expected), LOST_IN_FORGET_BIAS)


def test_word_weights_beside_options_of_characters(word_folder, folder):
    expected = load_model(word_folder)
    characters = json.loads((folder / "options.json").read_text())["char_cnn"]
    edit_options(word_folder, lambda o: o.update(char_cnn=characters))
    same_model(load_model(word_folder), expected)


def test_tensors_of_training_and_other_widths_are_fine(folder):
    expected = load_model(folder)

    def change(file):
        put(file, "softmax/W", np.ones((3, 4), np.float32))
        put(file, "CNN_proj/W_proj", file["CNN_proj/W_proj"][()].astype(np.float64))
        put(file, "char_embed", file["char_embed"][()])

    edit_weights(folder, change)
    same_model(load_model(folder), expected)


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        ("model.hdf5", "options.json"),  # NLPL
        ("weights.hdf5", "options.json"),  # SeqVec
        ("elmo_2x4096_512_2048cnn_2xhighway_weights.hdf5", "elmo_2x4096_512_2048cnn_2xhighway_options.json"),
        ("biomed_elmo_weights", "biomed_elmo_options.json"),
        ("weights.bin", "my_options_v2.json"),
        ("model.json", "settings.json"),
    ],
)
def test_names_do_not_matter(folder, weights, options):
    expected = load_model(folder)
    (folder / "weights.hdf5").rename(folder / weights)
    (folder / "options.json").rename(folder / options)
    (folder / "README.txt").write_text("not a model")
    (folder / "sentences.json").write_text("[]")
    same_model(load_model(folder), expected)
    same_model(load_model(str(folder / weights)), expected)


def test_vectors_beside_the_weights_are_not_taken_for_them(folder):
    expected = load_model(folder)
    with h5py.File(folder / "a_vectors.hdf5", "w") as file:
        file["0"] = np.zeros((3, 2, 8), np.float32)
    same_model(load_model(folder), expected)


def test_options_elsewhere(folder, tmp_path):
    expected = load_model(folder)
    (folder / "options.json").rename(tmp_path / "o.json")
    fails(folder, r"weights\.hdf5: expected one options file beside it")
    same_model(load_model(folder / "weights.hdf5", tmp_path / "o.json"), expected)
    same_model(load_model(folder, str(tmp_path / "o.json")), expected)


@pytest.mark.parametrize("inner", ["", "209/"])
@pytest.mark.parametrize("kind", ["zip", "w:gz", "w"])
def test_archives(word_folder, tmp_path, kind, inner):
    path = tmp_path / "209.data"
    files = sorted(word_folder.iterdir())
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, inner + file.name)
    else:
        with tarfile.open(path, kind) as tar:
            for file in files:
                tar.add(file, inner + file.name)
    model = load_model(path)
    same_model(model, load_model(word_folder))
    assert model.path == path and model.lexicon == WORDS


@pytest.mark.parametrize("kind", ["whole", "outside", "link"])
def test_tar_archives_without_pythons_own_filter(word_folder, tmp_path, monkeypatch, kind):
    """As in Debian 12's Python 3.11.2: nothing is written outside, and links are refused."""
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", f"{word_folder}/../")
    path = tmp_path / "209.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(word_folder, "209")
        member = tarfile.TarInfo({"whole": "209/more", "outside": "../209/more", "link": "209/link"}[kind])
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(member)
    if kind == "whole":
        same_model(load_model(path), load_model(word_folder))
    else:
        fails(
            path, rf"^{path}: expected a whole zip or tar archive: '{member.name}': expected a file or a folder inside"
        )


def test_errors_in_an_archive_name_the_archive(folder, tmp_path):
    edit_weights(folder, lambda file: file.pop("char_embed"))
    path = Path(shutil.make_archive(str(tmp_path / "model"), "zip", folder))
    fails(path, rf"^{path}/weights\.hdf5: tensor char_embed is missing")


def test_word_models_without_a_vocabulary_load_but_look_nothing_up(word_folder):
    (word_folder / "vocab.txt").unlink()
    model = load_model(word_folder)
    assert model.lexicon is not None and not model.lexicon.words
    encoder = WordEncoder(model.config, model.lexicon)
    np.testing.assert_array_equal(encoder.word_ids(encoder.boundary_words), [1, 2])  # bilm-tf's first lines
    with pytest.raises(FlashElmoError, match=r"^vocabulary: expected vocab\.txt beside the model's weights"):
        encoder.word_ids(["the"])


def test_options_with_a_byte_order_mark(folder):
    config = load_model(folder).config
    options = (folder / "options.json").read_text()
    (folder / "options.json").write_text(options, encoding="utf-8-sig")
    assert load_model(folder).config == config
    (folder / "options.json").write_text(options, encoding="utf-16")
    fails(folder, r"options\.json: expected JSON: ")


def test_vocabularies(word_folder):
    plain = word_folder / "vocab.txt"
    lines = plain.read_text()
    assert lines.split() == list(WORDS.words)
    plain.unlink()
    (word_folder / "vocab.txt.gz").write_bytes(gzip.compress(lines.replace("\n", "\r\n").encode()))
    assert load_model(word_folder).lexicon == WORDS  # a word's row is its line's number, from 1
    (word_folder / "vocab.txt.gz").write_bytes(gzip.compress(lines.encode())[:-12])
    fails(word_folder, r"vocab\.txt\.gz: ")
    (word_folder / "vocab.txt.gz").unlink()
    plain.write_text(lines.replace("the\n", "!!!MAXTERMID\nthe\n"))  # a line that bilm-tf does not count
    assert load_model(word_folder).lexicon == WORDS
    for text in (f"{lines}\n", f"{lines} \n\n", lines.replace("\n", "\r")):
        plain.write_text(text, encoding="utf-8-sig", newline="")
        assert load_model(word_folder).lexicon == WORDS
    plain.write_text(lines.replace("<UNK>", "<unk>"))
    fails(word_folder, r"vocab\.txt: expected the word <UNK>")
    plain.write_bytes(lines.encode().replace(b"cat", b"\xff\xfe"))
    fails(word_folder, r"vocab\.txt: .*(UTF-8|utf-8)")
    plain.write_text(lines + "one\nmore\n")
    fails(word_folder, r"vocab\.txt: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.pop("lstm"), "options.json: .*lstm"),
        (lambda o: o["lstm"].pop("dim"), r"options.json: .*dim"),
        (lambda o: o["lstm"].pop("n_layers"), r"weights.hdf5: tensor \S+Cell1\S+ .* no place"),  # which means 1
        (lambda o: o.pop("char_cnn"), r"options.json: .*char_cnn"),
        (lambda o: o["char_cnn"].pop("filters"), r"options.json: .*filters"),
        (lambda o: o["char_cnn"].pop("embedding"), r"options.json: .*embedding"),
        (lambda o: o["char_cnn"].update(n_characters=300), r"n_characters.*300"),
        (lambda o: o["char_cnn"].update(n_characters="262"), r"n_characters"),
        (lambda o: o["char_cnn"].update(activation="gelu"), r"options.json: activation: .*gelu"),
        (lambda o: o["char_cnn"].update(filters=[[1]]), r"options.json: "),
        (lambda o: o["char_cnn"].update(filters=[]), r"options.json: filters"),
        (lambda o: o["lstm"].update(dim="6"), r"options.json: .*dim.*'6'"),
        (lambda o: o["lstm"].update(projection_dim=4.0), r"options.json: "),
        (lambda o: o["lstm"].update(cell_clip=-1), r"options.json: cell_clip: .*-1"),
        (lambda o: o["lstm"].update(cell_clip="3"), r"options.json: "),
        (lambda o: o["lstm"].update(cell_clip=True), r"options.json: cell_clip: .* found True$"),
        (lambda o: o["lstm"].update(proj_clip=float("inf")), r"options.json: projection_clip: .* found inf$"),
        (lambda o: o["lstm"].update(cell_clip=10**400), r"options.json: cell_clip: .* found 1000"),
        (lambda o: o["char_cnn"].update(max_characters_per_token=12.5), r"options.json: max_characters.*12.5"),
        # options and tensors that disagree: the tensor and both shapes
        (lambda o: o["lstm"].update(dim=7), r"weights.hdf5: tensor \S+ has shape \(8, 24\), expected \(8, 28\)"),
        (lambda o: o["lstm"].update(dim=10**9), r"weights.hdf5: tensor \S+ has shape"),
        (lambda o: o["lstm"].update(n_layers=3), r"weights.hdf5: tensor \S+Cell2\S+ is missing"),
        (lambda o: o["lstm"].update(n_layers=1), r"weights.hdf5: tensor \S+Cell1\S+ "),
        (lambda o: o["char_cnn"].pop("n_highway"), r"weights.hdf5: tensor CNN_high_0\S+ "),
        (lambda o: o["char_cnn"]["filters"].pop(), r"weights.hdf5: tensor "),
        (
            lambda o: o["char_cnn"]["embedding"].update(dim=5),
            r"char_embed has shape \(261, 3\), expected \(261, 5\)",
        ),
    ],
)
def test_wrong_options(folder, change, message):
    edit_options(folder, change)
    fails(folder, message)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"[" * 100_000])
def test_options_that_are_no_json_object(folder, content):
    (folder / "options.json").write_bytes(content)
    fails(folder, r"options\.json: expected ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop(f"{CELL}/W_P_0"), rf"weights.hdf5: tensor {CELL}/W_P_0 is missing"),
        (lambda f: f.pop("char_embed"), r"weights.hdf5: tensor char_embed is missing"),
        (lambda f: put(f, "char_embed", np.zeros((200, 3), np.float32)), r"char_embed .*\(200, 3\).*\(261, 3\)"),
        (lambda f: put(f, f"{CELL}/B", np.zeros((4, 6), np.float32)), rf"{CELL}/B has shape \(4, 6\).*\(24,\)"),
        (lambda f: put(f, f"{CELL}/B", np.zeros(24, np.int64)), rf"weights.hdf5: tensor {CELL}/B .*int64"),
        (lambda f: put(f, "CNN_proj/b_proj", np.full(4, np.nan, np.float32)), r"tensor CNN_proj/b_proj holds NaN"),
        (lambda f: f["CNN/b_cnn_0"].__setitem__(1, np.inf), r"weights.hdf5: tensor CNN/b_cnn_0 holds NaN or infinity"),
        (lambda f: put(f, "CNN_proj/b_proj", np.full(4, 1e300)), r"tensor CNN_proj/b_proj holds NaN or infinity"),
        (lambda f: (f.pop("CNN_proj/b_proj"), f.create_group("CNN_proj/b_proj")), r"CNN_proj/b_proj is missing"),
    ],
)
def test_wrong_tensors(folder, change, message):
    edit_weights(folder, change)
    fails(folder, message)


def linked_storage(kind, file, name, secret) -> None:
    """A tensor of the right shape whose values lie in another file of the machine."""
    shape = file[name].shape
    del file[name]
    if kind == "external storage":
        file.create_dataset(name, shape, np.float32, external=[(str(secret), 0, secret.stat().st_size)])
    elif kind == "virtual":
        layout = h5py.VirtualLayout(shape, np.float32)
        layout[...] = h5py.VirtualSource(secret, "secret", shape, np.float32)
        file.create_virtual_dataset(name, layout)
    else:
        file[name] = h5py.ExternalLink(secret, "secret")


@pytest.mark.parametrize("kind", ["external storage", "virtual", "external link"])
@pytest.mark.parametrize("name", ["char_embed", "CNN_proj/b_proj", f"{CELL}/B"])
def test_no_other_file_is_read_as_weights(folder, tmp_path, kind, name):
    """Whoever publishes the vectors or a conversion would publish that file."""
    secret = tmp_path / "secret"
    with h5py.File(folder / "weights.hdf5") as file, h5py.File(secret, "w") as other:
        other["secret"] = np.ones(file[name].shape, np.float32)
    edit_weights(folder, lambda file: linked_storage(kind, file, name, secret))
    fails(folder, rf"weights\.hdf5: tensor {name}")


@pytest.mark.parametrize("name", ["no projection", "no character projection"])
def test_projections_between_equal_sizes(name, tmp_path):
    """AllenNLP projects from P to P where bilm-tf does not; ignoring the projection would give wrong vectors."""
    folder = tmp_path / "model"
    write_bilm(MODELS[name], folder)
    square = load_model(folder)
    size, tensors = square.config.projection_size, dict(square.weights.named_tensors())
    rng = np.random.default_rng(1)
    if name == "no projection":
        for direction, ours in enumerate(("forward", "backward")):
            for layer in range(square.config.n_layers):
                values = rng.normal(0, 0.7, (size, size)).astype(np.float32)
                tensors[f"lstm.{layer}.{ours}.projection"] = values
                theirs = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/W_P_0"
                edit_weights(folder, lambda f, at=theirs, values=values: put(f, at, values))
    else:
        for ours, theirs, shape in (("weight", "W_proj", (size, size)), ("bias", "b_proj", (size,))):
            values = rng.normal(0, 0.7, shape).astype(np.float32)
            tensors[f"projection.{ours}"] = values
            edit_weights(folder, lambda f, at=theirs, values=values: put(f, f"CNN_proj/{at}", values))
    model = load_model(folder)
    check_tensors(model.weights, model.config, "model")
    expected = ReferenceRuntime(with_tensors(square, tensors)).embed_batch(SENTENCES)
    plain = list(ElmoEmbedder(square, runtime="reference").embed(SENTENCES))
    for i, vectors in enumerate(ElmoEmbedder(model, runtime="ort").embed(SENTENCES)):
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(vectors, expected[i], rtol=1e-5, atol=3e-6)  # of values up to 20
        assert not vectors.size or np.abs(vectors - plain[i]).max() > 0.01


def test_projections_that_are_not_whole(tmp_path):
    write_bilm(MODELS["no projection"], tmp_path / "a")
    edit_weights(tmp_path / "a", lambda f: put(f, f"{CELL}/W_P_0", np.eye(4, dtype=np.float32)))
    fails(tmp_path / "a", r"tensor RNN_0/RNN/MultiRNNCell/Cell1/LSTMCell/W_P_0 is missing")
    write_bilm(MODELS["no character projection"], tmp_path / "b")
    edit_weights(tmp_path / "b", lambda f: put(f, "CNN_proj/W_proj", np.eye(12, dtype=np.float32)))
    fails(tmp_path / "b", "tensor CNN_proj/b_proj is missing")


def test_large_values_are_not_infinite(folder):
    """The quick check for NaN sums, and this sum overflows."""
    edit_weights(folder, lambda f: put(f, "CNN_proj/b_proj", np.full(4, 3e38, np.float32)))
    tensors = dict(load_model(folder).weights.named_tensors())
    np.testing.assert_array_equal(tensors["projection.bias"], np.full(4, 3e38, np.float32))


def test_files_that_are_no_whole_hdf5(folder, tmp_path):
    weights = folder / "weights.hdf5"
    data = weights.read_bytes()
    for size in [*range(0, 600, 50), len(data) // 2, len(data) - 1]:
        weights.write_bytes(data[:size])
        fails(weights, r"weights\.hdf5: ")
    weights.write_bytes(b"\0" * 4096)
    fails(weights, r"weights\.hdf5: ")
    fails(tmp_path / "nothing", "nothing: no such file or folder")
    fails(tmp_path / ("long" * 1000), "cannot be read|no such file or folder")  # the latter since Python 3.14
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "empty: expected a model")


def test_damaged_archives(folder, tmp_path):
    for kind in ("zip", "gztar", "tar"):
        archive = Path(shutil.make_archive(str(tmp_path / "whole"), kind, folder))
        data = archive.read_bytes()
        contents = len(data.rstrip(b"\0")) if kind == "tar" else len(data)  # a tar archive ends in zeros
        for size in range(0, contents - 100, 1 + len(data) // 40):
            archive.write_bytes(data[:size])
            fails(archive, r"whole\.(zip|tar\.gz|tar)")
        garbled = bytearray(data)
        garbled[len(data) // 3 : len(data) // 3 + 300] = bytes(300)
        archive.write_bytes(garbled)
        if kind != "tar":  # which has no check sums of contents
            fails(archive, r"whole\.(zip|tar\.gz)")


def test_groups_in_groups_are_soon_read(folder):
    """Below each other, beyond every tensor's depth; and groups that hold each other."""
    expected = load_model(folder)

    def change(file):
        group = file["RNN_0"]
        for _ in range(3000):
            group = group.create_group("deeper")
        for name in ("RNN_0", "RNN_1"):
            for i in range(100):
                file[f"{name}/again_{i}"] = file["RNN_0"]

    edit_weights(folder, change)
    started = time.monotonic()
    same_model(load_model(folder), expected)
    assert time.monotonic() - started < 5


GROWS = r": expected at most [\d,]+ bytes when unpacked, by its size of [\d,]+, found [\d,]+ or more"
ZEROS = bytes(40 << 20)


@pytest.mark.parametrize("kind", ["zip", "w:gz", "w:bz2", "w:xz", "header"])
def test_archives_that_would_fill_the_disk_or_the_memory(folder, tmp_path, kind):
    path = tmp_path / "bomb"
    if kind == "zip":
        shutil.move(shutil.make_archive(str(path), "zip", folder), path)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("notes", ZEROS)
    else:
        header = tarfile.TarInfo("notes")
        header.size = 0 if kind == "header" else len(ZEROS)
        header.pax_headers = {"comment": "0" * len(ZEROS)} if kind == "header" else {}
        with tarfile.open(path, "w:gz" if kind == "header" else kind) as tar:
            tar.addfile(header, io.BytesIO(ZEROS))
            tar.add(folder, "model")
    fails(path, f"bomb{GROWS}")


def test_vocabularies_that_would_fill_the_memory(word_folder):
    (word_folder / "vocab.txt").unlink()
    (word_folder / "vocab.txt.gz").write_bytes(gzip.compress(ZEROS))
    fails(word_folder, rf"vocab\.txt\.gz{GROWS}")


def test_weights_that_would_fill_the_memory(folder):
    """Tensors as the options say, in chunks that are larger; then options that say as much."""
    edit_weights(folder, lambda f: f.pop("char_embed"))
    large = {"chunks": (1 << 22, 3), "maxshape": (None, 3), "compression": "gzip"}
    edit_weights(folder, lambda f: f.create_dataset("char_embed", (261, 3), np.float32, **large))
    fails(folder, rf"weights\.hdf5{GROWS}")
    edit_options(folder, lambda o: o["char_cnn"]["embedding"].update(dim=1 << 16))
    with h5py.File(folder / "weights.hdf5", "r+") as file:
        shapes: dict[str, tuple[int, ...]] = {"char_embed": (261, 1 << 16)}
        shapes |= {f"CNN/W_cnn_{i}": (1, i + 1, 1 << 16, i + 3) for i in range(3)}
        for name, shape in shapes.items():
            del file[name]
            file.create_dataset(name, shape, np.float32)  # of zeros, for which the file has no bytes at all
    fails(folder, rf"weights\.hdf5{GROWS}")


def test_two_models_in_a_folder(folder):
    shutil.copy(folder / "weights.hdf5", folder / "other.hdf5")
    fails(folder, r"model: expected one model, found other\.hdf5, weights\.hdf5")


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(FlashElmoError, match=r"bilm family"):
        write_bilm(MODELS["manylangs"], tmp_path / "model")
    assert not (tmp_path / "model").exists()
