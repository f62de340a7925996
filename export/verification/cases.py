"""What an exported file is verified on: text in batches of several sizes, and unusual words and batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TypeAlias

from flashelmo.engine.model.weights import ElmoModel, Lexicon
from flashelmo.export.verification.sentences import MULTIBYTE_WORDS

Sentence: TypeAlias = tuple[str, ...]

EXTRA_COLUMNS = 3
SAMPLED = 64  # words, and characters, of a lexicon
LENGTHS = (4, 1, 7, 2, 3)  # of the sentences into which sampled words are put, in turn
ROWS_CARRIED = (3, 5, 1, 4, 2)  # of successive batches: with rows that are new, that pause, and that come back


@dataclass(frozen=True)
class Batch:
    """Sentences that run at once.

    Attributes:
        sentences: B of them.
        extra_columns: padding beyond the longest sentence.
        least_columns: least columns of a batch, whose sentences may all be empty.
        all_positions: pass all M positions of a word, even if the file takes fewer.
    """

    sentences: tuple[Sentence, ...]
    extra_columns: int = 0
    least_columns: int = 1
    all_positions: bool = False


@dataclass(frozen=True)
class Case:
    """Batches for one line of the report.

    Attributes:
        name: what is special about it.
        batches: in order.
        carried: whether each batch starts from the states that the previous one left.
    """

    name: str
    batches: tuple[Batch, ...]
    carried: bool = False

    @property
    def n_sentences(self) -> int:
        """The number of sentences in all batches."""
        return sum(len(batch.sentences) for batch in self.batches)

    @property
    def n_tokens(self) -> int:
        """The number of tokens in all batches."""
        return sum(len(sentence) for batch in self.batches for sentence in batch.sentences)


def make_cases(
    model: ElmoModel, sentences: Sequence[Sentence], batch_sizes: Sequence[int], stateful: bool
) -> list[Case]:
    """Return all cases for one model and text."""
    first = tuple(sentences[:3])
    empty = Batch((first[0], (), *first[1:])), Batch(((), ())), Batch(((),))
    nothing = Batch(((), ()), least_columns=0), Batch((), least_columns=EXTRA_COLUMNS), Batch((), least_columns=0)
    cases = [Case(f"text, batches of {size}", _batches(sentences, size)) for size in batch_sizes]
    cases.append(Case("empty sentences", empty + nothing))
    cases.append(Case("columns of padding", (Batch(first, EXTRA_COLUMNS, all_positions=True),)))
    if model.config.character_size:
        cases.append(Case("short, long and multi-byte words", (Batch(_special_words(model.config.max_characters)),)))
    if model.lexicon is not None and (of_lexicon := _lexicon_sentences(model.lexicon)):
        cases.append(Case("words of the lexicon", _batches(of_lexicon, 8)))
    if stateful:
        cases.append(Case("state carried", _carried(sentences), carried=True))
    return cases


def in_bucket(cases: Sequence[Case], sentences: Sequence[Sentence], bucket: tuple[int, int]) -> list[Case]:
    """Return the cases as a file of one shape takes them: long sentences in pieces, batches filled up with empty ones.

    Of batches of text only those of the file's own size remain, as their rows are the same work; and there is text with
    as many tokens as the file has steps, and with one less.
    """
    batch, steps = bucket
    words = [word for sentence in sentences for word in sentence]
    longest = tuple(tuple(words[k % len(words)] for k in range(n)) for n in (steps, max(1, steps - 1)))
    kept = [Case(f"text, batches of {batch}", _batches(sentences, batch))]
    kept += [case for case in cases if not case.name.startswith("text, ")]
    kept.append(Case(f"sentences of {steps} tokens", _batches(longest, batch)))
    return [replace(case, batches=tuple(dict.fromkeys(_filled(case.batches, batch, steps)))) for case in kept]


def _filled(batches: Sequence[Batch], batch: int, steps: int) -> Iterator[Batch]:
    for each in batches:
        pieces = [
            sentence[start : start + steps]
            for sentence in each.sentences
            for start in range(0, max(1, len(sentence)), steps)
        ]
        for start in range(0, max(1, len(pieces)), batch):
            some = tuple(pieces[start : start + batch])
            yield Batch(some + ((),) * (batch - len(some)), least_columns=steps)


def _batches(sentences: Sequence[Sentence], size: int) -> tuple[Batch, ...]:
    return tuple(Batch(tuple(sentences[start : start + size])) for start in range(0, len(sentences), size))


def _special_words(max_characters: int) -> tuple[Sentence, ...]:
    """Return words of one character; of M - 3 to M + 10, whose limit is M - 2; and with several bytes per character."""
    letters = "pneumonoultramicroscopicsilicovolcanoconiosis" * (1 + max_characters // 40)
    sizes = (max_characters - 3, max_characters - 2, max_characters - 1, max_characters, max_characters + 10)
    long = tuple(letters[:size] for size in sizes if size > 0)
    cut_within_a_character = "a" + "é" * max_characters
    return (("a",), long, ("I", "."), (*MULTIBYTE_WORDS, cut_within_a_character))


def _lexicon_sentences(lexicon: Lexicon) -> tuple[Sentence, ...]:
    """Return words at regular intervals of the lexicon, and words made of characters at regular intervals."""
    characters = _sample([character for character in lexicon.characters if len(character) == 1])
    sizes = _in_turn(len(characters))
    words = ["".join(islice(letters, size)) for letters in [iter(characters)] for size in sizes]
    words += _sample(list(lexicon.words))
    rest = iter(words)
    return tuple(tuple(islice(rest, size)) for size in _in_turn(len(words)))


def _sample(values: Sequence[str]) -> list[str]:
    step = max(1, len(values) // SAMPLED)
    return list(values[::step][:SAMPLED])


def _in_turn(total: int) -> Iterator[int]:
    """Yield LENGTHS in turn until they make up the total."""
    for length in cycle(LENGTHS):
        if total <= 0:
            return
        yield length
        total -= length


def _carried(sentences: Sequence[Sentence]) -> tuple[Batch, ...]:
    """Return batches of different numbers of rows, one of which is an empty sentence."""
    rest = iter((*sentences[:4], (), *sentences[4:]))
    batches = (Batch(tuple(islice(rest, rows))) for rows in ROWS_CARRIED)
    return tuple(batch for batch in batches if batch.sentences)
