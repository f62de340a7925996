"""Unrolled ONNX files: the reference's vectors in every shape, nothing that ONNX Runtime's CUDA provider lacks.

There is no card here. What its CUDA graphs ask for is read from the files: each node's operator and types stand in the
provider's list of kernels, no shape is computed, and no kernel is told anything by a copy from the host.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from tiny_models import BILM, GENTLE, MODELS, SENTENCES, random_model, with_tensors

from flashelmo.cli import main
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.precision import PrecisionName, tolerance
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.export import OnnxElmo, buckets, export_onnx, unrolled
from flashelmo.export.build import build_buckets, build_onnx
from flashelmo.export.metadata import BUCKET_DATA, Metadata
from flashelmo.export.verification import session
from flashelmo.export.verification.verify import verify

PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "fp16")
EXACT = tolerance("fp32", "onnx")
LONG = [["the"], ["cat", "sat"] * 2, [], ["sat", "the", "cat"]]
BUCKETS = [(1, 4), (1, 7), (3, 4), (3, 7)]

# What the CUDA provider has kernels for: rows of `docs/OperatorKernels.md` of github.com/microsoft/onnxruntime
# (001d12d, section "Operators implemented by CUDAExecutionProvider", the row that opset 18 takes), cut to the types
# that could stand in a file. Inputs of INDEX are indices; of SHAPE, sizes, which must be constants: a kernel reads them
# on the host.
FLOATS, INTS = {"float", "float16"}, {"int32", "int64"}
SAME = FLOATS | INTS
ANY = SAME | {"bool"}
CUDA_KERNELS: dict[str, set[str]] = {
    "Add": SAME,  # 14+
    "Cast": ANY,  # [13, 18]
    "Clip": FLOATS | {"int64"},  # 13+
    "Concat": ANY,  # 13+
    "Div": SAME,  # 14+
    "Equal": ANY,  # 13+
    "Gather": ANY,  # 13+
    "Gemm": FLOATS,  # 13+
    "Greater": SAME,  # 13+
    "Identity": ANY,  # [14, 18]
    "MatMul": FLOATS,  # 13+
    "Max": SAME,  # 13+
    "Mul": SAME,  # 14+
    "Not": {"bool"},  # 1+
    "ReduceMax": SAME,  # 18+
    "ReduceSum": SAME,  # 13+
    "Relu": FLOATS,  # 14+
    "Reshape": ANY,  # [14, 18]
    "Sigmoid": FLOATS,  # 13+
    "Slice": ANY,  # 13+
    "Split": ANY,  # 18+
    "Sub": SAME,  # 14+
    "Sum": FLOATS,  # 13+
    "Tanh": FLOATS,  # 13+
    "Unsqueeze": ANY,  # [13, 20]
    "Where": SAME,  # 16+; its condition is bool
}
READ_ON_THE_HOST = {
    "Clip": (1, 2),
    "ReduceMax": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Slice": (1, 2, 3),
    "Unsqueeze": (1,),
}
# Of these inputs the list has a type of their own: T1, Tind, B.
OTHER_TYPES = {"Gather": {1: {"int32", "int64"}}, "Where": {0: {"bool"}}}


class Values:
    """A file's nodes, and the types and shapes of all its values."""

    def __init__(self, path: Path) -> None:
        proto = onnx.load(path, load_external_data=False)
        self.graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
        self.constants = {tensor.name for tensor in self.graph.initializer}
        values = [*self.graph.input, *self.graph.output, *self.graph.value_info]
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {tensor.name: tensor.data_type for tensor in self.graph.initializer}
        self.shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}
        self.shapes |= {tensor.name: list(tensor.dims) for tensor in self.graph.initializer}

    def type_of(self, name: str) -> str:
        return str(TensorProto.DataType.Name(self.types[name])).lower()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small unrolled files for each model."""
    place = tmp_path_factory.mktemp("unrolled")
    for name, model in MODELS.items():
        (place / name).mkdir()
        build_buckets(model, place / name, BUCKETS)
    return place


# ------------------------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_the_references_whatever_the_batch(folder: Path, name: str) -> None:
    """In the file of one sentence, in that of three, in several runs of it, and in another order."""
    expected = ReferenceRuntime(MODELS[name], batch_size=8).embed_batch([*SENTENCES, *LONG])
    elmo = OnnxElmo(folder / name)
    for batch_size in (1, 2, 9):
        for found, right in zip(elmo.embed([*SENTENCES, *LONG], batch_size=batch_size), expected, strict=True):
            assert found.shape == right.shape
            np.testing.assert_allclose(found, right, rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", ["skip", "words alone", "manylangs"])
def test_a_padded_batch_has_the_outputs_of_the_general_file(folder: Path, tmp_path: Path, name: str) -> None:
    """More columns than any file has, rows of several files, empty sentences, and nothing at all."""
    model = MODELS[name]
    build_onnx(model, tmp_path / "model.onnx")
    general, elmo = OnnxElmo(tmp_path / "model.onnx"), OnnxElmo(folder / name)
    inputs = general.inputs(SENTENCES)
    absent = {"character_ids": 0, "word_ids": model.config.absent_word_id}
    longer = {
        key: np.pad(ids, [(0, 0), (0, 6), (0, 0)][: ids.ndim], constant_values=absent[key])
        for key, ids in inputs.items()
    }
    nothing = ({key: ids[:0] for key, ids in inputs.items()}, {key: ids[:, :0] for key, ids in inputs.items()})
    for given in (inputs, longer, *nothing):
        found, right = elmo.run(**given), general.run(**given)
        assert found.keys() == right.keys()
        for output, values in right.items():
            assert found[output].dtype == values.dtype and found[output].shape == values.shape, output
            np.testing.assert_allclose(found[output], values, rtol=0, atol=EXACT)
            if values.ndim == 3:
                assert not found[output][~right["mask"]].any()


def test_what_a_batch_left_behind_is_seen_by_no_other(folder: Path) -> None:
    """Inputs and outputs stay where they are: a shorter batch must not see a longer one's."""
    elmo = OnnxElmo(folder / "skip")
    before = [vectors.copy() for vectors in elmo.embed([["cat"], ["sat", "cat"]])]
    elmo.embed([["the"] * 4, ["sat"] * 4, ["cat"] * 4])
    for found, first in zip(elmo.embed([["cat"], ["sat", "cat"]]), before, strict=True):
        assert np.array_equal(found, first)


