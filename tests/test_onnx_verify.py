"""The gate of exported files: what is right passes, and each thing that is wrong fails with a line that names it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny_models import BILM, MODELS, WORDS, random_model

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import PRECISIONS, Bound, tolerance
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.export.build import build_onnx
from flashelmo.export.metadata import Metadata
from flashelmo.export.verification import verify as gate
from flashelmo.export.verification.cases import Batch, Case, make_cases
from flashelmo.export.verification.compare import Comparison, bounds_of_outputs, expected_outputs, output_error
from flashelmo.export.verification.report import CaseResult, OutputError, Report, short, table
from flashelmo.export.verification.sentences import SENTENCES
from flashelmo.export.verification.session import token_mask
from flashelmo.export.verification.truth import Truth
from flashelmo.export.verification.verify import verify
from flashelmo.export.verification.weights import weight_problems
from flashelmo.export.write import _enter_report

TEXT = SENTENCES[:9]
BOUNDS = {name: each.onnx.bound for name, each in PRECISIONS.items() if each.onnx is not None}
EXACT = tolerance("fp32", "onnx")
TEXT_CASES = ["text, batches of 1", "text, batches of 3", "text, batches of 8", "text, batches of 32"]
OUTPUTS = ["hidden_states.0", "hidden_states.1", "hidden_states.2", "token_embeddings", "sentence_embedding"]
# Tiny models in which a rounded weight is a small part of its sum, with weights of 7 bits too: others break the bounds.
WELL_CONDITIONED = ["no clips, tanh", "three layers, no highway", "words alone", "manylangs"]


@cache
def truth(name: str) -> Truth:
    """Computed once for all tests."""
    return Truth(MODELS[name])


def check(path: Path, name: str = "skip", **settings: Any) -> Report:
    """Verify on a short text, unless another is given."""
    settings = {"sentences": TEXT, "batch_sizes": (3,), **settings}
    return verify(path, MODELS[name], truth=truth(name), **settings)


# What is right


@pytest.mark.parametrize("name", MODELS)
def test_every_model_passes(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    metadata = build_onnx(model, tmp_path / "model.onnx")
    report = check(tmp_path / "model.onnx", name, sentences=None, batch_sizes=(1, 3, 8, 32), expected=metadata)
    assert report.failures == ()
    assert report.passed
    names = [*TEXT_CASES, "empty sentences", "columns of padding"]
    names += ["short, long and multi-byte words"] * bool(model.config.character_size)
    names += ["words of the lexicon"] * (model.lexicon is not None)
    assert [case.name for case in report.cases] == names
    for case in report.cases:
        vectors = {error.name: error.vectors for error in case.outputs}
        assert vectors.pop("sentence_embedding") > 0
        assert set(vectors) == {f"hidden_states.{k}" for k in range(model.config.n_layers + 1)} | {"token_embeddings"}
        assert set(vectors.values()) == {case.tokens}
    assert [case.tokens for case in report.cases[:4]] == [486] * 4
    assert max(error.max_abs for error in report.outputs) < EXACT
    assert min(error.cosine for error in report.outputs) > 1 - 1e-6


@pytest.mark.parametrize("name", ["skip", "words alone", "manylangs"])
def test_stateful_files_pass(name: str, tmp_path: Path) -> None:
    metadata = build_onnx(MODELS[name], tmp_path / "model.onnx", stateful=True)
    report = check(tmp_path / "model.onnx", name, sentences=SENTENCES[:20], expected=metadata)
    assert report.failures == ()
    carried = report.cases[-1]
    assert (carried.name, carried.batches, carried.sentences) == ("state carried", 5, 15)
    vectors = {error.name: error.vectors for error in carried.outputs}
    rows = 2 * MODELS[name].config.n_layers * 15
    assert vectors["new_state.hidden"] == vectors["new_state.cell"] == rows
    assert vectors["hidden_states.1"] == carried.tokens == sum(map(len, SENTENCES[:14]))
    assert {error.name for error in report.outputs} == {*OUTPUTS, "new_state.hidden", "new_state.cell"}


def test_chosen_layers_a_mix_and_free_characters_pass(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"layers": [2], "mix": [2.5, -0.5, 3.0], "characters": "dynamic"}
    metadata = build_onnx(MODELS["skip"], tmp_path / "model.onnx", **settings)
    report = check(tmp_path / "model.onnx", expected=metadata)
    assert report.failures == ()
    assert [error.name for error in report.outputs] == ["hidden_states.2", "token_embeddings", "sentence_embedding"]
    assert report.bounds["hidden_states.2"] == BOUNDS["fp32"]
    assert report.bounds["token_embeddings"].max_abs == pytest.approx(6 * EXACT)  # what is multiplied by 6 errs by 6


@pytest.mark.parametrize("name", WELL_CONDITIONED)
@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_rounded_files_pass_within_their_bounds(precision: Any, stateful: bool, name: str, tmp_path: Path) -> None:
    metadata = build_onnx(MODELS[name], tmp_path / "model.onnx", precision=precision, stateful=stateful)
    report = check(tmp_path / "model.onnx", name, expected=metadata)
    assert report.failures == ()
    errors = {error.name: error for error in report.outputs}
    assert errors["hidden_states.1"].relative > 1e-4  # nobody computed in float32
    if precision == "int8":
        assert errors["hidden_states.0"].max_abs < EXACT
        assert report.int8_levels in (63, 127)
        assert "8-bit weights of at most" in report.to_markdown()


def test_a_bound_of_ones_own_is_kept(tmp_path: Path) -> None:
    metadata = build_onnx(MODELS["skip"], tmp_path / "model.onnx", precision="int8")
    strict = {**BOUNDS, "int8": Bound(max_abs=1e-4, cosine=0.9999999)}
    report = check(tmp_path / "model.onnx", bounds=strict, expected=metadata)
    assert not report.passed
    assert {line.split(": ")[1] for line in report.failures} == set(OUTPUTS) - {"hidden_states.0"}
    assert any("hidden_states.1: least cosine 0.9" in line for line in report.failures)
    assert any("hidden_states.1: max abs error" in line and "expected < 1e-4" in line for line in report.failures)


# What is wrong


RIGHT: dict[str, tuple[bytes, Metadata]] = {}


def break_file(path: Path, change: Callable[[onnx.ModelProto], None], name: str = "skip", **settings: Any) -> Report:
    """Export, edit, verify. The file was right before: each is made and verified once."""
    path, key = path / "model.onnx", f"{name} {settings}"
    if key not in RIGHT:
        metadata = build_onnx(MODELS[name], path, **settings)
        assert check(path, name, expected=metadata).passed
        RIGHT[key] = path.read_bytes(), metadata
    data, metadata = RIGHT[key]
    model = onnx.load_from_string(data)
    change(model)
    onnx.save_model(model, path)
    report = check(path, name, expected=metadata)
    assert not report.passed
    assert all(line.startswith("model.onnx: ") and "\n" not in line for line in report.failures)
    return report


def subjects(report: Report) -> set[str]:
    """What the failures are about."""
    return {line.split(": ")[1] for line in report.failures}


def differs(weight: str) -> str:
    """The failure."""
    return f"model.onnx: weights: {weight}: differs from the model's"


def edit_weight(model: onnx.ModelProto, name: str, value: float) -> None:
    """Set the first entry of a weight."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename values in all nodes."""
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]


