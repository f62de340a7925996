"""Whatever is given for an argument of a public function: a result, or one line of an error that names the argument.

`FLASHELMO_MISUSES=20000 pytest tests/test_misuse.py` tries more of them, other ones each time.
"""

import inspect
import io
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import MODELS, SENTENCES

import flashelmo
from flashelmo import CudaSettings, Elmo, ElmoConfig, ElmoEmbedder, FlashElmoError, batch_to_ids, export, load_model
from flashelmo.engine.bulk.embeddings import open_embeddings
from flashelmo.engine.bulk.records import open_reader
from flashelmo.engine.bulk.run import embed_corpus
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.neighbours import find_neighbours
from flashelmo.engine.text.windows import Window
from flashelmo.export import OnnxElmo, export_onnx, verify
from flashelmo.export.build import metadata_of

MISUSES = int(os.environ.get("FLASHELMO_MISUSES", 0))
MODEL = MODELS["skip"]
CONFIG = MODEL.config.to_dict()
# What an error may call an argument: a part of it, the file that it names, or what it is made into.
PARTS = {
    "batch": "sentence|token|word",
    "sentences": "sentence|token|word",
    "sentence": "token",
    "query": "sentence|token|word",
    "word": "token",
    "layers": "mix",  # as which numbers that are not whole were taken
    "vocab_to_cache": "word",
    "inputs": "character_ids",
    "word_inputs": "word_ids",
    "windows": "window",
    "values": "config.json",
    "truth": "model",
    "precisions": "precision",
}
NOT_CALLED = {
    "FlashElmoError",  # raised, not called
    "MissingExtraError",
    "Client",  # of a server: tests/test_serve_limits.py
    "LanguageModel",  # made by its `load`
    "Report",  # made by `verify`; its methods take no arguments
    "__version__",
}


@dataclass(frozen=True)
class Use:
    """A call that is right."""

    function: Callable[..., Any]
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> list[str]:
        kinds = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
        return [name for name, each in inspect.signature(self.function).parameters.items() if each.kind not in kinds]

    def __call__(self, **changes: Any) -> None:
        result = self.function(**{**self.arguments, **changes})
        if isinstance(result, Iterator):
            list(result)


