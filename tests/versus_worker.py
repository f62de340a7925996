"""One side of `tests/versus.py`: embeds and times what it is told, a line of JSON in, a line of JSON out.

It runs on whichever package its side has, so that it uses nothing but what users import.
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import flashelmo
from flashelmo import ElmoEmbedder, FlashElmoError

PACKAGES = ("numpy", "onnxruntime", "openvino", "torch", "triton")


class Side:
    """Answers `tests/versus.py`; its public methods are what may be asked."""

    _embedder: ElmoEmbedder

    def about(self) -> dict[str, str]:
        """Where the package lies, and the versions of what computes."""
        found = {"package": str(Path(str(flashelmo.__file__)).resolve().parent), "python": platform.python_version()}
        for package in PACKAGES:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return found

    def load(self, model: str, settings: dict[str, Any]) -> None:
        """Make the embedder that the other methods use."""
        self._embedder = ElmoEmbedder.load(model, **settings)

    def vectors(self, sentences: Sequence[Sequence[str]], options: dict[str, Any], to: str) -> None:
        """Write the vectors of all sentences to an NPZ file, in order."""
        np.savez(to, *self._embedder.embed(sentences, **options))

    def bulk(self, sentences: Sequence[Sequence[str]]) -> float:
        """Tokens a second, all layers of all sentences."""
        start = time.perf_counter()
        n_tokens: int = sum(vectors.shape[1] for vectors in self._embedder.embed(sentences))
        return n_tokens / (time.perf_counter() - start)

    def single(self, sentence: Sequence[str], repeats: int) -> float:
        """Tokens a second of one sentence alone, by the median of some calls; one more before them is not timed."""
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            self._embedder.embed_sentence(sentence)
            seconds.append(time.perf_counter() - start)
        return len(sentence) / median(seconds[1:])


def main() -> None:
    """Answer until standard input ends; an argument is the file that mends Triton's interpreter."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for repairs in sys.argv[1:]:
        runpy.run_path(repairs)["repair"]()
    side = Side()
    for line in sys.stdin:
        method, arguments = json.loads(line)
        try:
            answer = {"value": getattr(side, method)(*arguments)}
        except FlashElmoError as error:
            answer = {"refused": str(error)}
        except Exception:
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
