"""Unrolled files, each of one shape, as one that takes any: a batch runs in the smallest file that can hold it.

On CUDA each file's nodes are captured in a CUDA graph at its first run and replayed from then on, which needs its
inputs and outputs at the same addresses: every open file keeps its own. Files are opened when a batch needs them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.engine.arrays import Array, Arrays
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.system.forks import InEachProcess
from flashelmo.export.metadata import BUCKET_FILE, Metadata
from flashelmo.export.open_session import (
    ORT_ERRORS,
    Options,
    device_memory,
    device_of,
    open_session,
    reason,
    with_cuda_graphs,
)

Bucket = tuple[int, int]  # sentences, tokens of each
OF_SENTENCES = ("sentence_embedding",)  # outputs without a token axis


def bucket_of(file: Path) -> Bucket | None:
    """Return the sentences and tokens of an unrolled file, from its name; None for another file."""
    if re.fullmatch(BUCKET_FILE, file.name) is None:
        return None
    batch, steps = map(int, re.findall(r"\d+", file.name))
    return batch, steps


class Buckets:
    """The unrolled files of one model and precision.

    Args:
        files: of one folder.
        wanted: providers, the preferred one first; CUDA's captures graphs unless its options say otherwise.
        options: onnxruntime.SessionOptions.

    Attributes:
        smallest: the file that is cheapest to open.

    Raises:
        FlashElmoError: ONNX Runtime cannot load a file there.
    """

    def __init__(self, files: Sequence[Path], wanted: Sequence[tuple[str, Options]], options: Any) -> None:
        self._folder = files[0].parent
        self._files = {bucket: file for file in files if (bucket := bucket_of(file)) is not None}
        self._wanted = with_cuda_graphs(wanted)
        self._options = options
        self._opened: InEachProcess[dict[Bucket, _Opened]] = InEachProcess(dict)
        self._lock = InEachProcess(threading.RLock)
        self._smallest = min(self._files, key=lambda bucket: bucket[0] * bucket[1])
        self.smallest = self._files[self._smallest]

    def session(self) -> Any:
        """Return the smallest file's session."""
        with self._lock():
            return self._open(self._smallest).session

    def run(self, inputs: Arrays, metadata: Metadata, names: Sequence[str], on_device: bool) -> dict[str, Any]:
        """Return outputs [B, T, ...] for inputs [B, T, ...], by name, for a batch of any number of sentences.

        With `on_device` they are onnxruntime.OrtValues of the file's own shape, valid until that file's next batch.

        Raises:
            FlashElmoError: a sentence is longer than any file takes; with `on_device`, there are too many sentences; or
                ONNX Runtime failed.
        """
        absent = {"character_ids": 0, "word_ids": metadata.config.absent_word_id}
        name, ids = next(iter(inputs.items()))
        is_token = (ids != absent[name]) if ids.ndim == 2 else (ids != absent[name]).any(axis=2)
        lengths = (is_token * np.arange(1, 1 + ids.shape[1])).max(axis=1, initial=0)
        most = self._most_sentences(int(lengths.max(initial=0)))
        if on_device and len(ids) > most:
            raise FlashElmoError(f"on_device: expected at most {most} sentences, as a file takes, found {len(ids)}")
        results: dict[str, Any] = {}
        with self._lock():
            for start in range(0, max(1, len(ids)), most):
                some = slice(start, start + most)
                part = {name: array[some] for name, array in inputs.items()}
                opened = self._open(self._holding(len(part[name]), int(lengths[some].max(initial=0))))
                try:
                    opened.run(part, absent)
                    if on_device:
                        return {name: opened.outputs[name] for name in names}
                    for output in names:
                        found = opened.outputs[output].numpy()
                        _enter(results, output, found, ids.shape[:2], some)
                except ORT_ERRORS as error:
                    raise FlashElmoError(f"{opened.file}: ONNX Runtime failed: {reason(error)}") from error
        return results

    def _most_sentences(self, longest: int) -> int:
        """Return the number of sentences of the largest file that takes this many tokens."""
        batches = [batch for batch, steps in self._files if steps >= longest]
        if not batches:
            *fewer, most = sorted({steps for _, steps in self._files})
            there = f", as its files take {', '.join(map(str, fewer))} or {most}" if fewer else ""
            raise FlashElmoError(
                f"{self._folder}: expected sentences of at most {most} tokens{there}, found one of {longest}"
            )
        return max(batches)

    def _holding(self, sentences: int, longest: int) -> Bucket:
        """Return the file of fewest steps that holds this much, and among those the one of fewest sentences."""
        there = [bucket for bucket in self._files if bucket[0] >= sentences and bucket[1] >= longest]
        return min(there, key=lambda bucket: (bucket[1], bucket[0]))

    def _open(self, bucket: Bucket) -> _Opened:
        opened = self._opened()
        if bucket not in opened:
            opened[bucket] = _Opened(self._files[bucket], self._wanted, self._options)
        return opened[bucket]


class _Opened:
    """One file in ONNX Runtime, with its inputs and outputs at fixed addresses."""

    def __init__(self, file: Path, wanted: list[tuple[str, Options]], options: Any) -> None:
        self.file, self.session = file, open_session(file, wanted, options)
        for value in self.session.get_inputs():
            if tuple(value.shape[:2]) != bucket_of(file):
                found = ", ".join(map(str, value.shape[:2]))
                raise FlashElmoError(f"{file}: expected {value.name} of the shape that its name says, found [{found}]")
        device = device_of(*wanted[0])
        self._inputs = {value.name: device_memory(value, device) for value in self.session.get_inputs()}
        self.outputs = {value.name: device_memory(value, device) for value in self.session.get_outputs()}
        self._binding = self.session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self.outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, inputs: Arrays, absent: Mapping[str, int]) -> None:
        """Compute the outputs of a batch that fits; the rest is filled up."""
        for name, value in self._inputs.items():
            given, padded = inputs[name], np.full(value.shape(), absent[name], np.int64)
            given = given[:, : padded.shape[1]]
            padded[: given.shape[0], : given.shape[1]] = given
            value.update_inplace(padded)
        self.session.run_with_iobinding(self._binding)


def _enter(results: dict[str, Any], name: str, found: Array, shape: tuple[int, ...], some: slice) -> None:
    """Put a file's output in its place among the batch's rows; zeros in columns beyond the file's."""
    axes = found.shape[1:] if name in OF_SENTENCES else (shape[1], *found.shape[2:])
    whole = results.setdefault(name, np.zeros((shape[0], *axes), found.dtype))
    rows = whole[some]
    if name in OF_SENTENCES:
        rows[:] = found[: len(rows)]
    else:
        columns = min(rows.shape[1], found.shape[1])
        rows[:, :columns] = found[: len(rows), :columns]
