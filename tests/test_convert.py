"""Models' folders appear whole or not at all, and damaged files get one line."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manylangs_files import write as write_manylangs
from safetensors import SafetensorError
from tiny_models import MODELS

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.bilm import write_bilm
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.weights import ElmoModel

WRITERS: dict[str, Callable[..., None]] = {"native": write_native, "hdf5": write_bilm}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(message: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    with pytest.raises(FlashElmoError, match=message) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_folders_that_cannot_be_made(write: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fails("cannot be written", write, MODELS["skip"], tmp_path / "file" / "model")
    fails("cannot be written", write, MODELS["skip"], tmp_path / ("long" * 100))
    write(MODELS["skip"], tmp_path / "new" / "folders" / "model")
    assert (tmp_path / "new" / "folders" / "model").stat().st_mode & 0o777 == 0o777 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("moment", "error"),
    [
        *product(("tensors", "flush", "move"), (FULL, KeyboardInterrupt())),
        ("tensors", SafetensorError("Error while serializing: I/O error: No space left on device")),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_fails_half_way_leaves_nothing(
    moment: str, overwrite: bool, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if overwrite:
        write_native(MODELS["skip"], tmp_path / "model")
    before = contents(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise error

    rename = Path.rename
    if moment == "tensors":
        monkeypatch.setattr("safetensors.numpy.save_file", fail)
    elif moment == "flush":
        monkeypatch.setattr("os.fsync", fail)  # everything is written by then, under another name
    else:
        monkeypatch.setattr(Path, "rename", lambda a, b: fail() if a.name == "new" else rename(a, b))
    with pytest.raises(FlashElmoError if isinstance(error, Exception) else KeyboardInterrupt) as caught:
        write_native(MODELS["no skip"], tmp_path / "model", overwrite=overwrite)
    if isinstance(error, Exception):
        assert str(caught.value).startswith(f"{tmp_path / 'model'}: cannot be written: ")
        assert "No space left on device" in str(caught.value) and "\n" not in str(caught.value)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if overwrite else [])


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tiny_models import MODELS
from flashelmo.engine.model.checkpoints import files
from flashelmo.engine.model.checkpoints.native import write_native
rename = Path.rename
def killed(source, target):
    if source.name == "new" and sys.argv[2] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if source.name == "new":
        os.kill(os.getpid(), signal.SIGKILL)
Path.rename = killed
write_native(MODELS["no skip"], sys.argv[1], overwrite=True)
"""


