"""The benchmark of exported files: every section on a tiny model, and what README shows of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from rich.console import Console
from tiny_models import BILM, random_model

from flashelmo.benchmarks import report, roofline
from flashelmo.benchmarks.onnx import __main__ as command
from flashelmo.benchmarks.onnx import accuracy, contestants, cuda, peak, speed
from flashelmo.benchmarks.onnx.contestants import Start, Way, count_tokens, line_up, onnx_file, session_options
from flashelmo.benchmarks.onnx.cost import measure_load, measure_size
from flashelmo.benchmarks.onnx.exported import Exported, export
from flashelmo.benchmarks.onnx.peak import ProductsRun, equal_batch, median_seconds
from flashelmo.benchmarks.onnx.products import feeds, products_graph, write_products
from flashelmo.benchmarks.onnx.settings import ENTRANTS, FILE_PRECISIONS, SECTIONS, OnnxSettings
from flashelmo.benchmarks.onnx.tables import tables
from flashelmo.benchmarks.results import Results, Row, new_results
from flashelmo.benchmarks.text import generate, write_sentences
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.graph.tensors import prepare_tensors
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import DIRECTIONS, GATES, ElmoModel, ElmoWeights

CONFIG = replace(BILM, cell_size=32, projection_size=16, cell_clip=3.0, projection_clip=3.0)
SETTINGS = OnnxSettings(
    contestants=("engine int8", "onnx fp32", "onnx fp32 parallel", "onnx int8"),
    threads=1,
    rounds=2,
    batch_sizes=(1, 40),
    passages=2,
    text_tokens=2500,
    checked=3,
    sample_seconds=0.001,
    peak_rows=6,
    peak_steps=4,
    peak_repeats=2,
    peak_seconds=0.001,
    load_repeats=1,
    error_sentences=4,
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
    return export(str(folder / "tiny"), 0, folder / "exported")


@pytest.fixture
def settings(folder: Path) -> OnnxSettings:
    """With the text."""
    return replace(SETTINGS, text=folder / "text.txt")


class InProcess:
    """A worker without a process of its own."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self._object = make(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._object, method)(*arguments)

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No processes, no pauses, small peaks."""
    threads = torch.get_num_threads()
    for module in (accuracy, contestants, cuda, peak, speed):
        monkeypatch.setattr(module, "Worker", InProcess)
    monkeypatch.setattr("flashelmo.benchmarks.contestant.PAUSE", 0)
    monkeypatch.setattr(roofline, "SHAPES", ((32, 64, 64),))
    yield
    torch.set_num_threads(threads)


def by_name(rows: list[Row], section: str, detail: str | None = None) -> dict[str, Row]:
    """Rows of a section."""
    return {row.name: row for row in rows if row.section == section and detail in (None, row.detail)}


# ------------------------------------------------------------------------------------------------------------ sections


def test_speed_of_every_size_of_batch(exported: Exported, settings: OnnxSettings, in_process: None) -> None:
    rows = speed.measure_speed(exported, settings)
    passages, _ = speed.draw_passages(settings)
    assert [len(passage) for passage in passages] == [32, 32]
    for size, batches in ((1, [[passages[0][0]], [passages[1][0]]]), (40, [[*passages[0], *passages[1][:8]]])):
        found = by_name(rows, "speed", speed.described(size))
        assert list(found) == ["reference", *settings.contestants]
        tokens, positions = count_tokens(batches), sum(len(b) * max(map(len, b)) for b in batches)
        for name, row in found.items():
            assert len(row.samples) == 2 and row.median is not None and row.median > 0
            assert f"{len(batches)} batch" in row.note
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


def test_the_peak_and_the_products_alone(exported: Exported, settings: OnnxSettings, in_process: None) -> None:
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


def test_load_and_size(exported: Exported, settings: OnnxSettings) -> None:
    few = replace(exported, files={"int8": exported.files["int8"]})
    rows = measure_load(few, settings)
    assert [row.label for row in rows] == [
        f"{name}, {what}" for name in ("onnx int8", "native fp32") for what in ("load", "imports before it")
    ]
    assert all(row.unit == "s" and row.median is not None and 0 < row.median < 20 for row in rows)

    sizes = {row.name: row.median for row in measure_size(exported)}
    assert sizes.keys() == {"onnx fp32", "onnx fp16", "onnx int8", "native fp32"}
    for precision in FILE_PRECISIONS:
        size = exported.files[precision].stat().st_size
        assert sizes[f"onnx {precision}"] == pytest.approx(size / 1e6, rel=1e-4)
    assert sizes["native fp32"] == pytest.approx(
        (exported.subject.folder / "model.safetensors").stat().st_size / 1e6, rel=1e-4
    )


def test_external_data_count(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x" * 1000)
    (tmp_path / "model.onnx_data").write_bytes(b"x" * 500_000)
    row = measure_size(replace(exported, files={"fp32": path}))[0]
    assert (row.median, row.note) == (0.501, "fp32: 0.5 MB of it in a file of their own")


def test_errors_of_every_precision_and_layer(exported: Exported, settings: OnnxSettings, in_process: None) -> None:
    rows = accuracy.measure_errors(exported, settings)
    assert len(rows) == 3 * 2 * 3  # precisions, units, layers
    bounds = {"onnx fp32": (0, 1e-5), "onnx fp16": (1e-4, 5e-3), "onnx int8": (1e-3, 0.08)}
    for row in rows:
        low, high = bounds[row.name] if (row.name, row.detail) != ("onnx int8", "layer 0") else (0, 1e-5)
        assert row.unit in ("relative error", "max abs error")
        assert row.median is not None and low < row.median < high * (10 if row.unit == "max abs error" else 1), row
        assert row.note.startswith("4 sentences, ") and row.note.endswith(" of text.txt")


# ---------------------------------------------------------------------------------------------------------------- card


def test_without_a_card_there_is_one_row_that_says_why(exported: Exported, settings: OnnxSettings) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a CUDA provider")
    (row,) = cuda.measure_cuda(exported, settings)
    assert (row.section, row.name, row.median) == ("cuda", "onnx on a card", None)
    assert row.note.startswith("providers: expected some of ") and row.note.endswith("found CUDAExecutionProvider")


def test_the_section_of_a_card(
    exported: Exported, settings: OnnxSettings, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the processor in the card's place, whose engine has no float16."""

    def native(folder: Path, precision: str) -> Way:
        return contestants.engine(folder, {"precision": precision, "runtime": "ort"})

    monkeypatch.setattr(cuda, "PROVIDER", ("CPUExecutionProvider", {}))
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


