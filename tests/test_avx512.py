"""The LSTM in C, in 16 and 8 bits, with tiles and without: against the cell in float64, and inside the engine."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest
from tiny_models import BILM, MODELS, SENTENCES, random_model

from flashelmo.engine.choice import Choice, choose_runtime
from flashelmo.engine.cpu import lstm_c
from flashelmo.engine.cpu.avx512 import Avx512Runtime
from flashelmo.engine.cpu.lstm_c import BASE, PRODUCTS, TILES, Bits, compiled, why_not
from flashelmo.engine.cpu.runtime import LstmSteps
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import LstmCell
from flashelmo.engine.precision import PrecisionName, tolerance
from flashelmo.engine.settings import Settings
from flashelmo.engine.system.processor import cpu_flags

Array = npt.NDArray[np.float64]
LIBRARY = lstm_c._library_or_problem.__wrapped__
PRECISION: dict[int, PrecisionName] = {16: "bf16", 8: "int8"}
WIDE = replace(BILM, cell_size=256, projection_size=64, cell_clip=3.0, projection_clip=3.0)
TEXT = [[f"w{k % 7}{k % 5}" for k in range(n)] + ["end"] for n in (3, 40, 3, 1, 17, 0, 40, 9)] * 3


@pytest.fixture(params=[16, 8])
def bits(request: pytest.FixtureRequest) -> Bits:
    found: Bits = request.param
    if why := why_not(found):
        pytest.skip(why)
    return found


@pytest.fixture(params=["tiles", "vectors"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What multiplies: one of them alone on this machine as if there were no other."""
    products = [flag for flag in PRODUCTS.values() if flag in cpu_flags()]
    flags = (*BASE, *products, *(TILES if request.param == "tiles" else ()))
    if not cpu_flags().issuperset(flags) or not products:
        pytest.skip(f"the processor has no {request.param}")
    library = compiled(flags)
    if library.ask_for_tiles():
        pytest.skip("the system gives no tiles")
    monkeypatch.setattr(lstm_c, "library", lambda: library)
    name: str = request.param
    return name


def reference_step(cell: LstmCell, config: ElmoConfig, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """The cell of `lstm.c`'s head in float64."""

    def sigmoid(y: Array) -> Array:
        return 1 / (1 + np.exp(-y))

    def clip(y: Array, most: float | None) -> Array:
        return y if most is None else np.clip(y, -most, most)

    i, f, g, o = (
        x @ w + h @ u + b for w, u, b in zip(cell.input_weight, cell.recurrent_weight, cell.bias, strict=True)
    )
    c = clip(sigmoid(f) * c + sigmoid(i) * np.tanh(g), config.cell_clip)
    y = sigmoid(o) * np.tanh(c)
    return (y if cell.projection is None else clip(y @ cell.projection, config.projection_clip)), c


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected)) / (float(np.linalg.norm(expected)) + 1e-30)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(("size", "cells"), [(4, 6), (33, 100), (64, 256), (16, 16)])
@pytest.mark.parametrize("n_rows", [1, 16, 17, 70])
def test_steps_are_those_of_the_cell(bits: Bits, size: int, cells: int, n_rows: int) -> None:
    """With and without a table of inputs, from any rows of the states before, inside larger arrays."""
    config = replace(BILM, cell_size=cells, projection_size=size, cell_clip=1.5, projection_clip=0.6)
    weights = scaled(random_model(config)).weights
    layer, direction, n_steps, n_before = n_rows % 2, 1, 3, n_rows + 4
    cell, rng = weights.lstm[layer][direction], np.random.default_rng(n_rows)
    runtime = Avx512Runtime(config, weights, bits, threads=3 if n_rows == 70 else 2)
    x = rng.normal(0, 0.5, (n_steps * n_rows, size)).astype(np.float32)
    hidden = rng.normal(0, 0.3, (n_before, size)).astype(np.float32)
    c = rng.normal(0, 0.7, (n_before, cells)).astype(np.float32)
    parents = rng.integers(0, n_before, n_rows).astype(np.int32)
    rows = rng.permutation(n_steps * n_rows).astype(np.int32).reshape(n_steps, n_rows) if layer == 0 else None
    gates, before, after = (
        blocks.empty(n)
        for blocks, n in ((runtime.gates, len(x) + 3), (runtime.cells, n_before + 2), (runtime.cells, n_rows + 5))
    )
    runtime.input_product(layer, direction, x, gates[:, 2 : 2 + len(x)])
    padded = np.zeros((n_before, before.shape[0] * 16), np.float32)
    padded[:, :cells] = c
    before[:, 1 : 1 + n_before] = padded.reshape(n_before, -1, 16).transpose(1, 0, 2)
    found = np.full((n_steps, n_rows, size), np.nan, np.float32)
    into = after[:, 3 : 3 + n_rows]
    kept = gates[:, 2 : 2 + len(x)]
    runtime.steps(LstmSteps(layer, direction, kept, rows, parents, hidden, before[:, 1 : 1 + n_before], found, into))
    expected, h, state = [], hidden[parents].astype(np.float64), c[parents].astype(np.float64)
    for t in range(n_steps):
        here = x[rows[t]] if rows is not None else x[t * n_rows : (t + 1) * n_rows]
        h, state = reference_step(cell, config, here.astype(np.float64), h, state)
        expected.append(h)
    assert relative(found, np.array(expected)) < tolerance(PRECISION[bits])
    assert relative(into.transpose(1, 0, 2).reshape(n_rows, -1)[:, :cells], state) < tolerance(PRECISION[bits])


