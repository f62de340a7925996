"""Text to measure with: real sentences from a file, or generated ones that look like them to the engine.

What matters to the engine's speed are the lengths of sentences and words, how many words are distinct, and how often
sentences begin or end alike. The first 30,000 tokens of the King James Bible and 30,000 generated ones:

                                    Bible   generated
    tokens a sentence, mean          25.8        26.5
    tokens a sentence, deviation     11.5        12.7
    bytes a token                    3.55        3.57
    bytes a distinct word             5.9         6.7
    distinct words a token          0.070       0.067
    forward nodes a token            0.90        0.91
    backward nodes a token           0.92        0.93
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.errors import FlashElmoError

Sentences = list[list[str]]
Int64 = npt.NDArray[np.int64]
PASSAGE = 32  # sentences of a run that is drawn from a text, as of the reference's batches
REAL_TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "text" / "kjv.txt"

# Zipf-Mandelbrot law: the word of rank r has a probability in proportion to (r + SHIFT) ** -EXPONENT.
N_WORDS, SHIFT, EXPONENT = 30_000, 10.0, 1.45
# Tokens of a sentence: a gamma distribution.
MEAN_LENGTH, LENGTH_SHAPE = 26.0, 4.2
# A word is one of its predecessor's favourites with this probability: in a sentence's first words, and in the others.
OPENING_WORDS, OPENING_HABIT, HABIT = 3, 0.95, 0.65
# Favourite k is chosen with a probability in proportion to (1 - FIRST_FAVOURITE) ** k.
FAVOURITES, FIRST_FAVOURITE = 64, 0.3
PUNCTUATION = (".", ",", ";", ":")
# A syllable is an onset and a nucleus; as runs of consonants and of vowels alternate, no two words are spelled alike.
ONSETS = ("t", "s", "n", "l", "br", "st", "th", "wh")
NUCLEI = ("e", "a", "o", "ea")
SYLLABLES = [onset + nucleus for nucleus, onset in product(NUCLEI, ONSETS)]


def load_sentences(n_tokens: int, path: Path | None = None, seed: int = 0) -> tuple[Sentences, str]:
    """The first sentences of a text, n_tokens tokens together (the last one is cut to fit), and the text's name.

    Args:
        n_tokens: tokens wanted.
        path: a file of tokenized lines; None takes the real text beside the checkout, where there is one.
        seed: of the generator, which is used where there is no file.

    Raises:
        FlashElmoError: the file has fewer tokens.
    """
    if path is None and REAL_TEXT.is_file():
        path = REAL_TEXT
    if path is None:
        return _cut(generate(n_tokens, seed), n_tokens, "generator"), f"generated text, seed {seed}"
    with path.open(encoding="utf-8") as lines:
        return _cut((line.split() for line in lines), n_tokens, str(path)), path.name


def first_sentences(settings: Settings) -> tuple[Sentences, str]:
    """A text's first sentences, on which errors are measured, and its name."""
    text, source = load_sentences(60 * settings.sentences, settings.text, settings.seed)
    return text[: settings.sentences], source


def generate(n_tokens: int, seed: int = 0) -> Sentences:
    """Sentences of at least n_tokens tokens together: a Markov chain over words that follow Zipf's law."""
    rng = np.random.default_rng(seed)
    frequencies = (np.arange(N_WORDS) + SHIFT) ** -EXPONENT
    cumulated = np.cumsum(frequencies / frequencies.sum())

    def draw(*shape: int) -> Int64:
        return np.searchsorted(cumulated, rng.random(shape)).clip(max=N_WORDS - 1)

    mean = MEAN_LENGTH / LENGTH_SHAPE
    lengths = 1 + rng.gamma(LENGTH_SHAPE, mean, 100 + int(1.5 * n_tokens / MEAN_LENGTH)).astype(np.int64)
    lengths = lengths[: 1 + np.searchsorted(np.cumsum(lengths), n_tokens)]
    favourites = draw(N_WORDS, FAVOURITES)
    ranks = np.empty((len(lengths), lengths.max()), np.int64)
    before = np.zeros(len(lengths), np.int64)  # a full stop comes before every sentence
    for position in range(ranks.shape[1]):
        habit = rng.random(len(lengths)) < (OPENING_HABIT if position < OPENING_WORDS else HABIT)
        choice = np.minimum(rng.geometric(FIRST_FAVOURITE, len(lengths)) - 1, FAVOURITES - 1)
        before = np.where(habit, favourites[before, choice], draw(len(lengths)))
        ranks[:, position] = before
    ranks[np.arange(len(lengths)), lengths - 1] = 0
    return [[spell(int(rank)) for rank in row[:length]] for row, length in zip(ranks, lengths, strict=True)]


def spell(rank: int) -> str:
    """The word of a rank: punctuation first, then more syllables the rarer it is; one word for every rank."""
    if rank < len(PUNCTUATION):
        return PUNCTUATION[rank]
    number, word = rank - len(PUNCTUATION) + 1, ""
    while number:
        number, digit = divmod(number - 1, len(SYLLABLES))
        word += SYLLABLES[digit]
    return word


def draw_passages(sentences: Sentences, n_runs: int) -> Sentences:
    """Runs of 32 sentences, evenly spaced over all: each in the middle of its share of the text."""
    share = len(sentences) / n_runs
    if share < PASSAGE:
        raise FlashElmoError(
            f"text: expected {n_runs} batches of {PASSAGE} sentences, found {len(sentences)} sentences"
        )
    starts = [int(share * (k + 0.5) - PASSAGE / 2) for k in range(n_runs)]
    return [sentence for start in starts for sentence in sentences[start : start + PASSAGE]]


def write_sentences(path: Path, sentences: Sentences) -> Path:
    """Write tokenized lines; the path."""
    path.write_text("".join(" ".join(sentence) + "\n" for sentence in sentences), encoding="utf-8")
    return path


def _cut(sentences: Iterable[list[str]], n_tokens: int, source: str) -> Sentences:
    taken: Sentences = []
    left = n_tokens
    for sentence in sentences:
        taken.append(sentence[:left])
        left -= len(sentence)
        if left <= 0:
            return taken
    raise FlashElmoError(f"{source}: expected {n_tokens} tokens or more, found {n_tokens - left}")