def test_openvino_gives_the_same_vectors(exported: Exported, settings: OnnxSettings) -> None:
    pytest.importorskip("openvino")
    passages, _ = speed.draw_passages(settings)
    batch = passages[0][:5]
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


def test_who_is_wrong_or_absent_is_not_timed() -> None:
    exact = [np.ones((2, 3, 4), np.float32)]

    def embed(factor: float) -> Way:
        return Way(lambda batch: [exact[0] * np.float32(factor)], len)

    def refuse() -> Way:
        raise FlashElmoError("no such thing here")

    def crash() -> Any:
        raise RuntimeError("Traceback:\n  line 1\nKernelError: broken\n")

    ways: dict[str, Callable[[], Way]] = {
        "right": lambda: embed(1.0),
        "off": lambda: embed(1.001),
        "nan": lambda: embed(np.nan),
        "absent": refuse,
        "broken": crash,
    }
    make: Any = InProcess
    starts = {name: Start("fp32", partial(make, contestants.Contestant, way)) for name, way in ways.items()}
    with ExitStack() as stack:
        workers, left_out = line_up(stack, starts, [["a"]], exact)
    assert list(workers) == ["right"]
    assert left_out == {
        "off": "FAILED: expected vectors within 1e-05 of the reference's, found 0.001",
        "nan": "FAILED: expected vectors within 1e-05 of the reference's, found nan",
        "absent": "no such thing here",
        "broken": "FAILED: KernelError: broken",
    }


