"""`flashelmo serve` as its clients see it: the vectors of every endpoint are the engine's, bit by bit."""

import asyncio
import base64
import io
import json
import pickle
import re
import tracemalloc
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import load
from serving import TEXTS, Server, asynchronous, bits, served, tiny_embedder
from tiny_models import MODELS

from flashelmo import Client, ElmoEmbedder, FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.output import Output
from flashelmo.serve import guard
from flashelmo.serve.formats import STREAMED_BYTES, response_of, vectors_response
from flashelmo.serve.limits import Limits, Load
from flashelmo.serve.metrics import Metrics
from flashelmo.serve.service import Answer, ServiceSettings

TOKENS = [text.split() for text in TEXTS]
SAFETENSORS, NUMPY = "application/x-safetensors", "application/x-npz"
ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def embedder(model: Path) -> ElmoEmbedder:
    return tiny_embedder(model)


def floats(values: Any) -> Any:
    return np.array(values, np.float32)


def reshaped(found: Iterable[Any], expected: Iterable[Any]) -> list[Any]:
    """JSON's lists as arrays; of an empty sentence they do not tell the shape."""
    return [floats(values).reshape(array.shape) for values, array in zip(found, expected, strict=True)]


@pytest.mark.parametrize("path", ["/embed", "/"])
@pytest.mark.parametrize("inputs", [TEXTS, TOKENS])
def test_a_vector_a_sentence(path: str, inputs: Any, server: Server, embedder: ElmoEmbedder) -> None:
    answer = server.post(path, {"inputs": inputs})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert bits(map(floats, answer.json())) == bits(embedder.encode(TOKENS))


@pytest.mark.parametrize(
    "options",
    [
        {"layers": "top"},
        {"layers": 0, "pool": "max"},
        {"layers": "all"},
        {"layers": [2, 0], "pool": "mean"},
        {"mix": [0.25, -1, 3]},
    ],
)
def test_layers_mix_and_pool(options: dict[str, Any], server: Server, embedder: ElmoEmbedder) -> None:
    pooled = server.post("/embed", {"inputs": TEXTS, **options}).json()
    assert bits(map(floats, pooled)) == bits(embedder.embed(TOKENS, **{"pool": "mean", **options}))
    options.pop("pool", None)
    found = server.post("/embed_all", {"inputs": TEXTS, **options}).json()
    expected = list(embedder.embed(TOKENS, **options))
    assert bits(reshaped(found, expected)) == bits(expected)


def test_one_text_and_none(server: Server, embedder: ElmoEmbedder) -> None:
    assert bits(map(floats, server.post("/embed", {"inputs": TEXTS[0]}).json())) == bits(embedder.encode(TOKENS[:1]))
    for path in ("/embed", "/embed_all", "/tokens"):
        assert server.post(path, {"inputs": []}).json() == []
        for accept in (SAFETENSORS, NUMPY, ARROW):
            assert server.post(path, {"inputs": []}, accept).status_code == 200


def test_normalized_vectors_have_length_one(server: Server, embedder: ElmoEmbedder) -> None:
    found = server.post("/embed", {"inputs": TEXTS, "normalize": True}).json()
    assert bits(map(floats, found)) == bits(embedder.encode(TOKENS, normalize_embeddings=True))


def test_tokens_come_as_they_were_split(server: Server, embedder: ElmoEmbedder) -> None:
    found = server.post("/tokens", {"inputs": TEXTS}).json()
    assert [each["tokens"] for each in found] == TOKENS
    expected = embedder.embed_batch(TOKENS)
    assert bits(reshaped((each["vectors"] for each in found), expected)) == bits(expected)


