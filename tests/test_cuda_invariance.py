"""Batch invariance: where it is asked for, a sentence's bits on a card do not depend on what is embedded with it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from cuda_runs import AHEAD, DEVICE, ONE_LAYER, on_cuda
from kernel_lstm import FLOATS, random_layer
from tiny_models import BILM, random_model

from flashelmo.cli import main
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.settings import CudaSettings
from flashelmo.kernels import linear as linear_module
from flashelmo.kernels import linear_tma, tuning
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.linear import linear_kernel, linear_launch
from flashelmo.kernels.lstm import hopper_projection
from flashelmo.kernels.lstm.layer import choose
from flashelmo.kernels.lstm.run import LaunchOptions
from flashelmo.kernels.lstm.weights import Shape

pytestmark = pytest.mark.usefixtures("little_padding")

INVARIANT = CudaSettings(batch_invariant=True)
INVARIANT_AHEAD = replace(INVARIANT, graphs=False)
# On a card sizes that the variants for Hopper serve; both have sums that are split among programs.
P, C = (128, 512) if DEVICE == "cuda" else (16, 32)
PRECISIONS = ("fp32", "bf16", "fp16")
SENTENCE = ["the", "incomprehensibilities", "é", "cats"]
LAST = 13  # where it stands again among others, and at the end
# Sentences embedded at once, and whether equal beginnings are computed once. NumPy multiplies 16 bits slowly.
COMPANIES = [(n, share) for n in (3, 70, 300) for share in (True, False)]
CASES = [
    (precision, n, share)
    for precision in PRECISIONS
    for n, share in COMPANIES
    if DEVICE == "cuda" or precision == "fp32" or (n, share) in ((70, True), (300, False))
]


@cache
def model() -> ElmoModel:
    """Values like a trained model's, which no clip cuts: they would hide what differs."""
    config = replace(BILM, cell_size=C, projection_size=P, cell_clip=3.0, projection_clip=3.0)
    return random_model(config, deviation=0.7 * P**-0.5)


def company(n: int) -> list[list[str]]:
    """So many sentences, the one that is looked at among them: first, or later and at the end."""
    rng = np.random.default_rng(n)
    words = [*SENTENCE, *("".join(rng.choice(list("aeinst"), size=k % 9 + 1)) for k in range(40))]
    others = [rng.choice(words, size=k % 4 + 1).tolist() for k in range(n)]
    others[1] = [*SENTENCE[:2], "end"]  # begins alike
    for k in (LAST, n - 1) if n > LAST else (0,):
        others[k] = SENTENCE
    return others


def bits(arrays: Sequence[Any]) -> list[bytes]:
    return [np.ascontiguousarray(array).tobytes() for array in arrays]


@cache
def alone(precision: str) -> bytes:
    """The sentence by itself."""
    (found,) = bits(on_cuda(model(), precision=precision, cuda=INVARIANT).embed_batch([SENTENCE]))
    return found


def of_sentence(sentences: list[list[str]], found: Sequence[Any]) -> set[bytes]:
    return {each for sentence, each in zip(sentences, bits(found), strict=True) if sentence == SENTENCE}


@pytest.mark.parametrize(("precision", "n", "share"), CASES)
def test_a_sentence_has_its_own_bits_in_any_company(precision: str, n: int, share: bool) -> None:
    """Its words new and known, launched and by a graph, in rows of any position and number."""
    embedder = on_cuda(model(), precision=precision, cuda=INVARIANT, share=share)
    for sentences in (company(n), company(n), [SENTENCE]) if DEVICE == "cuda" or precision == "fp32" else (company(n),):
        assert of_sentence(sentences, embedder.embed_batch(sentences)) == {alone(precision)}


