"""The engine on this machine's card, end to end: correct first, then how fast: `python -m benchmarks.gpu --out DIR`.

The vectors of every precision are compared with the reference's on the CPU and with published ones, in every way to
embed. Then sentences, batches and bulk text are embedded in turns with PyTorch's eager reference, torch.compile,
cuDNN's LSTM and ONNX Runtime, the card's time is shared out among the stages, and each of the CUDA runtime's switches
is timed against its opposite. Beside each figure stands what the card's limits, measured in the same run, allow.
Results go to DIR/gpu-CARD.json, tables and plots beside it; what a time limit leaves out is said. The exit status is 1
if vectors are wrong, a job failed or the device was lost.
"""
# ruff: noqa: E402

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec

NEEDED = ("flashelmo", "numpy", "pyarrow", "torch", "triton")
if missing := [name for name in NEEDED if find_spec(name) is None]:  # before any of them is imported
    sys.exit(f"gpu: expected the packages {', '.join(NEEDED)}, found no {', '.join(missing)}: pip install -e '.[gpu]'")

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import triton

from flashelmo.benchmarks import machine
from flashelmo.benchmarks.gpu.golden import GOLDEN
from flashelmo.benchmarks.gpu.jobs import Tools
from flashelmo.benchmarks.gpu.run import Run
from flashelmo.benchmarks.gpu.settings import PRECISIONS, SECTIONS, EngineSettings
from flashelmo.benchmarks.gpu.subject import Place
from flashelmo.benchmarks.gpu.switches import default_settings, turned_off
from flashelmo.benchmarks.gpu.wall_timing import WallTimer
from flashelmo.benchmarks.kernels.measure import NO_DEVICE, card_of, gpu, why_no_folder
from flashelmo.benchmarks.kernels.timing import GraphTimer
from flashelmo.benchmarks.results import Results
from flashelmo.engine.cuda.requirements import check_precision, default_precision
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.initialize import PRESETS, random_model


def new_results(settings: EngineSettings, found: dict[str, Any], commit: str | None) -> Results:
    """Results without rows; of paths, which say something of the machine's owner, only the last part.

    Args:
        found: the card, as `kernels.measure.gpu` describes it.
    """
    values = asdict(settings)
    for name in ("text", "golden", "onnx"):
        values[name] = values[name] and values[name].name
    return Results(
        machine=machine.machine() | {"gpu": found},
        versions=machine.versions() | {"triton": triton.__version__, "cuda": torch.version.cuda},
        commit={"id": commit, "dirty": False} if commit else machine.commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=values,
        rows=[],
    )


def parse(arguments: Sequence[str] | None) -> tuple[EngineSettings, argparse.Namespace]:
    """Settings, and what else was given."""
    default = EngineSettings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for results and plots")
    parser.add_argument("--only", metavar="SECTIONS", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--models", metavar="PRESETS", help=f"some of {','.join(PRESETS)} (default: original,small)")
    parser.add_argument("--precisions", help=f"some of {','.join(PRECISIONS)} (default: all)")
    parser.add_argument("--text", type=Path, help="tokenized lines to measure with")
    parser.add_argument("--golden", type=Path, metavar="DIR", default=GOLDEN, help="models with published vectors")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="an exported model for ONNX Runtime")
    parser.add_argument("--off", metavar="SWITCHES", help="of the CUDA runtime, with commas, off throughout")
    parser.add_argument("--few", action="store_true", help="check few sentences, of random models alone")
    parser.add_argument(
        "--sanitize",
        action="store_true",
        help="at the end, the checks under compute-sanitizer (best with --only correctness)",
    )
    parser.add_argument("--rounds", type=int, default=default.rounds, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=default.seed, help="of random weights and generated text")
    parser.add_argument("--limit-seconds", type=float, default=default.limit_seconds, help="default: %(default)s")
    parser.add_argument("--commit", metavar="ID", help="of the sources, where they are no checkout")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {given.rounds}")
    if given.sanitize and given.only and "correctness" not in given.only:
        parser.error(f"--sanitize: expected correctness among the sections, found {given.only!r}")
    if given.seed < 0:
        parser.error(f"--seed: expected zero or more, found {given.seed}")
    settings = replace(
        default,
        sections=_some("--only", given.only, SECTIONS, parser) or default.sections,
        models=_some("--models", given.models, list(PRESETS), parser) or default.models,
        precisions=_some("--precisions", given.precisions, PRECISIONS, parser) or default.precisions,
        text=given.text,
        golden=given.golden,
        onnx=given.onnx,
        off=tuple(given.off.split(",")) if given.off else (),
        sanitize=given.sanitize,
        rounds=given.rounds,
        seed=given.seed,
        limit_seconds=given.limit_seconds,
    )
    return replace(settings, real_sentences=4, short_sentences=0, golden=None) if given.few else settings, given


def _some(option: str, value: str | None, known: Sequence[str], parser: argparse.ArgumentParser) -> tuple[str, ...]:
    chosen = tuple(value.split(",")) if value else ()
    for name in chosen:
        if name not in known:
            parser.error(f"{option}: expected some of {','.join(known)}, found {name!r}")
    return chosen


def suited(precisions: Sequence[str], device: torch.device, say: Callable[[str], None]) -> tuple[str, ...]:
    """Those that the card has, its fastest one first: older cards have neither bf16 nor TF32.

    Raises:
        FlashElmoError: it has none of them.
    """
    has = []
    for precision in sorted(precisions, key=lambda precision: precision != default_precision(device)):
        try:
            check_precision(device, precision)
            has.append(precision)
        except FlashElmoError as error:
            say(f"left out: {error}")
    if not has:
        raise FlashElmoError(f"precisions: expected one that the card has, found {', '.join(precisions)}")
    return tuple(has)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run on the current CUDA device; the exit status."""
    settings, given = parse(arguments)
    problem = "" if torch.cuda.is_available() else NO_DEVICE
    if problem := problem or why_no_folder(given.out):
        print(f"gpu: {problem}", file=sys.stderr)
        return 1
    try:
        return _run(settings, given)
    except (FlashElmoError, OSError) as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 1


def _run(settings: EngineSettings, given: argparse.Namespace) -> int:
    def say(line: str) -> None:
        print(line, flush=True)

    device = torch.device("cuda", torch.cuda.current_device())
    found = gpu(device)
    free, _ = torch.cuda.mem_get_info(device)
    precisions = suited(settings.precisions, device, say)
    settings = replace(
        settings,
        precisions=precisions,
        thorough=(precisions[0], "fp32"),
        copy_bytes=min(settings.copy_bytes, free // 8),
    )
    place = Place("cuda", str(device))
    tools = Tools(
        make=ElmoEmbedder,
        load=random_model,
        calls=WallTimer(settings.rounds, settings.sample_seconds, place.synchronize),
        kernels=GraphTimer(settings.rounds),
        cuda=turned_off(default_settings(), settings.off),
    )
    results = new_results(settings, found, given.commit)
    run = Run(settings, results, place, tools, card=card_of(found, say), out=given.out, say=say)
    return 0 if run.run() else 1


if __name__ == "__main__":
    sys.exit(main())
