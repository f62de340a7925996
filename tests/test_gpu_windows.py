"""What steps should take by the size of windows, as it is committed and as it is computed."""

from pathlib import Path

import numpy as np
import pytest

from flashelmo.benchmarks.gpu.windows import ABOUT, line_of, microseconds, read_steps, rows_of
from flashelmo.engine.text.windows import Window


def test_a_step_takes_what_the_fastest_variant_took(tmp_path: Path) -> None:
    lines = [" rows variant   step  gates  projection", "    1 a 12.0 6 5", "    1 b 10.0 5.5 4.5", "  101 b 60.0 1 2"]
    (tmp_path / "steps").write_text("\n".join(lines) + "\n")
    steps = read_steps(tmp_path / "steps")
    for rows, us in ((1, 10.0), (51, 35.0), (101, 60.0), (202, 120.0)):
        assert microseconds(np.array([rows, 1]), steps) == pytest.approx(us + 10.0)


def test_rows_are_those_of_the_direction_that_has_more() -> None:
    """Forward <S>, a e, ab ed, abc abd; backward </S>, c d, bc bd ed, abc abd."""
    rows, nodes = rows_of(Window.from_sentences([["a", "b", "c"], ["a", "b", "d"], ["e", "d"]]))
    assert rows.tolist() == [1, 2, 3, 2] and nodes == (7 + 8) / 2


def test_what_is_committed_is_what_is_computed(root: Path, shared: Path) -> None:
    results = root / "benchmarks" / "results" / "gpu"
    committed, steps = (results / "windows.txt").read_text(encoding="utf-8"), read_steps(results / "steps-h200.txt")
    assert committed.startswith(ABOUT)
    assert f"{line_of(shared / 'data' / 'text' / 'masc.txt', 1 << 19, steps)}\n" in committed