@pytest.fixture(scope="module")
def uses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Use]]:
    # Hypothesis draws numbers and texts of imported modules too: what is drawn would change with each import.
    for module in pkgutil.walk_packages(flashelmo.__path__, "flashelmo."):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):  # an optional package is absent
                import_module(module.name)
    folder = tmp_path_factory.mktemp("misuse")
    write_native(MODEL, folder / "model")
    (folder / "text").write_text("the cat\nsat\n", encoding="utf-8")
    exported = folder / "exported"
    export_onnx(MODEL, exported, sentences=SENTENCES)
    before, home = Path.cwd(), os.environ.get("HOME", "")
    hub = SimpleNamespace(create_repo=lambda *_, **__: "address", upload_folder=lambda **_: None)
    others = {**sys.modules}
    sys.modules["huggingface_hub"] = SimpleNamespace(HfApi=lambda token: hub)  # type: ignore[assignment]
    os.chdir(tmp_path_factory.mktemp("here"))  # where what is written under odd names may lie
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
    torch.set_num_threads(1)
    embedder = ElmoEmbedder(MODEL, device="cpu", threads=1)
    stateful = ElmoEmbedder(MODEL, device="cpu", stateful=True, threads=1)
    elmo, onnx = Elmo(folder / "model", None, 1), OnnxElmo(exported, threads=1)
    embed_corpus(embedder, open_reader(folder / "text"), folder / "shards")
    ids = batch_to_ids(SENTENCES)[:, :, :12]
    batch = {"batch": SENTENCES}
    made: dict[str, Any] = {
        "CudaSettings": Use(CudaSettings),
        "Elmo": Use(Elmo, {"options_file": folder / "model", "weight_file": None, "num_output_representations": 1}),
        "Elmo.batch_to_ids": Use(elmo.batch_to_ids, batch),
        "Elmo.batch_to_word_ids": Use(Elmo(folder / "model", None, 1).batch_to_word_ids, batch),
        "Elmo.forward": Use(elmo.forward, {"inputs": ids}),
        "Elmo.get_output_dim": Use(elmo.get_output_dim),
        "Elmo.reset_state": Use(elmo.reset_state),
        "Elmo.to_model": Use(elmo.to_model),
        "Elmo.save": Use(elmo.save, {"folder": folder / "tuned", "overwrite": True}),
        "ElmoConfig": Use(ElmoConfig, CONFIG),
        "ElmoConfig.from_dict": Use(ElmoConfig.from_dict, {"values": CONFIG}),
        "ElmoConfig.to_dict": Use(MODEL.config.to_dict),
        "ElmoEmbedder": Use(ElmoEmbedder, {"model": MODEL, "device": "cpu", "threads": 1}),
        "ElmoEmbedder.load": Use(ElmoEmbedder.load, {"path": folder / "model", "device": "cpu", "threads": 1}),
        "ElmoEmbedder.embed": Use(embedder.embed, {"sentences": SENTENCES}),
        "ElmoEmbedder.embed_batch": Use(embedder.embed_batch, batch),
        "ElmoEmbedder.embed_sentence": Use(embedder.embed_sentence, {"sentence": ["the", "cat"]}),
        "ElmoEmbedder.embed_sentences": Use(embedder.embed_sentences, {"sentences": SENTENCES}),
        "ElmoEmbedder.batch_to_embeddings": Use(embedder.batch_to_embeddings, batch),
        "ElmoEmbedder.encode": Use(embedder.encode, {"sentences": SENTENCES}),
        "ElmoEmbedder.embed_file": Use(
            embedder.embed_file,
            {"input_file": folder / "text", "output_file_path": folder / "vectors.npz", "overwrite": True},
        ),
        "ElmoEmbedder.embed_windows": Use(
            embedder.embed_windows, {"windows": [Window.from_sentences(SENTENCES)], "convert_to_numpy": True}
        ),
        "ElmoEmbedder.fingerprint": Use(embedder.fingerprint),
        "ElmoEmbedder.reset_state": Use(embedder.reset_state),
        "ElmoEmbedder.close": Use(ElmoEmbedder.load(device="cpu").close),
        "ElmoEmbedder.save_pretrained": Use(embedder.save_pretrained, {"folder": folder / "saved", "overwrite": True}),
        "ElmoEmbedder.push_to_hub": Use(embedder.push_to_hub, {"repo_id": "me/model"}),
        "stateful.embed_batch": Use(stateful.embed_batch, batch),
        "stateful.embed_sentences": Use(stateful.embed_sentences, {"sentences": SENTENCES}),
        "batch_to_ids": Use(batch_to_ids, batch),
        "find_neighbours": Use(
            find_neighbours, {"elmo": embedder, "sentences": SENTENCES, "query": ["the", "cat"], "word": "cat"}
        ),
        "load_model": Use(load_model, {"path": folder / "model"}),
        "open_embeddings": Use(open_embeddings, {"path": folder / "shards"}),
        "OnnxElmo": Use(OnnxElmo, {"path": exported, "threads": 1}),
        "OnnxElmo.inputs": Use(onnx.inputs, {"sentences": SENTENCES}),
        "OnnxElmo.embed": Use(onnx.embed, {"sentences": SENTENCES}),
        "OnnxElmo.encode": Use(onnx.encode, {"sentences": SENTENCES}),
        "OnnxElmo.run": Use(onnx.run, onnx.inputs(SENTENCES)),
        "OnnxElmo.reset_state": Use(onnx.reset_state),
        "export_onnx": Use(
            export_onnx, {"model": MODEL, "folder": folder / "again", "sentences": SENTENCES[:1], "overwrite": True}
        ),
        "verify": Use(
            verify,
            {"path": exported / "onnx" / "model.onnx", "model": MODEL, "sentences": SENTENCES[:1], "batch_sizes": (1,)},
        ),
    }
    yield made
    os.chdir(before)
    os.environ["HOME"] = home
    sys.modules.pop("huggingface_hub")
    if "huggingface_hub" in others:
        sys.modules["huggingface_hub"] = others["huggingface_hub"]


def check(use: Use, name: str, value: Any) -> None:
    """A result, or one line of an error that names the argument."""
    try:
        use(**{name: value})
    except (FlashElmoError, TypeError) as error:
        text = str(error)
        assert text and "\n" not in text, text
        named = [name, *PARTS.get(name, name).split("|")]
        if isinstance(value, str | Path) and str(value):  # the file, wherever it lies
            named += [str(Path(value).expanduser()), " ".join(str(value).split()), str(FlashElmoError(value))]
        is_called = name == "on_progress" and callable(value)  # and says itself what it takes
        assert is_called or any(each in text for each in named), f"{name}={value!r}: {text}"
    except OSError as error:  # of a text that is not there
        assert name == "input_file" and error.filename


class Odd:
    """Nothing that any argument takes."""

    def __repr__(self) -> str:
        return "an object\nwith a name of two lines"


ODD: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, -(10**20), 10**20, 0.5, -0.5, float("nan"), float("inf"), 1j),
    *("", "a", "the cat", "-1", "cuda:x", "\ud800", "a\nb", "all", "a/b/c.h5", "~", "http://a/b", b"", b"cat"),
    *([], [None], ["the", None], [[]], [["the", 1]], [1, 2], [0.5, float("nan")], [[["the"]]], (), ("the", "cat")),
    *(range(3), {}, {"a": 1}, {"the"}, bytearray(b"cat"), object(), Odd(), Odd, len, lambda: None, slice(1)),
    *(io.BytesIO(b"the cat\n"), io.StringIO("the cat\n"), Path("x"), Path("x/y.npz"), Exception("a\nb")),
    *(np.array(1), np.array([1.0, 2.0]), np.array(["the"]), np.zeros((2, 2)), np.array([True]), np.int64(-3)),
    *(torch.tensor(1), torch.zeros(2, 3), torch.zeros(2, 2, 12).long(), -torch.ones(2, 2, 12).long()),
    *(
        pa.array(["the", None]),
        pa.array([1, 2]),
        pa.table({"a": ["the"]}),
        (word for word in "ab"),
        MODEL,
        MODEL.config,
    ),
]
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.binary(max_size=4))
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=4,
    ),
)
SLOW = ("export_onnx", "verify")  # what is right for them is written and verified: tried with what is odd alone


