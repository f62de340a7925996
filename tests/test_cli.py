"""The command line, in this process: what it writes, what it says, and what bad input gets."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from tiny_models import MODELS

from flashelmo.cli import main
from flashelmo.cli.terminal import progress_bar, readable_size
from flashelmo.engine import choice
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.bilm import write_bilm
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.output import Output

TEXT = "the cat sat\n\nthe cat sat on a mat\nincomprehensibilities , naïve\nthe cat sat\n"
LINES = TEXT.splitlines()

Run = Callable[..., str]


@pytest.fixture
def here(here: Path, text_file: Path) -> Path:
    """It has text.txt."""
    return here


@pytest.fixture
def fail(capfd: pytest.CaptureFixture[str], here: Path) -> Run:
    """Run a command that must fail with one line, leaving no file; that line."""

    def run(*arguments: object, status: int = 1) -> str:
        before = {path: path.lstat().st_mtime_ns for path in here.iterdir()}
        assert main([str(argument) for argument in arguments]) == status
        captured = capfd.readouterr()
        lines = [line for line in captured.err.splitlines() if "device 'auto'" not in line]
        assert captured.out == "" and len(lines) == 1, captured
        assert lines[0].startswith("flashelmo: ")
        assert {path: path.lstat().st_mtime_ns for path in here.iterdir()} == before
        return lines[0].removeprefix("flashelmo: ")

    return run


def read(path: str | Path) -> dict[str, Any]:
    if str(path).endswith(".npz"):
        with np.load(path) as archive:
            return dict(archive)
    with h5py.File(path) as file:
        return {key: file[key][()] for key in file}


def expected(model: Path, output: Output, **settings: Any) -> list[np.ndarray]:
    vectors = ElmoEmbedder.load(model, **settings).embed(line.split() for line in LINES)
    return [output.choose(sentence).astype(output.dtype) for sentence in vectors]


def check_vectors(found: dict[str, Any], vectors: list[np.ndarray], atol: float = 1e-6) -> None:
    assert json.loads(found.pop("sentence_to_index")[0]) == {line: str(i) for i, line in enumerate(LINES)}
    assert len(found) == len(vectors)
    for i, wanted in enumerate(vectors):
        assert found[str(i)].dtype == wanted.dtype and found[str(i)].shape == wanted.shape
        np.testing.assert_allclose(found[str(i)], wanted, atol=atol)


@pytest.mark.parametrize("name", ["v.h5", "v.npz"])
@pytest.mark.parametrize(
    ("flags", "output"),
    [
        ([], Output()),
        (["--layers", "top", "--dtype", "float16"], Output("top", "float16")),
        (["--layers", "average", "--pool", "mean"], Output("average", pool="mean")),
        (["--layers", "0"], Output(0)),
        (["--layers", "2,0"], Output((2, 0))),
        (["--layers", "0,1", "--pool", "mean"], Output((0, 1), pool="mean")),
        (["--mix", "1,1,1", "--pool", "max"], Output(mix=(1, 1, 1), pool="max")),
        (["--mix", "0.5,-0.25,1"], Output(mix=(0.5, -0.25, 1.0))),
        (["--mix", "0,1,2", "--layers", "average"], Output(mix=(0.0, 1.0, 2.0))),
    ],
)
def test_embed(here: Path, model: Path, succeed: Run, name: str, flags: list[str], output: Output) -> None:
    said = succeed("embed", "text.txt", name, "--model", model, *flags)
    check_vectors(read(name), expected(model, output))
    n_tokens = len(TEXT.split())
    assert f"{len(LINES)} sentences, {n_tokens} tokens, 11 words computed (boundaries included)\n" in said
    assert "saved by sharing" in said and "tokens/s" in said and f"{name}: " in said
    assert sorted(path.name for path in here.iterdir()) == ["text.txt", name]


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--stateful", "--batch-size", "2"], {"stateful": True, "batch_size": 2}),
        (["--keep-sentence-boundaries", "--threads", "1"], {"keep_sentence_boundaries": True}),
        (["--precision", "int8"], {"precision": "int8"}),
    ],
)
def test_embed_passes_settings_on(
    here: Path, model: Path, succeed: Run, flags: list[str], settings: dict[str, Any]
) -> None:
    succeed("embed", "text.txt", "v.h5", "--model", model, *flags)
    found = read("v.h5")
    check_vectors(dict(found), expected(model, Output(), **settings))
    plain = expected(model, Output())
    assert any(found[str(i)].shape != wanted.shape or (found[str(i)] != wanted).any() for i, wanted in enumerate(plain))


def test_embed_from_standard_input(here: Path, model: Path, succeed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert succeed("embed", "-", "v.h5", "--model", model, "--quiet") == ""
    check_vectors(read("v.h5"), expected(model, Output()))


def test_embed_keys(here: Path, model: Path, succeed: Run, fail: Run) -> None:
    succeed("embed", "text.txt", "v.h5", "--model", model, "--forget-sentences")
    assert sorted(read("v.h5")) == ["0", "1", "2", "3", "4"]
    message = fail("embed", "text.txt", "k.h5", "--model", model, "--use-sentence-keys")
    assert message == "line 2: an empty sentence cannot be a key; leave out --use-sentence-keys"
    (here / "text.txt").write_text("a b\n c  d \n", encoding="utf-8")
    succeed("embed", "text.txt", "k.h5", "--model", model, "--use-sentence-keys")
    assert sorted(read("k.h5")) == ["a b", "c  d"]


def test_overwrite(here: Path, model: Path, succeed: Run, fail: Run) -> None:
    (here / "v.h5").write_text("precious")
    assert fail("embed", "text.txt", "v.h5", "--model", model) == "v.h5: exists already; --overwrite replaces it"
    assert (here / "v.h5").read_text() == "precious"
    succeed("embed", "text.txt", "v.h5", "--model", model, "--overwrite")
    check_vectors(read("v.h5"), expected(model, Output()))
    assert "is the input text itself" in fail("embed", "text.txt", "text.txt", "--model", model, "--overwrite")


def test_overwriting_spares_the_model(
    here: Path, model: Path, succeed: Run, fail: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files stay what they are, whatever they are called; vectors beside them are replaced."""
    write_bilm(MODELS["skip"], here / "bilm")
    text = here / "text.txt"
    write_native(MODELS["skip"], here / "native")
    (here / "bilm" / "weights.hdf5").rename(here / "bilm" / "biLM.h5")
    (here / "options").symlink_to(here / "bilm" / "options.json")
    monkeypatch.chdir(here / "bilm")
    options = ("--options", "../options", "--overwrite")
    for name, weights in (("biLM.h5", "biLM.h5"), ("biLM.h5", "."), ("options.json", "biLM.h5")):
        said = fail("embed", text, name, "--model", weights, *options)
        assert said == f"{name}: is a file of the model"
    for name in ("config.json", "model.safetensors"):
        target = f"../native/{name}"
        assert fail("embed", text, target, "--model", "../native", "--overwrite") == f"{target}: is a file of the model"
    Path("v.h5").touch()
    for _ in range(2):
        succeed("embed", text, "v.h5", "--model", ".", *options)
    check_vectors(read("v.h5"), expected(model, Output()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.txt", "v.h5"], "absent.txt: No such file or directory"),
        ([".", "v.h5"], ".: Is a directory"),
        (["text.txt", "absent/v.h5"], "absent/v.h5: there is no folder"),
        (["text.txt", "v.h5", "--mix", "1,2"], "mix: expected 3 coefficients, one a layer, found 2"),
        (
            ["text.txt", "v.h5", "--mix", "1,x,2"],
            "--mix: expected one number per layer, separated by commas, found '1,x,2'",
        ),
        (["text.txt", "v.h5", "--mix", "1,-1e39,1"], "mix: expected numbers that float32 can hold, found"),
        (["text.txt", "v.h5", "--mix", "1,2,nan"], "mix: expected a finite number for each layer, found"),
        (["text.txt", "v.h5", "--mix", "1,2,3", "--layers", "0"], "layers: expected none together with mix, found 0"),
        (["text.txt", "v.h5", "--layers", "1,3"], "layers: expected a layer from 0 to 2, found 3"),
        (["text.txt", "v.h5", "--layers", 5000 * "9"], "layers: expected all, top, average, a layer's number or sev"),
        (["text.txt", "v.h5", "--layers", "1,1"], "layers: expected all, top, average, a layer's number or several"),
        (["text.txt", "v.h5", "--layers", "1,x,2"], "layers: expected all, top, average, a layer's number or several"),
        (["text.txt", "v.h5", "--layers", "3"], "layers: expected a layer from 0 to 2, found 3"),
        (["text.txt", "v.h5", "--layers", "last"], "layers: expected all, top, average, a layer's number"),
        (
            ["text.txt", "v.h5", "--layers", "0.5,-0.25,1"],
            "layers: expected all, top, average, a layer's number or several different ones (coefficients go to mix), "
            "found '0.5,-0.25,1'",
        ),
        (["text.txt", "v.h5", "--device", "gpu"], "device: expected"),
        (["text.txt", "v.h5", "--device", "cpu,cuda"], "device: expected one, or several CUDA devices"),
        (["text.txt", "v.h5", "--device", "cuda"], "device 'cuda': expected"),
        (["text.txt", "v.h5", "--batch-size", "8"], "--batch-size: requires --stateful"),
        (["text.txt", "v.csv"], "v.csv: expected a name that ends with .h5, .hdf5 or .npz, found .csv"),
        (["text.txt", "-"], "-: expected a file's name"),
        (["text.txt", "v.h5", "--stateful", "--batch-size", "0"], "batch_size: expected 1 or more, found 0"),
        (
            ["text.txt", "v.h5", "--options", "absent.json"],
            "absent.json: expected HDF5 weights with an options file, found",
        ),
    ],
)
def test_bad_arguments(model: Path, fail: Run, arguments: list[str], message: str) -> None:
    assert message in fail("embed", "--model", model, *arguments)


