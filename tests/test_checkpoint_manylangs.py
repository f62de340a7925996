"""ELMoForManyLangs: words, characters or both, configurations that are elsewhere, and pickles that hold code."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import edit_json, fails, same_model
from manylangs_files import CONFIGURATION, write
from tiny_models import MODELS, SENTENCES, random_model, with_tensors

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.manylangs import PUBLISHED_CONFIGURATION
from flashelmo.engine.model.weights import ElmoModel, Lexicon, check_tensors
from flashelmo.engine.reference.reference import ReferenceRuntime

VARIANTS = ["manylangs", "manylangs, characters alone", "manylangs, words alone"]


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(MODELS["manylangs"], tmp_path / "model")


def edit_tensors(path: Path, change) -> None:
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


def as_read(model: ElmoModel) -> ElmoModel:
    """Without the words or characters that it has no use for."""
    assert model.lexicon is not None
    words = model.lexicon.words if model.config.word_size else {}
    characters = model.lexicon.characters if model.config.character_size else {}
    return replace(model, lexicon=Lexicon(characters, words))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_words_characters_or_both(name, legacy, tmp_path):
    """The published models are in PyTorch's format of 2018, which is no zip archive."""
    model = load_model(write(MODELS[name], tmp_path / "model", _use_new_zipfile_serialization=not legacy))
    same_model(model, as_read(MODELS[name]))
    assert (model.format, model.path) == ("manylangs", tmp_path / "model")


def test_a_lexicon_that_is_not_used_may_be_absent(tmp_path):
    for name, unused in (("manylangs, words alone", "char.dic"), ("manylangs, characters alone", "word.dic")):
        folder = write(MODELS[name], tmp_path / unused)
        (folder / unused).unlink()
        same_model(load_model(folder), as_read(MODELS[name]))


def test_golden_model_has_its_dimensions(golden):
    model = load_model(golden / "manylangs")
    config = model.config
    assert (config.family, config.cell_size, config.projection_size, config.n_layers) == ("manylangs", 64, 16, 2)
    assert (config.word_size, config.character_size, config.n_filters, config.n_highway) == (12, 6, 60, 2)
    assert config.skip_connections and (config.cell_clip, config.projection_clip) == (3, 3)
    assert model.lexicon is not None and model.lexicon.words["<bos>"] == 2 and model.lexicon.characters["<eow>"] == 2
    assert config.n_words == len(model.lexicon.words) and model.weights.word_embedding is not None
    assert model.weights.word_embedding[1].any()  # padding rows are as they are


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_archives(folder, tmp_path, kind):
    archive = shutil.make_archive(str(tmp_path / "161"), kind, folder.parent, folder.name)
    model = load_model(archive)
    same_model(model, MODELS["manylangs"])
    assert model.path == Path(archive)


@pytest.mark.parametrize(
    "config_path",
    [f"configs/{CONFIGURATION}", f"C:\\models\\{CONFIGURATION}", CONFIGURATION, f"../model/{CONFIGURATION}"],
)
def test_the_configuration_is_found_by_its_name(folder, config_path):
    (folder / "config.json").write_text(json.dumps({"config_path": config_path}))
    same_model(load_model(folder), MODELS["manylangs"])


@pytest.mark.parametrize("way", ["../secret.json", "configs/../../secret.json", "{}/secret.json", "..\\secret.json"])
def test_the_configuration_is_never_outside_the_folder(folder, way):
    """Here it would do; the published configuration, whose sizes the tensors are not of, is taken all the same."""
    (folder / "configs").mkdir()
    (folder / CONFIGURATION).rename(folder.parent / "secret.json")
    (folder / "config.json").write_text(json.dumps({"config_path": way.format(folder.parent)}))
    fails(folder, r"\(6, 5\).*\(6, 100\)")


def test_a_projection_between_equal_sizes(tmp_path):
    """The published LSTM always has one; without it the vectors would be others."""
    narrow = MODELS["manylangs"]
    square = random_model(replace(narrow.config, cell_size=4), narrow.lexicon)
    tensors = dict(square.weights.named_tensors())
    rng = np.random.default_rng(1)
    for layer in range(narrow.config.n_layers):
        for direction in ("forward", "backward"):
            tensors[f"lstm.{layer}.{direction}.projection"] = rng.normal(0, 0.7, (4, 4)).astype(np.float32)
    direct = with_tensors(square, tensors)
    model = load_model(write(direct, tmp_path / "model"))
    check_tensors(model.weights, model.config, "model")
    expected = ReferenceRuntime(direct).embed_batch(SENTENCES)
    for i, vectors in enumerate(ElmoEmbedder(model, runtime="ort").embed(SENTENCES)):
        np.testing.assert_allclose(vectors, expected[i], rtol=1e-5, atol=1e-6)


