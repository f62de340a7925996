"""What goes beyond a limit, who hangs up, what dies: nothing is lost that was accepted, and nobody else waits."""

import asyncio
import errno
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

import uvicorn
from safetensors.numpy import load
from serving import (
    TEXTS,
    FakeWorker,
    Server,
    asynchronous,
    bits,
    fake_service,
    served,
    settle,
    tiny_embedder,
    wait_until,
)

from flashelmo import Client, FlashElmoError
from flashelmo import client as client_module
from flashelmo.cli import main
from flashelmo.cli.serve import _key
from flashelmo.engine.system import child
from flashelmo.serve import formats, guard
from flashelmo.serve import server as server_module
from flashelmo.serve.app import make_app
from flashelmo.serve.errors import Refused
from flashelmo.serve.limits import Limits
from flashelmo.serve.service import Service
from flashelmo.serve.workers import make_workers

SAFETENSORS = "application/x-safetensors"
KEY = "a-key"


@pytest.fixture(scope="module")
def strict(model: Path) -> Iterator[Server]:
    """A server of narrow limits, and a key."""
    (model.parent / "key").write_text(KEY + "\n", encoding="utf-8")
    limits = ["--max-sentences", 4, "--max-sentence-tokens", 5, "--max-body-bytes", 2000, "--max-seconds", 2]
    with served(model, *limits, "--max-result-bytes", 400, "--api-key-file", model.parent / "key") as server:
        server.http.headers["Authorization"] = f"Bearer {KEY}"
        yield server


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/embed", {"inputs": ["a"] * 5}, 413, "inputs: expected 4 sentences at most, found 5"),
        ("/embed", {"inputs": ["a", "b c d e f g"]}, 413, "inputs[1]: expected 5 tokens at most, found 6"),
        ("/embed", {"inputs": ["a" * 2000]}, 413, "body: expected 2000 bytes at most, found "),
        ("/tokens", {"inputs": ["a b c d e"]}, 413, "vectors: expected 400 bytes at most, found 480"),
    ],
)
def test_too_much(path: str, body: Any, status: int, text: str, strict: Server) -> None:
    answer = strict.post(path, body)
    assert answer.status_code == status and answer.json()["error"].startswith(text)
    assert strict.post("/embed", {"inputs": ["b c d e f g"], "truncate": True}).status_code == 200


def test_a_key_is_demanded_where_there_are_vectors(strict: Server) -> None:
    assert strict.http.get("/info", headers={"Authorization": f"bearer  {KEY}"}).status_code == 200
    for key in ("", "Bearer other", f"Basic {KEY}", KEY, "Bearer"):
        for path in ("/embed", "/", "/v1/embeddings", "/info", "/nothing"):
            method = "GET" if path == "/info" else "POST"
            answer = strict.http.request(method, path, json={"inputs": "a"}, headers={"Authorization": key})
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/", "/health", "/metrics", "/v2/health/ready"):
            assert strict.http.get(path, headers={"Authorization": key}).status_code == 200
    with Client(strict.url) as client, pytest.raises(FlashElmoError, match="Authorization: expected Bearer and"):
        client.embed_sentence("a")
    with Client(strict.url, api_key=KEY) as client:
        assert client.encode("a").shape == (8,)


