"""What steps should take by windows' size: `python -m benchmarks.gpu.windows > benchmarks/results/gpu/windows.txt`.

Nothing is timed, and no card is needed: the rows of the depths of real texts are counted, and the time of a step of so
many rows is one that was measured.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from flashelmo.benchmarks.text import REAL_TEXT
from flashelmo.engine.arrays import Array, Float64
from flashelmo.engine.text.schedule import Boundaries, build_schedule
from flashelmo.engine.text.windows import Window, read_windows

STEPS = Path(__file__).resolve().parents[1] / "results" / "gpu" / "steps-h200.txt"
STEP = re.compile(r"^ *(\d+) \w+ +([\d.]+) +[\d.]+ +[\d.]+$", re.MULTILINE)
TEXTS = ("kjv", "wordnet_text", "movie_reviews", "masc")  # beside the checkout
SIZES = tuple(1 << k for k in range(15, 20))  # tokens
FULL, FEW, LAYERS = 0.7, 128, 2
ABOUT = f"""\
LSTM steps of windows of so many tokens, original model, bf16: counted and computed, not measured. Rows of every depth
are counted (the direction that has more, boundaries included, prefixes shared), and a depth takes twice, for two
layers, what `steps-h200.txt` has for a step of the fastest variant, between its rows by a straight line, beyond them in
proportion. Checked by what was measured: 500,016 tokens of kjv.txt in 4 windows took 235 us per 1,000 tokens of gates
and projections (`engine-h200.txt`).

Windows of at least {FULL} of the size; "few" are depths of up to {FEW} rows; nodes of a direction; us per 1,000 tokens;
millions of tokens a second, if there were nothing else. Everything else took 5 us per 1,000 tokens there.

text             window  number    depths       few   nodes/token       us      M/s"""


def read_steps(path: Path = STEPS) -> tuple[Float64, Float64]:
    """Rows of the steps that were measured, and microseconds of the fastest variant: [N] each."""
    fastest: dict[int, float] = {}
    for rows, us in STEP.findall(path.read_text(encoding="utf-8")):
        fastest[int(rows)] = min(fastest.get(int(rows), np.inf), float(us))
    return np.array([*fastest], np.float64), np.array([*fastest.values()], np.float64)


def microseconds(rows: Array, steps: tuple[Float64, Float64]) -> float:
    """Of steps of so many rows each [D], together."""
    known, us = steps
    return float((np.interp(rows, known, us) * np.maximum(1.0, rows / known[-1])).sum())


def rows_of(window: Window) -> tuple[Array, float]:
    """Rows of every depth of the direction that has more there [D], and how many nodes a direction has."""
    n_words = len(window.words)
    schedule = build_schedule(window.word_ids, window.offsets, Boundaries(n_words, n_words + 1))
    each = [np.diff(forest.depths) for forest in (schedule.forward, schedule.backward)]
    deepest = max(map(len, each))
    return np.max([np.pad(rows, (0, deepest - len(rows))) for rows in each], axis=0), schedule.n_nodes / 2


def line_of(text: Path, size: int, steps: tuple[Float64, Float64]) -> str:
    """A text in windows of a size, as a line of the table."""
    windows = read_windows(text, max_sentences=1 << 62, max_tokens=size)
    full = [window for window in windows if len(window.word_ids) >= FULL * size]
    rows, nodes = zip(*map(rows_of, full), strict=True)
    tokens, us = sum(len(window.word_ids) for window in full), sum(LAYERS * microseconds(each, steps) for each in rows)
    depths, few = (sum(len(each[each <= most]) for each in rows) / len(rows) for most in (np.inf, FEW))
    figures = f"{len(full):7} {depths:9.0f} {few:9.0f} {sum(nodes) / tokens:13.3f}"
    return f"{text.stem:14} {size:8} {figures} {1000 * us / tokens:8.1f} {tokens / us:8.2f}"


if __name__ == "__main__":
    texts = [REAL_TEXT.with_name(f"{name}.txt") for name in TEXTS]
    try:
        print("\n".join([ABOUT, *(line_of(text, size, read_steps()) for text in texts for size in SIZES)]))
    except OSError as error:
        sys.exit(str(error))