def test_the_configuration_may_be_config_json_itself(folder):
    (folder / CONFIGURATION).rename(folder / "config.json")
    same_model(load_model(folder), MODELS["manylangs"])


@pytest.mark.parametrize(
    "arguments", [{}, {"config_path": None}, {"config_path": "/x/cnn_50_100_512_4096_sample.json"}]
)
def test_the_published_configuration_is_the_default(folder, arguments):
    """No file of that name: the dimensions of the published models, which the tiny tensors are not of."""
    (folder / "config.json").write_text(json.dumps(arguments))
    fails(folder, r"\(6, 5\).*\(6, 100\)")
    published = PUBLISHED_CONFIGURATION["encoder"]
    assert (published["projection_dim"], published["dim"], published["n_layers"]) == (512, 4096, 2)
    assert sum(number for _, number in PUBLISHED_CONFIGURATION["token_embedder"]["filters"]) == 2048


@pytest.mark.parametrize("line", ["\u3000\t9\n", "9\n", " 9\r\n", "\xa0\t9\n"])
def test_a_line_of_one_field_is_the_ideographic_space(folder, line):
    """So does the published reader, which strips the line, and the white space that was the token."""
    with (folder / "char.dic").open("a", encoding="utf-8", newline="") as file:
        file.write(f"\n{line}")
    edit_tensors(
        folder / "token_embedder.pkl",
        lambda t: t.update({"char_emb_layer.embedding.weight": torch.ones(10, 3)}),
    )
    model = load_model(folder)
    assert model.lexicon is not None and model.lexicon.characters["\u3000"] == 9
    assert model.config.n_characters == 10


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("word.dic", "<bos>\t0\n<eos>\t1\n", r"word\.dic: .*<oov>"),
        ("char.dic", "a\t0\n", r"char\.dic: .*<oov>"),
        ("word.dic", "", r"word\.dic: .*<oov>"),
        ("word.dic", "<oov>\t0\ncat\tdog\n", r"word\.dic: line 2: "),
        ("word.dic", "<oov>\t0\ncat\t\n", r"word\.dic: "),
        ("word.dic", "<oov>\t0\n<bos>\t1\n<eos>\t2\n<pad>\t3\ncat\t99\n", r"word"),
        ("word.dic", "<oov>\t-1\n<bos>\t1\n<eos>\t2\n<pad>\t3\ncat\t5\n", r"word\.dic: .*-1"),
    ],
)
def test_wrong_lexicons(folder, name, text, message):
    (folder / name).write_text(text)
    fails(folder, message)


def test_a_byte_order_mark_is_no_part_of_a_token(folder):
    expected = load_model(folder)
    for name in ("char.dic", "word.dic", "config.json", CONFIGURATION):
        (folder / name).write_text((folder / name).read_text(), encoding="utf-8-sig")
    found = load_model(folder)
    assert (found.lexicon, found.config) == (expected.lexicon, expected.config)


