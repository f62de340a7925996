"""The ONNX pieces, their valid form, the windows of characters and 8-bit weights, against formulas in numpy."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from tiny_models import BILM, MANYLANGS, MODELS, WORD_MODEL, random_model

from flashelmo.engine.cpu import ort
from flashelmo.engine.cpu.ort import OrtRuntime
from flashelmo.engine.cpu.sessions import onnxruntime
from flashelmo.engine.graph.builder import IR_VERSION, OPSET, Tensors
from flashelmo.engine.graph.pieces import all_graphs, character_windows, input_product_graph, steps_graph, words_graph
from flashelmo.engine.graph.tensors import prepare_tensors, quantize
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import GATES, ElmoModel
from flashelmo.engine.precision import NumberType, tolerance
from flashelmo.engine.system.processor import int8_levels, is_arm
from flashelmo.engine.text.characters import WordEncoder

# Widths up to 7 and 50 positions, as the published models; words up to 48 bytes are whole.
PUBLISHED_WIDTHS = replace(BILM, filters=((1, 3), (2, 4), (3, 5), (5, 4), (7, 6)), max_characters=50)
PADDING = 261  # the row of a character embedding


def words_of_length(n_characters: int, n_words: int = 1) -> list[str]:
    rng = np.random.default_rng(n_characters)
    return ["".join(chr(97 + letter) for letter in rng.integers(0, 26, n_characters)) for _ in range(n_words)]


def windows_of(config: ElmoConfig, words: list[str], longest: int | None = None) -> np.ndarray:
    encoder = WordEncoder(config, None)
    ids = encoder.character_ids(words)
    assert ids is not None
    return character_windows(ids, int(encoder.lengths(ids).max()) if longest is None else longest, config)


# Windows


@pytest.mark.parametrize("n_characters", [1, 2, 5, 42, 43, 44, 45, 46, 47, 48, 49, 50])
def test_windows_of_one_word(n_characters: int) -> None:
    """One window begins at each of a word's characters and one behind them, but none beyond position 50."""
    config = PUBLISHED_WIDTHS
    ids = WordEncoder(config, None).character_ids(words_of_length(n_characters))
    assert ids is not None
    length = min(n_characters, 48) + 2  # with begin and end of word
    windows = character_windows(ids, length, config)
    assert windows.shape == (1, min(length + 1, 50), 7)
    assert windows.dtype == np.int32 and windows.flags.c_contiguous
    for start, window in enumerate(windows[0]):
        for offset, character in enumerate(window):
            beyond = start + offset >= 50
            assert character == (config.n_characters if beyond else ids[0, start + offset])
    if length < 50:  # the last window holds padding alone, as long as there is any
        assert set(windows[0, -1]) <= {PADDING, config.n_characters}
        assert windows[0, -1, 0] == PADDING


def test_windows_of_words_of_unlike_length() -> None:
    """The longest word says how many windows all have."""
    config = PUBLISHED_WIDTHS
    words = words_of_length(3) + words_of_length(9)
    windows = windows_of(config, words)
    assert windows.shape == (2, 12, 7)
    assert (windows[0, 5:] == PADDING).all()
    assert np.array_equal(windows[:, :-1, 1:], windows[:, 1:, :-1])


@pytest.mark.parametrize("widths", [(1,), (2, 7), (7,), (50,)])
def test_windows_reach_every_position_that_a_width_has(widths: tuple[int, ...]) -> None:
    config = replace(BILM, filters=tuple((width, 2) for width in widths), max_characters=50)
    windows = windows_of(config, words_of_length(48))
    assert windows.shape == (1, 50, max(widths))
    for width in widths:
        whole = (windows[0, :, :width] != config.n_characters).all(axis=1)
        assert whole.sum() == 50 - width + 1


@pytest.mark.parametrize("name", ["trimmed", "not trimmed"])
def test_word_vectors_of_every_length(name: str) -> None:
    """The convolution's maximum over all 50 positions, padding among them, whatever part of them is computed."""
    model = random_model(PUBLISHED_WIDTHS)
    for highway in model.weights.highways:
        highway.transform.weight[:] *= 0.3  # vectors of about the size of real ones, so that the bound is a fair one
    runtime = OrtRuntime(model.config, prepare_tensors(model.config, model.weights, "float32"), "float32")
    for n_characters in range(1, 51):
        words = words_of_length(n_characters, 4)
        windows = windows_of(model.config, words, 50 if name == "not trimmed" else None)
        found = np.empty((len(words), model.config.projection_size), np.float32)
        runtime.word_vectors(windows, None, found)
        assert np.abs(found - expected_vectors(model, words)).max() < tolerance("fp32"), n_characters


