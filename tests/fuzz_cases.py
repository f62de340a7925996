"""The fuzzer's child process: it writes each case's files, reads them, and watches what that does."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import os
import resource
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
from fuzz import LONGEST_MESSAGE
from fuzz_mutations import mutate
from fuzz_seeds import Files, Seed, make_seeds, pack
from fuzz_watch import Watch
from tiny_models import MODELS, SENTENCES

from flashelmo.benchmarks.results import Results
from flashelmo.cli import main
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.convert import convert, describe
from flashelmo.export.onnx_elmo import OnnxElmo
from flashelmo.export.verification.verify import verify

ADDRESS_SPACE = 8 << 30  # above that of the idle process: a runaway ends before the machine does


def run_cases(cases: range, seed: int, root: Path, events: int, holes: bool) -> None:
    """Run cases; a line of JSON goes to the descriptor `events` where one begins and where it ends."""
    warnings.simplefilter("error")
    logging.getLogger("flashelmo").addHandler(logging.NullHandler())
    logging.getLogger("flashelmo").propagate = False
    (root / "outside").mkdir()
    (root / "outside" / "secret").write_bytes(np.full(4096, 0.25, np.float32).tobytes())
    with h5py.File(root / "outside" / "secret.h5", "w") as file:
        file["x"] = np.full((8, 8), 0.25, np.float32)
    (root / "case").mkdir()
    os.chdir(root / "case")
    os.environ["TMPDIR"] = str(root / "case" / "tmp")
    seeds = make_seeds()
    tempfile.tempdir = None  # so that TMPDIR is looked at again
    reader = Reader(root / "case")
    for each in seeds:  # everything is imported, and right files are right
        files = {f"model.{each.archive}": pack(each.files, each.archive)} if each.archive else each.files
        for number in range(3):
            write_files(root / "case", files)
            refused, problems = reader.read(each, Random(number))
            may_be_refused = each.name == "allennlp archive" or each.reader == "text"  # a blank line is no key
            assert not problems and (may_be_refused or not refused), (each.name, refused, problems)
    watch = Watch(root)
    gc.collect()
    gc.freeze()  # so that what the mutations leave is collected in no time
    idle, space = _status("VmRSS"), _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, ((space << 10) + ADDRESS_SPACE, resource.RLIM_INFINITY))

    def tell(event: dict[str, Any]) -> None:
        os.write(events, json.dumps(event).encode() + b"\n")

    for case in cases:
        rng = Random(f"{seed} {case}")
        each = seeds[rng.randrange(len(seeds))]
        if holes and case >= cases.stop - len(HOLES):
            each = replace(each, name="hole", reader="hole", entry=str(case - cases.stop), archive="")
        write_files(root / "case", mutate(each, rng))
        gc.collect()
        watch.trim()
        watch.events()
        tell({"begun": case})
        with contextlib.suppress(OSError):  # not every container has it
            Path("/proc/self/clear_refs").write_text("5")  # the most memory from here on
        started = time.process_time()
        watch.active = True
        refused, problems = reader.read(each, rng)
        watch.active = False
        seconds, peak = time.process_time() - started, (_status("VmHWM") - idle) / 1e3
        problems += watch.events()
        event = {"case": case, "name": each.name, "refused": refused, "problems": problems}
        tell(event | {"seconds": seconds, "megabytes": max(0.0, peak)})


def write_files(folder: Path, files: Files) -> None:
    """These files and no others; "name/" is a folder."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    (folder / "tmp").mkdir()
    for name, data in files.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_bytes(data)


