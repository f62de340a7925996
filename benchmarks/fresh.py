"""What only a fresh process can tell: the time to load a model or a file, and the peak memory of a run.

`python -m flashelmo.benchmarks.fresh load|memory PATH OPTIONS [TEXT]` prints it as JSON; the suites run that. Only the
standard library is imported at the top, as what is already imported costs no time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

# What loading imports, for a model and for an exported file; the time for that is given separately.
MODEL_IMPORTS = ("flashelmo.engine.embedder", "flashelmo.engine.cpu.ort")
FILE_IMPORTS = ("flashelmo.export.onnx_elmo",)


def load(path: Path, options: dict[str, Any]) -> dict[str, float]:
    """Return the seconds to import what embedding needs, and from then until a model or exported file is ready."""
    start = time.perf_counter()
    modules = [import_module(name) for name in (FILE_IMPORTS if path.suffix == ".onnx" else MODEL_IMPORTS)]
    imported = time.perf_counter()
    (modules[0].OnnxElmo if path.suffix == ".onnx" else modules[0].ElmoEmbedder.load)(path, **options)
    return {"imports": imported - start, "load": time.perf_counter() - imported}


def memory(folder: Path, options: dict[str, Any], text: Path) -> dict[str, float]:
    """Return this process's peak resident bytes when the model is loaded, and when the text is embedded."""
    from flashelmo.benchmarks.contestant import engine

    way = engine(folder, options)
    loaded = _peak_bytes()
    way.run(text)
    return {"loaded": loaded, "peak": _peak_bytes()}


def run_fresh(command: str, path: Path, options: dict[str, Any], *arguments: object) -> dict[str, float]:
    """Return the result of `load` or `memory` in a fresh process."""
    given = [command, str(path), json.dumps(options), *map(str, arguments)]
    python = [sys.executable, "-m", "flashelmo.benchmarks.fresh", *given]
    done = subprocess.run(python, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a fresh process failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
    values: dict[str, float] = json.loads(done.stdout)
    return values


def process_of(pid: int) -> Any:
    """Return a running process as psutil sees it.

    Raises:
        MissingExtraError: psutil is not installed.
    """
    from flashelmo.engine.errors import MissingExtraError

    try:
        import psutil
    except ImportError as error:
        raise MissingExtraError("psutil", "dev", "time and memory of other processes") from error
    return psutil.Process(pid)


def _peak_bytes() -> float:
    """Return the largest resident size so far. (`ru_maxrss` would include what the parent held at the fork.)"""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


if __name__ == "__main__":
    command, path, options, *texts = sys.argv[1:]
    given = Path(path), json.loads(options)
    print(json.dumps(load(*given) if command == "load" else memory(*given, Path(texts[0]))))
