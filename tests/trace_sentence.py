"""The files of a checkout that a sentence passes through: `python trace_sentence.py CHECKOUT MODEL DEVICE` prints JSON.

A file counts where one of its functions runs, in any thread, other than while a module is imported.
"""

import json
import os
import runpy
import sys
import threading
from functools import cache
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any

SENTENCE = ["The", "cat", "sat"]
PARTS = ("src/", "engine/", "kernels/", "export/")
real_path = cache(os.path.realpath)  # code that was compiled under a link's name keeps that name


class Tracer:
    """Notes which files under a folder run a function; this one does not count."""

    def __init__(self, folder: Path) -> None:
        self._folder = f"{folder}{os.sep}"
        self._here = __file__  # module names are gone when the last threads end
        self._files: set[str] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """As `sys.setprofile` and `threading.setprofile` want it."""
        name = real_path(frame.f_code.co_filename)
        is_function = event == "call" and frame.f_code.co_flags & CO_OPTIMIZED and name != self._here
        if is_function and self._is_ours(name) and not self._is_import(frame):
            self._files.add(name.removeprefix(self._folder))

    def _is_ours(self, name: str) -> bool:
        """Whether a file is the checkout's own: not of an environment that lies in it, and not the tests'."""
        return name.startswith(self._folder) and name.removeprefix(self._folder).startswith(PARTS)

    def _is_import(self, frame: FrameType | None) -> bool:
        """Whether a module of the folder is being imported, further up."""
        while frame is not None:
            code = frame.f_code
            if (
                code.co_name == "<module>"
                and real_path(code.co_filename).startswith(self._folder)
                and code.co_filename != self._here
            ):
                return True
            frame = frame.f_back
        return False

    def take(self) -> list[str]:
        """The files since the last call."""
        files, self._files = sorted(self._files), set()
        return files


def main(checkout: Path, model: str, device: str) -> dict[str, list[str]]:
    """Files that run while a model is loaded, while it embeds its first sentence, and the same once more."""
    if device == "interpreter":
        os.environ["TRITON_INTERPRET"] = "1"
        runpy.run_path(str(Path(__file__).with_name("interpreter.py")))["repair"]()
    sys.path.insert(0, str(checkout / "src"))
    import flashelmo

    flashelmo.__path__.append(str(checkout))  # its other folders are subpackages, as setup.py maps them
    tracer, files = Tracer(checkout), {}
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    try:
        embedder = flashelmo.ElmoEmbedder.load(model, device=device, precision="fp32")
        files["load"] = tracer.take()
        for call in ("first", "again"):
            embedder.embed_sentence(SENTENCE)
            files[call] = tracer.take()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return files


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]).resolve(), *sys.argv[2:])))