def test_pages_of_other_sites_ask_for_nothing(strict: Server) -> None:
    """A browser sends a form, or text that is JSON, to any site, and tells where it comes from."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    for path, body in (("/embed", {"inputs": "a"}), ("/v2/models/tiny/infer", {"inputs": [tensor]})):
        for place, status in (("cross-site", 403), ("same-origin", 200), ("none", 200)):
            headers = {"Sec-Fetch-Site": place, "Content-Type": "application/json"}
            assert strict.http.post(path, content=json.dumps(body), headers=headers).status_code == status
    assert strict.http.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_head_is_answered_where_get_is(strict: Server) -> None:
    without = {"Authorization": ""}
    opened = ("/", "/health", "/metrics", "/openapi.json", "/v2/health/live", "/v2/health/ready")
    closed = ("/info", "/v1/models", "/v1/models/tiny", "/v2", "/v2/models/tiny", "/v2/models/tiny/versions/1/ready")
    for path in (*opened, *closed):
        got, answer = strict.http.get(path), strict.http.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
        assert answer.headers["content-type" if got.content else "content-length"]
        assert answer.headers.get("content-type") == got.headers.get("content-type")
        if path != "/metrics":  # which grows
            assert answer.headers["content-length"] == got.headers["content-length"] == str(len(got.content))
        assert strict.http.head(path, headers=without).status_code == (200 if path in opened else 401)
    for path, status in (("/embed", 405), ("/nothing", 404), ("/v2/models/other", 404)):
        answer = strict.http.head(path)
        assert (answer.status_code, answer.content) == (status, b"")
    head = raw(strict, "HEAD /health HTTP/1.1\r\nConnection: close")
    assert head.startswith(b"HTTP/1.1 200 ") and head.endswith(b"\r\n\r\n")
    pages = strict.http.get("/openapi.json").json()["paths"]
    assert not any("head" in page for page in pages.values())


def raw(server: Server, head: str, *parts: bytes, pause: float = 0.0) -> bytes:
    """What a client gets that writes bytes of its own."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        connection.sendall(f"{head}\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
        for part in parts:
            time.sleep(pause)
            connection.sendall(part)
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
        return answer


def test_a_body_of_a_gigabyte_is_refused_unread(strict: Server) -> None:
    post = "POST /embed HTTP/1.1\r\nContent-Type: application/json\r\n"
    answer = raw(strict, f"{post}Content-Length: {1 << 30}")
    assert answer.startswith(b"HTTP/1.1 413 ") and b"found 1073741824 or more" in answer
    chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    answer = raw(strict, f"{post}Transfer-Encoding: chunked", chunk, chunk, chunk)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"connection: close" in answer


def test_a_slow_body_is_given_up(strict: Server) -> None:
    started = time.monotonic()
    answer = raw(strict, "POST /embed HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 100", b'{"inp')
    assert answer.startswith(b"HTTP/1.1 408 ") and b"body: incomplete after 2 s" in answer
    assert 1.5 < time.monotonic() - started < 10


@asynccontextmanager
async def in_process(service: Service) -> AsyncIterator[str]:
    """The service on a port of its own, in this process."""
    listener = server_module.open_port("127.0.0.1", 0)
    app = make_app(service, starts=False)
    config = uvicorn.Config(app, http=server_module.PatientProtocol, ws="none", log_level="warning")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await task


