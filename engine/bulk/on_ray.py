"""A corpus on a Ray cluster: units are the rows of a data set, and actors embed them.

A row is a few numbers, and so is the answer: the actors write the shards. Ray restarts an actor that is lost and gives
its unit to another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from flashelmo.engine.arguments import whole_number
from flashelmo.engine.bulk.report import Report
from flashelmo.engine.bulk.units import DONE, Corpus, EmbedUnit, make_plan
from flashelmo.engine.errors import FlashElmoError, MissingExtraError, first_line
from flashelmo.engine.system.allocator import return_large_arrays

LOCAL = "local"  # an address: a cluster on this machine alone, for the duration of the run
MOST_RETRIES = 4  # for a unit whose actor is lost


def embed_on_ray(
    corpus: Corpus,
    n_workers: int = 1,
    address: str = LOCAL,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Report:
    """Do as `embed_corpus`, with actors of a Ray cluster; the files are the same.

    Args:
        corpus: model, input and folder under paths that all machines have. Each actor has as many cores as the option
            `threads` says, by default 1, and a card if the option `device` is "cuda".
        n_workers: number of actors.
        address: of the cluster; "auto" for the one that this machine is part of, or "local".
        resume, overwrite: see `embed_corpus`.

    Raises:
        FlashElmoError: see `embed_corpus`; or there is no cluster at the address, or Ray gave up.
        MissingExtraError: Ray is not installed.
    """
    n_workers = whole_number("workers", n_workers, 1)
    try:
        import ray
        from ray.data import ActorPoolStrategy
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "embedding on Ray") from error
    plan = make_plan(corpus, resume=resume, overwrite=overwrite, elsewhere=True)
    options = {**plan.corpus.options, "threads": plan.corpus.options.get("threads") or 1}
    units = [asdict(unit) for unit in plan.units]
    begun_here = not ray.is_initialized()
    started, report = time.perf_counter(), Report(kept=len(plan.kept))
    try:
        if begun_here:
            ray.init(address=address, logging_level=logging.WARNING)
        rows = ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
            RayUnit,
            fn_constructor_args=(replace(plan.corpus, options=options),),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(n_workers, len(units))),
            num_cpus=options["threads"],
            num_gpus=1 if str(options.get("device")).startswith("cuda") else 0,
            max_task_retries=MOST_RETRIES,
        )
        for row in rows.iter_rows():
            _add(report, row, plan.kept)
    except FlashElmoError:  # also a ValueError
        raise
    except (ray.exceptions.RayError, ConnectionError, ValueError) as error:
        raise FlashElmoError(f"ray: {first_line(error)}; finished shards are kept, resume=True goes on") from None
    finally:
        if begun_here:
            ray.shutdown()
    report.seconds = time.perf_counter() - started
    return report


class RayUnit:
    """An `EmbedUnit`, made at the first call, that returns errors as rows: Ray wraps exceptions in pages of its text.

    Args:
        corpus: that the units belong to.
    """

    def __init__(self, corpus: Corpus) -> None:
        return_large_arrays()  # an actor has its own process
        self._corpus = corpus

    @cached_property
    def _embed(self) -> EmbedUnit:
        return EmbedUnit(self._corpus)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """See `EmbedUnit`; there is one more column, `error`. Where that says something, the others count nothing."""
        shards = np.asarray(batch["shard"])
        try:
            done, error = self._embed(batch), ""
        except FlashElmoError as found:
            done, error = dict.fromkeys(DONE, np.zeros(len(shards), np.int64)) | {"shard": shards}, str(found)
        return {**done, "error": np.array([error] * len(shards))}


def _add(report: Report, row: Mapping[str, Any], kept: frozenset[int]) -> None:
    """Add what was done for a unit, even by an actor that was then lost. FlashElmoError: it could not be done."""
    if row["error"]:
        raise FlashElmoError(row["error"])
    known = {each.name for each in fields(Report)} - {"kept"}
    for name in known.intersection(DONE):
        setattr(report, name, getattr(report, name) + int(row[name]))
    report.shards += row["shard"] not in kept
