"""The first use of a variant that was written without a card: with made-up ones that are right, wrong, or raise."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from kernel_lstm import RandomLayer, random_layer

from flashelmo.engine.precision import PRECISIONS
from flashelmo.engine.system.files import cache_folder
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm import fused, hoisted, layer, proven
from flashelmo.kernels.lstm.layer import choose, lstm_layer, pack_lstm
from flashelmo.kernels.lstm.run import InputWords, LaunchOptions, LayerRun, new_tensors
from flashelmo.kernels.lstm.steps import Variant
from flashelmo.kernels.lstm.weights import interleave

ROWS = (1, 3, 6)
BOUND = PRECISIONS["fp32"].bounds["cuda"].relative or 0.0

PASSING: dict[str, Exception] = {
    "out of memory": torch.OutOfMemoryError("CUDA out of memory"),
    "the driver is": RuntimeError("Triton Error [CUDA]: out of memory"),
    "the disk is full": OSError(28, "No space left on device"),
}


class MadeUp:
    """Fused steps of up to 3 rows, or something like them.

    Attributes:
        seen: how often its launches were asked for.
        polls: with which option, last.
    """

    def __init__(self, kind: str = "right") -> None:
        self.kind, self.seen, self.polls = kind, 0, 0

    def serves(self, run: LayerRun, rows: int) -> bool:
        return rows <= 3

    def launches(self, run: LayerRun, depths: range) -> Iterator[Launch]:
        self.seen += 1
        self.polls = run.options.polls
        launches = list(fused.launches(run, depths))
        if self.kind == "raises":
            raise RuntimeError("Triton Error [CUDA]: no kernel image\nand a long story")
        if self.kind in PASSING:
            raise PASSING[self.kind]
        if self.kind == "writes nothing" or (self.kind == "waits once" and self.seen == 1):
            launches.pop()
        yield from launches
        if self.kind == "wrong":
            run.tensors.hidden[:, run.nodes.n_roots :] *= 1.01
        if self.kind == "wrong by chance" and self.seen % proven.TIMES == 0:
            run.tensors.hidden.zero_()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Verdicts are kept here, and none of another test is known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(proven, "ROWS", ROWS)
    forget(monkeypatch)
    return tmp_path / "cache" / "flashelmo"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process begins."""
    monkeypatch.setattr(proven, "_verdicts", {})
    monkeypatch.setattr(proven, "_said", set())


def install(monkeypatch: pytest.MonkeyPatch, kind: str = "right") -> MadeUp:
    made_up = MadeUp(kind)
    first = Variant("made up", made_up.serves, made_up.launches, interleave, blind=True)
    monkeypatch.setattr(layer, "VARIANTS", (first, *layer.VARIANTS))
    return made_up


def run_of(made: RandomLayer, bound: float | None = BOUND, skip: bool = False) -> LayerRun:
    weights = pack_lstm(made.canonical, device=made.device, bound=bound, cache=cache_folder())
    return LayerRun(weights, new_tensors(weights, made.nodes, made.x, skip=skip), made.nodes)


def chosen(device: str, **options: Any) -> list[str]:
    """The variants for 1, 3 and 4 rows."""
    run = run_of(random_layer(device), **options)
    return [choose(run, rows).name for rows in (1, 3, 4)]