@asynchronous
async def test_a_client_of_http_1_0_gets_no_chunks(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of an answer that is sent while it is made is that of the connection."""
    service, worker = fake_service(model)
    async with in_process(service) as url:
        for most in (1 << 20, 0):
            monkeypatch.setattr(formats, "STREAMED_BYTES", most)
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            body = b'{"inputs": ["a b", "c"]}'
            head = f"POST /embed_all HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            writer.write(f"{head}\r\n\r\n".encode() + body)
            while not worker.held:
                await asyncio.sleep(0.01)
            worker.finish()
            answer = await asyncio.wait_for(reader.read(), 4)
            head, _, found = answer.decode().lower().partition("\r\n\r\n")
            assert json.loads(found) == [[[2.0] * 8] * 2, [[1.0] * 8]]
            assert "connection: close" in head and "transfer-encoding" not in head
            assert ("content-length" in head) == (most > 0)
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize(("length", "found"), [("9" * 5000, "9" * 18), ("0" * 5000 + "2001", "2001")])
def test_a_length_of_thousands_of_digits(length: str, found: str, model: Path) -> None:
    """Python reads no such number, and not every server refuses it."""
    service, _ = fake_service(model, limits=Limits(body_bytes=2000))
    scope = {"type": "http", "path": "/embed", "method": "POST", "headers": [(b"content-length", length.encode())]}
    with pytest.raises(Refused, match=f"413: body: expected 2000 bytes at most, found {found} or more"):
        guard.Guard(None, service)._check(scope)  # type: ignore[arg-type]


@asynchronous
async def test_a_slow_head_is_given_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.2)
    service, _ = fake_service(model)
    async with in_process(service) as url:
        port = int(url.rpartition(":")[2])
        for part in (b"", b"GET /health HTTP/1.1\r\nHo", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /heal"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(part)
            answer = await asyncio.wait_for(reader.read(), 4)
            assert (b"200 OK" in answer) == (b"\r\n\r\n" in part)
            writer.close()


def asgi(service: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(make_app(service, starts=False)), base_url="http://x")


@asynchronous
async def test_more_requests_than_allowed_are_told_to_come_back(model: Path) -> None:
    service, worker = fake_service(model, limits=Limits(requests=2, result_bytes=100))
    async with asgi(service) as http:
        tasks = [asyncio.create_task(http.post("/embed", json={"inputs": text})) for text in "abcd"]
        await settle()
        await asyncio.sleep(0.05)
        assert service.metrics.text().decode().count("flashelmo_requests_in_flight 2.0") == 1
        finish_all(worker)
        answers = await asyncio.gather(*tasks)
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
        assert answers[2].headers["Retry-After"] == "1"
        assert answers[2].json() == {
            "error": "requests: the limit of 2 in flight is reached",
            "error_type": "overloaded",
        }
        tasks = [asyncio.create_task(http.post("/embed", json={"inputs": ["a", "b"]})) for _ in range(2)]
        await asyncio.sleep(0.05)
        finish_all(worker)
        answers = await asyncio.gather(*tasks)
        assert [answer.status_code for answer in answers] == [200, 429]
        assert "vectors: expected at most 100 bytes for all requests in flight, found 128" in answers[1].text
        assert (await http.post("/embed", json={"inputs": []})).status_code == 200
        assert "flashelmo_requests_in_flight 0.0" in service.metrics.text().decode()


def infer_body(shape: list[Any], data: list[Any] | None, name: str = "tokens", **parameters: Any) -> dict[str, Any]:
    """A request of the Open Inference Protocol for the mask."""
    tensor = {"name": name, "shape": shape, "datatype": "BYTES", "data": data, "parameters": parameters}
    return {"inputs": [tensor], "outputs": [{"name": "mask"}]}


@asynchronous
async def test_a_shape_alone_takes_nothing(model: Path) -> None:
    """A hundred bytes may tell any number of empty rows."""
    service, _ = fake_service(model, limits=Limits(sentences=9))
    path, told = "/v2/models/tiny/infer", "inputs[0].shape: expected 9 sentences at most, found"
    async with asgi(service) as http:

        async def refusal(status: int, body: dict[str, Any], data: bytes | None = None, length: str = "") -> str:
            content = json.dumps(body).encode()
            headers = {} if data is None else {"Inference-Header-Content-Length": length or str(len(content))}
            answer = await http.post(path, content=content + (data or b""), headers=headers)
            assert answer.status_code == status, answer.text
            return str(answer.json()["error"])

        for n in (10, 10**11, 2**63):
            assert await refusal(413, infer_body([n, 0], [])) == f"{told} {n}"
            assert await refusal(413, infer_body([n, 0], None, binary_data_size=0), b"") == f"{told} {n}"
            assert await refusal(413, infer_body([n, 1], [], "text")) == f"{told} {n}"
        assert "expected 100000000000 texts, found 0" in await refusal(400, infer_body([1, 10**11], []))
        for odd in (-1, 1.5, 1e300, 10**30, None, "x", [1]):
            assert (await refusal(400, infer_body([odd, 0], []))).startswith("inputs[0].shape[0]: expected ")
        assert len(await refusal(400, infer_body([1] * 10_000, []))) < 200
        several = {"inputs": [infer_body([10**11, 0], [])["inputs"][0]] * 2}
        assert await refusal(400, several) == "inputs: expected one, text or tokens, found 2"
        length = "9" * 5000
        assert "expected a number up to" in await refusal(400, infer_body([1, 0], []), b"", length)
        for shape in ([0, 10**18], [0, 0]):
            answer = await http.post(path, json=infer_body(shape, []))
            assert answer.status_code == 200 and answer.json()["outputs"][0]["shape"] == [0, 0]


LONG_AND_SHORT = [["a"] * 100, *[["a"]] * 9]
VECTORS = 109 * 8 * 4  # bytes of one layer
FILLED_UP = [[*tokens, *[""] * (100 - len(tokens))] for tokens in LONG_AND_SHORT]
LONG_WORD = [*["a"] * 10, "b" * 1000]


@pytest.mark.parametrize(
    ("path", "body", "accept", "n_bytes"),
    [
        ("/v2", ["token_embeddings"], "", 10 * 100 * 8 * 4),
        ("/v2", ["token_embeddings", "token_embeddings"], "", 10 * 100 * 8 * 4),
        ("/v2", ["mask"], "", VECTORS + 10 * 100),
        ("/v2", ["mask", "sentence_embedding"], "", VECTORS + 10 * 100 + 10 * 8 * 4),
        ("/v2", ["sentence_embedding"], "", 10 * 8 * 4),
        ("/v2", [], "", 10 * 8 * 4),
        ("/v1/embeddings", {"input": LONG_AND_SHORT, "encoding_format": "base64"}, "", 10 * 8 * 4),
        ("/embed", {"inputs": LONG_AND_SHORT}, "application/x-npz", 10 * 8 * 4),
        ("/embed_all", {"inputs": LONG_AND_SHORT}, SAFETENSORS, VECTORS),
        ("/tokens", {"inputs": [LONG_WORD]}, SAFETENSORS, 3 * 11 * 8 * 4),
        ("/tokens", {"inputs": [LONG_WORD]}, "application/x-npz", 3 * 11 * 8 * 4 + 11 * 1000 * 4),
    ],
)
def test_what_an_answer_is_made_of_is_held_to_the_limit(
    path: str, body: Any, accept: str, n_bytes: int, model: Path
) -> None:
    """Also what fills rows up, which a long sentence among short ones has much of, and words as long as the longest."""
    if path == "/v2":
        path, names = "/v2/models/tiny/infer", body
        body = infer_body([10, 100], FILLED_UP) | {"outputs": [{"name": name} for name in names]}

    async def ask(limit: int) -> httpx.Response:
        service, worker = fake_service(model, limits=Limits(result_bytes=limit))
        async with asgi(service) as http:
            task = asyncio.create_task(http.post(path, json=body, headers={"Accept": accept or "*/*"}))
            while not task.done():
                await asyncio.sleep(0.01)
                finish_all(worker)
            return await task

    answer = asyncio.run(ask(n_bytes - 1))
    assert answer.status_code == 413
    assert f"vectors: expected {n_bytes - 1} bytes at most, found {n_bytes}" in answer.text
    assert asyncio.run(ask(n_bytes)).status_code == 200


def finish_all(worker: FakeWorker) -> None:
    while worker.held:
        worker.finish()


@asynchronous
async def test_an_answer_that_takes_too_long_is_given_up(model: Path) -> None:
    service, worker = fake_service(model, limits=Limits(seconds=1))
    async with asgi(service) as http:
        answer = await http.post("/v1/embeddings", json={"input": "a", "model": "x"})
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
        assert answer.json()["error"]["message"] == "time: no answer within 1 s"
        worker.is_ready = False
        answer = await http.get("/health")
        assert answer.status_code == 503 and answer.json()["error"].startswith("workers: none is ready")
        assert (await http.head("/health")).status_code == 503
    assert not service._batcher._waiting


@asynchronous
async def test_who_hangs_up_leaves_the_line(model: Path) -> None:
    service, worker = fake_service(model)
    async with in_process(service) as url, httpx.AsyncClient(base_url=url) as http:
        first = asyncio.create_task(http.post("/embed", json={"inputs": "a"}))
        while not worker.held:
            await asyncio.sleep(0.01)
        impatient = [asyncio.create_task(http.post("/embed", json={"inputs": "b"})) for _ in range(5)]
        while len(service._batcher._waiting) < 5:
            await asyncio.sleep(0.01)
        for task in impatient:
            task.cancel()
        while service._batcher._waiting:
            await asyncio.sleep(0.01)
        finish_all(worker)
        assert (await first).status_code == 200
        text = service.metrics.text().decode()
        assert "flashelmo_request_gone_count_total 5.0" in text and "flashelmo_requests_in_flight 0.0" in text


@asynchronous
async def test_who_reads_no_answer_holds_nothing_for_long(model: Path) -> None:
    service, worker = fake_service(model, limits=Limits(seconds=1))
    async with in_process(service) as url:
        port = int(url.rpartition(":")[2])
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = b'{"inputs": [' + b",".join([b'"a"'] * 1024) + b'], "layers": "all"}'
        head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        for _ in range(100):
            await loop.sock_sendall(client, head % len(body) + body)
            deadline = loop.time() + 0.2
            while not worker.held and loop.time() < deadline:
                await asyncio.sleep(0.005)
            if not worker.held:
                break  # answers fill all buffers: the server reads no more requests
            finish_all(worker)
        else:
            pytest.fail("all answers were sent, and nobody read them")
        while "flashelmo_requests_in_flight 0.0" not in service.metrics.text().decode():
            await asyncio.sleep(0.05)
        client.close()


@asynchronous
async def test_an_answer_is_held_until_its_client_reads_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no longer than READ_SECONDS: what lies in the server's own buffers is not answered."""
    monkeypatch.setattr(server_module, "READ_SECONDS", 0.2)
    service, worker = fake_service(model)
    async with in_process(service) as url:
        body = json.dumps({"inputs": ["a " * 2000] * 80}).encode()  # 15 MiB of vectors
        head = f"POST /tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAccept: {SAFETENSORS}\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        for reads in (True, False):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), limit=4096)
            writer.write(request)
            while not service._batcher._sent:
                await asyncio.sleep(0.01)
            while worker.held:
                worker.finish()
                await settle()
            await asyncio.sleep(0.1 if reads else 0.5)
            assert f"flashelmo_requests_in_flight {float(reads)}" in service.metrics.text().decode()
            n_bytes = 0
            with suppress(ConnectionResetError), closing(writer):
                while n_bytes < 15 << 20 and (piece := await reader.read(1 << 20)):
                    n_bytes += len(piece)
            assert (n_bytes >= 15 << 20) == reads
            with suppress(ConnectionResetError):
                await writer.wait_closed()


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"GET /health HTTP/1.1\r\nX: ", b"a" * 30_000),
        (b"GET /health HTTP/1.1\r\n", b"X: a\r\n" * 5_000),
        (b"POST /embed HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"X: a\r\n" * 5_000),
        (b"POST /embed HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a" * 30_000),
    ],
)
@asynchronous
async def test_a_head_without_an_end_is_refused(first: bytes, piece: bytes, model: Path) -> None:
    """Nor may headers come without an end behind a body."""
    service, _ = fake_service(model)
    async with in_process(service) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(first)
        for _ in range(4):
            writer.write(piece)
            await asyncio.sleep(0.02)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 400 ") and b"head: expected 65536 bytes at most" in answer
        writer.close()
        await writer.wait_closed()


