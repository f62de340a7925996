"""Files of vectors: AllenNLP's layout, and nothing under the final name unless it is whole."""

import errno
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from flashelmo.engine import output as output_module
from flashelmo.engine.bulk.locks import locked
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.sinks import open_sink
from flashelmo.engine.sinks.files import write_json

rng = np.random.default_rng(2)
SENTENCES = ["the cat", "", "a dog 犬", "the cat"]
VECTORS = [rng.standard_normal((3, len(sentence.split()), 4)).astype(np.float32) for sentence in SENTENCES]
SUFFIXES = [".h5", ".hdf5", ".npz", ""]


def write(path: Path, output: Output | None = None, *, sentences: list[str] = SENTENCES, **options: bool) -> None:
    with open_sink(path, output, **options) as sink:
        for sentence, vectors in zip(sentences, VECTORS, strict=False):
            sink.write(sink.output.choose(vectors), sentence)


def read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return dict(archive)
    with h5py.File(path) as file:
        found = {}
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        return found


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_line_numbers_are_keys(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    write(path)
    assert files(tmp_path) == [path.name]
    found = read(path)
    index = found.pop("sentence_to_index")
    assert index.shape == (1,)
    # AllenNLP's command: the last one of equal sentences stays
    assert json.loads(index[0]) == {"the cat": "3", "": "1", "a dog 犬": "2"}
    assert set(found) == {"0", "1", "2", "3"}
    for i, vectors in enumerate(VECTORS):
        assert found[str(i)].dtype == np.float32
        np.testing.assert_array_equal(found[str(i)], vectors)


@pytest.mark.parametrize("name", ["v.csv", "v.npy", "v.h5.gz"])
def test_other_suffixes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(FlashElmoError, match=f"{name}: expected a name that ends with .h5, .hdf5 or .npz, found"):
        write(path)
    assert files(tmp_path) == []
    with open_sink(path, always_hdf5=True) as sink:
        sink.write(VECTORS[0], "a")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["0"][()], VECTORS[0])


def test_standard_output_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for always_hdf5 in (False, True):
        with pytest.raises(FlashElmoError, match="-: expected a file's name"), open_sink("-", always_hdf5=always_hdf5):
            pass
    assert files(tmp_path) == []


