"""The benchmark of exported files: every section on a tiny model, and what README shows of it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tiny_models import BILM, random_model

from flashelmo.benchmarks import __main__ as command
from flashelmo.benchmarks import report, roofline
from flashelmo.benchmarks.contestant import Clock, Way, engine
from flashelmo.benchmarks.onnx import contestants, cuda, peak, speed
from flashelmo.benchmarks.onnx.contestants import FILE_PRECISIONS, Exported, export, onnx_file, session_options
from flashelmo.benchmarks.onnx.peak import equal_batch, products_run
from flashelmo.benchmarks.onnx.products import feeds, products_graph, write_products
from flashelmo.benchmarks.onnx.suite import measure_errors, measure_load, measure_size
from flashelmo.benchmarks.results import Results, Row, new_results
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import generate, write_sentences
from flashelmo.benchmarks.worker import Here, Pool
from flashelmo.engine.graph.tensors import prepare_tensors
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import DIRECTIONS, GATES, ElmoModel, ElmoWeights
from flashelmo.engine.precision import PrecisionName

CONFIG = replace(BILM, cell_size=32, projection_size=16, cell_clip=3.0, projection_clip=3.0)
SETTINGS = Settings(
    contestants=("engine int8", "onnx fp32", "onnx fp32 parallel", "onnx int8"),
    threads=1,
    rounds=2,
    batches=(1, 40),
    passages=2,
    text_tokens=2500,
    checked=3,
    sample_seconds=0.001,
    peak_rows=6,
    peak_steps=4,
    peak_repeats=2,
    peak_seconds=0.001,
    load_repeats=1,
    sentences=4,
)


def make_model(config: ElmoConfig = CONFIG) -> ElmoModel:
    """Random weights that saturate nothing, so that rounding stays small."""
    model = random_model(config)
    tensors = {name: np.float32(0.4) * tensor for name, tensor in model.weights.named_tensors()}
    return replace(model, weights=ElmoWeights.from_named_tensors(tensors, config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, "tiny", and a text, "text.txt"."""
    path = tmp_path_factory.mktemp("benchmark")
    write_native(make_model(), path / "tiny")
    write_sentences(path / "text.txt", generate(3000))
    return path


@pytest.fixture(scope="module")
def exported(folder: Path) -> Exported:
    """The model's files."""
    (folder / "exported").mkdir()
    return export(str(folder / "tiny"), 0, folder / "exported", Pool())


@pytest.fixture
def settings(folder: Path) -> Settings:
    """With the text."""
    return replace(SETTINGS, text=folder / "text.txt")