@pytest.mark.parametrize("target", ["away", "link"])  # what is not there, and the link itself
@pytest.mark.parametrize(
    "command",
    [
        "convert model link",
        "convert model link/deeper",
        "init --preset tiny link",
        "train text.txt --output link --preset tiny --steps 1 --batch 1 --unroll 2",
        "export model link",
        "embed text.txt link --model model",
        "embed text.txt link --model model --overwrite --workers 1",
        "embed text.txt link --model model --format seqvec",
        "embed text.txt link.h5 --model model --overwrite",
    ],
)
def test_an_output_that_is_a_link_to_nowhere_is_refused_at_once(
    here: Path, model: Path, fail: Run, monkeypatch: pytest.MonkeyPatch, command: str, target: str
) -> None:
    monkeypatch.setattr("flashelmo.engine.training.trainer._Run.run", None)
    monkeypatch.setattr(ElmoEmbedder, "embed_windows", None)
    (here / "model").symlink_to(model)
    (here / "link").symlink_to(target)
    (here / "link.h5").symlink_to("link.h5")  # a file may be linked to before it is there
    said = fail(*command.split())
    assert "found a link that leads nowhere" in said or (
        "deeper" in command and re.search("link/deeper: cannot be written: (Too many levels|File exists)", said)
    )
    assert (here / "link").is_symlink() and (here / "link.h5").is_symlink()