def test_binary_formats_hold_the_same_arrays(server: Server, embedder: ElmoEmbedder) -> None:
    pooled, expected = embedder.encode(TOKENS), embedder.embed_batch(TOKENS)
    values = np.concatenate([each.transpose(1, 0, 2) for each in expected])
    offsets = np.cumsum([0, *map(len, TOKENS)])

    answer = server.post("/embed", {"inputs": TEXTS}, SAFETENSORS)
    assert answer.headers["content-type"] == SAFETENSORS
    assert bits([load(answer.content)["vectors"]]) == bits([pooled])
    answer = server.post("/tokens", {"inputs": TEXTS}, f"text/html, {SAFETENSORS};q=0.9, */*")
    arrays = load(answer.content)
    assert bits([arrays["values"], arrays["offsets"]]) == bits([values, offsets])
    header = json.loads(answer.content[8 : 8 + int.from_bytes(answer.content[:8], "little")])
    assert json.loads(header["__metadata__"]["tokens"]) == TOKENS

    with np.load(io.BytesIO(server.post("/embed_all", {"inputs": TEXTS, "layers": "all"}, NUMPY).content)) as file:
        assert bits([file["values"], file["offsets"]]) == bits([values, offsets])
        assert file["tokens"].tolist() == [token for tokens in TOKENS for token in tokens]

    table = pa.ipc.open_stream(server.post("/tokens", {"inputs": TEXTS}, ARROW).content).read_all()
    assert table["tokens"].to_pylist() == TOKENS
    for found, each in zip(table["vectors"].to_pylist(), expected, strict=True):
        assert bits([floats(found).reshape(-1, *values.shape[1:])]) == bits([each.transpose(1, 0, 2)])
    table = pa.ipc.open_stream(server.post("/embed", {"inputs": TEXTS}, ARROW).content).read_all()
    assert bits(map(floats, table["vectors"].to_pylist())) == bits(pooled)


def test_large_answers_are_streamed(server: Server, embedder: ElmoEmbedder) -> None:
    text = " ".join(["cat"] * 1500)
    answer = server.post("/tokens", {"inputs": [text] * 10})
    assert "content-length" not in answer.headers
    expected = embedder.embed_sentence(text)
    assert bits(floats(each["vectors"]) for each in answer.json()) == bits([expected] * 10)
    for layers, values, n in (("all", expected.transpose(1, 0, 2), 10), ("top", expected[-1], 2)):
        answer = server.post("/tokens", {"inputs": [text] * n + [""], "layers": layers}, SAFETENSORS)
        assert int(answer.headers["content-length"]) == len(answer.content)
        arrays = load(answer.content)
        assert bits([arrays["values"]]) == bits([np.concatenate([values] * n)])
        assert arrays["offsets"].tolist() == [*range(0, 1500 * n + 1, 1500), 1500 * n]


@pytest.mark.parametrize(("media_type", "times"), [(NUMPY, 1.3), (ARROW, 0.4), (SAFETENSORS, 0.4)])
def test_vectors_are_not_held_several_times(media_type: str, times: float) -> None:
    """While an answer is made, of what Python and NumPy hold beside the vectors themselves."""
    vectors = [np.arange(b, b + 307200, dtype=np.float32).reshape(3, 100, 1024) for b in range(24)]
    answer = Answer([["cat"] * 100] * 24, vectors, Output())
    body: list[bytes] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if not tracemalloc.is_tracing():
            body.append(message.get("body", b""))

    async def sent() -> None:
        await vectors_response(media_type, answer, 1024)({"type": "http"}, receive, send)

    tracemalloc.start()
    asyncio.run(sent())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < times * sum(each.nbytes for each in vectors)

    asyncio.run(sent())
    file = io.BytesIO(b"".join(body))
    if media_type == ARROW:
        table = pa.ipc.open_stream(file).read_all()
        assert table["tokens"].to_pylist() == answer.sentences
        values = pc.list_flatten(pc.list_flatten(pc.list_flatten(table["vectors"]))).to_numpy()
    else:
        values = load(file.read())["values"] if media_type == SAFETENSORS else np.load(file)["values"]
    assert bits([values.reshape(-1)]) == bits(
        [np.concatenate([each.transpose(1, 0, 2).reshape(-1) for each in vectors])]
    )


