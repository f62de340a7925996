"""The whole model as one ONNX file: its vectors against published ones and the reference, and what shapes the graph."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import BILM, GENTLE, MODELS, SENTENCES, random_model

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.graph.builder import IR_VERSION, OPSET, Graph
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.initialize import random_model as published_size
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import tolerance
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.export.batches import input_names
from flashelmo.export.build import build_onnx
from flashelmo.export.distinct_words import WORDS_AT_ONCE
from flashelmo.export.metadata import STATES, Metadata
from flashelmo.export.onnx_elmo import OnnxElmo

EXPORT_TOLERANCE = tolerance("fp32", "onnx")  # what an exported float32 file promises

Arrays = dict[str, npt.NDArray[Any]]
Sentences = Sequence[Sequence[str]]


class File:
    """An exported file in ONNX Runtime, and how its inputs are made: by the engine's encoder alone."""

    def __init__(self, model: ElmoModel, path: Path, **options: Any) -> None:
        self.model, self.path = model, path
        self.metadata = build_onnx(model, path, **options)
        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def inputs(self, sentences: Sentences, columns: int = 0) -> Arrays:
        encoder = WordEncoder(self.model.config, self.model.lexicon)
        lengths = np.array([len(sentence) for sentence in sentences])
        mask = np.arange(max(1, lengths.max()) + columns) < lengths[:, None]
        words = [word for sentence in sentences for word in sentence]
        inputs: Arrays = {}
        if (characters := encoder.character_ids(words)) is not None:
            inputs["character_ids"] = np.zeros((*mask.shape, characters.shape[1]), np.int64)
            inputs["character_ids"][mask] = characters
        if (rows := encoder.word_ids(words)) is not None:
            inputs["word_ids"] = np.full(mask.shape, self.metadata.config.absent_word_id, np.int64)
            inputs["word_ids"][mask] = rows
        return inputs

    def run(self, inputs: Arrays) -> Arrays:
        return dict(zip(self.outputs, self.session.run(None, inputs), strict=True))

    def embed(self, sentences: Sentences, columns: int = 0) -> list[npt.NDArray[Any]]:
        outputs = self.run(self.inputs(sentences, columns))
        layers = np.stack([outputs[f"hidden_states.{layer}"] for layer in self.metadata.layers])
        return [layers[:, row, : len(sentence)] for row, sentence in enumerate(sentences)]

    def zero_states(self, rows: int) -> Arrays:
        config = self.model.config
        sizes = dict(zip(STATES, (config.projection_size, config.cell_size), strict=True))
        return {name: np.zeros((2 * config.n_layers, rows, size), np.float32) for name, size in sizes.items()}


