"""Adagrad by its formula, the common norm's bound, and the learning rate over a run."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashelmo.engine.training.optimizers import (
    Adagrad,
    clip_scale,
    make_optimizer,
    rate_at,
    row_gradients,
    scale_gradients,
)


def test_adagrad_is_tensorflows() -> None:
    start, gradients = np.array([1.0, -2.0]), [np.array([0.5, 0.0]), np.array([-1.5, 3.0])]
    parameter, lr = torch.nn.Parameter(torch.tensor(start)), torch.tensor(0.2, dtype=torch.float64)
    optimizer = make_optimizer("adagrad", [parameter], lr)
    assert isinstance(optimizer, Adagrad)
    accumulator, expected = np.ones(2), start.copy()
    for step, gradient in enumerate(gradients):
        lr.fill_(0.2 / (step + 1))  # the rate is read where it lies
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        accumulator += gradient**2
        expected -= 0.2 / (step + 1) * gradient / np.sqrt(accumulator)
    np.testing.assert_allclose(parameter.detach(), expected, rtol=1e-12)


def test_adam_reads_its_rate_where_it_lies() -> None:
    parameter, lr = torch.nn.Parameter(torch.zeros(3)), torch.tensor(0.0)
    optimizer = make_optimizer("adam", [parameter], lr)
    for rate, expected in ((0.0, 0.0), (0.5, -0.5)):
        lr.fill_(rate)
        parameter.grad = torch.ones(3)
        optimizer.step()
        np.testing.assert_allclose(parameter.detach(), expected, atol=1e-6)


@pytest.mark.parametrize(("largest", "expected"), [(10.0, [3.0, 4.0]), (2.5, [1.5, 2.0])])
def test_gradients_are_scaled_by_their_common_norm(largest: float, expected: list[float]) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    for parameter, value in zip(parameters, (3.0, 4.0), strict=False):
        parameter.grad = torch.tensor([value])
    scale = clip_scale(parameters, largest)
    assert scale.item() == pytest.approx(min(1, largest / 5))
    scale_gradients(parameters, scale)
    found = [parameter.grad.item() for parameter in parameters[:2] if parameter.grad is not None]
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_rate_grows_then_falls() -> None:
    rates = [rate_at(done, 0.1, 2.0, True) for done in np.linspace(0, 1, 101)]
    assert rates[5] == pytest.approx(1.0) and rates[10] == 2.0 and rates[55] == pytest.approx(1.0) and rates[100] == 0
    assert all(np.diff(rates[:11]) > 0) and all(np.diff(rates[10:]) < 0) and rates[0] > 0
    assert rate_at(0.7, 0.1, 2.0, False) == 2.0 and rate_at(0.0, 0.0, 2.0, True) == 2.0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 99))
def test_gradients_by_rows_are_the_whole_ones(rows: list[int], seed: int) -> None:
    """However often a row is named."""
    generator = torch.Generator().manual_seed(seed)
    index, parts = torch.tensor(rows), [torch.randn(len(rows), *size, generator=generator) for size in ((3,), ())]
    found = []
    for by_rows in (False, True):
        weight, bias, other = (torch.nn.Parameter(torch.ones(size)) for size in ((6, 3), (6,), (2,)))
        optimizer = Adagrad([weight, bias, other], torch.tensor(0.5))
        other.grad = torch.full_like(other, 2.0)
        gradients = row_gradients((weight, bias), index, parts) if by_rows else []
        if not by_rows:
            weight.grad, bias.grad = (torch.zeros_like(each) for each in (weight, bias))
            for parameter, part in zip((weight, bias), parts, strict=True):
                assert parameter.grad is not None
                parameter.grad.index_add_(0, index, part)
        scale = clip_scale([weight, bias, other], 1.0, gradients)
        scale_gradients([weight, bias, other], scale)
        optimizer.step()
        optimizer.step_by_rows(gradients, scale)
        found.append([scale, *(each.detach() for each in (weight, bias, other))])
    torch.testing.assert_close(*found)
