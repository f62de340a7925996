"""Adagrad's step as a kernel, against the same by PyTorch's operations."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from flashelmo.engine.training.optimizers import Adagrad, scale_gradients  # noqa: E402
from flashelmo.kernels.adagrad import TILE, adagrad_launch  # noqa: E402

SIZES = ((1,), (3, 5), (TILE.columns,), (TILE.columns + 1,), (2, TILE.columns + 7))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(SIZES), min_size=1, max_size=3), st.sampled_from([1.0, 0.25, 0.0]), st.integers(0, 99))
def test_steps_are_those_of_the_operations(sizes: list[tuple[int, ...]], scale: float, seed: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for by_kernels in (False, True):
        generator = torch.Generator().manual_seed(seed)
        parameters = [torch.nn.Parameter(torch.randn(size, generator=generator).to(device)) for size in sizes]
        untouched = torch.nn.Parameter(torch.ones(2, device=device))
        optimizer = Adagrad([*parameters, untouched], torch.tensor(0.5, device=device))
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
            if by_kernels:
                optimizer.step_by_kernels(torch.tensor(scale, device=device))
            else:
                scale_gradients(parameters, torch.tensor(scale, device=device))
                optimizer.step()
        accumulators = [optimizer.state[parameter]["accumulator"] for parameter in parameters]
        found.append([*(each.detach() for each in (*parameters, untouched)), *accumulators])
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)  # parameters are differences of values of about 1


def test_a_gradient_that_is_not_finite_is_seen_in_the_parameter() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    p, a, g = (torch.ones(5, device=device) for _ in range(3))
    g[3] = torch.nan
    adagrad_launch(p, a, g, *torch.ones(2, device=device)).run()
    assert p.isnan().nonzero().tolist() == [[3]] and a.isnan().nonzero().tolist() == [[3]]


@pytest.mark.parametrize("name", ["accumulator", "gradient", "lr", "scale"])
def test_what_does_not_fit_is_refused(name: str) -> None:
    given = {key: torch.ones(2, 3) for key in ("parameter", "accumulator", "gradient")}
    given |= {key: torch.ones(()) for key in ("lr", "scale")}
    given[name] = torch.ones(3, 2)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        adagrad_launch(**given)
