"""What an install takes on the disk, by package: fresh environments, one for each set of extras.

    python tests/install_sizes.py [--extras "" cpu export …] [--from CHECKOUT] [--as before] [--out FILE.json]

Sizes are of the files that each package lists, in MB (10^6 bytes), without what Python compiles later, and without pip
and setuptools. Versions are those of constraints.txt. PyTorch is the build that pip takes: that for CPUs where its
index, or a folder with it, is among pip's sources, as it was for the committed results.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("", "cpu", "cpu,openvino", "cpu,download", "cpu,serve", "client", "torch", "export")
NOT_COUNTED = {"pip", "setuptools"}
SMALL = 1.0  # MB: packages below it are counted together


def sizes(checkout: Path, extras: str, folder: Path) -> dict[str, float]:
    """MB of each package, the largest first, in a fresh environment."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    source = f"{checkout}[{extras}]" if extras else str(checkout)
    options = ["--quiet", "--no-compile", "--disable-pip-version-check", f"--constraint={checkout}/constraints.txt"]
    subprocess.run([python, "-m", "pip", "install", *options, source], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    found: dict[str, float] = {}
    for package in distributions(path=[str(site)]):
        paths = {Path(str(package.locate_file(file))) for file in package.files or []}
        name = f"{package.metadata['Name']} {package.version}"
        if package.metadata["Name"] not in NOT_COUNTED:
            found[name] = sum(path.stat().st_size for path in paths if path.is_file()) / 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def rounded(found: Mapping[str, float]) -> dict[str, float]:
    """With the small ones as one, and the total."""
    shown = {name: round(size, 1) for name, size in found.items() if size >= SMALL}
    others = [size for size in found.values() if size < SMALL]
    return {"total": round(sum(found.values()), 1), **shown, f"{len(others)} others": round(sum(others), 1)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--extras", nargs="*", default=EXTRAS, help="sets of extras, each as 'cpu,serve'")
    parser.add_argument("--from", type=Path, default=ROOT, dest="checkout", help="checkout to install")
    parser.add_argument("--as", default="now", dest="name", help="what the run is called in the file")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    commit = ["git", "-C", str(given.checkout), "rev-parse", "HEAD"]
    id_ = subprocess.run(commit, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    about = {"commit": id_, "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    results: dict[str, dict[str, float]] = {}
    for extras in given.extras:
        with tempfile.TemporaryDirectory() as folder:
            results[extras] = rounded(sizes(given.checkout.resolve(), extras, Path(folder)))
        print(json.dumps({extras: results[extras]}), flush=True)
    if given.out is not None:
        kept = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
        kept[given.name] = {**about, "megabytes": results}
        given.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
