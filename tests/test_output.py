"""Layers, pooling and number types."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from flashelmo.engine import output as output_module
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Layers, Output, cast, normalize, pool_mean, pool_tokens, select_layers, stack

rng = np.random.default_rng(1)
VECTORS = rng.standard_normal((3, 5, 4)).astype(np.float32)


def test_select_layers() -> None:
    np.testing.assert_array_equal(select_layers(VECTORS, "all"), VECTORS)
    np.testing.assert_array_equal(select_layers(VECTORS, "top"), VECTORS[2])
    np.testing.assert_array_equal(select_layers(VECTORS, 1), VECTORS[1])
    average = select_layers(VECTORS, "average")
    assert average.dtype == np.float32
    np.testing.assert_allclose(average, (VECTORS[0] + VECTORS[1] + VECTORS[2]) / 3, rtol=1e-6)


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_is_not_there(layer: int) -> None:
    with pytest.raises(FlashElmoError, match=f"expected a layer from 0 to 2, found {layer}"):
        select_layers(VECTORS, layer)
    with pytest.raises(FlashElmoError, match=f"expected a layer from 0 to 2, found {layer}"):
        Output(layer).check(3)
    with pytest.raises(FlashElmoError, match=f"expected a layer from 0 to 2, found {layer}"):
        Output(layer).groups(3)


def test_pool_mean() -> None:
    pooled = pool_mean(VECTORS)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, VECTORS.astype(np.float64).sum(axis=1) / 5, rtol=1e-6)
    np.testing.assert_array_equal(pool_mean(VECTORS[1]), pooled[1])
    np.testing.assert_array_equal(pool_mean(VECTORS[:, :0]), np.zeros((3, 4), np.float32))


def test_the_largest_values_of_a_sentence() -> None:
    pooled = pool_tokens(VECTORS, "max")
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled, np.sort(VECTORS, axis=1)[:, -1])
    np.testing.assert_array_equal(pool_tokens(VECTORS[1], "max"), pooled[1])
    np.testing.assert_array_equal(pool_tokens(VECTORS[:, :0], "max"), np.zeros((3, 4), np.float32))


def test_cast() -> None:
    assert cast(VECTORS, "float32") is VECTORS
    half = cast(VECTORS, "float16")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half.astype(np.float32), VECTORS, rtol=2**-11, atol=2**-24)
    with pytest.raises(FlashElmoError, match=r"expected values within float16's range, found 70000; use float32"):
        cast(np.array([[1.0, -70000.0, np.nan]], np.float32), "float16")
    assert np.isinf(cast(np.array([np.inf], np.float32), "float16")).all()  # what was infinite may stay so


CHOICES: list[Layers] = ["all", "top", "average", 0, 1, (2, 0)]


@pytest.mark.parametrize("pool", [None, "mean", "max"])
@pytest.mark.parametrize("layers", CHOICES)
def test_groups_say_which_layers_a_result_is_made_of(layers: Layers, pool: str | None) -> None:
    output = Output(layers, pool=pool)
    means = np.stack([VECTORS[list(group)].mean(axis=0) for group in output.groups(3)])
    means = means[0] if output.single else means
    np.testing.assert_array_equal(output.choose(VECTORS), pool_tokens(means, pool) if pool else means)


@pytest.mark.parametrize("block", [1 << 20, 30, 12, 1])
@pytest.mark.parametrize("pool", [None, "mean", "max"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layers", CHOICES)
def test_blocks_join_to_the_result(
    monkeypatch: pytest.MonkeyPatch, layers: Layers, dtype: str, pool: str | None, block: int
) -> None:
    monkeypatch.setattr(output_module, "BLOCK_VALUES", block)
    output = Output(layers, dtype, pool)
    for vectors in (VECTORS, VECTORS[:, :1], VECTORS[:, :0]):
        chosen = select_layers(vectors, layers)
        chosen = pool_tokens(chosen, pool) if pool else chosen
        np.testing.assert_array_equal(output.choose(vectors), chosen)
        expected = chosen.astype(dtype)
        assert output.shape(vectors.shape) == expected.shape
        result = np.full(expected.shape, np.nan, dtype)
        parts = []
        for index, part in output.blocks(chosen):
            result[index] = part
            parts.append(part.ravel())
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(np.concatenate(parts), expected.ravel())  # blocks come in C order
        assert max(part.size for part in parts) <= max(block, 4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_result_that_has_its_type_is_not_copied(dtype: str) -> None:
    result = VECTORS.astype(dtype)
    ((index, block),) = Output(dtype=dtype).blocks(result)
    assert index == () and block is result


@pytest.mark.parametrize(
    ("output", "vectors"),
    [(Output("top"), VECTORS), (Output(), VECTORS[0]), (Output(pool="mean"), VECTORS), (Output(0), VECTORS[0, 0])],
)
def test_what_is_no_result_is_refused(output: Output, vectors: np.ndarray) -> None:
    with pytest.raises(FlashElmoError, match=rf"vectors: expected \d dimensions for layers {output.layers!r}"):
        list(output.blocks(vectors))


@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_normalize(make: Callable[[np.ndarray], Any]) -> None:
    vectors = VECTORS[:, :2].copy()
    vectors[1, 0] = 0
    found = normalize(make(vectors))
    assert type(found) is type(make(vectors)) and found.dtype == make(vectors).dtype
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(found), vectors / np.where(lengths > 0, lengths, 1), rtol=1e-6)
    assert (np.asarray(found)[1, 0] == 0).all()


def test_stack() -> None:
    rows, none = list(VECTORS[0]), partial(np.empty, (0, 4))
    np.testing.assert_array_equal(stack(rows, none, True), VECTORS[0])
    np.testing.assert_array_equal(stack([torch.tensor(row) for row in rows], none, False).numpy(), VECTORS[0])
    assert stack([], none, True).shape == (0, 4)
    assert stack([], none, False).shape == (0, 4) and stack([], none, False).dtype == torch.float64


def test_bad_settings() -> None:
    with pytest.raises(FlashElmoError, match="dtype: expected float32 or float16, found 'int8'"):
        Output(dtype="int8")
    with pytest.raises(FlashElmoError, match="pool: expected mean, max or nothing, found 'sum'"):
        Output(pool="sum")
    with pytest.raises(FlashElmoError, match="found 'both'"):
        select_layers(VECTORS, "both")


def test_layers_by_their_numbers() -> None:
    np.testing.assert_array_equal(select_layers(VECTORS, [2, 0]), VECTORS[[2, 0]])
    for given in ([2, 0], (2, 0), np.array([2, 0]), torch.tensor([2, 0]), [np.int64(2), 0], range(2, -1, -2)):
        output = Output(given)  # type: ignore[arg-type]
        assert output == Output((2, 0)) and hash(output) == hash(Output((2, 0)))
        assert output.shape((3, 5, 4)) == (2, 5, 4) and not output.single
        np.testing.assert_array_equal(output.choose(VECTORS), VECTORS[[2, 0]])
        np.testing.assert_array_equal(output.coefficients(3), np.eye(3, dtype=np.float32)[[2, 0]])
    assert Output(np.int64(1)) == Output(1)  # type: ignore[arg-type]
    with pytest.raises(FlashElmoError, match=r"^layers: expected a layer from 0 to 2, found 3$"):
        Output([0, 3]).check(3)


MIX = [0.5, -1.0, 2.0]
MIXES: list[Any] = [MIX, tuple(MIX), [0.5, -1, 2], np.array(MIX), torch.tensor(MIX), torch.tensor(MIX).bfloat16()]
MIXES += [torch.tensor(MIX, requires_grad=True), [torch.tensor(value) for value in MIX], np.array(MIX, np.float16)]


@pytest.mark.parametrize("given", MIXES, ids=lambda given: type(given).__name__)
def test_a_mix_is_one_vector_of_all_layers(given: Any) -> None:
    output = Output(mix=given)
    assert output == Output("average", mix=(0.5, -1.0, 2.0)) and hash(output) == hash(Output(mix=MIX))
    assert output.shape((3, 5, 4)) == (5, 4) and output.groups(3) == [range(3)] and output.single
    np.testing.assert_array_equal(output.coefficients(3), np.array([MIX], np.float32))
    np.testing.assert_allclose(output.choose(VECTORS), 0.5 * VECTORS[0] - VECTORS[1] + 2 * VECTORS[2], rtol=1e-6)


@pytest.mark.parametrize("given", [(0.5, -1, 2.0), [0.5, -1.0, 2.0], np.array(MIX), torch.tensor(MIX)], ids=type)
def test_a_mix_is_not_taken_as_layers(given: Any) -> None:
    with pytest.raises(FlashElmoError, match=r"^layers: expected .* \(coefficients go to mix\), found [\[(]0.5, -1"):
        Output(given)


def test_coefficients_of_what_is_no_mix() -> None:
    np.testing.assert_array_equal(Output().coefficients(3), np.eye(3, dtype=np.float32))
    np.testing.assert_array_equal(Output("top").coefficients(3), np.array([[0, 0, 1]], np.float32))
    np.testing.assert_array_equal(Output(1).coefficients(3), np.array([[0, 1, 0]], np.float32))
    np.testing.assert_allclose(Output("average").coefficients(3), np.full((1, 3), 1 / 3), rtol=1e-6)


@pytest.mark.parametrize(
    "layers", ["last", None, True, 1.5, [], [0, 0], [0, True], [[0]], "0", b"0", {0: 1}, np.ones((2, 2))]
)
def test_what_are_no_layers(layers: Any) -> None:
    with pytest.raises(FlashElmoError, match=r"^layers: expected all, top, average, a layer's number or several"):
        Output(layers)


NO_MIXES: list[Any] = [1, [], "123", b"123", ["a"], [None], [[1.0]], [1.0, float("nan")], np.ones((2, 2))]
NO_MIXES += [{0: 1, 1: 1, 2: 1}, {0.2, 0.5, 0.3}, {1: "a"}.keys(), bytearray(b"123")]


@pytest.mark.parametrize("mix", NO_MIXES)
def test_what_is_no_mix(mix: Any) -> None:
    with pytest.raises(FlashElmoError, match=r"^mix: expected a finite number for each layer, found [^\n]*$"):
        Output(mix=mix)
    with pytest.raises(FlashElmoError, match=r"^layers: expected none together with mix, found 0$"):
        Output(0, mix=MIX)
