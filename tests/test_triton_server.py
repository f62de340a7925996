"""The repository in a real NVIDIA Triton Inference Server, where `tritonserver` is on the PATH as in its image."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from triton_repositories import MIX, export, onnx_models, read_request, text_models
from tritonclient.utils import triton_to_np_dtype

from flashelmo import ElmoEmbedder
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import tolerance
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.export.servers.repository import EXAMPLE

SERVER = shutil.which("tritonserver")
SECONDS_TO_START = 120
MODELS = ["elmo_fp32", "elmo_fp16", "elmo_int8", "elmo_native", "elmo_onnx_text"]
pytestmark = pytest.mark.skipif(SERVER is None, reason="tritonserver is not on the PATH")


class Served:
    """A server on this machine alone, with the repository of a case."""

    def __init__(self, folder: Path, model: ElmoModel, url: str) -> None:
        self.folder, self.model, self.url = folder, model, url

    def require(self, name: str) -> None:
        """Skip where the server lacks the model's backend; any other failure to load is an error."""
        states = json.loads(self._open("/v2/repository/index", b"{}")[1])
        state = next(state for state in states if state["name"] == name)
        if "unable to find backend library" in state.get("reason", ""):
            pytest.skip(f"this server has no backend for {name}")
        assert state["state"] == "READY", state["reason"]

    def infer(self, name: str, request: dict) -> dict[str, np.ndarray]:
        """The outputs, from JSON or from the bytes behind it."""
        header_length, body = self._open(f"/v2/models/{name}/infer", json.dumps(request).encode())
        response, body = json.loads(body[:header_length]), body[header_length:]
        arrays = {}
        for output in response["outputs"]:
            dtype = triton_to_np_dtype(output["datatype"])
            if "data" in output:
                array = np.array(output["data"], dtype)
            else:
                size = output["parameters"]["binary_data_size"]
                array, body = np.frombuffer(body[:size], dtype), body[size:]
            arrays[output["name"]] = array.reshape(output["shape"])
        return arrays

    def _open(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Length of the JSON, and the whole answer."""
        with urlopen(Request(self.url + path, data), timeout=60) as response:
            body = response.read()
            return int(response.headers.get("Inference-Header-Content-Length", len(body))), body


def start(case: str, folder: Path) -> Iterator[Served]:
    repository, model = export(case, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "model-repository": repository,
        "http-address": "127.0.0.1",
        "http-port": port,
        "allow-grpc": "false",
        "allow-metrics": "false",
        "exit-on-error": "false",
        "backend-config": f"python,shm-region-prefix-name=flashelmo{port}",
    }
    with (folder / "log").open("wb") as log:
        command = [str(SERVER), *(f"--{name}={value}" for name, value in options.items())]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/v2/health/live", process, folder / "log")
            yield Served(repository, model, f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            status = process.wait(60)
    assert status == 0, (folder / "log").read_text()


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    yield from start("characters", tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def stateful_server(tmp_path_factory) -> Iterator[Served]:
    yield from start("stateful", tmp_path_factory.mktemp("server"))


def assert_close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    precision = name.removeprefix("elmo_")
    assert found.shape == expected.shape
    if precision in ("fp16", "int8"):
        distance = np.linalg.norm(found.astype(np.float64) - expected)
        assert distance < tolerance(precision, "onnx") * np.linalg.norm(expected)
    else:
        assert np.abs(found - expected).max(initial=0) < tolerance("fp32", "onnx")


@pytest.mark.parametrize("name", MODELS)
def test_the_example_is_answered(server, name) -> None:
    assert name in {path.name for path in [*onnx_models(server.folder), *text_models(server.folder)]}
    server.require(name)
    outputs = server.infer(name, read_request(server.folder / name))
    (expected,) = ElmoEmbedder(server.model).embed([EXAMPLE], mix=MIX)
    assert outputs["mask"].all() and outputs["mask"].shape == (1, len(EXAMPLE))
    assert_close(outputs["token_embeddings"][0], expected, name)
    assert_close(outputs["sentence_embedding"][0], expected.mean(axis=0), name)


@pytest.mark.parametrize("name", MODELS[-2:])
def test_requests_of_all_lengths_at_once(server, name, text) -> None:
    server.require(name)

    def ask(sentence: list[str]) -> np.ndarray:
        tokens = {"name": "tokens", "shape": [1, len(sentence)], "datatype": "BYTES", "data": sentence}
        return server.infer(name, {"inputs": [tokens]})["token_embeddings"][0]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, text[:64]))
    for vectors, expected in zip(found, ElmoEmbedder(server.model).embed(text[:64], mix=MIX), strict=True):
        assert vectors.shape == expected.shape
        assert np.abs(vectors - expected).max() < tolerance("fp32")


@pytest.mark.parametrize("name", MODELS[-2:])
def test_a_bad_request_is_told_in_one_line(server, name) -> None:
    server.require(name)
    given = [
        {"name": input_name, "shape": [1, 1], "datatype": "BYTES", "data": ["cat"]} for input_name in ("text", "tokens")
    ]
    with pytest.raises(HTTPError) as error:
        server.infer(name, {"inputs": given})
    with error.value:
        assert json.loads(error.value.read()) == {"error": "inputs: expected text or tokens, found both"}


@pytest.mark.parametrize("name", MODELS[:2])
def test_sequences_carry_their_state(stateful_server, name, text) -> None:
    stateful_server.require(name)
    model = stateful_server.model
    encoder = WordEncoder(model.config, model.lexicon)
    texts = {1: text[:3], 2: text[3:6]}
    engines = {number: ElmoEmbedder(model, stateful=True, batch_size=1) for number in texts}
    for place in range(3):  # two texts in turn
        for number, sentences in texts.items():
            spelled = encoder.character_ids(sentences[place])
            assert spelled is not None
            ids = {
                "name": "character_ids",
                "shape": [1, *spelled.shape],
                "datatype": "INT64",
                "data": spelled[None].tolist(),
            }
            flags = {"sequence_id": number, "sequence_start": place == 0, "sequence_end": place == 2}
            outputs = read_request(stateful_server.folder / name)["outputs"]
            request = {"inputs": [ids], "outputs": outputs, "parameters": flags}
            found = stateful_server.infer(name, request)["token_embeddings"][0]
            (expected,) = engines[number].embed([sentences[place]], mix=MIX)
            assert_close(found, expected, name)
