"""Text to measure with: real sentences from a file, or generated ones that look similar to the engine.

What matters to the engine's speed is the lengths of sentences and words, how many words are distinct, and how often
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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, cycle, islice, product
from pathlib import Path

import numpy as np

from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.arrays import Int64
from flashelmo.engine.errors import FlashElmoError

Sentences = list[list[str]]
GENERATED = 1 << 19  # tokens; for more they are repeated, if allowed
PASSAGE = 32  # sentences of a run that is drawn from a text, as for the reference's batches
REAL_TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "text" / "kjv.txt"

# Zipf-Mandelbrot law: the word of rank r has a probability proportional to (r + SHIFT) ** -EXPONENT.
N_WORDS, SHIFT, EXPONENT = 30_000, 10.0, 1.45
# Tokens of a sentence: a gamma distribution.
MEAN_LENGTH, LENGTH_SHAPE = 26.0, 4.2
# A word is one of its predecessor's favourites with this probability: in a sentence's first words, and in the others.
OPENING_WORDS, OPENING_HABIT, HABIT = 3, 0.95, 0.65
# Favourite k is chosen with a probability proportional to (1 - FIRST_FAVOURITE) ** k.
FAVOURITES, FIRST_FAVOURITE = 64, 0.3
PUNCTUATION = (".", ",", ";", ":")
# A syllable is an onset and a nucleus; as runs of consonants and of vowels alternate, no two words are spelled alike.
ONSETS = ("t", "s", "n", "l", "br", "st", "th", "wh")
NUCLEI = ("e", "a", "o", "ea")
SYLLABLES = [onset + nucleus for nucleus, onset in product(NUCLEI, ONSETS)]


def load_sentences(
    n_tokens: int, path: Path | None = None, seed: int = 0, *, again: bool = False
) -> tuple[Sentences, str]:
    """Return the first sentences of a text, n_tokens tokens in total (the last one is cut to fit), and the text's name.

    Args:
        n_tokens: tokens wanted.
        path: a file of tokenized lines; None takes the real text beside the checkout, if there is one.
        seed: of the generator, which is used if there is no file.
        again: repeat a shorter text from its beginning. Sentences of different windows share nothing, so this changes
            little if the text is longer than a window.

    Raises:
        FlashElmoError: the file has fewer tokens, or none.
    """
    path = path or (REAL_TEXT if REAL_TEXT.is_file() else None)
    if path is None:
        found, source = generate(min(n_tokens, GENERATED) if again else n_tokens, seed), f"generated text, seed {seed}"
    else:
        with path.open(encoding="utf-8") as file:
            found, source = list(_first((line.split() for line in file), n_tokens)), path.name
    n_found = sum(map(len, found))
    if n_found < n_tokens and not (again and n_found):
        raise FlashElmoError(f"{path or source}: expected {n_tokens} tokens or more, found {n_found}")
    times = -(-n_tokens // n_found)
    return list(_first(cycle(found), n_tokens)), source + (f", {times} times over" if times > 1 else "")


def first_sentences(settings: Settings) -> tuple[Sentences, str]:
    """Return a text's first sentences, on which errors are measured, and its name."""
    text, source = load_sentences(60 * settings.sentences, settings.text, settings.seed)
    return text[: settings.sentences], source


def generate(n_tokens: int, seed: int = 0) -> Sentences:
    """Return sentences of at least n_tokens tokens in total: a Markov chain over words that follow Zipf's law."""
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
    before = np.zeros(len(lengths), np.int64)  # every sentence is preceded by a full stop
    for position in range(ranks.shape[1]):
        habit = rng.random(len(lengths)) < (OPENING_HABIT if position < OPENING_WORDS else HABIT)
        choice = np.minimum(rng.geometric(FIRST_FAVOURITE, len(lengths)) - 1, FAVOURITES - 1)
        before = np.where(habit, favourites[before, choice], draw(len(lengths)))
        ranks[:, position] = before
    ranks[np.arange(len(lengths)), lengths - 1] = 0
    return [[spell(int(rank)) for rank in row[:length]] for row, length in zip(ranks, lengths, strict=True)]


def spell(rank: int) -> str:
    """Return the word of a rank: punctuation first, then more syllables the rarer it is; a unique word per rank."""
    if rank < len(PUNCTUATION):
        return PUNCTUATION[rank]
    number, word = rank - len(PUNCTUATION) + 1, ""
    while number:
        number, digit = divmod(number - 1, len(SYLLABLES))
        word += SYLLABLES[digit]
    return word


def draw_passages(sentences: Sentences, n_runs: int) -> Sentences:
    """Return runs of 32 sentences, evenly spaced over all: each in the middle of its share of the text."""
    share = len(sentences) / n_runs
    if share < PASSAGE:
        raise FlashElmoError(
            f"text: expected {n_runs} batches of {PASSAGE} sentences, found {len(sentences)} sentences"
        )
    starts = [int(share * (k + 0.5) - PASSAGE / 2) for k in range(n_runs)]
    return [sentence for start in starts for sentence in sentences[start : start + PASSAGE]]


def write_sentences(path: Path, sentences: Sentences) -> Path:
    """Write tokenized lines; return the path."""
    path.write_text("".join(" ".join(sentence) + "\n" for sentence in sentences), encoding="utf-8")
    return path


def batches(sentences: Iterable[list[str]], size: int) -> Iterator[Sentences]:
    """Yield runs of this many sentences in order; the last one may be shorter."""
    rest = iter(sentences)
    while batch := list(islice(rest, size)):
        yield batch


def _first(sentences: Iterable[list[str]], left: int) -> Iterator[list[str]]:
    """Yield the first tokens, with the last sentence cut to fit."""
    for sentence in sentences:
        yield sentence[:left]
        left -= len(sentence)
        if left <= 0:
            return


@dataclass(frozen=True)
class Workload:
    """Sentences that are embedded by one call.

    Attributes:
        section, detail: such as "batch", "32 sentences of 20".
        waits: whether each call is waited for: then its latency counts, not how many can be queued.
    """

    section: str
    detail: str
    sentences: Sentences
    waits: bool = False

    @property
    def tokens(self) -> int:
        """Return the number of all tokens."""
        return sum(map(len, self.sentences))


def equal_batch(text: Sentences, n: int, length: int, section: str = "batch") -> Workload:
    """Return n sentences of `length` tokens each, cut from a text regardless of its own sentences.

    Raises:
        FlashElmoError: the text is too short.
    """
    tokens = list(islice(chain.from_iterable(text), n * length))
    if len(tokens) < n * length:
        raise FlashElmoError(f"text: expected {n * length} tokens or more, found {len(tokens)}")
    cut = [tokens[k : k + length] for k in range(0, n * length, length)]
    return Workload(section, f"{n} sentences of {length}" if n > 1 else f"a sentence of {length}", cut, waits=n == 1)


def ragged_batch(text: Sentences, n: int) -> Workload:
    """Return the text's first n sentences as they are."""
    return Workload("ragged", f"{n} sentences", text[:n])


def bulk(text: Sentences, n_tokens: int) -> Workload:
    """Return the text's first tokens, with the last sentence cut to fit."""
    taken = list(_first(text, n_tokens))
    return Workload("bulk", f"{sum(map(len, taken)):,} tokens", taken)
