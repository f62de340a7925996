"""The service on a Ray cluster of this machine. Too heavy for every run of the tests: `make test-ray`."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

from serving import TEXTS, bits, tiny_embedder, wait_until

from flashelmo import Client, FlashElmoError
from flashelmo.serve.on_ray import ray_application
from flashelmo.serve.server import open_port
from flashelmo.serve.service import ServiceSettings

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
SECONDS_TO_START, SECONDS_TO_END = 180, 120


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, with two replicas."""
    with open_port("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "flashelmo.cli", "serve", str(model), "--device", "cpu", "--port", str(port)]
    process = subprocess.Popen([*command, "--ray", "local", "--replicas", "2"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if address := re.search(r"2 to 2 replicas on Ray: (http://\S+)", line):
            break
    else:
        pytest.fail(said)
    reader = threading.Thread(target=process.stderr.read, daemon=True)
    reader.start()
    yield process, address[1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS_TO_END) == 0
    reader.join()
    process.stderr.close()


def replicas(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The actors of this test's cluster that embed."""
    found = []
    for each in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if each.cmdline()[:1] and each.cmdline()[0].startswith("ray::ServeReplica:flashelmo"):
                found.append(each)
    return found


def test_replicas_give_the_embedders_vectors_and_one_may_die(
    served: tuple[subprocess.Popen[str], str], model: Path, text: list[list[str]]
) -> None:
    process, url = served
    embedder = tiny_embedder(model)
    expected = embedder.encode(text, layers="top")
    with Client(url) as client:
        assert bits(client.embed(TEXTS)) == bits(embedder.embed(TEXTS))
        assert client.info["model_id"] == "tiny"
    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.post(f"{url}/embed", json={"inputs": 1}).status_code == 422
    over = threading.Event()

    def ask(first: int) -> int:
        n = 0
        with Client(url, retries=8) as client:
            while not over.is_set():
                for start in range(first, len(text), 8):
                    found = client.encode(text[start : start + 2], layers="top")
                    assert bits(found) == bits(expected[start : start + 2])
                    n += 1
        return n

    with ThreadPoolExecutor(4) as pool:
        counts = [pool.submit(ask, first) for first in range(4)]
        try:
            before = replicas(process)
            assert len(before) == 2
            os.kill(before[0].pid, signal.SIGKILL)
            gone = before[0].pid
            wait_until(lambda: len({each.pid for each in replicas(process)} - {gone}) == 2, SECONDS_TO_START)
        finally:
            over.set()
        assert sum(count.result() for count in counts) > 50


def test_what_does_not_go_together(model: Path) -> None:
    with pytest.raises(FlashElmoError, match="--replicas: expected the fewest, then at least as many, found 3,2"):
        ray_application(ServiceSettings(model, {}), (3, 2))
    with pytest.raises(FlashElmoError, match="device: expected one, of each replica, found 2"):
        ray_application(ServiceSettings(model, {"device": ["cuda:0", "cuda:1"]}), (1, 1))
