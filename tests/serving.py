"""A server of a tiny model on this machine alone, and its parts without one, for the tests of `flashelmo serve`."""

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import httpx
import numpy as np
import psutil

from flashelmo import ElmoEmbedder
from flashelmo.engine.devices.process import Embedded, Result
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import Statistics
from flashelmo.engine.text.windows import Window
from flashelmo.serve.service import Service, ServiceSettings

TEXTS = ["the cat sat", "cat", "", "incomprehensibilities the é cat the sat", "sat cat"]
SECONDS_TO_START, SECONDS_TO_END = 60, 30

P = ParamSpec("P")


class Server:
    """A process of `flashelmo serve`."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url
        self.http = httpx.Client(base_url=url, timeout=60)

    def post(self, path: str, body: Any, accept: str = "application/json", **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, headers={"Accept": accept}, **options)

    def metric(self, name: str) -> float:
        """The sum of a figure over its labels."""
        lines = self.http.get("/metrics").text.splitlines()
        found = [float(line.split()[-1]) for line in lines if re.match(rf"flashelmo_{name}[ {{]", line)]
        assert found, name
        return sum(found)

    def worker(self) -> psutil.Process:
        """The one process that computes."""
        (worker,) = psutil.Process(self.process.pid).children()
        return worker

    def stop(self, number: int = signal.SIGTERM) -> str:
        """End it in an orderly way; what it said."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=SECONDS_TO_END)
        assert self.process.returncode == 0, said
        return said


@contextmanager
def served(model: Path, *options: object) -> Iterator[Server]:
    """`flashelmo serve`, once it is ready."""
    command = [sys.executable, "-m", "flashelmo.cli", "serve", model, "--port", 0, "--device", "cpu", *options]
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        address = re.search(r"http://\S+", said)
        assert address is not None, said + process.communicate(timeout=SECONDS_TO_START)[1]
        server = Server(process, address[0])
        yield server
        server.http.close()
        if process.poll() is None:
            said = server.stop()
            assert "Traceback" not in said, said
    finally:
        process.kill()
        process.communicate(timeout=SECONDS_TO_END)


def tiny_embedder(model: Path) -> ElmoEmbedder:
    return ElmoEmbedder.load(model, device="cpu")


def wait_until(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def bits(arrays: Iterable[Any]) -> list[tuple[tuple[int, ...], bytes]]:
    """Shapes and bytes: what is equal is equal bit by bit."""
    return [(np.shape(array), np.ascontiguousarray(array).tobytes()) for array in arrays]


class FakeWorker:
    """A worker without a process: it holds windows until it is told what becomes of them."""

    def __init__(self, service: Service, windows: int = 1) -> None:
        self.device, self.precision, self.is_ready, self.pid = "fake", "fp32", True, 0
        self.held: set[int] = set()
        self.windows: dict[int, Window] = {}
        self.wanted: dict[int, Output] = {}
        self.n_layers = service.config.n_layers + 1
        self.limit, self.owner, self.size = windows, service._batcher, service.config.output_size
        self.order: list[Window] = []
        self.outputs: list[Output] = []

    @property
    def has_room(self) -> bool:
        return self.is_ready and len(self.held) < self.limit

    def send(self, number: int, window: Window, output: Output) -> None:
        self.held.add(number)
        self.windows[number] = window
        self.wanted[number] = output
        self.order.append(window)
        self.outputs.append(output)

    def sentences(self) -> list[list[str]]:
        """Those that it holds."""
        return [window.tokens(b) for window in self.windows.values() for b in range(len(window))]

    def finish(self, error: str = "") -> None:
        """Answer the oldest window: a sentence's vectors are full of its number of tokens."""
        number = min(self.held)
        self.held.remove(number)
        window, output = self.windows.pop(number), self.wanted.pop(number)
        lengths = [len(window.tokens(b)) for b in range(len(window))]
        rows = [np.full(output.shape((self.n_layers, n, self.size)), n, np.float32) for n in lengths]
        result: Result = FlashElmoError(error) if error else Embedded(iter(rows), Statistics())
        self.owner.on_done(number, result)

    def die(self) -> None:
        lost, self.held = self.held, set()
        self.windows.clear()
        self.owner.on_lost(lost)

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass


def fake_service(model: Path, windows: int = 1, **settings: Any) -> tuple[Service, FakeWorker]:
    service = Service(ServiceSettings(model, {"device": "cpu"}, **settings))
    worker = FakeWorker(service, windows)
    service.workers = service._batcher.workers = [worker]  # type: ignore[list-item]
    return service, worker


def asynchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test in an event loop of its own."""

    @wraps(test)
    def run(*arguments: P.args, **fixtures: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **fixtures), SECONDS_TO_END))

    return run


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)
