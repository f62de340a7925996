"""The n-grams that a language model must beat: their counts, their probabilities, and what is predicted."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_models import MODELS

from flashelmo.benchmarks import __main__ as command
from flashelmo.benchmarks.corpus import BEGIN, END, UNKNOWN, read_vocabulary
from flashelmo.benchmarks.ngrams import Ngrams, Text
from flashelmo.benchmarks.results import Results
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native

WORDS = ["<S>", "</S>", "<UNK>", "a", "b", "c", "d"]
ROWS = {word: row for row, word in enumerate(WORDS)}
Gram = tuple[int, ...]


def sentences(seed: int, n: int = 60) -> list[list[str]]:
    """Of five words, one of which is not in the vocabulary; words like to repeat."""
    rng = np.random.default_rng(seed)
    return [[*"aabbbcde"[: rng.integers(1, 8)], *rng.choice([*"abcde"], rng.integers(0, 6))] for _ in range(n)]


class Slow:
    """Interpolated modified Kneser-Ney by its definition, a dictionary for each length."""

    def __init__(self, text: list[list[str]], order: int) -> None:
        raw: dict[int, Counter[Gram]] = defaultdict(Counter)
        for tokens in text:
            ids = (BEGIN, *(ROWS.get(token, UNKNOWN) for token in tokens), END)
            for n in range(1, order + 1):
                raw[n].update(ids[k : k + n] for k in range(len(ids) - n + 1))
        self.counts: dict[int, dict[Gram, int]] = {order: dict(raw[order])}
        for n in range(1, order):
            before = Counter(gram[1:] for gram in raw[n + 1])
            self.counts[n] = {gram: before[gram] if before[gram] else count for gram, count in raw[n].items()}
        del self.counts[1][(BEGIN,)]
        self.discounts = {n: self._discounts(counts) for n, counts in self.counts.items()}

    @staticmethod
    def _discounts(counts: dict[Gram, int]) -> list[float]:
        n = [max(1, sum(count == k for count in counts.values())) for k in range(1, 5)]
        y = n[0] / (n[0] + 2 * n[1])
        return [0, *(min(max(k - (k + 1) * y * n[k] / n[k - 1], 0), k) for k in (1, 2, 3))]

    def probability(self, word: int, context: Gram) -> float:
        """p(word | context)."""
        n = len(context) + 1
        shorter = self.probability(word, context[1:]) if context else (word != BEGIN) / (len(WORDS) - 1)
        behind = {gram: count for gram, count in self.counts[n].items() if gram[:-1] == context}
        if not behind:
            return shorter
        discounts = {gram: self.discounts[n][min(count, 3)] for gram, count in behind.items()}
        total, gram = sum(behind.values()), (*context, word)
        kept = behind[gram] - discounts[gram] if gram in behind else 0.0
        return (kept + sum(discounts.values()) * shorter) / total


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("backward", [False, True])
def test_probabilities_are_those_of_the_definition(order: int, backward: bool) -> None:
    text, judged = sentences(1), sentences(2, 15)
    model = Ngrams.learn(Text.of(text, ROWS, backward=backward), len(WORDS), order)
    found = model.log_probabilities(Text.of(judged, ROWS, backward=backward))
    if backward:
        text, judged = ([tokens[::-1] for tokens in each] for each in (text, judged))
    slow = Slow(text, order)
    expected = []
    for tokens in judged:
        ids = (BEGIN, *(ROWS.get(token, UNKNOWN) for token in tokens), END)
        expected += [slow.probability(ids[k], ids[max(0, k - order + 1) : k]) for k in range(1, len(ids))]
    assert len(found) == order and len(expected) == sum(len(tokens) + 1 for tokens in judged)
    np.testing.assert_allclose(np.exp(found[-1]), expected, rtol=1e-9)


def test_probabilities_of_all_words_are_one_together() -> None:
    model = Ngrams.learn(Text.of(sentences(3), ROWS), len(WORDS), 3)
    for context in ("", "a", "a b", "e e", "d d"):
        before = [BEGIN, *(ROWS.get(token, UNKNOWN) for token in context.split())]
        ids = np.array([[*before, row] for row in ROWS.values() if row != BEGIN])
        text = Text(ids.ravel(), np.tile(np.arange(ids.shape[1]), len(ids)))
        for found in model.log_probabilities(text):
            assert np.exp(found.reshape(len(ids), -1)[:, -1]).sum() == pytest.approx(1.0)


def test_every_word_and_the_end_are_predicted(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), "utf-8")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "one.txt").write_text("".join(f"{' '.join(tokens)}\n" for tokens in sentences(4)), "utf-8")
    (corpus / "heldout.txt").write_text("a b e\n\nc\n", "utf-8")
    model = tmp_path / "model"
    write_native(MODELS["skip"], model)
    size = MODELS["skip"].config.projection_size
    softmax = {"weight": np.zeros((len(WORDS), size), np.float16), "bias": np.zeros(len(WORDS), np.float16)}
    save_file(softmax, model / "softmax.safetensors")
    (tmp_path / "vocab.txt").rename(model / "vocab.txt")
    arguments = ["--corpus", str(corpus), "--models", str(model), "--order", "3"]
    assert command.main(["ngrams", *arguments, "--out", str(tmp_path)]) == 0
    rows = Results.read(tmp_path / "ngrams.json").rows
    labels = [
        f"n-grams of up to {n}, {direction}"
        for direction in ("forward", "backward")
        for n in ("1 word", "2 words", "3 words")
    ]
    assert [row.label for row in rows] == [*labels, "model, forward", "model, backward"]
    assert rows[0].note == "6 predictions, of which 1 of <UNK>; a vocabulary of 7"
    assert all(1 < (row.median or 0) < 20 for row in rows)
    assert rows[-1].median == rows[-2].median == 7  # of seven words alike


def test_other_vocabularies_get_one_line(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    for text, line in (("a\nb\n", "line 1: expected <S>"), ("<S>\n</S>\n<UNK>\na\na\n", "'a' twice")):
        path.write_text(text, "utf-8")
        with pytest.raises(FlashElmoError, match=line):
            read_vocabulary(path)
    with pytest.raises(FlashElmoError, match="expected sentences, found none"):
        Text.of([[]], ROWS)
