"""How OnnxElmo opens a file: providers, options, damaged files, and what it needs to be installed."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx_toy import METADATA, toy_model
from test_architecture import FACE, HEAVY, imports, modules, run_python, top_level
from tiny_models import MANYLANGS, MANYLANGS_LEXICON, MODELS

from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.export import onnx_elmo as runtime
from flashelmo.export import open_session
from flashelmo.export.build import build_onnx
from flashelmo.export.metadata import Metadata
from flashelmo.export.onnx_elmo import OnnxElmo

# Blocks everything but the standard library, numpy, onnxruntime and this package.
ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in sys.stdlib_module_names | {"numpy", "onnxruntime", "flashelmo"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model(tmp_path_factory.mktemp("toy") / "onnx" / "model.onnx")


class Recorder:
    """A session that notes what is bound where, and computes on the CPU."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.outputs: list[tuple[str, str, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def io_binding(self) -> Any:
        binding = self.session.io_binding()
        bind = binding.bind_output

        def bind_output(name: str, device: str, number: int) -> None:
            self.outputs.append((name, device, number))
            bind(name, "cpu", 0)

        binding.bind_output = bind_output
        return binding


def test_only_what_is_asked_for_is_bound(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elmo = OnnxElmo(toy)
    recorder = Recorder(elmo._session())
    monkeypatch.setattr(elmo, "_session", lambda: recorder)
    elmo.embed(["a b", "c"])
    elmo.encode("a")
    elmo.run(outputs=["mask"], **elmo.inputs(["a"]))
    names = ["hidden_states.0", "hidden_states.2", "sentence_embedding", "mask"]
    assert recorder.outputs == [(name, "cpu", 0) for name in names]


def test_outputs_are_bound_to_the_first_providers_device(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_session = onnxruntime.InferenceSession(str(toy), providers=["CPUExecutionProvider"])
    asked: list[Any] = []

    def session(file: str, options: Any, *, providers: Any, enable_fallback: int) -> Recorder:
        asked.append((providers, enable_fallback))
        made = Recorder(cpu_session)
        made.get_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]  # type: ignore[attr-defined]
        return made

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    elmo = OnnxElmo(toy, providers=[("cuda", {"device_id": 1})])
    elmo.encode("a")
    assert asked == [([("CUDAExecutionProvider", {"use_tf32": "0", "device_id": 1})], 0)]
    assert elmo._session().outputs == [("sentence_embedding", "cuda", 1)]
    assert elmo.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")


def test_providers_that_are_not_there(toy: Path) -> None:
    wrong: list[tuple[Any, str]] = [
        (
            ["NnapiExecutionProvider"],
            "providers: expected some of .*CPUExecutionProvider, found NnapiExecutionProvider",
        ),
        (("NnapiExecutionProvider", {"device_id": 0}), "found NnapiExecutionProvider"),
        (("cpu", {"device_id": 0}), r"providers: expected names or \(name, options\), found {'device_id': 0}"),
        ([("cpu", 3)], r"providers: expected names or \(name, options\), found \('cpu', 3\)"),
        ([], "providers: expected some of .*, found none"),
    ]
    for providers, message in wrong:
        with pytest.raises(FlashElmoError, match=message):
            OnnxElmo(toy, providers=providers)


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_provider_that_does_not_load_is_no_silent_cpu(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["NnapiExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    message = "providers: NnapiExecutionProvider did not load, ONNX Runtime would have used CPUExecutionProvider$"
    with pytest.raises(FlashElmoError, match=message):
        OnnxElmo(toy, providers=names)


def test_threads_and_session_options(toy: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    np.testing.assert_array_equal(OnnxElmo(toy, session_options=options).embed(["a"]), OnnxElmo(toy).embed(["a"]))
    with pytest.raises(FlashElmoError, match="threads: with session_options, set them there"):
        OnnxElmo(toy, session_options=options, threads=1)
    with pytest.raises(FlashElmoError, match=r"threads: expected 1 to \d+, found 0"):
        OnnxElmo(toy, threads=0)
    assert open_session.options_of(None, 3).intra_op_num_threads == 3


def test_files_that_cannot_be_loaded(toy: Path, tmp_path: Path) -> None:
    def message_of(path: Path) -> str:
        with pytest.raises(FlashElmoError) as caught:
            OnnxElmo(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    absent = "expected a model exported by flashelmo, found no such file"
    assert message_of(tmp_path / "no.onnx") == f"{tmp_path / 'no.onnx'}: {absent}"
    assert message_of(tmp_path) == f"{tmp_path / 'onnx' / 'model.onnx'}: {absent}"
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(toy.read_bytes()[:300])
    assert message_of(damaged).startswith(f"{damaged}: ONNX Runtime cannot load it: ")
    foreign = onnx.load(toy)
    del foreign.metadata_props[:]
    onnx.save(foreign, damaged)
    assert message_of(damaged) == f"{damaged}: expected a model exported by flashelmo, found no metadata of it"
    helper.set_model_props(foreign, replace(METADATA, stateful=True).to_properties())
    onnx.save(foreign, damaged)
    expected = "expected the inputs character_ids, state.hidden, state.cell, found character_ids"
    assert message_of(damaged) == f"{damaged}: {expected}"


def test_external_data(toy: Path, tmp_path: Path) -> None:
    whole = toy_model(tmp_path / "whole" / "model.onnx", external=True)
    assert (whole.parent / "model.onnx_data").is_file()
    np.testing.assert_array_equal(OnnxElmo(whole).embed(["a b"]), OnnxElmo(toy).embed(["a b"]))
    alone = tmp_path / "model.onnx"
    shutil.copy(whole, alone)
    with pytest.raises(FlashElmoError, match=r"model\.onnx: ONNX Runtime cannot load it: .*model\.onnx_data") as caught:
        OnnxElmo(alone)
    assert "\n" not in str(caught.value)


def test_onnx_runtime_says_nothing_by_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = build_and_cut(tmp_path / "model.onnx")
    with pytest.raises(FlashElmoError, match=r"model\.onnx: ONNX Runtime cannot load it: .*"):
        OnnxElmo(whole)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def build_and_cut(path: Path) -> Path:
    """A file whose external data end too early."""
    build_onnx(MODELS["skip"], path, external_data=True)
    data = path.with_name("model.onnx_data")
    data.write_bytes(data.read_bytes()[:100])
    return path


def test_a_failure_while_running_is_one_line(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elmo = OnnxElmo(toy)
    monkeypatch.setattr(runtime, "check_inputs", lambda inputs, metadata: inputs)
    with pytest.raises(FlashElmoError, match=r"model\.onnx: ONNX Runtime failed: .*character_ids") as caught:
        elmo.run(character_ids=np.ones((1, 2, 3), np.int64))
    assert "\n" not in str(caught.value)


def test_weights_that_saturate_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = toy_model(tmp_path / "model.onnx", replace(METADATA, precision="int8", int8_levels=127))
    reduced = toy_model(tmp_path / "reduced.onnx", replace(METADATA, precision="int8", int8_levels=63))
    monkeypatch.setattr(runtime.platform, "machine", lambda: "x86_64")
    for levels in (127, 63):
        monkeypatch.setattr(runtime, "int8_levels", lambda levels=levels: levels)
        with caplog.at_level(logging.WARNING, "flashelmo"):
            OnnxElmo(reduced)
            OnnxElmo(file)
    assert [record.name for record in caplog.records] == ["flashelmo"]
    assert "up to 127 saturate" in caplog.text and "reduce_range" in caplog.text and str(file) in caplog.text


def test_it_needs_numpy_and_onnxruntime_alone(toy: Path) -> None:
    code = (
        f"{ALONE}from flashelmo.export import OnnxElmo\n"
        f"vectors, = OnnxElmo({str(toy)!r}).embed(['é b'])\n"
        "print(vectors.dtype, vectors.tobytes().hex())\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    values, loaded = run_python(code).splitlines()
    assert values == f"float32 {OnnxElmo(toy).embed(['é b'])[0].tobytes().hex()}"
    assert {"numpy", "onnxruntime", "flashelmo"} <= set(loaded.split())
    assert set(loaded.split()) & HEAVY == {"numpy", "onnxruntime"}


def test_importing_export_loads_nothing_heavy() -> None:
    loaded = run_python("import sys, flashelmo.export; print(dir(flashelmo.export), *sys.modules)").split()
    assert "flashelmo.export" in loaded
    assert top_level(set(loaded)) & HEAVY == set()
    names = {"flashelmo.engine", "flashelmo.engine.system", "flashelmo.engine.system.names"}  # what looks names up
    assert {name for name in loaded if name.startswith("flashelmo.")} == {"flashelmo.export", *names}


def test_without_onnxruntime_its_extra_is_named() -> None:
    code = (
        ALONE.replace(', "onnxruntime"', "") + "from flashelmo import MissingExtraError\n"
        "try:\n    from flashelmo.export import OnnxElmo\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    assert "needs the package onnxruntime, which is not installed: pip install 'flashelmo[cpu]'" in run_python(code)
    assert issubclass(MissingExtraError, FlashElmoError)


@pytest.mark.parametrize(
    ("version", "default"),
    [
        ("1.16.0", {}),
        ("1.17.3", {}),
        ("1.18.0", {"use_tf32": "0"}),
        ("1.20.0.dev20241001", {"use_tf32": "0"}),
        ("2.0.0", {"use_tf32": "0"}),
        ("of my own", {}),
    ],
)
def test_cuda_multiplies_in_full_float32_unless_told(
    version: str, default: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "__version__", version)
    assert open_session.available_providers(["cuda", "cpu"]) == [(names[0], default), (names[1], {})]
    given = ("CUDAExecutionProvider", {"use_tf32": "1", "device_id": 1})
    assert open_session.available_providers([given]) == [given]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to ONNX Runtime, which takes CUDA's provider and computes on the CPU."""
    done: list[str] = []
    session = onnxruntime.InferenceSession

    def open_on_the_cpu(file: str, options: Any, *, providers: Any, enable_fallback: int) -> Recorder:
        done.append("open")
        made = Recorder(session(file, options, providers=["CPUExecutionProvider"]))
        made.get_providers = lambda: [name for name, _ in providers]  # type: ignore[attr-defined]
        return made

    def preload() -> None:
        done.append("preload")
        print("Failed to load libcublas")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*open_session.SHORT_NAMES.values()])
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_on_the_cpu)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    return done


def test_cudas_libraries_are_loaded_before_a_session_on_it(
    toy: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    OnnxElmo(toy)
    assert steps == ["open"]
    OnnxElmo(toy, providers=["cuda", "cpu"])
    assert steps == ["open", "preload", "open"]
    said = capsys.readouterr()
    assert said.out == "" and said.err == "Failed to load libcublas\n"
    monkeypatch.delattr(onnxruntime, "preload_dlls")  # before 1.21
    np.testing.assert_array_equal(OnnxElmo(toy, providers="cuda").embed(["a"]), OnnxElmo(toy).embed(["a"]))
    assert steps[3:] == ["open", "open"]


def test_8_bits_on_cuda_are_said_to_run_on_the_cpu(
    toy: Path, steps: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    int8 = toy_model(tmp_path / "model.onnx", replace(METADATA, precision="int8", int8_levels=63))
    with caplog.at_level(logging.WARNING, "flashelmo"):
        OnnxElmo(int8)
        OnnxElmo(toy, providers="cuda")
        assert not caplog.records
        OnnxElmo(int8, providers="cuda")
    assert [record.name for record in caplog.records] == ["flashelmo"] and len(steps) == 5
    assert f"{int8}: its 8-bit products have no CUDA kernels" in caplog.text and "take a file of fp16" in caplog.text


def test_a_folder_means_the_only_file_in_it(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    shutil.copy(toy, tmp_path / "onnx" / "model_int8.onnx")
    for beside in ("model_int8.onnx_data", "._model_int8.onnx"):  # the second as macOS leaves on other file systems
        (tmp_path / "onnx" / beside).touch()
    np.testing.assert_array_equal(OnnxElmo(tmp_path).embed(["a"]), OnnxElmo(toy).embed(["a"]))
    shutil.copy(toy, tmp_path / "onnx" / "model_fp16.onnx")
    with pytest.raises(FlashElmoError) as caught:
        OnnxElmo(tmp_path)
    expected = "expected this file or exactly one other, found model_fp16.onnx, model_int8.onnx; pass the path of one"
    assert str(caught.value) == f"{tmp_path / 'onnx' / 'model.onnx'}: {expected}"
    shutil.copy(toy, tmp_path / "onnx" / "model.onnx")
    assert model_name(OnnxElmo(tmp_path)) == "model.onnx"


def model_name(elmo: OnnxElmo) -> str:
    return elmo._file.name


BOTH = replace(METADATA, config=MANYLANGS, lexicon=MANYLANGS_LEXICON)
DEEP = "[" * 100_000 + "]" * 100_000
NUMBERS = "layers: expected different numbers from 0 to 2, found"
COEFFICIENTS = "mix: expected 3 finite coefficients, found"
DAMAGED = [
    ({"config": "7"}, "metadata: config: expected an object, found 7"),
    ({"config": '{"cell_size": 1}'}, "missing keys"),
    ({"config": DEEP}, "damaged metadata: RecursionError"),
    ({"layers": "[" * 900 + "]" * 900}, "(metadata: layers: expected different|damaged metadata: RecursionError)"),
    ({"mix": "[0.5,"}, "damaged metadata: JSONDecodeError"),
    ({"lexicon": "null"}, "metadata: lexicon: expected an object, as the model looks tokens up, found None"),
    ({"lexicon": "{}"}, "metadata: lexicon: characters: expected an object of tokens and rows, found None"),
    ({"lexicon": '{"characters": 1}'}, "lexicon: characters: expected an object of tokens and rows, found 1"),
    ({"lexicon": '{"characters": {"a": 1.0}}'}, "lexicon: characters: expected an object of tokens and rows, found {"),
    ({"lexicon": '{"characters": {"a": 9}}'}, "'a' is row 9, but the embedding's rows are 0 to 8"),
    ({"lexicon": '{"characters": {}, "words": {"a\\nb": 6}}'}, "'a.+nb' is row 6, but the embedding's rows are 0 to 5"),
    ({"lexicon": '{"characters": {}, "words": {"a": -1}}'}, "'a' is row -1, but the embedding's rows are 0 to 5"),
    ({"lexicon": '{"characters": {}, "words": {}}'}, "char.dic: expected the entry <bos>, found 0 others"),
    ({"layers": "[0, 3]"}, rf"{NUMBERS} \[0, 3\]"),
    ({"layers": "[0, 0]"}, rf"{NUMBERS} \[0, 0\]"),
    ({"layers": "[[0]]"}, rf"{NUMBERS} \[\[0\]\]"),
    ({"layers": "[0.0]"}, rf"{NUMBERS} \[0.0\]"),
    ({"layers": "[true]"}, rf"{NUMBERS} \[True\]"),
    ({"layers": "2"}, f"{NUMBERS} 2"),
    ({"mix": '["0.2", "0.5", "0.3"]'}, rf"{COEFFICIENTS} \['0.2', "),
    ({"mix": "[0.5, 0.5]"}, rf"{COEFFICIENTS} \[0.5, 0.5\]"),
    ({"mix": "[0.5, 0.5, NaN]"}, rf"{COEFFICIENTS} \[0.5, 0.5, nan\]"),
    ({"mix": f"[1, 1, 1{'0' * 400}]"}, "damaged metadata: OverflowError"),
    ({"precision": "int4"}, "precision: expected fp32 or fp16 or int8, found 'int4'"),
    ({"precision": "int8"}, "int8_levels: expected a whole number from 1 to 127, found None"),
    ({"int8_levels": "63"}, "int8_levels: expected null in fp32, found 63"),
    ({"characters": "50"}, "characters: expected 12 or null, found 50"),
    ({"stateful": "1"}, "stateful: expected true or false, found 1"),
    ({"format_version": "2\n3"}, "expected format_version 1, found 2 3"),
]


@pytest.mark.parametrize(("changes", "message"), DAMAGED)
def test_metadata_that_cannot_be(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    path = toy_model(tmp_path / "model.onnx", BOTH)
    assert OnnxElmo(path).metadata == BOTH
    model = onnx.load(path)
    helper.set_model_props(model, BOTH.to_properties() | changes)
    onnx.save(model, path)
    with pytest.raises(FlashElmoError, match=f"^{re.escape(str(path))}: .*{message}") as caught:
        OnnxElmo(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 200


def test_metadata_that_are_no_text(tmp_path: Path) -> None:
    path = toy_model(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes().replace(b"unknown", b"unkno\xff\xff"))
    with pytest.raises(
        FlashElmoError, match=r"model\.onnx: damaged metadata: expected UTF-8, found otherwise: invalid"
    ):
        OnnxElmo(path)


def test_a_lexicon_may_hold_what_the_model_does_not_look_up() -> None:
    config = replace(MANYLANGS, word_size=0, n_words=0)
    metadata = replace(METADATA, config=config, lexicon=MANYLANGS_LEXICON)
    assert Metadata.from_properties(metadata.to_properties(), "m.onnx") == metadata


def test_importing_onnx_runtime_writes_nothing_and_leaves_the_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 1.31 has telemetry, with an identity in the user's cache folder."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    run_python(
        "import os; before = dict(os.environ); import flashelmo.export.open_session; assert os.environ == before"
    )
    assert not list(tmp_path.iterdir())
    importing = {
        name
        for part in ("engine", "export", "benchmarks", FACE)
        for name, tree in modules(part)
        if any(imported.startswith("onnxruntime") for imported in imports(tree))
    }
    assert importing == {"engine.cpu.sessions"}
