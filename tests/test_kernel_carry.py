"""The states that rows end with: copies, bit for bit, and nothing else of the state changes."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from flashelmo.kernels.carry import TILE, Ends, carry_launch


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


ENDS = Ends(integers(0), integers(0), integers(0), integers(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("P", "C"), [(1, 3), (12, 24), (520, 600)])
def test_states_go_where_they_are_carried_on(device: str, dtype: torch.dtype, P: int, C: int) -> None:
    D, N, R, S, B = 2, 9, TILE.rows + 3, TILE.rows + 7, TILE.rows + 1
    generator = torch.Generator().manual_seed(P)
    hidden = torch.randn(D, N, P, generator=generator).to(device, dtype)
    hidden_out = torch.randn(D, S, P, generator=generator).to(device, dtype)
    cell = torch.randn(2, D, R, C, generator=generator).to(device)
    cell_out = torch.randn(D, S, C, generator=generator).to(device)
    nodes, ranks, slots = (torch.randint(0, n, (B,), generator=generator).to(device) for n in (N, R, 2))
    rows = torch.randperm(S, generator=generator)[:B].to(device)
    expected_hidden, expected_cell = hidden_out.clone(), cell_out.clone()
    expected_hidden[:, rows] = hidden[:, nodes]
    expected_cell[:, rows] = cell.transpose(1, 2)[slots, ranks].transpose(0, 1)
    ends = Ends(*(each.int() for each in (nodes, ranks, slots, rows)))
    carry_launch(hidden, cell, ends, hidden_out, cell_out).run()
    assert torch.equal(hidden_out, expected_hidden) and torch.equal(cell_out, expected_cell)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cell": torch.zeros(3, 2, 4, 8)}, "cell: expected shape [2, any, any, any], found [3, 2, 4, 8]"),
        ({"hidden": torch.zeros(3, 5, 6)}, "hidden: expected shape [2, any, any], found [3, 5, 6]"),
        ({"hidden_out": torch.zeros(2, 5, 6).half()}, "hidden_out: expected torch.float32, found torch.float16"),
        ({"cell_out": torch.zeros(2, 4, 8)}, "cell_out: expected shape [2, 5, 8], found [2, 4, 8]"),
        ({"ends": ENDS._replace(rows=integers(0, 1))}, "ends.nodes: expected shape [2], found [1]"),
        ({"ends": ENDS._replace(nodes=integers(0).long())}, "ends.nodes: expected torch.int32, found torch.int64"),
    ],
)
def test_bad_tensors_are_named(wrong: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"cell": torch.zeros(2, 2, 4, 8), "hidden": torch.zeros(2, 7, 6), "ends": ENDS}
    with pytest.raises(ValueError) as error:
        carry_launch(**({**good, "hidden_out": torch.zeros(2, 5, 6), "cell_out": torch.zeros(2, 5, 8)} | wrong))
    assert message in str(error.value)
