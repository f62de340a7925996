"""The load generator: every section runs and says the right thing of a tiny model."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import MODELS, SENTENCES

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from flashelmo.benchmarks import serve
from flashelmo.benchmarks.__main__ import find
from flashelmo.benchmarks.contestant import Subject
from flashelmo.benchmarks.plots import draw
from flashelmo.benchmarks.results import Row, new_results
from flashelmo.benchmarks.worker import Here, Pool
from flashelmo.engine.model.checkpoints.native import write_native

LINES = [" ".join(tokens) for tokens in SENTENCES if tokens] * 4


class InThisProcess(Pool):
    """No processes: there is nothing to be measured."""

    def worker(self, make: Callable[..., Any], *arguments: Any) -> Any:
        return Here(make, *arguments)


class Other:
    def vectors(self, sentences: Any) -> Any:
        return [[0.0] * 8 for _ in sentences]


def test_the_service_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_native(MODELS["skip"], tmp_path / "tiny")
    (tmp_path / "text").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    settings = replace(
        find("serve").defaults,
        text=tmp_path / "text",
        text_tokens=40,
        rounds=1,
        threads=1,
        clients=(1, 3),
        requests=12,
        memory_requests=20,
    )
    with serve.served(tmp_path / "tiny", 1) as server:
        monkeypatch.setattr(serve, "served", lambda model, threads: nullcontext(server))
        subject = Subject("tiny", tmp_path / "tiny", MODELS["skip"].config, InThisProcess())
        rows: dict[str, list[Row]] = {name: list(run(subject, settings)) for name, run in serve.SECTIONS.items()}
        clients = Here(serve.Clients, SENTENCES[:2])
        assert "found others" in serve._wrong(server, settings, SENTENCES[:2], Here(Other), clients)
    assert not [row for found in rows.values() for row in found if row.failed or not row.samples]
    named = {(row.name, row.detail): row for row in rows["load"] if row.section == "throughput"}
    assert named["service", "3 clients"].ratios["engine"] > 0
    assert {name for name, _ in named} == {"service", "engine", "server", "worker", "clients"}
    latencies = [row for row in rows["load"] if row.section == "latency"]
    by_detail = {(row.name, row.detail): row.median or 0.0 for row in latencies}
    assert 0 < by_detail["p50", "1 client"] <= by_detail["p99", "1 client"]
    details = [row.detail for row in rows["memory"] if row.name == "server"]
    assert details == [f"after {n} requests" for n in range(2, 21, 2)]
    draw(replace(new_results(settings, "serve"), rows=latencies), tmp_path / "plot.json")
    assert "p99" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
