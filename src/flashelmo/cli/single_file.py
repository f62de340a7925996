"""What `flashelmo embed` and `flashelmo elmo` do for a single file, or the files of SeqVec."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flashelmo.cli.terminal import (
    counted,
    file_status,
    progress_bar,
    readable_size,
    rest_of_summary,
    say,
)
from flashelmo.engine.arguments import is_stream, path_of, standard_input
from flashelmo.engine.embed_file import Summary, embed_file
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import is_model_file
from flashelmo.engine.model.named.locate import model_path
from flashelmo.engine.output import Output
from flashelmo.engine.sinks import open_sink
from flashelmo.engine.text.lines import Errors

if TYPE_CHECKING:
    from flashelmo.engine.bulk.units import Corpus


def embed_to_file(
    source: str,
    target: Path,
    output: Output,
    model: Path | None,
    settings: dict[str, Any],
    sink_settings: dict[str, bool],
    errors: str = "strict",
    universal_newlines: bool = False,
    quiet: bool = False,
    in_lines: bool = False,
    as_json: bool = False,
) -> None:
    """Open the files, load the model, embed; what is cheap to check is checked first."""
    target = path_of("output", target)
    with _open_input(source) as file:
        status = file_status(file)
        _check_target(target, status, model, settings)
        total = status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None
        with open_sink(target, output, **sink_settings) as sink:
            from flashelmo.engine.embedder import ElmoEmbedder

            embedder = ElmoEmbedder.load(model, **settings)
            with progress_bar(lambda: total, quiet, in_lines) as on_progress:
                summary = embed_file(
                    embedder,
                    file,
                    sink,
                    errors=cast(Errors, errors),
                    universal_newlines=universal_newlines,
                    on_progress=on_progress,
                )
    _print_summary(summary, target, embedder.device, embedder.precision, quiet, as_json)


def embed_records_to(
    corpus: Corpus, sink_settings: dict[str, bool], as_seqvec: bool, quiet: bool, as_json: bool
) -> None:
    """As `embed_to_file`, of records of any format, under their own ids; or into SeqVec's files.

    Args:
        corpus: whose `folder` is the file.
    """
    from flashelmo.engine.bulk.records import open_reader
    from flashelmo.engine.bulk.to_file import embed_records
    from flashelmo.engine.embedder import ElmoEmbedder
    from flashelmo.engine.sinks.seqvec import open_seqvec

    target = path_of("output", corpus.folder)
    records = open_reader(corpus.input, **corpus.reader)
    status = os.stat(corpus.input) if os.path.exists(corpus.input) else None
    _check_target(target, status, corpus.model, corpus.options)
    opened: AbstractContextManager[Any] = (
        open_seqvec(target, corpus.output, overwrite=sink_settings["overwrite"])
        if as_seqvec
        else open_sink(target, corpus.output, **sink_settings)
    )
    with closing(records), opened as sink:
        embedder = ElmoEmbedder.load(corpus.model, **corpus.options)
        with progress_bar(lambda: records.n_bytes, quiet) as on_progress:
            summary = embed_records(embedder, records, sink, on_progress=on_progress)
    _print_summary(summary, target, embedder.device, embedder.precision, quiet, as_json)


def _check_target(
    target: Path, input_status: os.stat_result | None, model: str | Path | None, settings: Mapping[str, Any]
) -> None:
    """Raise FlashElmoError if an existing output is the input itself, or a file of the model."""
    if not target.is_file():
        return
    if input_status is not None and os.path.samestat(input_status, target.stat()):
        raise FlashElmoError(f"{target}: is the input text itself")
    if is_model_file(target, model_path("model", model), settings["options_file"]):
        raise FlashElmoError(f"{target}: is a file of the model")


def _open_input(source: str) -> Any:
    from flashelmo.engine.bulk.inputs import Input

    if source == "-":
        return nullcontext(standard_input())
    return closing(Input(source).open()) if is_stream(source) else open(path_of("input", source), "rb")


def _print_summary(summary: Summary, target: Path, device: str, precision: str, quiet: bool, as_json: bool) -> None:
    """What was done: as JSON on standard output, or in lines for people on standard error."""
    files = list(target.iterdir()) if target.is_dir() else [target]
    n_bytes = sum(path.stat().st_size for path in files)
    if as_json:
        facts = {"output": str(target), "bytes": n_bytes, "device": device, "precision": precision}
        print(json.dumps({**facts, **asdict(summary), "tokens_per_second": summary.tokens_per_second}, indent=2))
    if quiet or as_json:
        return
    say(
        f"{counted(summary.sentences, 'sentence')}, {counted(summary.tokens, 'token')}, "
        f"{counted(summary.words_computed, 'word')} computed (boundaries included)"
        + rest_of_summary(summary, f"{device}, {precision}")
        + f"{target}: {readable_size(n_bytes)}"
    )
