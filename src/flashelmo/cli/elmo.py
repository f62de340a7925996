"""The command `flashelmo elmo`: AllenNLP's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flashelmo.cli.arguments import (
    ForgetSentences,
    InputText,
    Json,
    Options,
    Overwrite,
    Quiet,
    SentenceKeys,
    Threads,
    Verbose,
)
from flashelmo.cli.single_file import embed_to_file
from flashelmo.cli.terminal import say
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.system.allocator import return_large_arrays


def elmo(
    input: InputText,
    output: Annotated[Path, typer.Argument(help="Output file: HDF5, whatever its name.")],
    all_layers: Annotated[bool, typer.Option("--all", help="Keep all three layers.")] = False,
    top: Annotated[bool, typer.Option("--top", help="Keep the top layer.")] = False,
    average: Annotated[bool, typer.Option("--average", help="Keep the average of the layers.")] = False,
    vocab_path: Annotated[Path | None, typer.Option(help="No effect, as in AllenNLP.")] = None,
    options_file: Options = None,
    weight_file: Annotated[
        Path | None, typer.Option(help="Weights file, folder or archive of a model, or its name.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per batch; each row carries its state on.")] = 64,
    file_friendly_logging: Annotated[
        bool, typer.Option("--file-friendly-logging", help="Show progress as occasional lines.")
    ] = False,
    threads: Threads = None,
    cuda_device: Annotated[int, typer.Option(min=-1, help="CUDA device number; -1 is the CPU.")] = -1,
    forget_sentences: ForgetSentences = False,
    use_sentence_keys: SentenceKeys = False,
    include_package: Annotated[list[str] | None, typer.Option(help="No effect: no package is needed.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Embed a text as AllenNLP's command `elmo` does. As in 0.9: same flags, same file, state carried on."""
    chosen = [name for name, flag in (("all", all_layers), ("top", top), ("average", average)) if flag]
    if len(chosen) != 1:
        raise FlashElmoError(f"expected one of --all, --top and --average, found {' '.join(chosen) or 'none'}")
    if weight_file is None:
        raise FlashElmoError("--weight-file: expected the weights of a model, or its name, such as original")
    if include_package:
        say("flashelmo: --include-package has no effect")
    return_large_arrays()
    embed_to_file(
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
            "threads": threads,
        },
        sink_settings={
            "overwrite": overwrite,
            "use_sentence_keys": use_sentence_keys,
            "forget_sentences": forget_sentences,
            "always_hdf5": True,
        },
        universal_newlines=True,  # AllenNLP opens the text so
        quiet=quiet,
        in_lines=file_friendly_logging,
        as_json=as_json,
    )