@asynchronous
async def test_others_are_answered_while_a_large_answer_is_sent() -> None:
    """Also when its client reads all at once, so that nothing else makes it wait."""
    turns, seen = 0, list[int]()

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def send(message: Any) -> None:
        seen.append(turns)

    async def receive() -> Any:
        await asyncio.Event().wait()

    exchange = guard._Exchange(receive, send, 0, Load(Limits(), Metrics()))
    whole = exchange.send({"type": "http.response.body", "body": bytes(4 * guard.PIECE_BYTES)})
    pieces = response_of(iter([b"a"] * 4), STREAMED_BYTES + 1, SAFETENSORS)({"type": "http"}, receive, send)
    for answer in (whole, pieces):
        seen.clear()
        task = asyncio.create_task(others())
        await answer
        task.cancel()
        assert len({*seen}) >= 4


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_the_convention_of_openai(encoding: str, server: Server, embedder: ElmoEmbedder) -> None:
    answer = server.post("/v1/embeddings", {"input": TEXTS, "model": "any", "encoding_format": encoding}).json()
    vectors = [each["embedding"] for each in answer["data"]]
    if encoding == "base64":
        vectors = [np.frombuffer(base64.b64decode(each), "<f4") for each in vectors]
    assert bits(map(floats, vectors)) == bits(embedder.encode(TOKENS))
    assert [each["index"] for each in answer["data"]] == list(range(len(TEXTS)))
    n_tokens = sum(map(len, TOKENS))
    assert answer["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    assert (answer["object"], answer["model"]) == ("list", "tiny")
    (model,) = server.http.get("/v1/models").json()["data"]
    assert model["id"] == "tiny" and server.http.get("/v1/models/tiny").json() == model
    unknown = server.http.get("/v1/models/a/b")
    assert (unknown.status_code, unknown.json()["error"]["message"]) == (404, "model: expected tiny, found 'a/b'")


def test_the_open_inference_protocol(server: Server, embedder: ElmoEmbedder) -> None:
    names = ["mask", "token_embeddings", "sentence_embedding"]
    rows = [[*tokens, *[""] * (6 - len(tokens))] for tokens in TOKENS]
    tokens = {"name": "tokens", "shape": [5, 6], "datatype": "BYTES", "data": rows}
    body = {"id": "7", "inputs": [tokens], "outputs": [{"name": name} for name in names]}
    answer = server.post("/v2/models/tiny/versions/1/infer", body).json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "tiny", "1")
    outputs = {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in answer["outputs"]}
    assert list(outputs) == names
    assert outputs["mask"].tolist() == [[token != "" for token in row] for row in rows]
    average = embedder.encode(TOKENS, output_value="token_embeddings")
    for padded, vectors in zip(outputs["token_embeddings"], average, strict=True):
        assert bits([floats(padded[: len(vectors)])]) == bits([vectors]) and not padded[len(vectors) :].any()
    text = {"name": "text", "shape": [5], "datatype": "BYTES", "data": TEXTS}
    answer = server.post("/v2/models/tiny/infer", {"inputs": [text]}).json()
    assert bits(map(floats, np.reshape(answer["outputs"][0]["data"], (5, -1)))) == bits(embedder.encode(TOKENS))
    assert bits(map(floats, outputs["sentence_embedding"])) == bits(embedder.encode(TOKENS))
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v2"):
        assert server.http.get(path).status_code == 200
    metadata = server.http.get("/v2/models/tiny").json()
    assert [each["name"] for each in metadata["inputs"]] == ["text", "tokens"]
    assert server.http.get("/v2/models/other").status_code == 404


@pytest.mark.parametrize("binary", [{"mask", "token_embeddings", "sentence_embedding"}, {"token_embeddings"}, set()])
@pytest.mark.parametrize("times", [1, 1500])  # that a sentence has a word: much is sent while it is made
def test_tensors_lie_behind_the_answer_where_they_are_asked_to(
    times: int, binary: set[str], server: Server, embedder: ElmoEmbedder
) -> None:
    texts = ["cat " * times, "", "sat the cat", *["cat"] * 30]
    names = ["mask", "token_embeddings", "sentence_embedding"]
    outputs = [{"name": name, "parameters": {"binary_data": name in binary}} for name in names]
    tensor = {"name": "text", "shape": [33, 1], "datatype": "BYTES", "data": texts}
    answer = server.post("/v2/models/tiny/infer", {"inputs": [tensor], "outputs": outputs})
    assert ("content-length" in answer.headers) == (times == 1 or bool(binary))
    text = answer.content[: int(answer.headers.get("Inference-Header-Content-Length", len(answer.content)))]
    rest, arrays = answer.content[len(text) :], {}
    for output in json.loads(text)["outputs"]:
        assert ("data" in output) == (output["name"] not in binary)
        dtype = {"BOOL": np.bool_, "FP32": np.float32}[output["datatype"]]
        if "data" in output:
            values: Any = np.array(output["data"], dtype)
        else:
            n_bytes = output["parameters"]["binary_data_size"]
            values, rest = np.frombuffer(rest[:n_bytes], dtype), rest[n_bytes:]
        arrays[output["name"]] = values.reshape(output["shape"])
    assert list(arrays) == names and not rest
    longest = max(times, 3)
    mask = np.array([[t < len(text.split()) for t in range(longest)] for text in texts])
    vectors = np.zeros((33, longest, 8), np.float32)
    vectors[mask] = np.concatenate(embedder.encode(texts, output_value="token_embeddings"))
    assert bits(arrays.values()) == bits([mask, vectors, embedder.encode(texts)])