@pytest.mark.parametrize("moment", ["before", "behind"])
def test_what_killed_runs_left_is_removed_or_put_back(moment: str, tmp_path: Path) -> None:
    """Killed just before or behind the moment at which the new folder takes the name of the one that it replaces."""
    write_native(MODELS["skip"], tmp_path / "model")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model"), moment, str(Path(__file__).parent)]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == -signal.SIGKILL
    (tmp_path / ".model.mine").mkdir()
    assert len(list(tmp_path.iterdir())) == (2 if moment == "before" else 3)
    with pytest.raises(FlashElmoError, match="model: exists already"):
        write_native(MODELS["no projection"], tmp_path / "model")
    write_native(MODELS["no projection"], tmp_path / "other")
    assert load_model(tmp_path / "model").config == MODELS["skip" if moment == "before" else "no skip"].config
    write_native(MODELS["no projection"], tmp_path / "model", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.mine", "model", "other"]


FULL_DISK = """
import resource, sys
sys.path.insert(0, sys.argv[3])
from tiny_models import MODELS
from flashelmo.engine.model.checkpoints.bilm import write_bilm
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.errors import FlashElmoError
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # no file may grow beyond: the weights do
try:
    {"native": write_native, "hdf5": write_bilm}[sys.argv[1]](MODELS["skip"], sys.argv[2])
except FlashElmoError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="this system has no limit of a file's size")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_nothing(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, kind, str(tmp_path / "model"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'model'}: cannot be written: ") and done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("platform", ["linux", "win32"])  # Windows replaces no mapped file
def test_a_mapped_model_may_be_written_over_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    write_native(MODELS["skip"], tmp_path / "model")
    model: ElmoModel = load_model(tmp_path / "model")
    for _, array in model.weights.named_tensors():
        assert not array.flags.writeable
        while isinstance(array.base, np.ndarray) and not isinstance(array, np.memmap):
            array = array.base
        assert isinstance(array, np.memmap) == (platform == "linux")
    before = contents(tmp_path)
    write_native(model, tmp_path / "model", overwrite=True)
    assert contents(tmp_path) == before


def test_a_link_is_replaced_and_what_it_pointed_to_is_left(tmp_path: Path) -> None:
    write_native(MODELS["skip"], tmp_path / "there")
    before = contents(tmp_path / "there")
    (tmp_path / "link").symlink_to("there")
    write_native(MODELS["no skip"], tmp_path / "link", overwrite=True)
    assert contents(tmp_path / "there") == before
    assert load_model(tmp_path / "link").config == MODELS["no skip"].config


def test_an_archive_writes_nothing_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary" / "files").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary" / "files"))
    write_bilm(MODELS["skip"], tmp_path / "model")
    escaping = ["../escaped", "../../escaped", f"{tmp_path}/escaped"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in (tmp_path / "model").iterdir():
            archive.write(path, path.name)
        for name in escaping:
            archive.writestr(name, "harm")
    assert load_model(tmp_path / "a.zip").config == MODELS["skip"].config
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "model" / "options.json", "../escaped")
    fails(r"a\.tar: expected a whole zip or tar archive", load_model, tmp_path / "a.tar")
    assert not [path for path in tmp_path.rglob("*") if path.name == "escaped"]
    assert not list((tmp_path / "temporary" / "files").iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is readable to root")
@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors"])
def test_unreadable_files(name: str, tmp_path: Path) -> None:
    write_native(MODELS["skip"], tmp_path / "model")
    (tmp_path / "model" / name).chmod(0)
    fails("cannot be read: Permission denied", load_model, tmp_path / "model")
    (tmp_path / "model" / name).chmod(0o700)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("hdf5", ""),
        ("hdf5", "options.json"),
        ("native", "config.json"),
        ("native", "model.safetensors"),
        ("native", "lexicon.json"),
        ("manylangs", "char.dic"),
        ("manylangs", "encoder.pkl"),
    ],
)
def test_pipes_are_not_waited_for(kind: str, name: str, tmp_path: Path) -> None:
    path = a_model(kind, tmp_path)
    file = path / name
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink()
    os.mkfifo(file)
    loads = ["-c", "import sys; from flashelmo import load_model; load_model(sys.argv[1])", str(path)]
    done = subprocess.run([sys.executable, *loads], capture_output=True, text=True, timeout=60)  # else it hangs
    assert done.returncode == 1 and "FlashElmoError: " in done.stderr.splitlines()[-1]


def test_pipes_and_devices_as_models_and_options(tmp_path: Path) -> None:
    found = ": expected a file or folder, found a pipe, socket or device"
    fails(f"^/dev/zero{found}", load_model, "/dev/zero")
    write_bilm(MODELS["skip"], tmp_path / "model")
    fails(f"^/dev/zero{found}", load_model, tmp_path / "model", options_file="/dev/zero")


def a_model(kind: str, folder: Path) -> Path:
    """A model of one kind, in `folder`; its path."""
    if kind == "manylangs":
        return write_manylangs(MODELS["manylangs"], folder / kind)
    if kind == "native":
        write_native(MODELS["manylangs"], folder / kind)
        return folder / kind
    write_bilm(MODELS["words alone" if kind == "words" else "skip"], folder / kind)
    return folder / kind


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["native", "hdf5", "words", "manylangs"])
def test_random_damage_is_an_error_of_one_line_or_harmless(kind: str, tmp_path: Path) -> None:
    """Cut, or a few bytes changed: whatever the file and the place, nothing but FlashElmoError is raised.

    Only files whose bytes are the same in every run, so that every run tests the same damage.
    """
    generator = random.Random(kind)
    path = a_model(kind, tmp_path)
    files = sorted(path.iterdir())
    failures = 0
    for file in files:
        whole = file.read_bytes()
        for _ in range(25):
            file.write_bytes(damaged(whole, generator))
            try:
                load_model(path)
            except FlashElmoError as error:
                failures += 1
                assert "\n" not in str(error) and str(path) in str(error)
        file.write_bytes(whole)
    load_model(path)
    assert failures > 5 * len(files)


def damaged(data: bytes, generator: random.Random) -> bytes:
    if generator.random() < 0.3:
        return data[: generator.randrange(len(data))]
    result = bytearray(data)
    reach = len(data) if generator.random() < 0.5 else min(len(data), 2000)  # headers matter most
    for _ in range(generator.choice([1, 2, 8, 50])):
        result[generator.randrange(reach)] = generator.choice([0, 255, generator.randrange(256), *b'"-9'])
    return bytes(result)
