"""The command `flashelmo embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flashelmo.cli.arguments import (
    BadRecords,
    BatchInvariant,
    DType,
    ForgetSentences,
    InputText,
    Json,
    KeepBoundaries,
    Options,
    Overwrite,
    Pool,
    Precision,
    Quiet,
    Runtime,
    SentenceKeys,
    Threads,
    Verbose,
    WordCache,
    complete_devices,
    complete_layers,
    complete_names,
    parse_coefficients,
    parse_layers,
)
from flashelmo.cli.bulk import (
    Field,
    IdField,
    InputFormat,
    NumShards,
    Ray,
    ReportFile,
    Resume,
    ShardFormat,
    ShardId,
    ShardRecords,
    Tokenizer,
    Workers,
    check_beside,
    embed_to_folder,
    is_folder,
)
from flashelmo.cli.single_file import embed_records_to, embed_to_file
from flashelmo.cli.terminal import warnings_to_stderr
from flashelmo.engine.allocator import return_large_arrays
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.named.locate import bundled
from flashelmo.engine.output import Output
from flashelmo.engine.settings import CudaSettings


def embed(
    input: InputText,
    output: Annotated[Path, typer.Argument(help="Output: folder of shards, or file: .h5 (HDF5) or .npz.")],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Model: folder, archive, weights file or name; default: the bundled one.",
            autocompletion=complete_names,
        ),
    ] = None,
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
    dtype: Annotated[DType, typer.Option(help="Number type of the output.")] = "float32",
    pool: Annotated[Pool | None, typer.Option(help="Pool to one vector per sentence.")] = None,
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda|cuda:0,cuda:1",
            help="Device to compute on, or several.",
            autocompletion=complete_devices,
        ),
    ] = "auto",
    stateful: Annotated[bool, typer.Option("--stateful", help="Carry the state on, as AllenNLP does.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Rows per stateful batch; default: 64.")] = None,
    threads: Threads = None,
    window_tokens: Annotated[
        int | None, typer.Option(help="Tokens per window; larger windows share more steps and take more memory.")
    ] = None,
    word_cache: WordCache = None,
    batch_invariant: BatchInvariant = False,
    errors: Annotated[BadRecords, typer.Option(help="What to do with unreadable records.")] = "strict",
    keep_sentence_boundaries: KeepBoundaries = False,
    use_sentence_keys: SentenceKeys = False,
    forget_sentences: ForgetSentences = False,
    overwrite: Overwrite = False,
    format: ShardFormat = None,
    input_format: InputFormat = None,
    field: Field = None,
    id_field: IdField = None,
    tokenizer: Tokenizer = None,
    resume: Resume = False,
    num_shards: NumShards = None,
    shard_id: ShardId = None,
    shard_records: ShardRecords = None,
    workers: Workers = None,
    ray: Ray = None,
    report: ReportFile = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Embed a text into a folder of shards or a single file. Files have AllenNLP's layout."""
    if batch_size is not None and not stateful and runtime != "reference":
        raise FlashElmoError("--batch-size: requires --stateful; without it, the engine chooses the batches")
    return_large_arrays()
    with warnings_to_stderr(quiet):
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
        "tokenizer": tokenizer or "whitespace",
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
        of_records = into_seqvec or field or id_field or tokenizer or input_format or errors == "skip"
        if not of_records and is_plain_text(input):
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