def of_tei(answer: Any) -> str:
    assert set(answer) == {"error", "error_type"}
    return str(answer["error"])


def of_openai(answer: Any) -> str:
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"].startswith(error["param"] or "")
    return str(error["message"])


def of_infer(answer: Any) -> str:
    assert set(answer) == {"error"}
    return str(answer["error"])


def tensor(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"], **changes}]}


ERRORS = [
    ("/embed", {"inputs": ["a", 4]}, 422, "inputs[1]: expected a text or a list of tokens, found 4"),
    ("/embed", {"inputs": [["a", None]]}, 422, "inputs[0][1]: expected a token as text, found None"),
    ("/embed", {"inputs": {"a": 1}}, 422, "inputs: expected a text or a list of sentences, found {'a': 1}"),
    ("/embed", {"inputs": ["\ud800"]}, 422, "inputs[0]: expected Unicode, found half a surrogate pair in '\\ud800'"),
    ("/embed", {}, 422, "inputs: expected a value, found nothing"),
    ("/embed", [], 422, "body: expected JSON with the header Content-Type: application/json, found []"),
    ("/embed", {"inputs": "a", "layer": 1}, 422, "layer: expected a field that /openapi.json lists"),
    ("/embed", {"inputs": "a", "layers": 3}, 422, "layers: expected a layer from 0 to 2, found 3"),
    ("/embed", {"inputs": "a", "layers": "up"}, 422, "layers: expected all, top, average, a layer's number"),
    ("/embed", {"inputs": "a", "mix": [1, 1e39, 1]}, 422, "mix: expected numbers that float32 can hold, found 1e+39"),
    ("/embed", {"inputs": "a", "mix": [1]}, 422, "mix: expected 3 coefficients, one a layer, found 1"),
    ("/embed", {"inputs": "a", "pool": "min"}, 422, "pool: expected 'mean' or 'max', found 'min'"),
    ("/embed", {"inputs": "a", "normalize": 7}, 422, "normalize: expected a valid boolean"),
    ("/embed", {"inputs": "a", "prompt_name": "q"}, 422, "prompt_name: expected none, as ELMo has no prompts"),
    ("/nothing", {}, 404, "path: expected one listed in /openapi.json, found '/nothing'"),
    ("/info", {}, 405, "method: expected GET, found POST"),
    ("/v1/embeddings", {"input": [[1, 2]]}, 400, "input[0][0]: expected a token as text, found 1"),
    ("/v1/embeddings", {"input": "a", "dimensions": 7}, 400, "dimensions: expected 8, the model's own, found 7"),
    ("/v2/models/a/infer", tensor(), 404, "model: expected tiny, found 'a'"),
    ("/v2/models/tiny/versions/2/infer", tensor(), 404, "version: expected 1, found '2'"),
    ("/v2/models/tiny/infer", tensor(name="x"), 400, "inputs[0].name: expected text or tokens, found 'x'"),
    ("/v2/models/tiny/infer", tensor(datatype="FP32"), 400, "inputs[0].datatype: expected BYTES, found 'FP32'"),
    ("/v2/models/tiny/infer", tensor(shape=[1, 2]), 400, "inputs[0].shape: expected [B] or [B, 1], found [1, 2]"),
    ("/v2/models/tiny/infer", tensor(shape=[3]), 400, "inputs[0].data: expected 3 texts, found 1"),
    ("/v2/models/tiny/infer", tensor(data=[3]), 400, "inputs[0].data[0]: expected a text or a list of tokens, found 3"),
    ("/v2/models/tiny/infer", tensor(data=None), 400, "inputs[0].data: expected a value, found nothing"),
    ("/v2/models/tiny/infer", {"inputs": []}, 400, "inputs: expected one, text or tokens, found 0"),
    ("/v2/models/tiny/infer", {}, 400, "inputs: expected a value, found nothing"),
    ("/v2/models/tiny/infer", {**tensor(), "outputs": [{"name": "x"}]}, 400, "outputs[0].name: expected sentence_emb"),
]


@pytest.mark.parametrize(("path", "body", "status", "text"), ERRORS)
def test_an_error_names_field_expected_and_found(path: str, body: Any, status: int, text: str, server: Server) -> None:
    answer = server.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    message = (of_openai if path.startswith("/v1") else of_infer if path.startswith("/v2") else of_tei)(answer.json())
    assert message.startswith(text)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/embed", "POST"),
        ("PUT", "/", "GET, POST"),
        ("OPTIONS", "/v2/models/tiny", "GET"),
        ("PUT", "/openapi.json", "GET, HEAD"),
        ("PUT", "/v2/models/tiny/infer", "POST"),
        ("GET", "/v2/models/tiny/infer", "POST"),
        ("GET", "/v2/models/tiny/versions/1/infer", "POST"),
    ],
)
def test_the_methods_that_a_path_takes_are_told(method: str, path: str, allowed: str, server: Server) -> None:
    answer = server.http.request(method, path)
    assert (answer.status_code, set(answer.headers["Allow"].split(", "))) == (405, set(allowed.split(", ")))
    assert answer.json()["error"] == f"method: expected {answer.headers['Allow']}, found {method}"