def test_a_clock_counts_tokens_and_calls() -> None:
    seen: list[int] = []
    contestant = contestants.Contestant(lambda: Way(lambda batch: [], lambda batch: seen.append(len(batch))))
    assert contestant.speed([[["a", "b"]], [["c"], ["d"]]], 0.0) > 0
    assert seen == [1, 2]
    contestant.speed([[["a"]]], 0.01)
    assert len(seen) > 10
    assert count_tokens([[["a", "b"]], [["c"], ["d"]]]) == 4
    assert median_seconds(lambda: seen.append(0), 3) < 0.01 and seen[-4:] == [0] * 4


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
    assert (batch.words, batch.rows, batch.steps) == (words, rows, steps)
    run = ProductsRun(path, config, batch, 1)
    assert run.seconds(1) > 0
    given = feeds(config, words, rows, steps)
    found = iter([value.numpy() for value in run._binding.get_outputs()])
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
    run = ProductsRun(path, CONFIG, peak.Batch([["a", "b"], ["a", "b"]], "by hand"), 1)
    assert run.seconds(1) > 0
    assert all(np.isfinite(value.numpy()).all() for value in run._binding.get_outputs())
    proto = onnx.load(path)
    assert {tensor.data_type for tensor in proto.graph.initializer if tensor.name.endswith("weight.input")} == {
        TensorProto.INT8
    }


# ----------------------------------------------------------------------------------------------------- command, README


def test_a_run_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "onnx" / "tiny.json"
    short = write_sentences(tmp_path / "text.txt", generate(5000))
    arguments = f"--quick --rounds 1 --threads 1 --models {folder / 'tiny'} --only speed,size --contestants onnx"
    given = [*arguments.split()[:-1], "onnx int8", "--text", str(short), "--out", str(out)]
    assert command.main(given) == 0
    found = Results.read(out)
    assert {row.section for row in found.rows} == {"limits", "speed", "size"}
    assert list(by_name(found.rows, "speed")) == ["reference", "onnx int8"]
    assert all(row.median is not None and np.isfinite(row.samples).all() for row in found.rows)
    assert found.settings["models"] == ["tiny"] and found.settings["text"] == "text.txt"
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    assert "tiny: speed, tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--only speed,beauty", f"--only: expected some of {', '.join(SECTIONS)}, found 'beauty'"),
        ("--models gigantic", "--models: expected some of small, medium, original, or paths, found 'gigantic'"),
        (
            "--contestants reference",
            f"--contestants: expected some of {', '.join(list(ENTRANTS)[1:])}, found 'reference'",
        ),
        ("--rounds 0", "--rounds: expected 1 or more, found 0"),
        ("--threads -1", "--threads: expected 1 or more, found -1"),
        ("--rounds many", "argument --rounds: invalid int value: 'many'"),
        ("--beauty", "unrecognized arguments: --beauty"),
    ],
)
def test_wrong_arguments_get_one_line(arguments: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments.split()) == 1
    assert capsys.readouterr().err == f"benchmarks.onnx: {line}\n"


