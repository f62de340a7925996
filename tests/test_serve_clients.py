"""Clients of other projects, unchanged, against `flashelmo serve`: `make test-serve` has all of them."""

import json
import random
import shutil
import subprocess
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from serving import TEXTS, Server, bits, tiny_embedder, wait_until

from flashelmo import ElmoEmbedder

TOKENS = [text.split() for text in TEXTS]
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
SECONDS_OF_SCHEMATHESIS = 600
MALFORMED = 9500 if find_spec("schemathesis") else 300


@pytest.fixture(scope="module")
def embedder(model: Path) -> ElmoEmbedder:
    return tiny_embedder(model)


def test_openai(server: Server, embedder: ElmoEmbedder) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for encoding in ({}, {"encoding_format": "float"}):  # the first is base64
            answer = client.embeddings.create(model="text-embedding-3-small", input=TEXTS, **encoding)
            vectors = [np.array(each.embedding, np.float32) for each in answer.data]
            assert bits(vectors) == bits(embedder.encode(TOKENS))
            assert answer.usage.total_tokens == sum(map(len, TOKENS)) and answer.model == "tiny"
        one = client.embeddings.create(model="x", input="the cat sat").data[0].embedding
        assert bits([np.array(one, np.float32)]) == bits(embedder.encode(["the cat sat"]))
        assert [each.id for each in client.models.list()] == ["tiny"]
        with pytest.raises(openai.BadRequestError, match=r"input\[0\]: expected a text or a list of tokens, found 1"):
            client.embeddings.create(model="x", input=[1, 2])