def _status(name: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


class Reader:
    """Reads a case's files in the ways that users have."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._embedder = ElmoEmbedder(MODELS["skip"], device="cpu", threads=1)

    def read(self, seed: Seed, rng: Random) -> tuple[bool, list[str]]:
        """Whether the files are refused, and what is wrong with how that is done."""
        path = self._folder / "in" / (f"model.{seed.archive}" if seed.archive else seed.entry)
        if seed.reader == "hole":
            return self._hole(HOLES[int(seed.entry)])
        read = {"model": self._model, "text": self._text, "onnx": self._onnx, "results": self._results}[seed.reader]
        try:
            read(path, rng)
        except FlashElmoError as error:
            return True, _problems_of(str(error))
        except (OSError, MemoryError) as error:
            if seed.reader == "text" and isinstance(error, OSError) and error.filename:
                return True, []  # as the command line says it
            return True, [_trace(error)]
        except BaseException as error:
            return True, [_trace(error)]
        return False, []

    def _hole(self, run: Callable[[Path], object]) -> tuple[bool, list[str]]:
        try:
            run(self._folder.parent / "outside")
        except PermissionError:  # the watch's
            return True, []
        except KeyError as error:
            return True, [_trace(error)]
        return False, []

    def _model(self, path: Path, rng: Random) -> None:
        way = rng.randrange(8)
        if way == 0:
            return self._command("info", str(path), *rng.choice(((), ("--json",))))
        if way == 1:
            return self._command("convert", str(path), str(self._folder / "out"))
        options = next(iter(sorted(path.parent.glob("*.json"))), None) if way == 2 and path.is_file() else None
        model = load_model(path, options)
        json.dumps(describe(model))
        if way <= 4:
            embedder = ElmoEmbedder(model, device="cpu", threads=1, runtime="reference" if way == 3 else "auto")
            assert len(list(embedder.embed(SENTENCES))) == len(SENTENCES)
        elif way == 5:
            convert(path, self._folder / "out", options_file=options)
            load_model(self._folder / "out")

    def _text(self, path: Path, rng: Random) -> None:
        out = self._folder / rng.choice(("out.h5", "out.npz"))
        self._embedder.embed_file(path, out, rng.choice(("all", "top")), use_sentence_keys=rng.random() < 0.3)

    def _onnx(self, path: Path, rng: Random) -> None:
        given = path.parents[1] if path.parent.name == "onnx" and rng.random() < 0.5 else path
        way = rng.randrange(12)
        if way == 0 and path.is_file():
            verify(path, MODELS["skip"], sentences=[["the", "cat"]], batch_sizes=[1])
            return
        elmo = OnnxElmo(given, threads=1)
        assert len(elmo.embed(SENTENCES) if elmo.layers else SENTENCES) == len(SENTENCES)
        elmo.encode(SENTENCES)

    def _results(self, path: Path, rng: Random) -> None:
        Results.read(path)

    def _command(self, *arguments: str) -> None:
        """A command; FlashElmoError is what it says of an error."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(arguments))
        if status not in (0, 1) or "Traceback" in err.getvalue():
            raise RuntimeError(f"status {status}: {err.getvalue()}")
        if status:
            raise FlashElmoError(err.getvalue().removeprefix("flashelmo: ").removesuffix("\n"))


def _fill_memory(outside: Path) -> None:
    np.ones(1_100_000_000, np.uint8)


def _raise(outside: Path) -> None:
    raise KeyError("a")


HOLES: list[Callable[[Path], object]] = [
    lambda outside: (outside / "secret").read_bytes(),
    lambda outside: h5py.File(outside / "secret.h5").close(),  # in C, where Python's hook sees nothing
    lambda outside: (outside.parent / "case" / ".." / "new").mkdir(),
    lambda outside: os.system("true"),
    _fill_memory,
    _raise,
    lambda outside: os._exit(3),
]


def _problems_of(message: str) -> list[str]:
    """What is wrong with an error's message."""
    if len(message.splitlines()) != 1:
        return [f"an error of {len(message.splitlines())} lines: {message!r:.500}"]
    if len(message) > LONGEST_MESSAGE:
        return [f"an error of {len(message)} characters: {message!r:.300}"]
    return []


def _trace(error: BaseException) -> str:
    """An exception and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
    return f"{type(error).__name__}: {error!s:.200} at {' '.join(places[-6:])}"
