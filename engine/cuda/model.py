"""The model on the device: its weights, laid out for the kernels, and a table of the word vectors they compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from flashelmo.engine.arrays import Float32, Int32, Int64
from flashelmo.engine.cuda.cuda_graphs import GraphCache
from flashelmo.engine.cuda.layout import Layout, power_of_two
from flashelmo.engine.cuda.transfer import Transfers
from flashelmo.engine.model.weights import Dense, ElmoModel, LstmCell
from flashelmo.engine.precision import PRECISIONS, Arithmetic
from flashelmo.engine.system.files import cache_folder
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.kernels.arguments import Products
from flashelmo.kernels.char_cnn import SpelledWords, char_cnn
from flashelmo.kernels.char_cnn_weights import pack_char_cnn
from flashelmo.kernels.highway import highway, pack_highway
from flashelmo.kernels.linear import linear
from flashelmo.kernels.lstm.layer import pack_lstm
from flashelmo.kernels.lstm.weights import CanonicalLstm, LstmWeights

LEAST_WORDS = 16  # of a graph: no tile has fewer
MOST_CAPTURED_WORDS = 1 << 9  # beyond this, computing takes longer than launching
OLDEST_AT_ONCE = 64  # this fraction of the table's rows is found at once
WORDS_AT_ONCE = 1 << 14  # by the char-CNN: their features, 2,048 values per word, are held twice


class DeviceModel:
    """What the kernels need of a model.

    Args:
        model: as it was read.
        device: where the weights go.
        precision: of the computation, a name in `PRECISIONS`.
        batch_invariant: whether a word's vector has the same bits whatever words are computed with it.

    Attributes:
        dtype: of word vectors and hidden states; cells and sums are float32.
        products: how float32 is multiplied.
        lstm: each layer's weights, both directions.
    """

    def __init__(
        self, model: ElmoModel, device: torch.device, precision: str, *, batch_invariant: bool = False
    ) -> None:
        self.config = model.config
        self.device = device
        arithmetic = PRECISIONS[precision].on("cuda")
        self.dtype: torch.dtype = getattr(torch, arithmetic.dtype)
        self.products: Products = arithmetic.products
        self._batch_invariant = batch_invariant
        weights = model.weights
        self._word_embedding = None
        if weights.word_embedding is not None:
            self._word_embedding = self._tensor(weights.word_embedding).to(self.dtype)
        self._char_cnn = None
        if weights.character_embedding is not None:
            self._char_cnn = pack_char_cnn(
                self._tensor(weights.character_embedding),
                [self._pair(convolution) for convolution in weights.convolutions],
                padding_id=WordEncoder(model.config, model.lexicon).padding_id,
                activation=model.config.activation,
                dtype=self.dtype,
                device=device,
            )
        self._highways = [
            pack_highway(*self._pair(layer.transform), *self._pair(layer.gate), dtype=self.dtype, device=device)
            for layer in weights.highways
        ]
        self._projection: tuple[Tensor, Tensor] | None = None
        if weights.projection is not None:
            weight, bias = self._pair(weights.projection)
            self._projection = weight.to(self.dtype), bias
        self.lstm: list[LstmWeights] = [self._layer(cells, arithmetic) for cells in weights.lstm]

    def word_vectors(self, words: SpelledWords | None, word_ids: Tensor | None) -> Tensor:
        """Return words' context-free vectors [W, P], from characters, from rows of the word embedding, or from both."""
        parts: list[Tensor] = []
        how: dict[str, Any] = {"precision": self.products, "batch_invariant": self._batch_invariant}
        if self._word_embedding is not None and word_ids is not None:
            parts.append(self._word_embedding[word_ids])
        if self._char_cnn is not None and words is not None:
            features = char_cnn(words, self._char_cnn, **how)
            for layer in self._highways:
                features = highway(features, layer, **how)
            parts.append(features)
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return x if self._projection is None else linear(x, *self._projection, **how)

    def _layer(self, cells: tuple[LstmCell, LstmCell], arithmetic: Arithmetic) -> LstmWeights:
        """Return one layer, packed on the device, which sorts the weights faster than the host."""

        def stacked(name: str) -> Tensor:
            return torch.stack([self._tensor(getattr(cell, name)) for cell in cells])

        canonical = CanonicalLstm(
            stacked("input_weight"),
            stacked("recurrent_weight"),
            stacked("bias"),
            None if cells[0].projection is None else stacked("projection"),
            self.config.cell_clip,
            self.config.projection_clip,
        )
        return pack_lstm(
            canonical,
            dtype=self.dtype,
            int8=arithmetic.lstm_weights == "int8",
            device=self.device,
            bound=arithmetic.bound.relative,
            cache=cache_folder(),
        )

    def _tensor(self, array: Float32) -> Tensor:
        """Return a copy on the device; the array may be a mapped file, which PyTorch must not own."""
        return torch.from_numpy(np.array(array)).to(self.device)

    def _pair(self, dense: Dense) -> tuple[Tensor, Tensor]:
        return self._tensor(dense.weight), self._tensor(dense.bias)


