"""What only a fresh process can tell: the time to load a model, and the peak memory of a run.

`python -m flashelmo.benchmarks.fresh load|memory FOLDER OPTIONS [TEXT]` prints it as JSON; cost.py runs that.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

# What loading a model imports; the time for that is given by itself.
IMPORTS = ("flashelmo.engine.embedder", "flashelmo.engine.cpu.ort")
IMPORT_CODE = "import time; start = time.perf_counter(); import flashelmo; print(time.perf_counter() - start)"


def load(folder: Path, options: dict[str, Any]) -> dict[str, float]:
    """Seconds to import what embedding needs, and to load a model from there to ready."""
    start = time.perf_counter()
    for name in IMPORTS:
        import_module(name)
    imported = time.perf_counter()
    from flashelmo import ElmoEmbedder

    ElmoEmbedder.load(folder, **options)
    return {"imports": imported - start, "load": time.perf_counter() - imported}


def memory(folder: Path, options: dict[str, Any], text: Path) -> dict[str, float]:
    """Peak resident bytes of this process when the model is loaded, and when the text is embedded."""
    from flashelmo import ElmoEmbedder
    from flashelmo.engine.text.windows import read_windows

    embedder = ElmoEmbedder.load(folder, **options)
    loaded = _peak_bytes()
    max_sentences, max_tokens = embedder.window_limits
    windows = read_windows(text, max_sentences=max_sentences, max_tokens=max_tokens)
    n_tokens = 0
    for _, vectors in embedder.embed_windows(windows):
        n_tokens += sum(sentence.shape[1] for sentence in vectors)
    return {"loaded": loaded, "peak": _peak_bytes(), "tokens": n_tokens}


def run_fresh(command: str, folder: Path, options: dict[str, Any], *arguments: object) -> dict[str, float]:
    """What one of the functions above returns in a fresh process."""
    module = ["-m", "flashelmo.benchmarks.fresh", command, str(folder), json.dumps(options), *map(str, arguments)]
    values: dict[str, float] = json.loads(run_python(*module))
    return values


def import_seconds() -> float:
    """Seconds of `import flashelmo` in a fresh process."""
    return float(run_python("-c", IMPORT_CODE))


def run_python(*arguments: str) -> str:
    """Standard output of a fresh interpreter; RuntimeError with its standard error where it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a fresh process failed:\n{done.stderr}")
    return done.stdout


def _peak_bytes() -> float:
    """Largest resident size so far. (`ru_maxrss` would count what the parent held when this process was made.)"""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        scale = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def main(arguments: list[str]) -> None:
    """Run a command and print its result."""
    command, folder, options, *texts = arguments
    if command == "load":
        result = load(Path(folder), json.loads(options))
    else:
        result = memory(Path(folder), json.loads(options), Path(texts[0]))
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
