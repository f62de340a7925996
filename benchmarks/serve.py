"""The service under load, on this machine alone: clients, server and worker share its cores.

`--only load` compares different numbers of clients, of one sentence each, with the engine in windows of that many
sentences. Each client sends its next request as soon as it is answered. Also given are the processor time per request
and quantiles of how long one takes, which are drawn as a plot beside the results. `--only memory` watches the server's
memory over many requests.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from flashelmo.benchmarks.contestant import Subject, prepare
from flashelmo.benchmarks.fresh import process_of
from flashelmo.benchmarks.plots import draw
from flashelmo.benchmarks.results import FAILED, Row, median_ratio
from flashelmo.benchmarks.run import PROCESSOR_OPTIONS, Suite, run_sections
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import Sentences, load_sentences
from flashelmo.benchmarks.worker import Worker
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError

SECONDS_TO_END = 60
MOST_SENTENCES = 2048  # different ones that clients ask for
QUANTILES = {"p50": 0.5, "p99": 0.99}
LOOKS = 10  # at the memory, over all requests
SERVICE, ENGINE = "service", "engine"
MIB = 2**20


class Served(NamedTuple):
    """A server's address, and its processes."""

    url: str
    pids: dict[str, int]

    def cpu_seconds(self) -> dict[str, float]:
        """Return the processor time that each process has taken."""
        return {name: sum(process_of(pid).cpu_times()[:2]) for name, pid in self.pids.items()}

    def bytes_held(self) -> dict[str, int]:
        """Return the memory of each process."""
        return {name: process_of(pid).memory_info().rss for name, pid in self.pids.items()}


@contextmanager
def served(model: Path, threads: int | None) -> Iterator[Served]:
    """Run `flashelmo serve` on a free port of this machine only."""
    command = [sys.executable, "-m", "flashelmo.cli", "serve", str(model), "--port", "0", "--device", "cpu"]
    command += ["--threads", str(threads)] if threads else []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r"http://\S+", said)
        if found is None:
            raise FlashElmoError(f"flashelmo serve: expected its address, found {said + process.stderr.read()!r}")
        (worker,) = process_of(process.pid).children()
        yield Served(found[0], {"server": process.pid, "worker": worker.pid})
    finally:
        process.terminate()
        try:
            process.communicate(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


class Load(NamedTuple):
    """What clients saw: total seconds, those of each request, of the clients' processor, and some of the vectors."""

    seconds: float
    latencies: list[float]
    cpu_seconds: float
    vectors: list[list[float]]


class Clients:
    """Clients of one sentence each, in their own process.

    Args:
        sentences: those that they ask for, one after the other, again and again.
    """

    def __init__(self, sentences: Sentences) -> None:
        self._sentences = sentences

    def ask(self, url: str, n_clients: int, n_requests: int, kept: int = 0) -> Load:
        """Send this many requests, each client's next when its last is answered; keep the first vectors."""
        return asyncio.run(self._ask(url, n_clients, n_requests, kept))

    async def _ask(self, url: str, n_clients: int, n_requests: int, kept: int) -> Load:
        import httpx

        numbers, latencies, vectors = iter(range(n_requests)), list[float](), dict[int, list[float]]()

        async def client(http: httpx.AsyncClient) -> None:
            for number in numbers:
                body = {"inputs": [self._sentences[number % len(self._sentences)]]}
                begin = time.perf_counter()
                answer = await http.post("/embed", json=body)
                latencies.append(time.perf_counter() - begin)
                answer.raise_for_status()
                if number < kept:
                    vectors[number] = answer.json()[0]

        context = ssl.create_default_context()  # one for all, as each takes long to create
        async with AsyncExitStack() as stack:  # a separate one each: a shared one would search through every connection
            clients = [httpx.AsyncClient(base_url=url, verify=context, timeout=600) for _ in range(n_clients)]
            for each in clients:
                await stack.enter_async_context(each)
            begin, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*map(client, clients))
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        return Load(seconds, latencies, cpu, [vectors[number] for number in sorted(vectors)])


class Engine:
    """The engine by itself, in its own process."""

    def __init__(self, model: Path, threads: int | None) -> None:
        self._embedder = ElmoEmbedder.load(model, device="cpu", threads=threads)

    def vectors(self, sentences: Sentences) -> Any:
        """Return what the service must return."""
        return self._embedder.encode(sentences)

    def rate(self, sentences: Sentences, size: int, n: int) -> float:
        """Return sentences per second in windows of `size`."""
        many = [sentences[k % len(sentences)] for k in range(n)]
        begin = time.perf_counter()
        for start in range(0, n, size):
            self._embedder.encode(many[start : start + size])
        return n / (time.perf_counter() - begin)


