"""The command `flashelmo`: parses arguments, opens files, prints; the work is the engine's."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from flashelmo import __version__
from flashelmo.arguments import (
    ForgetSentences,
    InputText,
    Options,
    OutputFile,
    Overwrite,
    SentenceKeys,
    parse_layers,
)
from flashelmo.engine.embed_file import Summary, embed_file
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.sinks import open_sink
from flashelmo.engine.text import Errors
from flashelmo.export_command import export
from flashelmo.terminal import (
    InterruptedBySignal,
    fail,
    file_status,
    messages,
    progress_bar,
    readable_size,
    say,
    signals_raise,
)

app = typer.Typer(
    help="ELMo vectors, exact and fast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(export)


@app.command()
def embed(
    input: InputText,
    output: OutputFile,
    model: Annotated[Path, typer.Option(help="Folder, archive or weights file of a model.")],
    options: Options = None,
    layers: Annotated[
        str, typer.Option(metavar="all|top|average|0|1|2|W0,W1,W2", help="Layers to keep; W: their mix.")
    ] = "all",
    dtype: Annotated[str, typer.Option(metavar="float32|float16", help="Number type of the file.")] = "float32",
    pool: Annotated[str | None, typer.Option(metavar="mean", help="One vector a sentence.")] = None,
    precision: Annotated[
        str, typer.Option(metavar="auto|fp32|tf32|bf16|fp16|int8|fp64", help="Of the computation.")
    ] = "auto",
    runtime: Annotated[str, typer.Option(metavar="auto|ort|openvino|reference|cuda", help="What computes.")] = "auto",
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|cuda:0,cuda:1", help="Where it computes; on each of several.")
    ] = "auto",
    stateful: Annotated[bool, typer.Option("--stateful", help="Carry the state on, as AllenNLP does.")] = False,
    batch_size: Annotated[int, typer.Option(help="Rows of stateful batches.")] = 64,
    threads: Annotated[int | None, typer.Option(help="Processor threads; all cores if not set.")] = None,
    errors: Annotated[str, typer.Option(metavar="strict|replace", help="For bytes that are not UTF-8.")] = "strict",
    keep_sentence_boundaries: Annotated[
        bool, typer.Option("--keep-sentence-boundaries", help="Keep the vectors of begin and end of sentence.")
    ] = False,
    use_sentence_keys: SentenceKeys = False,
    forget_sentences: ForgetSentences = False,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")] = False,
) -> None:
    """Embed a text into a file of vectors, in the layout of AllenNLP's command."""
    _embed(
        input,
        output,
        Output(parse_layers(layers), dtype, pool),
        model,
        settings={
            "options_file": options,
            "precision": precision,
            "runtime": runtime,
            "device": device.split(",") if "," in device else device,
            "stateful": stateful,
            "batch_size": batch_size,
            "threads": threads,
            "keep_sentence_boundaries": keep_sentence_boundaries,
        },
        sink_settings={
            "overwrite": overwrite,
            "use_sentence_keys": use_sentence_keys,
            "forget_sentences": forget_sentences,
        },
        errors=errors,
        quiet=quiet,
    )


