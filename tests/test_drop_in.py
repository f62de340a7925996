"""What callers of AllenNLP, sentence-transformers and data frames write works as it stands, or says what to write."""

import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_models import MODELS, SENTENCES

from flashelmo import Elmo, ElmoEmbedder, FlashElmoError, batch_to_ids, load_model
from flashelmo.cli import main
from flashelmo.engine import sentence_transformers
from flashelmo.engine.model.checkpoints.bilm import write_bilm
from flashelmo.engine.model.checkpoints.convert import convert
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.settings import Settings
from flashelmo.export import OnnxElmo, export_onnx

TEXTS = [" ".join(sentence) for sentence in SENTENCES]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The two files that AllenNLP's users have, in a home folder, and what they give."""
    home = tmp_path_factory.mktemp("home")
    write_bilm(MODELS["skip"], home / "model")
    options = (home / "model" / "options.json").rename(home / "options elsewhere.json")
    (home / "text.txt").write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    weights = home / "model" / "weights.hdf5"
    vectors = ElmoEmbedder.load(weights, options_file=options).embed_batch(SENTENCES)
    return SimpleNamespace(home=home, options=str(options), weights=str(weights), vectors=vectors)


def check(found: Any, files: SimpleNamespace) -> None:
    found = list(found)
    assert len(found) == len(files.vectors)
    for a, b in zip(found, files.vectors, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda f: ElmoEmbedder(f.options, f.weights),
        lambda f: ElmoEmbedder(f.options, f.weights, -1),
        lambda f: ElmoEmbedder(options_file=f.options, weight_file=f.weights, cuda_device=-1),
        lambda f: ElmoEmbedder(weight_file=Path(f.weights), options_file=Path(f.options)),
        lambda f: ElmoEmbedder(f.options, f.weights, device="cpu"),
        lambda f: ElmoEmbedder(f.weights, options_file=f.options, precision="fp32"),
        lambda f: ElmoEmbedder.load(f.weights, options_file=f.options, device=torch.device("cpu"), precision="fp32"),
    ],
)
def test_an_embedder_is_made_as_in_allennlp(make: Callable[[Any], ElmoEmbedder], files: SimpleNamespace) -> None:
    embedder = make(files)
    assert (embedder.device, embedder.precision) == ("cpu", "fp32")
    check(embedder.embed_sentences(SENTENCES, batch_size=2), files)
    check(embedder.embed_batch(SENTENCES), files)
    check(map(embedder.embed_sentence, SENTENCES), files)
    check(pickle.loads(pickle.dumps(embedder)).embed(SENTENCES), files)


def test_allennlps_call_has_allennlps_device_and_precision(files: SimpleNamespace) -> None:
    settings = ElmoEmbedder(files.options, files.weights).settings
    assert (settings.device, settings.precision) == ("cpu", "fp32")
    with pytest.raises(FlashElmoError, match=r"^device 'cuda(:1)?': |PyTorch"):
        ElmoEmbedder(files.options, files.weights, 1)
    assert ElmoEmbedder(files.options, files.weights, precision="int8").precision == "int8"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "model: expected a path, a name or a model in memory, found none"),
        ({"weight_file": 7}, "weight_file: expected a path, found 7"),
        ({"weight_file": "w", "options_file": 7}, "options_file: expected a path, found 7"),
        ({"model": 7}, "model: expected a path, found 7"),
        ({"model": "o", "weight_file": "w", "options_file": "o"}, "options_file: expected one, found two"),
        (
            {"model": MODELS["skip"], "weight_file": "w"},
            "weight_file, options_file: cannot be combined with a model in",
        ),
        ({"model": "m", "cuda_device": 0, "device": "cpu"}, "cuda_device: expected none together with device, found 0"),
        ({"model": "m", "cuda_device": -2}, "cuda_device: expected a name as 'cuda:0', a number, -1 for the CPU, or a"),
        ({"model": "m", "cuda_device": [0, 1]}, "cuda_device: expected a name as 'cuda:0', a number, -1 for the CPU"),
        ({"model": "/absent"}, "/absent: no such file or folder"),
    ],
    ids=str,
)
def test_embedders_that_are_not_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(FlashElmoError) as error:
        ElmoEmbedder(**arguments)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("stateful", [False, True])