def test_a_folder_of_shards_is_not_resumed_with_other_bits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], succeed: Callable[..., str]
) -> None:
    write_native(ONE_LAYER, tmp_path / "model")
    (tmp_path / "text").write_text("\n")
    command = ["embed", f"{tmp_path}/text", f"{tmp_path}/out", "--model", f"{tmp_path}/model", "--device", DEVICE]
    succeed(*command, "--batch-invariant")
    assert succeed(*command, "--batch-invariant", "--resume").endswith("1 finished before\n")
    assert main([*command, "--resume"]) == 1
    assert "model.batch_invariant: expected true, with which this output was begun, " in capfd.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"cuda": INVARIANT_AHEAD},
        {"cuda": INVARIANT_AHEAD, "window_tokens": 40},  # windows that are halved
        {"cache_bytes": 0},
        {"cache_bytes": 1 << 20},
        {"precision": "tf32"},
        {"precision": "int8", "cuda": INVARIANT_AHEAD},
    ],
    ids=str,
)
def test_neither_windows_nor_what_is_kept_changes_bits(changes: dict[str, Any]) -> None:
    settings = {"cuda": INVARIANT, **changes}
    embedder = on_cuda(model(), **settings)
    found = of_sentence(company(40), embedder.embed_batch(company(40)))
    assert found == {alone(changes.get("precision", "fp32"))}


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "ahead"])
def test_a_row_that_carries_a_state_has_its_own_bits(graphs: bool) -> None:
    """The sentences of the first row of batches of 1, 3 and 40 rows."""
    first_row = [SENTENCE, ["cats"], SENTENCE]
    found = set()
    for n in (1, 3, 40):
        sentences = [sentence for k, first in enumerate(first_row) for sentence in (first, *company(40 + k)[1:n])]
        settings = {"stateful": True, "batch_size": n, "cuda": replace(INVARIANT, graphs=graphs)}
        found.add(tuple(bits(list(on_cuda(model(), **settings).embed(sentences)))[::n]))
    assert len(found) == 1 and len(set(*found)) == len(first_row)


def test_a_mean_has_its_own_bits() -> None:
    found = set()
    for sentences in ([SENTENCE], company(3), company(300 if DEVICE == "cuda" else 70)):  # 300 have another tile there
        embedder = on_cuda(model(), cuda=INVARIANT_AHEAD)
        found |= of_sentence(sentences, list(embedder.embed(sentences, layers="average", pool="mean")))
    assert len(found) == 1


# -------------------------------------------------------------------------------------------------------------- choice


def tiles(monkeypatch: pytest.MonkeyPatch, settings: CudaSettings) -> dict[str, set[Any]]:
    """The tiles of each kernel that runs, for sentences alone and together."""
    found: dict[str, set[Any]] = defaultdict(set)
    run = Launch.run

    def recorded(launch: Launch) -> None:
        found[launch.kernel.fn.__name__].add(launch.arguments.get("TILE"))
        run(launch)

    with monkeypatch.context() as patch:
        patch.setattr(Launch, "run", recorded)
        for sentences in ([SENTENCE], company(3), company(70)):
            embedder: ElmoEmbedder = on_cuda(model(), cuda=replace(settings, graphs=False))
            embedder.embed_batch(sentences)
    return found


def test_without_it_rows_choose_and_bits_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, fixed = tiles(monkeypatch, CudaSettings()), tiles(monkeypatch, INVARIANT)
    assert any(len(each) > 1 for each in chosen.values())
    assert {name: len(each) for name, each in fixed.items()} == dict.fromkeys(fixed, 1)
    assert {"char_cnn_kernel", "highway_kernel", "linear_kernel", "gates_kernel"} < set(fixed)
    by_themselves: dict[str, Any] = {"cuda": AHEAD, "share": False}
    free = [on_cuda(model(), **by_themselves).embed_batch(sentences) for sentences in ([SENTENCE], company(70))]
    assert of_sentence([SENTENCE], free[0]) != of_sentence(company(70), free[1])


