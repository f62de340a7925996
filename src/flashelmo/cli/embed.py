"""The command `flashelmo embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flashelmo.cli.arguments import (
    BatchInvariant,
    Devices,
    Field,
    ForgetSentences,
    IdField,
    InputFormat,
    InputText,
    Json,
    KeepBoundaries,
    Model,
    Options,
    Overwrite,
    Precision,
    Quiet,
    Runtime,
    SentenceKeys,
    Threads,
    Tokenizer,
    Verbose,
    WordCache,
    complete_layers,
    parse_coefficients,
    parse_layers,
)
from flashelmo.cli.bulk import check_beside, embed_to_folder, is_folder
from flashelmo.cli.single_file import embed_records_to, embed_to_file
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.named.locate import bundled
from flashelmo.engine.output import Output
from flashelmo.engine.settings import CudaSettings
from flashelmo.engine.system.allocator import return_large_arrays


def embed(
    input: InputText,
    output: Annotated[Path, typer.Argument(help="Output: folder of shards, or file: .h5 (HDF5) or .npz.")],
    model: Model = None,
    options: Options = None,
    layers: Annotated[
        str,
        typer.Option(
            metavar="all|top|average|0|0,2",
            help="Layers to keep; 0 is the character layer.",
            autocompletion=complete_layers,
        ),
    ] = "all",
    mix: Annotated[
        str | None, typer.Option(metavar="W0,W1,W2", help="Keep the weighted sum of the layers, with these weights.")
    ] = None,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="Number type of the output.")] = "float32",
    pool: Annotated[Literal["mean", "max"] | None, typer.Option(help="Pool to one vector per sentence.")] = None,
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    device: Devices = "auto",
    stateful: Annotated[bool, typer.Option("--stateful", help="Carry the state on, as AllenNLP does.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Rows per stateful batch; default: 64.")] = None,
    threads: Threads = None,
    window_tokens: Annotated[
        int | None, typer.Option(help="Tokens per window; larger windows share more steps and take more memory.")
    ] = None,
    word_cache: WordCache = None,
    batch_invariant: BatchInvariant = False,
    errors: Annotated[
        Literal["strict", "replace", "skip"], typer.Option(help="What to do with unreadable records.")
    ] = "strict",
    keep_sentence_boundaries: KeepBoundaries = False,
    use_sentence_keys: SentenceKeys = False,
    forget_sentences: ForgetSentences = False,
    overwrite: Overwrite = False,
    format: Annotated[
        Literal["native", "parquet", "seqvec"] | None,
        typer.Option(help="Format of an output folder: shards (default: native) or SeqVec's files."),
    ] = None,
    input_format: InputFormat = None,
    field: Field = None,
    id_field: IdField = None,
    tokenizer: Tokenizer = "whitespace",
    resume: Annotated[bool, typer.Option("--resume", help="Continue with the existing shards.")] = False,
    num_shards: Annotated[int | None, typer.Option(help="Number of array jobs that write to one folder.")] = None,
    shard_id: Annotated[int | None, typer.Option(help="Index of this job in the array, from 0.")] = None,
    shard_records: Annotated[int | None, typer.Option(help="Records per shard; default: about 1 GiB.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of processes, which share the cores; with --ray, of actors.")
    ] = None,
    ray: Annotated[str | None, typer.Option(metavar="local|auto|ADDRESS", help="Embed on a Ray cluster.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a JSON report of the run to this file.")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Embed a text into a folder of shards or a single file. Files have AllenNLP's layout."""
    if batch_size is not None and not stateful and runtime != "reference":
        raise FlashElmoError("--batch-size: requires --stateful; without it, the engine chooses the batches")
    return_large_arrays()
    kept = Output(parse_layers(layers), dtype, pool, None if mix is None else parse_coefficients("--mix", mix))
    settings = {
        "options_file": options,
        "precision": precision,
        "runtime": runtime,
        "device": device.split(",") if "," in device else device,
        "stateful": stateful,
        "batch_size": 64 if batch_size is None else batch_size,
        "threads": threads,
        "word_cache": word_cache,
        "window_tokens": window_tokens,
        "keep_sentence_boundaries": keep_sentence_boundaries,
        "cuda": CudaSettings(batch_invariant=batch_invariant),
    }
    reader = {
        "format": input_format,
        "field": field,
        "id_field": id_field,
        "tokenizer": tokenizer,
        "errors": errors,
    }
    sink_settings = {
        "overwrite": overwrite,
        "use_sentence_keys": use_sentence_keys,
        "forget_sentences": forget_sentences,
    }
    into_seqvec = format == "seqvec"
    into_shards = not into_seqvec and is_folder(output, format)
    if word_cache is not None:
        check_beside("--word-cache", word_cache, output, all_in_it=into_seqvec)
        if report is not None:
            check_beside("--report", report, word_cache, what="the word cache")
    if use_sentence_keys and (into_seqvec or into_shards):
        raise FlashElmoError("--use-sentence-keys: requires a single file as output; folders keep the records' own ids")
    if not into_shards:
        from flashelmo.engine.bulk.records import is_plain_text

        for_shards = {
            "--format": None if into_seqvec else format,
            "--resume": resume or None,
            "--num-shards": num_shards,
            "--shard-id": shard_id,
            "--shard-records": shard_records,
            "--workers": workers,
            "--ray": ray,
            "--report": report,
        }
        for name in (name for name, value in for_shards.items() if value is not None):
            expected = "a folder of shards as output (no suffix, or --format native)"
            raise FlashElmoError(f"{name}: expected {expected}, found {output}")
        is_plain = not (into_seqvec or field or id_field or input_format or errors == "skip")
        if is_plain and tokenizer == "whitespace" and is_plain_text(input):
            embed_to_file(input, output, kept, model, settings, sink_settings, errors, quiet=quiet, as_json=as_json)
            return
    from flashelmo.engine.bulk.units import Corpus

    corpus = Corpus(
        bundled() if model is None else model,
        input,
        output,
        kept,
        "parquet" if format == "parquet" else "native",
        shard_records,
        keep_tokens=not forget_sentences,
        reader=reader,
        options=settings,
    )
    if into_shards:
        of_array = {"--num-shards": num_shards, "--shard-id": shard_id}
        there = [name for name, value in of_array.items() if value is not None]
        if there and (workers is not None or ray is not None):
            raise FlashElmoError(
                f"{there[0]}: not allowed with --workers or --ray, which deal out the shards themselves"
            )
        if len(there) == 1:
            (missing,) = of_array.keys() - there
            raise FlashElmoError(f"{missing}: required with {there[0]}")
        how = {
            "resume": resume,
            "overwrite": overwrite,
            "num_shards": 1 if num_shards is None else num_shards,
            "shard_id": 0 if shard_id is None else shard_id,
        }
        embed_to_folder(corpus, how, report, quiet, workers, ray, as_json)
    else:
        embed_records_to(corpus, sink_settings, into_seqvec, quiet, as_json)
