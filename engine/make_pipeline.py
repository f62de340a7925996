"""The pipeline of a choice: what turns windows into vectors on the CPU, on a device, or on several."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from flashelmo.engine.choice import Choice, make_reference, make_runtime
from flashelmo.engine.cuda.settings import CudaSettings
from flashelmo.engine.devices.pool import DevicePool
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.pipeline import Pipeline, ReferencePipeline, WindowPipeline
from flashelmo.engine.text.schedule import MAX_WINDOW_TOKENS

WINDOW_BYTES = 256 << 20  # of a window's hidden states on the CPU, all layers and directions


class Made(NamedTuple):
    """A pipeline, where and in what it computes now that "auto" is decided, and how many tokens it takes at once."""

    pipeline: WindowPipeline
    device: str
    precision: str
    max_tokens: int


def make_pipeline(
    model: ElmoModel,
    choice: Choice,
    *,
    keep_boundaries: bool,
    share: bool,
    stateful: bool,
    batch_size: int,
    cache_bytes: int,
    window_tokens: int | None,
    threads: int | None,
    cuda: CudaSettings,
) -> Made:
    """Make it; see `ElmoEmbedder.load` for the settings."""
    if choice.runtime == "reference":
        reference = make_reference(model, choice.precision, threads, stateful, batch_size)
        return Made(ReferencePipeline(reference, keep_boundaries), "cpu", choice.precision, MAX_WINDOW_TOKENS)
    if choice.runtime != "cuda":
        on_cpu = Pipeline(
            model,
            make_runtime(model, choice.runtime, choice.precision, threads or 0),
            keep_boundaries=keep_boundaries,
            share=share,
            stateful=stateful,
            cache_bytes=cache_bytes,
        )
        return Made(on_cpu, "cpu", choice.precision, _tokens_at_once(model.config))
    if stateful and len(choice.devices) > 1:
        raise FlashElmoError(f"stateful: expected one device, found {len(choice.devices)}")
    from flashelmo.engine.cuda.pipeline import make_cuda_pipeline

    make = partial(
        make_cuda_pipeline,
        model=model,
        precision=choice.precision,
        keep_boundaries=keep_boundaries,
        share=share,
        stateful=stateful,
        cache_bytes=cache_bytes,
        window_tokens=window_tokens,
        threads=threads,
        settings=cuda,
    )
    if len(choice.devices) > 1:
        pool = DevicePool(make, choice.devices)
        return Made(pool, ", ".join(choice.devices), pool.precision, MAX_WINDOW_TOKENS)
    on_device = make(choice.devices[0])
    return Made(on_device, str(on_device.device), on_device.precision, on_device.max_tokens)


def _tokens_at_once(config: ElmoConfig) -> int:
    return min(MAX_WINDOW_TOKENS, max(1, WINDOW_BYTES // (4 * config.output_size * config.n_layers)))
