"""The command `flashelmo train`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashelmo.cli.arguments import Device, Overwrite, Quiet, Threads, log_less
from flashelmo.cli.terminal import StatusLine, say
from flashelmo.engine.arguments import FLOAT32_MAX, check
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.system.threads import openmp_polls_briefly

if TYPE_CHECKING:
    from flashelmo.engine.training.trainer import OnTrainProgress, Progress


def train(
    corpus: Annotated[list[Path], typer.Argument(help="Texts: one tokenized sentence per line.")],
    output: Annotated[Path, typer.Option(help="Output folder; checkpoints go to OUTPUT.training next to it.")],
    preset: Annotated[
        str | None, typer.Option(metavar="tiny|small|medium|original", help="Size of the new model; default: tiny.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Or its options.json (bilm-tf) or config.json (native).")] = None,
    start: Annotated[Path | None, typer.Option("--from", help="Or a model to continue from.")] = None,
    heldout: Annotated[Path | None, typer.Option(help="Text to measure perplexity on.")] = None,
    heldout_share: Annotated[float, typer.Option(help="Or the fraction of sentences to hold out for that.")] = 0.0,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Softmax words, one per line, <S>, </S> and <UNK> first.")
    ] = None,
    min_count: Annotated[int, typer.Option(help="Rarer words become <UNK> in the softmax.")] = 1,
    max_words: Annotated[int | None, typer.Option(help="Largest number of softmax words.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Length of training in epochs; 10 if no length is set.")] = None,
    steps: Annotated[int | None, typer.Option(help="Or in steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Or in minutes.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Or in seconds.")] = None,
    batch: Annotated[int, typer.Option(help="Streams of sentences per process.")] = 128,
    unroll: Annotated[int, typer.Option(help="Time steps to backpropagate through.")] = 20,
    negatives: Annotated[int, typer.Option(help="Negative samples of the softmax; 0 is the full softmax.")] = 8192,
    dropout: Annotated[float, typer.Option(help="Dropout rate of each layer's inputs.")] = 0.1,
    optimizer: Annotated[str, typer.Option(metavar="adam|adagrad", help="Optimizer; adagrad as published.")] = "adam",
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default: 0.002, for adagrad 0.2.")] = None,
    warm_up: Annotated[float, typer.Option(help="Fraction of the run in which the rate rises.")] = 0.02,
    clip: Annotated[float, typer.Option(help="Gradient norm to clip at.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    precision: Annotated[str, typer.Option(metavar="auto|fp32|bf16", help="Precision of matrix products.")] = "auto",
    device: Device = "auto",
    threads: Threads = None,
    no_cuda_graph: Annotated[bool, typer.Option("--no-cuda-graph", help="Launch GPU kernels one by one.")] = False,
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 300.0,
    log_every: Annotated[int, typer.Option(help="Steps between points of the training curve.")] = 20,
    snapshots: Annotated[int, typer.Option(help="Model folders to save, evenly spaced over the run.")] = 0,
    dtype: Annotated[
        str, typer.Option(metavar="float32|float16", help="Number type of the saved weights.")
    ] = "float32",
    license_text: Annotated[
        Path | None, typer.Option(help="File with the texts' licences, for the model card.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on text, or continue training one. A run that was killed resumes when started again."""
    openmp_polls_briefly()
    from flashelmo.engine.model.initialize import preset_config
    from flashelmo.engine.training.processes import named_processes
    from flashelmo.engine.training.settings import TrainSettings
    from flashelmo.engine.training.task import Task, use_threads
    from flashelmo.engine.training.trainer import train as run

    given = [
        name for name, value in (("--preset", preset), ("--config", config), ("--from", start)) if value is not None
    ]
    if len(given) > 1:
        raise FlashElmoError(f"{given[1]}: expected one of --preset, --config and --from, found {' and '.join(given)}")
    if minutes is not None and seconds is not None:
        raise FlashElmoError("--seconds: expected one of --minutes and --seconds, found both")
    if minutes is not None:
        check(0 < minutes <= FLOAT32_MAX / 60, "--minutes", "a positive number in float32's range", minutes)
    chosen = None
    if start is None:
        chosen = preset_config(preset or "tiny") if config is None else read_config(config)
    settings = TrainSettings(
        batch=batch, unroll=unroll, negatives=negatives, dropout=dropout, optimizer=optimizer, lr=lr, clip=clip,
        warm_up=warm_up, epochs=epochs, steps=steps, seconds=seconds if minutes is None else 60 * minutes, seed=seed,
        min_count=min_count, max_words=max_words, heldout_share=heldout_share, precision=precision, device=device,
        cuda_graph=not no_cuda_graph, save_every=save_every, log_every=log_every, snapshots=snapshots,
    )  # fmt: skip
    use_threads(threads)
    task = Task(
        corpus, output, chosen, start, heldout, vocabulary,
        "" if license_text is None else read_text(license_text),
        shlex.join(["flashelmo", *map(_without_folder, sys.argv[1:])]), dtype, overwrite,
    )  # fmt: skip
    quiet = log_less(quiet or not named_processes().writes)
    with _progress(quiet) as on_progress:
        record = run(task, settings, on_progress)
    if not quiet and record.points:
        last = record.points[-1]
        say(f"{last.step:,} steps, {last.tokens:,} tokens, {last.seconds:,.1f} s ({record.run['device']})")
        for evaluation in record.evaluations[-1:]:
            say(
                f"{evaluation.text}: perplexity {evaluation.forward:.1f} forward, {evaluation.backward:.1f} backward; "
                f"{evaluation.unknown:.2%} unknown to the softmax"
            )
        say(f"{output}: the model; {task.work}: checkpoints, which may be deleted")


def _without_folder(argument: str) -> str:
    """A path's last part: the card says nothing of its maker's folders."""
    return argument if argument.startswith("-") else Path(argument).name


def read_text(path: Path) -> str:
    """A whole file in UTF-8, without the byte order mark; FlashElmoError where it is something else."""
    from flashelmo.engine.text.lines import check_utf8, without_mark

    return check_utf8(without_mark(path.read_bytes(), str(path)), "strict", str(path), 0).decode("utf-8")


def read_config(path: Path) -> ElmoConfig:
    """A configuration from bilm-tf's options.json or a native config.json."""
    from flashelmo.engine.model.checkpoints.files import read_json
    from flashelmo.engine.model.checkpoints.options import read_options

    values = read_json(path)
    if "lstm" in values:
        return read_options(values, {}, path)
    kept = {name: value for name, value in values.items() if name not in ("format_version", "source_format")}
    return ElmoConfig.from_dict(kept, str(path))


@contextmanager
def _progress(quiet: bool) -> Iterator[OnTrainProgress | None]:
    """How far the run is, in a `StatusLine`."""
    if quiet:
        yield None
        return
    from tqdm import tqdm

    status = StatusLine(in_lines=False, now=time.monotonic())

    def show(progress: Progress) -> None:
        if not status.is_due(time.monotonic()):
            return
        point, left = progress.point, tqdm.format_interval(progress.left)
        text = f"{left} left, perplexity {point.forward:.1f} forward, {point.backward:.1f} backward"
        text = f"step {point.step:,}, {text}, {progress.tokens_per_second:,.0f} tokens/s"
        bar_format = f"{{percentage:3.0f}}%|{{bar:20}}| {text}"
        status.show(tqdm.format_meter(1000 * progress.done, 1000, 0, ascii=True, bar_format=bar_format))

    try:
        yield show
    finally:
        status.clear()
