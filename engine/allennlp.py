"""How AllenNLP's callers make an embedder (0.9, `allennlp.commands.elmo.ElmoEmbedder`), and the batches they get."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flashelmo.engine.arguments import path_of
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.settings import Options, device_name

if TYPE_CHECKING:
    from torch import Tensor


def files_of(first: Any, weight_file: Any, options_file: Any) -> tuple[Path, Path | None]:
    """Return the model's path, and that of its options if it is given.

    Args:
        first: the first positional argument: the model, or AllenNLP's options file before a weights file.
    """
    if weight_file is None:
        if first is None and options_file is None:
            raise FlashElmoError("model: expected a path, a name or a model in memory, found none")
        if first is None:  # a whole model under AllenNLP's name, or only options, which `load_model` reports
            return path_of("options_file", options_file), None
        return path_of("model", first), None if options_file is None else path_of("options_file", options_file)
    if first is not None and options_file is not None:
        raise FlashElmoError("options_file: expected one, found two")
    options_file = options_file if first is None else first
    return path_of("weight_file", weight_file), None if options_file is None else path_of("options_file", options_file)


def with_defaults(weight_file: Any, cuda_device: Any, options: Options) -> Options:
    """Return the options of an embedder made as AllenNLP's: on the processor, in float32, unless they say otherwise."""
    if weight_file is None and cuda_device is None:
        return options
    if cuda_device is not None and "device" in options:
        raise FlashElmoError(f"cuda_device: expected none together with device, found {cuda_device!r:.60}")
    device = device_name("cuda_device", -1 if cuda_device is None else cuda_device)
    return cast(Options, {"device": device, "precision": "fp32", **options})


def padded(vectors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return sentences [L, T, 2P] as one batch [B, L, T, 2P], zero beyond sentences' ends, and a mask int64 [B, T]."""
    import torch

    longest = max(each.shape[1] for each in vectors)
    batch = vectors[0].new_zeros(len(vectors), vectors[0].shape[0], longest, vectors[0].shape[2])
    mask = torch.zeros(len(vectors), longest, dtype=torch.long, device=batch.device)
    for row, (each, length) in enumerate((each, each.shape[1]) for each in vectors):
        batch[row, :, :length] = each
        mask[row, :length] = 1
    return batch, mask
