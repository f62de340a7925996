"""Character ids to word features against plain PyTorch in float64, which goes through every position."""

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from kernel_inputs import ROUNDING, random  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from flashelmo.benchmarks.kernels.inputs import group_words  # noqa: E402
from flashelmo.engine.precision import tolerance  # noqa: E402
from flashelmo.kernels import char_cnn as module  # noqa: E402
from flashelmo.kernels import reference  # noqa: E402
from flashelmo.kernels.char_cnn import char_cnn, char_cnn_launches  # noqa: E402
from flashelmo.kernels.char_cnn_weights import pack_char_cnn  # noqa: E402

TINY = ((1, 3), (2, 4), (3, 5))
N_CHARACTERS, PADDING = 20, 7


def model(filters=TINY, E=3):
    """Embedding and convolutions; sums stay within a few units."""
    embedding = random(N_CHARACTERS, E, seed=1)
    convolutions = [
        (random(width, E, number, seed=2 + i) / (width * E) ** 0.5, random(number, seed=50 + i) / 2)
        for i, (width, number) in enumerate(filters)
    ]
    return embedding, convolutions


def words_of(lengths, M, seed=0):
    """Ids of words that end with a character of their own; paddings may lie within a word, too."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, N_CHARACTERS, (len(lengths), M), generator=generator)
    for word, length in enumerate(lengths):
        ids[word, length:] = PADDING
        if length:
            ids[word, length - 1] = (PADDING + 1 + ids[word, length - 1]) % N_CHARACTERS
            if ids[word, length - 1] == PADDING:
                ids[word, length - 1] = 0
    return ids


def features(ids, weights, device):
    """Into poisoned memory."""
    words = group_words(ids, padding_id=PADDING, device=device)
    out = torch.full(
        (len(ids), weights.weight.shape[1]), float("nan"), dtype=weights.weight.dtype, device=weights.weight.device
    )
    for launch in char_cnn_launches(words, weights, out):
        launch.run()
    return out


def check_against_truth(ids, filters, E, activation, dtype, device):
    """Inputs are as rounded already, so that what differs is the order of sums and the result's own rounding."""
    embedding, convolutions = model(filters, E)
    weights = pack_char_cnn(
        embedding, convolutions, padding_id=PADDING, activation=activation, dtype=dtype, device=device
    )
    found = features(ids, weights, device).double().cpu()
    rounded = [(weight.to(dtype).double(), bias.double()) for weight, bias in convolutions]
    truth = reference.char_cnn(ids.long(), embedding.to(dtype).double(), rounded, activation)
    bound = tolerance("fp32", "cuda") + ROUNDING[dtype] * truth.abs()
    assert found.shape == truth.shape
    assert ((found - truth).abs() <= bound).all()


# Values


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_words_of_every_length(activation, dtype, device):
    """All windows of a word are its own, some are, or, of the word without characters, none is."""
    check_against_truth(words_of(range(13), 12), TINY, 3, activation, dtype, device)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("n", [1, 63, 70])
def test_ragged_numbers_of_words(n, dtype, device):
    lengths = torch.randint(0, 7, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    check_against_truth(words_of(lengths, 9), TINY, 3, "relu", dtype, device)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("E", "M"), [(16, 50), (20, 12), (50, 12)])
def test_windows_that_fit_one_block_and_that_need_several(E, M, dtype, device):
    """Widths up to 7, as the published models; several blocks of filters, the last one not full."""
    filters = tuple((width, 10) for width in range(1, 8))
    check_against_truth(words_of([M, M - 1, M - 6, M - 7, 3, 1, 0], M), filters, E, "relu", dtype, device)


