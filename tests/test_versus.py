"""Two checkouts side by side: this one with itself, and little packages that differ in what the comparison must see."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from versus import Found, compare, main
from versus_cases import CALLS, WAYS, Settings, cases

from flashelmo.engine.errors import FlashElmoError

# {first} is what the first value of every sentence is, {last} follows a whole stream.
PACKAGE = """
import os
from time import sleep
import numpy as np

class FlashElmoError(Exception):
    pass

class ElmoEmbedder:
    @classmethod
    def load(cls, path, *, device, precision="fp32", **settings):
        assert os.path.isfile(path + "/config.json")
        assert device == ("interpreter" if os.environ.get("TRITON_INTERPRET") else "cpu")
        if precision in {refused}:
            raise FlashElmoError("no " + precision)
        return cls()

    def embed(self, sentences, *, layers="all", pool=None, mix=None):
        print("this line is no answer")
        sleep({seconds})
        for sentence in sentences:
            vectors = np.full((3, len(sentence), 4), 0.5, np.float32)
            vectors[:, :1, :1] = {first}
            yield vectors.astype({dtype!r}) if layers == "all" and mix is None else vectors.mean(0)

    def embed_sentence(self, sentence):
        return next(self.embed([sentence]))
"""
SAME = {"first": 0.0, "refused": [], "dtype": "float32", "seconds": 0}
N_CASES = len(WAYS) * len(CALLS)
Make = Callable[..., Path]


@pytest.fixture
def package(tmp_path: Path) -> Make:
    """Makes a checkout of a little package; what is given differs from SAME."""

    def make(name: str, **differs: object) -> Path:
        checkout = tmp_path / name
        (checkout / "src" / "flashelmo").mkdir(parents=True)
        (checkout / "src" / "flashelmo" / "__init__.py").write_text(PACKAGE.format(**{**SAME, **differs}))
        return checkout

    return make


@pytest.fixture
def settings(root: Path) -> Callable[..., Settings]:
    """Makes settings for the tiny model on this checkout's own text."""

    def make(*parts: str, precisions: Sequence[str] = ("fp32",), **more: int) -> Settings:
        text = root / "examples" / "genesis.txt"
        return Settings(parts, ("toy",), precisions, text, home=root, **more)

    return make


def results(found: Found) -> dict[str, set[str]]:
    """Precision -> what was found of its cases."""
    return {row["precision"]: {each["result"] for each in found.identity if row["precision"] == each["precision"]}
            for row in found.identity}  # fmt: skip


def test_this_checkout_is_like_itself(root: Path, settings: Callable[..., Settings], capfd) -> None:
    found = compare(root, root, settings("cpu", "speed", rounds=1))
    assert results(found) == {"fp32": {"same"}} and len(found.identity) == N_CASES
    assert [row["work"] for row in found.speed] == ["bulk", "a sentence of 20"]
    for row in found.speed:
        assert row["ratio"] == pytest.approx(row["this"] / row["other"]) and row["ratios"] == [row["ratio"]]
    this, other = found.sides
    assert this == other and this["numpy"]
    assert f"cpu, toy: {N_CASES} of {N_CASES} cases the same to the bit" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("differs", "expected"),
    [
        ({}, {"same"}),
        ({"first": -0.0}, {"same", "DIFFERENT in 4 of 5 sentences, by 0.00e+00 at most"}),
        ({"first": 1e-3}, {"DIFFERENT in 4 of 5 sentences, by 1.00e-03 at most"}),
        ({"dtype": "float64"}, {"same", "DIFFERENT shapes or types"}),
    ],
)
def test_every_bit_counts(differs: dict[str, object], expected: set[str], package: Make, settings) -> None:
    found = compare(package("a"), package("b", **differs), settings("cpu"))
    assert results(found) == {"fp32": expected}


def test_who_refuses_is_named(package: Make, settings) -> None:
    this, other = package("a", refused=["int8", "bf16"]), package("b", refused=["bf16"])
    found = compare(this, other, settings("cpu", precisions=["fp32", "int8", "bf16"]))
    assert results(found) == {"fp32": {"same"}, "int8": {"this REFUSES: no int8"}, "bf16": {"both refuse"}}


def test_kernels_are_interpreted(package: Make, settings) -> None:
    pytest.importorskip("triton")
    found = compare(package("a"), package("b", first=1.0), settings("interpreter", precisions=["fp16"]))
    assert [(row["way"], row["call"]) for row in found.identity] == [
        ("", "all"), ("", "mean"), ("", "mix"), ("", "all"), ("small windows", "all"), ("stateful", "all"),
    ]  # fmt: skip
    assert all(row["result"].startswith("DIFFERENT") for row in found.identity)


def test_a_long_sentence_is_interpreted(settings) -> None:
    _, _, calls = next(cases("interpreter", "toy", settings("interpreter")))
    assert max(len(sentence) for _, sentences in calls for sentence in sentences) == 40


def test_whole_texts_are_compared_as_they_are(root: Path, settings) -> None:
    plans = list(cases("cpu", "small", settings("cpu", precisions=("fp32", "int8", "bf16", "fp64 reference"), lines=7)))
    lines = [line.split() for line in (root / "examples" / "genesis.txt").read_text(encoding="utf-8").splitlines()]
    assert [names["precision"] for names, _, _ in plans] == ["fp32", "int8", "bf16"]
    assert all(calls == [("all", lines[:7])] for _, _, calls in plans)


def test_golden_streams_take_turns(golden: Path, root: Path) -> None:
    streams = json.loads((golden / "bilm_skip" / "sentences.json").read_text(encoding="utf-8"))
    plans = {names["way"]: (load, calls) for names, load, calls in cases("cpu", "bilm_skip", Settings(home=root))}
    load, calls = plans["stateful"]
    assert (load["stateful"], load["batch_size"]) == (True, len(streams))
    assert calls[0][1][:4] == [
        streams[0][0].split(),
        streams[1][0].split(),
        streams[2][0].split(),
        streams[0][1].split(),
    ]


def test_the_slower_side_is_the_slower(package: Make, settings) -> None:
    found = compare(package("a", seconds=0.02), package("b"), settings("speed", rounds=2))
    assert [row["ratio"] < 0.5 for row in found.speed] == [True, True]
    assert all(len(row["ratios"]) == 2 for row in found.speed)


def test_the_command_writes_and_tells(
    package: Make, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    this, out = package("a"), tmp_path / "out.json"
    command = ["--only", "cpu", "--models", "toy", "--out", str(out), "--this", str(this), "--other"]
    assert main([*command, str(this)]) == 0
    assert {row["result"] for row in json.loads(out.read_text())["identity"]} == {"same"}
    assert main([*command, str(package("b", first=1.0))]) == 1
    assert main([*command, str(tmp_path)]) == 1
    assert f"{tmp_path}: expected a checkout of flashelmo, found no src/flashelmo" in capfd.readouterr().err


def test_an_empty_text_is_told(package: Make, root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    settings = Settings(("speed",), ("toy",), text=tmp_path / "empty.txt", home=root)
    with pytest.raises(FlashElmoError, match=r"empty\.txt: expected tokenized lines, found none"):
        compare(package("a"), package("b"), settings)


def test_a_broken_side_says_what_happened(package: Make, settings) -> None:
    broken = package("b")
    (broken / "src" / "flashelmo" / "__init__.py").write_text("raise OSError('nothing here')")
    with pytest.raises(RuntimeError, match="exit code 1"):
        compare(package("a"), broken, settings("cpu"))