class InProcess(Here):
    """A worker without a process of its own."""

    process = SimpleNamespace(is_alive=lambda: True)

    def close(self) -> None:
        """Nothing ends."""


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No processes, no pauses, small peaks."""
    threads = torch.get_num_threads()
    monkeypatch.setattr("flashelmo.benchmarks.worker.Worker", InProcess)
    monkeypatch.setattr("flashelmo.benchmarks.timing.PAUSE", 0)
    monkeypatch.setattr(roofline, "SHAPES", ((32, 64, 64),))
    yield
    torch.set_num_threads(threads)


def by_name(rows: list[Row], section: str, detail: str | None = None) -> dict[str, Row]:
    """Rows of a section."""
    return {row.name: row for row in rows if row.section == section and detail in (None, row.detail)}


# ------------------------------------------------------------------------------------------------------------ sections


def test_speed_of_every_size_of_batch(exported: Exported, settings: Settings, in_process: None) -> None:
    rows = speed.measure_speed(exported, settings)
    few, many = speed.draw_batches(settings)
    assert [len(batch) for batch in few.batches] == [1, 1] and [len(batch) for batch in many.batches] == [40]
    assert many.batches[0][0] == few.batches[0][0] and many.batches[0][32] == few.batches[1][0]
    for work, detail in ((few, "1 sentence"), (many, "40 sentences")):
        found = by_name(rows, "speed", detail)
        assert list(found) == ["reference", *settings.contestants]
        positions = sum(len(batch) * max(map(len, batch)) for batch in work.batches)
        tokens = sum(len(sentence) for batch in work.batches for sentence in batch)
        for name, row in found.items():
            assert len(row.samples) == 2 and row.median is not None and row.median > 0
            assert f"{len(work.batches)} batch" in row.note
            assert f"{tokens} tokens in {positions} positions of text.txt" in row.note
            assert (row.ratios.keys() == {"reference"}) is (name != "reference")
            assert row.ceiling is not None and row.ceiling_both is not None and row.utilisation is not None
            assert 0 < row.utilisation < 2
            knows_words = row.ceiling_both > (1 - 1e-9) * row.ceiling
            assert knows_words is name.startswith("engine")
    peaks = by_name(rows, "limits")
    fp32 = by_name(rows, "speed")["onnx fp32"]
    highest = peaks["fp32 matrix peak"].high
    assert highest is not None
    assert fp32.ceiling == pytest.approx(1e9 * highest / CONFIG.lstm_flops_per_token, rel=1e-4)


def test_the_peak_and_the_products_alone(exported: Exported, settings: Settings, in_process: None) -> None:
    batch = equal_batch(settings)
    assert [len(sentence) for sentence in batch.sentences] == [4] * 6
    rows = peak.measure_peak(exported, settings)
    found = by_name(rows, "peak")
    assert list(found) == ["onnx fp32", "onnx fp32 parallel", "onnx int8", "products fp32", "products int8"]
    n_words = len({word for sentence in batch.sentences for word in sentence})
    peaks = by_name(rows, "limits")
    for name, row in found.items():
        precision = name.split()[1]
        assert row.unit == "GFLOP/s"
        assert row.detail == f"6 sentences of 4 tokens, {n_words} distinct words"
        assert row.ceiling == pytest.approx(peaks[f"{precision} matrix peak"].high, rel=1e-4)
        assert row.utilisation is not None and 0 < row.utilisation < 2
        if name.startswith("onnx"):
            assert 0 < row.ratios[f"products {precision}"] < 2
            assert row.utilisation_both is not None and row.utilisation < row.utilisation_both
            assert ("onnx fp32" in row.ratios) is (name != "onnx fp32")
            # 8 of 18 multiplications with weights are the input's, half of them in the lowest layer
            computed = 1 - (1 - n_words / 24) * 8 / 18 / 2
            assert f"{computed:.0%} of the LSTM's operations are computed" in row.note
    weights = 4 * 5 * CONFIG.projection_size * CONFIG.cell_size / 1e6
    assert f"tiny, fp32: the weights of a step, layer and direction are {weights:.1f} MB" in found["products fp32"].note
    assert peak.measure_peak(exported, replace(settings, contestants=("engine fp32",))) == []


def test_load_and_size(exported: Exported, settings: Settings) -> None:
    few = replace(exported, files={"int8": exported.files["int8"]})
    rows = measure_load(few, settings)
    assert [row.label for row in rows] == [
        f"{name}, {what}" for name in ("onnx int8", "native fp32") for what in ("load", "imports before it")
    ]
    assert all(row.unit == "s" and row.median is not None and 0 < row.median < 20 for row in rows)

    sizes = {row.name: row.median for row in measure_size(exported, settings)}
    assert sizes.keys() == {"onnx fp32", "onnx fp16", "onnx int8", "native fp32"}
    for precision in FILE_PRECISIONS:
        size = exported.files[precision].stat().st_size
        assert sizes[f"onnx {precision}"] == pytest.approx(size / 1e6, rel=1e-4)
    assert sizes["native fp32"] == pytest.approx(
        (exported.subject.folder / "model.safetensors").stat().st_size / 1e6, rel=1e-4
    )


def test_external_data_count(exported: Exported, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x" * 1000)
    (tmp_path / "model.onnx_data").write_bytes(b"x" * 500_000)
    row = measure_size(replace(exported, files={"fp32": path}), settings)[1]
    assert (row.median, row.note) == (0.501, "onnx fp32: 0.5 MB of it in a file of their own")


def test_errors_of_every_precision_and_layer(exported: Exported, settings: Settings, in_process: None) -> None:
    rows = measure_errors(exported, settings)
    assert len(rows) == 3 * 2 * 3  # precisions, units, layers
    bounds = {"onnx fp32": (0, 1e-5), "onnx fp16": (1e-4, 2e-3), "onnx int8": (1e-3, 0.05)}
    for row in rows:
        low, high = bounds[row.name] if (row.name, row.detail) != ("onnx int8", "layer 0") else (0, 1e-5)
        assert row.unit in ("relative error", "max abs error")
        assert row.median is not None and low < row.median < high * (10 if row.unit == "max abs error" else 1), row
        assert row.note.startswith("4 sentences, ") and row.note.endswith(" of text.txt")


# ---------------------------------------------------------------------------------------------------------------- card


def test_without_a_card_there_is_one_row_that_says_why(exported: Exported, settings: Settings) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a CUDA provider")
    (row,) = cuda.measure_cuda(exported, settings)
    assert (row.section, row.name, row.median) == ("cuda", "onnx on a card", None)
    assert row.note == "this ONNX Runtime has no CUDA provider"


def test_the_section_of_a_card(
    exported: Exported, settings: Settings, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the processor in the card's place, whose engine has no float16."""

    def native(folder: Path, precision: PrecisionName) -> Way:
        return engine(folder, {"precision": precision, "runtime": "ort"})

    monkeypatch.setattr(cuda, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(cuda, "native_on_card", native)
    rows = cuda.measure_cuda(exported, settings)
    for size in ("1 sentence", "40 sentences"):
        found = by_name(rows, "cuda", size)
        assert list(found) == ["onnx fp32", "engine fp32", "onnx fp16"]
        assert found["engine fp32"].ratios.keys() == {"onnx fp32"}
        assert all(row.median is not None and row.median > 0 for row in found.values())
    copies = {(row.name, row.detail): row.median for row in rows if row.unit == "Memcpy nodes"}
    details = ("copies a run", "copies a step")
    assert copies == {(f"onnx {precision}", detail): 0 for precision in ("fp32", "fp16") for detail in details}
    (absent,) = [row for row in rows if row.median is None]
    assert absent.name == "engine fp16" and "fp16" in absent.note


def test_copies_are_counted_where_they_run(tmp_path: Path) -> None:
    inner = [helper.make_node(kind, ["a"], [f"{kind}_{k}"]) for k, kind in enumerate(["MemcpyToHost", "Tanh"])]
    body = helper.make_graph([helper.make_node("MemcpyFromHost", ["x"], ["a"]), *inner], "body", [], [])
    nodes = [
        helper.make_node("MemcpyFromHost", ["x"], ["y"]),
        helper.make_node("Scan", ["y"], ["z"], body=body, num_scan_inputs=1),
        helper.make_node("Add", ["z", "z"], ["w"]),
    ]
    path = tmp_path / "optimized.onnx"
    onnx.save_model(helper.make_model(helper.make_graph(nodes, "graph", [], [])), path)
    rows = list(cuda.copy_rows("tiny", "fp16", path))
    assert [(row.label, row.median) for row in rows] == [
        ("onnx fp16, copies a run", 1),
        ("onnx fp16, copies a step", 2),
    ]


# -------------------------------------------------------------------------------------------------------- contestants


def test_openvino_gives_the_same_vectors(exported: Exported, settings: Settings) -> None:
    pytest.importorskip("openvino")
    batch = speed.draw_batches(settings)[1].batches[0][:5]
    expected = onnx_file(exported.files["fp32"], 1, parallel=True).vectors(batch)
    way = contestants.openvino_file(exported.files["fp32"], exported.metadata, "fp32", 1)
    for found, wanted, sentence in zip(way.vectors(batch), expected, batch, strict=True):
        assert found.shape == wanted.shape == (3, len(sentence), 32)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_parallel_sessions_have_half_of_the_threads() -> None:
    import onnxruntime

    plain, both, one = session_options(4, False), session_options(4, True), session_options(1, True)
    assert (plain.intra_op_num_threads, plain.execution_mode) == (4, onnxruntime.ExecutionMode.ORT_SEQUENTIAL)
    assert (both.intra_op_num_threads, both.inter_op_num_threads) == (2, 2)
    assert both.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert (one.intra_op_num_threads, one.inter_op_num_threads) == (1, 1)


# ------------------------------------------------------------------------------------------------------------ products


@pytest.mark.parametrize("cell_size", [32, 16])
def test_the_products_are_the_models(tmp_path: Path, cell_size: int) -> None:
    model = make_model(replace(CONFIG, cell_size=cell_size))
    config, words, rows, steps = model.config, 5, 3, 4
    graph = products_graph(config, "float32", words, rows)
    bodies = [attribute.g for node in graph.nodes for attribute in node.attribute if attribute.name == "body"]
    products = [node for nodes in (graph.nodes, *(body.node for body in bodies)) for node in nodes]
    per_direction = 4 + 4 + (cell_size != 16)
    assert sum(node.op_type in ("MatMul", "Gemm") for node in products) == 2 * config.n_layers * per_direction
    assert {node.op_type for node in products} == {"Gemm", "MatMul", "Identity", "Reshape", "Scan"}

    path = tmp_path / "products.onnx"
    write_products(model, "fp32", words, rows, path)
    batch = peak.Batch([["a", "b", "c", "d"], ["e", "a", "b", "c"], ["d", "e", "a", "b"]], "by hand")
    assert batch.size == (rows, steps, words)
    run = Clock(products_run, path, config, batch, 1)
    assert run.seconds([None]) > 0
    given = feeds(config, words, rows, steps)
    found = iter(run.vectors([]))
    for expected in expected_products(model, given["words"], given["hidden"], steps):
        np.testing.assert_allclose(next(found), expected, rtol=1e-4, atol=1e-4)
    assert next(found, None) is None


def expected_products(model: ElmoModel, words: Any, hidden: Any, steps: int) -> Iterator[Any]:
    """The graph's outputs, in numpy."""
    tensors = prepare_tensors(model.config, model.weights, "float32")
    for direction in DIRECTIONS:
        x = words
        for layer in range(model.config.n_layers):
            name = f"lstm.{layer}.{direction}"
            for gate in GATES:
                yield x @ tensors[f"{name}.input_weight.{gate}"] + tensors[f"{name}.bias.{gate}"]
            h, states = hidden, []
            for _ in range(steps):
                h = h @ tensors[f"{name}.recurrent_weight.{GATES[-1]}"]
                if f"{name}.projection" in tensors:
                    h = h @ tensors[f"{name}.projection"]
                states.append(h)
            x = np.concatenate(states)
        yield x


def test_8_bit_products_run(tmp_path: Path) -> None:
    path = tmp_path / "products.onnx"
    write_products(make_model(), "int8", 2, 2, path)
    run = Clock(products_run, path, CONFIG, peak.Batch([["a", "b"], ["a", "b"]], "by hand"), 1)
    assert run.seconds([None]) > 0
    assert all(np.isfinite(value).all() for value in run.vectors([]))
    proto = onnx.load(path)
    assert {tensor.data_type for tensor in proto.graph.initializer if tensor.name.endswith("weight.input")} == {
        TensorProto.INT8
    }


# -------------------------------------------------------------------------------------------------- command, documents


def test_a_run_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "onnx" / "tiny.json"
    short = write_sentences(tmp_path / "text.txt", generate(5000))
    arguments = f"onnx --quick --threads 1 --models {folder / 'tiny'} --only speed,size,cuda --text {short} --out {out}"
    assert command.main([*arguments.split(), "--contestants", "onnx int8"]) == 0
    found = Results.read(out)
    assert {row.section for row in found.rows} == {"limits", "speed", "size", "cuda"}
    assert list(by_name(found.rows, "speed")) == ["reference", "onnx int8"]
    assert all(np.isfinite(row.samples).all() for row in found.rows if row.section != "cuda" and row.median)
    assert found.settings["models"] == ["tiny"] and found.settings["text"] == "text.txt"
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "tiny: ragged batches, tokens/s" in printed and "native fp32" in printed and "Provider" not in printed


def test_tables_of_documents(tmp_path: Path) -> None:
    card = {"section": "cuda", "model": "small", "name": "onnx fp16"}
    rows = [
        Row.of([374.7], section="size", model="small", name="onnx fp32", detail="file", unit="MB"),
        Row("speed", "small", "openvino bf16", "tokens/s", note="not on this processor"),
        Row.of([9000], **card, detail="8 sentences", unit="tokens/s"),
        Row.of([4], **card, detail="copies a step", unit="Memcpy nodes"),
        Row("cuda", "small", "engine fp16", "tokens/s", note="not on this processor"),
    ]
    made_up = replace(new_results(Settings(rounds=2), "onnx"), rows=rows)
    made_up.write(tmp_path / "onnx" / "abacus.json")
    text = "\n\n".join(report.generate("onnx", tmp_path))
    for line in (
        "Medians of 2 rounds in which all take turns (`benchmarks/results/onnx/abacus.json`).",
        "**small: size, MB**\n\n|  | median |\n| --- | ---: |\n| onnx fp32, file | 375 |",
        "**small: on a card, tokens/s**\n\n|  | median |\n| --- | ---: |\n| onnx fp16, 8 sentences | 9,000 |",
        "| onnx fp16, copies a step | 4 |",
        "Not measured: openvino bf16 (speed), engine fp16 (cuda): not on this processor.",
    ):
        assert line in text
    replace(made_up, rows=[*rows[:2], rows[4]]).write(tmp_path / "onnx" / "abacus.json")
    text = "\n\n".join(report.generate("onnx", tmp_path))
    assert "on a card" not in text and text.endswith("Not measured: openvino bf16 (speed): not on this processor.")
