"""Gather, mix and pooling of tokens' layers, against the formula in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from flashelmo.benchmarks.kernels.inputs import make_tokens
from flashelmo.kernels import pooling, reference
from flashelmo.kernels.pooling import FEW_MEANS, LANES, MANY_MEANS, means_tile
from flashelmo.kernels.token_layers import (
    COLUMNS,
    TOKENS,
    Tokens,
    token_layers,
    token_layers_launch,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # relative, of one value
N_ROOTS = 2
POOLS = (None, "mean", "max")


class Case:
    """Random rows of words and nodes; the roots' rows, which no token may read, are NaN."""

    def __init__(
        self,
        lengths: tuple[int, ...],
        *,
        n_layers: int = 3,
        n_outputs: int = 3,
        P: int = 12,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        n_tokens, n_words, n_nodes = sum(lengths), 7, 11
        self.words = torch.randint(0, n_words, (n_tokens,), generator=generator, dtype=torch.int32)
        self.nodes = torch.randint(0, n_nodes, (2, n_tokens), generator=generator, dtype=torch.int32)
        self.offsets = torch.tensor([0, *lengths]).cumsum(0)
        self.device = device
        self.word_vectors = torch.randn(n_words, P, generator=generator).to(dtype)
        self.outputs = torch.randn(n_layers - 1, 2, N_ROOTS + n_nodes, P, generator=generator).to(dtype)
        self.outputs[:, :, :N_ROOTS] = torch.nan
        self.mix = torch.randn(n_outputs, n_layers, generator=generator)

    def tokens(self, pool: str | None) -> Tokens:
        offsets = self.offsets if pool else None
        return make_tokens(self.words, self.nodes, offsets, n_roots=N_ROOTS, device=self.device)

    def run(
        self, pool: str | None, out_dtype: torch.dtype = torch.float32, flag: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the kernel writes into an output full of NaN."""
        rows = len(self.offsets) - 1 if pool else len(self.words)
        out = torch.full((len(self.mix), rows, 2 * self.word_vectors.shape[1]), torch.nan, dtype=out_dtype)
        out = out.to(self.device)
        word_vectors, outputs, mix = (t.to(self.device) for t in (self.word_vectors, self.outputs, self.mix))
        token_layers_launch(word_vectors, outputs, self.tokens(pool), mix, out, flag, pool or "mean").run()
        return out.cpu()

    def expected(self, pool: str | None) -> torch.Tensor:
        return reference.token_layers(
            self.word_vectors.double(),
            self.outputs[:, :, N_ROOTS:].double(),
            self.words.long(),
            self.nodes.long(),
            self.mix.double(),
            self.offsets if pool else None,
            pool or "mean",
        )

    def bound(self, out_dtype: torch.dtype) -> float:
        """Sums of a few terms in float32, then one rounding: values lie below 4, mixed ones below 4 * sum |mix|."""
        largest = 4 * float(self.mix.abs().sum(1).max())
        return largest * (8 * ROUNDING[torch.float32] + ROUNDING[out_dtype])

    def check(self, pool: str | None, out_dtype: torch.dtype = torch.float32) -> None:
        found, expected = self.run(pool, out_dtype), self.expected(pool)
        assert found.shape == expected.shape and found.isfinite().all()
        assert (found.double() - expected).abs().max() <= self.bound(out_dtype)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type(dtype: torch.dtype, out_dtype: torch.dtype, pool: str | None, device: str) -> None:
    Case((3, 0, 9, 1), dtype=dtype, device=device).check(pool, out_dtype)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    "lengths", [(1,), (63,), (TOKENS,), (TOKENS + 1, TOKENS - 1), (LANES + 1, 2 * LANES), (0, 2, 0, 0, 5, 0)]
)
def test_ragged_sentences(lengths: tuple[int, ...], pool: str | None, device: str) -> None:
    Case(lengths, device=device).check(pool)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("n_layers", "n_outputs"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 4), (5, 2)])
def test_layers_and_outputs(n_layers: int, n_outputs: int, pool: str | None, device: str) -> None:
    Case((4, 6), n_layers=n_layers, n_outputs=n_outputs, device=device).check(pool)


@pytest.mark.parametrize(
    ("P", "pool"),
    [
        *((P, pool) for P in (1, 12, 128, 130, 200, 300, 512, 1024, COLUMNS + 8) for pool in (None, "mean")),
        *((P, "max") for P in (1, 128, 130)),
    ],
)
def test_columns_that_fit_no_block(P: int, pool: str | None, device: str) -> None:
    Case((2, 3), P=P, device=device).check(pool)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("outputs", ["copies", "mixes"])
def test_the_flag_says_what_is_not_finite(value: float, pool: str | None, outputs: str, device: str) -> None:
    """Of one value in the last layer of the last token's backward half; the flag lies where the host reads it."""
    flag = torch.zeros(1, dtype=torch.int32, pin_memory=device == "cuda")
    case = Case((5, 3), device=device)
    case.mix = torch.eye(3) if outputs == "copies" else torch.full((1, 3), 0.5)
    for found in (0, 1):
        case.run(pool, flag=flag)
        torch.cuda.synchronize() if device == "cuda" else None
        assert flag.item() == (found and not (pool == "max" and value == -torch.inf))  # which is never the largest
        case.outputs[1, 1, N_ROOTS + case.nodes[1, -1], -1] = value
    if outputs == "copies":  # what nobody asks for is not looked at
        case.mix = torch.eye(3)[:2]
        case.run(pool, flag=flag.zero_())
        torch.cuda.synchronize() if device == "cuda" else None
        assert flag.item() == 0


@pytest.mark.parametrize("pool", POOLS)
def test_the_flag_says_what_a_result_cannot_hold(pool: str | None, device: str) -> None:
    """A mix beyond float32, or a value beyond float16, of finite layers."""
    flag = torch.zeros(1, dtype=torch.int32, pin_memory=device == "cuda")
    case = Case((2, 3), device=device)
    case.word_vectors[:] = 7e4
    case.mix = torch.eye(3)
    with np.errstate(over="ignore"):  # of the interpreter, where a card rounds to infinity in silence
        for out_dtype, factor, found in ((torch.float32, 1.0, 0), (torch.float16, 1.0, 1), (torch.float32, 3e38, 1)):
            case.mix[0, 0] = factor
            case.run(pool, out_dtype, flag.zero_())
            torch.cuda.synchronize() if device == "cuda" else None
            assert flag.item() == found


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    n_layers=st.integers(1, 5),
    n_outputs=st.integers(1, 4),
    P=st.integers(1, 40),
    pool=st.sampled_from(POOLS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size(
    lengths: list[int],
    n_layers: int,
    n_outputs: int,
    P: int,
    pool: str | None,
    dtype: torch.dtype,
    seed: int,
    device: str,
) -> None:
    if not pool and not sum(lengths):
        lengths = [1]
    Case(
        tuple(lengths), n_layers=n_layers, n_outputs=n_outputs, P=P, dtype=dtype, device=device, seed=seed
    ).check(pool)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_identity_gives_the_rows_themselves(dtype: torch.dtype, device: str) -> None:
    """Bit for bit, in the rows' own type and in float32."""
    case = Case((5, 6), P=20, dtype=dtype, device=device)
    case.mix = torch.eye(3)
    nodes = case.nodes.long() + N_ROOTS
    lowest = case.word_vectors[case.words.long()]
    above = torch.cat([case.outputs[:, 0, nodes[0]], case.outputs[:, 1, nodes[1]]], -1)
    rows = torch.cat([torch.cat([lowest, lowest], -1)[None], above])
    assert torch.equal(case.run(None, dtype), rows)
    assert torch.equal(case.run(None), rows.float())


def test_a_sentence_is_a_view_with_contiguous_layers(device: str) -> None:
    case = Case((3, 4), device=device)
    layers = case.run(None)
    second = Case((3, 4), device=device)
    second.words, second.nodes = case.words[3:], case.nodes[:, 3:].contiguous()
    sentence = layers[:, 3:]
    assert sentence.shape == (3, 4, 24) and all(layer.is_contiguous() for layer in sentence)
    assert torch.equal(sentence, second.run(None))


def test_the_mean_of_one_token_is_the_token(device: str) -> None:
    case = Case((1, 1, 1), device=device)
    assert torch.equal(case.run("mean"), case.run(None)) and torch.equal(case.run("max"), case.run(None))


def test_the_top_layer_and_the_average(device: str) -> None:
    case = Case((4, 3), device=device)
    case.mix = torch.eye(3)
    layers = case.run(None)
    case.mix = torch.tensor([[0.0, 0.0, 1.0]])
    assert torch.equal(case.run(None)[0], layers[2])
    case.mix = torch.full((1, 3), 1 / 3)
    assert (case.run(None)[0] - layers.mean(0)).abs().max() <= case.bound(torch.float32)


@pytest.mark.parametrize("lengths", [(0,), (0, 0, 0)])
def test_empty_sentences_are_zero(lengths: tuple[int, ...], device: str) -> None:
    for pool in ("mean", "max"):
        found = Case(lengths, device=device).run(pool)
        assert found.shape[1] == len(lengths) and torch.equal(found, torch.zeros_like(found))


def test_nothing_is_asked_for(device: str) -> None:
    assert Case((), device=device).run(None).shape == (3, 0, 24)
    assert Case((), device=device).run("mean").shape == (3, 0, 24)


def test_nan_in_a_layer_is_seen_whatever_its_coefficient(device: str) -> None:
    """In a mix; a copy of another layer does not read it."""
    case = Case((4,), device=device)
    case.mix = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.0, 1.0]])
    case.words[:], case.nodes[:] = torch.arange(4), torch.arange(4)
    case.outputs[0, 1, N_ROOTS + 2, 5] = torch.nan  # layer 1, backward, of token 2
    wrong = torch.zeros(2, 4, 24, dtype=torch.bool)
    wrong[0, 2, 12 + 5] = True
    assert torch.equal(case.run(None).isnan(), wrong)
    for pool in ("mean", "max"):
        assert torch.equal(case.run(pool).isnan(), wrong.any(1, keepdim=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_have_the_layers_bits(dtype: torch.dtype, device: str) -> None:
    """A zero's sign too, beside a mix and alone; what no output needs is not read."""
    case = Case((5, 6), dtype=dtype, device=device)
    case.outputs[:, :, N_ROOTS:, 3] = -0.0
    top = torch.cat([case.outputs[1, d, case.nodes[d].long() + N_ROOTS] for d in range(2)], -1)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    for mix in ([[0.0, 0.0, 1.0]], [[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]]):
        case.mix = torch.tensor(mix)
        assert torch.equal(case.run(None, dtype)[-1].view(integer), top.view(integer))
    case.mix = torch.tensor([[0.0, 0.0, 1.0]])
    case.outputs[0], case.word_vectors[:] = torch.nan, torch.nan
    assert torch.equal(case.run(None, dtype)[0].view(integer), top.view(integer))
    assert not case.run("mean").isnan().any() and not case.run("max").isnan().any()


@pytest.mark.parametrize("row", [(0.0, 0.5, 0.0), (0.0, 2.0, 0.0), (-1.0, 0.0, 0.0), (1.0, 0.0, 1.0), (0.0, 0.0, 0.0)])
def test_a_row_without_a_single_one_is_a_mix(row: tuple[float, ...], device: str) -> None:
    case = Case((3,), device=device)
    case.mix = torch.tensor([row])
    case.check(None)
    case.check("mean")
    case.check("max")
    case.mix[0, 1] = torch.nan
    assert case.run(None).isnan().all() and case.run("mean").isnan().all()


def test_a_mean_has_the_bits_of_its_order(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is asked for, and with few sentences or many; the order of sums is the documented one."""
    lengths = (3 * LANES + 3, 0, 1, LANES)
    case = Case(lengths, P=200, device=device)
    case.mix = torch.eye(3)
    found = case.run("mean")
    assert means_tile(4, 512) == FEW_MEANS and means_tile(64, 512) == MANY_MEANS
    monkeypatch.setattr(pooling, "MANY", 0)
    assert torch.equal(case.run("mean"), found)
    alone = Case(lengths[:1], P=200, device=device)
    alone.words, alone.nodes = case.words[: lengths[0]], case.nodes[:, : lengths[0]].contiguous()
    alone.word_vectors, alone.outputs, alone.mix = case.word_vectors, case.outputs, torch.tensor([[0.0, 1.0, 0.0]])
    assert torch.equal(alone.run("mean")[0, 0], found[1, 0])

    tokens = case.run(None)[1, : lengths[0]]
    sums = torch.zeros(LANES, tokens.shape[1])
    for j, token in enumerate(tokens):
        sums[j % LANES] += token
    while len(sums) > 1:
        sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
    assert torch.equal(found[1, 0], sums[0] / len(tokens))


def test_a_maximum_has_the_bits_of_a_token(device: str) -> None:
    lengths = (LANES + 3, 0, 1)
    case = Case(lengths, P=12, device=device)
    case.mix = torch.cat([torch.eye(3)[:1], case.mix[:1]])
    tokens = case.run(None).split(lengths, 1)
    maxima = [part.amax(1) if part.shape[1] else torch.zeros_like(part.sum(1)) for part in tokens]
    assert torch.equal(case.run("max"), torch.stack(maxima, 1))


def test_the_public_function_allocates(device: str) -> None:
    case = Case((2, 0, 3), device=device)
    for pool in POOLS:
        for dtype in DTYPES:
            word_vectors, outputs, mix = (t.to(device) for t in (case.word_vectors, case.outputs, case.mix))
            found = token_layers(word_vectors, outputs, case.tokens(pool), mix, out_dtype=dtype, pool=pool or "mean")
            assert found.dtype == dtype
            assert torch.equal(found.cpu(), case.run(pool, dtype))


@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_tokens_on_the_device(integer: torch.dtype, device: str) -> None:
    """Of any integers; nodes are counted from the roots on."""
    words, nodes = torch.tensor([4, 0], dtype=integer), torch.tensor([[0, 1], [2, 0]], dtype=integer)
    tokens = make_tokens(words, nodes, torch.tensor([0, 0, 2], dtype=integer), n_roots=2, device=device)
    assert [tensor.dtype for tensor in tokens] == [torch.int32] * 3
    assert [tensor.tolist() for tensor in tokens] == [[4, 0], [[2, 3], [4, 2]], [0, 0, 2]]
    assert make_tokens(words, nodes, None).nodes.tolist() == [[1, 2], [3, 1]]


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("word_vectors", torch.zeros(7), "word_vectors: expected shape [any, any], found [7]"),
        ("outputs", torch.zeros(2, 2, 13, 8), "outputs: expected shape [any, 2, any, 12], found [2, 2, 13, 8]"),
        ("outputs", torch.zeros(2, 2, 13, 12).half(), "outputs: expected torch.float32, found torch.float16"),
        ("mix", torch.zeros(1, 2), "mix: expected shape [any, 3], found [1, 2]"),
        ("mix", torch.zeros(1, 3).half(), "mix: expected torch.float32, found torch.float16"),
        ("out", torch.zeros(3, 4, 24), "out: expected shape [3, 5, 24], found [3, 4, 24]"),
        ("out", torch.zeros(3, 24, 5).mT, "out: expected a contiguous tensor"),
        ("tokens", {"words": torch.zeros(5)}, "tokens.words: expected torch.int32, found torch.float32"),
        ("tokens", {"nodes": torch.zeros(5, 2).int()}, "tokens.nodes: expected shape [2, 5], found [5, 2]"),
        ("tokens", {"offsets": torch.zeros(3)}, "tokens.offsets: expected torch.int32 or torch.int64"),
    ],
)
def test_bad_tensors_are_named(name: str, wrong: object, message: str) -> None:
    case = Case((2, 3))
    arguments = {
        "word_vectors": case.word_vectors,
        "outputs": case.outputs,
        "tokens": case.tokens(None),
        "mix": case.mix,
        "out": torch.zeros(3, 5, 24),
    }
    arguments[name] = case.tokens(None)._replace(**wrong) if isinstance(wrong, dict) else wrong
    with pytest.raises(ValueError) as error:
        token_layers_launch(**arguments)  # type: ignore[arg-type]
    assert message in str(error.value)
