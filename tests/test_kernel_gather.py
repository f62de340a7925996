"""Rows of words by node: copies, bit for bit."""

import pytest
import torch

pytest.importorskip("triton")

from flashelmo.kernels.gather import COLUMNS, NODES, gather_words, gather_words_launch

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def made(n_words: int, D: int, N: int, P: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A table of random bits, NaN among them, and words in any order."""
    generator = torch.Generator().manual_seed(n_words + N + P)
    bytes_ = torch.randint(0, 256, (n_words, P * dtype.itemsize), generator=generator, dtype=torch.uint8)
    words = torch.randint(0, n_words, (D, N), generator=generator, dtype=torch.int32)
    return bytes_.view(dtype).to(device), words.to(device)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().view(BITS[tensor.dtype.itemsize])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int8])
@pytest.mark.parametrize("P", [1, 12, 300, 512, 1024, COLUMNS + 8])
def test_rows_are_copied(P: int, dtype: torch.dtype, device: str) -> None:
    table, words = made(7, 2, 21, P, dtype, device)
    assert torch.equal(bits(gather_words(table, words)), bits(table)[words.long().cpu()])


@pytest.mark.parametrize(("D", "N"), [(1, 1), (2, 1), (2, NODES), (2, NODES + 1), (3, 77)])
def test_every_row_of_an_output_and_nothing_beyond(D: int, N: int, device: str) -> None:
    table, words = made(5, D, N, 16, torch.float32, device)
    around = torch.full((D * N * 16 + 64,), 77.0, device=device)
    out = around[32:-32].view(D, N, 16)
    gather_words_launch(table, words, out).run()
    assert torch.equal(bits(out), bits(table)[words.long().cpu()])
    assert torch.equal(around[:32], around[-32:]) and (around[:32] == 77).all()


def test_no_node(device: str) -> None:
    table = torch.zeros(3, 4, device=device)
    assert gather_words(table, torch.zeros(2, 0, dtype=torch.int32, device=device)).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"table": torch.zeros(4)}, "table: expected shape [any, any], found [4]"),
        ({"table": torch.zeros(4, 6).mT}, "table: expected a contiguous tensor"),
        ({"words": torch.zeros(2, 5, dtype=torch.int64)}, "words: expected torch.int32, found torch.int64"),
        ({"words": torch.zeros(10, dtype=torch.int32)}, "words: expected shape [any, any], found [10]"),
        ({"out": torch.zeros(2, 5, 6).half()}, "out: expected torch.float32, found torch.float16"),
        ({"out": torch.zeros(2, 4, 6)}, "out: expected shape [2, 5, 6], found [2, 4, 6]"),
    ],
)
def test_bad_tensors_are_named(wrong: dict[str, torch.Tensor], message: str) -> None:
    good = {"table": torch.zeros(4, 6), "words": torch.zeros(2, 5, dtype=torch.int32), "out": torch.zeros(2, 5, 6)}
    with pytest.raises(ValueError) as error:
        gather_words_launch(**(good | wrong))
    assert message in str(error.value)
