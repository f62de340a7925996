"""Word vectors, computed once per distinct word and kept in a bounded cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from flashelmo.engine.arrays import Float32, Int64
from flashelmo.engine.cpu.runtime import Runtime
from flashelmo.engine.cpu.word_file import WordFile
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.text.characters import WordEncoder

OnComputed: TypeAlias = Callable[[int, int], None]

# Positions of one words product: enough rows to reach the matrix peak, few enough to stay in the last-level cache.
GROUP_POSITIONS = 2048


class WordVectors:
    """The context-free vectors [W, P] of words (layer 0's half).

    Args:
        config, encoder, runtime: the model's dimensions, its words-to-ids rules, and what computes the vectors.
        cache_bytes: beyond this many bytes, the least recently used vectors are forgotten.
        file: keeps them from run to run.
    """

    def __init__(
        self,
        config: ElmoConfig,
        encoder: WordEncoder,
        runtime: Runtime,
        cache_bytes: int,
        file: WordFile | None = None,
    ) -> None:
        self._config = config
        self._encoder = encoder
        self._runtime = runtime
        self._cache = _LruCache(cache_bytes // (4 * config.projection_size), config.projection_size)
        self._file = file

    def lookup(
        self, words: pa.StringArray, on_computed: OnComputed = lambda n_done, n_missing: None
    ) -> tuple[Float32, int]:
        """Return vectors [W, P] of distinct words, and how many of them had to be computed.

        `on_computed` is called repeatedly with the number computed so far and the number to compute.
        """
        names = words.to_pylist()
        vectors = np.empty((len(names), self._config.projection_size), np.float32)
        missing = self._cache.read(names, vectors)
        unknown = missing if self._file is None else self._read_file(names, missing, vectors)
        if len(unknown):
            vectors[unknown] = self._compute(words.take(pa.array(unknown)), on_computed)
            if self._file is not None:
                self._file.write([names[i] for i in unknown], vectors[unknown])
        if len(missing):
            self._cache.write([names[i] for i in missing], vectors[missing])
        return vectors, len(unknown)

    def _read_file(self, names: list[str], missing: Int64, vectors: Float32) -> Int64:
        """Copy the missing vectors that the file has; return the indices of the others."""
        assert self._file is not None
        found = np.empty((len(missing), vectors.shape[1]), np.float32)
        unknown = self._file.read([names[i] for i in missing], found)
        vectors[missing] = found
        return missing[unknown]

    def _compute(self, words: pa.StringArray, on_computed: OnComputed) -> Float32:
        """Compute words' vectors, similar lengths together, so that few positions are padding."""
        character_ids = self._encoder.character_ids(words)
        word_ids = self._encoder.word_ids(words)
        vectors = np.empty((len(words), self._config.projection_size), np.float32)
        if character_ids is None:
            self._runtime.word_vectors(None, word_ids, vectors)
            return vectors
        from flashelmo.engine.graph.pieces import character_windows  # needs onnx, as only its runtimes do

        sizes = self._encoder.lengths(character_ids)
        order = np.argsort(sizes, kind="stable")
        n_done = 0
        for group in _groups(order, sizes):
            windows = character_windows(character_ids[group], int(sizes[group[-1]]), self._config)
            result = np.empty((len(group), vectors.shape[1]), np.float32)
            self._runtime.word_vectors(windows, None if word_ids is None else word_ids[group], result)
            vectors[group] = result
            n_done += len(group)
            on_computed(n_done, len(words))
        return vectors


def _groups(order: Int64, sizes: Int64) -> list[Int64]:
    """Split `order` (ascending sizes) into runs of about GROUP_POSITIONS positions."""
    ends = np.flatnonzero(np.diff(np.cumsum(sizes[order] + 1) // GROUP_POSITIONS)) + 1
    return np.split(order, ends)


class _LruCache:
    """Rows of floats by word; the least recently used are replaced."""

    def __init__(self, capacity: int, width: int) -> None:
        self._capacity = capacity
        self._rows: OrderedDict[str, int] = OrderedDict()
        self._values = np.empty((min(capacity, 1024), width), np.float32)

    def read(self, names: list[str], values: Float32) -> Int64:
        """Copy known rows into `values`; return the indices of unknown names."""
        rows = np.array([self._rows.get(name, -1) for name in names], np.int64)
        known = np.flatnonzero(rows >= 0)
        values[known] = self._values[rows[known]]
        for i in known:
            self._rows.move_to_end(names[i])
        return np.flatnonzero(rows < 0)

    def write(self, names: list[str], values: Float32) -> None:
        """Keep the rows of names that are not there yet."""
        names, values = names[: self._capacity], values[: self._capacity]
        grown = min(self._capacity, max(len(self._values), len(self._rows) + len(names)))
        if grown > len(self._values):
            more = min(self._capacity, max(grown, 2 * len(self._values))) - len(self._values)
            self._values = np.concatenate([self._values, np.empty((more, self._values.shape[1]), np.float32)])
        rows, self._rows = self._rows, OrderedDict()  # if the call is interrupted from here on, nothing is kept
        for name, value in zip(names, values, strict=True):
            if name in rows:
                continue
            full = len(rows) == len(self._values)
            row = rows.popitem(last=False)[1] if full else len(rows)
            rows[name] = row
            self._values[row] = value
        self._rows = rows