@contextmanager
def under_load(subject: Subject, settings: Settings) -> Iterator[tuple[Served, Worker, Sentences, str]]:
    """Yield a server of a model; clients; the different sentences of a text that they ask for, and its name."""
    text, source = load_sentences(settings.text_tokens, settings.text, settings.seed)
    with served(subject.folder, settings.threads) as server:
        yield server, subject.pool.worker(Clients, text[:MOST_SENTENCES]), text[:MOST_SENTENCES], source


def measure_load(subject: Subject, settings: Settings) -> list[Row]:
    """Measure sentences per second of the service and the engine, in turns, and, in the service's turns, processor time
    per request and quantiles of its duration.
    """
    engine = subject.pool.worker(Engine, subject.folder, settings.threads)
    rows: list[Row] = []
    with under_load(subject, settings) as (server, clients, sentences, source):
        if wrong := _wrong(server, settings, sentences, engine, clients):
            return [Row("throughput", subject.name, SERVICE, note=f"{FAILED}: {wrong}")]
        for n_clients in settings.clients:
            ask = partial(clients.call, "ask", server.url, n_clients, settings.requests)
            rate = partial(engine.call, "rate", sentences, n_clients, settings.requests)
            ask(), rate()  # so that both have cached the words
            rates: dict[str, list[float]] = {SERVICE: [], ENGINE: []}
            costs: dict[str, list[float]] = {name: [] for name in (*server.pids, "clients")}
            latencies: dict[str, list[float]] = {name: [] for name in QUANTILES}
            for _ in range(settings.rounds):
                rates[ENGINE].append(rate())
                before = server.cpu_seconds()
                load: Load = ask()
                rates[SERVICE].append(settings.requests / load.seconds)
                spent = {name: seconds - before[name] for name, seconds in server.cpu_seconds().items()}
                for name, seconds in {**spent, "clients": load.cpu_seconds}.items():
                    costs[name].append(1000 * seconds / settings.requests)
                for name, quantile in QUANTILES.items():
                    latencies[name].append(1000 * float(np.quantile(load.latencies, quantile)))
            detail = f"{n_clients} clients" if n_clients > 1 else "1 client"
            note = f"{settings.requests} requests, a sentence of {source} each"
            row, slow = (partial(Row, section, subject.name, note=note) for section in ("throughput", "latency"))
            ratios = {ENGINE: median_ratio(rates[SERVICE], rates[ENGINE], "sentences/s")}
            rows.append(row(SERVICE, "sentences/s", detail, ratios=ratios).with_samples(rates[SERVICE]))
            rows.append(row(ENGINE, "sentences/s", f"windows of {n_clients}").with_samples(rates[ENGINE]))
            rows += [row(name, "CPU ms a request", detail).with_samples(found) for name, found in costs.items()]
            rows += [slow(name, "ms", detail).with_samples(found) for name, found in latencies.items()]
    return sorted(rows, key=lambda row: row.section == "latency")


def _wrong(server: Served, settings: Settings, sentences: Sentences, engine: Any, clients: Any) -> str:
    """Return what is wrong with the first vectors, which should be the engine's, bit for bit; empty if nothing."""
    first = sentences[: settings.checked]
    load: Load = clients.call("ask", server.url, len(first), len(first), len(first))
    found, expected = np.array(load.vectors, np.float32), engine.call("vectors", first)
    return "" if np.array_equal(found, expected) else "expected the engine's vectors, found others"


def measure_memory(subject: Subject, settings: Settings) -> list[Row]:
    """Measure the memory of the server's processes, repeatedly over many requests of the most clients."""
    rows, step = [], max(1, settings.memory_requests // LOOKS)
    with under_load(subject, settings) as (server, clients, _, source):
        for n in range(step, settings.memory_requests + 1, step):
            clients.call("ask", server.url, max(settings.clients), step)
            for name, held in server.bytes_held().items():
                row = Row("memory", subject.name, name, "MiB", f"after {n} requests", note=source)
                rows.append(row.with_samples([held / MIB]))
    return rows


SECTIONS: dict[str, Callable[[Subject, Settings], list[Row]]] = {
    "load": measure_load,
    "memory": measure_memory,
}


def command(settings: Settings, console: Console) -> int:
    """Measure everything that the settings ask for; return the exit status."""
    run = run_sections("serve", settings, console, SECTIONS, prepare)
    if run.path is not None:
        draw(run.results, run.path)
    return run.finish()


SUITE = Suite(
    "The service under load: throughput beside the engine's, latency by load, memory over many requests.",
    Settings(sections=tuple(SECTIONS), models=("original",), rounds=3),
    (*(name for name in PROCESSOR_OPTIONS if name != "contestants"), "clients", "requests", "memory_requests"),
    command,
)
