"""What the installed package holds and says of itself: every module, the types, and each package it needs."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution, requires, version
from importlib.util import find_spec
from pathlib import Path

import pytest
from install_sizes import rounded
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import flashelmo

EXTRAS = {"cpu", "gpu", "export", "openvino", "torch", "bulk", "download", "hub", "spacy", "ray", "bench", "dev"}
EXTRAS |= {"sklearn", "sentence-transformers", "flair", "datasets", "langchain", "senses", "serve", "client", "docs"}


def needed_by(name: str, extra: str = "") -> set[str]:
    """Packages that `pip install name[extra]` installs besides, as far as they are installed here."""
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(name), extra)]
    while waiting:
        package, package_extra = waiting.pop()
        if (package, package_extra) in seen:
            continue
        seen.add((package, package_extra))
        for requirement in map(Requirement, requires(package) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": package_extra}):
                dependency = canonicalize_name(requirement.name)
                waiting += [(dependency, ""), *((dependency, wanted) for wanted in requirement.extras)]
    return {package for package, _ in seen} - {canonicalize_name(name)}


def constraints(root: Path) -> dict[str, Requirement]:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len({canonicalize_name(pin.name) for pin in pins}) == len(pins), "a package is pinned twice"
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_every_module_is_installed(root: Path) -> None:
    mapped = {init.parent.name: init.parent for init in root.glob("*/__init__.py")}
    assert {"engine", "kernels", "export"} <= set(mapped)
    for package, folder in {"": root / "src" / "flashelmo", **mapped}.items():
        spec = find_spec(f"flashelmo.{package}".rstrip("."))
        assert spec is not None and spec.origin is not None, f"setup.py does not map {folder}"
        installed = Path(spec.origin).parent
        files = {path.relative_to(folder) for path in folder.rglob("*.py")}
        sources = files | {path.relative_to(folder) for path in folder.rglob("*.[ch]")}
        assert sources <= {path.relative_to(installed) for path in installed.rglob("*.*")}
        for inner in {path.parent for path in files}:
            assert inner / "__init__.py" in files, f"{folder / inner} has no __init__.py, so no wheel would hold it"


def test_types_are_installed() -> None:
    assert flashelmo.__file__ is not None
    assert (Path(flashelmo.__file__).parent / "py.typed").is_file()


def test_metadata() -> None:
    said = distribution("flashelmo").metadata
    assert version("flashelmo") == flashelmo.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", flashelmo.__version__)
    assert (said.get_all("License-Expression") or said.get_all("License")) == ["Apache-2.0"]
    assert set(said.get_all("Provides-Extra") or []) == EXTRAS
    commands = distribution("flashelmo").entry_points.select(group="console_scripts")
    assert {(command.name, command.value) for command in commands} == {("flashelmo", "flashelmo.cli:main")}


@pytest.mark.parametrize("package", ["torch", "triton", "onnx", "onnxruntime", "openvino", "matplotlib", "pytest"])
def test_plain_install_stays_light(package: str) -> None:
    assert package not in needed_by("flashelmo")
    assert (package in needed_by("flashelmo", "dev")) == (package != "triton" or sys.platform == "linux")


def test_sizes_on_the_disk_name_the_large_and_sum_up_the_small() -> None:
    found = {"pyarrow 1": 171.33, "numpy 2": 1.0, "idna 3": 0.94, "tqdm 4": 0.07}
    assert rounded(found) == {"total": 173.3, "pyarrow 1": 171.3, "numpy 2": 1.0, "2 others": 1.0}


def test_constraints_pin_all_that_is_installed_for_development(root: Path) -> None:
    needed = {name for name in needed_by("flashelmo", "dev") if not name.startswith(("cuda-", "nvidia-"))}
    pins = constraints(root)  # PyTorch's build for CUDA pins those two itself
    assert needed - set(pins) == set(), "not pinned"
    for name in needed:
        assert re.fullmatch(r"==[\w.]+", str(pins[name].specifier)), f"{pins[name]} is no exact version"


def test_ranges_allow_the_pinned_versions(root: Path) -> None:
    pins = constraints(root)
    for requirement in map(Requirement, requires("flashelmo") or []):
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is not None:
            pinned = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(pinned), f"{requirement} excludes {pinned}"
            assert "==" not in str(requirement.specifier), "exact versions belong into constraints.txt"


def test_all_tell_the_same_version(root: Path) -> None:
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, flags=re.MULTILINE) == [flashelmo.__version__]
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"^## (\S+)", changes, flags=re.MULTILINE)[0]
    assert newest == flashelmo.__version__


def test_every_python_that_is_promised_is_tried(root: Path) -> None:
    said = distribution("flashelmo").metadata
    promised = {line.rpartition(" :: ")[2] for line in said.get_all("Classifier") or [] if ":: Python :: 3." in line}
    workflow = (root / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    (matrix,) = re.findall(r"python: \[(.+)\]", workflow)
    assert set(re.findall(r"3\.\d+", matrix)) == promised


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_refuses_an_old_python_before_it_makes_an_environment(root: Path, tmp_path: Path) -> None:
    """As macOS has one, 3.9: a second try with another PYTHON would find that environment, and fail likewise."""
    old = tmp_path / "old"
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; sys.version_info = (3, 9, 6)\n$2"\n', "utf-8")
    old.chmod(0o755)
    command = ["make", f"--file={root / 'Makefile'}", ".venv/bin/python", f"PYTHON={old}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "expected Python 3.10 or newer, found 3.9; PYTHON=" in done.stderr, done.stderr
    assert not (tmp_path / ".venv").exists()