def behind(model: onnx.ModelProto, output: str, kind: str, *inputs: np.ndarray) -> None:
    """Put one operation behind an output."""
    rename(model, {output: f"{output}.before"})
    names = [f"{output}.{k}" for k in range(len(inputs))]
    arrays = zip(inputs, names, strict=True)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for array, name in arrays)
    model.graph.node.append(helper.make_node(kind, [f"{output}.before", *names], [output]))


def test_one_changed_weight_fails_from_its_layer_on(tmp_path: Path) -> None:
    name = "lstm.1.backward.recurrent_weight.forget"
    report = break_file(tmp_path, lambda model: edit_weight(model, name, 1.5))
    assert subjects(report) == {"weights", "hidden_states.2", "token_embeddings", "sentence_embedding"}
    assert f"model.onnx: weights: {name}: differs from the model's" in report.failures
    (line,) = (line for line in report.failures if "hidden_states.2: max abs error" in line)
    found, _, rest = line.removeprefix("model.onnx: hidden_states.2: max abs error ").partition(", expected < ")
    assert float(found) > 1e-3
    assert rest.startswith(f"{short(EXACT)} (")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_one_changed_weight_fails_in_rounded_files_too(precision: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"name": "three layers, no highway", "precision": precision}
    report = break_file(tmp_path, lambda model: edit_weight(model, "projection.weight", 5.0), **settings)
    assert {"hidden_states.0", "hidden_states.1"} <= subjects(report)
    assert [line for line in report.failures if ": weights: " in line] == [differs("projection.weight")]


WEIGHTS = [
    ("skip", "fp32", "lstm.0.forward.recurrent_weight.input"),
    ("skip", "fp32", "lstm.1.backward.boundary_cell"),
    ("three layers, no highway", "fp16", "lstm.2.forward.projection"),
    ("three layers, no highway", "fp16", "lstm.0.backward.boundary_hidden"),
    ("three layers, no highway", "int8", "lstm.2.forward.input_weight.candidate"),
    ("three layers, no highway", "int8", "lstm.2.forward.projection.scale"),
]