def test_lexicons_that_are_absent_or_not_utf8(folder):
    (folder / "char.dic").write_bytes(b"<oov>\t0\n\xff\t1\n")
    fails(folder, r"char\.dic: expected UTF-8")
    (folder / "char.dic").unlink()
    fails(folder, r"char\.dic: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o["encoder"].update(name="lstm"), r"cnn_tiny\.json: encoder: .*'elmo'.*'lstm'"),
        (lambda o: o["token_embedder"].update(name="lstm"), r"cnn_tiny\.json: token_embedder: .*'cnn'.*'lstm'"),
        (lambda o: o.pop("encoder"), r"cnn_tiny\.json: .*encoder"),
        (lambda o: o["encoder"].pop("dim"), r"cnn_tiny\.json: .*dim"),
        (lambda o: o["token_embedder"].pop("filters"), r"cnn_tiny\.json: .*filters"),
        (lambda o: o.update(encoder=[1]), r"cnn_tiny\.json: "),
        (lambda o: o.update(token_embedder="cnn"), r"cnn_tiny\.json: "),
        (lambda o: o["encoder"].update(dim="6"), r"cnn_tiny\.json: cell_size: .*'6'"),
        (lambda o: o["token_embedder"].update(word_dim=0, char_dim=0), r"cnn_tiny\.json: "),
        (lambda o: o["encoder"].update(dim=4), r"encoder\.pkl: tensor .* expected \(16, 4\) by"),
        (lambda o: o["encoder"].update(dim=7), r"input_linearity\S+ has shape \(24, 4\), expected \(28, 4\)"),
        (lambda o: o["encoder"].update(n_layers=3), r"forward_layer_2\S+ is missing"),
        (lambda o: o["encoder"].update(n_layers=1), r"_layer_1\S+ "),
        (lambda o: o["token_embedder"].update(n_highway=1), r"highways\._layers\.1"),
        (lambda o: o["token_embedder"].update(word_dim=0), r"word_emb_layer|projection\.weight"),
    ],
)
def test_wrong_configurations(folder, change, message):
    edit_json(folder / CONFIGURATION, change)
    fails(folder, message)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("encoder", lambda t: t.pop("forward_layer_0.state_projection.weight"), r"state_projection\.weight is missing"),
        ("token_embedder", lambda t: t.pop("projection.bias"), r"projection\.bias is missing"),
        ("token_embedder", lambda t: t.pop("word_emb_layer.embedding.weight"), r"word"),
        (
            "token_embedder",
            lambda t: t.update({"projection.bias": torch.zeros(9)}),
            r"projection\.bias .*\(9,\).*\(4,\)",
        ),
        ("token_embedder", lambda t: t.update({"highways._layers.0.bias": torch.zeros(7)}), r"\(7,\).*\(24,\)"),
        ("token_embedder", lambda t: t.update({"char_emb_layer.embedding.weight": torch.zeros(9)}), r"char_emb_layer"),
        ("encoder", lambda t: t["backward_layer_1.state_linearity.bias"].fill_(torch.nan), r"bias holds NaN"),
        ("encoder", lambda t: t.update({"forward_layer_0.state_linearity.bias": torch.zeros(24).long()}), r"int64"),
    ],
)
def test_wrong_tensors(folder, file, change, message):
    edit_tensors(folder / f"{file}.pkl", change)
    fails(folder, message)


class Code:
    """What a pickle of it does when it is unpickled: leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_not_run(folder, tmp_path, legacy):
    code = {"projection.bias": Code(tmp_path / "owned")}
    torch.save(code, folder / "encoder.pkl", _use_new_zipfile_serialization=not legacy)
    fails(folder, r"encoder\.pkl: expected .*(tensors|state dict)")
    with pytest.raises(FlashElmoError) as caught:
        load_model(folder)
    assert "weights_only" not in str(caught.value)  # PyTorch's own advice is to run it
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_that_are_not_whole(folder, legacy):
    path = folder / "encoder.pkl"
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    for size in range(0, len(data), 1 + len(data) // 60):
        path.write_bytes(data[:size])
        fails(folder, r"encoder\.pkl: ")
    for content in (b"nonsense", b"\x80\x02]q\x00."):
        path.write_bytes(content)
        fails(folder, r"encoder\.pkl: ")
    torch.save([torch.zeros(3)], path)
    fails(folder, r"encoder\.pkl: ")
    path.unlink()
    fails(folder, r"encoder\.pkl")


def test_pickles_that_would_fill_the_memory(folder):
    """One number repeated without bytes of its own; a file that its archive compresses."""
    path, grows = folder / "encoder.pkl", r"encoder\.pkl: expected at most [\d,]+ bytes when unpacked"
    whole = path.read_bytes()
    edit_tensors(
        path, lambda t: t.update({"forward_layer_0.state_linearity.bias": torch.ones(1).half().expand(1 << 27)})
    )
    fails(folder, grows)
    path.write_bytes(whole)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("encoder/data/99", bytes(40 << 20))
    fails(folder, grows)


def test_half_precision_is_cast(folder):
    path = folder / "encoder.pkl"
    tensors = {name: tensor.half() for name, tensor in torch.load(path, weights_only=True).items()}
    torch.save(tensors, path)
    found = load_model(folder).weights.lstm[1][0].bias
    np.testing.assert_array_equal(found.reshape(-1), tensors["forward_layer_1.state_linearity.bias"].float().numpy())


def test_without_torch_the_extra_is_named(folder):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from flashelmo import load_model, MissingExtraError\n"
        f"try:\n    load_model({str(folder)!r})\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'flashelmo[torch]'" in answer.stdout and answer.stdout.count("\n") == 1


def test_no_clips(folder):
    edit_json(folder / CONFIGURATION, lambda o: (o["encoder"].update(cell_clip=0), o["encoder"].pop("proj_clip")))
    expected = MODELS["manylangs"]
    config = replace(expected.config, cell_clip=None, projection_clip=None)
    same_model(load_model(folder), replace(expected, config=config))