def farthest(found: Sentences | list[Any], expected: list[Any]) -> float:
    """The largest difference; every array is finite and of its counterpart's shape."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        assert np.shape(one) == np.shape(other) and np.isfinite(one).all()
        worst = max(worst, float(np.abs(np.asarray(one) - other).max(initial=0)))
    return worst


def operators(path: Path) -> Counter[str]:
    """How often the graph, bodies and all, has each operator."""

    def walk(nodes: Any) -> Iterator[str]:
        for node in nodes:
            yield node.op_type
            for attribute in node.attribute:
                yield from walk(attribute.g.node)

    return Counter(walk(onnx.load(path).graph.node))


def golden_sentences(folder: Path) -> list[Any]:
    found: list[Any] = json.loads((folder / "sentences.json").read_text(encoding="utf-8"))
    return found


# Against published vectors


def test_published_vectors_without_state(golden: Path, tmp_path: Path) -> None:
    streams = golden_sentences(golden / "bilm_skip")
    sentences = [line.split() for stream in streams[:2] for line in stream]
    file = File(load_model(golden / "bilm_skip"), tmp_path / "model.onnx")
    with h5py.File(golden / "bilm_skip" / "expected_stateless.hdf5") as expected:
        assert farthest(file.embed(sentences), [expected[str(k)][:] for k in range(20)]) < EXPORT_TOLERANCE


def test_published_vectors_of_manylangs(golden: Path, tmp_path: Path) -> None:
    sentences = golden_sentences(golden / "manylangs")
    file = File(load_model(golden / "manylangs"), tmp_path / "model.onnx")
    with h5py.File(golden / "manylangs" / "expected_layers.hdf5") as expected:
        vectors = [expected[str(k)][:] for k in range(len(sentences))]
        assert farthest(file.embed(sentences), vectors) < EXPORT_TOLERANCE


@pytest.mark.parametrize(("folder", "n_streams"), [("bilm_skip", 2), ("bilm_noskip", 1)])
def test_published_vectors_with_state(golden: Path, tmp_path: Path, folder: str, n_streams: int) -> None:
    """Row k of batch i is sentence i of stream k, as bilm-tf computed it."""
    streams = [[line.split() for line in stream] for stream in golden_sentences(golden / folder)]
    file = File(load_model(golden / folder), tmp_path / "model.onnx", stateful=True)
    states = file.zero_states(len(streams))
    found: list[list[Any]] = [[] for _ in streams]
    for batch in zip(*streams, strict=True):
        outputs = file.run(file.inputs(batch) | states)
        states = {name: outputs[new] for name, new in STATES.items()}
        for row, sentence in enumerate(batch):
            found[row].append(outputs["hidden_states.2"][row, : len(sentence)])
    for row, vectors in enumerate(found[:n_streams]):
        with h5py.File(golden / folder / f"lm_embeddings_{row}.hdf5") as expected:
            halves = [expected[str(i)][:] for i in range(len(vectors))]  # (2, tokens, 16)
            assert farthest(vectors, [np.concatenate(list(half), axis=-1) for half in halves]) < EXPORT_TOLERANCE


# Against the reference


@pytest.mark.parametrize("columns", [0, 3])
@pytest.mark.parametrize("name", MODELS)
def test_every_output_matches_the_reference(name: str, columns: int, tmp_path: Path) -> None:
    model = MODELS[name]
    n_layers = model.config.n_layers + 1
    mix = [0.3, -0.5, 1.7, 0.4][:n_layers]
    file = File(model, tmp_path / "model.onnx", mix=mix)
    outputs = file.run(file.inputs(SENTENCES, columns))
    for row, layers in enumerate(ReferenceRuntime(model).embed_batch(SENTENCES)):
        n_tokens = layers.shape[1]
        expected = np.zeros((n_layers, 6 + columns, layers.shape[2]))
        expected[:, :n_tokens] = layers
        mixed = np.tensordot(mix, expected, axes=1)
        found = [outputs[f"hidden_states.{k}"][row] for k in range(n_layers)]
        assert farthest(found, list(expected)) < EXPORT_TOLERANCE
        assert farthest([outputs["token_embeddings"][row]], [mixed]) < EXPORT_TOLERANCE
        mean = mixed.sum(axis=0) / max(1, n_tokens)
        assert farthest([outputs["sentence_embedding"][row]], [mean]) < EXPORT_TOLERANCE
        assert np.array_equal(outputs["mask"][row], np.arange(6 + columns) < n_tokens)


FLAVOURS: list[tuple[str, dict[str, Any]]] = [
    ("skip", {}),
    ("skip", {"precision": "fp16"}),
    ("skip", {"precision": "int8"}),
    ("no projection", {"characters": "dynamic", "layers": [1]}),
    ("words alone", {}),
    ("words alone", {"stateful": True, "precision": "fp16"}),
    ("manylangs", {"precision": "int8"}),
    ("manylangs", {"stateful": True}),
    ("skip", {"stateful": True, "precision": "int8", "characters": "dynamic"}),
]


@pytest.mark.parametrize(("name", "options"), FLAVOURS)
def test_nothing_in_is_nothing_out(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """No sentences, no columns or neither: empty outputs, and states as after empty sentences."""
    build_onnx(MODELS[name], tmp_path / "model.onnx", **options)
    elmo = OnnxElmo(tmp_path / "model.onnx", threads=1)
    size, stateful = elmo.output_size, elmo.metadata.stateful
    widths = {"character_ids": (elmo.metadata.config.max_characters,), "word_ids": ()}
    names = [name for name in input_names(elmo.metadata) if name in widths]
    absent = elmo.metadata.config.absent_word_id
    column: dict[str, Any] = {
        name: np.full((2, 1, *widths[name]), absent if name == "word_ids" else 0) for name in names
    }
    empty_sentences = elmo.run(**column)
    for shape in ((0, 3), (2, 0), (0, 0)):
        nothing: dict[str, Any] = {name: np.zeros((*shape, *widths[name]), np.int64) for name in names}
        outputs = elmo.run(**nothing)
        assert outputs["mask"].shape == shape and outputs["mask"].dtype == bool
        assert outputs["sentence_embedding"].shape == (shape[0], size) and not outputs["sentence_embedding"].any()
        for output in ("token_embeddings", *(f"hidden_states.{layer}" for layer in elmo.layers)):
            assert outputs[output].shape == (*shape, size)
            assert outputs[output].dtype == empty_sentences[output].dtype
        for state in STATES.values() if stateful else ():
            assert np.array_equal(outputs[state], empty_sentences[state][:, : shape[0]])


@pytest.mark.parametrize("name", ["skip", "no projection", "words alone", "manylangs", "manylangs, words alone"])
def test_states_match_the_reference(name: str, tmp_path: Path) -> None:
    """Three batches of unlike lengths, an empty sentence in each, from the states of the batch before."""
    model = MODELS[name]
    file = File(model, tmp_path / "model.onnx", stateful=True)
    reference = ReferenceRuntime(model, stateful=True)
    states = file.zero_states(5)
    for shift in range(3):
        batch = SENTENCES[shift:] + SENTENCES[:shift]
        outputs = file.run(file.inputs(batch, shift) | states)
        for row, layers in enumerate(reference.embed_batch(batch)):
            found = [outputs[f"hidden_states.{k}"][row, : layers.shape[1]] for k in range(len(layers))]
            assert farthest(found, list(layers)) < EXPORT_TOLERANCE
        states = {name: outputs[new] for name, new in STATES.items()}
        carried = reference.elmo.state
        assert carried is not None
        expected = [carried.hidden.flatten(0, 1).numpy(), carried.cell.flatten(0, 1).numpy()]
        assert farthest([states[name] for name in STATES], expected) < EXPORT_TOLERANCE


def test_the_original_size_matches_the_reference(tmp_path: Path, text: list[list[str]]) -> None:
    model = published_size("original", seed=1)
    file = File(model, tmp_path / "model.onnx")
    sentences = [text[1][:9], [], text[2][:1], ["antidisestablishmentarianism" * 2, "é"]]
    assert farthest(file.embed(sentences), list(ReferenceRuntime(model).embed_batch(sentences))) < EXPORT_TOLERANCE


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_rounded_variants_are_near_the_reference(precision: str, tmp_path: Path, text: list[list[str]]) -> None:
    file = File(GENTLE, tmp_path / "model.onnx", precision=precision)
    expected = np.concatenate(ReferenceRuntime(GENTLE).embed_batch(text[:12]), axis=1)
    found = np.concatenate(file.embed(text[:12]), axis=1)
    assert found.dtype == (np.float16 if precision == "fp16" else np.float32)
    for layer, (one, other) in enumerate(zip(found, expected, strict=True)):
        error = np.linalg.norm(one - other) / np.linalg.norm(other)
        exact = precision == "int8" and layer == 0  # the characters' matrices stay float32
        assert error < 1e-6 if exact else 0 < error < tolerance(precision, "onnx")


# What must not matter


def test_a_sentence_does_not_depend_on_its_company(tmp_path: Path, text: list[list[str]]) -> None:
    file = File(MODELS["skip"], tmp_path / "model.onnx")
    together = file.embed(text[:20])
    alone = [file.embed([sentence])[0] for sentence in text[:20]]
    assert farthest(together, alone) < EXPORT_TOLERANCE
    assert farthest(file.embed(text[:20], columns=9), together) < EXPORT_TOLERANCE


def test_in_8_bits_a_sentence_has_its_own_bits(tmp_path: Path, text: list[list[str]]) -> None:
    file = File(MODELS["skip"], tmp_path / "model.onnx", precision="int8")
    together = file.embed(text[:20])
    for number in (0, 7, 19):
        assert np.array_equal(file.embed([text[number]])[0], together[number])


@pytest.mark.parametrize("stateful", [False, True])
def test_holes_in_a_sentence_harm_nobody(stateful: bool, tmp_path: Path) -> None:
    """Whoever fills the columns before or between the tokens gets these tokens' vectors, and so do all others."""
    file = File(MODELS["skip"], tmp_path / "model.onnx", stateful=stateful)
    sentences = [["the", "cat", "sat", "on"], ["cat"], ["é", "sat"], ["a"], ["the", "the", "cat"]]
    columns = [[1, 2, 5, 8], [8], [0, 8], [3], [0, 1, 2]]
    compact = file.inputs(sentences, columns=5)["character_ids"]
    spread = np.zeros_like(compact)
    for row, places in enumerate(columns):
        spread[row, places] = compact[row, : len(places)]
    states = file.zero_states(5) if stateful else {}
    expected, found = (file.run({"character_ids": ids} | states) for ids in (compact, spread))
    for row, places in enumerate(columns):
        for name in ("hidden_states.2", "token_embeddings"):
            one, other = found[name][row], expected[name][row]
            assert farthest([one[places]], [other[: len(places)]]) < EXPORT_TOLERANCE
            assert not np.delete(one, places, axis=0).any()
    assert farthest([found["sentence_embedding"]], [expected["sentence_embedding"]]) < EXPORT_TOLERANCE