def test_layout_is_what_allennlp_writes(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.hdf5", tmp_path / "theirs.hdf5"
    write(ours)
    with h5py.File(theirs, "w") as file:  # the calls of allennlp/commands/elmo.py
        for i, vectors in enumerate(VECTORS):
            file.create_dataset(str(i), vectors.shape, dtype="float32", data=vectors)
        dataset = file.create_dataset("sentence_to_index", (1,), dtype=h5py.special_dtype(vlen=str))
        dataset[0] = json.dumps({"the cat": "3", "": "1", "a dog 犬": "2"})
    with h5py.File(ours) as a, h5py.File(theirs) as b:
        assert list(a) == list(b)
        for key in a:
            assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and a[key].chunks == b[key].chunks
            assert h5py.check_string_dtype(a[key].dtype) == h5py.check_string_dtype(b[key].dtype)
        assert a["sentence_to_index"].asstr()[0] == b["sentence_to_index"].asstr()[0]


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_without_sentences(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    write(path, forget_sentences=True)
    assert set(read(path)) == {"0", "1", "2", "3"}
    with open_sink(path, overwrite=True, forget_sentences=True) as sink:
        assert not sink.needs_sentences
    assert read(path) == {}


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_output_settings(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "BLOCK_VALUES", 12)  # sentences of two tokens come in several blocks
    for output in (Output("average", "float16"), Output(1, pool="mean"), Output("all", "float16")):
        path = tmp_path / f"vectors{suffix}"
        write(path, output, overwrite=True, forget_sentences=True)
        found = read(path)
        for i, vectors in enumerate(VECTORS):
            assert found[str(i)].dtype == output.dtype
            np.testing.assert_array_equal(found[str(i)], output.choose(vectors).astype(output.dtype))


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_a_result_of_any_type_gives_the_same_file(tmp_path: Path, suffix: str) -> None:
    """What computes may have cast already."""
    output = Output("top", "float16")
    for name, dtype in (("a", "float32"), ("b", "float16"), ("c", "float64")):
        with open_sink(tmp_path / f"{name}{suffix}", output) as sink:
            for sentence, vectors in zip(SENTENCES, VECTORS, strict=True):
                sink.write(output.choose(vectors).astype(dtype), sentence)
    first = (tmp_path / f"a{suffix}").read_bytes()
    assert (tmp_path / f"b{suffix}").read_bytes() == first == (tmp_path / f"c{suffix}").read_bytes()


def test_vectors_that_were_not_asked_for(tmp_path: Path) -> None:
    with (
        pytest.raises(FlashElmoError, match=r"expected 2 dimensions for layers 'top' and pool None, found \[3, 2, 4\]"),
        open_sink(tmp_path / "v.h5", Output("top")) as sink,
    ):
        sink.write(VECTORS[0], SENTENCES[0])
    assert files(tmp_path) == []


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_sentences_are_keys(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    sentences = ["the cat", "either / or", "ü . : \\"]
    write(path, sentences=sentences, use_sentence_keys=True)
    file = np.load(path) if suffix == ".npz" else h5py.File(path)
    with file:
        for sentence, vectors in zip(sentences, VECTORS, strict=False):
            np.testing.assert_array_equal(np.asarray(file[sentence]), vectors)
        assert "sentence_to_index" not in file


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["the cat", "a", "the cat"], "line 3: the key 'the cat' is taken already, or no key of this format"),
        (["a", ""], "line 2: an empty sentence cannot be a key; leave out use_sentence_keys=True"),
        (["a\0b"], "line 1: a NUL character cannot be in a key"),
    ],
)
def test_sentences_that_cannot_be_keys(tmp_path: Path, suffix: str, sentences: list[str], message: str) -> None:
    with pytest.raises(FlashElmoError, match=message):
        write(tmp_path / f"vectors{suffix}", sentences=sentences, use_sentence_keys=True)
    assert files(tmp_path) == []


