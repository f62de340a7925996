"""Models of text for the Python backend of NVIDIA Triton Inference Server, run without the server."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from google.protobuf import json_format
from triton_repositories import MIX, export, read_config, read_request, request_arrays, text_models, type_name
from tritonclient.utils import triton_to_np_dtype

from flashelmo import ElmoEmbedder, FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import tolerance
from flashelmo.export.servers.repository import EXAMPLE

CASES = ["characters", "both", "any characters, two layers"]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[str, tuple[Path, ElmoModel]]:
    return {case: export(case, tmp_path_factory.mktemp("export")) for case in CASES}


class Tensor:
    """pb_utils.Tensor."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError(Exception):
    """pb_utils.TritonError."""

    INTERNAL, INVALID_ARG = "internal", "invalid argument"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self.text, self.code = message, code


class InferenceResponse:
    """pb_utils.InferenceResponse."""

    def __init__(self, output_tensors=(), error: TritonError | None = None) -> None:
        self.error = error
        self.arrays = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}


def get_input_tensor_by_name(request: dict, name: str) -> Tensor | None:
    return Tensor(name, request[name]) if name in request else None


@pytest.fixture
def serve(monkeypatch):
    """Loads a model of the Python backend as the server does, with what its documentation says of `pb_utils`."""
    module = ModuleType("triton_python_backend_utils")
    vars(module).update({value.__name__: value for value in (Tensor, TritonError, InferenceResponse)})
    vars(module)["get_input_tensor_by_name"] = get_input_tensor_by_name
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "flashelmo.export.servers.models.text_requests", raising=False)

    def load(folder: Path, kind: str = "CPU", embedder: type | None = None, **changes: str):
        spec = importlib.util.spec_from_file_location("served_model", folder / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        code = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(code)
        if embedder is not None:
            vars(code)["ElmoEmbedder" if "ElmoEmbedder" in vars(code) else "OnnxElmo"] = embedder
        config = json.loads(json_format.MessageToJson(read_config(folder), preserving_proto_field_name=True))
        for name, value in changes.items():
            config["parameters"][name] = {"string_value": value}
        model = code.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_instance_kind": kind,
                "model_instance_device_id": "0",
                "model_repository": str(folder),
                "model_version": "1",
                "model_name": folder.name,
            }
        )
        return model

    yield load
    sys.modules.pop("flashelmo.export.servers.models.text_requests", None)


def strings(*rows: list) -> np.ndarray:
    return np.array([[text.encode() if isinstance(text, str) else text for text in row] for row in rows], np.object_)


@pytest.mark.parametrize("name", ["elmo_native", "elmo_onnx_text"])
@pytest.mark.parametrize("case", CASES)
def test_joined_requests_of_text_get_the_engines_vectors(repositories, serve, case, name) -> None:
    folder, elmo = repositories[case]
    model = serve(folder / name)
    requests = [
        {"text": strings([request_arrays(read_request(folder / name))["text"].item()])},
        {"text": strings(["the cat sat"], ["cat"])},
        {"tokens": strings(["the", "cat", "", ""], ["", "", "", ""], ["sat", "é", "", "white space"])},
        {"text": strings([""])},
        {"text": strings(["the"]), "tokens": strings(["the"])},
        {},
        {"text": strings(["cat"], [b"c\xffat"])},
        {"tokens": strings(["cat", b"\xe9"])},
        {"text": strings(["sat cat"])},
    ]
    answers: list[list[list[str]] | str] = [
        [list(EXAMPLE)],
        [["the", "cat", "sat"], ["cat"]],
        [["the", "cat"], [], ["sat", "é", "", "white space"]],
        [[]],
        "inputs: expected text or tokens, found both",
        "inputs: expected text or tokens, found neither",
        "text 1: expected UTF-8, found byte 0xff at 1",
        "tokens 0: expected UTF-8, found byte 0xe9 at 0",
        [["sat", "cat"]],
    ]
    outputs = {tensor.name: (tensor.data_type, tensor.dims) for tensor in read_config(folder / name).output}
    embedder = ElmoEmbedder(elmo)
    for response, given in zip(model.execute(requests), answers, strict=True):
        if isinstance(given, str):
            assert (response.error.text, response.error.code) == (given, TritonError.INVALID_ARG)
            assert not response.arrays
            continue
        assert response.error is None and response.arrays.keys() == outputs.keys()
        longest = max(1, *map(len, given))
        tokens, mask = response.arrays["token_embeddings"], response.arrays["mask"]
        assert tokens.shape == (len(given), longest, elmo.config.output_size)
        for row, sentence in enumerate(given):
            (expected,) = embedder.embed([sentence], mix=MIX)
            n = len(sentence)
            assert mask[row].tolist() == [True] * n + [False] * (longest - n)
            assert not tokens[row, n:].any()
            assert np.abs(tokens[row, :n] - expected).max(initial=0) < tolerance("fp32")
            (pooled,) = embedder.embed([sentence], mix=MIX, pool="mean")
            assert np.abs(response.arrays["sentence_embedding"][row] - pooled).max() < tolerance("fp32")
        for output, array in response.arrays.items():
            data_type, dims = outputs[output]
            assert array.dtype == triton_to_np_dtype(type_name(data_type))
            assert all(axis in (-1, size) for axis, size in zip(dims, array.shape[1:], strict=True))
    model.finalize()


