"""The text that a model is trained on, and held-out text to judge it by: `python -m benchmarks corpus --out DIR`.

For each text in `text/` in the data folder, in order:

- Omitted is every line that is, or fully contains, a sentence by which models are judged (`tasks.judged_sentences`).
  Of those, sentences of less than five words count only if they are a whole line.
- 1% of the others are held out, into `heldout.txt`: those whose hash says so, each once. As the hash is of the line's
  letters and digits in lower case, similar lines are treated alike.
- Everything else goes to `NAME.txt`, which a model is trained on.

The sentences that taggers and classifiers are trained on stay: `masc.txt` is the text of `pos_masc_train.txt`. They do
not contain what is to be predicted.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.run import Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tables import print_rows
from flashelmo.benchmarks.tasks import DATA, judged_sentences
from flashelmo.engine.errors import FlashElmoError

HELDOUT = "heldout.txt"
ONE_IN = 100  # lines is held out
SHORTEST = 5  # words of a sentence to look for inside lines

Key = tuple[str, ...]


def key(line: str) -> Key:
    """Return what makes lines equal: their runs of letters and digits, in lower case."""
    return tuple(re.findall(r"[^\W_]+", line.lower()))


def is_heldout(words: Key) -> bool:
    """Whether lines with this key are held out."""
    digest = hashlib.sha256(" ".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") % ONE_IN == 0


class Judged:
    """Sentences that training text must not contain."""

    def __init__(self, sentences: Iterable[Sequence[str]]) -> None:
        self._whole: set[Key] = set()
        self._by_begin: dict[Key, list[Key]] = defaultdict(list)
        for tokens in sentences:
            words = key(" ".join(tokens))
            self._whole.add(words)
            if len(words) >= SHORTEST:
                self._by_begin[words[:SHORTEST]].append(words)

    def is_in(self, words: Key) -> bool:
        """Whether a line with this key is one of them, or contains one."""
        return words in self._whole or any(
            words[start : start + len(other)] == other
            for start in range(len(words) - SHORTEST + 1)
            for other in self._by_begin.get(words[start : start + SHORTEST], ())
        )


def split(lines: Iterable[str], judged: Judged) -> tuple[list[str], list[str]]:
    """Return the lines to train on, and those held out."""
    training: list[str] = []
    heldout: dict[Key, str] = {}
    for line in lines:
        words = key(line)
        if not line.strip() or judged.is_in(words):
            continue
        if is_heldout(words):
            heldout.setdefault(words, line)
        else:
            training.append(line)
    return training, list(heldout.values())


def write_corpus(data: Path, folder: Path) -> Iterator[Row]:
    """Write the texts; yield the tokens of each.

    Raises:
        FlashElmoError: something is missing from the data folder.
        OSError: a text cannot be written.
    """
    texts = sorted((data / "text").glob("*.txt"))
    if not texts:
        raise FlashElmoError(f"{data}: expected text/*.txt, found none")
    judged, all_heldout = Judged(judged_sentences(data)), dict[Key, str]()
    folder.mkdir(parents=True, exist_ok=True)
    for path in texts:
        with path.open(encoding="utf-8", newline="\n") as file:  # as the engine reads lines
            lines = [line.rstrip("\r\n") for line in file]
        training, heldout = split(lines, judged)
        all_heldout |= {key(line): line for line in heldout}
        yield _written(
            folder / path.name, training, f"{len(lines) - len(training):,} of {len(lines):,} lines not in it"
        )
    yield _written(folder / HELDOUT, list(all_heldout.values()), "")


def training_texts(corpus: Path) -> list[Path]:
    """Return the texts in a folder written by `corpus`, without the held-out one.

    Raises:
        FlashElmoError: there are none.
    """
    found = sorted(path for path in corpus.glob("*.txt") if path.name != HELDOUT)
    if not found:
        raise FlashElmoError(f"{corpus}: expected texts, as `python -m benchmarks corpus` writes them, found none")
    return found


def sentences_of(paths: Iterable[Path]) -> Iterator[list[str]]:
    """Yield the tokens of each line."""
    for path in paths:
        with path.open(encoding="utf-8") as file:
            yield from (line.split() for line in file)


def _written(path: Path, lines: Sequence[str], note: str) -> Row:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return Row("corpus", "", path.name, "tokens", note=note).with_samples([sum(len(line.split()) for line in lines)])


def command(settings: Settings, console: Console) -> int:
    """Write the texts and report their lengths; return the exit status."""
    if settings.out is None:
        raise FlashElmoError("--out: expected a folder that the texts are written to, found none")
    rows = list(write_corpus(settings.data or DATA, settings.out))
    print_rows(console, rows)
    return 0


SUITE = Suite("Writes the text that a model is trained on, and held-out text.", Settings(), ("data", "out"), command)