@pytest.mark.parametrize("hopper", [True, False], ids=["sm_90", "elsewhere"])
@pytest.mark.parametrize(("operation", "kind"), tuning.TILES, ids=str)
def test_one_tile_without_splits_for_any_rows(
    operation: str, kind: str, hopper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "is_hopper", lambda device: hopper)
    dtype = torch.float16 if kind in ("half", "int8") else torch.float32
    products: Any = "tf32" if kind == "tf32" else "ieee"
    found = {
        tuning.choose_tile(
            operation, dtype, products, n, device=torch.device("cuda"), int8=kind == "int8", batch_invariant=True
        )
        for n in (1, 16, 17, 300, 4096, 1 << 20)
    }
    assert [tile.splits for tile in found] == [1]
    compiled = [tile for _, tile in tuning.TILES[operation, kind]]
    compiled += [tile for key, (_, tile) in tuning.HOPPER_TILES.items() if key == (operation, kind)]
    assert found <= set(compiled)  # for every card, by the tests of their resources


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_kernel_multiplies_any_rows(dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_tma, "is_hopper", lambda _: True)
    monkeypatch.setattr(linear_module, "by_library", lambda x, n: x.dtype == torch.float32 and n >= 128)

    def launch(n: int, invariant: bool, transposed: bool = False) -> Launch:
        x, weight = torch.zeros(n, 24, dtype=dtype, device=device), torch.zeros(24, 40, dtype=dtype, device=device)
        weight = weight.mT.contiguous().mT if transposed else weight
        out, bias = torch.empty(n, 40, dtype=dtype, device=device), torch.zeros(40, device=device)
        return linear_launch(x, weight, bias, out, batch_invariant=invariant)

    rows = (1, 128, 4096)
    assert {launch(n, True).kernel for n in rows} == {linear_kernel}
    assert len({type(launch(n, False).kernel) if dtype == torch.float32 else launch(n, False).kernel for n in rows}) > 1
    if dtype == torch.float16:
        assert len({launch(n, True, transposed=True).arguments["TILE"] for n in rows}) == 1


@pytest.mark.parametrize("kind", [*FLOATS, "int8"])
@pytest.mark.parametrize("capability", [(9, 0), (8, 0), (10, 0), (12, 0)])
def test_one_variant_serves_any_rows(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], kind: str) -> None:
    int8, dtype = kind == "int8", FLOATS.get(kind, torch.bfloat16)
    layer = random_layer("cpu", sizes=((1,), (1,)), P=128, C=512, dtype=dtype)
    run = layer.poisoned(int8=int8, options=LaunchOptions(batch_invariant=True))
    monkeypatch.setattr(tuning, "capability", lambda device: capability)
    object.__setattr__(run.weights, "device", SimpleNamespace(type="cuda"))
    portable, on_hopper = ("int8", "int8_specialized") if int8 else ("fused", "warp_specialized")
    expected = on_hopper if capability == (9, 0) and kind != "fp32" else portable
    if capability == (10, 0) and kind in ("fp16", "bf16"):
        expected = "tma"
    assert {choose(run, rows).name for rows in (1, 16, 64, 65, 300, 4096)} == {expected}


def test_the_projection_of_the_variants_for_hopper_has_one_tile() -> None:
    run = random_layer("cpu", sizes=((1,), (1,)), P=128, C=512, dtype=torch.float16).poisoned()
    rows = (1, 64, 65, 300, 4096)
    assert len({hopper_projection.projection(run).kind(n) for n in rows}) > 1
    invariant = replace(run, options=LaunchOptions(batch_invariant=True))
    assert {hopper_projection.projection(invariant).kind(n) for n in rows} == {hopper_projection.INVARIANT_PROJECTION}
    original = hopper_projection.choose_projection_tile(1024, Shape(2, 512, 4096), torch.device("cpu"))
    assert original == hopper_projection.INVARIANT_PROJECTION and original.splits == 1
