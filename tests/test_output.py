"""Layers, pooling and number types."""

import numpy as np
import pytest

from flashelmo.engine import output as output_module
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output, cast, pool_mean, select_layers

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


def test_pool_mean() -> None:
    pooled = pool_mean(VECTORS)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, VECTORS.astype(np.float64).sum(axis=1) / 5, rtol=1e-6)
    np.testing.assert_array_equal(pool_mean(VECTORS[1]), pooled[1])
    np.testing.assert_array_equal(pool_mean(VECTORS[:, :0]), np.zeros((3, 4), np.float32))


def test_cast() -> None:
    assert cast(VECTORS, "float32") is VECTORS
    half = cast(VECTORS, "float16")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half.astype(np.float32), VECTORS, rtol=2**-11, atol=2**-24)
    with pytest.raises(FlashElmoError, match=r"expected values within float16's range, found 70000; use float32"):
        cast(np.array([[1.0, -70000.0, np.nan]], np.float32), "float16")
    assert np.isinf(cast(np.array([np.inf], np.float32), "float16")).all()  # what was infinite may stay so


@pytest.mark.parametrize("block", [1 << 20, 30, 12, 1])
@pytest.mark.parametrize("pool", [None, "mean"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layers", ["all", "top", "average", 0, 1])
def test_blocks_join_to_the_result(
    monkeypatch: pytest.MonkeyPatch, layers: str | int, dtype: str, pool: str | None, block: int
) -> None:
    monkeypatch.setattr(output_module, "BLOCK_VALUES", block)
    output = Output(layers, dtype, pool)
    for vectors in (VECTORS, VECTORS[:, :1], VECTORS[:, :0]):
        expected = select_layers(vectors, layers)
        expected = (pool_mean(expected) if pool else expected).astype(dtype)
        assert output.shape(vectors.shape) == expected.shape
        result = np.full(expected.shape, np.nan, dtype)
        parts = []
        for index, part in output.blocks(vectors):
            result[index] = part
            parts.append(part.ravel())
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(np.concatenate(parts), expected.ravel())  # blocks come in C order
        assert pool or max(part.size for part in parts) <= max(block, 4)


def test_bad_settings() -> None:
    with pytest.raises(FlashElmoError, match="layers: expected all, top, average or a layer's number, found 'last'"):
        Output("last")
    with pytest.raises(FlashElmoError, match="dtype: expected float32 or float16, found 'int8'"):
        Output(dtype="int8")
    with pytest.raises(FlashElmoError, match="pool: expected mean or nothing, found 'max'"):
        Output(pool="max")
    with pytest.raises(FlashElmoError, match="found 'both'"):
        select_layers(VECTORS, "both")