BAD_REQUESTS = [
    ({"text": strings().reshape(0, 1)}, "text: expected [B, 1], B of 1 or more, found [0, 1]"),
    ({"text": strings(["the", "cat"])}, "text: expected [B, 1], B of 1 or more, found [1, 2]"),
    ({"text": strings(["cat"])[0]}, "text: expected [B, 1], B of 1 or more, found [1]"),
    ({"tokens": strings().reshape(0, 3)}, "tokens: expected [B, T], B of 1 or more, found [0, 3]"),
    ({"tokens": strings(["cat"])[0]}, "tokens: expected [B, T], B of 1 or more, found [1]"),
    ({"text": strings(["cat"], [7])}, "text 1: expected bytes, found int"),
    ({"text": strings([None])}, "text 0: expected bytes, found NoneType"),
    ({"text": np.zeros((1, 1), np.int32)}, "text 0: expected bytes, found int32"),
    ({"tokens": strings(["cat", 0.5, "", None])}, "tokens 0: expected bytes, found float"),
]


@pytest.mark.parametrize("name", ["elmo_native", "elmo_onnx_text"])
def test_a_bad_request_fails_alone(repositories, serve, name) -> None:
    folder, _ = repositories["characters"]
    model = serve(folder / name)
    good = {"text": strings(["the cat"])}, {"tokens": np.empty((2, 0), np.object_)}
    first, *responses, last = model.execute([good[0], *(request for request, _ in BAD_REQUESTS), good[1]])
    assert [response.error.text for response in responses] == [message for _, message in BAD_REQUESTS]
    assert {response.error.code for response in responses} == {TritonError.INVALID_ARG}
    assert first.error is last.error is None
    (alone,) = model.execute([good[0]])
    assert np.array_equal(first.arrays["token_embeddings"], alone.arrays["token_embeddings"])
    assert last.arrays["mask"].tolist() == [[False], [False]]
    assert not last.arrays["sentence_embedding"].any()


class Choosy:
    """In place of the engine: it cannot embed some words."""

    load = classmethod(lambda cls, path, **settings: cls())
    config = SimpleNamespace(n_layers=2)

    def embed(self, sentences, **settings):
        for sentence in sentences:
            if sentence in ("bad", "worse"):
                raise FlashElmoError("an overflow") if sentence == "bad" else MemoryError("of 9 GB")
            yield np.full((1, 4), len(sentence), np.float32)


def test_a_request_that_cannot_be_embedded_fails_alone(repositories, serve) -> None:
    folder, _ = repositories["characters"]
    model = serve(folder / "elmo_native", embedder=Choosy)
    requests = [{"text": strings([text])} for text in ("the", "bad", "worse", "tokens")]
    responses = model.execute(requests)
    found = [response.error and (response.error.text, response.error.code) for response in responses]
    overflow, memory = ("an overflow", TritonError.INVALID_ARG), ("MemoryError: of 9 GB", TritonError.INTERNAL)
    assert found == [None, overflow, memory, None]
    assert [response.arrays["sentence_embedding"][0, 0] for response in (responses[0], responses[3])] == [3, 6]


