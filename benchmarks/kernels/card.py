"""What a card can do at best: by its data sheet, by what the device says, and as measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
from rich.console import Console

from flashelmo.benchmarks import machine
from flashelmo.benchmarks.results import Results, new_results
from flashelmo.benchmarks.run import Run, slug
from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.errors import FlashElmoError

CARD = "card"  # in place of the model where a row is of none
RUN_OPTIONS = ("out", "models", "rounds", "seed", "limit_seconds", "commit")  # of every run on a card


@dataclass(frozen=True)
class Card:
    """What a GPU can do at best.

    Attributes:
        name: part of what CUDA calls it.
        half, tf32, fp32: floating-point operations a second of dense products of 16 bits, in TF32, and by FFMA.
        memory, l2: bytes a second.
        l2_bytes: size of the L2 cache.
        multiprocessors: their number.
        launch: microseconds from one kernel's last program to the next one's first, inside a CUDA graph.
    """

    name: str
    half: float
    tf32: float
    fp32: float
    memory: float
    l2: float
    l2_bytes: float
    multiprocessors: int
    launch: float

    @property
    def is_hopper(self) -> bool:
        """Whether it is one of sm_90."""
        return self.name.startswith(("H100", "H200"))

    def peak(self, precision: str) -> float:
        """Operations a second in a precision; 8-bit products are counted as 16-bit ones, which take twice as long."""
        if precision in ("fp32", "tf32"):
            return self.fp32 if precision == "fp32" else self.tf32
        return self.half

    def with_limit(self, limit: str, figure: float | None) -> Card:
        """The card with a limit that was measured: a field's name and units a second; None leaves it as it is.

        The L2 cache's is a copy's: products, which only read, may get more, but not less.
        """
        found: dict[str, Any] = {limit: max(self.l2, figure) if limit == "l2" else figure} if figure else {}
        return replace(self, **found)


# Dense rates with float32 sums, and memory, from the vendor's data sheets, but for what is said beside them. No data
# sheet gives L2 bandwidth and launch: A100's whitepaper gives 5,120 bytes a clock, of which published
# microbenchmarks reach six tenths; for other cards the L2 bandwidth, and all launches, are estimates.
CARDS = (
    # half and memory: measured, with a product of 8192 x 8192 x 8192 and a copy (data sheet: 989e12, 4.8e12).
    Card("H200", 790e12, 494e12, 67e12, 4.3e12, 5.5e12, 50e6, 132, 1.3),
    Card("H100 PCIe", 756e12, 378e12, 51e12, 2.0e12, 5.5e12, 50e6, 114, 1.3),  # NVIDIA H100 data sheet
    Card("H100", 989e12, 494e12, 67e12, 3.35e12, 5.5e12, 50e6, 132, 1.3),  # the same, SXM
    Card("A100-SXM4-40GB", 312e12, 156e12, 19.5e12, 1.555e12, 4.3e12, 40e6, 108, 1.5),  # NVIDIA A100 data sheet
    Card("A100", 312e12, 156e12, 19.5e12, 2.039e12, 4.3e12, 40e6, 108, 1.5),  # the same, 80 GB SXM
    Card("L4", 121e12, 60e12, 30.3e12, 0.3e12, 1.8e12, 48e6, 58, 1.5),  # NVIDIA L4 data sheet, without sparsity
    Card("RTX 4090", 165e12, 82.6e12, 82.6e12, 1.008e12, 5e12, 72e6, 128, 1.5),  # NVIDIA Ada whitepaper, app. A
    Card("B200", 2250e12, 1125e12, 75e12, 8e12, 10e12, 126e6, 148, 1.3),  # NVIDIA DGX B200 data sheet, an eighth
    Card("RTX 5090", 209.5e12, 104.8e12, 104.8e12, 1.792e12, 6e12, 96e6, 170, 1.5),  # RTX Blackwell whitepaper
)


def card_named(name: str) -> Card:
    """The card that CUDA calls so, as "NVIDIA H200"; the longest of our names that it contains.

    Raises:
        FlashElmoError: an unknown card.
    """
    known = [card for card in CARDS if re.search(rf"\b{card.name}\b", name, re.IGNORECASE)]
    if not known:
        raise FlashElmoError(f"card: expected one of {', '.join(card.name for card in CARDS)}, found {name!r}")
    return max(known, key=lambda card: len(card.name))


def card_of(found: dict[str, Any], say: Callable[[str], None]) -> Card:
    """The card of a device that `machine.card` describes; an unknown one takes an A100's launch."""
    try:
        card = card_named(found["name"])
    except FlashElmoError:
        card = replace(card_named("A100"), name=found["name"])
        say(f"{found['name']} is not in the table of cards: launch and L2 bandwidth are taken from the A100")
    return replace(card, l2_bytes=found["l2_bytes"], multiprocessors=found["multiprocessors"])


class Device(NamedTuple):
    """Where a run computes: what `ElmoEmbedder` is told, as "cuda", and PyTorch's name of the same, as "cuda:0"."""

    engine: str
    torch: str

    @property
    def is_cuda(self) -> bool:
        """Whether there is a card."""
        return self.torch.startswith("cuda")

    def synchronize(self) -> None:
        """Wait until the device has done what was queued; also raises what went wrong there."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def is_lost(self) -> bool:
        """Whether work on the device no longer ends well: some errors of a kernel end its process's CUDA context."""
        try:
            self.synchronize()
        except Exception:
            return True
        return False

    def free_memory(self) -> None:
        """Give memory back that nobody uses."""
        if self.is_cuda:
            torch.cuda.empty_cache()


def results_on(found: dict[str, Any], settings: Settings, suite: str) -> Results:
    """Results without rows of a run on a card that `machine.card` describes."""
    results = new_results(settings, suite, found)
    return replace(results, versions=results.versions | {"triton": triton.__version__, "cuda": torch.version.cuda})


def begin(
    settings: Settings,
    console: Console,
    suite: str,
    adapt: Callable[[Settings, Device], Settings] = lambda given, _: given,
) -> tuple[Run, Device, Card]:
    """A run on the current CUDA device, which may adapt the settings.

    Raises:
        FlashElmoError: there is no device.
    """
    found = machine.card()
    if found is None:
        raise FlashElmoError("no CUDA device: this benchmark needs one")
    device = Device("cuda", f"cuda:{torch.cuda.current_device()}")
    free, _ = torch.cuda.mem_get_info(device.torch)
    settings = adapt(replace(settings, copy_bytes=min(settings.copy_bytes, free // 8)), device)
    file = f"{'gpu' if suite == 'gpu' else f'gpu-{suite}'}-{slug(found['name'])}.json"
    run = Run(settings, console, results_on(found, settings, suite), file, device.is_lost)
    return run, device, card_of(found, run.say)