class WordVectorTable:
    """Rows of word vectors by word. The lowest LSTM layer reads the table itself.

    Args:
        model, encoder: what computes a word's vector, and its characters' ids.
        transfers: brings ids to the device.
        cache_bytes: the table's size; the least recently used rows are replaced, window by window. With 0 no word is
            kept beyond its window.
        graphs: where the graphs for few words are kept; with None, all are computed kernel by kernel.

    Attributes:
        vectors: [rows, P]; replaced by a larger tensor once a window has more words than there are rows.
    """

    def __init__(
        self,
        model: DeviceModel,
        encoder: WordEncoder,
        transfers: Transfers,
        cache_bytes: int,
        graphs: GraphCache | None = None,
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._transfers = transfers
        self._graphs = graphs
        self._keep = cache_bytes > 0
        self._make(max(1, cache_bytes // (model.config.projection_size * model.dtype.itemsize)))

    def pack(self, words: pa.StringArray) -> list[Tensor | None]:
        """Return the integers of words, ready to be sent, for each piece of them; callable in any thread.

        None for a piece that a graph computes. Empty if the table keeps words from window to window, since only
        `lookup` then knows which of them are new.
        """
        if self._keep:
            return []
        return [None if self._is_few(len(rows)) else self._host(piece, rows) for piece, rows in _pieces(words)]

    def lookup(self, words: pa.StringArray, packed: Sequence[Tensor | None] = ()) -> tuple[Int32, int]:
        """Return the rows [W] of distinct words, and how many are now being computed, on the computing stream.

        Args:
            packed: the result of `pack` for these words.
        """
        if len(words) > len(self.vectors):
            self._make(len(words))
        if not self._keep:
            for k, piece in enumerate(_pieces(words)):
                self._compute(*piece, packed[k] if packed else None)
            return np.arange(len(words), dtype=np.int32), len(words)
        names: list[str] = words.to_pylist()
        self._window += 1
        rows = np.fromiter(map(self._rows.get, names, repeat(-1)), np.int32, len(names))
        self._used[rows[rows >= 0]] = self._window
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            rows[missing] = self._free_rows(len(missing))
            for group in np.split(missing, range(WORDS_AT_ONCE, len(missing), WORDS_AT_ONCE)):
                self._compute(words.take(pa.array(group)), rows[group])
                taken, taken_names = rows[group].tolist(), [names[i] for i in group.tolist()]
                for row, name in zip(taken, taken_names, strict=True):
                    self._names[row] = name
                self._used[rows[group]] = self._window
                self._rows.update(zip(taken_names, taken, strict=True))  # last: only now do the rows hold these words
        return rows, len(missing)

    def _make(self, n_rows: int) -> None:
        """Make an empty table; graphs would write to the previous one."""
        if self._graphs is not None:
            self._graphs.clear()
        size = self._model.config.projection_size
        table = torch.zeros(n_rows + 1, size, dtype=self._model.dtype, device=self._model.device)
        self._table, self.vectors = table, table[:n_rows]  # without the spare row
        self.clear()

    def clear(self) -> None:
        """Forget all words."""
        n_rows = len(self.vectors)
        self._rows: dict[str, int] = {}
        self._names: list[str | None] = [None] * n_rows
        self._used = np.zeros(n_rows, np.int64)  # window of the last use; 0 for free rows
        self._n_taken = 0  # rows from here on have never been used
        self._oldest = np.empty(0, np.int64), np.empty(0, np.int64)  # see `_find_oldest`; some have been used since
        self._window = 0

    def _free_rows(self, n: int) -> Int64:
        """Return n rows that this window does not use: free ones first, then the least recently used."""
        if self._n_taken + n <= len(self._used):
            self._n_taken += n
            return np.arange(self._n_taken - n, self._n_taken)
        self._n_taken = len(self._used)
        oldest, used = self._oldest
        still = np.flatnonzero(self._used[oldest] == used)  # all others have been used since
        if len(still) < n:
            self._oldest = oldest, used = self._find_oldest(n)
            still = np.arange(len(oldest))
        taken, left = still[:n], still[n:]
        self._oldest = oldest[left], used[left]
        self._forget(oldest[taken])
        return oldest[taken]

    def _find_oldest(self, n: int) -> tuple[Int64, Int64]:
        """Return the least recently used rows, oldest first, and when; more than n, as this takes milliseconds."""
        n = min(len(self._used), max(n, len(self._used) // OLDEST_AT_ONCE))
        oldest = np.argpartition(self._used, n - 1)[:n]
        oldest = oldest[np.argsort(self._used[oldest], kind="stable")]
        return oldest, self._used[oldest]

    def _forget(self, rows: Int64) -> None:
        for row in rows[self._used[rows] > 0].tolist():
            name = self._names[row]
            if name is not None and self._rows.get(name) == row:  # a window may contain a word twice: a boundary's
                del self._rows[name]
            self._names[row] = None
        self._used[rows] = 0

    def _compute(self, words: pa.StringArray, rows: Int32, host: Tensor | None = None) -> None:
        """Compute the words' vectors and write them to these rows; few words by a graph, padded to its size.

        Args:
            host: the words' integers, if `pack` has made them.
        """
        size = len(rows)
        if self._graphs is None or not self._is_few(size):
            host = self._host(words, rows) if host is None else host
            self._run(self._layout(size), self._transfers.send(host))
            return
        size = power_of_two(size, LEAST_WORDS)
        layout = self._layout(size)
        run, fill = partial(self._run, layout), partial(self._fill, layout, words, rows)
        captured = self._graphs.get(size, layout.size, run)
        if captured is None:
            run(self._transfers.upload(layout.size, fill))
        else:
            captured.staging.upload(fill)
            captured.replay()

    def _is_few(self, n: int) -> bool:
        """Whether so many words are computed by a graph."""
        return self._graphs is not None and n <= MOST_CAPTURED_WORDS

    def _host(self, words: pa.StringArray, rows: Int32) -> Tensor:
        """Return words' integers in memory ready to be sent."""
        layout = self._layout(len(rows))
        host = self._transfers.host(layout.size)
        self._fill(layout, words, rows, host.numpy())
        return host

    def _layout(self, n: int) -> Layout:
        """Return the layout of n words' integers: rows int64, the others as `DeviceModel.word_vectors` takes them."""
        shapes: dict[str, tuple[int, ...]] = {"rows": (2 * n,)}
        if self._model.config.word_size:
            shapes["word_ids"] = (n,)
        if self._model.config.character_size:
            shapes |= {"character_ids": (n, self._model.config.max_characters), "lengths": (n,), "order": (n,)}
        return Layout(shapes)

    def _fill(self, layout: Layout, words: pa.StringArray, rows: Int32, flat: Int32) -> None:
        """Write words' integers; surplus ones, beyond the last word, go to the spare row."""
        parts, n = layout.views(flat), len(rows)
        table_rows = parts["rows"].view(np.int64)
        table_rows[:n], table_rows[n:] = rows, len(self.vectors)
        word_ids = self._encoder.word_ids(words)
        if word_ids is not None:
            parts["word_ids"][:n], parts["word_ids"][n:] = word_ids, 0
        character_ids = self._encoder.character_ids(words)
        if character_ids is not None:
            parts["character_ids"][:n], parts["character_ids"][n:] = character_ids, self._encoder.padding_id
            parts["lengths"][:n], parts["lengths"][n:] = self._encoder.lengths(character_ids), 1
            parts["order"][:] = np.argsort(-parts["lengths"], kind="stable")

    def _run(self, layout: Layout, packed: Tensor) -> Tensor:
        """Return the vectors for what `_fill` wrote, having written them to the table."""
        ids = layout.views(packed)
        words = SpelledWords(ids["character_ids"], ids["lengths"], ids["order"]) if "order" in ids else None
        vectors = self._model.word_vectors(words, ids.get("word_ids"))
        self._table.index_copy_(0, ids["rows"].view(torch.int64), vectors)
        return vectors


def _pieces(words: pa.StringArray) -> Iterator[tuple[pa.StringArray, Int32]]:
    """Yield words in pieces that are computed together, with their rows in a table without other words."""
    rows = np.arange(len(words), dtype=np.int32)
    for start in range(0, len(words), WORDS_AT_ONCE):
        yield words.slice(start, WORDS_AT_ONCE), rows[start : start + WORDS_AT_ONCE]
