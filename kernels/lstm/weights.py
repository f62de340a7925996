"""An LSTM layer's weights: as models store them, and laid out once at load as kernels read them.

A layout belongs to the variants that read it: the function that makes it is named in their rows of `layer.VARIANTS`,
and `LstmWeights` keeps its result. `interleave` makes the one that fused and hoisted steps read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from flashelmo.kernels.arguments import FLOATS, check


class Shape(NamedTuple):
    """Sizes of a model; kernels are compiled for each."""

    D: int
    P: int
    C: int


@dataclass(frozen=True, eq=False)
class CanonicalLstm:
    """The weights of one layer as models store them (`engine.model.weights`), D directions.

    Attributes:
        input, recurrent: [D, 4, P, C], gates i, f, g, o.
        bias: [D, 4, C], the forget gate's 1 included.
        projection: [D, C, P], or None where P = C.
        cell_clip, projection_clip: bounds, or None.

    Raises:
        ValueError: a tensor does not have the expected shape or type.
    """

    input: Tensor
    recurrent: Tensor
    bias: Tensor
    projection: Tensor | None
    cell_clip: float | None = None
    projection_clip: float | None = None

    def __post_init__(self) -> None:
        check("input", self.input, [None, 4, None, None], FLOATS)
        D, P, C = self.shape
        check("recurrent", self.recurrent, [D, 4, P, C], FLOATS)
        check("bias", self.bias, [D, 4, C], FLOATS)
        if self.projection is not None:
            check("projection", self.projection, [D, C, P], FLOATS)
        elif P != C:
            raise ValueError(f"projection: expected a tensor where P = {P} and C = {C} differ, found None")

    @property
    def shape(self) -> Shape:
        """The sizes D, P, C."""
        D, _, P, C = self.input.shape
        return Shape(D, P, C)

    def projected(self) -> CanonicalLstm:
        """Return these with a projection: the identity, which is exact, without a clip, as in bilm-tf."""
        if self.projection is not None:
            return self
        D, _, C = self.shape
        identity = torch.eye(C, dtype=torch.float32, device=self.input.device).expand(D, C, C).contiguous()
        return replace(self, projection=identity, projection_clip=None)


def bound_of(clip: float | None) -> float:
    """Return a clip as kernels take it: infinite where it is None."""
    return float("inf" if clip is None else clip)


class Format(NamedTuple):
    """How weights are packed.

    Attributes:
        dtype: the compute type.
        int8: multiply the gates in 8 bits (`int8`); the projection keeps the compute type.
        device: where they are placed.
    """

    dtype: torch.dtype
    int8: bool
    device: torch.device | str


class Layout(Protocol):
    """Weights laid out as some kernels read them."""

    def check(self, shape: Shape, dtype: torch.dtype) -> None:
        """Raise ValueError unless the tensors have the shape, type and layout that the kernels rely on."""


AnyLayout = TypeVar("AnyLayout", bound=Layout)


@dataclass(frozen=True, eq=False)
class LstmWeights:
    """One layer's weights on a device, in each layout that a variant reads.

    Attributes:
        shape: D, P, C.
        dtype: the compute type.
        int8: the gates are multiplied in 8 bits.
        device: where they are.
        layouts: by the function that made each; those that do not serve such weights are left out.
        bound: the largest error, against the reference, of variants that must be proven; None for no bound.
        cache: the folder of what was found of them before; None keeps nothing from process to process.
        verdicts: whether a variant is right, by its name, whether there is a skip connection, whether its tiles are
            those for any number of rows, and whether the input part is by word (`proven`).

    Raises:
        ValueError: a layout is not what its kernels rely on.
    """

    shape: Shape
    dtype: torch.dtype
    int8: bool
    device: torch.device
    layouts: Mapping[Callable[[CanonicalLstm, Format], Layout | None], Layout]
    bound: float | None = None
    cache: Path | None = None
    verdicts: dict[tuple[str, bool, bool, bool], bool] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for layout in self.layouts.values():
            layout.check(self.shape, self.dtype)

    def layout(self, pack: Callable[[CanonicalLstm, Format], AnyLayout | None]) -> AnyLayout:
        """Return the layout that `pack` made.

        Raises:
            KeyError: no variant that reads this layout serves such weights.
        """
        return cast(AnyLayout, self.layouts[pack])


class Interleaved(NamedTuple):
    """The layout of fused and hoisted steps.

    The four gates of a cell are adjacent, so that one block of columns holds all that its cells need, and the recurrent
    weight is below that of the input, so that [x, r] @ [W_x; W_r] is one product.

    Attributes:
        input: [D, P, 4C], column 4c + k is gate k (i, f, g, o) of cell c.
        recurrent: [D, P, 4C], likewise; it follows `input` in memory.
        bias: float32 [D, 4C].
        projection: [D, C, P].
        cell_clip, projection_clip: bounds; infinite where nothing is clipped.
    """

    input: Tensor
    recurrent: Tensor
    bias: Tensor
    projection: Tensor
    cell_clip: float
    projection_clip: float

    def check(self, shape: Shape, dtype: torch.dtype) -> None:
        """See `Layout`."""
        D, P, C = shape
        check("bias", self.bias, [D, 4 * C], [torch.float32])
        check("projection", self.projection, [D, C, P], [dtype])
        for name, weight in (("input", self.input), ("recurrent", self.recurrent)):
            check(name, weight[0], [P, 4 * C], [dtype])
            if weight.shape[0] != D or weight.stride(0) != 8 * P * C:
                raise ValueError(f"{name}: expected one of {D} directions as `interleave` lays them out, found another")
        behind = self.recurrent.data_ptr() - self.input.data_ptr()
        if behind != 4 * P * C * dtype.itemsize and self.input.device.type != "meta":
            raise ValueError("recurrent: expected to lie behind input in memory, as `interleave` lays them out")


def interleave(weights: CanonicalLstm, format: Format) -> Interleaved | None:
    """Return the layout of fused and hoisted steps, for a layer with projection; None for 8-bit products."""
    dtype, int8, device = format
    if int8:
        return None
    stacked = torch.stack([_gates_last(weights.input), _gates_last(weights.recurrent)], dim=1)  # [D, 2, P, 4C]
    in_type = stacked.to(device).to(dtype)
    return Interleaved(
        input=in_type[:, 0],
        recurrent=in_type[:, 1],
        bias=_gates_last(weights.bias).to(device, torch.float32).contiguous(),
        projection=cast(Tensor, weights.projection).to(device).to(dtype),
        cell_clip=bound_of(weights.cell_clip),
        projection_clip=bound_of(weights.projection_clip),
    )


def _gates_last(tensor: Tensor) -> Tensor:
    """Permute [D, 4, ..., C] to [D, ..., 4C], with the gates of each cell adjacent."""
    return tensor.movedim(1, -1).flatten(-2)
