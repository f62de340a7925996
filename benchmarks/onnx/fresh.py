"""The time to open an exported file, which only a fresh process can tell.

`python -m flashelmo.benchmarks.onnx.fresh FILE THREADS` prints it as JSON; THREADS is a number or null.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path

# What opening a file imports; the time for that is given by itself.
IMPORTS = ("flashelmo.export.onnx_elmo",)


def load(path: Path, threads: int | None) -> dict[str, float]:
    """Seconds to import what running a file needs, and from there to ready."""
    start = time.perf_counter()
    for name in IMPORTS:
        import_module(name)
    imported = time.perf_counter()
    from flashelmo.export import OnnxElmo

    OnnxElmo(path, threads=threads)
    return {"imports": imported - start, "load": time.perf_counter() - imported}


if __name__ == "__main__":
    print(json.dumps(load(Path(sys.argv[1]), json.loads(sys.argv[2]))))