def test_tiles_and_vectors_add_up_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 8 bits sums are whole numbers: the same to the bit, but for the order of what is compiled."""
    if not cpu_flags().issuperset((*BASE, *PRODUCTS.values(), *TILES)) or compiled(TILES_TOO).ask_for_tiles():
        pytest.skip("the processor has no tiles")
    found = []
    for flags in (TILES_TOO, (*BASE, *PRODUCTS.values())):
        library = compiled(flags)
        monkeypatch.setattr(lstm_c, "library", lambda library=library: library)
        embedder = ElmoEmbedder(random_model(WIDE), device="cpu", precision="int8", runtime="avx512")
        found.append(np.concatenate(list(embedder.embed(TEXT)), axis=1))
    assert relative(found[0][0], found[1][0]) < 1e-6 and relative(found[0], found[1]) < 2e-3


TILES_TOO = (*BASE, *PRODUCTS.values(), *TILES)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model(name: str, bits: Bits) -> None:
    """Its vectors are the reference's; stateful, with boundaries and without."""
    sizes: dict[str, Any] = {"cell_size": 256, "projection_size": 256 if name == "no projection" else 64}
    small = MODELS[name]
    if not small.config.character_size:
        sizes["word_size"] = sizes["projection_size"]
    model = scaled(random_model(replace(small.config, **sizes), small.lexicon))
    others: list[dict[str, Any]] = [{"stateful": True}, {"keep_sentence_boundaries": True}]
    for settings in others:
        embedder = ElmoEmbedder(model, device="cpu", precision=PRECISION[bits], runtime="avx512", **settings)
        exact = ElmoEmbedder(model, device="cpu", precision="fp32", **settings)
        for _ in range(2):
            pairs = zip(embedder.embed_batch(SENTENCES), exact.embed_batch(SENTENCES), strict=True)
            found, expected = (np.concatenate(each, axis=1) for each in zip(*pairs, strict=True))
            for layer in range(len(found)):
                assert relative(found[layer], expected[layer]) < tolerance(PRECISION[bits]), (settings, layer)


def scaled(model: Any) -> Any:
    """Weights as small as trained ones: a row's sums stay near 1."""
    for layer in model.weights.lstm:
        for cell in layer:
            for tensor in (cell.input_weight, cell.recurrent_weight, cell.projection):
                if tensor is not None:
                    tensor /= np.sqrt(tensor.shape[-2])
    for highway in model.weights.highways:
        for dense in (highway.transform, highway.gate):
            dense.weight[...] /= np.sqrt(len(dense.weight))
    return model


