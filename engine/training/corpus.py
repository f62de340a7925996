"""Text to word ids, once; and the words that the softmax predicts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flashelmo.engine.arrays import Bool, Int32, Int64
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.bilm import words_of
from flashelmo.engine.text.windows import Window, read_windows

BEGIN, END, UNKNOWN = range(3)
SPECIAL = ("<S>", "</S>", "<UNK>")  # the first words of every vocabulary, as in bilm-tf's
WINDOW_TOKENS = 1 << 20


@dataclass(frozen=True)
class EncodedCorpus:
    """Sentences as ids of distinct words.

    Attributes:
        words: distinct words; the first three are `SPECIAL`.
        word_ids: index into `words` of every token, sentence after sentence [tokens].
        offsets: [S + 1]; sentence s is word_ids[offsets[s]:offsets[s + 1]].
    """

    words: list[str]
    word_ids: Int32
    offsets: Int64

    @classmethod
    def of(cls, sentences: Sequence[Sequence[str]]) -> EncodedCorpus:
        """Encode tokenized sentences, which may be empty here."""
        return cls.of_windows([Window.from_sentences(sentences)])

    @classmethod
    def of_windows(cls, windows: Iterable[Window]) -> EncodedCorpus:
        """Encode windows, one after another."""
        ids = {word: row for row, word in enumerate(SPECIAL)}
        tokens, lengths = [np.empty(0, np.int32)], [np.zeros(1, np.int64)]
        for window in windows:
            rows = np.array([ids.setdefault(word, len(ids)) for word in window.words.to_pylist()], np.int32)
            tokens.append(rows[window.word_ids])
            lengths.append(np.diff(window.offsets))
        return cls(list(ids), np.concatenate(tokens), np.cumsum(np.concatenate(lengths)))

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        """The number of tokens, without boundaries."""
        return len(self.word_ids)

    def counts(self) -> Int64:
        """Return how often each word occurs in the text [W]."""
        return np.bincount(self.word_ids, minlength=len(self.words)).astype(np.int64)

    def rows(self, vocabulary: Sequence[str]) -> Int32:
        """Return each word's row in the softmax [W]; that of <UNK> for words outside the vocabulary."""
        row_of = {word: row for row, word in enumerate(vocabulary)}
        return np.fromiter((row_of.get(word, UNKNOWN) for word in self.words), np.int32, len(self.words))

    def predictions(self, sentences: Int64, k: Int64) -> tuple[Int32, Int32]:
        """Return the word ids to read and to predict, [2, ...] forward and backward, of prediction k of each sentence.

        A sentence of n words has n + 1: <S> w1 .. wn predict w1 .. wn </S>, and backward </S> wn .. w1 predict
        wn .. w1 <S>, as in bilm-tf.
        """
        ids = self.word_ids if self.n_tokens else np.zeros(1, np.int32)  # all sentences may be empty
        offsets = np.asarray(self.offsets)
        start, n = offsets[sentences], offsets[sentences + 1] - offsets[sentences]

        def word(index: Int64) -> Int32:
            return np.asarray(ids[np.clip(start + index, 0, len(ids) - 1)])

        inputs = np.where(k == 0, BEGIN, word(k - 1)), np.where(k == 0, END, word(n - k))
        targets = np.where(k == n, END, word(k)), np.where(k == n, BEGIN, word(n - 1 - k))
        return np.stack(inputs).astype(np.int32), np.stack(targets).astype(np.int32)

    def split(self, share: float, seed: int) -> tuple[EncodedCorpus, EncodedCorpus]:
        """Return two corpora over the same words; the second gets a share of the sentences, drawn with the seed."""
        held_out = np.zeros(len(self), bool)
        number = min(max(1, round(share * len(self))), len(self) - 1)
        held_out[np.random.default_rng(seed).permutation(len(self))[:number]] = True
        return self._only(~held_out), self._only(held_out)

    def _only(self, kept: Bool) -> EncodedCorpus:
        lengths = np.diff(self.offsets)
        word_ids = self.word_ids[np.repeat(kept, lengths)]
        return EncodedCorpus(self.words, word_ids, np.concatenate([[0], np.cumsum(lengths[kept])]).astype(np.int64))

    @property
    def sha256(self) -> str:
        """The sha256 of words and sentences: the same for texts that do not differ in training."""
        digest = hashlib.sha256("\n".join(self.words).encode("utf-8", "surrogatepass"))
        for array in (self.word_ids, self.offsets):
            digest.update(f"\n{len(array)}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write it so that `load` can map it into memory."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "word_ids.npy", self.word_ids)
        np.save(folder / "offsets.npy", self.offsets)
        (folder / "words.txt").write_text("".join(f"{word}\n" for word in self.words), encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, folder: Path) -> EncodedCorpus:
        """Load what `save` wrote; the ids stay in the file.

        Raises:
            OSError, ValueError, EOFError: it is missing or incomplete.
        """
        words = (folder / "words.txt").read_bytes().decode("utf-8").split("\n")[:-1]
        word_ids, offsets = (np.load(folder / name, mmap_mode="r") for name in ("word_ids.npy", "offsets.npy"))
        return cls(words, word_ids, offsets)


def read_corpus(paths: Iterable[str | Path]) -> EncodedCorpus:
    """Read texts of one tokenized sentence per line; empty lines are skipped.

    Raises:
        FlashElmoError: names a file that is not UTF-8; or no file has a sentence.
    """
    paths = list(paths)
    corpus = EncodedCorpus.of_windows(
        window for path in paths for window in read_windows(path, max_sentences=WINDOW_TOKENS, max_tokens=WINDOW_TOKENS)
    )
    if not corpus.n_tokens:
        raise no_token(", ".join(map(str, paths)) or "corpus")
    return replace(corpus, offsets=np.unique(corpus.offsets))  # a sentence without tokens ends where it begins


def no_token(name: str | Path) -> FlashElmoError:
    """Return the error about a text of this name that is only white space."""
    return FlashElmoError(f"{name}: expected a sentence a line, found no token")


def most_frequent(corpus: EncodedCorpus, min_count: int, max_words: int | None) -> list[str]:
    """Return the softmax's words: `SPECIAL`, then the others by count, equally frequent ones in alphabetical order.

    Sampling negatives by rank relies on this order.
    """
    counts = corpus.counts()
    found = [(-int(counts[row]), word) for row, word in enumerate(corpus.words) if row >= len(SPECIAL)]
    words = [word for count, word in sorted(found) if -count >= max(1, min_count)]
    return [*SPECIAL, *words[: None if max_words is None else max(0, max_words - len(SPECIAL))]]


def read_vocabulary(path: Path, n_rows: int | None = None) -> list[str]:
    """Read a vocabulary in bilm-tf's format: one word per line, most frequent first, after <S>, </S> and <UNK>.

    Args:
        path, n_rows: see `words_of`.

    Raises:
        FlashElmoError: it does not begin with these three, repeats a word, or has none or several in a line.
    """
    words = words_of(path, n_rows)
    for line, (word, special) in enumerate(zip([*words[:3], *[""] * 3], SPECIAL, strict=False), start=1):
        if word != special:
            where = f"on line {words.index(special) + 1}" if special in words else "nowhere"
            raise FlashElmoError(f"{path}: line {line}: expected {special}, which stands {where}, found {word!r}")
    if len(set(words)) != len(words):
        seen: set[str] = set()
        twice = next(word for word in words if word in seen or seen.add(word))  # type: ignore[func-returns-value]
        raise FlashElmoError(f"{path}: expected every word once, found {twice!r} twice")
    return words
