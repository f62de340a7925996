"""The repository for NVIDIA Triton Inference Server: its configurations, its files, its example requests."""

import os
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from triton_repositories import (
    CASES,
    FILE_NAMES,
    MIX,
    export,
    onnx_models,
    parameters,
    read_config,
    read_request,
    request_arrays,
    text_models,
    type_name,
)
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import triton_to_np_dtype

from flashelmo import ElmoEmbedder, FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import tolerance
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.export.metadata import STATES
from flashelmo.export.servers.repository import EXAMPLE, write_triton_repository

ORT_TYPES = {"tensor(int64)": "INT64", "tensor(float)": "FP32", "tensor(float16)": "FP16", "tensor(bool)": "BOOL"}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[str, tuple[Path, ElmoModel]]:
    return {case: export(case, tmp_path_factory.mktemp("export")) for case in CASES}


@pytest.fixture(params=CASES)
def repository(request, repositories) -> tuple[Path, ElmoModel]:
    return repositories[request.param]


def open_session(folder: Path) -> onnxruntime.InferenceSession:
    """What the ONNX Runtime backend does, from the file that it looks for."""
    return onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])


def example_vectors(model: ElmoModel) -> np.ndarray:
    return next(ElmoEmbedder(model).embed([EXAMPLE], mix=MIX))


def assert_close(found: np.ndarray, expected: np.ndarray, precision: str) -> None:
    assert found.shape == expected.shape
    found = found.astype(np.float64)
    if precision == "fp32":
        assert np.abs(found - expected).max() < tolerance("fp32", "onnx")
    else:
        assert np.linalg.norm(found - expected) < tolerance(precision, "onnx") * np.linalg.norm(expected)


def test_every_model_has_what_the_server_looks_for(repository) -> None:
    folder, _ = repository
    stateful = not (folder / "elmo_onnx_text").is_dir()
    models = [*onnx_models(folder), *text_models(folder)]
    assert {path.name for path in folder.iterdir()} == {path.name for path in models} | {"README.md"}
    assert len(text_models(folder)) == (1 if stateful else 2)
    for path in models:
        config = read_config(path)
        assert config.name == path.name
        assert config.backend == ("onnxruntime" if path in onnx_models(folder) else "python")
        assert config.version_policy.latest.num_versions == 1
        assert [path.name for path in path.iterdir() if path.name.isdecimal()] == ["1"]
        assert len(config.instance_group) == 1 and config.instance_group[0].count == 1
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
        assert (path / "1" / ("model.onnx" if config.backend == "onnxruntime" else "model.py")).is_file()


def test_configurations_agree_with_the_files(repository) -> None:
    folder, _ = repository
    for path in onnx_models(folder):
        config, session = read_config(path), open_session(path)
        stateful = config.HasField("sequence_batching")
        states = {*STATES, *STATES.values()} if stateful else set()
        for given, values in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            found = {tensor.name: (type_name(tensor.data_type), list(tensor.dims)) for tensor in given}
            expected = {}
            for value in values:
                # onnxruntime_backend wants an output's axes as the file has them, an input's may be narrower
                shape = [axis if isinstance(axis, int) else -1 for axis in value.shape]
                if stateful and value in session.get_inputs():
                    shape[0] = 1
                expected[value.name] = (ORT_TYPES[value.type], shape if stateful else shape[1:])
            assert found == {name: form for name, form in expected.items() if name not in states}


def test_configuration_in_full(repositories) -> None:
    folder, _ = repositories["both"]
    config = read_config(folder / "elmo_fp16")
    inputs = [(tensor.name, type_name(tensor.data_type), list(tensor.dims)) for tensor in config.input]
    assert inputs == [("character_ids", "INT64", [-1, 12]), ("word_ids", "INT64", [-1])]
    outputs = {tensor.name: (type_name(tensor.data_type), list(tensor.dims)) for tensor in config.output}
    layers = {f"hidden_states.{layer}": ("FP16", [-1, 8]) for layer in range(3)}
    vectors = {"token_embeddings": ("FP16", [-1, 8]), "sentence_embedding": ("FP16", [8])}
    assert outputs == {**layers, **vectors, "mask": ("BOOL", [-1])}
    assert config.max_batch_size == 64
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    assert not config.dynamic_batching.preferred_batch_size
    assert parameters(config) == {"intra_op_thread_count": "0", "execution_mode": "0", "enable_mem_pattern": "0"}
    for path in text_models(folder):
        assert read_config(path).max_batch_size == 64 and parameters(read_config(path))["threads"] == "0"
    assert "zeros, of -1 in word_ids" in (folder / "elmo_fp16" / "config.pbtxt").read_text(encoding="utf-8")


