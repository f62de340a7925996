"""The cell's kernels while training, against the formula in plain PyTorch."""

from dataclasses import replace

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from test_training_step import SETTINGS, losses, new_step  # noqa: E402

from flashelmo.engine.training.recurrence import cell_backward, cell_forward, kernels_work  # noqa: E402
from flashelmo.engine.training.step import WARM_UP_STEPS  # noqa: E402
from flashelmo.kernels.lstm.training import cell_backward_launch, cell_forward_launch  # noqa: E402
from flashelmo.kernels.pytorch import float32_products  # noqa: E402

BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}


def tensors(B, C, dtype, device, steps=3):
    """Gates, cell states and gradients of several time steps, of which the middle one is taken."""
    generator = torch.Generator().manual_seed(C)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    gates = (2 * random(2, steps, B, 4 * C)).to(device, dtype)
    cells = random(2, steps, B, C).to(device)
    return gates, cells, random(2, B, C).to(device, dtype), random(2, B, C).to(device)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("B", "C"), [(1, 5), (3, 512), (2, 600)])
@pytest.mark.parametrize("clip", [None, 0.7])
def test_a_step_forward_and_backward(B, C, clip, dtype, device):
    gates, cells, d_u, d_c = tensors(B, C, dtype, device)
    expected_gates, expected_cells = gates.clone(), cells.clone()
    expected_u = torch.empty(2, B, C, dtype=dtype, device=device)
    cell_forward(expected_gates[:, 1], cells[:, 0], expected_cells[:, 1], expected_u, clip)
    u = torch.full((2, B, C), torch.nan, dtype=dtype, device=device)
    after = cells.clone()
    after[:, 1] = torch.nan
    cell_forward_launch(gates[:, 1], cells[:, 0], after[:, 1], u, clip).run()
    bound = BOUNDS[dtype]
    for found, wanted in ((u, expected_u), (gates, expected_gates), (after, expected_cells)):
        torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)
    if clip:
        assert (after[:, 1].abs() == clip).any() and (after[:, 1].abs() < clip).any()

    expected = torch.full_like(gates, torch.nan)
    expected_before = d_c.clone()
    cell_backward(d_u, expected_before, gates[:, 1], after[:, 1], after[:, 0], expected[:, 1], clip)
    found = torch.full_like(gates, torch.nan)
    d_before = d_c.clone()
    cell_backward_launch(d_u, d_before, gates[:, 1], after[:, 1], after[:, 0], found[:, 1], clip).run()
    torch.testing.assert_close(found[:, 1], expected[:, 1], rtol=bound, atol=bound)
    torch.testing.assert_close(d_before, expected_before, rtol=1e-5, atol=1e-6)
    assert found[:, [0, 2]].isnan().all()


def test_wrong_tensors_are_refused(device):
    gates, cells, d_u, d_c = tensors(2, 4, torch.float32, device)
    u = torch.empty(2, 2, 4, device=device)
    with pytest.raises(ValueError, match="after"):
        cell_forward_launch(gates[:, 1], cells[:, 0], cells[:, 1, :, :2], u, None)
    with pytest.raises(ValueError, match="gates: expected four gates side by side, found 15 columns"):
        cell_forward_launch(gates[:, 1, :, :15].contiguous(), cells[:, 0], cells[:, 1], u, None)
    with pytest.raises(ValueError, match="d_c"):
        cell_backward_launch(d_u, d_c.double(), gates[:, 1], cells[:, 1], cells[:, 0], gates[:, 2], None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
@pytest.mark.parametrize("negatives", [0, SETTINGS.negatives])
def test_captured_steps_on_a_card_are_those_of_the_processor(negatives, optimizer, tmp_path, caplog):
    """With the kernels; negatives, which a card draws otherwise, leave the losses finite."""
    settings = replace(SETTINGS, optimizer=optimizer, negatives=negatives)
    plain, step = new_step(tmp_path, settings), new_step(tmp_path, settings, device="cuda")
    step.model.kernels = kernels_work(step.device)
    for each in (plain, step):
        each.model.dropout = 0.0
    number = 2 * WARM_UP_STEPS + 2
    with float32_products("ieee", convolutions=True):
        expected, found = losses(plain, number), losses(step, number)
    assert step.model.kernels and step._captured and step._captured._graph is not None and not caplog.records
    assert torch.tensor(found).isfinite().all()
    if not negatives:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
