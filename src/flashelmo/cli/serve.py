"""The command `flashelmo serve`."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from flashelmo.cli.arguments import (
    BatchInvariant,
    Devices,
    KeepBoundaries,
    Options,
    Precision,
    Quiet,
    Runtime,
    Threads,
    Tokenizer,
    WordCache,
    parse_numbers,
)
from flashelmo.cli.terminal import say
from flashelmo.engine.arguments import check, path_of
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.named.locate import model_path


def serve(
    model: Annotated[Path | None, typer.Argument(help="Model or its name; default: the bundled one.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8080,
    options: Options = None,
    name: Annotated[str, typer.Option(help="Model name for clients; default: its folder's name.")] = "",
    tokenizer: Tokenizer = "whitespace",
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    device: Devices = "auto",
    threads: Threads = None,
    word_cache: WordCache = None,
    batch_invariant: BatchInvariant = False,
    keep_sentence_boundaries: KeepBoundaries = False,
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens per batch; default: 2,048 on the CPU, 32,768 on a GPU.")
    ] = None,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="Longest time a request waits to be batched.")] = 10.0,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests in flight; further ones get 429.")] = 512,
    max_sentences: Annotated[int, typer.Option(min=1, help="Sentences per request.")] = 1024,
    max_sentence_tokens: Annotated[int, typer.Option(min=1, help="Tokens per sentence.")] = 2048,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Bytes per request body.")] = 8 << 20,
    max_result_bytes: Annotated[int, typer.Option(min=1, help="Bytes of all vectors in flight.")] = 1 << 30,
    max_seconds: Annotated[int, typer.Option(min=1, help="Seconds per request, answer included.")] = 120,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the API key that clients must send.")] = None,
    ray: Annotated[str | None, typer.Option(metavar="local|auto|ADDRESS", help="Serve on a Ray cluster.")] = None,
    replicas: Annotated[
        str | None, typer.Option(metavar="N|FEWEST,MOST", help="With --ray: number of replicas, or its range.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Serve a model's vectors over HTTP; see docs/serving.md."""
    from flashelmo.engine.settings import CudaSettings
    from flashelmo.serve.limits import Limits
    from flashelmo.serve.on_ray import serve_on_ray
    from flashelmo.serve.server import serve as run
    from flashelmo.serve.service import ServiceSettings

    computed: dict[str, Any] = {
        "options_file": options,
        "precision": precision,
        "runtime": runtime,
        "device": device.split(",") if "," in device else device,
        "threads": threads,
        "word_cache": word_cache,
        "keep_sentence_boundaries": keep_sentence_boundaries,
        "cuda": CudaSettings(batch_invariant=batch_invariant),
    }
    limits = Limits(
        body_bytes=max_body_bytes,
        sentences=max_sentences,
        sentence_tokens=max_sentence_tokens,
        requests=max_requests,
        result_bytes=max_result_bytes,
        seconds=max_seconds,
    )
    settings = ServiceSettings(
        model_path("model", model), computed, name, tokenizer, max_batch_tokens, max_wait_ms, _key(api_key_file), limits
    )
    if replicas is not None and ray is None:
        raise FlashElmoError("--replicas: requires --ray")
    tell: Callable[[str], None] = (lambda text: None) if quiet else say
    if ray is None:
        run(settings, host, port, tell)
    else:
        serve_on_ray(settings, host, port, ray, _replicas(replicas or "1"), tell)


def _replicas(text: str) -> tuple[int, int]:
    """The fewest and the most."""
    numbers = parse_numbers("--replicas", text)
    check(len(numbers) <= 2, "--replicas", "a number, or the fewest and the most", text)
    return numbers[0], numbers[-1]


def _key(path: Path | None) -> str:
    """The key that a file holds alone."""
    if path is None:
        return ""
    data = path_of("--api-key-file", path).read_bytes().removeprefix(codecs.BOM_UTF8)
    key = data.decode("ascii", "replace").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise FlashElmoError(f"{path}: expected one line of a key in ASCII, found something else")
    return key
