"""Cases of layers whose compiled kernels run on a host, and a program that compiles them, as the interpreter does not.

`python tests/kernel_ptx.py NAME ...` prints the kernels of some cases as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from kernel_lstm import FLOATS, RandomLayer, launches_of, random_layer
from ptx_machine import Code

from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm.run import InputWords, LayerRun

MACHINE_KERNELS = "persistent_kernel", "few_gates_kernel", "few_projection_kernel"
N_WORDS = 7


@dataclass(frozen=True)
class Case:
    """A layer, and the launches of a variant that compute it.

    Attributes:
        sizes: rows of each depth, for each direction.
        cuts: depths before which another launch begins.
    """

    variant: str
    kind: str
    sizes: tuple[tuple[int, ...], ...]
    cuts: tuple[int, ...] = ()
    skip: bool = False
    by_word: bool = False

    def layer(self, seed: int = 0) -> RandomLayer:
        """Random weights and nodes."""
        layer = random_layer("cpu", sizes=self.sizes, P=128, C=512, dtype=FLOATS[self.kind], n_roots=2, seed=seed)
        return replace(layer, x=layer.x[:, self._words(layer)].contiguous() if self.by_word else layer.x).rounded()

    def run(self, layer: RandomLayer) -> LayerRun:
        """From NaN."""
        run = layer.poisoned(skip=self.skip)
        if not self.by_word:
            return run
        which, distinct = self._words(layer), torch.zeros_like(layer.x)
        for word in range(N_WORDS):
            distinct[:, word] = layer.x[:, which == word][:, 0]
        of_nodes, count = which.int().expand(len(self.sizes), -1).contiguous(), torch.tensor([N_WORDS]).int()
        words = InputWords.of(run.weights, distinct, of_nodes, count)
        words.gates.fill_(torch.nan)
        return replace(run, words=words)

    def launches(self, run: LayerRun) -> Iterator[Launch]:
        """Of all depths, in order."""
        bounds = [1, *self.cuts, run.nodes.n_depths + 1]
        for first, last in pairwise(bounds):
            yield from launches_of(run, self.variant, range(first, last))

    def _words(self, layer: RandomLayer) -> torch.Tensor:
        return torch.arange(layer.nodes.n_nodes) * 5 % N_WORDS


CASES = {
    "ragged": Case("persistent", "bf16", ((3, 9), (5,)), skip=True),
    "fp16": Case("persistent", "fp16", ((1, 16), (7,))),
    "many rows": Case("persistent", "fp16", ((20,), (32,)), skip=True),
    "cut": Case("persistent", "bf16", ((1, 5, 16, 17, 32), (1, 3, 9, 9, 17)), cuts=(4,)),
    "by word": Case("persistent", "bf16", ((3, 2), (5,)), by_word=True),
    "small": Case("persistent", "bf16", ((2, 3, 2), (1,))),
    "few_rows": Case("few_rows", "bf16", ((9, 3), (20,)), skip=True),
}


def is_for_machine(launch: Launch) -> bool:
    """Whether a launch's compiled kernel is what is tested; others prepare its inputs."""
    return launch.kernel.fn.__name__ in MACHINE_KERNELS


def compiled(names: Sequence[str]) -> dict[str, list[Code]]:
    """Kernels of the cases' launches, those that are tested, in order; compiled by another process."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    folders = [str(Path(__file__).parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    done = subprocess.run(
        [sys.executable, __file__, *names], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {name: [Code(*each) for each in codes] for name, codes in found.items()}


def _compile(case: Case) -> list[Code]:
    from flashelmo.benchmarks.kernels.resources import compile_launch, flat

    found: list[Any] = []
    for launch in filter(is_for_machine, case.launches(case.run(case.layer()))):
        kernel = compile_launch(launch, 90)
        metadata, signature = kernel.metadata, flat(kernel.src.signature)
        found.append(Code(kernel.asm["ptx"], signature, metadata.shared, metadata.num_warps))
    return found


if __name__ == "__main__":
    print(json.dumps({name: _compile(CASES[name]) for name in sys.argv[1:]}))
