"""Calls in threads: whatever is raised at whatever moment, nobody waits for ever, the program's end neither."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from interrupts import count_moments, interrupt

from flashelmo.cli import main
from flashelmo.engine import pipeline
from flashelmo.engine.cuda.forests import build_native_forests
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.settings import Settings
from flashelmo.engine.system.threads import OPENMP_POLLS, Background, in_order, openmp_polls_briefly
from flashelmo.engine.text.windows import Window, read_ahead


def test_results_come_in_order_and_so_many_calls_run_at_once() -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    def square(n: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.002 * (n % 3))
        with lock:
            running[0] -= 1
        return n * n

    assert list(in_order(square, range(20), 3)) == [n * n for n in range(20)]
    assert 2 <= most[0] <= 3
    assert list(in_order(square, [], 3)) == []


def test_what_a_call_raises_is_raised_in_its_place() -> None:
    results = in_order(lambda n: 6 // n, [3, 2, 0, 1], 4)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def plans(windows: list[Window]) -> Iterator[Any]:
    planner = pipeline.Planner(("<S>", "</S>"), Settings(threads=2), build_native_forests)
    return planner.plan_ahead(read_ahead(iter(windows)))


def test_interrupts_while_threads_plan_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every moment of a run, one after the other: none hangs, and none disturbs the next."""
    monkeypatch.setattr(pipeline, "PLAN_INLINE_TOKENS", 0)
    windows = [Window.from_sentences([["the", "cat"], ["sat"]]) for _ in range(4)]
    for moment in range(1, count_moments(lambda: list(plans(windows)), "/engine/") + 1):
        interrupt(lambda: list(plans(windows)), moment, "/engine/")
        assert [plan.window for plan in plans(windows)] == windows


def test_an_error_of_the_input_stands_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the windows before it, whether threads plan them or not."""
    window = Window.from_sentences([["the"]])

    def source() -> Iterator[Window]:
        yield from [window] * 3
        raise ValueError("the caller's own")

    for inline in (0, 9):
        monkeypatch.setattr(pipeline, "PLAN_INLINE_TOKENS", inline)
        found = pipeline.Planner(("<S>", "</S>"), Settings(threads=3)).plan_ahead(source())
        assert [next(found).window for _ in range(3)] == [window] * 3
        with pytest.raises(ValueError, match="the caller's own"):
            next(found)


@pytest.mark.parametrize(
    "call", ["time.sleep(60)", "pa.array(['a'] * 100000).dictionary_encode()", "sys.stdin.buffer.read()"]
)
def test_the_program_ends_though_calls_still_run(call: str, tmp_path: Path) -> None:
    code = f"""
import sys, time
import pyarrow as pa
from flashelmo.engine.system.threads import Background
running = [Background(lambda: {call}) for _ in range(3)]
time.sleep(0.2)
"""
    silent, writer = os.pipe()
    try:
        done = subprocess.run([sys.executable, "-c", code], stdin=silent, capture_output=True, text=True, timeout=30)
    finally:
        os.close(silent)
        os.close(writer)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_call_that_nobody_waits_for_is_no_error() -> None:
    ended = threading.Event()

    def fail() -> None:
        ended.set()
        raise ValueError

    Background(fail)
    assert ended.wait(10)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": str(OPENMP_POLLS)}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_openmp_polls_briefly_unless_the_user_chose(
    before: dict[str, str], after: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", before)
    openmp_polls_briefly()
    assert before == after


@pytest.mark.parametrize("command", ["train", "perplexity", "export"])
def test_commands_of_pytorch_tell_it_so_before_anything_else(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> None:
        raise FlashElmoError("told")

    monkeypatch.setattr(import_module(f"flashelmo.cli.{command}"), "openmp_polls_briefly", told)
    assert main([command, "absent", *(["--output"] if command == "train" else []), "absent"]) == 1
    assert capsys.readouterr().err.endswith(": told\n")
