"""`ElmoEmbedder.encode`: sentence vectors with sentence-transformers' interface."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import cache
from typing import Any

from flashelmo.engine.arguments import flag, is_one_of, shown
from flashelmo.engine.arrays import Array
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Layers, Mix, Output, normalize, stack
from flashelmo.engine.settings import Device, device_name
from flashelmo.engine.text.sentences import Sentence, several

logger = logging.getLogger("flashelmo")


def encode(
    embed: Callable[[Iterator[Sentence | str], Output], Iterator[Any]],
    sentences: str | Iterable[Sentence | str],
    *,
    none: Callable[[], Array],
    output_value: str,
    layers: Layers,
    mix: Mix | None,
    normalize_embeddings: bool,
    as_numpy: bool = True,
    show_progress_bar: bool | None = False,
) -> Any:
    """Do the work of `ElmoEmbedder.encode` and `Client.encode`, which document arguments, shapes and errors.

    Args:
        embed: yields each sentence's result, a numpy array if `as_numpy`, else a PyTorch tensor.
        none: makes the sentence embeddings of no sentences, [0, 2P].
    """
    pooled = is_pooled(output_value)
    unit = flag("normalize_embeddings", normalize_embeddings)
    show = show_progress_bar is not None and flag("show_progress_bar", show_progress_bar)
    output = Output(layers, pool="mean" if pooled else None, mix=mix)
    if not output.single:
        raise FlashElmoError(f"layers: expected 'average', 'top' or a layer's number, found {shown(layers)}")
    batch: Iterable[Sentence | str] = [sentences] if isinstance(sentences, str) else sentences
    stream = embed(several("sentences", batch), output)
    if show:
        from tqdm import tqdm

        total = len(batch) if isinstance(batch, Sized) else None
        stream = tqdm(stream, total=total, unit="sentence", disable=sys.stderr is None)
    results = [normalize(vectors) if unit else vectors for vectors in stream]
    if isinstance(sentences, str):
        return results[0]
    return stack(results, none, as_numpy) if pooled else results


def is_pooled(output_value: Any) -> bool:
    """Whether "sentence_embedding" is requested, not "token_embeddings"; FlashElmoError if it is neither."""
    if not is_one_of(output_value, "sentence_embedding", "token_embeddings"):
        expected = "'sentence_embedding' or 'token_embeddings'"
        raise FlashElmoError(f"output_value: expected {expected}, found {shown(output_value)}")
    return bool(output_value == "sentence_embedding")


def check_foreign(embedders_device: str, device: Device | None, precision: Any, prompt_name: str | None) -> None:
    """Check sentence-transformers' arguments that have no effect here.

    Args:
        embedders_device: where the embedder computes.
        device, precision, prompt_name: as they were given.

    Raises:
        FlashElmoError: another device, or a precision other than "float32".
    """
    name = embedders_device if device is None else device_name("device", device)
    if name not in ("auto", embedders_device, embedders_device.partition(":")[0]):
        raise FlashElmoError(f"device: expected {embedders_device}, for which this embedder was made, found {name!r}")
    if not is_one_of(precision, "float32"):
        expected = "expected 'float32'; quantize the vectors afterwards"
        raise FlashElmoError(f"precision: {expected}, found {shown(precision)}")
    if prompt_name is not None:
        _warn_of_prompts()


@cache
def _warn_of_prompts() -> None:
    logger.warning("prompt_name: ELMo has no prompts; it has no effect")