def test_huggingface_hub(server: Server, embedder: ElmoEmbedder) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    for client in (hub.InferenceClient(server.url), hub.InferenceClient(base_url=server.url)):
        found = client.feature_extraction("the cat sat")
        assert bits(np.asarray(found, np.float32)) == bits(embedder.encode(["the cat sat"]))
        found = client.feature_extraction("the cat sat", normalize=True, truncate=True, truncation_direction="left")
        assert bits(np.asarray(found, np.float32)) == bits(embedder.encode(["the cat sat"], normalize_embeddings=True))
    with pytest.raises(Exception, match="expected 2048 tokens at most, found 5000"):
        client.feature_extraction("a " * 5000)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient(binary: bool, server: Server, embedder: ElmoEmbedder) -> None:
    pytest.importorskip("geventhttpclient", reason="tritonclient's HTTP part is not installed")
    http = pytest.importorskip("tritonclient.http", reason="tritonclient's HTTP part is not installed")
    client = http.InferenceServerClient(server.url.removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
    assert client.get_model_metadata("tiny", "1")["outputs"][0]["name"] == "sentence_embedding"
    text = http.InferInput("text", [len(TEXTS), 1], "BYTES")
    text.set_data_from_numpy(np.array(TEXTS, object).reshape(-1, 1), binary_data=binary)
    names = ["sentence_embedding", "token_embeddings", "mask"]
    wanted = [http.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = client.infer("tiny", [text], outputs=wanted, request_id="1")
    assert bits(answer.as_numpy("sentence_embedding")) == bits(embedder.encode(TOKENS))
    mask, vectors = answer.as_numpy("mask"), answer.as_numpy("token_embeddings")
    average = embedder.encode(TOKENS, output_value="token_embeddings")
    assert bits(vectors[b][mask[b]] for b in range(len(TEXTS))) == bits(average)
    answer = client.infer("tiny", [text])
    assert bits(answer.as_numpy("sentence_embedding")) == bits(embedder.encode(TOKENS))
    with pytest.raises(Exception, match=r"model: expected tiny, found 'other'"):
        client.infer("other", [text])
    client.close()


def test_curl(server: Server, embedder: ElmoEmbedder) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    post = ["curl", "--silent", "--show-error", "--fail", "-H", "Content-Type: application/json"]
    body = json.dumps({"inputs": TEXTS})
    answer = subprocess.run([*post, f"{server.url}/embed", "--data", body], capture_output=True, check=True, timeout=60)
    assert bits(np.array(json.loads(answer.stdout), np.float32)) == bits(embedder.encode(TOKENS))


POSTS: list[tuple[str, dict[str, Any]]] = [
    ("/embed", {"inputs": ["the cat", ["sat"]], "layers": [0, 2], "mix": None, "pool": "max", "truncate": True}),
    ("/", {"inputs": "the cat sat", "normalize": True}),
    ("/embed_all", {"inputs": [["a", "b"]], "mix": [0.5, 0.25, 0.25]}),
    ("/tokens", {"inputs": ["the cat"], "layers": "top"}),
    ("/v1/embeddings", {"input": ["the cat"], "model": "m", "encoding_format": "base64", "dimensions": 8}),
    (
        "/v2/models/tiny/infer",
        {
            "inputs": [{"name": "tokens", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "b"]}],
            "outputs": [{"name": "mask", "parameters": {"binary_data": True}}],
        },
    ),
]
STRANGE: list[Any] = [None, True, -1, 1e308, 10**30, "", "\0", "x" * 3000, [], {}, [[]], [None], {"a": []}, "NaN"]


def mutated(rng: random.Random, value: Any) -> Any:
    """The value with a strange one at some place of it."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        return {**value, key: mutated(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        i = rng.randrange(len(value))
        return [*value[:i], mutated(rng, value[i]), *value[i + 1 :]]
    return rng.choice(STRANGE)


def damaged(rng: random.Random, body: dict[str, Any]) -> bytes:
    """A request that is wrong in its values or in its bytes."""
    data = bytearray(json.dumps(mutated(rng, body) if rng.random() < 0.7 else body).encode())
    if rng.random() < 0.4:
        i = rng.randrange(len(data))
        data[i : i + rng.randrange(9)] = rng.randbytes(rng.randrange(5))
    return bytes(data)


def test_malformed_requests_are_refused_and_leave_nothing(server: Server) -> None:
    """Ten thousand, where time is given to it."""
    rng = random.Random(1)
    statuses: Counter[int] = Counter()
    main, worker = psutil.Process(server.process.pid), server.worker()

    def send(n: int) -> None:
        for _ in range(n):
            path, body = rng.choice(POSTS)
            headers = {"Content-Type": "application/json"}
            if path.startswith("/v2") and rng.random() < 0.3:
                headers["Inference-Header-Content-Length"] = str(rng.choice([0, 7, -1, "x", 10**9]))
            answer = server.http.post(path, content=damaged(rng, body), headers=headers)
            assert answer.status_code < 500, answer.text
            assert answer.status_code == 200 or "expected" in answer.text, answer.text
            statuses[answer.status_code] += 1

    send(500)
    server.http.get("/health")
    processes = (main, worker)
    before, n_files = [each.memory_info().rss for each in processes], [each.num_fds() for each in processes]
    send(MALFORMED)
    assert statuses[200] and statuses[400] and statuses[422]
    assert worker.is_running() and server.worker().pid == worker.pid
    wait_until(lambda: all(each.num_fds() <= n for each, n in zip(processes, n_files, strict=True)))
    grown = [each.memory_info().rss - rss for each, rss in zip(processes, before, strict=True)]
    print(f"{sum(statuses.values())} requests, answers {dict(statuses)}, bytes grown: {grown}")
    assert max(grown) < 20 << 20


def test_nothing_that_the_openapi_page_allows_or_forbids_is_a_failure(server: Server, tmp_path: Path) -> None:
    """Thousands of requests, good and malformed, by our own description: no 5xx, no answer that it does not name."""
    if find_spec("schemathesis") is None or shutil.which("schemathesis") is None:
        pytest.skip("schemathesis is not installed")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,unsupported_method"
    command = ["schemathesis", "run", f"{server.url}/openapi.json", "--checks", checks, "--max-examples", "100"]
    done = subprocess.run(
        [*command, "--workers", "4", "--seed", "1", "--no-color"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=SECONDS_OF_SCHEMATHESIS,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:]
    assert server.http.get("/health").status_code == 200 and server.metric("requests_in_flight") == 0
    assert server.metric("worker_death_count_total") == 0
    assert server.metric("request_count_total") > 1000