@pytest.mark.parametrize("n_words", [1, WORDS_AT_ONCE - 1, WORDS_AT_ONCE, WORDS_AT_ONCE + 1, 3 * WORDS_AT_ONCE + 2])
def test_any_number_of_distinct_words(n_words: int, tmp_path: Path) -> None:
    """Blocks of words are filled up, and what fills them leaves no trace."""
    model = MODELS["skip"]
    file = File(model, tmp_path / "model.onnx")
    sentences = [[f"w{k}" for k in range(first, n_words, 2)] for first in range(min(2, n_words))]
    assert farthest(file.embed(sentences), list(ReferenceRuntime(model).embed_batch(sentences))) < EXPORT_TOLERANCE


@pytest.mark.parametrize("name", ["skip", "manylangs"])
@pytest.mark.parametrize("stateful", [False, True])
def test_positions_behind_the_longest_word_may_be_left_out(name: str, stateful: bool, tmp_path: Path) -> None:
    whole, file = (
        File(MODELS[name], tmp_path / "model.onnx", characters=characters, stateful=stateful)
        for characters in (None, "dynamic")
    )
    sentences = [["cat", "é"], ["the"]]
    states = file.zero_states(2) if stateful else {}
    inputs = file.inputs(sentences)
    expected = whole.run(inputs | states)
    for positions in (5, 8, 12):
        cut = inputs | {"character_ids": inputs["character_ids"][..., :positions]}
        found = file.run(cut | states)
        for output in file.outputs:
            assert np.array_equal(found[output], expected[output]), (output, positions)