@pytest.mark.parametrize("length", [0, 1, 5, 6, 7])
def test_as_many_positions_as_the_widest_filter(length, device):
    check_against_truth(words_of([length], 7), ((7, 2), (1, 3), (6, 2)), 3, "tanh", torch.float32, device)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    filters=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 40)), min_size=1, max_size=4),
    E=st.integers(1, 40),
    beyond=st.integers(0, 6),
    data=st.data(),
)
def test_any_size(filters, E, beyond, data):
    M = max(width for width, _ in filters) + beyond
    lengths = data.draw(st.lists(st.integers(0, M), min_size=1, max_size=20))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check_against_truth(words_of(lengths, M, seed=len(lengths)), filters, E, "relu", torch.float32, device)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_maximum_runs_over_padding_just_where_there_is_a_window_of_it(sign, device):
    """One filter of width 3 that adds up its paddings, or takes them away, where nothing else counts."""
    embedding = torch.zeros(N_CHARACTERS, 1)
    embedding[PADDING] = 1
    convolutions = [(torch.full((3, 1, 1), sign), torch.full((1,), 10.0))]
    weights = pack_char_cnn(embedding, convolutions, padding_id=PADDING, activation="relu", device=device)
    ids = torch.zeros(13, 12, dtype=torch.int64)
    for length in range(13):
        ids[length, length:] = PADDING
    # The most paddings in a window, 0 ... 3 of those behind the word; the least, 0 where 3 characters stand together.
    most, least = ([min(3, 12 - n) for n in range(13)], [max(0, 3 - n) for n in range(13)])
    expected = [10 + n for n in most] if sign > 0 else [10 - n for n in least]
    assert features(ids, weights, device)[:, 0].tolist() == expected


def test_weights_are_packed_without_products_that_a_program_may_have_set_to_tf32(device):
    """The maximum is that of a window of padding for many words, in float32 too."""
    called = set()

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            called.add(function.overloadpacket.__name__)
            return function(*arguments, **(named or {}))

    with Recorded():
        pack_char_cnn(*model(), padding_id=PADDING, activation="relu", device=device)
    assert "mul" in called and not called & {"mm", "bmm", "addmm", "baddbmm", "mv", "dot"}


def test_not_a_number_stays_one(device):
    embedding, convolutions = model()
    embedding[3] = float("nan")
    ids = torch.full((3, 12), PADDING)
    ids[1, 2] = 3
    weights = pack_char_cnn(embedding, convolutions, padding_id=PADDING, activation="relu", device=device)
    found = features(ids, weights, device)
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("E", [3, 50])
def test_positions_at_once_change_no_bits(E, device, monkeypatch):
    """One of each word, or so many that some lie beyond every word's end."""
    embedding, convolutions = model(((1, 3), (4, 4)), E)
    weights = pack_char_cnn(embedding, convolutions, padding_id=PADDING, activation="tanh", device=device)
    ids = words_of([0, 1, 5, 11, 12, 2, 9], 12)
    found = [features(ids, weights, device)]
    for n in (1, 2, 16):
        monkeypatch.setattr(module, "POSITIONS", dict.fromkeys(module.POSITIONS, n))
        found.append(features(ids, weights, device))
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter multiplies in float32 in any case")
@pytest.mark.parametrize("E", [16, 50])
def test_tf32_is_close(E, device):
    filters = tuple((width, 40) for width in range(1, 8))
    embedding, convolutions = model(filters, E)
    ids = words_of([n % 51 for n in range(200)], 50)
    words = group_words(ids, padding_id=PADDING, device=device)
    weights = pack_char_cnn(embedding, convolutions, padding_id=PADDING, activation="relu", device=device)
    found = char_cnn(words, weights, precision="tf32").double().cpu()
    double = [(weight.double(), bias.double()) for weight, bias in convolutions]
    truth = reference.char_cnn(ids, embedding.double(), double, "relu")
    assert (found - truth).norm() / truth.norm() < tolerance("tf32", "cuda")


# Grouping


