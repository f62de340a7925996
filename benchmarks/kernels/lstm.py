"""The LSTM kernels' work: a random layer over random forests, its launches in each variant, and what they compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashelmo.benchmarks.kernels.card import D
from flashelmo.benchmarks.kernels.problems import Maker, dtype_of, relative_error
from flashelmo.engine.cuda import layout
from flashelmo.engine.cuda.compute import nodes_of
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.precision import PRECISIONS
from flashelmo.engine.text.schedule import Forest, Schedule
from flashelmo.kernels import reference
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm.layer import VARIANTS, pack_lstm
from flashelmo.kernels.lstm.proven import POLLS
from flashelmo.kernels.lstm.run import LaunchOptions, LayerRun, Nodes, new_tensors
from flashelmo.kernels.lstm.weights import CanonicalLstm, LstmWeights

N_ROOTS = 2
WAYS = {variant.name: variant for variant in VARIANTS}
HOISTED = ("persistent", "few_rows")  # among those for some cards
PORTABLE = ("hoisted", "fused")  # for every card; the others are for some


class LstmLayer:
    """One random layer; its packed weights are kept, as every schedule uses them.

    Args:
        host: make random numbers in host memory, for references; otherwise on the device.
    """

    def __init__(self, config: ElmoConfig, device: str, seed: int = 0, host: bool = False) -> None:
        self.config, self.device = config, device
        self.make = Maker.of(device, "fp32", seed, host)
        C, P, normal = config.cell_size, config.projection_size, self.make.normal
        inputs, recurrent = (normal(D, 4, P, C, scale=P**-0.5) for _ in range(2))
        bias, self.projection = normal(D, 4, C, scale=0.1), normal(D, C, P, scale=2 * C**-0.5)
        clips = config.cell_clip, config.projection_clip
        self.canonical = CanonicalLstm(inputs, recurrent, bias, self.projection, *clips)
        self._packed: dict[str, LstmWeights] = {}

    def weights(self, precision: str) -> LstmWeights:
        """Return the weights as the kernels read them."""
        if precision not in self._packed:
            int8 = PRECISIONS[precision].on("cuda").lstm_weights == "int8"
            self._packed[precision] = pack_lstm(
                self.canonical, dtype=dtype_of(precision), int8=int8, device=self.device
            )
        return self._packed[precision]


class LstmProblem:
    """A layer over random forests.

    Args:
        rows: nodes of each depth, for each direction.
        skip: whether there is a skip connection.
    """

    def __init__(self, layer: LstmLayer, rows: Sequence[Sequence[int]], skip: bool = False) -> None:
        self.layer, self._skip = layer, skip
        self._nodes = random_nodes(rows)
        on_device = {name: getattr(self._nodes, name).to(layer.device) for name in ("starts", "parents", "children")}
        self.nodes = replace(self._nodes, **on_device)
        P, C, normal = layer.config.projection_size, layer.config.cell_size, layer.make.normal
        # Numbers that every type represents exactly, so that one reference serves all.
        self._x = normal(D, self.nodes.n_nodes, P).bfloat16().float()
        self._roots = normal(D, N_ROOTS, P).bfloat16().float(), normal(D, N_ROOTS, C)

    def run(self, precision: str) -> LayerRun:
        """Return what the launches are made of, with random states, as in use."""
        weights = self.layer.weights(precision)
        x = self._x.to(weights.device, weights.dtype)
        roots = self._roots[0].to(weights.device, weights.dtype), self._roots[1].to(weights.device)
        tensors = new_tensors(weights, self.nodes, x, skip=self._skip, roots=roots)
        for tensor in (tensors.hidden, tensors.parent_hidden, tensors.cell, tensors.unprojected):
            if tensor.is_floating_point():
                tensor.normal_()
            else:
                tensor.random_(-64, 65)
        options = LaunchOptions(PRECISIONS[precision].on("cuda").products, polls=POLLS)  # what is wrong soon ends
        return LayerRun(weights, tensors, self.nodes, options)

    def launches(self, run: LayerRun, way: str) -> Iterator[Launch]:
        """Yield all launches of all depths in order."""
        return WAYS[way].launches(run, range(1, self.nodes.n_depths + 1))

    def steps(self, run: LayerRun, way: str) -> list[Launch]:
        """Return the launches of all depths in order, without what precedes all of them, which is computed here."""
        steps = []
        for launch in self.launches(run, way):
            if "depth" in launch.arguments:
                steps.append(launch)
            elif self.layer.device != "meta":
                launch.run()
        return steps

    def compute(self, precision: str, way: str) -> Tensor:
        """Run all steps on tensors filled with NaN where steps should write; return hidden states [D, N, P]."""
        run = self.run(precision)
        tensors = run.tensors
        tensors.poison()
        for launch in self.launches(run, way):
            launch.run()
        hidden: Tensor = tensors.hidden
        return hidden

    def error(self, precision: str, way: str) -> float:
        """Return ||found - expected|| / ||expected|| over all nodes' hidden states."""
        return relative_error(self._real(self.compute(precision, way).cpu()), self._real(self.expected))

    @cached_property
    def expected(self) -> Tensor:
        """Hidden states [D, N, P] in float64, by the reference on the host."""
        hidden = torch.zeros(self._x.shape).double()
        cell = torch.zeros(*self._x.shape[:2], self.layer.config.cell_size).double()
        hidden[:, :N_ROOTS], cell[:, :N_ROOTS] = (root.double() for root in self._roots)
        canonical, config = self.layer.canonical, self.layer.config
        tensors = (canonical.input, canonical.recurrent, canonical.bias, self.layer.projection)
        for d, starts in enumerate(self._nodes.depths):
            given: list[Any] = [tensor[d].double() for tensor in tensors]
            given += [config.cell_clip, config.projection_clip]
            for before, first, last in zip(starts, starts[1:], starts[2:], strict=False):
                parents = before + self._nodes.parents[d, first:last].long()
                states = self._x[d, first:last].double(), hidden[d, parents], cell[d, parents]
                hidden[d, first:last], cell[d, first:last] = reference.lstm_step(*states, *given)
        return hidden

    def _real(self, hidden: Tensor) -> Tensor:
        """Return the rows of existing nodes, without roots."""
        return torch.cat([hidden[d, starts[1] : starts[-1]] for d, starts in enumerate(self._nodes.depths)])


