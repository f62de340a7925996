"""Units of work: shards that processes, here or on other machines, embed for one folder.

The process that distributes them reads through the input once, without decoding it. A unit says where its shard begins,
and a process writes the shard's files itself, with the same commit as a single run: no vectors travel. A unit may be
done twice: its files are the same each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.engine.arguments import expect_no_state, is_stream, whole_number
from flashelmo.engine.bulk import folder as folders
from flashelmo.engine.bulk.locks import begin_writing, locked
from flashelmo.engine.bulk.parts import Reader
from flashelmo.engine.bulk.records import open_reader
from flashelmo.engine.bulk.report import Report
from flashelmo.engine.bulk.run import Run, describe_run
from flashelmo.engine.bulk.shards import Rows, ShardFormat, Target, shard_name
from flashelmo.engine.bulk.source import Source, Unit, UnitSource, default_shard_records, first_records
from flashelmo.engine.choice import choose_runtime
from flashelmo.engine.embed_file import Embedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.output import Output
from flashelmo.engine.settings import Settings

MOST_SHARDS = 10**9  # a unit counts as a job in an array of this many
WAIT_SECONDS = 600.0  # for a process that was given up but still writes a shard


@dataclass(frozen=True)
class Corpus:
    """An input, and the folder of shards that it becomes; it can be sent to other processes.

    Attributes:
        model: an argument for `ElmoEmbedder.load`.
        input: a path or address that all processes can read; not a pipe.
        folder: of the shards, writable by all processes.
        output: what to keep of a record.
        format, shard_records, keep_tokens: see `embed_corpus`.
        reader: further arguments of `open_reader`.
        options: those of `ElmoEmbedder.load`.
    """

    model: str | Path
    input: str
    folder: Path
    output: Output = field(default_factory=Output)
    format: ShardFormat = "native"
    shard_records: int | None = None
    keep_tokens: bool = True
    reader: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def open(self) -> Reader:
        """Return its reader."""
        if is_stream(self.input):
            found = "standard input" if self.input == "-" else f"a pipe or a device: {self.input}"
            raise FlashElmoError(f"input: expected a file, as several processes read it, found {found}")
        return open_reader(self.input, **self.reader)

    def describe(self, embedder: Embedder, reader: Reader) -> tuple[Target, folders.Meta]:
        """See `describe_run`."""
        how = self.format, self.shard_records, self.keep_tokens
        return describe_run(embedder, reader, self.folder, self.output, *how)


@dataclass(frozen=True)
class CorpusPlan:
    """The shards of a corpus that still have to be written.

    Attributes:
        corpus: with the number of records per shard.
        units: those not finished; if all are, the first one, so that model and options are compared once. The input is
            read as they are taken.
        kept: numbers of the shards that were already finished.
    """

    corpus: Corpus
    units: Iterator[Unit]
    kept: frozenset[int]


def make_plan(corpus: Corpus, *, resume: bool = False, overwrite: bool = False, elsewhere: bool = False) -> CorpusPlan:
    """Look at a folder, remove what is damaged in it, and return what is to be done, without computing.

    Args:
        corpus: what is embedded, and into which folder.
        resume, overwrite: see `embed_corpus`.
        elsewhere: other machines compute, whose devices and precisions are not known here.

    Raises:
        FlashElmoError: see `embed_corpus`.
    """
    from flashelmo.engine.embedder import ElmoEmbedder

    folder, reader = corpus.folder, corpus.open()
    _check_options(corpus, elsewhere)
    folders.check_new(folder, resume, overwrite)  # before a model is read
    model = load_model(corpus.model, corpus.options.get("options_file"))
    corpus.output.check(model.config.n_layers + 1)
    if overwrite and folders.shard_numbers(folder):  # what a process would report only after they were removed
        if not elsewhere:
            corpus.describe(ElmoEmbedder(model, **_settings_of(corpus)), reader)
        first_records(reader)
    with begin_writing(folder, resume, overwrite):
        kept = folders.kept_shards(folder, folders.shard_numbers(folder))
        if corpus.shard_records is None:
            keep = bool(corpus.options.get("keep_sentence_boundaries"))
            rows = Rows.of(corpus.output, model.config.n_layers + 1, model.config.output_size, keep)
            n = folders.begun_shard_records(folder) or default_shard_records(reader, rows)
            corpus = replace(corpus, shard_records=n)
    assert corpus.shard_records is not None
    return CorpusPlan(corpus, _missing(corpus.shard_records, reader, kept), frozenset(kept))


def _check_options(corpus: Corpus, elsewhere: bool) -> None:
    """Raise FlashElmoError for options that no process could take, before the folder is created."""
    if corpus.shard_records is not None:
        whole_number("shard_records", corpus.shard_records, 1)
    settings = Settings.of(_settings_of(corpus))
    expect_no_state(settings.stateful, "shards are embedded one by one")
    if not elsewhere:
        choose_runtime(settings)


def _settings_of(corpus: Corpus) -> Any:
    return {name: value for name, value in corpus.options.items() if name != "options_file"}


def _missing(n: int, reader: Reader, kept: dict[int, folders.Meta]) -> Iterator[Unit]:
    """Yield the unfinished units, of n records each; the first one if all are finished."""
    n_missing = 0
    for number, part, last in Source(reader, n, kept).parts():
        n_missing, begin = n_missing + 1, part.begin
        del part
        yield Unit(number, begin.record, begin.line, begin.byte, last)
    if not n_missing:
        yield Unit(0, 0, 1, 0, kept[0]["last"])


class EmbedUnit:
    """Embeds units of a corpus, one per call or a stream of them.

    It is an actor for `ray.data.Dataset.map_batches`: `batch_size=1`, the corpus as the constructor's argument, rows
    with the fields of `Unit`; it returns the fields of `DONE`. It can be called likewise elsewhere.

    Args:
        corpus: with a number of records per shard, as `make_plan` returns it.

    Raises:
        FlashElmoError: another model, option or input than the folder was begun with; see `embed_corpus`.
    """

    def __init__(self, corpus: Corpus) -> None:
        from flashelmo.engine.embedder import ElmoEmbedder

        self._embedder = ElmoEmbedder.load(corpus.model, **corpus.options)
        self._reader = corpus.open()
        self._target, fingerprint = corpus.describe(self._embedder, self._reader)
        find_size = partial(default_shard_records, self._reader, self._target.rows)
        self._n = folders.start(corpus.folder, fingerprint, find_size)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Embed units that are given as columns; return a column for each of `DONE`."""
        columns = (np.asarray(batch[each.name]).tolist() for each in fields(Unit))
        units = [Unit(*values) for values in zip(*columns, strict=True)]
        done = [self._one(unit) for unit in units]
        return {name: np.array([row[name] for row in done]) for name in DONE}

    def run(
        self,
        units: Iterable[Unit],
        on_finish: Callable[[folders.Meta], None] = lambda meta: None,
    ) -> Report:
        """Embed units one after the other, so that nothing waits at a shard's end; the caller holds a lock.

        Args:
            units: taken as they are needed.
            on_finish: called with a shard's entry once it is on disk, in a thread.
        """
        run = Run(self._embedder, self._reader, self._target, on_finish=on_finish)
        return run.run(UnitSource(self._reader, self._n, units))

    def finished(self, unit: Unit) -> folders.Meta | None:
        """Return a unit's entry, if it is finished and undamaged."""
        there = (self._target.folder / f"{shard_name(unit.shard)}.json").exists()
        return folders.kept_shards(self._target.folder, [unit.shard] if there else []).get(unit.shard)

    def _one(self, unit: Unit) -> dict[str, Any]:
        """Embed a unit, unless it is finished; no other process has it meanwhile."""
        folder = self._target.folder
        with _waited_for(folder, unit.shard):
            folders.remove_leftovers(folder, MOST_SHARDS, unit.shard)
            report = self.run([unit]) if self.finished(unit) is None else Report(kept=1)
        values = asdict(report) | asdict(unit)
        return {name: values[name] for name in DONE}


# What is reported of a unit: its shard, whether it was already finished, and what was done for it.
DONE = ("shard", "kept", "records", "skipped", "tokens", "words_computed", "steps", "steps_saved", "bytes_written")


@contextmanager
def _waited_for(folder: Path, shard: int) -> Iterator[None]:
    """Hold a shard's lock; a process that was given up may still have it for a while.

    Raises:
        FlashElmoError: it keeps it for too long.
    """
    until = time.monotonic() + WAIT_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder, MOST_SHARDS, shard))
                break
            except FlashElmoError:
                if time.monotonic() > until:
                    raise
                time.sleep(1.0)
        yield