def test_an_input_part_by_word_is_proven_by_itself(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that multiplies no words is right by node, and refused by word."""

    def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
        is_product = "count_ptr"
        return (each for each in hoisted.launches(run, depths) if is_product not in each.arguments or not by_word)

    first = Variant("made up", lambda run, rows: rows <= 3, launches, interleave, blind=True)
    monkeypatch.setattr(layer, "VARIANTS", (first, *layer.VARIANTS))
    made = random_layer(device)
    run, names = run_of(made), []
    count = torch.tensor([5], dtype=torch.int32, device=device)
    words = InputWords.of(run.weights, run.tensors.x, run.nodes.parents, count)
    for each in (run, replace(run, words=words)):
        by_word = each.words is not None
        names.append(choose(each, 3).name)
    assert names == ["made up", "hoisted"]


@pytest.mark.parametrize("skip", [False, True])
def test_what_is_right_serves_and_is_not_compared_again(
    device: str, skip: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made_up = install(monkeypatch)
    assert chosen(device, skip=skip)[:2] == ["made up"] * 2 and made_up.seen == proven.TIMES
    assert chosen(device, skip=skip)[2] != "made up" and made_up.seen == proven.TIMES
    assert made_up.polls == proven.POLLS < LaunchOptions().polls  # what waits in vain is found out soon
    (path,) = folder.iterdir()
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["why"] == "" and kept["identity"]["variant"] == "made up" and kept["identity"]["skip"] is skip
    forget(monkeypatch)
    assert chosen(device, skip=skip)[0] == "made up" and made_up.seen == proven.TIMES
    assert chosen(device, skip=not skip)[0] == "made up" and made_up.seen == 2 * proven.TIMES  # other kernels
    invariant = replace(run_of(random_layer(device), skip=skip), options=LaunchOptions(batch_invariant=True))
    assert choose(invariant, 1).name == "made up" and made_up.seen == 3 * proven.TIMES  # perhaps other tiles
    assert choose(invariant, 3).name == "made up" and made_up.seen == 3 * proven.TIMES
    assert chosen(device, skip=skip, bound=2 * BOUND)[0] == "made up" and made_up.seen == 4 * proven.TIMES
    assert not caplog.records


def test_what_no_card_has_run_is_compared_more_often(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proven, "TIMES_OF_NEW", 5)
    made_up = install(monkeypatch)
    first, *others = layer.VARIANTS
    monkeypatch.setattr(layer, "VARIANTS", (first._replace(rival=others[-1]), *others))
    assert chosen(device)[0] == "made up"
    assert made_up.seen >= proven.TIMES_OF_NEW > proven.TIMES


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("wrong", "its vectors are off by 0.01 where 1e-05 is allowed"),
        ("writes nothing", "its vectors are off by nan where 1e-05 is allowed"),  # which is seen at once, and once more
        ("wrong by chance", "its vectors are off by 1 where 1e-05 is allowed"),
        ("raises", "it raises RuntimeError: Triton Error [CUDA]: no kernel image"),
    ],
)
def test_what_is_wrong_is_not_used_and_one_warning_says_so(
    device: str, kind: str, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made_up = install(monkeypatch, kind)
    for _ in range(2):
        assert "made up" not in chosen(device) and "made up" not in chosen(device, skip=True)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("flashelmo", logging.WARNING)
    where = torch.empty(0, device=device).device
    assert record.getMessage() == (
        f"device {where}: LSTM variant 'made up' is not used, as {why}; others serve in its place"
    )
    seen = made_up.seen
    assert seen == {"writes nothing": 2, "raises": 1}.get(kind, proven.TIMES) * 2  # with the skip connection too
    forget(monkeypatch)
    caplog.clear()
    assert "made up" not in chosen(device) and made_up.seen == seen  # kept, and said again by another process
    assert len(caplog.records) == 1


def test_vectors_are_those_of_the_portable_kernels_where_it_is_wrong(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = random_layer(device)

    def outputs(bound: float | None) -> torch.Tensor:
        weights = pack_lstm(made.canonical, device=device, bound=bound, cache=cache_folder())
        hidden, _ = lstm_layer(weights, made.nodes, made.x)
        return torch.cat([hidden[d, starts[1] : starts[-1]] for d, starts in enumerate(made.nodes.depths)])

    expected = outputs(None)
    install(monkeypatch, "wrong")
    assert torch.equal(outputs(BOUND), expected)
    assert not torch.equal(outputs(None), expected)  # nothing is to be proven


@pytest.mark.parametrize("kind", PASSING)
def test_a_shortage_that_may_pass_is_no_verdict(
    device: str, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = install(monkeypatch, kind)
    with pytest.raises(type(PASSING[kind])):
        chosen(device)
    made_up.kind = "right"
    assert chosen(device)[0] == "made up" and len(list(folder.iterdir())) == 1


def test_a_reference_that_fails_is_no_verdict(
    device: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As it does where PyTorch is to be deterministic and may not use cuBLAS."""
    made_up = install(monkeypatch)

    def fail(*_: Any) -> None:
        raise RuntimeError("Deterministic behavior was enabled\nbut")

    with monkeypatch.context() as patch:
        patch.setattr(proven.reference, "lstm_step", fail)
        assert [*chosen(device), *chosen(device)].count("made up") == made_up.seen == 0 and not folder.exists()
    (record,) = caplog.records
    said = "'made up' is not used, as the reference raises RuntimeError: Deterministic behavior was enabled; others"
    assert said in record.getMessage()
    forget(monkeypatch)
    assert chosen(device)[0] == "made up" and len(list(folder.iterdir())) == 1


def test_what_waited_in_vain_once_is_no_verdict(
    device: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where another program's work held the card: it is not used by this process, and compared by the next."""
    install(monkeypatch, "waits once")
    assert "made up" not in [*chosen(device), *chosen(device)] and not folder.exists()
    (record,) = caplog.records
    assert (
        "'made up' is not used, as its programs waited in vain, perhaps for other work on the card; "
        in record.getMessage()
    )
    forget(monkeypatch)
    assert chosen(device)[0] == "made up" and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("kind", [torch.bfloat16])
def test_a_default_type_of_the_program_changes_no_verdict(
    device: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, made_up = random_layer(device), install(monkeypatch)
    run = run_of(made)
    torch.set_default_dtype(kind)
    try:
        assert choose(run, 3).name == "made up" and made_up.seen == proven.TIMES
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"identity": {}, "why": ""}', '{"identity": null, "why": 3}'])
def test_a_broken_file_is_no_verdict(device: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = install(monkeypatch)
    chosen(device)
    (path,) = folder.iterdir()
    whole = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    forget(monkeypatch)
    assert chosen(device)[0] == "made up" and made_up.seen == 2 * proven.TIMES
    assert path.read_text(encoding="utf-8") == whole and list(folder.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_costs_the_comparison_each_time(
    device: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = install(monkeypatch)
    folder.parent.write_text("a file where the folder should be", encoding="utf-8")
    for n in (1, 2):
        forget(monkeypatch)
        assert chosen(device)[0] == "made up" and made_up.seen == n * proven.TIMES
    monkeypatch.delenv("XDG_CACHE_HOME")

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    forget(monkeypatch)
    assert chosen(device)[0] == "made up" and made_up.seen == 3 * proven.TIMES


def test_a_verdict_is_one_of_a_card_its_software_and_these_sources(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = random_layer(device)
    run, variant = run_of(made), layer.VARIANTS[-1]
    placed = [proven._place(variant, run, BOUND), proven._place(variant, run, 2 * BOUND)]
    placed.append(proven._place(variant, run_of(made, skip=True), BOUND))
    placed.append(proven._place(variant._replace(name="another"), run, BOUND))
    half = replace(made, dtype=torch.float16, x=made.x.half())
    weights = pack_lstm(made.canonical, dtype=torch.float16, device=device)
    placed.append(
        proven._place(variant, LayerRun(weights, new_tensors(weights, made.nodes, half.x), made.nodes), BOUND)
    )
    for place, name, value in (
        (torch, "__version__", "3.0"),
        (proven.triton, "__version__", "4.0"),
        (proven, "_sources", lambda: "other"),
        (proven, "driver_version", lambda: "1.2"),
        (torch.cuda, "get_device_name", lambda device: "another"),
    ):
        if device == "cuda" or (place is not torch.cuda and name != "driver_version"):
            monkeypatch.setattr(place, name, value)
            placed.append(proven._place(variant, run, BOUND))
    assert len({path for path, _ in placed}) == len(placed) == len({str(identity) for _, identity in placed})
    assert proven._place(variant, run, BOUND) == placed[-1]


def test_nodes_are_whole() -> None:
    nodes = proven._nodes((1, 5, 3), 2, torch.device("cpu"))
    assert nodes.depths == ((0, 2, 3, 8, 11), (0, 2, 3, 6, 6))
    for d, starts in enumerate(nodes.depths):
        for before, first, last in zip(starts, starts[1:], starts[2:], strict=False):
            for node in range(first, last):
                parent = before + int(nodes.parents[d, node])
                assert before <= parent < first
                assert nodes.children[d, parent] <= node < nodes.children[d, parent + 1]
        assert set(nodes.children[d, starts[-1] :].tolist()) == {starts[-1]}


def test_hoisted_steps_prove_themselves(device: str) -> None:
    """The portable variants are within the bounds of the comparison, in every type."""
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        made = random_layer(device, P=32, C=16, dtype=dtype)
        weights = pack_lstm(made.canonical, dtype=dtype, device=device)
        run = LayerRun(weights, new_tensors(weights, made.nodes, made.x, skip=True), made.nodes)
        for each in (hoisted, fused):
            variant = Variant("portable", each.serves, each.launches, interleave)
            bound = PRECISIONS[precision].bounds["cuda"].relative
            assert bound and 0 < proven.difference(variant, run) < bound


def test_the_driver_is_named(tmp_path: Path) -> None:
    path = tmp_path / "version"
    for text, version in (
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\n", "550.54.15"),
        ("something else\n", "unknown"),
    ):
        path.write_text(text, encoding="utf-8")
        assert proven.driver_version(path) == version
    assert proven.driver_version(tmp_path / "absent") == "unknown"