def test_a_batch_as_tensors(files: SimpleNamespace, stateful: bool) -> None:
    embedder = ElmoEmbedder(files.options, files.weights, stateful=stateful, batch_size=2)
    vectors, mask = embedder.batch_to_embeddings(SENTENCES)
    assert vectors.shape == (5, 3, 6, 8) and vectors.dtype == torch.float32
    assert mask.dtype == torch.int64 and mask.tolist() == [[1] * len(s) + [0] * (6 - len(s)) for s in SENTENCES]
    check([row[:, : len(sentence)] for row, sentence in zip(vectors, SENTENCES, strict=True)], files)
    for row, sentence in zip(vectors, SENTENCES, strict=True):
        assert not row[:, len(sentence) :].any()
    again, _ = embedder.batch_to_embeddings(SENTENCES)  # a stateful one goes on with a row for every sentence
    assert torch.equal(again, vectors) != stateful
    vectors, mask = embedder.batch_to_embeddings([[], []])
    assert vectors.shape == (2, 3, 0, 8) and mask.shape == (2, 0)
    with pytest.raises(FlashElmoError, match=r"^batch: expected one sentence or more, found none$"):
        embedder.batch_to_embeddings([])


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (0, "cuda:0"),
        (np.int64(3), "cuda:3"),
        (-1, "cpu"),
        (torch.device("cpu"), "cpu"),
        (torch.device("cpu", 0), "cpu"),
        (torch.device("cuda"), "cuda"),
        (torch.device("cuda", 1), "cuda:1"),
        ([0, torch.device("cuda:1"), "cuda:2"], ("cuda:0", "cuda:1", "cuda:2")),
    ],
    ids=str,
)
def test_devices_as_pytorchs_users_name_them(device: Any, name: Any) -> None:
    assert Settings(device=device).device == name


@pytest.mark.parametrize("device", [None, -2, True, 0.0, {"cuda"}, {}, torch.ones(2), [None]], ids=str)
def test_what_is_no_device(device: Any) -> None:
    with pytest.raises(FlashElmoError, match=r"^device: expected a name as 'cuda:0', a number, -1 for the CPU, or a"):
        Settings(device=device)
    with pytest.raises(FlashElmoError, match=r"^device: expected auto, cpu, cuda or cuda:N, found 'meta'$"):
        ElmoEmbedder(MODELS["skip"], device=torch.device("meta"))


def test_the_home_folder_in_paths(files: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(files.home))
    monkeypatch.chdir(tmp_path)
    weights, options = "~/model/weights.hdf5", Path("~/options elsewhere.json")
    embedder = ElmoEmbedder(weights, options_file=options)
    monkeypatch.setenv("HOME", "/absent")
    check(pickle.loads(pickle.dumps(embedder)).embed(SENTENCES), files)
    monkeypatch.setenv("HOME", str(files.home))
    check(ElmoEmbedder(options, weights).embed(SENTENCES), files)  # type: ignore[arg-type]
    assert load_model(weights, options).path == Path(files.weights)
    assert Elmo(options, weights, 1).get_output_dim() == 8
    with (files.home / "text.txt").open(encoding="utf-8") as text:
        embedder.embed_file(text, "~/vectors.npz", "top", 2)
    with np.load(files.home / "vectors.npz") as found:
        assert all(np.array_equal(found[str(i)], layers[-1]) for i, layers in enumerate(files.vectors))
    embedder.embed_file("~/text.txt", "~/vectors.npz", overwrite=True)
    with np.load(files.home / "vectors.npz") as found:
        check([found[str(i)] for i in range(len(SENTENCES))], files)
    convert(weights, "~/native", options_file=options)
    assert main(["embed", "~/text.txt", "~/vectors.h5", "--model", "~/native", "--quiet"]) == 0
    assert main(["info", "~/native"]) == 0
    export_onnx(load_model("~/native"), "~/exported", sentences=SENTENCES)
    assert OnnxElmo("~/exported").output_size == 8
    assert {path.name for path in files.home.iterdir()} >= {"native", "exported", "vectors.npz", "vectors.h5"}
    assert not list(tmp_path.iterdir())