@pytest.mark.parametrize("sentences", [["."], ["/"], ["a", "a/b"], ["b/c", "b"], ["/x", "x"]])
def test_slashes_that_hdf5_cannot_take(tmp_path: Path, sentences: list[str]) -> None:
    with pytest.raises(
        FlashElmoError, match=rf"v\.h5: line {len(sentences)}: the key '.*' is taken already, or no key"
    ):
        write(tmp_path / "v.h5", sentences=sentences, use_sentence_keys=True)
    assert files(tmp_path) == []


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_an_exception_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    with pytest.raises(KeyboardInterrupt), open_sink(path) as sink:
        sink.write(VECTORS[0], "a")
        assert not path.exists() and len(files(tmp_path)) == 1
        raise KeyboardInterrupt
    assert files(tmp_path) == []
    write(path)
    before = path.read_bytes()
    with pytest.raises(FlashElmoError, match="layers: expected a layer from 0 to 2, found 3"):
        write(path, Output(3), overwrite=True)
    assert files(tmp_path) == [path.name] and path.read_bytes() == before


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_overwrite(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    path.write_text("precious")
    with pytest.raises(FlashElmoError, match=f"vectors{suffix}: exists already; overwrite=True replaces it"):
        write(path)
    assert path.read_text() == "precious"
    link = tmp_path / f"link{suffix}"
    link.symlink_to(path)
    write(link, overwrite=True)
    assert link.is_symlink() and len(read(path)) == 5


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_a_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Nor, as on Windows, folders that can be opened, or names for files that are open."""
    open_, replace = os.open, os.replace

    def open_file(path: Path, *how: int) -> int:
        if path.is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_(path, *how)

    def replace_closed(old: Path, new: Path) -> None:
        if {str(old), str(new)} & {each.path for each in psutil.Process().open_files()}:
            raise PermissionError(errno.EACCES, "Permission denied", str(old))
        replace(old, new)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "replace", replace_closed)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    path = tmp_path.resolve() / f"v{suffix}"
    (tmp_path / f".{path.name}.{'0' * 16}.tmp").touch()
    for overwrite in (False, True):
        write(path, overwrite=overwrite)
    np.testing.assert_array_equal(read(path)["0"], VECTORS[0])
    write_json(tmp_path / "values.json", {"a": 1})
    assert json.loads((tmp_path / "values.json").read_text())["a"] == 1
    with locked(tmp_path, 1, 0), locked(tmp_path, 2, 1):
        assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize("links", [True, False])
def test_two_runs_with_one_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def no_links(*names: Path) -> None:
        raise PermissionError(errno.EPERM, "a file system without links")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "v.h5"
    with pytest.raises(FlashElmoError, match=r"v\.h5: exists already"), open_sink(path) as late:
        with open_sink(path, Output("top")) as early:  # the same process: its number tells neither from the other
            early.write(VECTORS[0][2], "a")
        late.write(VECTORS[0], "a")
    assert files(tmp_path) == ["v.h5"]
    np.testing.assert_array_equal(read(path)["0"], VECTORS[0][2])
    with open_sink(path, overwrite=True) as late, open_sink(path, overwrite=True) as early:
        late.write(VECTORS[0], "a")
        early.write(VECTORS[1], "a")
    np.testing.assert_array_equal(read(path)["0"], VECTORS[0])
    assert files(tmp_path) == ["v.h5"]


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "v.h5"
    code = f"""
import os, signal
import numpy as np
from flashelmo.engine.sinks import open_sink
with open_sink({str(path)!r}) as sink:
    sink.write(np.zeros((3, 2, 4)), "a")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
        assert done.returncode == -signal.SIGKILL and len(files(tmp_path)) == 1
    others = [".v.h5.0123456789abcdef.txt", ".v.h5.mine.tmp", ".w.h5.0123456789abcdef.tmp"]
    for name in others:
        (tmp_path / name).touch()
    with open_sink(path) as running:
        write(path)
        with pytest.raises(FlashElmoError, match="expected a layer"):
            write(path, Output(3), overwrite=True)
        assert len(files(tmp_path)) == len(others) + 2  # the file and that of the run that goes on
        running.write(VECTORS[0])
        path.unlink()
    assert files(tmp_path) == sorted([*others, "v.h5"]) and len(read(path)) == 2


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FlashElmoError, match=r"there is no folder .*absent"):
        write(tmp_path / "absent" / "v.h5")
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(FlashElmoError, match="expected a file's name, found a folder or device"):
            write(path, overwrite=True)
    with pytest.raises(FlashElmoError, match=f"cannot write: {os.strerror(errno.ENAMETOOLONG)}"):
        write(tmp_path / ("e" * 300 + ".h5"))
    write(tmp_path / ("語" * 84 + ".h5"))  # as long as a name may be


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_equal_runs_give_equal_files(tmp_path: Path, suffix: str) -> None:
    for name in "ab":
        write(tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
@pytest.mark.parametrize("limit", [2_000, 100_000, 1_920_000])
def test_a_full_disk(tmp_path: Path, suffix: str, limit: int) -> None:
    # A limit on the size of files fails like a full disk: while the arrays are written, or at the end.
    code = f"""
import resource, signal
import numpy as np
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.sinks import open_sink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    with open_sink({str(tmp_path / f"v{suffix}")!r}) as sink:
        for i in range(100):
            sink.write(np.zeros((3, 20, 80), np.float32), str(i))  # 19,200 bytes each
except FlashElmoError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / f'v{suffix}'}: cannot write: {os.strerror(errno.EFBIG)}\n"
    assert files(tmp_path) == []


def test_npz_is_not_compressed_and_streams(tmp_path: Path) -> None:
    write(tmp_path / "v.npz")
    with zipfile.ZipFile(tmp_path / "v.npz") as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
