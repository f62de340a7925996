"""Settings: all options of an embedder, in one frozen object that is passed down from it.

A new option is a field of `Settings` and the same name in `Options`, for type checkers; code that needs it reads it
from the object.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar, cast

from flashelmo.engine.arguments import flag, path_of, shown, whole_number
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import PrecisionName
from flashelmo.engine.system.processor import check_threads

if TYPE_CHECKING:
    import torch

RuntimeName: TypeAlias = Literal["ort", "avx512", "openvino", "reference", "cuda"]
Auto: TypeAlias = Literal["auto"]
Device: TypeAlias = "str | int | torch.device"
Function = TypeVar("Function", bound=Callable[..., Any])

INTERPRETER = "interpreter"  # a device: the CUDA runtime's kernels, interpreted by Triton on the CPU, for tests


@dataclass(frozen=True)
class CudaSettings:
    """Switches of the CUDA runtime. They affect speed, and results only within the precision's error bound.

    Attributes:
        graphs: replay small windows as captured CUDA graphs.
        keep_weights: ask the L2 cache to keep the weights that steps with few rows read repeatedly, when they are
            launched one by one.
        graph_rows: windows with more rows at some depth are launched kernel by kernel, without a graph: a step then
            takes longer than its launch, so a graph gains nothing.
        graph_depths: windows with more time steps are launched kernel by kernel, too.
        max_graphs: the most graphs to keep; the least recently replayed is evicted.
        batch_invariant: on a card, a sentence's vectors have the same bits whatever is embedded with it; slower, as
            kernels and tiles are not chosen by the number of rows (`docs/gpu.md`).
    """

    graphs: bool = True
    keep_weights: bool = True
    graph_rows: int = 512
    graph_depths: int = 128
    max_graphs: int = 128
    batch_invariant: bool = False

    def __post_init__(self) -> None:
        for name in ("graphs", "keep_weights", "batch_invariant"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        for name in ("graph_rows", "graph_depths", "max_graphs"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 0))


@dataclass(frozen=True)
class Settings:
    """How an embedder computes.

    Attributes:
        device: "cpu"; "cuda", "cuda:1", or a list of such names, each of which gets a process; "auto" is "cuda" if it
            can be used, and otherwise the CPU, with one warning. A torch.device or a card's number works too; -1 is the
            CPU.
        precision: a name in `PRECISIONS` that the device supports (`docs/precision.md`). "auto" is "bf16" on CUDA
            devices that support it, otherwise "fp32".
        runtime: on the CPU "ort", "avx512", "openvino" or "reference", on a CUDA device "cuda"; "auto" is the first
            that supports the precision and can run.
        stateful: carry the LSTM state over between batches of `batch_size` sentences.
        batch_size: sentences per batch if stateful, or with the reference; otherwise ignored.
        threads: CPU threads, at most 64 or the number of processors; None uses all cores. On a CUDA device they make
            schedules, at most 4 of them.
        keep_sentence_boundaries: also return the vectors of the sentence boundaries, T + 2 rows.
        share: compute common prefixes and suffixes of sentences once; stateful runs never do.
        cache_bytes: memory limit for word vectors that are kept from call to call.
        word_cache: a file that keeps word vectors between runs, on the CPU. It belongs to one model in one precision,
            is created if missing, can be shared by concurrent runs, and grows to at most 8 times `cache_bytes`.
        window_tokens: tokens computed together, from at most 131,072 sentences; None limits their hidden states to 256
            MiB, on a CUDA device to what fits its free memory (`engine.cuda.memory`).
        cuda: switches of the CUDA runtime.

    Raises:
        FlashElmoError: a value has the wrong type, a number is too small, or there are more threads than this machine
            could run.
    """

    device: Device | Sequence[Device] = "auto"
    precision: PrecisionName | Auto = "auto"
    runtime: RuntimeName | Auto = "auto"
    stateful: bool = False
    batch_size: int = 64
    threads: int | None = None
    keep_sentence_boundaries: bool = False
    share: bool = True
    cache_bytes: int = 128 << 20
    word_cache: str | Path | None = None
    window_tokens: int | None = None
    cuda: CudaSettings = CudaSettings()

    def __post_init__(self) -> None:
        for name in ("stateful", "keep_sentence_boundaries", "share"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        for name, least in (("batch_size", 1), ("window_tokens", 1), ("cache_bytes", 0)):
            if name != "window_tokens" or self.window_tokens is not None:
                object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        if self.word_cache is not None:
            path = path_of("word_cache", self.word_cache)
            object.__setattr__(self, "word_cache", Path(os.path.abspath(path)))
        object.__setattr__(self, "threads", check_threads(self.threads))
        for name in ("precision", "runtime"):
            if not isinstance(getattr(self, name), str):
                raise FlashElmoError(f"{name}: expected a name, found {shown(getattr(self, name))}")
        if not isinstance(self.cuda, CudaSettings):
            raise FlashElmoError(f"cuda: expected CudaSettings, found {shown(self.cuda)}")
        several = isinstance(self.device, list | tuple | range | Iterator)
        names: Any = self.device if several else (self.device,)
        names = tuple(device_name("device", name) for name in names)
        object.__setattr__(self, "device", names if several else names[0])

    @classmethod
    def of(cls, options: Options) -> Settings:
        """Settings from keywords.

        Raises:
            FlashElmoError: one is unknown; the message names those that there are.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise FlashElmoError(f"option: expected some of {', '.join(known)}, found {name!r}")
        return cls(**options)

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of the devices, at least one unless none were given."""
        return (self.device,) if isinstance(self.device, str) else tuple(map(str, cast(Sequence[str], self.device)))

    @property
    def shares_prefixes(self) -> bool:
        """Whether equal prefixes and suffixes are computed once: a state that is carried makes them differ."""
        return self.share and not self.stateful


class Options(TypedDict, total=False):
    """The fields of `Settings` as keywords."""

    device: Device | Sequence[Device]
    precision: PrecisionName | Auto
    runtime: RuntimeName | Auto
    stateful: bool
    batch_size: int
    threads: int | None
    keep_sentence_boundaries: bool
    share: bool
    cache_bytes: int
    word_cache: str | Path | None
    window_tokens: int | None
    cuda: CudaSettings


def shows_options(function: Function) -> Function:
    """Let `help` and editors show a function's `**options` one by one, with types and defaults."""
    signature = inspect.signature(function)
    kept = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    options = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(Settings)
    ]
    function.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return function


def device_name(argument: str, device: Any) -> str:
    """The name of a device that is given by it, by a number, -1 being the CPU, or as a torch.device.

    Raises:
        FlashElmoError: it is none of these; the message names the argument.
    """
    if isinstance(device, str):
        return device
    if (type(device).__module__, type(device).__name__) == ("torch", "device"):  # not imported for this
        return str(device) if device.type != "cpu" else "cpu"
    try:
        number = whole_number(argument, device, -1)
    except FlashElmoError:
        expected = "a name as 'cuda:0', a number, -1 for the CPU, or a torch.device"
        raise FlashElmoError(f"{argument}: expected {expected}, found {shown(device)}") from None
    return "cpu" if number < 0 else f"cuda:{number}"
