"""The input's part by word: computed once for each distinct word of a layer's inputs, where that pays."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch

pytest.importorskip("triton")

from kernel_lstm import N_WORDS, UNREAD, RandomLayer, random_layer, real_nodes, scheduled

from flashelmo.engine.cuda.layout import Sizes
from flashelmo.engine.precision import tolerance
from flashelmo.kernels.lstm import hoisted
from flashelmo.kernels.lstm.hoisted import pays_by_word
from flashelmo.kernels.lstm.layer import cut, lstm_layer
from flashelmo.kernels.lstm.run import InputWords, LaunchOptions, LayerRun, Nodes, new_tensors


def by_word(layer: RandomLayer, nodes: Nodes | None = None) -> tuple[torch.Tensor, InputWords]:
    """Inputs that are words' vectors, and the words, whose input part is NaN; beyond the words there is NaN too."""
    nodes, P = nodes or layer.nodes, layer.x.shape[2]
    vectors = torch.full((2, N_WORDS + 40, P), torch.nan, device=layer.device)
    vectors[:, :N_WORDS] = torch.randn(N_WORDS, P, generator=torch.Generator().manual_seed(1)).to(layer.device)
    of_nodes = torch.full((2, nodes.n_nodes), UNREAD, dtype=torch.int32)
    x = torch.full((2, nodes.n_nodes, P), torch.nan, device=layer.device)
    for d, forest in enumerate((layer.schedule.forward, layer.schedule.backward)):
        here = slice(nodes.n_roots, nodes.n_roots + forest.n_nodes)
        of_nodes[d, here] = torch.from_numpy(forest.words)
        x[d, here] = vectors[d, torch.from_numpy(forest.words).long().to(layer.device)]
    vectors, x = vectors.to(layer.dtype), x.to(layer.dtype)
    count = torch.tensor([N_WORDS], dtype=torch.int32, device=layer.device)
    words = InputWords.of(layer.pack(), vectors, of_nodes.to(layer.device), count)
    words.gates.fill_(torch.nan)
    return x, words


@pytest.mark.parametrize("rows", [(1, 3, 35, 2), (70, 2, 20)], ids=str)
@pytest.mark.parametrize("in_bucket", [False, True], ids=["exact", "bucket"])
def test_the_input_part_of_words_is_that_of_their_nodes(device: str, rows: tuple[int, ...], in_bucket: bool) -> None:
    """All rows are hoisted in float32, and their inputs by node are read by nobody."""
    layer = random_layer(device, sizes=(rows, rows), P=16, C=32)
    most = tuple(accumulate((0, 1, *(max(rows[k:]) for k in range(len(rows))))))
    sizes = Sizes((most, most), n_roots=1, n_nodes=most[-1], n_tokens=0)
    nodes = scheduled(layer.schedule, sizes, device) if in_bucket else layer.nodes
    x, words = by_word(layer, nodes)
    layer = replace(layer, x=x)
    unread = torch.full_like(x, torch.nan)
    found, _ = lstm_layer(layer.pack(), nodes, unread, words=words)
    wanted = real_nodes(replace(layer, nodes=layer.nodes).expected()[0], layer.nodes)
    assert (real_nodes(found, layer.nodes) - wanted).abs().max() < tolerance("fp32", "cuda")
    again, _ = lstm_layer(layer.pack(), nodes, unread, words=by_word(layer, nodes)[1])
    assert torch.equal(real_nodes(found, layer.nodes), real_nodes(again, layer.nodes))


def test_words_are_multiplied_once_however_depths_are_cut(device: str) -> None:
    """In 16 bits depths of many rows lie between those of few: these read one product, made before the first."""
    layer = random_layer(device, sizes=((2, 20, 90, 3),) * 2, P=160, C=32, dtype=torch.float16).rounded()
    x, words = by_word(layer)
    run = LayerRun(layer.pack(), new_tensors(layer.pack(), layer.nodes, x), layer.nodes, words=words)
    groups = list(cut(run))
    assert [variant.name for variant, _ in groups] == ["hoisted", "fused", "hoisted"]
    launches = [launch for variant, depths in groups for launch in variant.launches(run, depths)]
    names = [launch.kernel.fn.__name__ for launch in launches]
    assert names.count("linear_kernel") == 1 and names[0] == "linear_kernel"
    for launch in launches:
        launch.run()
    expected = real_nodes(replace(layer, x=x).expected()[0], layer.nodes)
    error = real_nodes(run.tensors.hidden, layer.nodes) - expected
    assert error.norm() / expected.norm() < 0.002
    by_node = LayerRun(run.weights, run.tensors, run.nodes)
    assert hoisted.serves(run, 40) and not hoisted.serves(by_node, 40) and not hoisted.serves(run, 41)


def test_words_that_do_not_fit_are_named(device: str) -> None:
    layer = random_layer(device)
    x, words = by_word(layer)
    for name, wrong, message in (
        ("x", words.x[:, :, :-1], r"expected shape \[2, any, 12\]"),
        ("of_nodes", words.of_nodes[:, :-1], r"expected shape \[2, 24\]"),
        ("n_words", words.n_words.long(), "expected torch.int32"),
        ("gates", words.gates[:, :-1], r"expected shape \[2, 70, 96\]"),
    ):
        with pytest.raises(ValueError, match=rf"^words\.{name}: {message}, found"):
            lstm_layer(layer.pack(), layer.nodes, x, words=words._replace(**{name: wrong}))


@pytest.mark.parametrize(
    ("kind", "rows", "n_words", "pays"),
    [
        ("bf16", [32] * 20, 639, True),  # one row of the table for each node would be as many
        ("bf16", [32] * 20, 640, False),
        ("bf16", [1, 128, 128], 160, True),
        ("bf16", [1, 128, 128], 170, False),
        ("bf16", [129] * 20, 10, False),
        ("fp32", [129] * 20, 1600, True),
        ("fp32", [129] * 20, 1700, False),
        ("int8", [32] * 20, 10, False),
    ],
)
def test_when_words_pay(kind: str, rows: list[int], n_words: int, pays: bool) -> None:
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    weights = random_layer("cpu", P=512, C=4, dtype=dtype).pack(int8=kind == "int8")
    assert pays_by_word(weights, LaunchOptions(), rows, n_words) == pays
    assert not pays_by_word(weights, LaunchOptions(batch_invariant=True), rows, n_words)
