"""Exported files in environments that hold numpy, onnxruntime and what that requires, and no other package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from packaging.requirements import Requirement
from test_architecture import FACE, package_folder
from tiny_models import BILM, GENTLE, MANYLANGS, MANYLANGS_LEXICON, random_model

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.precision import PrecisionName, tolerance
from flashelmo.export.build import build_buckets, build_onnx

Vectors: TypeAlias = npt.NDArray[np.floating[Any]]

N_SENTENCES = 50
OLDEST_RUNTIME = "1.16.0"
TOLERANCE = tolerance("fp32", "onnx")
RELATIVE = {name: tolerance(name, "onnx") for name in ("fp16", "int8")}
BATCH = 8


MODELS = {
    "bilm": random_model(replace(BILM, max_characters=50)),
    "stateful": random_model(BILM),
    "manylangs": random_model(MANYLANGS, MANYLANGS_LEXICON),
    "fp16": GENTLE,
    "int8": GENTLE,
    "unrolled": random_model(BILM),
}
PRECISIONS: dict[str, PrecisionName] = {"fp16": "fp16", "int8": "int8"}  # all others are fp32
NEEDED = ("numpy", "onnxruntime")

# Run in the new environment: embeds each file's sentences, and says what is installed there and what may be.
SCRIPT = """
import json, re, sys
from importlib.metadata import PackageNotFoundError, distributions, requires

def canonical(name):
    return re.sub("[-_.]+", "-", re.match("[-_.A-Za-z0-9]+", name)[0]).lower()

def required(name):
    try:
        return {canonical(line) for line in requires(name) or [] if "extra ==" not in line}
    except PackageNotFoundError:
        return set()

allowed, waiting = set(), ["numpy", "onnxruntime"]
while waiting:
    allowed.add(name := waiting.pop())
    waiting += required(name) - allowed

import numpy
from flashelmo.export import OnnxElmo

folder, batch_size = sys.argv[1], int(sys.argv[2])
with open(f"{folder}/sentences.json", encoding="utf-8") as file:
    sentences = json.load(file)
for name in sys.argv[3:]:
    elmo = OnnxElmo(f"{folder}/{name}.onnx")
    numpy.savez(f"{folder}/{name}.npz", *elmo.embed(sentences, batch_size=batch_size))
    ids = elmo.inputs(["no", "word"])
    for nothing in ({n: a[:0] for n, a in ids.items()}, {n: a[:, :0] for n, a in ids.items()}):
        assert not any(array.size for n, array in elmo.run(**nothing).items() if n in ("token_embeddings", "mask"))