@app.command()
def elmo(
    input: InputText,
    output: OutputFile,
    all_layers: Annotated[bool, typer.Option("--all", help="Keep all three vectors of a token.")] = False,
    top: Annotated[bool, typer.Option("--top", help="Keep the top vector.")] = False,
    average: Annotated[bool, typer.Option("--average", help="Keep the average of the vectors.")] = False,
    vocab_path: Annotated[Path | None, typer.Option(help="Without effect, as in AllenNLP.")] = None,
    options_file: Options = None,
    weight_file: Annotated[Path | None, typer.Option(help="Weights, or anything that holds a model.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows of a batch; the state is carried on by row.")] = 64,
    file_friendly_logging: Annotated[
        bool, typer.Option("--file-friendly-logging", help="Progress in lines, and fewer of them.")
    ] = False,
    cuda_device: Annotated[int, typer.Option(min=-1, help="Number of a CUDA device; -1 is the processor.")] = -1,
    forget_sentences: ForgetSentences = False,
    use_sentence_keys: SentenceKeys = False,
    overwrite: Overwrite = False,
) -> None:
    """Do what AllenNLP's command `elmo` does (0.9): same flags, same file, the state carried from batch to batch."""
    chosen = [name for name, flag in (("all", all_layers), ("top", top), ("average", average)) if flag]
    if len(chosen) != 1:
        raise FlashElmoError(f"expected one of --all, --top and --average, found {' '.join(chosen) or 'none'}")
    if weight_file is None:
        raise FlashElmoError("--weight-file: expected the weights of a model; none are downloaded")
    _embed(
        input,
        output,
        Output(chosen[0]),
        weight_file,
        settings={
            "options_file": options_file,
            "device": "cpu" if cuda_device < 0 else f"cuda:{cuda_device}",
            "precision": "fp32",  # as AllenNLP's
            "stateful": True,
            "batch_size": batch_size,
        },
        sink_settings={
            "overwrite": overwrite,
            "use_sentence_keys": use_sentence_keys,
            "forget_sentences": forget_sentences,
        },
        in_lines=file_friendly_logging,
    )


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Model of any format.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write.")],
    options: Options = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a model of any format to the native one, which is memory-mapped and loads fastest."""
    from flashelmo.engine.checkpoints.convert import convert as convert_model

    model = convert_model(source, destination, options_file=options, overwrite=overwrite)
    say(f"{destination}: {model.weights.n_parameters:,} parameters from {model.format}")


@app.command()
def info(
    model: Annotated[Path, typer.Argument(help="Model of any format.")],
    options: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a model's dimensions, parameters, source format and sha256."""
    from flashelmo.engine.checkpoints import load_model
    from flashelmo.engine.checkpoints.convert import describe

    facts = describe(load_model(model, options))
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    files = facts.pop("files", [])
    for name, value in facts.items():
        print(f"{name}: {f'{value:,}' if type(value) is int else value}")
    for file in files:
        print(f"{file['name']}: {readable_size(file['bytes'])}, sha256 {file['sha256']}")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    preset: Annotated[str, typer.Option(metavar="small|medium|original", help="A published size.")] = "small",
    seed: Annotated[int, typer.Option(min=0, help="Of the random weights.")] = 0,
    format: Annotated[str, typer.Option(metavar="hdf5|native", help="Of the files.")] = "native",
    overwrite: Overwrite = False,
) -> None:
    """Write a model with random weights at a published size."""
    from flashelmo.engine.checkpoints.bilm import write_bilm
    from flashelmo.engine.checkpoints.native import write_native
    from flashelmo.engine.initialize import random_model

    if format not in ("hdf5", "native"):
        raise FlashElmoError(f"--format: expected hdf5 or native, found {format!r}")
    model = random_model(preset, seed)
    if format == "hdf5":
        write_bilm(model, folder, overwrite=overwrite)
    else:
        write_native(model, folder, overwrite=overwrite)
    say(f"{folder}: {model.weights.n_parameters:,} random parameters")


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Measure the engine against the reference and this machine's limits; `flashelmo bench --help` has the options."""
    from flashelmo.benchmarks.compare import main as compare

    raise typer.Exit(compare(context.args))


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """ELMo vectors, exact and fast."""
    if show:
        print(f"flashelmo {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status. What a user can cause is one line on standard error."""
    try:
        with signals_raise():
            app(arguments, prog_name="flashelmo")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except FlashElmoError as error:
        return fail(str(error), 1)
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename is not None else str(error), 1)
    except MemoryError:
        return fail("not enough memory", 1)
    except InterruptedBySignal as interrupt:
        return fail("interrupted", 128 + interrupt.number)
    return 0


def _embed(
    source: str,
    target: Path,
    output: Output,
    model: Path,
    settings: dict[str, Any],
    sink_settings: dict[str, bool],
    errors: str = "strict",
    quiet: bool = False,
    in_lines: bool = False,
) -> None:
    """Open the files, load the model, embed; the cheap mistakes come to light first."""
    with _open_input(source) as file:
        status = file_status(file)
        if status is not None and target.exists() and os.path.samestat(status, target.stat()):
            raise FlashElmoError(f"{target}: is the text itself")
        with open_sink(target, output, **sink_settings) as sink:
            from flashelmo.engine.embedder import ElmoEmbedder

            with messages(quiet):
                embedder = ElmoEmbedder.load(model, **settings)
                with progress_bar(file, quiet, in_lines) as on_progress:
                    summary = embed_file(embedder, file, sink, errors=cast(Errors, errors), on_progress=on_progress)
    if not quiet:
        _print_summary(summary, target, f"{embedder.device}, {embedder.precision}")


def _open_input(source: str) -> Any:
    return nullcontext(sys.stdin.buffer) if source == "-" else open(source, "rb")


def _print_summary(summary: Summary, target: Path, computed: str) -> None:
    all_steps = summary.steps + summary.steps_saved
    saved = summary.steps_saved / all_steps if all_steps else 0.0
    say(
        f"{summary.sentences:,} sentences, {summary.tokens:,} tokens, "
        f"{summary.distinct_words:,} distinct words (boundaries included)\n"
        f"{summary.steps:,} of {all_steps:,} steps, {saved:.1%} saved by sharing\n"
        f"{summary.seconds:,.1f} s, {summary.tokens_per_second:,.0f} tokens/s ({computed})\n"
        f"{target}: {readable_size(target.stat().st_size)}"
    )


if __name__ == "__main__":
    sys.exit(main())
