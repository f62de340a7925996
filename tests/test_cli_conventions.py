"""What people expect of any command line: choices, completion, JSON, more and fewer words, help that fits."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import MODELS
from typer.main import get_command

from flashelmo.cli import main
from flashelmo.cli.commands import app
from flashelmo.engine.bulk.records import FORMATS
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.initialize import PRESETS
from flashelmo.engine.precision import PRECISIONS

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
Run = Callable[..., str]


@pytest.fixture
def here(here: Path) -> Path:
    """It has a model and a text."""
    write_native(MODELS["skip"], here / "m")
    (here / "text.txt").write_text("the cat sat\nthe cat\n")
    return here


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        (["embed", "text.txt", "v.h5", "--model", "m", "--dtype", "int8"], "'float32', 'float16'"),
        (["embed", "text.txt", "v.h5", "--model", "m", "--pool", "sum"], "'mean', 'max'"),
        (["embed", "text.txt", "v.h5", "--model", "m", "--precision", "fp8"], str(["auto", *PRECISIONS])[1:-1]),
        (["embed", "text.txt", "v.h5", "--model", "m", "--runtime", "fast"], "'auto', 'ort', 'avx512'"),
        (["embed", "text.txt", "v.h5", "--model", "m", "--errors", "ignore"], "'strict', 'replace', 'skip'"),
        (["embed", "text.txt", "out", "--model", "m", "--format", "csv"], "'native', 'parquet', 'seqvec'"),
        (["export", "m", "out", "--provider", "tpu"], "'cpu', 'cuda'"),
        (["init", "out", "--format", "zip"], "'hdf5', 'native'"),
    ],
)
def test_a_choice_that_there_is_not(
    here: Path, capfd: pytest.CaptureFixture[str], command: list[str], choices: str
) -> None:
    assert main(command) == 2
    said = capfd.readouterr()
    assert said.out == "" and f"Invalid value for '{command[-2]}': " in said.err
    assert f"'{command[-1]}' is not one of {choices}" in said.err
    assert sorted(path.name for path in here.iterdir()) == ["m", "text.txt"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flashelmo embed a b --precision ", ["auto", "fp32", "bf16", "fp16", "tf32", "int8", "fp64"]),
        ("flashelmo embed a b --layers a", ["all", "average"]),
        ("flashelmo embed a b --device cu", ["cuda", "cuda:0", "cuda:0,cuda:1"]),
        ("flashelmo embed a b --model orig", ["original", "original_5.5B"]),
        ("flashelmo download small", ["small"]),
        ("flashelmo ver", ["verify"]),
    ],
)
def test_a_shell_completes(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]
) -> None:
    monkeypatch.setenv("_FLASHELMO_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    assert main([]) == 0
    found = capfd.readouterr().out.replace(r"\\:", ":")
    assert [name for name in expected if name not in found] == []
    assert "manylangs" not in found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_narrow_terminal(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    text = " ".join(lines)
    assert [
        option for each in COMMANDS[name].params for option in each.opts if option not in text and option[:1] == "-"
    ] == []


def test_help_names_what_the_engine_takes() -> None:
    """Where help has it by hand, so that it need not load the engine."""
    shown = {each.name: str(each.metavar).split("|") for each in COMMANDS["embed"].params}
    assert shown["input_format"] == list(FORMATS)
    shown = {each.name: str(each.metavar).split("|") for name in ("init", "train") for each in COMMANDS[name].params}
    assert shown["preset"] == list(PRESETS)


@pytest.mark.parametrize(
    "command",
    [
        ["embed", "text.txt", "v.h5", "--model", "m"],
        ["embed", "text.txt", "shards", "--model", "m"],
        ["elmo", "text.txt", "v.h5", "--all", "--weight-file", "m"],
        ["neighbours", "text.txt", "cat", "the cat", "--model", "m"],
        ["perplexity", "m", "text.txt"],
        ["train", "text.txt", "--output", "t"],
        ["serve", "m"],
    ],
)
def test_whatever_computes_takes_a_number_of_threads(
    here: Path, capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    for number in (0, 10**6):
        assert main([*command, "--threads", str(number)]) == 1
        said = capfd.readouterr()
        assert said.out == "" and re.fullmatch(f"flashelmo: threads: expected 1 to [0-9]+, found {number}\n", said.err)
        assert sorted(path.name for path in here.iterdir()) == ["m", "text.txt"]


def test_json_of_what_was_done(here: Path, succeed: Run) -> None:
    done = json.loads(succeed("embed", "text.txt", "v.h5", "--model", "m", "--json"))
    assert done["sentences"] == 2 and done["tokens"] == 5 and done["bytes"] == Path("v.h5").stat().st_size
    assert (done["output"], done["device"], done["precision"]) == ("v.h5", "cpu", "fp32")
    assert json.loads(succeed("embed", "text.txt", "s", "--model", "m", "--json"))["records"] == 2
    assert json.loads(succeed("verify", "s", "--json")) == {"folder": "s", "records": 2, "problems": []}
    assert json.loads(succeed("elmo", "text.txt", "w.h5", "--all", "--weight-file", "m", "--json"))["tokens"] == 5
    assert json.loads(succeed("convert", "m", "n", "--json"))["format"] == "native"
    next(Path("s").glob("*.safetensors")).write_bytes(b"")
    assert main(["verify", "s", "--json"]) == 1


def test_more_and_fewer_words(here: Path, succeed: Run) -> None:
    assert succeed("embed", "text.txt", "v.h5", "--model", "m", "-q") == ""
    assert succeed("elmo", "text.txt", "w.h5", "--all", "--weight-file", "m", "-q") == ""
    assert succeed("convert", "m", "n", "-q") == ""
    said = succeed("embed", "text.txt", "v.h5", "--model", "m", "-v", "--overwrite").splitlines()
    n_parameters = f"{MODELS['skip'].weights.n_parameters:,}"
    assert said[0] == f"flashelmo: m/model.safetensors: {n_parameters} parameters, cpu, fp32"
    assert succeed("embed", "text.txt", "v.h5", "--model", "m", "--overwrite").startswith("2 sentences"), "for once"


def test_python_runs_the_package() -> None:
    done = subprocess.run([sys.executable, "-m", "flashelmo", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("flashelmo 0."), done.stderr