@pytest.mark.parametrize("E", [3, 50])
@pytest.mark.parametrize("length", [0, 1, 4, 10])
def test_a_word_does_not_depend_on_its_company(length, E, device):
    """To the bit: the shortest word of a block, which the others take through more or less positions."""
    embedding, convolutions = model(((1, 3), (2, 4), (5, 5)), E)
    weights = pack_char_cnn(embedding, convolutions, padding_id=PADDING, activation="tanh", device=device)
    word = words_of([length], 12, seed=9)
    found = [
        features(torch.cat([word, words_of([others] * 5, 12, seed=others)]), weights, device)[0]
        for others in (max(length, 1), length + 1, 12)
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_words_come_back_in_their_own_order(device):
    """Small integers, so that sums are exact and equality may be asked for."""
    embedding = torch.arange(N_CHARACTERS * 2).reshape(-1, 2) % 7 - 3.0
    convolutions = [(torch.arange(12).reshape(3, 2, 2) % 5 - 2.0, torch.tensor([1.0, -1.0]))]
    ids = words_of([3, 9, 0, 9, 1, 5, 12] * 6, 12)
    weights = pack_char_cnn(embedding, convolutions, padding_id=PADDING, activation="relu", device=device)
    truth = reference.char_cnn(ids, embedding, convolutions, "relu")
    assert len(truth.unique(dim=0)) > 10
    assert torch.equal(features(ids, weights, device).cpu(), truth)
    backwards = group_words(ids.flip(0), padding_id=PADDING, device=device)
    assert torch.equal(char_cnn(backwards, weights).cpu(), truth.flip(0))


def test_words_are_grouped_by_length():
    ids = torch.tensor([[7, 7, 7, 7], [1, 7, 7, 7], [1, 7, 2, 7], [7, 7, 7, 3], [2, 7, 3, 7]])
    words = group_words(ids, padding_id=PADDING)
    assert words.lengths.tolist() == [1, 1, 3, 4, 3]
    assert words.order.tolist() == [3, 2, 4, 0, 1]
    assert torch.equal(words.character_ids, ids.int())
    assert {tensor.dtype for tensor in words} == {torch.int32}


def test_no_words(device):
    embedding, convolutions = model()
    weights = pack_char_cnn(embedding, convolutions, padding_id=PADDING, activation="relu", device=device)
    assert features(torch.zeros(0, 12, dtype=torch.int64), weights, device).shape == (0, 12)


# Packing


def test_weights_as_packed():
    """By hand: width after width, a filter's rows first, zeros behind them and behind the embedding's own values."""
    embedding = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    narrow = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([0.5])
    wide = torch.arange(10.0, 22.0).reshape(2, 3, 2), torch.tensor([1.5, 2.5])
    weights = pack_char_cnn(embedding, [narrow, wide], padding_id=1, activation="tanh")
    assert weights.embedding.shape == (2, 16) and weights.weight.shape == (32, 3)
    assert torch.equal(weights.embedding[:, :3], embedding) and not weights.embedding[:, 3:].any()
    rows = {row: weights.weight[row].tolist() for row in (0, 1, 2, 16, 17, 18)}
    assert rows == {
        0: [1, 10, 11],
        1: [2, 12, 13],
        2: [3, 14, 15],
        16: [0, 16, 17],
        17: [0, 18, 19],
        18: [0, 20, 21],
    }
    assert weights.weight.count_nonzero() == 15
    assert weights.bias.tolist() == [0.5, 1.5, 2.5] and weights.widths.tolist() == [1, 2, 2]
    assert weights.padding.tolist() == [32, 4 * 26 + 5 * 30 + 6 * 34, 4 * 28 + 5 * 32 + 6 * 36]
    assert weights.widest == 2 and weights.activation == "tanh"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_paddings_product_is_that_of_the_rounded_weights(dtype):
    embedding, convolutions = model(E=40)
    weights = pack_char_cnn(embedding, convolutions, padding_id=PADDING, activation="relu", dtype=dtype)
    rounded = embedding[PADDING].to(dtype).double()
    truth = torch.cat([(rounded @ weight.to(dtype).double()).sum(0) for weight, _ in convolutions])
    assert (weights.padding - truth).abs().max() < tolerance("fp32", "cuda")
    assert weights.padding.dtype == torch.float32


# Bad input


BAD_PARTS = {
    "integers": ({"embedding": torch.ones(4, 3, dtype=torch.int32)}, "embedding: expected torch.float32 or "),
    "a vector": ({"embedding": random(4)}, "embedding: expected shape [any, any], found [4]"),
    "padding that is none": ({"padding_id": 4}, "padding_id: expected an id from 0 to 3, found 4"),
    "negative padding": ({"padding_id": -1}, "padding_id: expected an id from 0 to 3, found -1"),
    "another activation": ({"activation": "gelu"}, "activation: expected relu or tanh, found gelu"),
    "no widths": ({"convolutions": []}, "convolutions: expected at least one width, found none"),
    "another E": (
        {"convolutions": [(random(1, 3, 2), random(2)), (random(2, 4, 2), random(2))]},
        "weight of convolution 1: expected shape [any, 3, any], found [2, 4, 2]",
    ),
    "a short bias": (
        {"convolutions": [(random(1, 3, 2), random(1))]},
        "bias of convolution 0: expected shape [2], found [1]",
    ),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_bad_weights_are_named(name):
    wrong, message = BAD_PARTS[name]
    good = {
        "embedding": random(4, 3),
        "convolutions": [(random(2, 3, 2), random(2))],
        "padding_id": 3,
        "activation": "relu",
    }
    with pytest.raises(ValueError) as raised:
        pack_char_cnn(**(good | wrong))
    assert str(raised.value).startswith(message)


BAD = {
    "too few positions": (
        {"words": {"character_ids": torch.zeros(4, 2, dtype=torch.int32)}},
        "character_ids: expected 3 positions or more, a filter's width, found 2",
    ),
    "64-bit ids": (
        {"words": {"character_ids": torch.zeros(4, 5, dtype=torch.int64)}},
        "character_ids: expected torch.int32, found torch.int64",
    ),
    "other lengths": (
        {"words": {"lengths": torch.ones(3, dtype=torch.int32)}},
        "lengths: expected shape [4], found [3]",
    ),
    "another order": ({"words": {"order": torch.ones(5, dtype=torch.int32)}}, "order: expected shape [4], found [5]"),
    "a short weight": ({"weights": {"weight": random(47, 12)}}, "weight: expected shape [48, 12], found [47, 12]"),
    "another type": (
        {"weights": {"weight": random(48, 12).half()}},
        "weight: expected torch.float32, found torch.float16",
    ),
    "a vector": ({"weights": {"embedding": random(20)}}, "embedding: expected shape [any, any], found [20]"),
    "a short bias": ({"weights": {"bias": random(11)}}, "bias: expected shape [12], found [11]"),
    "short constants": ({"weights": {"padding": random(11)}}, "padding: expected shape [12], found [11]"),
    "widths of 64 bits": (
        {"weights": {"widths": torch.ones(12, dtype=torch.int64)}},
        "widths: expected torch.int32, found torch.int64",
    ),
    "other words": ({"out": random(5, 12)}, "out: expected shape [4, 12], found [5, 12]"),
    "an out of 16 bits": ({"out": random(4, 12).half()}, "out: expected torch.float32, found torch.float16"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    wrong, message = BAD[name]
    words = group_words(words_of([1, 2, 3, 4], 5), padding_id=PADDING)
    weights = pack_char_cnn(*model(), padding_id=PADDING, activation="relu")
    with pytest.raises(ValueError) as raised:
        char_cnn_launches(
            words._replace(**wrong.get("words", {})),
            weights._replace(**wrong.get("weights", {})),
            wrong.get("out", random(4, 12)),
        )
    assert str(raised.value).startswith(message)