def test_on_a_card_fp32_is_told_to_multiply_in_float32(repositories) -> None:
    for case in ("characters", "stateful"):
        folder, _ = repositories[case]
        for path in onnx_models(folder):
            text = (path / "config.pbtxt").read_text(encoding="utf-8")
            lines = re.findall(r"^# optimization \{.*?^# \} \}$", text, re.MULTILINE | re.DOTALL)
            assert len(lines) == (path.name == "elmo_fp32")
            assert "optimization" not in re.sub(r"^#.*", "", text, flags=re.MULTILINE)  # as it stands, for the CPU
            for commented in lines:
                added = re.sub("^# ", "", commented, flags=re.MULTILINE)
                config = text_format.Parse(text + added, model_config_pb2.ModelConfig())
                (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
                assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})


def test_requests_are_of_the_protocol(repository) -> None:
    folder, _ = repository
    for path in [*onnx_models(folder), *text_models(folder)]:
        config, request = read_config(path), read_request(path)
        assert set(request) <= {"inputs", "outputs", "parameters"}
        arrays = request_arrays(request)
        # the fields that HTTP and gRPC have in common, by the names that gRPC's messages have; another is an error
        common = {
            "inputs": [{name: value for name, value in given.items() if name != "data"} for given in request["inputs"]],
            "outputs": [{"name": wanted["name"]} for wanted in request["outputs"]],
        }
        message = json_format.ParseDict(common, service_pb2.ModelInferRequest(model_name=path.name))
        declared = {tensor.name: tensor for tensor in config.input}
        for given in message.inputs:
            name = type_name(declared[given.name].data_type)
            assert given.datatype == {"STRING": "BYTES"}.get(name, name)
            dims = list(given.shape)[1 if config.max_batch_size else 0 :]
            pairs = zip(declared[given.name].dims, dims, strict=True)
            assert all(axis in (-1, size) for axis, size in pairs)
            assert arrays[given.name].size == np.prod(given.shape)
        types = {tensor.name: type_name(tensor.data_type) for tensor in config.output}
        for wanted in request["outputs"]:  # the server has no float16 in JSON
            assert (wanted.get("parameters") == {"binary_data": True}) == (types[wanted["name"]] == "FP16")


def test_requests_get_the_engines_vectors(repository) -> None:
    folder, model = repository
    expected = example_vectors(model)
    assert len(onnx_models(folder)) > 0
    for path in onnx_models(folder):
        request, session = read_request(path), open_session(path)
        inputs = request_arrays(request)
        for state in read_config(path).sequence_batching.state:
            inputs[state.input_name] = np.zeros(list(state.dims), triton_to_np_dtype(type_name(state.data_type)))
        names = [wanted["name"] for wanted in request["outputs"]]
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        precision = path.name.removeprefix("elmo_")
        assert outputs["mask"].all() and outputs["mask"].shape == (1, len(EXAMPLE))
        for name, wanted in (("token_embeddings", expected), ("sentence_embedding", expected.mean(axis=0))):
            assert_close(outputs[name][0], wanted, precision)


def test_the_server_warms_up_with_the_example(repository) -> None:
    folder, _ = repository
    warmed = [*onnx_models(folder), *text_models(folder)]
    if "elmo_onnx_text" not in {path.name for path in warmed}:  # states would have to come from the server
        assert not any(read_config(path).model_warmup or (path / "warmup").exists() for path in onnx_models(folder))
        warmed = text_models(folder)
    for path in warmed:
        (sample,) = read_config(path).model_warmup
        arrays = request_arrays(read_request(path))
        assert sample.batch_size == 1 and set(sample.inputs) == set(arrays)
        for name, given in sample.inputs.items():
            data = (path / "warmup" / given.input_data_file).read_bytes()
            assert [1, *given.dims] == list(arrays[name].shape)
            if type_name(given.data_type) == "STRING":
                line = arrays[name].item().encode()
                assert data == len(line).to_bytes(4, "little") + line
            else:
                assert data == arrays[name].tobytes()