@pytest.mark.parametrize(("name", "precision", "weight"), WEIGHTS)
def test_every_weight_must_be_the_models(name: str, precision: Any, weight: str, tmp_path: Path) -> None:
    """By whatever little: no output tells."""

    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == weight)
        values = numpy_helper.to_array(tensor).copy()
        if "boundary" in weight:  # the least that is no rounding
            values.flat[0] += 5e-5 if precision == "fp32" else 0.01
        elif values.dtype == np.int8:
            values.flat[0] += 1 if values.flat[0] < 0 else -1
        else:
            values.flat[0] = np.nextafter(values.flat[0], values.dtype.type(9))
        tensor.CopyFrom(numpy_helper.from_array(values, weight))

    report = break_file(tmp_path, change, name, precision=precision)
    assert [line for line in report.failures if ": weights: " in line] == [differs(weight)]
    if "boundary" not in weight:
        assert subjects(report) == {"weights"}


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_weight_and_coefficient_is_looked_at(precision: Any, stateful: bool, tmp_path: Path) -> None:
    metadata = build_onnx(MODELS["skip"], tmp_path / "model.onnx", precision=precision, stateful=stateful)
    graph = onnx.load(tmp_path / "model.onnx")
    initializers = list(graph.graph.initializer)
    del graph.graph.initializer[:]
    lines = weight_problems(tmp_path / "model.onnx", graph, metadata, MODELS["skip"])
    missing = {line.removeprefix("weights: ").removesuffix(": missing") for line in lines}
    assert missing == {tensor.name for tensor in initializers if tensor.data_type != onnx.TensorProto.INT64}
    for part in ("characters", "convolutions", "projection.weight", "lstm.1.backward.projection", "mix.2"):
        assert part in missing
    assert sum(name.endswith(("_low", "_high")) for name in missing) == 16  # cells and projections, clipped
    assert sum(".boundary_" in name for name in missing) == (0 if stateful else 8)


def test_a_weight_of_another_type_or_shape_fails(tmp_path: Path) -> None:
    metadata = build_onnx(MODELS["skip"], tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    for tensor in graph.graph.initializer:
        if tensor.name == "projection.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((2, 2), np.float16), tensor.name))
    (line,) = weight_problems(tmp_path / "model.onnx", graph, metadata, MODELS["skip"])
    assert line == "weights: projection.bias: found float16 [2, 2], expected float32 [4]"


def test_external_weights_must_be_the_models_too(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    build_onnx(MODELS["skip"], path, external_data=True)
    assert check(path).passed
    (tensor,) = (t for t in onnx.load(path, load_external_data=False).graph.initializer if t.name == "characters")
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = path.with_name(place["location"])
    values = bytearray(data.read_bytes())
    values[int(place["offset"])] ^= 1  # the last bit of a character that no text has
    data.write_bytes(values)
    assert check(path).failures == (differs("characters"),)


def test_external_data_that_are_cut_off_fail(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    metadata = build_onnx(MODELS["skip"], path, external_data=True)
    data = path.with_name("model.onnx_data")
    data.write_bytes(data.read_bytes()[:-1])
    graph = onnx.load(path, load_external_data=False)
    (line,) = weight_problems(path, graph, metadata, MODELS["skip"])
    assert line.startswith("weights: ") and ": cannot be read: " in line and str(tmp_path) not in line


def test_the_weights_are_let_go_before_text_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_onnx(MODELS["skip"], tmp_path / "model.onnx")
    graphs: list[onnx.ModelProto] = []
    alone = [onnx.ModelProto()]
    counts: list[int] = []
    read_graph, run_cases = gate.read_graph, gate._run_cases

    def read(path: Path) -> tuple[onnx.ModelProto, Metadata]:
        graph, metadata = read_graph(path)
        graphs.append(graph)
        return graph, metadata

    def run(*arguments: Any) -> list[CaseResult]:
        counts.extend((sys.getrefcount(graphs[0]), sys.getrefcount(alone[0])))
        return run_cases(*arguments)

    monkeypatch.setattr(gate, "read_graph", read)
    monkeypatch.setattr(gate, "_run_cases", run)
    assert check(tmp_path / "model.onnx").passed
    assert counts[0] == counts[1]  # nothing but the list here


def test_a_mix_that_the_metadata_do_not_tell_fails(tmp_path: Path) -> None:
    report = break_file(tmp_path, lambda model: edit_weight(model, "mix.1", 0.4))
    assert subjects(report) == {"weights", "token_embeddings", "sentence_embedding"}
    assert differs("mix.1") in report.failures


def test_small_coefficients_do_not_hide_zeros(tmp_path: Path) -> None:
    zero = np.array(0, np.float32)
    settings: dict[str, Any] = {"mix": [1e-6] * 3}
    report = break_file(tmp_path, lambda model: behind(model, "token_embeddings", "Mul", zero), **settings)
    assert {"token_embeddings", "sentence_embedding"} >= subjects(report) >= {"token_embeddings"}
    lines = [line for line in report.failures if ": token_embeddings: " in line]
    kinds = (
        "max abs error",
        f"relative error 1, expected < {short(BOUNDS['fp32'].relative or 0)}",
        "worst vector 1, expected < 1e-3",
        "least cosine 0",
    )
    assert len(lines) == 4 and all(kind in line for kind, line in zip(kinds, lines, strict=True))


def test_a_mix_that_nobody_asked_for_fails(tmp_path: Path) -> None:
    metadata = build_onnx(MODELS["skip"], tmp_path / "model.onnx", mix=[0.2, 0.3, 0.5])
    assert check(tmp_path / "model.onnx", expected=metadata).passed
    report = check(tmp_path / "model.onnx", expected=replace(metadata, mix=(0.2, 0.5, 0.3), report_sha256="0"))
    assert report.failures == ("model.onnx: metadata: mix: found (0.2, 0.3, 0.5), expected (0.2, 0.5, 0.3)",)


def test_swapped_layers_fail(tmp_path: Path) -> None:
    names = {"hidden_states.1": "hidden_states.2", "hidden_states.2": "hidden_states.1"}
    report = break_file(tmp_path, lambda model: rename(model, names))
    assert subjects(report) == {"hidden_states.1", "hidden_states.2"}


TINY = np.array([1e-7], np.float32)  # far within every bound


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda model: behind(model, "mask", "Or", np.array([True])),
            "mask: differs from where the tokens are (text, batches of 3)",
        ),
        (
            lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[1], "dim_param", "words"),
            "input character_ids: found int64 [batch_size, words, 12], expected int64 [batch_size, sequence_length, "
            "12]",
        ),
        (lambda model: setattr(model.opset_import[0], "version", 19), "opset: found 19, expected 18"),
        (lambda model: setattr(model, "ir_version", 9), "ir_version: found 9, expected at most 8"),
        (
            lambda model: behind(model, "hidden_states.1", "Add", TINY),
            "hidden_states.1: not zero where there is no token (text, batches of 3)",
        ),
        (
            lambda model: behind(model, "sentence_embedding", "Add", TINY),
            "sentence_embedding: not zero where there is no token (empty sentences)",
        ),
        (
            lambda model: behind(model, "sentence_embedding", "Unsqueeze", np.array([0])),
            "sentence_embedding: shape [1, 3, 8], expected [3, 8] (text, batches of 3)",
        ),
    ],
)
def test_a_change_is_a_line(change: Callable[[onnx.ModelProto], None], line: str, tmp_path: Path) -> None:
    report = break_file(tmp_path, change)
    assert f"model.onnx: {line}" in report.failures
    assert report.outputs  # the rest was looked at all the same
    if "not zero" in line:
        assert len(report.failures) == 1