def inner_value(file: File, name: str, sentences: Sentences) -> npt.NDArray[Any]:
    """A value that is no output of the file."""
    proto = onnx.load(file.path)
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    value: npt.NDArray[Any] = session.run([name], file.inputs(sentences))[0]
    return value


def test_distinct_words_run_through_the_characters_once(tmp_path: Path) -> None:
    """Of 40 equal words and one more, with padding, the convolutions see three."""
    file = File(MODELS["skip"], tmp_path / "model.onnx")
    assert inner_value(file, "words.all_maxima", [["cat"] * 40, ["sat"]]).shape == (1, 3, 12)


@pytest.mark.parametrize(
    ("lengths", "steps", "rows"),
    [
        ([9] * 20, 9, 20),  # nothing to gain
        ([9], 9, 1),
        ([0, 0], 1, 1),
        ([40, *[1] * 19], 46, 3),  # eight in a row at most
        ([*[20] * 8, *[3] * 24], 23, 16),
        ([30, 29, 28, 2, 2, 2, 1, 0], 30, 4),
    ],
)
def test_short_sentences_share_a_row_behind_long_ones(
    lengths: list[int], steps: int, rows: int, tmp_path: Path
) -> None:
    file = File(MODELS["skip"], tmp_path / "model.onnx")
    sentences = [["the", "cat", "sat", "é"] * 20 for _ in lengths]
    sentences = [sentence[:length] for sentence, length in zip(sentences, lengths, strict=True)]
    for direction in ("forward", "backward"):
        assert inner_value(file, f"lstm.1.{direction}.all_hidden", sentences).shape == (steps, rows, 4)
    assert (
        farthest(file.embed(sentences), list(ReferenceRuntime(MODELS["skip"]).embed_batch(sentences)))
        < EXPORT_TOLERANCE
    )


@pytest.fixture(scope="module")
def shared_file(tmp_path_factory: pytest.TempPathFactory) -> File:
    return File(MODELS["no clips, tanh"], tmp_path_factory.mktemp("shared") / "model.onnx")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=24), st.integers(0, 3))