def test_an_output_that_cannot_be_written_is_known_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert command.main(["--out", str(tmp_path / "file" / "results.json")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_what_failed_makes_the_run_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Row("speed", "tiny", "onnx fp32", "tokens/s", note="FAILED: expected better")
    monkeypatch.setattr(command, "run", lambda *arguments: replace(new_results({}), rows=[failed]))
    assert command.main([]) == 1
    monkeypatch.setattr(command, "run", lambda *arguments: new_results({}))
    assert command.main([]) == 0


def test_sections_are_measured_by_name(exported: Exported, settings: OnnxSettings) -> None:
    assert [row.section for row in command.measure("size", exported, settings)] == ["size"] * 4
    with pytest.raises(FlashElmoError, match="section: expected one of speed, peak"):
        command.measure("beauty", exported, settings)


def test_quick_takes_less_of_everything() -> None:
    full, (quick, out) = OnnxSettings(), command.parse(["--quick"])
    assert (quick.models, quick.rounds, out) == (("small",), 2, None)
    assert max(quick.batch_sizes) <= 32 * quick.passages
    assert max(full.batch_sizes) <= 32 * full.passages
    assert quick.text_tokens < full.text_tokens and quick.load_repeats < full.load_repeats


def made_up() -> Results:
    """Results whose tables can be told beforehand."""
    common = {"section": "speed", "model": "small", "unit": "tokens/s", "detail": "8 sentences", "note": "by hand"}
    rows = [
        Row.of([100], **common, name="reference", ceiling=2000),
        Row.of([1500, 1700], **common, name="onnx fp32", ceiling=2000),
        Row.of([2600], **common, name="onnx int8", ceiling=4000),
        Row("speed", "small", "openvino bf16", "tokens/s", note="not on this processor"),
    ]
    peaks = {"section": "peak", "model": "small", "unit": "GFLOP/s", "detail": "32 sentences", "ceiling": 200}
    rows += [
        Row.of([120], **peaks, name="onnx fp32", ceiling_both=160, ratios={"products fp32": 0.8}),
        Row.of([180], **peaks, name="onnx int8", ratios={"products int8": 0.9, "onnx fp32": 1.5}),
        Row.of([150], **peaks, name="products fp32", note="42 MB"),
    ]
    rows += [
        Row.of([0.5], section="load", model="small", name="onnx fp32", detail="load", unit="s"),
        Row.of([374.7], section="size", model="small", name="onnx fp32", detail="file", unit="MB"),
        Row.of([0.01], section="error", model="small", name="onnx int8", detail="layer 0", unit="relative error"),
        Row.of([9000], section="cuda", model="small", name="onnx fp16", detail="8 sentences", unit="tokens/s"),
        Row.of([4], section="cuda", model="small", name="onnx fp16", detail="copies a step", unit="Memcpy nodes"),
        Row("cuda", "small", "engine fp16", "tokens/s", note="not on this processor"),
    ]
    return replace(new_results({"rounds": 2}), rows=rows)


def test_readmes_tables(tmp_path: Path) -> None:
    assert report.exported_files(tmp_path) == "None measured yet."
    made_up().write(tmp_path / "onnx" / "abacus.json")
    text = report.exported_files(tmp_path)
    assert text == tables(Results.read(tmp_path / "onnx" / "abacus.json"), "onnx/abacus.json")
    for line in (
        "Medians of 2 rounds in which all take turns (`benchmarks/results/onnx/abacus.json`).",
        "| model |  | 8 sentences |\n| --- | --- | ---: |\n| small | reference | 100 (5%) |\n",
        "| small | onnx fp32 | 1,600 (80%) |\n| small | onnx int8 | 2,600 (65%) |\n",
        "| small | LSTM ceiling, fp32 | 2,000 |\n| small | LSTM ceiling, int8 | 4,000 |\n\nby hand.",
        "| small | onnx fp32 | 120 | 200 | 60% | 160 | 75% | 80% |  |\n",
        "| small | onnx int8 | 180 | 200 | 90% |  |  | 90% | 1.50 |\n",
        "| small | products fp32 | 150 | 200 | 75% |  |  |  |  |\n\n42 MB.",
        "| small | onnx fp32, load | s | 0.5 |\n| small | onnx fp32, file | MB | 375 |",
        "| small | onnx int8 | 0.01 |",
        "| small | onnx fp16 | 9,000 |",
        "| small | onnx fp16, copies a step | Memcpy nodes | 4 |",
        "Not measured: openvino bf16 (speed), engine fp16 (cuda): not on this processor.",
    ):
        assert line in text


def test_readme_shows_the_committed_results(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    block = readme.partition("<!-- onnx:begin -->\n\n")[2].partition("\n\n<!-- onnx:end -->")[0]
    assert block == report.exported_files(root / "benchmarks" / "results")
    assert readme.count("<!-- onnx:begin -->") == 1


def test_a_console_gets_every_section(exported: Exported, settings: OnnxSettings, folder: Path, tmp_path: Path) -> None:
    text = StringIO()
    few = replace(settings, models=(str(folder / "tiny"),), sections=("size",))
    results = command.run(few, Console(file=text, width=160), tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json").rows == results.rows
    assert "tiny: size, MB" in text.getvalue() and "native fp32" in text.getvalue()