def test_text_that_is_not_utf8(here: Path, model: Path, succeed: Run, fail: Run) -> None:
    (here / "bad.txt").write_bytes(b"the cat\nsat \xff on\n")
    message = fail("embed", "bad.txt", "v.h5", "--model", model)
    assert message == "bad.txt: line 2, byte 5: expected UTF-8, found 0xff (invalid start byte)"
    succeed("embed", "bad.txt", "v.h5", "--model", model, "--errors", "replace")
    embedder = ElmoEmbedder.load(model)
    np.testing.assert_allclose(read("v.h5")["1"], embedder.embed_sentence(["sat", "\ufffd", "on"]), atol=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_file(
    here: Path, model: Path, fail: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    embed_windows = ElmoEmbedder.embed_windows

    def interrupted(self: ElmoEmbedder, *arguments: Any) -> Any:
        for window, sentences in embed_windows(self, *arguments):
            yield window, sentences
            os.kill(os.getpid(), number)

    monkeypatch.setattr(ElmoEmbedder, "embed_windows", interrupted)
    found = signal.signal(number, signal.default_int_handler)  # the tests themselves may have been told to ignore it
    try:
        assert fail("embed", "text.txt", "v.h5", "--model", model, status=128 + number) == "interrupted"
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, found)


WHILE_IT_LOADS = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from flashelmo.cli import main
main(["--version"])
"""


def test_an_interrupt_while_modules_are_loaded_is_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", WHILE_IT_LOADS], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
    handler = signal.getsignal(signal.SIGINT)
    assert main(["--version"]) == 0 and signal.getsignal(signal.SIGINT) == handler


def test_elmo_command_reads_lines_as_python_does(here: Path, model: Path, succeed: Run) -> None:
    (here / "text.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r").encode())
    succeed("elmo", "text.txt", "v.h5", "--weight-file", model, "--all")
    check_vectors(read("v.h5"), expected(model, Output("all"), stateful=True))


def test_a_signal_that_is_ignored_stays_so(
    here: Path, model: Path, succeed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nohup has it."""
    embed_windows = ElmoEmbedder.embed_windows

    def hung_up(self: ElmoEmbedder, *arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        return embed_windows(self, *arguments, **options)

    vectors = expected(model, Output())
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(ElmoEmbedder, "embed_windows", hung_up)
        succeed("embed", "text.txt", "v.h5", "--model", model)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    check_vectors(read("v.h5"), vectors)


def shell(command: str, model: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line's embed with a shell's redirections."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "MODEL": str(model)}
    line = f'"{sys.executable}" -m flashelmo.cli {command}'
    return subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", ">&- 2>&-", "<&- 2>&-"])
@pytest.mark.parametrize("name", ["v.h5", "v.npz"])
def test_vectors_count_where_messages_are_lost(here: Path, model: Path, streams: str, name: str) -> None:
    done = shell(f'embed text.txt {name} --model "$MODEL" {streams}', model)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    check_vectors(read(name), expected(model, Output()))
    if name == "v.h5":  # any output that exists is refused by the same check
        assert shell(f'embed text.txt {name} --model "$MODEL" {streams}', model).returncode == 1


@pytest.mark.parametrize(
    ("command", "status", "out", "error"),
    [
        ("embed - v.h5 --model m <&-", 1, "", "flashelmo: -: standard input is closed\n"),
        ('embed - v --model "$MODEL" <&-', 1, "", "flashelmo: -: standard input is closed\n"),
        ('info "$MODEL" >/dev/full', 1, "", "flashelmo: No space left on device\n"),
        ("info é", 1, "", "flashelmo: \\xe9: no such file or folder\n"),
    ],
)
def test_streams_that_are_not_usable(here: Path, model: Path, command: str, status: int, out: str, error: str) -> None:
    done = shell(command, model)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, error)
    assert [path.name for path in here.iterdir()] == ["text.txt"]


def test_results_on_an_ascii_terminal(here: Path, model: Path) -> None:
    (here / "modèle").symlink_to(model)
    done = shell("info modèle", model)
    assert (done.returncode, done.stderr) == (0, "") and "path: mod\\xe8le/model" in done.stdout


def test_names_in_utf8_where_the_locale_has_another_encoding(
    here: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    (here / "tä.csv").write_text("größe\nthe cat\n", encoding="utf-8")
    done = shell('embed tä.csv vé.h5 --field größe --model "$MODEL" -q', model)
    assert (done.returncode, done.stderr) == (0, "") and (here / "vé.h5").exists()
    done = shell('embed text.txt vé --model "$MODEL" -q', model)
    assert done.stderr.endswith(
        "expected a path in UTF-8, found 'v\\udcc3\\udca9'; PYTHONUTF8=1 reads it as 'v\\xe9'\n"
    )


def test_elmo_command_is_stateful_by_row(here: Path, model: Path, succeed: Run) -> None:
    arguments = ("elmo", "text.txt", "v.h5", "--weight-file", model, "--batch-size", "2", "--overwrite")
    stateful = {"stateful": True, "batch_size": 2}
    for layers in ("all", "top", "average"):
        succeed(*arguments, f"--{layers}")
        check_vectors(read("v.h5"), expected(model, Output(layers), **stateful))
    succeed(*arguments, "--all", "--forget-sentences", "--vocab-path", "vocabulary", "--cuda-device", "-1")
    assert sorted(read("v.h5")) == ["0", "1", "2", "3", "4"]
    said = succeed(*arguments, "--all", "--include-package", "a", "--include-package", "b", "--file-friendly-logging")
    assert said.count("--include-package has no effect") == 1 and "\r" not in said


def test_elmo_command_writes_hdf5_whatever_the_suffix(here: Path, model: Path, succeed: Run) -> None:
    succeed("elmo", "text.txt", "v.h5", "--weight-file", model, "--all")
    succeed("elmo", "text.txt", "v.npz", "--weight-file", model, "--all")
    assert (here / "v.npz").read_bytes() == (here / "v.h5").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weight-file", "w"], "expected one of --all, --top and --average, found none"),
        (["--weight-file", "w", "--all", "--top"], "expected one of --all, --top and --average, found all top"),
        (["--all"], "--weight-file: expected the weights of a model, or its name, such as original"),
        (["--all", "--weight-file", "absent.hdf5"], "absent.hdf5: no such file or folder"),
    ],
)
def test_bad_arguments_of_elmo(fail: Run, flags: list[str], message: str) -> None:
    assert message in fail("elmo", "text.txt", "v.h5", *flags)


def test_elmo_on_a_device_that_is_not_there(here: Path, model: Path, fail: Run) -> None:
    said = fail("elmo", "text.txt", "v.h5", "--all", "--weight-file", str(model), "--cuda-device", "0")
    assert "device 'cuda" in said and "': expected" in said


def test_where_it_computes_is_said(here: Path, model: Path, succeed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_cuda_card", lambda: False)
    monkeypatch.setattr(choice, "find_spec", lambda package: package)  # also where no Triton is, which expects a card
    choice._warn_once.cache_clear()
    said = succeed("embed", "text.txt", "v.h5", "--model", str(model))
    assert said.count("device 'auto': no CUDA device found, running on the CPU") == 1
    assert " tokens/s (cpu, fp32)" in said
    assert "'auto'" not in succeed("embed", "text.txt", "w.h5", "--model", str(model))
    choice._warn_once.cache_clear()
    assert not succeed("embed", "text.txt", "x.h5", "--model", str(model), "--quiet")


def test_init_info_and_convert(here: Path, succeed: Run, fail: Run) -> None:
    assert "13,593,312 random parameters" in succeed("init", "a", "--preset", "small", "--seed", "3")
    succeed("init", "b", "--seed", "3", "--format", "hdf5")
    assert sorted(path.name for path in (here / "b").iterdir()) == ["options.json", "weights.hdf5"]
    succeed("convert", "b", "c")
    models = [dict(load_model(here / name).weights.named_tensors()) for name in "abc"]
    for name, tensor in models[0].items():
        # the forget bias is stored without its 1 in HDF5, so that it may be rounded
        np.testing.assert_allclose(models[1][name], tensor, atol=1e-7)
        np.testing.assert_array_equal(models[1][name], models[2][name])
    facts = json.loads(succeed("info", "c", "--json"))
    assert facts["parameters"] == 13_593_312 and facts["projection_size"] == 128 and facts["format"] == "native"
    assert facts["processor"]["precision"] == "fp32"
    assert {"precision": "int8", "relative_error": 0.03, "needs": ""} in facts["processor"]["faster"]
    said = succeed("info", "b")
    assert "fp32 by default" in said and "possibly faster: --precision int8, relative error below 0.03\n" in said
    assert "parameters: 13,593,312\n" in said and "format: bilm-hdf5\n" in said and "weights.hdf5: 54." in said
    assert "seed" not in said and "sha256" in said

    assert "exists" in fail("convert", "b", "c")
    assert "exists" in fail("init", "a")
    message = "preset: expected one of tiny, small, medium, original, found 'huge'"
    assert message in fail("init", "d", "--preset", "huge")
    assert "absent: no such file or folder" in fail("info", "absent")
    succeed("init", "a", "--seed", "4", "--overwrite")
    changed = load_model(here / "a").weights.lstm[0][0].input_weight
    assert (changed != models[0]["lstm.0.forward.input_weight"]).any()


def test_version_and_usage(capfd: pytest.CaptureFixture[str]) -> None:
    import flashelmo

    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"flashelmo {flashelmo.__version__}\n"
    assert main(["embed"]) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert main(["embed", "--help"]) == 0
    assert "--keep-sentence" in capfd.readouterr().out


def test_the_installed_command(here: Path) -> None:
    command = [sys.executable, "-m", "flashelmo.cli", "info", "absent"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "flashelmo: absent: no such file or folder, and no model's name; there are tiny, small, "
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, reports: Sequence[tuple[float, float]]) -> list[str]:
    """What is shown of bytes that are done at some seconds, a token for four of them, of a text of 77 bytes."""
    clock = iter([0.0, *(seconds for seconds, _ in reports)])
    monkeypatch.setattr("flashelmo.cli.terminal.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("sys.stderr", stream)
    with progress_bar(lambda: len(TEXT.encode()), quiet=False) as on_progress:
        for _, n_bytes in reports:
            on_progress(n_bytes, n_bytes / 4)
    return [line for line in re.split(r"[\r\n]+", stream.getvalue()) if line.strip()]


def test_progress_bar_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = [(0.1, 1), (1, 0), (2, 22), (2.1, 23), (4, 66), (300, 67), (320, 68), (340, 69)]
    terminal = Terminal()
    shown = progress(monkeypatch, terminal, reports)
    wanted = ["  0%|", " 29%|", " 86%|", " 87%|", " 88%|", " 90%|"]
    assert len(shown) == 6 and all(line.startswith(start) for line, start in zip(shown, wanted, strict=True))
    assert shown[0].endswith("0.00/77.0B [00:01<?, 0 tokens/s]")
    assert shown[2].endswith("66.0/77.0B [00:04<00:00, 4 tokens/s]")
    assert shown[5].endswith("[05:40<02:40, 0 tokens/s]")  # two bytes in forty seconds of late
    assert terminal.getvalue().endswith(" \r")


def test_progress_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    shown = progress(monkeypatch, stream, [(9, 1), (10, 22), (19, 23), (21, 44)])
    assert [re.sub(r"\|.*\|", "", line) for line in shown] == [
        "29% 22.0/77.0B [00:10<00:24, 1 tokens/s]",
        "57% 44.0/77.0B [00:21<00:15, 1 tokens/s]",
    ]
    assert "\r" not in stream.getvalue()


def test_progress_of_a_text_whose_size_shows_later(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, totals, seconds = io.StringIO(), iter([None, 50, 40]), iter([0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr("flashelmo.cli.terminal.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr("sys.stderr", stream)
    with progress_bar(lambda: next(totals), quiet=False, in_lines=True) as on_progress:
        for n_bytes in (10, 20, 30):
            on_progress(n_bytes, 0)
    assert [re.sub(r"\|.*\|", "", line) for line in stream.getvalue().splitlines()] == [
        "10.0B [00:10, 0 tokens/s]",
        "40% 20.0/50.0B [00:20<00:30, 0 tokens/s]",
        "75% 30.0/40.0B [00:30<00:10, 0 tokens/s]",
    ]


def test_readable_size() -> None:
    sizes = {0: "0 bytes", 999: "999 bytes", 1500: "1.5 kB", 54_400_000: "54.4 MB", 2 * 10**12: "2.0 TB"}
    assert {size: readable_size(size) for size in sizes} == sizes