@pytest.mark.parametrize("wins", [True, False])
def test_the_maximum_runs_over_padding_just_where_there_is_a_window_of_it(wins: bool) -> None:
    """One filter of width 3 that adds up its paddings, or takes them away, where nothing else counts."""
    config = replace(
        BILM, filters=((3, 1),), n_highway=0, character_size=1, projection_size=1, cell_size=1, max_characters=12
    )
    model = random_model(config)
    weights = model.weights
    assert weights.character_embedding is not None
    weights.character_embedding[:] = 0
    weights.character_embedding[PADDING] = 1
    weights.convolutions[0].weight[:] = 1 / 3 if wins else -1 / 3
    weights.convolutions[0].bias[:] = 0.25
    runtime = OrtRuntime(config, prepare_tensors(config, weights, "float32"), "float32")
    for n_characters in range(1, 13):
        found = np.empty((1, 1), np.float32)
        runtime.word_vectors(windows_of(config, words_of_length(n_characters)), None, found)
        paddings = min(3, 12 - min(n_characters + 2, 12))  # within one window
        assert found[0, 0] == pytest.approx(0.25 + (paddings / 3 if wins else 0), abs=1e-6), n_characters


def expected_vectors(model: ElmoModel, words: list[str]) -> np.ndarray:
    """Every window of all M positions, in float64."""
    config, weights = model.config, model.weights
    ids = WordEncoder(config, None).character_ids(words)
    assert ids is not None and weights.character_embedding is not None and weights.projection is not None
    characters = weights.character_embedding.astype(np.float64)[ids]  # [W, M, D]
    maxima = []
    for (width, _), kernel in zip(config.filters, weights.convolutions, strict=True):
        starts = range(config.max_characters - width + 1)
        sums = [np.tensordot(characters[:, s : s + width], kernel.weight, 2) + kernel.bias for s in starts]
        maxima.append(np.max(sums, axis=0))
    x = np.maximum(np.concatenate(maxima, axis=1), 0)
    for highway in weights.highways:
        gate = 1 / (1 + np.exp(-(x @ highway.gate.weight + highway.gate.bias)))
        x = gate * np.maximum(x @ highway.transform.weight + highway.transform.bias, 0) + (1 - gate) * x
    return x @ weights.projection.weight + weights.projection.bias