def serving(layer: LstmLayer, rows: int, precision: str) -> list[str]:
    """Return the variants that serve steps of so many rows, in order of preference."""
    run = LstmProblem(layer, ((rows,),) * D).run(precision)
    return [name for name, variant in WAYS.items() if variant.serves(run, rows)]


def kind_of_way(way: str) -> str:
    """Return the portable variant with the same products: "fused", or "hoisted" if the input's are done beforehand."""
    return way if way in PORTABLE else "hoisted" if way in HOISTED else "fused"


def kernel_name(launch: Launch) -> str:
    """Return the name of its function, such as "gates_kernel"."""
    return str(launch.kernel.fn.__name__)


def random_nodes(rows: Sequence[Sequence[int]]) -> Nodes:
    """Return forests with these rows per depth and random parents, in host memory, as the engine lays them out."""
    host = torch.Generator().manual_seed(sum(rows[0]))
    forward, backward = (_forest(each, host) for each in rows)
    schedule = Schedule(forward, backward, np.empty(0, np.int32), np.zeros(N_ROOTS + 1, np.int64))
    sizes = layout.Sizes.of(schedule, share=False, pooled=False, stateful=False)
    parts = layout.Layout.of(sizes)
    ints = np.empty(parts.size, np.int32)
    layout.fill(ints, sizes, schedule, np.arange(max(map(sum, rows)), dtype=np.int32))
    return nodes_of(parts.views(torch.from_numpy(ints)), sizes)


def _forest(rows: Sequence[int], host: torch.Generator) -> Forest:
    parents = [
        torch.randint(0, a, (n,), generator=host).sort().values for a, n in zip((N_ROOTS, *rows), rows, strict=False)
    ]
    nothing, depths = np.empty(0, np.int32), np.array([0, *accumulate(rows)])
    return Forest(np.arange(sum(rows), dtype=np.int32), torch.cat(parents).int().numpy(), depths, nothing, depths[:0])