ADDRESSES = ["https://host/elmo/weights.hdf5", "s3://bucket/weights.hdf5", "hf://org/model", "file:///weights.hdf5"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_nothing_is_downloaded(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("path", lambda: load_model(address)),
        ("path", lambda: load_model(Path(address))),
        ("path", lambda: ElmoEmbedder.load(address)),
        ("model", lambda: ElmoEmbedder(address)),
        ("weight_file", lambda: ElmoEmbedder("o.json", address)),
        ("options_file", lambda: ElmoEmbedder(address, "w.hdf5")),
        ("options_file", lambda: Elmo(address, "w.hdf5", 1)),
        ("path", lambda: OnnxElmo(address)),
    ]
    same = "file:/weights.hdf5" if address.startswith("file") else address
    for name, call in calls:
        with pytest.raises(FlashElmoError) as error:
            call()
        found = str(error.value).replace("file:///", "file:/").replace("file://", "file:/")
        assert found == (
            f"{name}: expected a path on this machine, as no address is downloaded, found {same}; "
            "fetch it, say with curl -LO, and give its path"
        )
    assert main(["info", address]) == 1
    assert "as no address is downloaded, found" in capfd.readouterr().err


class Column:
    """A column of pandas: no sequence, but with an iterator and a list of its values."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def tolist(self) -> list[Any]:
        return list(self.values)


class Series(Column):
    """A column as polars has it: its method has another name."""

    to_list = Column.tolist

    @property
    def tolist(self) -> Any:
        raise AttributeError("tolist")


class DaskSeries(Column):
    """A column as Dask has it: with a name, and columns of its own."""

    name, columns = "text", ("text",)


COLUMNS: dict[str, Callable[[list[str]], Any]] = {
    "numpy": np.array,
    "numpy objects": lambda texts: np.array(texts, object),
    "arrow": pa.array,
    "arrow, large": lambda texts: pa.array(texts, pa.large_string()),
    "arrow, dictionary": lambda texts: pa.array(texts).dictionary_encode(),
    "arrow, chunks": lambda texts: pa.chunked_array([texts[:2], texts[2:2], texts[2:]]),
    "arrow, slice": lambda texts: pa.array(["x", *texts, "y"]).slice(1, len(texts)),
    "arrow, column": lambda texts: pa.table({"text": texts})["text"],
    "arrow, scalar": pa.scalar,
    "pandas": Column,
    "polars": Series,
    "dask": DaskSeries,
    "iterator": iter,
}


@pytest.mark.parametrize("column", COLUMNS)
def test_texts_in_arrays_and_columns(
    column: str, files: SimpleNamespace, embedder: ElmoEmbedder, exported: OnnxElmo
) -> None:
    make = COLUMNS[column]
    check(embedder.embed(make(TEXTS)), files)
    check(embedder.embed_batch(make(TEXTS)), files)
    check(embedder.embed_sentences(make(TEXTS)), files)
    stateful = ElmoEmbedder(MODELS["skip"], stateful=True, batch_size=5)
    check(stateful.embed_sentences(make(TEXTS)), files)
    np.testing.assert_array_equal(embedder.encode(make(TEXTS)), embedder.encode(TEXTS))
    np.testing.assert_array_equal(exported.encode(make(TEXTS)), exported.encode(TEXTS))
    assert torch.equal(batch_to_ids(make(TEXTS)), batch_to_ids(TEXTS))


@pytest.mark.parametrize("column", [name for name in COLUMNS if name != "iterator"])
def test_tokens_in_arrays_and_columns(column: str, files: SimpleNamespace, embedder: ElmoEmbedder) -> None:
    make = COLUMNS[column]
    check(map(embedder.embed_sentence, [make(sentence) if sentence else [] for sentence in SENTENCES]), files)
    assert torch.equal(batch_to_ids([make(SENTENCES[0])]), batch_to_ids(SENTENCES[:1]))


def test_lists_of_texts_in_arrow_and_numpy(files: SimpleNamespace, embedder: ElmoEmbedder) -> None:
    check(embedder.embed(pa.array(SENTENCES)), files)
    check(embedder.embed(pa.array(SENTENCES * 7000).slice(0, 5)), files)
    (found,) = embedder.embed(np.array([SENTENCES[0]]))
    np.testing.assert_array_equal(found, files.vectors[0])
    check(embedder.embed(np.array(TEXTS)[:, None]), files)  # as scikit-learn and `DataFrame.values` give a column
    refused: list[Any] = [
        pa.array(["the", None]),
        np.array([1.0, 2.0]),
        Column([float("nan")]),
        np.array("the"),
        [b"cat"],
    ]
    for given in refused:
        with pytest.raises(FlashElmoError, match=r"^sentences?( \d)?: expected .*, found "):
            list(embedder.embed(given))


@pytest.fixture(scope="module")
def embedder() -> ElmoEmbedder:
    return ElmoEmbedder(MODELS["skip"], device="cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> OnnxElmo:
    folder = tmp_path_factory.mktemp("exported")
    export_onnx(MODELS["skip"], folder / "model", sentences=SENTENCES)
    return OnnxElmo(folder / "model")


@pytest.mark.parametrize("output_value", ["sentence_embedding", "token_embeddings"])
def test_encode_as_sentence_transformers_callers_use_it(
    embedder: ElmoEmbedder, output_value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    expected = embedder.encode(TEXTS, output_value=output_value)
    for arguments in (
        {"convert_to_tensor": True},
        {"convert_to_tensor": True, "convert_to_numpy": True, "device": "cpu"},
        {"convert_to_tensor": True, "device": torch.device("cpu"), "precision": "float32"},
    ):
        found = embedder.encode(TEXTS, output_value=output_value, **arguments)
        assert all(isinstance(each, torch.Tensor) for each in found)
        assert isinstance(found, torch.Tensor) == (output_value == "sentence_embedding")
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a.numpy(), b)
    sentence_transformers._warn_of_prompts.cache_clear()
    with caplog.at_level(logging.WARNING):
        for device in (None, -1, "auto", "cpu"):
            found = embedder.encode(
                TEXTS, output_value=output_value, device=device, prompt_name="query", show_progress_bar=None
            )
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [record.message for record in caplog.records] == ["prompt_name: ELMo has no prompts; it has no effect"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cuda"}, "device: expected cpu, for which this embedder was made, found 'cuda'"),
        ({"device": 0}, "device: expected cpu, for which this embedder was made, found 'cuda:0'"),
        ({"device": []}, "device: expected a name as 'cuda:0', a number, -1 for the CPU, or a torch.device, found []"),
        ({"precision": "binary"}, "precision: expected 'float32'; quantize the vectors afterwards, found 'binary'"),
        ({"precision": None}, "precision: expected 'float32'; quantize the vectors afterwards, found None"),
        ({"convert_to_tensor": "yes"}, "convert_to_tensor: expected True or False, found 'yes'"),
        ({"show_progress_bar": 1}, "show_progress_bar: expected True or False, found 1"),
    ],
    ids=str,
)
def test_encode_refuses_what_it_has_not(embedder: ElmoEmbedder, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(FlashElmoError) as error:
        embedder.encode(TEXTS, **arguments)
    assert str(error.value) == message


def test_a_progress_bar_over_a_generator(embedder: ElmoEmbedder, capsys: pytest.CaptureFixture[str]) -> None:
    found = embedder.encode((text for text in TEXTS), show_progress_bar=True)
    np.testing.assert_array_equal(found, embedder.encode(TEXTS))
    assert "5sentence [" in capsys.readouterr().err


def test_a_mix_in_an_array_or_a_tensor(embedder: ElmoEmbedder) -> None:
    mix = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
    expected = embedder.encode(TEXTS, mix=[0.5, -1.0, 2.0])
    mixes: list[Any] = [mix, mix.detach().numpy(), mix.detach().double(), tuple(mix.tolist())]
    for given in mixes:
        np.testing.assert_array_equal(embedder.encode(TEXTS, mix=given), expected)
        (found,) = embedder.embed([TEXTS[0]], mix=given, pool="mean")
        np.testing.assert_array_equal(found, expected[0])


def test_word_models_without_a_vocabulary_run_on_ids(tmp_path: Path) -> None:
    write_bilm(MODELS["words alone"], tmp_path / "model")
    ids = Elmo(tmp_path / "model", None, 1).batch_to_word_ids(SENTENCES)
    with torch.inference_mode():
        expected = Elmo(tmp_path / "model", None, 1, dropout=0.0)(None, ids)
        (tmp_path / "model" / "vocab.txt").unlink()
        elmo = Elmo(tmp_path / "model", None, 1, dropout=0.0)
        found = elmo(None, ids)
    assert torch.equal(found["elmo_representations"][0], expected["elmo_representations"][0])
    assert torch.equal(found["mask"], expected["mask"]) and expected["elmo_representations"][0].abs().max() > 0.1
    assert elmo.batch_to_word_ids([[], []]).shape == (2, 0)
    write_native(load_model(tmp_path / "model"), tmp_path / "native")
    export_without = load_model(tmp_path / "native")
    calls: list[Callable[[], object]] = [
        lambda: elmo.batch_to_word_ids(SENTENCES),
        lambda: ElmoEmbedder(tmp_path / "model").embed_sentence("the cat"),
        lambda: Elmo(tmp_path / "native", None, 1, vocab_to_cache=["the"]),
        lambda: export_onnx(export_without, tmp_path / "exported"),
    ]
    for call in calls:
        with pytest.raises(FlashElmoError) as error:
            call()
        assert str(error.value) == (
            "vocabulary: expected vocab.txt beside the model's weights, which looks words up, found none; "
            "the module Elmo takes ids without one"
        )