@pytest.mark.parametrize(
    ("content", "headers", "text"),
    [
        (b'{"inputs": ["a"', {}, "body: expected JSON, found expecting ',' delimiter at character 15"),
        (b'{"inputs": ["\xff"]}', {}, "body: expected JSON in UTF-8, found something else"),
        (b'{"inputs": "a"}', {"Content-Type": "text/plain"}, "body: expected JSON with the header Content-Type: app"),
        (b"", {}, "body: expected JSON with the header Content-Type: application/json, found None"),
        (b"[" * 100_000, {}, "body: expected JSON"),
    ],
)
def test_a_body_that_is_no_json(content: bytes, headers: dict[str, str], text: str, server: Server) -> None:
    answer = server.http.post("/embed", content=content, headers={"Content-Type": "application/json", **headers})
    assert answer.status_code in (400, 422) and of_tei(answer.json()).startswith(text)


@pytest.mark.parametrize(
    ("data", "size", "text"),
    [
        (b"", 5, "binary_data_size: expected a number up to 0, found 5"),
        (b"\x01\0\0\0a", "5", "binary_data_size: expected a number up to 5, found '5'"),
        (b"\x01\0\0\0a", 5.0, "binary_data_size: expected a number up to 5, found 5.0"),
        (b"\x01\0\0\0a", -1, "binary_data_size: expected a number up to 5, found -1"),
        (b"\x09\0\0\0a", 5, "binary_data_size: expected UTF-8 texts, each preceded by its length"),
        (b"\x01\0\0\0\xff", 5, "binary_data_size: expected UTF-8 texts, each preceded by its length"),
        (b"\0\0\0\0\0", 5, "binary_data_size: expected UTF-8 texts, each preceded by its length"),
    ],
)
def test_a_binary_tensor_that_is_none(data: bytes, size: object, text: str, server: Server) -> None:
    head = json.dumps(tensor(data=None, parameters={"binary_data_size": size})).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = server.http.post("/v2/models/tiny/infer", content=head + data, headers=headers)
    assert answer.status_code == 400 and of_infer(answer.json()).startswith(f"inputs[0].parameters.{text}")
    headers = {"Inference-Header-Content-Length": "9999"}
    answer = server.http.post("/v2/models/tiny/infer", content=head, headers=headers)
    assert answer.status_code == 400 and "expected a number up to" in of_infer(answer.json())


def test_an_unknown_format_is_refused(server: Server) -> None:
    answer = server.post("/embed", {"inputs": "a"}, "text/html")
    assert answer.status_code == 406 and of_tei(answer.json()).startswith("Accept: expected application/json, ")


@pytest.mark.parametrize("wait", [float("inf"), float("nan"), -1.0])
def test_a_wait_that_is_no_time(wait: float) -> None:
    with pytest.raises(FlashElmoError, match=f"^max_wait_ms: expected a finite number, 0 or more, found {wait}$"):
        ServiceSettings(Path("model"), {}, max_wait_ms=wait)


def test_it_tells_about_itself(server: Server) -> None:
    info = server.http.get("/info").json()
    assert (info["model_id"], info["precision"], info["layers"], info["output_size"]) == ("tiny", "fp32", 3, 8)
    assert len(info["model_sha"]) == 64 and info["max_client_batch_size"] == 1024
    assert server.http.get("/health").status_code == 200
    assert server.metric("request_count_total") > 0 and server.metric("workers") == 1
    paths = server.http.get("/openapi.json").json()["paths"]
    assert {"/embed", "/embed_all", "/tokens", "/v1/embeddings", "/v2/models/{name}/infer", "/info"} <= set(paths)