def test_any_lengths_in_any_order(shared_file: File, lengths: list[int], columns: int) -> None:
    words = ["the", "cat", "sat", "on", "a", "mat", "é"]
    sentences = [[words[(b + t) % 7] for t in range(length)] for b, length in enumerate(lengths)]
    alone = [shared_file.embed([sentence])[0] for sentence in sentences]
    assert farthest(shared_file.embed(sentences, columns), alone) < EXPORT_TOLERANCE


# The graph


def test_recurrent_products_alone_stand_in_the_scans(tmp_path: Path) -> None:
    File(MODELS["skip"], tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    scans = {node.output[0]: node for node in proto.graph.node if node.op_type == "Scan"}
    assert len(scans) == 5  # the convolutions' blocks of words; two layers in two directions
    for output, scan in scans.items():
        if output.startswith("words."):
            continue
        body = Counter(node.op_type for node in scan.attribute[0].g.node)
        assert (body["Gemm"], body["MatMul"], body["Where"]) == (4, 1, 2)
    outside = Counter(node.op_type for node in proto.graph.node)
    assert outside["Gemm"] == 4 * 4 + 2 * 2 + 1  # four gates of four LSTMs, two highways, the projection
    assert outside["Unique"] == 1 and outside["ReverseSequence"] == 0


def test_layers_that_nobody_asks_for_are_left_out(tmp_path: Path) -> None:
    file = File(MODELS["skip"], tmp_path / "model.onnx", layers=[0], mix=[1, 0, 0])
    assert operators(file.path)["Scan"] == 1  # the convolutions'
    assert file.outputs == ["hidden_states.0", "token_embeddings", "sentence_embedding", "mask"]
    lower = File(MODELS["skip"], tmp_path / "lower.onnx", layers=[1], mix=[1, 0, 0])
    assert operators(lower.path)["Scan"] == 3
    expected = [layers[1:2] for layers in ReferenceRuntime(MODELS["skip"]).embed_batch(SENTENCES)]
    assert farthest(lower.embed(SENTENCES), expected) < EXPORT_TOLERANCE
    assert (tmp_path / "lower.onnx").stat().st_size > file.path.stat().st_size


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ["skip", "words alone", "manylangs"])
@pytest.mark.parametrize("stateful", [False, True])
def test_files_are_valid_onnx(name: str, precision: Any, stateful: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    build_onnx(MODELS[name], path, precision=precision, stateful=stateful)
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path)
    assert proto.ir_version == IR_VERSION == 8
    assert {opset.domain: opset.version for opset in proto.opset_import} == {"": OPSET} == {"": 18}
    batch = ["batch_size", "sequence_length"]
    for value in (*proto.graph.input, *proto.graph.output):
        axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if "state." in value.name:
            assert axes == [4, "batch_size", 6 if value.name.endswith("cell") else 4]
        else:
            assert axes[:2] == batch or (value.name == "sentence_embedding" and axes[:1] == batch[:1])


def test_names_mean_one_constant() -> None:
    graph = Graph()
    graph.constant("one", 1)
    graph.constant("one", 1)
    with pytest.raises(AssertionError, match="one"):
        graph.constant("one", 1, np.float32)


