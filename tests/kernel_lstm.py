"""A random LSTM layer over random forests, for the kernels and for the reference."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flashelmo.kernels import reference
from flashelmo.kernels.launch import Precision
from flashelmo.kernels.linear import linear
from flashelmo.kernels.lstm_layer import Slab, new_tensors, slab_inputs
from flashelmo.kernels.lstm_tensors import LstmTensors
from flashelmo.kernels.lstm_weights import LstmWeights, pack_lstm
from flashelmo.kernels.nodes import Nodes


@dataclass(frozen=True)
class RandomLayer:
    """Canonical weights in float32, [D, 4, P, C], [D, 4, C] and [D, C, P], nodes, and each node's input [D, N, P]."""

    input_weight: Tensor
    recurrent_weight: Tensor
    bias: Tensor
    projection: Tensor | None
    cell_clip: float | None
    projection_clip: float | None
    nodes: Nodes
    x: Tensor
    dtype: torch.dtype
    device: str

    def pack(self, *, int8: bool = False) -> LstmWeights:
        return pack_lstm(
            self.input_weight,
            self.recurrent_weight,
            self.bias,
            self.projection,
            cell_clip=self.cell_clip,
            projection_clip=self.projection_clip,
            dtype=self.dtype,
            int8=int8,
            device=self.device,
        )

    def rounded(self) -> "RandomLayer":
        """The weights as the compute type holds them, so that what remains to be compared is the computation."""

        def through(tensor: Tensor) -> Tensor:
            return tensor.to(self.dtype).float()

        return replace(
            self,
            input_weight=through(self.input_weight),
            recurrent_weight=through(self.recurrent_weight),
            projection=None if self.projection is None else through(self.projection),
        )

    def poisoned(self, *, skip: bool = False, hoisted: bool = False, precision: Precision = "ieee") -> LstmTensors:
        """Tensors in which all that the kernels must write is NaN."""
        weights = self.pack()
        tensors = new_tensors(weights, self.nodes, self.x, skip=skip)
        n_roots = self.nodes.n_roots
        tensors.hidden[:, n_roots:] = torch.nan
        tensors.cell[0, :, n_roots:] = torch.nan
        tensors.cell[1] = torch.nan
        tensors.exposed.fill_(torch.nan)
        tensors.partial.fill_(torch.nan)
        if skip:
            tensors.outputs[:, n_roots:] = torch.nan
        if hoisted:
            x = slab_inputs(Slab("hoisted", 1, self.nodes.n_depths), self.nodes, self.x, False)
            tensors = tensors._replace(
                x_gates=linear(x, weights.input, weights.bias, out_dtype=torch.float32, precision=precision)
            )
        return tensors

    def expected(self, roots: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states [D, N, P] and cells [D, N, C] in float64; zero beyond a direction's last node."""
        D, _, P, C = self.input_weight.shape
        hidden, cell = torch.zeros(D, self.nodes.n_nodes, P).double(), torch.zeros(D, self.nodes.n_nodes, C).double()
        if roots is not None:
            hidden[:, : self.nodes.n_roots], cell[:, : self.nodes.n_roots] = (root.double().cpu() for root in roots)
        for d, starts in enumerate(self.nodes.depths):
            projection = None if self.projection is None else self.projection[d].double()
            for before, first, last in zip(starts, starts[1:], starts[2:], strict=False):
                parents = before + self.nodes.parents[d, first:last].long().cpu()
                hidden[d, first:last], cell[d, first:last] = reference.lstm_step(
                    self.x[d, first:last].double().cpu(),
                    hidden[d, parents],
                    cell[d, parents],
                    self.input_weight[d].double(),
                    self.recurrent_weight[d].double(),
                    self.bias[d].double(),
                    projection,
                    self.cell_clip,
                    self.projection_clip,
                )
        return hidden, cell


def random_layer(
    device: str,
    *,
    sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5, 2), (1, 2, 20)),
    P: int = 12,
    C: int = 24,
    projection: bool = True,
    cell_clip: float | None = 0.5,
    projection_clip: float | None = 0.4,
    n_roots: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> RandomLayer:
    """Nodes per depth are `sizes`, a tuple for each direction; parents are random."""
    rng = torch.Generator().manual_seed(seed)
    D, scale = len(sizes), P**-0.5

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    forests = []
    for counts in sizes:
        above = (n_roots, *counts[:-1])
        parents = [torch.randint(0, a, (n,), generator=rng) for a, n in zip(above, counts, strict=True)]
        depths = torch.tensor([0, *counts]).cumsum(0)
        forests.append((torch.arange(sum(counts)), torch.cat(parents), depths))
    nodes = Nodes.of(forests, n_words=max(map(sum, sizes)), n_roots=n_roots, device=device)
    return RandomLayer(
        input_weight=2 * scale * normal(D, 4, P, C),
        recurrent_weight=2 * scale * normal(D, 4, P, C),
        bias=normal(D, 4, C),
        projection=2 * C**-0.5 * normal(D, C, P) if projection else None,
        cell_clip=cell_clip,
        projection_clip=projection_clip,
        nodes=nodes,
        x=normal(D, nodes.n_nodes, P).to(device, dtype),
        dtype=dtype,
        device=device,
    )


def real_nodes(values: Tensor, nodes: Nodes) -> Tensor:
    """The rows of the nodes there are, roots excepted: [D, N, P] -> [nodes, P], in float64 in the host's memory."""
    rows = [values[d, starts[1] : starts[-1]] for d, starts in enumerate(nodes.depths)]
    return torch.cat(rows).double().cpu()
