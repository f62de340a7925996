"""Forked processes: what was used before the fork works in the child, whatever other threads were doing."""

import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calls import digest, digests
from tiny_models import BILM, MODELS, SENTENCES, random_model

from flashelmo.engine.cpu.lstm_c import why_not
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.precision import PrecisionName
from flashelmo.engine.reference.elmo import Elmo
from flashelmo.engine.reference.reference import ReferenceElmo
from flashelmo.engine.settings import RuntimeName
from flashelmo.engine.system import forks
from flashelmo.engine.system.forks import Uninterrupted
from flashelmo.engine.text.characters import batch_to_ids
from flashelmo.engine.text.windows import Window
from flashelmo.export.build import build_onnx
from flashelmo.export.onnx_elmo import OnnxElmo

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # Python 3.12 warns of what is tested here
]
MANY = 40 * SENTENCES
WIDE = random_model(replace(BILM, cell_size=256, projection_size=128))  # enough work for several threads


def succeeds_in_a_fork(check: Callable[[], bool]) -> bool:
    """Whether a check holds in a forked process; one that waits for ever is ended.

    Whatever the check raises, the child never leaves this function: it would go on with the parent's tests, and write
    to whoever reads the parent's results.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # no handler in Python, which may be waiting for ever
            signal.alarm(60)  # on a busy machine all this takes its time
            status = 0 if check() else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f"the forked process ended with {exit_code}")  # the negative of a signal's number, if one ended it
    return exit_code == 0


def test_a_forked_process_ends_though_its_check_raises() -> None:
    def check() -> bool:
        pytest.fail("in the forked process")

    parent = os.getpid()
    assert not succeeds_in_a_fork(check)
    assert os.getpid() == parent


def gives(embed: Callable[[], list[Any]], expected: list[Any]) -> bool:
    return all(np.allclose(a, b, atol=1e-5) for a, b in zip(embed(), expected, strict=True))


@pytest.fixture(params=["ort", "avx512", "openvino", "reference"])
def embedder(request: pytest.FixtureRequest) -> ElmoEmbedder:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if request.param == "avx512" and (why := why_not(8)):
        pytest.skip(why)
    runtime: RuntimeName = request.param
    precision: PrecisionName = "int8" if runtime == "avx512" else "fp32"
    return ElmoEmbedder(WIDE, precision=precision, runtime=runtime, threads=4)  # 2 for each direction


def test_an_embedder_that_was_used_works_in_a_forked_process(embedder: ElmoEmbedder) -> None:
    expected = embedder.embed_batch(MANY)

    def check() -> bool:
        ours = gives(lambda: embedder.embed_batch(MANY), expected)
        return ours and succeeds_in_a_fork(lambda: gives(lambda: embedder.embed_batch(MANY), expected))

    assert succeeds_in_a_fork(check)
    assert gives(lambda: embedder.embed_batch(MANY), expected)


class Port(BaseHTTPRequestHandler):
    """Tells each client the port that it comes from, over connections that stay open."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps(self.client_address[1]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_a_client_of_the_service_has_connections_of_its_own_in_a_forked_process() -> None:
    """On one and the same, each would read the other's answers."""
    client_module = pytest.importorskip("flashelmo.client", reason="the extra [client] is not installed")
    with ThreadingHTTPServer(("127.0.0.1", 0), Port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with client_module.Client(f"http://127.0.0.1:{server.server_port}") as client:

            def port() -> Any:
                return client._request("GET", "/").json()

            ours = port()
            assert succeeds_in_a_fork(lambda: port() != ours)
            assert port() == ours
        server.shutdown()


def test_openvino_in_a_forked_process_whatever_the_parent_used_it_for() -> None:
    """With all threads and with few, for larger and smaller models, in forks of forks."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")

    def use() -> tuple[ElmoEmbedder, list[Any]]:
        for model, threads in ((MODELS["skip"], None), (WIDE, 2), (MODELS["manylangs"], 1), (WIDE, None)):
            embedder = ElmoEmbedder(model, runtime="openvino", threads=threads)  # the one before is let go
            found = embedder.embed_batch(MANY)
        return embedder, found

    def check(forks: int) -> bool:
        _, found = use()
        ours = gives(lambda: embedder.embed_batch(MANY), expected) and gives(lambda: found, expected)
        return ours and (not forks or succeeds_in_a_fork(lambda: check(forks - 1)))

    embedder, expected = use()
    assert succeeds_in_a_fork(lambda: check(1))
    assert gives(lambda: embedder.embed_batch(MANY), expected)


def test_forks_while_openvino_computes() -> None:
    """In another thread, which makes embedders too and lets them go; children use it, or fork again without."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    embedder, stop = ElmoEmbedder(MODELS["skip"], runtime="openvino", threads=2), threading.Event()
    expected = embedder.embed_batch(SENTENCES)

    def compute() -> int:
        n_calls = 0
        while not stop.is_set():
            other = ElmoEmbedder(MODELS["manylangs"], runtime="openvino", threads=2)
            for each in (embedder, embedder, other):
                each.embed_batch(SENTENCES)
                n_calls += 1
        return n_calls

    def check() -> bool:
        return gives(lambda: embedder.embed_batch(SENTENCES), expected)

    with ThreadPoolExecutor(1) as pool:
        computing = pool.submit(compute)
        try:
            for child in (check, lambda: succeeds_in_a_fork(lambda: True)) * 4:
                assert succeeds_in_a_fork(child)
        finally:
            stop.set()
        assert computing.result() > 0 and check()


def test_calls_and_forks_wait_for_each_other() -> None:
    order: list[str] = []
    calls = Uninterrupted(before=lambda: order.append("fork"))

    def call(name: str, begun: threading.Event, until: threading.Event) -> None:
        with calls:
            begun.set()
            until.wait(10)
            order.append(name)

    begun, until = threading.Event(), threading.Event()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(call, "first", begun, until)
        begun.wait(10)
        fork = pool.submit(succeeds_in_a_fork, lambda: nobody_else_calls(calls))
        while not calls._forks:  # the fork waits
            time.sleep(0.001)
        second = pool.submit(call, "second", threading.Event(), until)
        until.set()
        assert fork.result(60)
        for each in (first, second):
            each.result(10)
    assert order == ["first", "fork", "second"]


def test_forks_wait_for_each_other() -> None:
    """None while another one prepares."""
    preparing: list[int] = []
    most: list[int] = []

    def before() -> None:
        preparing.append(1)
        time.sleep(0.05)
        most.append(len(preparing))
        preparing.pop()

    calls = Uninterrupted(before)
    with ThreadPoolExecutor(3) as pool:
        forked = pool.map(lambda _: succeeds_in_a_fork(lambda: not preparing and nobody_else_calls(calls)), range(6))
        assert all(forked)
    assert max(most) == 1 and len(most) == 6


def test_what_an_interrupt_left_behind_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this thread nothing; of others, which may have ended, no longer than calls take."""
    calls, own, other = Uninterrupted(before=lambda: None), threading.get_ident(), 1
    calls._calls[own] = None
    calls._forks[own] = None
    assert succeeds_in_a_fork(lambda: nobody_else_calls(calls)) and not calls._forks
    with calls:
        assert [*calls._calls] == [own]
    assert not calls._calls
    monkeypatch.setattr(forks, "LONGEST_CALL", 0.05)
    for left in (calls._calls, calls._forks):
        left[other] = None
        assert succeeds_in_a_fork(lambda: nobody_else_calls(calls))
        with calls:
            pass
        assert not left


def test_a_fork_goes_on_that_was_waited_for_too_long() -> None:
    """Others have taken it out meanwhile."""
    prepared: list[bool] = []
    calls = Uninterrupted(before=lambda: prepared.append(True))
    calls._forks[1] = None
    with ThreadPoolExecutor(1) as pool:
        fork = pool.submit(calls._stop)
        while len(calls._forks) < 2:
            time.sleep(0.001)
        calls._forks.clear()
        fork.result(10)
    assert prepared == [True]


def nobody_else_calls(calls: Uninterrupted) -> bool:
    """In a forked process: nobody else's call or fork is waited for."""
    with calls:
        return [*calls._calls] == [threading.get_ident()] and not calls._forks


def test_an_embedder_is_made_in_a_forked_process(embedder: ElmoEmbedder) -> None:
    """After the parent's libraries have started their threads."""
    expected, settings = embedder.embed_batch(MANY), embedder.settings

    def check() -> bool:
        again = ElmoEmbedder(WIDE, precision=settings.precision, runtime=settings.runtime, threads=4)
        return gives(lambda: again.embed_batch(MANY), expected)

    assert succeeds_in_a_fork(check)


def test_a_thousand_calls_in_processes_and_threads_give_the_same_bits(tmp_path: Path) -> None:
    """In threads, in children that are forked while these embed, in threads of such children, in spawned processes."""
    write_native(MODELS["skip"], tmp_path / "model")
    embedder = ElmoEmbedder.load(tmp_path / "model", runtime="ort", threads=2)
    expected = digests(embedder, 35)  # each batch once

    def agree(n_calls: int, first: int = 0) -> bool:
        calls = range(first, first + n_calls)
        return [digest(embedder, k) for k in calls] == [expected[k % 35] for k in calls]

    def agree_in_threads(n_threads: int, n_calls: int) -> bool:
        with ThreadPoolExecutor(n_threads) as threads:
            return all(threads.map(agree, [n_calls] * n_threads, range(n_threads)))

    with ThreadPoolExecutor(4) as threads, ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        spawned = [processes.submit(digests, embedder, 35) for _ in range(2)]
        running = [threads.submit(agree, 100, k) for k in range(4)]
        assert all(succeeds_in_a_fork(lambda: agree(45)) for _ in range(6))
        assert all(succeeds_in_a_fork(lambda: agree_in_threads(4, 20)) for _ in range(2))
        assert succeeds_in_a_fork(lambda: succeeds_in_a_fork(lambda: agree(65)))
        assert all(each.result(60) for each in running)
        assert [each.result(60) for each in spawned] == [expected] * 2
    assert agree(35)


def test_a_forked_process_does_not_wait_for_the_parents_threads() -> None:
    """One of them was embedding, with the embedder's lock."""
    embedder = ElmoEmbedder(MODELS["skip"], runtime="ort", threads=2)
    expected = embedder.embed_batch(SENTENCES)
    inside, forked = threading.Event(), threading.Event()

    def wait(fraction: float) -> None:
        inside.set()
        forked.wait(60)

    thread = threading.Thread(target=lambda: list(embedder.embed_windows([Window.from_sentences(SENTENCES)], wait)))
    thread.start()
    assert inside.wait(60)
    try:
        assert succeeds_in_a_fork(lambda: gives(lambda: embedder.embed_batch(SENTENCES), expected))
    finally:
        forked.set()
        thread.join()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of large random weights, in the export's own check
@pytest.mark.parametrize("stateful", [False, True])
def test_an_exported_file_that_was_used_works_in_a_forked_process(tmp_path: Path, stateful: bool) -> None:
    build_onnx(WIDE, tmp_path / "model.onnx", stateful=stateful)
    elmo = OnnxElmo(tmp_path / "model.onnx", threads=2)
    expected = elmo.embed(MANY)
    elmo.reset_state()
    assert succeeds_in_a_fork(lambda: gives(lambda: elmo.embed(MANY), expected))


def test_a_module_that_was_used_works_in_a_forked_process() -> None:
    model = MODELS["skip"]
    elmo = Elmo(None, None, 1, module=ReferenceElmo(model.config, model.weights), dropout=0)
    ids = batch_to_ids(MANY)[..., : model.config.max_characters].contiguous()

    def embed() -> list[Any]:
        with torch.no_grad():
            return [elmo(ids)["elmo_representations"][0].numpy()]

    expected = embed()
    assert succeeds_in_a_fork(lambda: gives(embed, expected))