def test_no_page_loads_anything_from_elsewhere(server: Server) -> None:
    pages = {path: server.http.get(path) for path in ("/", "/docs", "/redoc", "/docs/oauth2-redirect")}
    assert {path for path, answer in pages.items() if answer.status_code == 200} == {"/"}, "pages of FastAPI's"
    assert not re.search(r"(src|href)=.(https?:)?//|@import", pages["/"].text)
    assert pages["/"].text.count('href="openapi.json"') == 1


def test_the_same_bits_under_load(server: Server, embedder: ElmoEmbedder, text: list[list[str]]) -> None:
    """Whoever else asks, and in whatever windows: the command's vectors, which are the embedder's."""
    expected = embedder.encode(text, layers="top")
    before = server.metric("batch_next_size_count"), server.metric("batch_next_size_sum")

    def ask(first: int) -> None:
        step = 1 + first % 3
        for start in range(first, len(text), 16):
            body = {"inputs": text[start : start + step], "layers": "top"}
            found = load(server.post("/embed", body, SAFETENSORS).content)["vectors"]
            assert bits(found) == bits(expected[start : start + step])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    windows = server.metric("batch_next_size_count") - before[0]
    assert server.metric("batch_next_size_sum") - before[1] > 1.5 * windows, "requests were not joined"


def test_the_client_has_the_embedders_methods(server: Server, embedder: ElmoEmbedder) -> None:
    with Client(server.url) as client:
        assert bits(client.embed(TEXTS)) == bits(embedder.embed(TOKENS))
        assert bits(client.embed(iter(TOKENS), layers="top")) == bits(embedder.embed(TOKENS, layers="top"))
        assert bits(client.embed(TOKENS, mix=[1, 2, 3], pool="max")) == bits(
            embedder.embed(TOKENS, mix=[1, 2, 3], pool="max")
        )
        assert bits(client.embed_batch(TOKENS)) == bits(embedder.embed_batch(TOKENS))
        assert bits([client.embed_sentence("the cat")]) == bits([embedder.embed_sentence("the cat")])
        assert bits(client.embed_sentences(TOKENS, 2)) == bits(embedder.embed_sentences(TOKENS))
        for given in (TEXTS, "cat"):
            assert bits([client.encode(given)]) == bits([embedder.encode(given)])
        assert bits(client.encode(TEXTS, output_value="token_embeddings", normalize_embeddings=True)) == bits(
            embedder.encode(TEXTS, output_value="token_embeddings", normalize_embeddings=True)
        )
        with pickle.loads(pickle.dumps(client)) as copy:
            assert bits([copy.encode("cat")]) == bits([embedder.encode("cat")])
        assert client.encode([]).shape == (0, 8) and list(client.embed([])) == []
        assert client.embed_sentence([]).shape == (3, 0, 8)
        assert client.info["model_id"] == "tiny"
        with pytest.raises(FlashElmoError, match=r"/embed_all: layers: expected a layer from 0 to 2, found 9"):
            list(client.embed(TEXTS, layers=9))
        with pytest.raises(FlashElmoError, match="layers: expected 'average', 'top' or a layer's number, found 'all'"):
            client.encode(TEXTS, layers="all")


@pytest.mark.parametrize("name", ["skip", "manylangs"])
def test_lone_surrogates_are_to_the_client_what_they_are_to_the_embedder(name: str, tmp_path: Path) -> None:
    write_native(MODELS[name], tmp_path / "model")
    texts = ["a \ud800 b", "\ud800", "c\udc80t \udfff\ud800 é", " \ud83d\ude00\u2003cat ", "cat", ""]
    tokens: Any = [["\ud800", "cat"], ("c\udc80t", ""), ["\ud800 a"], np.array(["\udfff", "a"])]
    embedder = tiny_embedder(tmp_path / "model")
    with served(tmp_path / "model") as server, Client(server.url) as client:
        for given in (texts, tokens):
            assert bits(client.embed(given)) == bits(embedder.embed(given))
            assert bits(client.embed_sentences(given, 2)) == bits(embedder.embed_sentences(given))
        assert [client.embed_sentence(text).shape[1] for text in texts] == [3, 1, 3, 2, 1, 0]
        assert bits([client.encode(texts)]) == bits([embedder.encode(texts)])
    with served(tmp_path / "model", "--tokenizer", "characters") as server, Client(server.url) as client:
        same = {"skip": "ct", "manylangs": "c\U0010fffft"}[name]  # by no embedder's rules but the model's
        assert bits(client.embed(["c\udc80t"])) == bits(embedder.embed([list(same)]))