@pytest.mark.parametrize(
    ("case", "precision"), [("stateful", "fp32"), ("stateful", "fp16"), ("stateful words", "fp32")]
)
def test_a_sequence_carries_the_state(repositories, case, precision, text) -> None:
    folder, model = repositories[case]
    path = folder / f"elmo_{precision}"
    config, session = read_config(path), open_session(path)
    assert config.max_batch_size == 0
    assert config.sequence_batching.oldest.max_candidate_sequences == 64
    assert read_request(path)["parameters"] == {"sequence_id": 1, "sequence_start": True, "sequence_end": True}
    states = {}
    assert {state.input_name: state.output_name for state in config.sequence_batching.state} == STATES
    for state in config.sequence_batching.state:
        (initial,) = state.initial_state
        assert (initial.zero_data, initial.data_type, initial.dims) == (True, state.data_type, state.dims)
        assert initial.name, "the server refuses an initial state without a name"
        states[state.input_name] = np.zeros(list(initial.dims), triton_to_np_dtype(type_name(initial.data_type)))
    elmo = ElmoEmbedder(model, stateful=True, batch_size=1)
    for sentence in [list(EXAMPLE), text[1], text[2]]:
        inputs = ids(session, model, sentence)
        outputs = dict(
            zip([value.name for value in session.get_outputs()], session.run(None, inputs | states), strict=True)
        )
        states = {name: outputs[new] for name, new in STATES.items()}
        (expected,) = elmo.embed([sentence], mix=MIX)
        assert_close(outputs["token_embeddings"][0], expected, precision)


def ids(session: onnxruntime.InferenceSession, model: ElmoModel, sentence: list[str]) -> dict[str, np.ndarray]:
    """What a client sends for a sentence."""
    encoder = WordEncoder(model.config, model.lexicon)
    given = {"character_ids": encoder.character_ids(sentence), "word_ids": encoder.word_ids(sentence)}
    return {name: rows[None].astype(np.int64) for name, rows in given.items() if rows is not None}


def test_files_are_linked_with_their_data(repositories) -> None:
    folder, _ = repositories["external data"]
    for precision in ("fp32", "fp16"):
        source, version = folder.parent / FILE_NAMES[precision], folder / f"elmo_{precision}" / "1"
        assert {path.name for path in version.iterdir()} == {"model.onnx", f"{source.name}_data"}
        assert (version / "model.onnx").samefile(source)
        assert (version / f"{source.name}_data").samefile(f"{source}_data")
    assert (folder / "elmo_onnx_text" / "1" / "model.onnx_data").samefile(folder.parent / "model.onnx_data")


def test_files_are_copied_where_links_are_impossible(tmp_path, monkeypatch) -> None:
    def refuse(source, target) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    folder, _ = export("external data", tmp_path)
    version = folder / "elmo_fp16" / "1"
    for name, source in (("model.onnx", "model_fp16.onnx"), ("model_fp16.onnx_data", "model_fp16.onnx_data")):
        assert not (version / name).samefile(tmp_path / source)
        assert (version / name).read_bytes() == (tmp_path / source).read_bytes()
    assert open_session(folder / "elmo_fp16").get_outputs()


def test_readme_names_what_is_there(repository) -> None:
    folder, _ = repository
    text = (folder / "README.md").read_text(encoding="utf-8")
    for path in [*onnx_models(folder), *text_models(folder)]:
        assert f"| `{path.name}` |" in text
    asked = [line.rpartition("@")[2] for line in text.splitlines() if line.startswith("curl")]
    assert len(asked) == 2 and all((folder / name).is_file() for name in asked)
    assert "docker run" in text and "--model-repository=/models" in text
    assert ("`elmo_onnx_text`" in text) == (folder / "elmo_onnx_text").is_dir()
    assert ("Inference-Header-Content-Length" in text) == (folder / "elmo_fp16").is_dir()


def test_a_repository_is_refused_in_one_line(tmp_path, repositories) -> None:
    folder, model = repositories["words"]
    with pytest.raises(FlashElmoError, match=f"{folder}: exists already"):
        write_triton_repository(folder, {"fp32": folder.parent / "model.onnx"}, model)
    with pytest.raises(FlashElmoError, match="expected an exported file to serve, found none"):
        write_triton_repository(tmp_path / "triton", {}, model)
    with pytest.raises(FlashElmoError, match=r"cannot be written: No such file"):
        write_triton_repository(tmp_path / "triton", {"fp32": tmp_path / "absent.onnx"}, model)
    (tmp_path / "foreign.onnx").write_bytes(b"")
    with pytest.raises(FlashElmoError, match=r"foreign\.onnx: expected a model exported by flashelmo"):
        write_triton_repository(tmp_path / "triton", {"fp32": tmp_path / "foreign.onnx"}, model)
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.onnx"]