print(json.dumps({
    "installed": {canonical(each.metadata["Name"]): each.version for each in distributions()},
    "allowed": sorted(allowed),
    "flashelmo": sys.modules["flashelmo"].__file__,
}))
"""


def ragged(text: list[list[str]]) -> list[list[str]]:
    """Real sentences, each cut to another length, with an empty and a one-word sentence among them."""
    cut = [sentence[: 1 + 7 * k % len(sentence)] for k, sentence in enumerate(text[:N_SENTENCES])]
    cut[3], cut[10] = [], ["Adam"]
    assert len(cut) == N_SENTENCES and len({len(sentence) for sentence in cut}) > 10
    return cut


def oldest() -> list[str]:
    """The ONNX Runtime that README names as the oldest, with the numpy that the package declares as its own."""
    declared = [Requirement(line) for line in requires("flashelmo") or []]
    (numpy,) = {f"numpy=={spec.version}" for each in declared if each.name == "numpy" for spec in each.specifier}
    return [numpy, f"onnxruntime=={OLDEST_RUNTIME}"]


def test_readme_names_the_oldest_runtime_that_is_tested(root: Path) -> None:
    assert f"ONNX Runtime {OLDEST_RUNTIME.removesuffix('.0')} or newer" in (root / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, text: list[list[str]]) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    (folder / "sentences.json").write_text(json.dumps(ragged(text)), encoding="utf-8")
    for name, model in MODELS.items():
        path = folder / f"{name}.onnx"
        if name == "unrolled":  # a folder of files
            path.mkdir()
            build_buckets(model, path, [(BATCH, 16), (BATCH, max(map(len, ragged(text))))])
            continue
        build_onnx(model, path, stateful=name == "stateful", precision=PRECISIONS.get(name, "fp32"))
    return folder


def install(python: Path, arguments: list[str]) -> None:
    """Skip the test where no index is reached, or where it has no wheel of an old version for this Python."""
    if find_spec("pip") is None:
        pytest.skip("pip is not installed, so no other environment can be filled")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--only-binary=:all:"]
    done = subprocess.run(
        [*pip, "--no-compile", "--disable-pip-version-check", "--retries=1", "--timeout=30", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode == 0:
        return
    if "(from versions: none)" in done.stderr or "Connection" in done.stderr:
        pytest.skip(f"pip reaches no index that has {' and '.join(NEEDED)}: {done.stderr.strip().splitlines()[-1]}")
    if "No matching distribution" in done.stderr and any("==" in argument for argument in arguments):
        pytest.skip(f"no wheel for this Python: {done.stderr.strip().splitlines()[-1]}")
    pytest.fail(done.stderr)


def make_environment(folder: Path, arguments: list[str]) -> Path:
    """The Python of a new virtual environment with these packages and flashelmo's own files."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install(python, arguments)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-Ic", where], capture_output=True, text=True, check=True, timeout=120)
    package = Path(found.stdout.strip()) / "flashelmo"
    for part in ("engine", "export"):
        shutil.copytree(package_folder(part), package / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in package_folder(FACE).glob("*.py"):
        shutil.copy(path, package)
    return python


def assert_relative(found: list[Vectors], expected: list[Vectors], bound: float) -> None:
    """Every layer of all sentences together within the relative error, and not exact."""
    assert [a.shape for a in found] == [b.shape for b in expected]
    for a, b in zip(np.concatenate(found, axis=1), np.concatenate(expected, axis=1), strict=True):
        assert np.linalg.norm(a.astype(np.float64) - b) < bound * np.linalg.norm(b)
    assert any(np.abs(a - b).max(initial=0) > 1e-6 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("versions", ["constraints.txt", "the oldest"])
def test_a_fresh_environment_with_numpy_and_onnxruntime_alone(
    versions: str, exported: Path, text: list[list[str]], tmp_path: Path, root: Path
) -> None:
    arguments = oldest() if versions == "the oldest" else [*NEEDED, "--constraint", str(root / "constraints.txt")]
    python = make_environment(tmp_path / "environment", arguments)
    command = [str(python), "-I", "-W", "error", "-c", SCRIPT, str(exported), str(BATCH), *MODELS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(NEEDED) <= set(said["installed"]) <= set(said["allowed"])
    assert Path(said["flashelmo"]).is_relative_to(tmp_path)
    for line in oldest() if versions == "the oldest" else []:
        name, _, version = line.partition("==")
        assert said["installed"][name].startswith(version), said["installed"]
    for name, model in MODELS.items():
        embedder = ElmoEmbedder(model, runtime="ort", precision="fp32", stateful=name == "stateful", batch_size=BATCH)
        expected = list(embedder.embed(ragged(text)))
        with np.load(exported / f"{name}.npz") as arrays:
            found = [arrays[f"arr_{k}"] for k in range(len(arrays))]
        assert len(found) == len(expected) == N_SENTENCES
        assert {vectors.dtype.name for vectors in found} == {"float16" if name == "fp16" else "float32"}
        if name in RELATIVE:
            assert_relative(found, expected, RELATIVE[name])
        else:
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)
        assert max(np.abs(b).max(initial=0) for b in expected) > 0.1
