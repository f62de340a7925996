"""Triton's interpreter as `interpreter.py` mends it: bfloat16 as hardware has it, and nothing left behind."""

import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from interpreter import repair, to_bfloat16, to_float32

pytestmark = pytest.mark.skipif(not os.environ.get("TRITON_INTERPRET"), reason="a card interprets nothing")


@triton.jit
def largest(x):
    return tl.max(x, axis=0)


@triton.jit
def kernel(a, b, count, product, rounded, exponential, N: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(a + i[:, None] * N + i[None, :]), tl.load(b + i[:, None] * N + i[None, :])
    out = tl.zeros((N, N), tl.float32)
    for _ in range(tl.load(count)):
        out += tl.dot(x, y)
    tl.store(product + i[:, None] * N + i[None, :], out)
    tl.store(rounded + i, (largest(out) / 3).to(tl.bfloat16))
    tl.store(exponential + i, tl.exp(largest(out) * 1000))


def launch() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=rng).bfloat16() for _ in range(2))
    tensors = {
        "a": a,
        "b": b,
        "count": torch.tensor([2], dtype=torch.int32),
        "product": torch.full((16, 16), torch.nan),
        "rounded": torch.full((16,), torch.nan).bfloat16(),
        "exponential": torch.full((16,), torch.nan),
    }
    kernel[(1,)](**tensors, N=16)
    return tensors


def test_bfloat16_is_multiplied_and_rounded_and_loops_end() -> None:
    found = launch()
    product = 2 * found["a"].float() @ found["b"].float()
    torch.testing.assert_close(found["product"], product, rtol=0, atol=1e-5)
    largest = found["product"].amax(0)
    assert torch.equal(found["rounded"], (largest / 3).bfloat16())
    assert torch.equal(found["exponential"], torch.exp(largest * 1000)) and found["exponential"].isinf().any()


def test_rounding_to_bfloat16() -> None:
    """To nearest, ties to even, as PyTorch does; numbers that are none stay so."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 10_000, np.uint32)
    ties = (bits & ~np.uint32(0xFFFF)) | np.uint32(0x8000)
    for values in (bits.view(np.float32), ties.view(np.float32)):
        expected = torch.from_numpy(values).bfloat16().float().numpy()
        np.testing.assert_array_equal(to_float32(to_bfloat16(values)), expected)


def test_a_launch_leaves_the_language_as_it_was() -> None:
    def language() -> list[object]:
        places = (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base, tl.dtype)
        return [dict(vars(place)) for place in places]

    before = language()
    launch()  # which patches it by itself, later ones as the first one did
    launch()
    assert language() == before and tl.core.is_builtin(tl.load)


def test_types_are_what_they_were() -> None:
    block = tl.block_type(tl.float32, [tl.constexpr(2), 4])
    assert (list(block.shape), block.numel, str(block)) == ([2, 4], 8, "<['2', '4'], fp32>")
    assert block == tl.block_type(tl.float32, (2, 4)) == block.with_element_ty(tl.float32)
    assert block != tl.block_type(tl.float32, [4, 2]) and block != tl.block_type(tl.int32, [2, 4])
    with pytest.raises(TypeError, match="0d block_type is forbidden"):
        tl.block_type(tl.float32, [])
    with pytest.raises(ValueError, match="power of 2"):
        tl.block_type(tl.float32, [3])
    tensor, scalar = tl.core.tensor(None, block), tl.core.tensor(None, tl.int32)
    assert [size.value for size in tensor.shape] == [2, 4] and tensor.numel.value == 8 and tensor.dtype == tl.float32
    assert len(scalar.shape) == 0 and scalar.numel.value == 1 and scalar.dtype == scalar.type == tl.int32


def test_a_second_repair_changes_nothing() -> None:
    before = tl.core.tensor.__init__, triton.runtime.interpreter._patch_lang
    repair()
    assert before == (tl.core.tensor.__init__, triton.runtime.interpreter._patch_lang)