# 8-bit weights


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 20),
    levels=st.sampled_from([63, 127]),
    exponent=st.integers(-20, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_quantized_entries_are_off_by_half_a_step_at_most(
    rows: int, columns: int, levels: int, exponent: int, seed: int
) -> None:
    weight = np.random.default_rng(seed).normal(0, 10.0**exponent, (rows, columns)).astype(np.float32)
    integers, scale = quantize(weight, levels)
    assert integers.dtype == np.int8 and integers.shape == weight.shape
    assert scale.dtype == np.float32 and scale.shape == (columns,)
    assert np.abs(integers.astype(int)).max() <= levels
    error = np.abs(integers.astype(np.float64) * scale - weight)
    assert (error <= 0.5 * scale * (1 + 1e-5)).all()
    assert (np.abs(integers.astype(int)).max(axis=0) == levels).all()  # the largest entry of each column is exact


def test_quantizing_by_column_leaves_small_columns_their_precision() -> None:
    weight = np.array([[1000.0, 0.001], [-500.0, 0.0005]], np.float32)
    integers, scale = quantize(weight, 127)
    assert integers.tolist() == [[127, 127], [-64, 64]]
    assert scale == pytest.approx([1000 / 127, 0.001 / 127])


def test_a_column_of_zeros_stays_zero() -> None:
    weight = np.zeros((3, 2), np.float32)
    weight[:, 1] = [0, 1, -1]
    integers, scale = quantize(weight, 127)
    assert integers.tolist() == [[0, 0], [0, 127], [0, -127]]
    assert (scale > 0).all() and np.isfinite(1 / scale).all()


def test_the_smallest_numbers_do_not_divide_by_zero() -> None:
    weight = np.full((2, 1), 1e-45, np.float32)  # subnormal: a 127th of it is zero
    integers, scale = quantize(weight, 127)
    assert np.abs(integers * scale - weight).max() <= scale.max()
    assert (scale > 0).all()


@pytest.mark.parametrize("name", ["skip", "no projection", "words alone"])
def test_8_bits_are_for_the_matrices_of_the_lstm_alone(name: str) -> None:
    model = MODELS[name]
    exact = prepare_tensors(model.config, model.weights, "float32")
    rounded = prepare_tensors(model.config, model.weights, "int8")
    quantized = {key for key in rounded if rounded[key].dtype == np.int8}
    assert quantized == {key for key in exact if key.startswith("lstm.") and exact[key].ndim == 2}
    has_projection = model.config.cell_size != model.config.projection_size
    assert len(quantized) == 4 * (8 + has_projection)  # of 2 layers and 2 directions, input and recurrent, 4 gates
    for key, tensor in exact.items():
        if key not in quantized:
            assert np.array_equal(rounded[key], tensor), key
            continue
        assert np.abs(rounded[key].astype(int)).max() == int8_levels()
        assert np.abs(rounded[key] * rounded[f"{key}.scale"] - tensor).max() <= rounded[f"{key}.scale"].max() / 1.99


# Tensors


@pytest.mark.parametrize("name", MODELS)
def test_float32_tensors_are_views_of_the_models_own(name: str) -> None:
    """But for the characters' embedding and convolutions, which are rearranged and small."""
    model = MODELS[name]
    own = [tensor for _, tensor in model.weights.named_tensors()]
    for key, tensor in prepare_tensors(model.config, model.weights, "float32").items():
        assert tensor.flags.c_contiguous and tensor.dtype == np.float32
        if not key.startswith(("characters", "convolutions")):
            assert any(np.shares_memory(tensor, array) for array in own), key


@pytest.mark.parametrize("weight_type", ["float32", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_every_weight_of_a_graph_has_a_tensor_and_the_reverse(name: str, weight_type: NumberType) -> None:
    model = MODELS[name]
    tensors = prepare_tensors(model.config, model.weights, weight_type)
    named = [weight for graph in all_graphs(model.config, weight_type).values() for weight in graph.weights]
    assert sorted(named) == sorted(tensors)


# Graphs


def tensors_of(config: ElmoConfig, weight_type: NumberType) -> Tensors:
    return prepare_tensors(config, random_model(config).weights, weight_type)


@pytest.mark.parametrize("weight_type", ["float32", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_every_piece_is_valid_onnx(name: str, weight_type: NumberType) -> None:
    model = MODELS[name]
    tensors = prepare_tensors(model.config, model.weights, weight_type)
    for graph in all_graphs(model.config, weight_type).values():
        proto = graph.to_model(tensors, embed=True)
        onnx.checker.check_model(proto, full_check=True)
        assert proto.ir_version == IR_VERSION == 8
        opsets = {opset.domain: opset.version for opset in proto.opset_import}
        assert opsets == {"": OPSET}
        assert OPSET == 18
        assert not any(tensor.data_location for tensor in proto.graph.initializer)


def shapes(values: object) -> dict[str, list[int | str]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values  # type: ignore[attr-defined]
    }


def test_inputs_and_outputs_of_the_pieces() -> None:
    tensors = tensors_of(BILM, "float32")
    words = words_graph(BILM).to_model(tensors).graph
    assert shapes(words.input) == {"windows": ["W", "positions", 3]}
    assert shapes(words.output) == {"vectors": ["W", 4]}
    product = input_product_graph(BILM, 0, "forward", "float32").to_model(tensors).graph
    assert shapes(product.input) == {"x": ["m", 4]}
    assert shapes(product.output) == {gate: ["m", 6] for gate in GATES}
    first = steps_graph(BILM, 0, "forward", "float32").to_model(tensors).graph
    states = {"parents": ["n"], "hidden": ["p", 4], "cell": ["p", 6]}
    assert shapes(first.input) == {**states, "gate_rows": ["T", "n"], **{gate: ["m", 6] for gate in GATES}}
    second = steps_graph(BILM, 1, "backward", "float32").to_model(tensors).graph
    assert shapes(second.input) == {**states, **{gate: ["T", "n", 6] for gate in GATES}}
    assert shapes(second.output) == {"new_hidden": ["T", "n", 4], "new_cell": ["n", 6]}


def test_the_words_graph_takes_what_the_model_has() -> None:
    configs = {"words": WORD_MODEL, "both": MANYLANGS, "characters": BILM}
    found = {name: {value.name for value in words_graph(config).inputs} for name, config in configs.items()}
    assert found == {"words": {"word_ids"}, "both": {"word_ids", "windows"}, "characters": {"windows"}}


def test_weights_stay_outside_unless_embedded() -> None:
    tensors = tensors_of(BILM, "float32")
    graph = words_graph(BILM)
    outside = {tensor.name for tensor in graph.to_model(tensors).graph.initializer if tensor.data_location}
    assert outside == set(graph.weights)
    inside = {tensor.name: tensor for tensor in graph.to_model(tensors, embed=True).graph.initializer}
    for name in graph.weights:
        assert np.array_equal(onnx.numpy_helper.to_array(inside[name]), tensors[name])


@pytest.mark.skipif(
    Version(onnxruntime.__version__) < Version("1.26"), reason="older versions of ONNX Runtime poll for longer"
)
def test_no_product_in_bfloat16_becomes_one_that_stays_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Arm, ONNX Runtime rounds the factors of MatMul, not of Gemm. Elsewhere it rounds none: the graph is exact."""
    options_of, model, found = ort.session_options, random_model(BILM), []
    tensors = prepare_tensors(model.config, model.weights, "bfloat16")
    for weight_type in ("float32", "bfloat16"):
        folder, numbers = tmp_path / weight_type, count()
        folder.mkdir()

        def kept(threads: int, folder: Path = folder, numbers: Iterator[int] = numbers) -> Any:
            options = options_of(threads)
            options.optimized_model_filepath = str(folder / f"{next(numbers)}.onnx")
            return options

        monkeypatch.setattr(ort, "session_options", kept)
        runtime = OrtRuntime(model.config, tensors, weight_type)
        vectors = np.empty((2, model.config.projection_size), np.float32)
        runtime.word_vectors(windows_of(model.config, ["a", "sentence"]), None, vectors)
        gates = runtime.gates.empty(2)
        runtime.input_product(1, 1, vectors, gates)
        found.append(np.concatenate([vectors, *gates], axis=1))
        operators = {node.op_type for file in folder.iterdir() for node in all_nodes(onnx.load(file).graph)}
        assert "Scan" in operators and ("Gemm" in operators) == (weight_type == "float32"), operators
    bound = tolerance("bf16" if is_arm() else "fp32") * np.abs(found[0]).max()
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=bound)


def test_products_that_overflow_are_infinite_on_arm_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """There ONNX Runtime may end at the largest number, and no overflow would be noticed."""
    monkeypatch.setattr(ort, "is_arm", lambda: True)
    model, largest = random_model(BILM), np.finfo(np.float32).max
    tensors = tensors_of(model.config, "float32")
    runtime = OrtRuntime(
        model.config,
        {**tensors, "lstm.0.forward.bias.input": np.full_like(tensors["lstm.0.forward.bias.input"], -largest)},
        "float32",
    )
    gates = runtime.gates.empty(2)
    runtime.input_product(0, 0, np.zeros((2, model.config.projection_size), np.float32), gates)
    assert (gates[0] == -np.inf).all() and np.isfinite(gates[1]).all()


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Return a graph's nodes, and those of the graphs that are their attributes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from all_nodes(attribute.g)


def test_threads_of_onnx_runtime_that_wait_sleep() -> None:
    """They would keep a core from the other direction, or from other programs."""
    model = random_model(replace(BILM, cell_size=512, projection_size=256))
    runtime = OrtRuntime(model.config, tensors_of(model.config, "float32"), "float32", threads=4)
    gates, idle = runtime.gates.empty(300), []
    for _ in range(5):
        runtime.input_product(0, 0, np.ones((300, 256), np.float32), gates)
        begin = time.process_time()
        time.sleep(0.03)
        idle.append(time.process_time() - begin)
    assert sorted(idle)[2] < 0.003