@pytest.mark.usefixtures("instructions")
def test_a_sentence_has_the_same_bits_in_any_company(bits: Bits) -> None:
    model = random_model(WIDE)

    def embed(sentences: list[list[str]], **settings: Any) -> list[Any]:
        embedder = ElmoEmbedder(model, device="cpu", precision=PRECISION[bits], runtime="avx512", **settings)
        return list(embedder.embed(sentences))

    together = embed(TEXT)
    others: list[dict[str, Any]] = [{"threads": 1}, {"threads": 7}, {"window_tokens": 20}, {"share": False}]
    for settings in others:
        assert all(map(np.array_equal, embed(TEXT, **settings), together)), settings
    for sentence, expected in zip(TEXT[:4], together, strict=False):
        assert np.array_equal(embed([sentence])[0], expected)


@pytest.mark.usefixtures("instructions")
def test_no_number_stays_none() -> None:
    """One among the weights is not hidden by a clip."""
    if why := why_not(16):
        pytest.skip(why)
    model = random_model(WIDE)
    model.weights.lstm[0][0].recurrent_weight[1, 3, 5] = np.nan
    with pytest.raises(FlashElmoError, match="expected finite vectors, found infinity or NaN"):
        ElmoEmbedder(model, device="cpu", precision="bf16", runtime="avx512").embed_sentence(TEXT[1])


@pytest.mark.usefixtures("instructions")
def test_threads_that_wait_sleep_and_end_with_their_team(bits: Bits) -> None:
    """They would keep a core from the other direction, or from other programs."""
    model = random_model(WIDE)
    rows = np.ones((5, 64), np.float32)
    before = n_threads()
    runtime = Avx512Runtime(model.config, model.weights, bits, threads=8)
    assert n_threads() - before >= 2 * 3
    idle = []
    for _ in range(5):
        runtime.input_product(0, 0, rows, runtime.gates.empty(5))
        begin = time.process_time()
        time.sleep(0.03)
        idle.append(time.process_time() - begin)
    assert min(idle) < 0.003
    del runtime
    assert n_threads() <= before


def n_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


# ----------------------------------------------------------------------------------------------- where it cannot run