def test_a_renamed_output_fails(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        rename(model, {"sentence_embedding": "embedding"})
        (output,) = (output for output in model.graph.output if output.name == "sentence_embedding")
        output.name = "embedding"

    assert set(break_file(tmp_path, change).failures) == {
        "model.onnx: output embedding: unexpected",
        "model.onnx: output sentence_embedding: missing",
        "model.onnx: sentence_embedding: nothing was compared",
    }


def test_a_missing_state_fails_without_a_traceback(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        (output,) = (output for output in model.graph.output if output.name == "new_state.cell")
        model.graph.output.remove(output)

    report = break_file(tmp_path, change, stateful=True)
    assert "model.onnx: output new_state.cell: missing" in report.failures
    assert "model.onnx: new_state.cell: nothing was compared" in report.failures


def test_a_file_that_does_not_load_fails(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 99

    report = break_file(tmp_path, change)
    assert {"opset", "ONNX Runtime cannot load it"} <= subjects(report)
    assert (report.cases, report.tokens, report.outputs) == ((), 0, ())


def test_what_the_checker_finds_fails(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("NoSuchOperation", ["mask"], ["nothing"]))

    report = break_file(tmp_path, change)
    assert any("onnx.checker: No Op registered for NoSuchOperation" in line for line in report.failures)
    assert str(tmp_path) not in report.to_json()


def test_what_is_not_finite_fails(tmp_path: Path) -> None:
    report = break_file(tmp_path, lambda model: edit_weight(model, "mix.2", math.nan))
    assert "model.onnx: token_embeddings: holds NaN or infinity (text, batches of 3)" in report.failures
    assert any(f"token_embeddings: max abs error inf, expected < {short(EXACT)}" in line for line in report.failures)
    assert json.loads(report.to_json())["passed"] is False  # JSON, though it knows no infinity


def test_an_operation_that_fails_is_a_line(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        behind(model, "mask", "Reshape", np.array([7, 7]))

    assert "ONNX Runtime failed" in subjects(break_file(tmp_path, change))


def test_a_state_that_is_not_passed_on_fails(tmp_path: Path) -> None:
    zero = np.array(0, np.float32)
    report = break_file(tmp_path, lambda model: behind(model, "new_state.hidden", "Mul", zero), stateful=True)
    assert any(line.endswith(f"expected < {short(EXACT)} (state carried)") for line in report.failures)
    # the next batch starts from the state that the file gave
    assert {"new_state.hidden", "hidden_states.1"} <= subjects(report)
    assert "hidden_states.0" not in subjects(report)


def test_an_error_in_few_words_is_not_averaged_away(tmp_path: Path) -> None:
    """Words at the limit of characters are few, and wrong by less than the bound of all tokens together."""
    name = "three layers, no highway"
    metadata = build_onnx(MODELS[name], tmp_path / "model.onnx", precision="int8")
    report = check(tmp_path / "model.onnx", name, sentences=SENTENCES, expected=metadata)
    many, few = report.cases[0], report.cases[-1]
    wrong = replace(few.outputs[1], relative=0.06)
    cases = (*report.cases[:-1], replace(few, outputs=(few.outputs[0], wrong, *few.outputs[2:])))
    assert wrong.vectors < many.tokens / 20
    lines = gate._broken_bounds(cases, report.bounds)
    assert lines == ["hidden_states.1: relative error 0.06, expected < 0.03 (short, long and multi-byte words)"]


# Another model


def test_another_configuration_is_not_compared(tmp_path: Path) -> None:
    build_onnx(MODELS["no skip"], tmp_path / "model.onnx")
    report = check(tmp_path / "model.onnx")
    assert not report.passed and report.cases == ()
    assert "model.onnx: metadata: config: differs from what was expected" in report.failures
    assert not any("weights_sha256" in line for line in report.failures)  # both were drawn from one seed


def test_other_weights_fail(tmp_path: Path) -> None:
    build_onnx(random_model(BILM, seed=1), tmp_path / "model.onnx")
    report = check(tmp_path / "model.onnx")
    assert subjects(report) == {"metadata", "weights", *OUTPUTS}
    graph = onnx.load(tmp_path / "model.onnx").graph
    weights = {t.name for t in graph.initializer if t.name.startswith(("lstm.", "convolutions", "highways."))}
    weights = {name for name in weights if not name.endswith(("_low", "_high"))}  # the clips are the same
    assert len(weights) > 40
    assert {differs(name) for name in weights} <= set(report.failures)
    assert report.failures[0].startswith("model.onnx: metadata: weights_sha256: found ")


def test_another_lexicon_fails(tmp_path: Path) -> None:
    words = dict(WORDS.words) | {"the": 5, "cat": 4}
    build_onnx(replace(MODELS["words alone"], lexicon=replace(WORDS, words=words)), tmp_path / "model.onnx")
    report = check(tmp_path / "model.onnx", "words alone")
    assert {"lexicon", "weights_sha256"} <= {line.split(": ")[2] for line in report.failures if ": metadata: " in line}
    assert any("(words of the lexicon)" in line or "(text" in line for line in report.failures)


def test_the_report_beside_the_file_must_be_its_own(tmp_path: Path) -> None:
    path, beside = tmp_path / "model.onnx", tmp_path / "model.report.json"
    build_onnx(MODELS["skip"], path)
    report = check(path)
    _enter_report(path, report)
    beside.unlink()
    assert check(path).passed  # there is none
    beside.write_text(report.to_json(), encoding="utf-8")
    assert check(path).passed
    beside.write_text(report.to_json().replace('"passed": true', '"passed": True'), encoding="utf-8")
    (line,) = check(path).failures
    assert line.startswith(f"model.onnx: metadata: report_sha256: found {report.digest()}, expected ")
    assert line.endswith(", that of model.report.json")
    build_onnx(MODELS["skip"], path)
    assert check(path).passed  # none is told


# Nothing compared


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sentences": []}, "sentences: expected some with tokens"),
        ({"sentences": [[], []]}, "sentences: expected some with tokens"),
        ({"batch_sizes": ()}, "batch_sizes: expected 1 or more, found"),
        ({"batch_sizes": (0,)}, "batch_sizes: expected 1 or more, found"),
        ({"batch_sizes": (3, -1)}, "batch_sizes: expected 1 or more, found"),
        ({"truth": Truth(MODELS["no skip"])}, "truth: expected that of this model"),
        ({"providers": ["NoExecutionProvider"]}, "providers: expected some of .*, found NoExecutionProvider"),
    ],
)
def test_what_is_not_verified_with(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    build_onnx(MODELS["skip"], tmp_path / "model.onnx")
    with pytest.raises(FlashElmoError, match=f"^{message}"):
        verify(tmp_path / "model.onnx", MODELS["skip"], **settings)


@pytest.mark.parametrize("cases", [[], [Case("nothing", ())], [Case("empty", (Batch(((), ())),))]])
def test_cases_without_tokens_fail(cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_onnx(MODELS["skip"], tmp_path / "model.onnx")
    monkeypatch.setattr(gate, "make_cases", lambda *arguments: cases)
    report = check(tmp_path / "model.onnx")
    assert not report.passed
    assert {f"model.onnx: {name}: nothing was compared" for name in OUTPUTS} <= set(report.failures)
    assert {f"model.onnx: {case.name}: no token was compared" for case in cases} <= set(report.failures)


def test_a_report_of_nothing_has_not_passed() -> None:
    report = make_report(())
    assert report.failures == () and not report.passed


# Files and providers


def test_what_is_no_exported_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlashElmoError, match="found no file"):
        check(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no protobuf")
    with pytest.raises(FlashElmoError, match="expected an ONNX model"):
        check(tmp_path / "model.onnx")
    onnx.save_model(helper.make_model(helper.make_graph([], "empty", [], [])), tmp_path / "model.onnx")
    with pytest.raises(FlashElmoError, match="expected a model exported by flashelmo"):
        check(tmp_path / "model.onnx")


def test_external_data_are_read(tmp_path: Path) -> None:
    metadata = build_onnx(MODELS["skip"], tmp_path / "model.onnx", external_data=True)
    assert (tmp_path / "model.onnx_data").stat().st_size > 1000
    assert check(tmp_path / "model.onnx", expected=metadata).passed


# The truth


def test_the_reference_computes_each_sentence_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[tuple[str, ...]] = []
    embed_batch = ReferenceRuntime.embed_batch

    def counted(self: ReferenceRuntime, sentences: Any) -> Any:
        computed.extend(sentences)
        return embed_batch(self, sentences)

    monkeypatch.setattr(ReferenceRuntime, "embed_batch", counted)
    fresh = Truth(MODELS["skip"])
    first = fresh.layers([*TEXT, TEXT[0], ()])
    again = fresh.layers([TEXT[3], TEXT[0]])
    assert sorted(computed) == sorted({*TEXT, ()})
    assert np.array_equal(again[0], first[3]) and np.array_equal(again[1], first[0])
    assert [layers.shape for layers in first] == [(3, len(sentence), 8) for sentence in [*TEXT, TEXT[0], ()]]
    batches = Batch(TEXT[:2]), Batch(TEXT[2:3])
    computed.clear()
    assert fresh.carried(batches) is fresh.carried(batches)
    assert computed == list(TEXT[:3])


def test_carried_states_are_those_of_the_batchs_rows() -> None:
    batches = Batch(TEXT[:2]), Batch(TEXT[2:3]), Batch(TEXT[3:5])
    carried = truth("skip").carried(batches)
    runtime = ReferenceRuntime(MODELS["skip"], stateful=True)
    everything = [runtime.embed_batch(batch.sentences) for batch in batches]
    for (layers, states), expected, batch in zip(carried, everything, batches, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(layers, expected, strict=True))
        assert {name: state.shape for name, state in states.items()} == {
            "hidden": (4, len(batch.sentences), 4),
            "cell": (4, len(batch.sentences), 6),
        }
    assert runtime.elmo.state is not None
    hidden = runtime.elmo.state.hidden.numpy()  # [layers, directions, rows, P]
    assert np.array_equal(carried[-1][1]["hidden"][3], hidden[1, 1])
    fresh = truth("skip").layers(TEXT[2:3])[0]
    assert not np.allclose(carried[1][0][0][1], fresh[1])  # it went on from the first batch


# Cases


def test_words_of_every_length_around_the_limit() -> None:
    config = replace(BILM, max_characters=50)
    cases = {case.name: case for case in make_cases(random_model(config), SENTENCES, (1, 40), stateful=False)}
    (batch,) = cases["short, long and multi-byte words"].batches
    lengths = {len(word) for sentence in batch.sentences for word in sentence}
    assert {1, 47, 48, 49, 50, 60} <= lengths
    sizes = {len(character.encode()) for sentence in batch.sentences for word in sentence for character in word}
    assert sizes == {1, 2, 3, 4}
    assert ("a",) in batch.sentences
    assert [len(batch.sentences) for batch in cases["text, batches of 40"].batches] == [40]
    assert len(cases["text, batches of 1"].batches) == 40


def test_empty_sentences_and_padding_have_their_cases() -> None:
    cases = {case.name: case for case in make_cases(MODELS["skip"], SENTENCES, (3,), stateful=True)}
    within, alone, one, *nothing = cases["empty sentences"].batches
    assert [token_mask(batch).shape for batch in nothing] == [(2, 0), (0, 3), (0, 0)]
    assert () in within.sentences and any(within.sentences)
    assert (alone.sentences, one.sentences) == (((), ()), ((),))
    assert cases["columns of padding"].batches[0].extra_columns > 0
    rows = [len(batch.sentences) for batch in cases["state carried"].batches]
    assert min(rows) == 1 and rows[0] < max(rows) and rows[-1] < max(rows)
    assert any(() in batch.sentences for batch in cases["state carried"].batches)


def test_words_are_sampled_from_the_whole_lexicon() -> None:
    words = {"<S>": 1, "</S>": 2, "<UNK>": 3} | {f"w{k}": 4 + k for k in range(1000)}
    model = replace(MODELS["words alone"], lexicon=replace(WORDS, words=words))
    cases = {case.name: case for case in make_cases(model, SENTENCES, (8,), stateful=False)}
    sampled = [word for batch in cases["words of the lexicon"].batches for s in batch.sentences for word in s]
    numbers = [int(word[1:]) for word in sampled if word.startswith("w")]
    assert len(sampled) == 64 and len(set(sampled)) == 64
    assert max(np.diff(sorted(numbers))) < 20 and max(numbers) > 900


def test_characters_of_the_lexicon_make_words() -> None:
    model = MODELS["manylangs, characters alone"]
    cases = {case.name: case for case in make_cases(model, SENTENCES, (8,), stateful=False)}
    sampled = [word for batch in cases["words of the lexicon"].batches for s in batch.sentences for word in s]
    assert sorted("".join(word for word in sampled if set(word) <= set("cat"))[:3]) == ["a", "c", "t"]


# Errors


def test_errors_are_what_they_say() -> None:
    expected = np.array([[3.0, 4.0], [0.0, 1.0]])
    found = np.array([[3.0, 4.0], [0.5, 1.0]])
    error = output_error("x", found, expected)
    assert (error.name, error.vectors, error.max_abs) == ("x", 2, 0.5)
    assert error.relative == pytest.approx(0.5 / math.sqrt(26), rel=1e-3)
    assert error.worst_vector == 0.5
    assert error.cosine == pytest.approx(1 / math.sqrt(1.25), abs=1e-8)


def test_a_vector_that_is_small_is_measured_by_the_others() -> None:
    expected = np.array([[30.0, 40.0], [0.0, 0.0], [0.0, 1e-3]])
    found = np.array([[30.0, 40.0], [0.0, 0.5], [0.0, 1e-3]])
    error = output_error("x", found, expected)
    usual = 50 / math.sqrt(3)
    assert error.worst_vector == pytest.approx(0.5 / (0.1 * usual), rel=1e-3)
    assert output_error("x", expected * 1.5, expected).worst_vector == 0.5


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_one_vector_of_another_length_fails(precision: Any, factor: float) -> None:
    """Its cosine is 1, and it is lost among thousands of others."""
    expected = np.random.default_rng(0).normal(size=(4000, 8))
    found = expected.copy()
    found[77] *= factor
    error = output_error("x", found, expected)
    assert error.cosine == 1 and error.relative < BOUNDS["int8"].relative  # type: ignore[operator]
    bound = replace(BOUNDS[precision], max_abs=None, relative=None)
    (line,) = gate._broken_bounds([CaseResult("text", 1, 1, 4000, (error,))], {"x": bound})
    assert line == f"x: worst vector {abs(factor - 1):g}, expected < {short(bound.worst_vector or 0)} (text)"


def test_errors_of_zeros_and_of_nothing() -> None:
    zeros = np.zeros((2, 3))
    assert output_error("x", zeros, zeros) == OutputError("x", 2, 0.0, 0.0, 0.0, 1.0)
    assert output_error("x", zeros[:0], zeros[:0]) == OutputError("x", 0, 0.0, 0.0, 0.0, 1.0)
    assert output_error("x", zeros + 1, zeros) == OutputError("x", 2, 1.0, math.inf, math.inf, 0.0)
    assert output_error("x", zeros + math.inf, zeros) == OutputError("x", 2, math.inf, math.inf, math.inf, -1.0)


def test_expected_outputs_by_hand() -> None:
    metadata = Metadata(replace(BILM, projection_size=1), None, "fp32", (1,), (1.0, 10.0, 100.0))
    layers = [np.arange(6.0).reshape(3, 1, 2), np.zeros((3, 0, 2)), np.ones((3, 2, 2))]
    mask = np.array([[True, False], [False, False], [True, True]])
    expected = expected_outputs(layers, mask, metadata)
    assert set(expected) == {"hidden_states.1", "token_embeddings", "sentence_embedding"}
    assert expected["hidden_states.1"].values.tolist() == [[[2, 3], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]]
    assert expected["token_embeddings"].values[0].tolist() == [[420.0, 531.0], [0.0, 0.0]]
    assert expected["sentence_embedding"].values.tolist() == [[420, 531], [0, 0], [111, 111]]
    assert expected["sentence_embedding"].present.tolist() == [True, False, True]
    comparison = Comparison()
    comparison.add({"mask": mask} | {name: each.values for name, each in expected.items()}, expected, mask)
    assert comparison.problems == []
    assert {error.name: error.vectors for error in comparison.errors()} == {
        "hidden_states.1": 3,
        "token_embeddings": 3,
        "sentence_embedding": 2,
    }


def test_bounds_are_those_of_the_precision() -> None:
    metadata = Metadata(BILM, None, "int8", (0, 1, 2), (0.2, 0.5, 0.3), stateful=True)
    assert bounds_of_outputs(metadata) == {
        "hidden_states.0": BOUNDS["fp32"],
        **{name: BOUNDS["int8"] for name in [*OUTPUTS[1:], "new_state.hidden", "new_state.cell"]},
    }


@pytest.mark.parametrize("mix", [(1e-6, 1e-6, -1e-6), (0.2, 0.5, 0.3), (2.0, -3.0, 1.0)])
def test_the_mix_scales_its_own_absolute_bound(mix: tuple[float, ...]) -> None:
    bounds = bounds_of_outputs(Metadata(BILM, None, "fp32", (0, 1, 2), mix))
    limit = bounds["token_embeddings"].max_abs
    assert limit == bounds["sentence_embedding"].max_abs == pytest.approx(EXACT * sum(map(abs, mix)))
    assert replace(bounds["token_embeddings"], max_abs=EXACT) == bounds["hidden_states.1"] == BOUNDS["fp32"]


def test_cells_without_a_clip_are_bounded_by_their_own_size(tmp_path: Path) -> None:
    """They grow with the sentence, here so far that float32 cannot tell 1e-5 apart."""
    name = "no clips, tanh"
    metadata = build_onnx(MODELS[name], tmp_path / "model.onnx", stateful=True)
    long = tuple(word for sentence in SENTENCES for word in sentence)
    report = verify(tmp_path / "model.onnx", MODELS[name], sentences=(long,), batch_sizes=(1,), expected=metadata)
    assert report.failures == ()
    assert next(error for error in report.outputs if error.name == "new_state.cell").max_abs > EXACT
    assert report.bounds["new_state.cell"] == replace(BOUNDS["fp32"], max_abs=None)
    assert report.bounds["new_state.hidden"] == BOUNDS["fp32"]
    clipped = bounds_of_outputs(Metadata(BILM, None, "fp32", (0,), (1.0, 0.0, 0.0), stateful=True))
    assert clipped["new_state.cell"] == BOUNDS["fp32"]


# Reports


def make_report(cases: tuple[CaseResult, ...], **changes: Any) -> Report:
    values: dict[str, Any] = {
        "file": "onnx/model.onnx",
        "precision": "fp32",
        "layers": (0, 1),
        "mix": (0.5, 0.5),
        "stateful": False,
        "int8_levels": None,
        "weights_sha256": "ab" * 32,
        "megabytes": 1234.5,
        "providers": ("CPUExecutionProvider",),
        "processor": "a processor",
        "versions": {"numpy": "2.0", "onnx": "1.20"},
        "bounds": {"hidden_states.0": Bound(max_abs=2e-5), "hidden_states.1": BOUNDS["int8"]},
        "cases": cases,
        "failures": (),
    }
    return Report(**{**values, **changes})


CASES = (
    CaseResult(
        "text, batches of 3",
        2,
        5,
        40,
        (
            OutputError("hidden_states.0", 40, 1.2e-6, 3e-7, 5e-7, 1.0),
            OutputError("hidden_states.1", 40, 0.1, 0.02, 0.03, 0.999),
        ),
    ),
    CaseResult(
        "empty sentences",
        1,
        2,
        7,
        (
            OutputError("hidden_states.0", 7, 1e-6, 4e-7, 4e-7, 1.0),
            OutputError("hidden_states.1", 7, 0.2, 0.01, 0.04, 0.998),
        ),
    ),
)


def test_a_report_tells_the_worst_of_its_cases() -> None:
    report = make_report(CASES)
    assert report.passed
    assert (report.sentences, report.tokens) == (7, 47)
    assert report.outputs == (
        OutputError("hidden_states.0", 47, 1.2e-6, 4e-7, 5e-7, 1.0),
        OutputError("hidden_states.1", 47, 0.2, 0.02, 0.04, 0.998),
    )


def test_a_report_as_json() -> None:
    report = make_report(CASES, failures=("onnx/model.onnx: mask: differs",))
    read = json.loads(report.to_json())
    assert read["passed"] is False and read["tokens"] == 47
    assert read["outputs"][1] == {
        "name": "hidden_states.1",
        "vectors": 47,
        "max_abs": 0.2,
        "relative": 0.02,
        "worst_vector": 0.04,
        "cosine": 0.998,
    }


def test_a_digest_is_of_the_json_that_lies_beside_the_file(tmp_path: Path) -> None:
    import hashlib

    report = make_report(CASES)
    (tmp_path / "report.json").write_text(report.to_json(), encoding="utf-8")
    assert report.digest() == hashlib.sha256((tmp_path / "report.json").read_bytes()).hexdigest()
    assert report.digest() != make_report(CASES, processor="another").digest()


def test_a_report_is_a_page() -> None:
    page = make_report(CASES).to_markdown()
    assert page.startswith("# Verification of onnx/model.onnx\n\nPassed: ")
    for line in (
        "| precision | fp32, stateless |",
        f"| model's sha256 | {'ab' * 32} |",
        "| compared | 47 tokens in 7 sentences |",
        "| provider | CPUExecutionProvider |",
        "| processor | a processor |",
        "| versions | numpy 2.0, onnx 1.20 |",
        "| file | 1,234.5 MB |",
        "| `hidden_states.0` | 47 | 1.2e-6 | 4e-7 | 5e-7 | 1.0000000 | max abs error < 2e-5 |",
        "| `hidden_states.1` | 47 | 0.2 | 0.02 | 0.04 | 0.9980000 "
        "| relative error < 0.03, worst vector < 0.1, cosine > 0.99 |",
        "| empty sentences | 1 | 2 | 7 | 0.2 | 0.01 |",
    ):
        assert line in page.splitlines()
    failed = make_report(CASES, failures=("onnx/model.onnx: mask: differs",)).to_markdown()
    assert "**Failed.**\n\n- onnx/model.onnx: mask: differs\n" in failed and "Passed" not in failed


def test_a_report_is_the_same_each_time_and_names_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "onnx" / "onnx"  # as exported into a folder that is itself called onnx
    folder.mkdir(parents=True)
    metadata = build_onnx(MODELS["skip"], folder / "model.onnx")
    # The reference rounds by which sentences it computes together, so a truth of other sentences is another one.
    settings: dict[str, Any] = {"sentences": TEXT, "batch_sizes": (3,)}
    first = verify(folder / "model.onnx", MODELS["skip"], expected=metadata, **settings)
    again = verify(folder / "model.onnx", MODELS["skip"], truth=Truth(MODELS["skip"]), **settings)
    assert first.file == "onnx/model.onnx"
    assert first.to_json() == again.to_json() and first.digest() == again.digest()
    assert str(tmp_path) not in first.to_json() + first.to_markdown()
    assert set(first.versions) == {"flashelmo", "numpy", "onnx", "onnxruntime", "torch"}
    assert first.processor and all(first.versions.values())
    assert first.weights_sha256 == metadata.weights_sha256 and len(metadata.weights_sha256) == 64


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (2e-5, "2e-5"), (0.00314, "3.1e-3"), (0.0996, "0.1"), (12.3, "12"), (9960, "1e4"), (math.inf, "inf")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_cells_of_a_table_keep_to_themselves() -> None:
    assert table(("a", "b"), [("x|y", 1)]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"
