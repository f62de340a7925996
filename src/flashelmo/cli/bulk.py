"""What `flashelmo embed` does for a folder of shards, and the command `flashelmo verify`."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashelmo.cli.arguments import Json
from flashelmo.cli.terminal import as_options, counted, progress_bar, readable_size, rest_of_summary, say
from flashelmo.engine.arguments import ADDRESS, is_stream, path_of
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.named.locate import model_path
from flashelmo.engine.sinks import FILE_SUFFIXES

if TYPE_CHECKING:
    from flashelmo.engine.bulk.report import Report
    from flashelmo.engine.bulk.units import Corpus


def is_folder(output: Path, shard_format: str | None) -> bool:
    """Whether an output is a folder of shards: one without a suffix, by its format, or as it is there already."""
    if str(output) == "-" or output.suffix.lower() in FILE_SUFFIXES:
        return False
    return shard_format is not None or not output.suffix or output.is_dir()


def check_beside(
    option: str, path: Path, output: Path, all_in_it: bool = False, what: str = "the output, or a file of it"
) -> None:
    """Raise FlashElmoError if a file that is written beside the output is the output itself, or a file of it.

    Args:
        all_in_it: whether every file in the output's folder is one of it.
        what: the output is called.
    """
    from flashelmo.engine.bulk.folder import is_ours
    from flashelmo.engine.system.files import is_same

    real, folder = (Path(os.path.realpath(path_of(*each))) for each in ((option, path), ("output", output)))
    if is_same(real, folder) or (is_same(real.parent, folder) and (all_in_it or is_ours(real.name))):
        raise FlashElmoError(f"{option}: {path}: is {what}")


def embed_to_folder(
    corpus: Corpus,
    how: dict[str, Any],
    report: Path | None = None,
    quiet: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    as_json: bool = False,
) -> None:
    """Open the input, load the model, embed; what is cheap to check is checked first.

    Args:
        corpus: what is embedded into what.
        how: `resume`, `overwrite`, `num_shards` and `shard_id` of `embed_corpus`.
    """
    from flashelmo.engine.bulk.folder import check_new
    from flashelmo.engine.bulk.records import open_reader
    from flashelmo.engine.bulk.report import Report, skipped_records
    from flashelmo.engine.bulk.run import embed_corpus
    from flashelmo.engine.bulk.to_file import log_skipped, log_unnamed
    from flashelmo.engine.embedder import ElmoEmbedder

    target = path_of("output", corpus.folder)
    if report is not None:
        path = path_of("report", report)
        check_beside("--report", report, target)
        if path.is_dir() or not path.parent.is_dir():
            raise FlashElmoError(f"--report: expected a file name in an existing folder, found {report}")
    check_new(target, how["resume"], how["overwrite"], how["num_shards"] > 1)
    if not is_stream(corpus.input) and not ADDRESS.match(corpus.input):
        path_of("input", corpus.input).open("rb").close()
    if report is not None:
        if report.exists() and Path(corpus.input).exists() and report.samefile(corpus.input):
            raise FlashElmoError(f"--report: {report}: is the input text itself")
        Report.check(report)
    if workers is not None or ray is not None:
        done, computed = _embed_with_others(corpus, how, quiet, 1 if workers is None else workers, ray)
    else:
        with closing(open_reader(corpus.input, **corpus.reader)) as records:
            embedder = ElmoEmbedder.load(corpus.model, **corpus.options)
            shards = {name: getattr(corpus, name) for name in ("format", "shard_records", "keep_tokens")}
            with progress_bar(lambda: records.n_bytes, quiet) as on_progress:
                done = embed_corpus(embedder, records, target, corpus.output, **shards, **how, on_progress=on_progress)
        computed = f"{embedder.device}, {embedder.precision}"
    if done.skipped:
        lines = [*skipped_records(target, how["num_shards"], how["shard_id"])]
        log_skipped(lines)
        log_unnamed(corpus.input, len(lines))
    if report is not None:
        done.write(report, target, how["num_shards"], how["shard_id"])
    if as_json:
        print(json.dumps({"output": str(target), "computed": computed, **done.to_dict()}, indent=2))
    elif not quiet:
        _print_summary(done, target, computed)


def _embed_with_others(corpus: Corpus, how: dict[str, Any], quiet: bool, n: int, ray: str | None) -> tuple[Report, str]:
    """Embed with n processes, here or on a cluster: the report, and who computed."""
    from flashelmo.engine.bulk.inputs import Input
    from flashelmo.engine.bulk.on_ray import embed_on_ray
    from flashelmo.engine.bulk.workers import embed_with_workers

    corpus = replace(corpus, model=model_path("model", corpus.model))
    how = {name: how[name] for name in ("resume", "overwrite")}
    if ray is not None:
        return embed_on_ray(corpus, n, ray, **how), f"{counted(n, 'actor')} on Ray"
    n_bytes = Input(corpus.input).n_bytes
    with progress_bar(lambda: n_bytes, quiet) as on_progress:
        done = embed_with_workers(corpus, n, **how, on_progress=on_progress)
    return done, "1 process" if n == 1 else f"{n} processes"


def _print_summary(done: Report, target: Path, computed: str) -> None:
    before = f"; {done.kept:,} finished before" if done.kept else ""
    written = f"{target}: {counted(done.shards, 'shard')} written, {readable_size(done.bytes_written)}{before}"
    if not done.shards:  # there is nothing to say of the work
        say(written)
        return
    busy = ", ".join(f"{stage} {seconds / max(done.seconds, 1e-9):.0%}" for stage, seconds in done.busy.items())
    say(
        f"{counted(done.records, 'record')}, {counted(done.tokens, 'token')}, "
        f"{counted(done.words_computed, 'word')} computed"
        + rest_of_summary(done, computed)
        + f"at work: {busy}; the bottleneck is {done.bottleneck}\n{written}"
    )


def verify(folder: Annotated[Path, typer.Argument(help="Folder of shards.")], as_json: Json = False) -> None:
    """Check a folder of shards. Lists what is damaged, missing or unfinished."""
    from flashelmo.engine.bulk.embeddings import open_embeddings
    from flashelmo.engine.bulk.folder import verify as find_problems

    problems = [as_options(problem) for problem in find_problems(folder)]
    if as_json:
        records = None if problems else len(open_embeddings(folder))
        print(json.dumps({"folder": str(folder), "records": records, "problems": problems}, indent=2))
        raise typer.Exit(bool(problems))
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)
    print(f"{folder}: whole, {counted(len(open_embeddings(folder)), 'record')}")
