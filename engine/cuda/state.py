"""The LSTM states of rows, carried from window to window in stateful runs."""

from __future__ import annotations

import torch
from torch import Tensor

from flashelmo.engine.cuda.model import DeviceModel
from flashelmo.engine.errors import FlashElmoError
from flashelmo.kernels.carry import Ends, carry_launch

INITIAL_ROWS = 64  # grows with the largest batch


class DeviceState:
    """Final states of rows, for each layer; a smaller batch updates only the first rows (AllenNLP, bilm-tf).

    Args:
        model: the one whose states these are.

    Attributes:
        hidden, cell: [layer][D, rows, P] and float32 [layer][D, rows, C]; replaced when there are more rows.
    """

    def __init__(self, model: DeviceModel) -> None:
        self._model = model
        self._is_whole = True
        self.hidden: list[Tensor] = []
        self.cell: list[Tensor] = []
        self.reserve(INITIAL_ROWS)

    @property
    def n_rows(self) -> int:
        """The number of rows, without a spare one at the end that a bucket's padding rows write to."""
        return self.hidden[0].shape[1] - 1

    def reserve(self, n_rows: int) -> None:
        """Make room for at least so many rows; new ones start at zero.

        Raises:
            FlashElmoError: the state is lost: some layers or rows are older than others.
        """
        if not self._is_whole:
            raise FlashElmoError("stateful: the batch before was interrupted and the state is lost; call reset_state()")
        if self.hidden and n_rows <= self.n_rows:
            return
        config, device = self._model.config, self._model.device
        kept = self.n_rows if self.hidden else 0
        n_rows = max(n_rows, 2 * kept)
        sizes = (2, n_rows + 1, config.projection_size), (2, n_rows + 1, config.cell_size)
        hidden = [torch.zeros(sizes[0], dtype=self._model.dtype, device=device) for _ in range(config.n_layers)]
        cell = [torch.zeros(sizes[1], dtype=torch.float32, device=device) for _ in range(config.n_layers)]
        for larger, before in zip((*hidden, *cell), (*self.hidden, *self.cell), strict=False):
            larger[:, :kept] = before[:, :kept]
        self.hidden, self.cell = hidden, cell  # only now: if an error is raised, the old state is kept

    def reset(self) -> None:
        """Reset every row's state to zero."""
        for tensor in (*self.hidden, *self.cell):
            tensor.zero_()
        self._is_whole = True

    def lose(self) -> None:
        """Refuse to continue from here until it is reset."""
        self._is_whole = False

    def roots(self, layer: int, first_row: int, n_rows: int) -> tuple[Tensor, Tensor]:
        """Return the start states of rows first_row ...: hidden [D, n_rows, P] and cell [D, n_rows, C]."""
        rows = slice(first_row, first_row + n_rows)
        return self.hidden[layer][:, rows], self.cell[layer][:, rows]

    def write_back(self, parts: dict[str, Tensor], final: list[tuple[Tensor, Tensor]]) -> None:
        """Store the rows' new states; all layers together, after the last step that can fail.

        Args:
            parts: those of `layout.Layout`; final_nodes, final_ranks, final_slots and state_rows [B] say where rows end
                and where their states go.
            final: for each layer, hidden [D, N, P] of all nodes and cell [2, D, R, C] of the last two depths that had
                each row.
        """
        ends = Ends(*(parts[name] for name in ("final_nodes", "final_ranks", "final_slots", "state_rows")))
        self._is_whole = False
        for layer, (hidden, cell) in enumerate(final):
            carry_launch(hidden, cell, ends, self.hidden[layer], self.cell[layer]).run()
        self._is_whole = True