@pytest.mark.parametrize(
    ("bucket", "precision"), [((1, 1), "fp32"), ((2, 37), "fp16"), ((5, 64), "fp32")], ids=["1", "37", "64"]
)
def test_the_gate_passes_every_shape(tmp_path: Path, bucket: tuple[int, int], precision: PrecisionName) -> None:
    """Steps that are one, a prime number, or more than a Split takes at once."""
    model, (batch, steps) = GENTLE, bucket
    ((path, meant),) = build_buckets(model, tmp_path, [bucket], precision=precision).items()
    report = verify(path, model, sentences=[["the", "cat"], ["sat", "on", "a"], ["é"]], expected=meant)
    assert report.passed, report.failures
    tokens = {case.name: case.tokens for case in report.cases}
    assert tokens[f"text, batches of {batch}"] == 6 and tokens[f"sentences of {steps} tokens"] >= 2 * steps - 1


def test_fp16_multiplies_in_fp16_and_keeps_cells_in_float32(tmp_path: Path) -> None:
    ((path, _),) = build_buckets(GENTLE, tmp_path, [(3, 3)], precision="fp16").items()
    values = Values(path)
    for node in values.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            assert {values.type_of(name) for name in node.input} == {"float16"}
        if node.op_type in ("Sub", "Sigmoid") and values.shapes[node.output[0]][:1] == [2]:  # both directions
            assert values.type_of(node.output[0]) == "float"
    data = (tmp_path / BUCKET_DATA).stat().st_size
    (tmp_path / "fp32").mkdir()
    build_buckets(GENTLE, tmp_path / "fp32", [(2, 3)])
    assert data < 0.85 * (tmp_path / "fp32" / BUCKET_DATA).stat().st_size  # tiny tensors, at places of 4 KB