def takes_long(name: str, value: Any) -> bool:
    """What starts many threads or processes is no misuse."""
    if name == "threads":
        return type(value) is int and 2 < value <= 64
    return name == "device" and isinstance(value, list | tuple | range) and len(value) > 1


@settings(max_examples=MISUSES or 500, derandomize=not MISUSES, database=None)
@given(data=st.data())
def test_any_value_of_any_argument(uses: dict[str, Use], data: st.DataObject) -> None:
    arguments = [(key, name) for key in sorted(set(uses) - set(SLOW)) for name in uses[key].parameters]
    (key, name), value = data.draw(st.sampled_from(arguments)), data.draw(VALUES)
    if isinstance(value, io.BytesIO | io.StringIO):
        value.seek(0)
    if not takes_long(name, value):
        check(uses[key], name, value)


@pytest.mark.parametrize("name", ["sentences", "batch", "sentence", "layers", "mix", "device", "batch_size", "outputs"])
def test_every_odd_value_of_common_arguments(uses: dict[str, Use], name: str) -> None:
    for key in sorted(set(uses) - {*SLOW, "ElmoEmbedder.load"}):
        for value in ODD if name in uses[key].parameters else ():
            if not takes_long(name, value):
                check(uses[key], name, value)


ODD_FOR_FILES: dict[str, list[Any]] = {
    "model": [None, "a", 1, Odd()],
    "folder": [None, 1, "", "x.onnx", "http://a/b", b"a"],
    "path": [None, 1, "", "x.onnx", "http://a/b", b"a"],
    "precisions": [None, 1, "fp32", [], ["fp8"], [None], ["fp32", "fp32"], {"fp32"}],
    "target": [None, 1, "tpu", ["cuda"]],
    "steps": [1, [0], ["a"], [1.5], "12", []],  # which files for CUDA have
    "batch": [1, [0], ["a"], [1.5], "12", []],
    "triton": [None, 1, "no"],
    "overwrite": [None, 1, "no"],
    "sentences": [1, "the cat", [1], [[]], [[None]], [b"cat"], {"the cat": 1}],
    "providers": [None, 1, [], "tpu", [None], [("cpu", 1)]],
    "on_progress": [None, 1, "a"],
    "layers": ["0", 1, [-1], [3], [0, 0], [0.5], [None], [True]],
    "mix": ["1", 1, [1], [0, 0, 0], [1, 2, float("nan")], [None], np.ones((2, 2))],
    "stateful": [None, 1, "no"],
    "characters": [0, -1, "all", 1.5, [], np.zeros(2)],
    "reduce_range": [1, "no"],
    "external_data": [None, 1, "no"],
    "license": [None, 1, b"mit"],
    "batch_sizes": [None, 1, [], [0], ["a"], [1.5], "12"],
    "bounds": [1, [], "fp32"],
    "truth": [1, "a", MODEL],
    "expected": [1, "a", {}],
}


@pytest.mark.parametrize("key", SLOW)
def test_odd_values_for_exported_files(uses: dict[str, Use], key: str) -> None:
    options = {*inspect.signature(metadata_of).parameters} - {"precision"}
    for name in {*uses[key].parameters} | (options if key == "export_onnx" else set()):
        for value in ODD_FOR_FILES[name]:
            arguments = {"precisions": ["int8"]} if name == "reduce_range" else {}
            with pytest.raises((FlashElmoError, TypeError)):
                uses[key](**arguments, **{name: value})
            check(Use(uses[key].function, {**uses[key].arguments, **arguments}), name, value)


def test_misspelled_and_missing_arguments(uses: dict[str, Use]) -> None:
    for key, use in uses.items():
        if use.parameters or key == "CudaSettings":
            with pytest.raises((FlashElmoError, TypeError), match="misspelled") as error:
                use(misspelled=1)
            assert "\n" not in str(error.value)
        for name in set(use.arguments) & set(use.parameters):
            if inspect.signature(use.function).parameters[name].default is inspect.Parameter.empty:
                rest = {other: value for other, value in use.arguments.items() if other != name}
                with pytest.raises((FlashElmoError, TypeError), match=name):
                    Use(use.function, rest)()


def test_every_public_function_is_tried(uses: dict[str, Use]) -> None:
    for module in (flashelmo, export):
        for name in set(module.__all__) - NOT_CALLED:
            value = getattr(module, name)
            assert name in uses
            methods = vars(value) if inspect.isclass(value) else {}
            for method, function in methods.items():
                if not method.startswith("_") and (inspect.isfunction(function) or isinstance(function, classmethod)):
                    assert f"{name}.{method}" in uses