def test_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["skip"]
    inside, outside = File(model, tmp_path / "in.onnx"), File(model, tmp_path / "out.onnx", external_data=True)
    assert not (tmp_path / "in.onnx_data").exists()
    data, weights = (tmp_path / "out.onnx_data").stat().st_size, 4 * model.weights.n_parameters
    assert data > weights and outside.path.stat().st_size < inside.path.stat().st_size - weights // 2
    assert farthest(outside.embed(SENTENCES), inside.embed(SENTENCES)) == 0
    onnx.checker.check_model(str(outside.path), full_check=True)
    monkeypatch.setattr("flashelmo.export.build.LARGEST_FILE", 1000)
    build_onnx(model, tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx_data").stat().st_size == data


def test_external_data_replace_those_that_lie_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file of the same name in the current folder nor an earlier export gets in the way."""
    (tmp_path / "model.onnx_data").write_bytes(b"mine")
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path)
    File(MODELS["no projection"], tmp_path / "deep" / "model.onnx", external_data=True)
    size = (tmp_path / "deep" / "model.onnx_data").stat().st_size
    again = File(MODELS["no projection"], tmp_path / "deep" / "model.onnx", external_data=True)
    assert (tmp_path / "deep" / "model.onnx_data").stat().st_size == size
    assert (tmp_path / "model.onnx_data").read_bytes() == b"mine"
    expected = list(ReferenceRuntime(again.model).embed_batch(SENTENCES))
    assert farthest(again.embed(SENTENCES), expected) < EXPORT_TOLERANCE


# Other readers


@pytest.mark.parametrize("name", MODELS)
def test_openvino_reads_the_file(name: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from flashelmo.engine.cpu.openvino import core

    file = File(MODELS[name], tmp_path / "model.onnx")
    compiled = core().compile_model(file.path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = file.inputs(SENTENCES, columns=1)
    expected, found = file.run(inputs), compiled(inputs)
    assert (
        farthest([found[name] for name in file.outputs if name != "mask"], list(expected.values())[:-1])
        < EXPORT_TOLERANCE
    )
    assert np.array_equal(found["mask"], expected["mask"])


def test_openvino_in_bf16(tmp_path: Path, text: list[list[str]]) -> None:
    pytest.importorskip("openvino")
    from flashelmo.engine.cpu.openvino import core, has_bf16

    if not has_bf16():
        pytest.skip("this processor has no bfloat16 products")
    file = File(published_size("small", seed=0), tmp_path / "model.onnx")
    compiled = core().compile_model(file.path, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    inputs = file.inputs(text[:4])
    expected, found = file.run(inputs), compiled(inputs)
    for name in file.outputs[:-1]:
        error = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
        assert 0 < error < tolerance("bf16"), name


# Metadata, and arguments that are wrong


def test_metadata_survive(tmp_path: Path) -> None:
    model = MODELS["manylangs"]
    written = build_onnx(
        model, tmp_path / "model.onnx", precision="int8", layers=[2, 0], mix=[0, 1, 2], license="cc-by-4.0"
    )
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert Metadata.from_properties(properties, "model.onnx") == written
    assert (written.layers, written.mix, written.license) == ((0, 2), (0.0, 1.0, 2.0), "cc-by-4.0")
    assert written.weights_sha256 == model.sha256 != MODELS["skip"].sha256
    assert written.int8_levels in (63, 127)


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "m.onnx: expected a model exported by flashelmo, found no metadata of it"),
        ({"format": "flashelmo", "format_version": "9"}, "m.onnx: expected format_version 1, found 9"),
        ({"format": "flashelmo", "format_version": "1"}, "m.onnx: damaged metadata: KeyError('config')"),
    ],
)
def test_other_metadata_are_refused(properties: dict[str, str], message: str) -> None:
    with pytest.raises(FlashElmoError) as error:
        Metadata.from_properties(properties, "m.onnx")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision: expected fp32, fp16, int8, found 'fp8'"),
        ({"layers": [0, 3]}, "layers: expected different numbers from 0 to 2, found [0, 3]"),
        ({"layers": [1, 1]}, "layers: expected different numbers from 0 to 2, found [1, 1]"),
        ({"mix": [1, 2]}, "mix: expected 3 finite coefficients, not all 0, found [1.0, 2.0]"),
        ({"mix": [0, 1e39, 0]}, "mix: expected numbers that float32 can hold, found 1e+39"),
        ({"mix": [0, 0, 0]}, "mix: expected 3 finite coefficients, not all 0, found [0.0, 0.0, 0.0]"),
        ({"mix": [0, 1, np.inf]}, "mix: expected a finite number for each layer, found [0, 1, inf]"),
        ({"characters": 50}, "characters: expected 12 or 'dynamic', found 50"),
        ({"reduce_range": 1}, "reduce_range: expected True or False, found 1"),
        ({"external_data": 1}, "external_data: expected True or False, found 1"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FlashElmoError) as error:
        build_onnx(MODELS["skip"], tmp_path / "model.onnx", **options)
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_weights_that_16_bits_cannot_hold(tmp_path: Path) -> None:
    model = random_model(BILM)
    model.weights.lstm[0][1].bias[2, 3] = 7e4
    with pytest.raises(FlashElmoError) as error:
        build_onnx(model, tmp_path / "model.onnx", precision="fp16")
    expected = "tensor lstm.0.backward.bias: expected values within float16's range, found 70000"
    assert str(error.value) == f"random: {expected}"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FlashElmoError, match=r"none/model\.onnx: cannot be written: No such file or directory"):
        build_onnx(MODELS["skip"], tmp_path / "none" / "model.onnx")