can_run = pytest.mark.skipif(why_not(8) != "", reason="the processor or its compiler cannot")


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Another processor, compiler or cache folder, and nothing compiled before."""

    def change(flags: set[str] | None = None, compiler: str = "", home: str = "") -> None:
        monkeypatch.setattr(lstm_c.sys, "platform", "linux")
        if flags is not None:
            monkeypatch.setattr(lstm_c, "cpu_flags", lambda: frozenset(flags))
        if compiler:
            monkeypatch.setenv("CC", compiler)
        monkeypatch.setenv("XDG_CACHE_HOME", home or str(tmp_path))
        monkeypatch.setattr(lstm_c, "_library_or_problem", cache(LIBRARY))

    return change


def test_a_processor_without_the_instructions(forget: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    forget({"avx2"})
    assert why_not(16) == why_not(8) == "expected Linux on a processor with AVX-512"
    forget({*BASE})
    assert why_not(16) == "expected a processor with avx512_bf16 or AMX"
    assert why_not(8) == "expected a processor with avx512_vnni or AMX"
    monkeypatch.setattr(lstm_c.sys, "platform", "win32")
    assert why_not(8) == "expected Linux on a processor with AVX-512"
    message = r"^runtime 'avx512': expected Linux on a processor with AVX-512$"
    with pytest.raises(FlashElmoError, match=message):
        ElmoEmbedder(MODELS["skip"], device="cpu", precision="int8", runtime="avx512")
    assert choose_runtime(Settings("cpu", "int8", "auto")) == Choice("ort", "int8")
    assert choose_runtime(Settings("cpu", "int8", "avx512")) == Choice("avx512", "int8")


@pytest.mark.parametrize(
    ("compiler", "found"),
    [
        ("no-such-compiler", "found none that works: no-such-compiler"),
        ("false", "found false: it failed"),
        ("sh -c 'echo x.c:1: error: bad >&2; exit 1' x", "found sh: x.c:1: error: bad"),
        (str(Path(__file__)), "found none that works"),  # which nobody may execute
    ],
)
def test_without_a_compiler_another_runtime_serves(
    forget: Callable[..., None], compiler: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget({*BASE, *PRODUCTS.values()}, compiler)
    assert why_not(8).startswith("expected a C compiler, ") and found in why_not(8)
    monkeypatch.setattr(lstm_c.subprocess, "run", None)
    assert why_not(16) == why_not(8), "it is not asked again: it may take long to fail"
    assert choose_runtime(Settings("cpu", "int8", "auto")) == Choice("ort", "int8")


@can_run
def test_a_compiled_library_is_kept(forget: Callable[..., None], tmp_path: Path) -> None:
    forget()
    assert why_not(8) == ""
    (path,) = tmp_path.glob("flashelmo/lstm-*.so")
    before = path.stat()
    assert why_not(8) == "" and path.stat() == before


@pytest.mark.parametrize(("variable", "command"), [("", "cc"), ("/other/clang -m64", "/other/clang")])
def test_a_python_that_names_a_compiler_of_elsewhere(
    variable: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", variable)
    monkeypatch.setattr(lstm_c.sysconfig, "get_config_var", lambda name: "/build/clang -pthread")
    monkeypatch.setattr(lstm_c, "_loaded", loaded := Mock())
    lstm_c.compiled(BASE)
    assert loaded.call_args.args[1][0] == command


@can_run
def test_a_cache_that_cannot_be_written_to(forget: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    forget(home=str(tmp_path / "file"))
    assert why_not(8) == ""


def test_where_nothing_can_be_written_another_runtime_serves(
    forget: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    forget({*BASE, *PRODUCTS.values()}, home=str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    assert why_not(8) == "expected a folder to compile in: Not a directory"
    assert choose_runtime(Settings("cpu", "int8", "auto")) == Choice("ort", "int8")


@can_run
def test_a_damaged_library_is_replaced(forget: Callable[..., None], tmp_path: Path) -> None:
    """In the cache; the new one serves the next process too."""
    forget()
    assert why_not(8) == ""
    (whole,) = tmp_path.glob("flashelmo/lstm-*.so")
    damaged = tmp_path / "other" / "flashelmo" / whole.name  # at the same place, this process has it loaded
    damaged.parent.mkdir(parents=True)
    data = whole.read_bytes()
    for part in (b"no library", b"", data[: len(data) // 2], data[:-1], data[:-999] + bytes(999)):
        damaged.write_bytes(part)
        assert lstm_c._is_whole(whole) and not lstm_c._is_whole(damaged)
    forget(home=str(tmp_path / "other"))
    assert why_not(8) == ""
    assert lstm_c._is_whole(damaged)


def test_structures_are_those_of_the_source() -> None:
    """Field by field: a C compiler would not notice."""
    from flashelmo.engine.cpu.avx512 import _CellStruct, _Steps
    from flashelmo.engine.cpu.words_c import _LayerStruct

    source = "".join(source.read_text(encoding="utf-8") for source in lstm_c.SOURCES)
    structures: dict[str, type[ctypes.Structure]] = {"Cell": _CellStruct, "Steps": _Steps, "Layer": _LayerStruct}
    for name, structure in structures.items():
        body = source.partition(f"}} {name};")[0].rpartition("typedef struct {")[2]
        lines = [line.partition("/*")[0].strip() for line in body.splitlines()]
        declared = [
            field.strip(" *") for line in lines for part in line.split(";") if part.strip() for field in names_in(part)
        ]
        assert declared == [field[0] for field in structure._fields_], name


def names_in(declaration: str) -> list[str]:
    """Of a declaration as "const float *x, *bias" the names."""
    first, *others = declaration.split(",")
    return [first.split()[-1], *others]