@asynchronous
async def test_bodies_that_come_together_are_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HELD_BODY_BYTES", 1000)
    service, _ = fake_service(model)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 600

    async with asgi(service) as http:
        answer = await http.post("/embed", content=pieces(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 429 and "for all requests" in answer.json()["error"]


def test_a_worker_that_is_killed_costs_no_request(model: Path, text: list[list[str]]) -> None:
    """Under load, again and again: every answer comes, and is right."""
    expected = tiny_embedder(model).encode(text, layers="top")
    with served(model, "--max-batch-tokens", 64) as server:
        over = threading.Event()

        def ask(first: int) -> int:
            n = 0
            while not over.is_set():
                for start in range(first, len(text), 8):
                    body = {"inputs": text[start : start + 2], "layers": "top"}
                    answer = server.post("/embed", body, SAFETENSORS)
                    assert answer.status_code == 200, answer.text
                    assert bits(load(answer.content)["vectors"]) == bits(expected[start : start + 2])
                    n += 1
            return n

        with ThreadPoolExecutor(4) as pool:
            counts = [pool.submit(ask, first) for first in range(4)]
            try:
                for deaths in (1, 2):
                    time.sleep(0.2)
                    os.kill(server.worker().pid, signal.SIGKILL)
                    wait_until(lambda: server.metric("worker_death_count_total") == deaths)  # noqa: B023 (called here)
                    wait_until(lambda: server.metric("workers") == 1)
            finally:
                over.set()
            assert sum(count.result() for count in counts) > 50
        said = server.stop(signal.SIGINT)
    assert said.count("killed by SIGKILL; it is started anew") == 2


def test_at_the_end_what_was_accepted_is_answered(model: Path) -> None:
    with served(model, "--max-wait-ms", 800) as server, ThreadPoolExecutor(16) as pool:
        for _ in range(10):
            list(pool.map(lambda _: server.post("/embed", {"inputs": "a"}), range(16)))  # so that others are waited for
            waiting = pool.submit(server.post, "/embed", {"inputs": TEXTS})
            while not (waits := server.metric("queue_size") == 1) and not waiting.done():
                time.sleep(0.01)
            if waits:  # where the machine is slow the sixteen may come one by one
                break
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/health")
        assert waiting.result().status_code == 200 and len(waiting.result().json()) == len(TEXTS)
        _, said = server.process.communicate(timeout=30)
        assert server.process.returncode == 0 and "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "place", ["flashelmo.cli.commands.app", "flashelmo.cli.serve.model_path", "flashelmo.engine.system.child.start"]
)
def test_who_stops_it_while_it_starts_has_a_clean_end_too(
    place: str, number: int, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before its options are read, before its model is looked for, and while its worker starts."""
    module, _, name = place.rpartition(".")
    go_on, begun = getattr(import_module(module), name), []

    def stop_and_go_on(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        begun.append(go_on(*arguments, **options))
        return begun[-1]

    monkeypatch.setattr(sys.modules[module], name, stop_and_go_on)
    assert main(["serve", str(model), "--port", "0", "--device", "cpu", "--quiet"]) == 0
    assert capfd.readouterr().err == ""
    for worker in begun:
        wait_until(lambda worker=worker: worker.poll() is not None)
    if place == "flashelmo.cli.commands.app":
        assert main(["info", str(model)]) == 128 + number
        assert capfd.readouterr().err == "flashelmo: interrupted\n"


def test_a_client_tries_again_what_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)
    answers: list[Any] = [
        httpx.ConnectError("refused"),
        httpx.Response(503, headers={"Retry-After": "3"}, json={"error": "x"}),
        httpx.Response(429, json={"error": "busy"}),
        httpx.Response(200, json={"model_id": "it"}),
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, httpx.Response)
        return found

    client = Client("http://x/", transport=httpx.MockTransport(answer))
    assert client.info == {"model_id": "it"}
    assert len(pauses) == 3 and pauses[1] == 3.0 and 0.1 <= pauses[0] < pauses[2] < 1

    answers[:] = [httpx.Response(429, json={"error": "busy"})] * 2
    with pytest.raises(FlashElmoError, match="http://x/info: busy"):
        Client("http://x", retries=1, transport=httpx.MockTransport(answer)).info  # noqa: B018
    answers[:] = [httpx.Response(422, json={"error": "inputs: expected, found nothing"})]
    with pytest.raises(FlashElmoError, match="inputs: expected, found nothing"):
        Client("http://x", transport=httpx.MockTransport(answer)).info  # noqa: B018
    answers[:] = [httpx.Response(404, json={"error": {"message": "path: expected one listed", "code": None}})]
    with pytest.raises(FlashElmoError, match=r"http://x/v1/info: path: expected one listed$"):
        Client("http://x/v1", transport=httpx.MockTransport(answer)).info  # noqa: B018
    answers[:] = [httpx.Response(500, text="<html>")]
    with pytest.raises(FlashElmoError, match="http://x/info: expected vectors, found status 500"):
        Client("http://x", transport=httpx.MockTransport(answer)).info  # noqa: B018
    answers[:] = [httpx.Response(422, json={"error": "as it was asked"})]
    with pytest.raises(FlashElmoError, match="as it was asked"):  # and not that it cannot be asked
        list(Client("http://x", transport=httpx.MockTransport(answer)).embed_sentences(["a", ["a"]], 2))
    answers[:] = [httpx.Response(200, text="<html>")] * 2
    with pytest.raises(FlashElmoError, match="http://x/info: expected the service's description, found something else"):
        Client("http://x", transport=httpx.MockTransport(answer)).info  # noqa: B018
    with pytest.raises(FlashElmoError, match="http://x/embed_all: expected vectors, found something else: "):
        list(Client("http://x", transport=httpx.MockTransport(answer)).embed_sentences(["a"], 1))
    answers[:] = [httpx.ConnectError("refused")]
    with pytest.raises(FlashElmoError, match="http://x/info: expected an answer, found ConnectError: refused"):
        Client("http://x", retries=0, transport=httpx.MockTransport(answer)).info  # noqa: B018
    with pytest.raises(FlashElmoError, match="url: expected one that begins with http:// or https://, found 'x'"):
        Client("x")
    with pytest.raises(FlashElmoError, match=r"^url: expected one such as .*, found 'http://\[::1': "):
        Client("http://[::1")
    for timeout in ("7", 0, -1.0, float("nan"), float("inf"), 1e10, True):
        with pytest.raises(FlashElmoError, match=r"^timeout: expected seconds above 0, or None, found "):
            Client("http://x", timeout=timeout)  # type: ignore[arg-type]
    for token in (7, float("nan"), object()):
        with pytest.raises(FlashElmoError, match=r"^sentence: expected tokens as text, found "):
            Client("http://x").embed_sentences([["a", token]], 1).__next__()  # type: ignore[list-item]
    assert {408, 429, 502, 503, 504} == client_module.RETRIED


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--host", "192.0.2.1"], "--host, --port: expected an address that is free, found 192.0.2.1:8080: "),
        (["--host", ""], "--host: expected an address, found none"),
        (["--precision", "fp7"], "Invalid value for '--precision': "),
        (["--tokenizer", "words"], "tokenizer: expected whitespace"),
        (["--api-key-file", "nothing"], "nothing: No such file"),
        (["--api-key-file", os.devnull], f"{os.devnull}: expected one line of a key in ASCII"),
        (["--replicas", "2"], "--replicas: requires --ray"),
        (
            ["--ray", "local", "--replicas", "1,2,3"],
            "--replicas: expected a number, or the fewest and the most, found '1",
        ),
        (["--device", "cuda:0,cpu"], "device: expected one, or several CUDA devices"),
    ],
)
def test_what_the_command_refuses(
    options: list[str], text: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(model), *options]) != 0
    said = capfd.readouterr().err
    assert text in said and "Traceback" not in said


@pytest.mark.parametrize(
    "data",
    [
        "key\r\n".encode("utf-16"),  # PowerShell's
        "key\n".encode("utf-16-le"),
        "clé\n".encode("latin-1"),
        "clé\n".encode(),
        b"\x80\xff\0",
        b"a key\nand another\n",
        b"\xef\xbb\xbf\r\n",
        b"",
    ],
)
def test_a_file_that_holds_no_key(data: bytes, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_bytes(data)
    assert main(["serve", str(model), "--api-key-file", str(tmp_path / "key")]) == 1
    told = "expected one line of a key in ASCII, found something else"
    assert capfd.readouterr().err == f"flashelmo: {tmp_path / 'key'}: {told}\n"


def test_a_key_after_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xef\xbb\xbfa key\r\n")
    assert _key(tmp_path / "key") == "a key"


@pytest.mark.parametrize("key", ["clé", "a\nkey", "key\n", "\0", 7])
def test_a_key_that_no_header_can_hold(key: Any) -> None:
    with pytest.raises(FlashElmoError, match=r"^api_key: expected one line of a key in ASCII, found something else$"):
        Client("http://x", api_key=key)


def test_a_port_that_is_taken(model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with server_module.open_port("127.0.0.1", 0) as listener:
        assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR), "two could take it there"
    monkeypatch.undo()
    with server_module.open_port("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP, "asyncio would let small packets wait"
        listener.listen()
        assert main(["serve", str(model), "--port", str(listener.getsockname()[1])]) == 1
    assert "Address already in use" in capfd.readouterr().err


@asynchronous
async def test_in_a_notebook_the_service_does_not_start(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(model), "--port", "0"]) == 1
    expected = "serve: expected a process of its own, found a running event loop, as a notebook has one\n"
    assert capfd.readouterr().err.endswith(expected)


@asynchronous
async def test_connections_that_cannot_be_accepted_are_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, told = asyncio.get_running_loop(), list[str]()
    loop.set_exception_handler(server_module.AcceptErrors())
    monkeypatch.setattr(loop, "default_exception_handler", lambda context: told.append(context["message"]))
    with socket.socket() as listener:
        for _ in range(2048):  # asyncio's own loop
            error = OSError(errno.EMFILE, "Too many open files")
            loop.call_exception_handler({"message": "accept", "exception": error, "socket": listener})
    for other in (OSError(errno.EMFILE, "a file"), ValueError("a value")):
        loop.call_exception_handler({"message": str(other), "exception": other})
    assert told == ["[Errno 24] a file", "a value"]
    assert caplog.messages == ["connections: no more can be accepted for now: Too many open files"]


def test_as_many_files_may_be_open_as_connections_need() -> None:
    """As far as the hard limit, which stays."""
    resource = pytest.importorskip("resource", reason="not on Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        for n, expected in ((50, 64), (100, 100), *([(hard + 1, hard)] if hard > 0 else [])):
            server_module.allow_files(n)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (expected, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynchronous
async def test_a_name_may_have_a_slash_in_it(model: Path) -> None:
    service, worker = fake_service(model, name="some/elmo")
    worker.is_ready = False
    async with asgi(service) as client:
        for path in ("", "/versions/1"):
            assert (await client.get(f"/v2/models/some/elmo{path}")).json()["name"] == "some/elmo"
            assert (await client.get(f"/v2/models/some/elmo{path}/ready")).status_code == 503
            assert (await client.post(f"/v2/models/some/elmo{path}/infer", json={})).status_code == 400
        assert (await client.get("/v2/models/some")).status_code == 404


class Heard:
    """Who hears of a worker."""

    def __init__(self) -> None:
        self.ready = self.lost = 0

    def on_done(self, number: int, result: Any) -> None:
        raise AssertionError

    def on_lost(self, numbers: Any) -> None:
        self.lost += 1

    def on_ready(self) -> None:
        self.ready += 1


@asynchronous
async def test_a_process_that_cannot_be_started_is_an_error_at_first_and_tried_again_later(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused = [True, False, True, False]

    def start(*arguments: Any) -> Any:
        if refused.pop(0):
            raise OSError(errno.EMFILE, "Too many open files")
        return begin(*arguments)

    begin = child.start
    monkeypatch.setattr(child, "start", start)
    heard = Heard()

    def worker() -> Any:
        return make_workers(model, {"threads": 1}, ["cpu"], heard)[0]

    with pytest.raises(FlashElmoError, match="its process cannot be started: Too many open files"):
        await worker().start()
    second = worker()
    await second.start()
    os.kill(second.pid, signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: heard.ready == 2)
    await second.close()
    assert heard.lost == 2 and not refused and "Too many open files; it is started anew" in caplog.text


def test_a_thread_that_cannot_be_started_ends_its_process(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes, begin = [], child.start

    def start(*arguments: Any) -> Any:
        processes.append(begin(*arguments))
        return processes[-1]

    def no_thread(thread: threading.Thread) -> None:
        if "_write" in repr(getattr(thread, "_target", "")):
            raise RuntimeError("can't start new thread")
        start_thread(thread)

    start_thread = threading.Thread.start
    monkeypatch.setattr(child, "start", start)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    (worker,) = make_workers(model, {"threads": 1}, ["cpu"], Heard())
    with pytest.raises(FlashElmoError, match="its process cannot be started: can't start new thread"):
        asyncio.run(worker.start())
    assert processes[0].returncode == -signal.SIGKILL


@asynchronous
async def test_a_system_that_it_cannot_be_started_on_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    (worker,) = make_workers(model, {"threads": 1}, ["cpu"], Heard())
    with pytest.raises(FlashElmoError, match=r"^expected Linux or macOS for a service"):
        await asyncio.wait_for(worker.start(), 5)


@asynchronous
async def test_a_process_that_starts_while_the_service_closes_is_ended(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on, processes = threading.Event(), threading.Event(), []

    def start(*arguments: Any) -> Any:
        started.set()
        go_on.wait()
        processes.append(begin(*arguments))
        return processes[0]

    begin = child.start
    monkeypatch.setattr(child, "start", start)
    (worker,) = make_workers(model, {"threads": 1}, ["cpu"], Heard())
    starting = asyncio.create_task(worker.start())
    await asyncio.to_thread(started.wait)
    await worker.close()
    go_on.set()
    await asyncio.to_thread(wait_until, lambda: bool(processes) and processes[0].poll() is not None)
    starting.cancel()
    assert processes[0].returncode == -signal.SIGKILL


def test_a_worker_that_cannot_start_is_the_commands_error(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    cache.write_text("no cache", encoding="utf-8")
    assert main(["serve", str(model), "--port", "0", "--device", "cpu", "--word-cache", str(cache)]) == 1
    said = capfd.readouterr().err
    assert str(cache) in said and len(said.splitlines()) == 1
