"""A short run of the fuzzer: mutated files are read, or refused in one line; `python tests/fuzz.py` is the long one."""

import re
import sys
from collections import defaultdict

import fuzz
import pytest

CASES = 100
# What the run ends with, and how the fuzzer sees each.
HOLES = [
    "open '.*secret'.* beside the case's folder: 'secret'",
    "beside the case's folder: 'secret.h5'",
    "os.mkdir .*new",
    "os.system ",
    r"\d{4} MB above the idle process",
    "KeyError: 'a' at fuzz_cases.py",
    "the child ended with status 3",
]


@pytest.mark.skipif(sys.platform != "linux", reason="the fuzzer watches files and memory as Linux tells of them")
def test_mutated_files_are_read_or_refused_in_one_line() -> None:
    found = fuzz.run(CASES + fuzz.N_HOLES, seed=0, holes=True)
    of_case: dict[int, str] = defaultdict(str)
    for problem in found.problems:
        of_case[int(re.findall(r"case (\d+)", problem)[0])] += problem + " "
    assert [problem for case, problem in of_case.items() if case < CASES] == []
    for hole, (case, problem) in zip(HOLES, sorted(of_case.items()), strict=True):
        assert re.search(hole, problem, re.DOTALL), (case, problem)
    assert found.cases == CASES + fuzz.N_HOLES and CASES / 4 < found.refused < CASES