# ---------------------------------------------------------------------------------------------------- nodes on the card


# of many words and of few, whose characters' maxima are taken otherwise
GRAPHS = [(name, "fp32", (24, 35)) for name in MODELS]
GRAPHS += [(name, "fp16", bucket) for name in ("skip", "manylangs") for bucket in ((24, 35), (3, 35))]


@pytest.fixture(scope="module", params=GRAPHS, ids=str)
def values(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Values:
    name, precision, bucket = request.param
    place = tmp_path_factory.mktemp("graph")
    ((path, _),) = build_buckets(MODELS[name], place, [bucket], precision=precision).items()
    return Values(path)


def test_every_node_has_a_kernel_on_cuda(values: Values) -> None:
    for node in values.graph.node:
        assert node.domain in ("", "ai.onnx") and node.op_type in CUDA_KERNELS, node.op_type
        names = [name for k, name in enumerate(node.input) if k not in READ_ON_THE_HOST.get(node.op_type, ())]
        other = OTHER_TYPES.get(node.op_type, {})
        for k, name in enumerate(names):
            assert values.type_of(name) in other.get(k, CUDA_KERNELS[node.op_type]), (node.op_type, name)
        for name in node.output:
            assert values.type_of(name) in ANY


def test_no_shape_is_computed_and_nothing_is_decided_on_the_host(values: Values) -> None:
    """What kernels read on the host are constants; beside the ids that are given nothing has 64 bits."""
    for node in values.graph.node:
        for k in READ_ON_THE_HOST.get(node.op_type, ()):
            assert node.input[k] in values.constants, (node.op_type, node.input[k])
        assert not any(attribute.HasField("g") for attribute in node.attribute)
        for name in node.output:
            assert values.type_of(name) != "int64", (node.op_type, name)
            assert values.shapes[name] and all(size > 0 for size in values.shapes[name]), name


def test_no_kernel_is_told_anything_by_a_copy_from_the_host(values: Values) -> None:
    """Split and Concat with unequal or with many parts, and a MatMul that broadcasts, copy tables of addresses to the
    card (`split.cc`, `concat.cc` and `matmul.cc` under onnxruntime/core/providers/cuda): when a CUDA graph is replayed,
    the memory that they are copied from may hold something else.
    """
    for node in values.graph.node:
        if node.op_type in ("Split", "Concat"):
            parts = node.output if node.op_type == "Split" else node.input
            assert len(parts) <= 32
            assert len({tuple(values.shapes[name]) for name in parts}) == 1, node.op_type
        if node.op_type == "MatMul":
            left, right = (values.shapes[name] for name in node.input)
            assert left[:-2] == right[:-2] or len(right) == 2, (left, right)


def test_a_step_has_few_nodes_for_both_directions(tmp_path: Path) -> None:
    """Half of a run's time is launches: one more node in a step is a hundred."""
    count = {}
    for steps in (20, 30):
        for precision in PRECISIONS:
            built = build_buckets(MODELS["skip"], tmp_path, [(2, steps)], precision=precision)
            ((path, _),) = built.items()
            count[precision, steps] = len(Values(path).graph.node)
    layers = MODELS["skip"].config.n_layers
    assert count["fp32", 30] - count["fp32", 20] == 10 * layers * 13
    assert count["fp16", 30] - count["fp16", 20] == 10 * layers * 15


# ---------------------------------------------------------------------------------------------- the folder, and loading


def test_files_of_a_folder_share_their_weights(tmp_path: Path) -> None:
    built = build_buckets(GENTLE, tmp_path, [(1, 4), (2, 4), (2, 9)])
    assert {path.name for path in tmp_path.iterdir()} == {*(path.name for path in built), BUCKET_DATA}
    places = []
    for path in built:
        tensors = onnx.load(path, load_external_data=False).graph.initializer
        external = [each for each in tensors if each.data_location == TensorProto.EXTERNAL]
        places.append({each.name: {entry.key: entry.value for entry in each.external_data} for each in external})
        inside = sum(len(each.raw_data) for each in tensors if each.data_location != TensorProto.EXTERNAL)
        assert inside < 20_000
    assert places[0] == places[1] == places[2] and len(places[0]) > 10


def test_files_that_need_other_weights_share_them_all_the_same(tmp_path: Path) -> None:
    """Where no convolution reaches beyond a word, the files of many words have no term that masks."""
    model = random_model(replace(BILM, filters=((1, 4),)))
    build_buckets(model, tmp_path, [(1, 4), (70, 4)])
    expected = ReferenceRuntime(model, batch_size=8).embed_batch(SENTENCES[:3])
    elmo = OnnxElmo(tmp_path)
    for batch in (SENTENCES[:1], [*SENTENCES[:3], *([["cat"]] * 50)]):
        for found, right in zip(elmo.embed(batch, batch_size=70), expected, strict=False):
            np.testing.assert_allclose(found, right, rtol=0, atol=EXACT)


def test_the_command_writes_a_folder_that_opens(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_native(GENTLE, tmp_path / "model")
    (tmp_path / "text.txt").write_text("the cat sat\n\ncat\n", encoding="utf-8")
    out = tmp_path / "out"
    given = ["export", tmp_path / "model", out, "--for", "cuda", "--steps", "4", "--batch", "2,1", "--all"]
    given += ["--layers", "0,2", "--mix", "top", "--text", tmp_path / "text.txt"]
    assert main([str(value) for value in given]) == 0
    said = capfd.readouterr().err
    assert "out/onnx/cuda_fp16/batch2_steps4.onnx: " in said and " of weights, " in said
    for precision in ("fp32", "fp16"):
        files = {path.name for path in (out / "onnx" / f"cuda_{precision}").iterdir()}
        ends = (".onnx", ".report.json", ".report.md")
        assert files == {f"batch{batch}_steps4{end}" for batch in (1, 2) for end in ends} | {BUCKET_DATA}
    assert not list((out / "onnx").glob("*.onnx"))
    elmo = OnnxElmo(out)
    assert (elmo.layers, elmo.metadata.mix, elmo.metadata.precision) == ((0, 2), (0.0, 0.0, 1.0), "fp32")
    assert OnnxElmo(out / "onnx" / "cuda_fp16").metadata.precision == "fp16"
    card = (out / "README.md").read_text(encoding="utf-8")
    assert 'OnnxElmo("onnx/cuda_fp32", providers="cuda")' in card and "`onnx/cuda_fp16/batch1_steps4.onnx`" in card
    assert (
        main(["export", str(tmp_path / "model"), str(out), "--verify-only", "--text", str(tmp_path / "text.txt")]) == 0
    )
    assert capfd.readouterr().out.count("Passed: ") == 4
    assert main(["export", str(tmp_path / "model"), str(out), "--overwrite", "-q"]) == 0  # what it wrote, it replaces
    assert (out / "onnx" / "model.onnx").is_file() and not (out / "onnx" / "cuda_fp32").exists()


def test_a_broken_weight_is_found(tmp_path: Path) -> None:
    model = GENTLE
    ((path, meant),) = build_buckets(model, tmp_path, [(2, 4)]).items()
    weight = next(
        tensor
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        if tensor.name == "lstm.1.recurrent_weight"
    )
    offset = next(int(entry.value) for entry in weight.external_data if entry.key == "offset")
    with (tmp_path / BUCKET_DATA).open("r+b") as file:
        file.seek(offset + 40)
        file.write(np.float32(0.5).tobytes())
    report = verify(path, model, sentences=[["the", "cat"]], expected=meant)
    assert f"{path.name}: weights: lstm.1.recurrent_weight: differs from the model's" in report.failures
    assert any("hidden_states.2: max abs error" in line for line in report.failures)


def test_cuda_is_told_to_capture_graphs_unless_the_caller_says_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    opened = buckets.open_session

    def open_session(file: Path, wanted: list[Any], options: Any) -> Any:
        told.extend(values for _, values in wanted)
        return opened(file, [("CPUExecutionProvider", {})], options)

    monkeypatch.setattr(buckets, "open_session", open_session)
    monkeypatch.setattr(buckets, "device_of", lambda *given: ("cpu", 0))
    files = sorted((folder / "skip").glob("*.onnx"))
    for given in ({}, {"enable_cuda_graph": "0", "device_id": 1}):
        runner = buckets.Buckets(files, [("CUDAExecutionProvider", given), ("CPUExecutionProvider", {})], None)
        runner.session()
    assert told == [{"enable_cuda_graph": "1"}, {}, {"enable_cuda_graph": "0", "device_id": 1}, {}]


def test_the_gate_asks_cuda_whether_a_node_is_left_to_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime refuses to open a file with graphs where one is."""
    refused = "This session cannot use the graph capture feature as requested by the user"

    def open_session(file: Path, wanted: list[Any], options: Any) -> Any:
        if any("enable_cuda_graph" in values for _, values in wanted):
            raise FlashElmoError(f"{file}: ONNX Runtime cannot load it: {refused}")
        raise AssertionError("it was not asked")

    monkeypatch.setattr(session, "open_session", open_session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    model = GENTLE
    ((path, meant),) = build_buckets(model, tmp_path, [(2, 3)]).items()
    report = verify(path, model, sentences=[["the"]], providers="cuda", expected=meant)
    assert report.failures == (f"{path.name}: ONNX Runtime cannot load it: {refused}",)


def test_outputs_that_stay_on_the_device(folder: Path) -> None:
    """Of the file's own shape; there is no such thing of a batch that takes several runs."""
    elmo = OnnxElmo(folder / "skip")
    inputs = elmo.inputs([["cat"], ["the", "cat"]])
    found = elmo.run(on_device=True, outputs=["hidden_states.2"], **inputs)["hidden_states.2"]
    assert found.shape() == [3, 4, BILM.output_size]
    expected = elmo.run(outputs=["hidden_states.2"], **inputs)["hidden_states.2"]
    assert np.array_equal(found.numpy()[:2, :2], expected)
    with pytest.raises(FlashElmoError, match=r"^on_device: expected at most 3 sentences, as a file takes, found 5$"):
        elmo.run(on_device=True, **elmo.inputs(SENTENCES[:2] + LONG[:3]))


# ----------------------------------------------------------------------------------------------------------- bad input


def test_a_longer_sentence_than_any_file_takes(folder: Path) -> None:
    elmo = OnnxElmo(folder / "skip")
    place = re.escape(str(folder / "skip"))
    message = rf"^{place}: expected sentences of at most 7 tokens, as its files take 4 or 7, found one of 8$"
    with pytest.raises(FlashElmoError, match=message):
        elmo.embed([["cat"], ["the"] * 8])
    with pytest.raises(FlashElmoError, match=message):
        elmo.run(**elmo.inputs([["cat"], ["the"] * 8]))


def test_a_file_is_known_by_its_name(tmp_path: Path) -> None:
    model = MODELS["skip"]
    ((path, _),) = build_buckets(model, tmp_path, [(2, 3)]).items()
    renamed = path.rename(tmp_path / "other.onnx")
    with pytest.raises(FlashElmoError, match=r"other.onnx: its metadata belong to another name: batch2_steps3.onnx$"):
        OnnxElmo(renamed)
    build_onnx(model, tmp_path / "batch2_steps9.onnx")
    with pytest.raises(FlashElmoError, match=r"expected character_ids of the shape that its name says, found \[batch"):
        OnnxElmo(tmp_path / "batch2_steps9.onnx")


def test_an_absent_provider_is_named(folder: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has it")
    with pytest.raises(FlashElmoError, match=r"^providers: expected some of .*CPUExecutionProvider.*, found CUDA"):
        OnnxElmo(folder / "skip", providers="cuda")


def test_on_the_processor_it_is_said_that_the_general_file_is_faster(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    OnnxElmo(folder / "skip")
    assert "unrolled for CUDA; on the processor the general file is faster" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "gpu"}, "target: expected 'any' or 'cuda', found 'gpu'"),
        ({"steps": [4]}, "steps: only for target 'cuda', found [4]"),
        ({"target": "cuda", "triton": True}, "triton: not for target 'cuda', found True"),
        ({"target": "cuda", "stateful": True}, "stateful: not for target 'cuda', found True"),
        ({"target": "cuda", "characters": "dynamic"}, "characters: not for target 'cuda', found 'dynamic'"),
        (
            {"target": "cuda", "precisions": ["int8"]},
            "precision: expected fp32 or fp16 in files for CUDA, found 'int8'",
        ),
        ({"target": "cuda", "steps": [0]}, "steps: expected 1 to 512, found 0"),
        ({"target": "cuda", "batch": [8, 8]}, "batch: expected one or more numbers, each once, found [8, 8]"),
        ({"target": "cuda", "batch": []}, "batch: expected one or more numbers, each once, found []"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FlashElmoError) as caught:
        export_onnx(MODELS["skip"], tmp_path / "out", **options)
    assert str(caught.value) == message and not list(tmp_path.iterdir())


def test_a_bucket_whose_arrays_are_too_large(tmp_path: Path) -> None:
    config = replace(BILM, cell_size=4096, projection_size=4096)
    metadata = Metadata(config, None, "fp32", (0, 1, 2), (1 / 3,) * 3, characters=12, bucket=(32, 64))
    assert unrolled.most_values(metadata) < 2**31
    assert unrolled.most_values(replace(metadata, bucket=(1024, 512))) >= 2**31
    with pytest.raises(
        FlashElmoError, match=r"^batch1000000_steps512.onnx: expected arrays of less than 2\^31 values$"
    ):
        build_buckets(MODELS["skip"], tmp_path, [(1_000_000, 512)])


def test_gates_that_float16_cannot_hold_doubled(tmp_path: Path) -> None:
    tensors = {name: tensor.copy() for name, tensor in GENTLE.weights.named_tensors()}
    tensors["lstm.0.forward.bias"][2, 0] = 40_000
    large = with_tensors(GENTLE, tensors)
    with pytest.raises(FlashElmoError, match=r"tensor lstm.0.bias: expected gates within half of float16's range$"):
        build_buckets(large, tmp_path, [(1, 2)], precision="fp16")


@pytest.mark.parametrize("bucket", ["[2]", "[0, 4]", "[2, true]", '"2x4"', "null", "{}"])
def test_damaged_metadata(bucket: str) -> None:
    properties = Metadata(BILM, None, "fp32", (0,), (1.0, 0.0, 0.0), characters=12, bucket=(2, 4)).to_properties()
    assert Metadata.from_properties(properties, "model").bucket == (2, 4)
    with pytest.raises(FlashElmoError, match=r"^model: metadata: bucket: expected two positive whole numbers, found "):
        Metadata.from_properties(properties | {"bucket": bucket}, "model")


def test_earlier_versions_refuse_an_unrolled_file() -> None:
    """They know no bucket, and read the first version of the metadata alone."""
    general = Metadata(BILM, None, "fp32", (0,), (1.0, 0.0, 0.0), characters=12)
    assert general.to_properties()["format_version"] == "1" and "bucket" not in general.to_properties()
    unrolled_file = replace(general, bucket=(2, 4)).to_properties()
    assert unrolled_file["format_version"] == "2"
    with pytest.raises(FlashElmoError, match=r"^model: expected format_version 2, found 1$"):
        Metadata.from_properties(unrolled_file | {"format_version": "1"}, "model")