class Recorder:
    """Stands for the embedder: keeps what it was made with, counts its calls."""

    def __init__(self, *args, **settings) -> None:
        self.settings, self.calls = settings, 0
        self.config = SimpleNamespace(n_layers=2)

    @classmethod
    def load(cls, path: Path, **settings) -> "Recorder":
        return cls(**settings, path=path)

    def embed(self, sentences, **settings):
        self.calls += 1
        return iter([np.ones((1, 4), np.float32) for _ in sentences])


def test_all_requests_are_one_call_of_the_engine(repositories, serve) -> None:
    folder, _ = repositories["characters"]
    model = serve(folder / "elmo_native", embedder=Recorder)
    responses = model.execute([{"text": strings(["cat"], ["sat"])}, {"tokens": strings(["the"])}, {}])
    assert model._embedder.calls == 1
    assert [len(response.arrays.get("mask", ())) for response in responses] == [2, 1, 0]


@pytest.mark.parametrize(
    ("kind", "device", "expected"),
    [("CPU", "instance", "cpu"), ("GPU", "instance", "cuda:0"), ("CPU", "cuda:1", "cuda:1")],
)
def test_parameters_reach_the_engine(repositories, serve, kind, device, expected) -> None:
    folder, _ = repositories["characters"]
    path = folder / "elmo_native"
    model = serve(path, kind, Recorder, device=device, precision="int8", threads="2")
    wanted = {"device": expected, "precision": "int8", "threads": 2, "path": path / "1" / "model"}
    assert model._embedder.settings == wanted
    assert serve(path, embedder=Recorder)._embedder.settings == {
        "device": "cpu",
        "precision": "auto",
        "threads": None,
        "path": path / "1" / "model",
    }


@pytest.mark.parametrize(("kind", "expected"), [("CPU", "cpu"), ("GPU", [("cuda", {"device_id": "0"})])])
def test_the_instance_chooses_the_provider(repositories, serve, kind, expected) -> None:
    folder, _ = repositories["characters"]
    model = serve(folder / "elmo_onnx_text", kind, Recorder)
    assert model._elmo.settings == {"providers": expected, "threads": None}


@pytest.mark.parametrize(
    ("layers", "same"),
    [
        ("top", {"layers": "top"}),
        ("1", {"layers": 1}),
        ("average", {"layers": "average"}),
        ("1,0,-2.5", {"mix": [1, 0, -2.5]}),
    ],
)
def test_layers_are_a_parameter(repositories, serve, layers, same) -> None:
    folder, elmo = repositories["characters"]
    (response,) = serve(folder / "elmo_native", layers=layers).execute([{"text": strings(["the cat"])}])
    (expected,) = ElmoEmbedder(elmo).embed(["the cat"], **same)
    assert np.abs(response.arrays["token_embeddings"][0] - expected).max() < tolerance("fp32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers": "all"},
            "layers: expected top, average, a layer's number or a coefficient for each layer, found 'all'",
        ),
        ({"layers": "7"}, "layers: expected a layer from 0 to 2, found 7"),
        ({"layers": "1,2"}, "mix: expected 3 coefficients"),
        ({"model": "absent"}, "absent: no such file or folder"),
    ],
)
def test_wrong_parameters_are_refused_when_loaded(repositories, serve, changes, message) -> None:
    folder, _ = repositories["characters"]
    with pytest.raises(FlashElmoError, match=message):
        serve(folder / "elmo_native", **changes)


def test_the_served_code_is_the_packages(repositories) -> None:
    folder, _ = repositories["characters"]
    for path in text_models(folder):
        spec = importlib.util.find_spec(f"flashelmo.export.servers.models.{path.name}")
        assert spec is not None and spec.origin is not None
        assert (path / "1" / "model.py").read_bytes() == Path(spec.origin).read_bytes()
