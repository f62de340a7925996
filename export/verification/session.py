"""One exported file in ONNX Runtime, fed only through its documented inputs, without the code of `OnnxElmo`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from flashelmo.engine.arrays import Array, Arrays, Bool
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.export.metadata import STATES, Metadata
from flashelmo.export.open_session import Provider, available_providers, open_session, options_of, with_cuda_graphs
from flashelmo.export.verification.cases import Batch


class Session:
    """Runs batches and keeps the states that a stateful file returns.

    Args:
        path: the file.
        metadata: what it says about itself.
        providers: ONNX Runtime's execution providers, the preferred one first.

    Attributes:
        metadata: as given.
        providers: those in use.

    Raises:
        FlashElmoError: a provider is missing, ONNX Runtime cannot load the file; or, on CUDA, an unrolled one leaves a
            node to the host.
    """

    def __init__(self, path: Path, metadata: Metadata, providers: str | Sequence[Provider]) -> None:
        wanted = available_providers(providers)
        if metadata.bucket is not None and (graphs := with_cuda_graphs(wanted)) != wanted:
            open_session(path, graphs, options_of(None, None))  # which requires all nodes to be on the card
        self._session = open_session(path, wanted, options_of(None, None))
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self._names = [output.name for output in self._session.get_outputs()]
        self.metadata = metadata
        self._encoder = WordEncoder(metadata.config, metadata.lexicon)
        self.reset_state()

    def reset_state(self) -> None:
        """Reset every row's state to zero."""
        config = self.metadata.config
        hidden_type = np.float16 if self.metadata.arithmetic.dtype == "float16" else np.float32
        self._states: Arrays = {
            "state.hidden": np.zeros((2 * config.n_layers, 0, config.projection_size), hidden_type),
            "state.cell": np.zeros((2 * config.n_layers, 0, config.cell_size), np.float32),
        }

    def run(self, batch: Batch) -> Arrays:
        """Return all outputs by name."""
        inputs = batch_inputs(batch, self.metadata, self._encoder)
        if self.metadata.stateful:
            inputs |= {name: _first_rows(state, len(batch.sentences)) for name, state in self._states.items()}
        outputs = dict(zip(self._names, self._session.run(None, inputs), strict=True))
        if self.metadata.stateful:  # rows beyond this batch wait for a later one
            for name, old in self._states.items():
                if (new := outputs.get(STATES[name])) is not None:
                    self._states[name] = np.concatenate([new, old[:, new.shape[1] :]], axis=1)
        return outputs


def batch_inputs(batch: Batch, metadata: Metadata, encoder: WordEncoder) -> Arrays:
    """Return the file's inputs character_ids and word_ids, made from the description of its format."""
    mask = token_mask(batch)
    words = list(chain(*batch.sentences))
    inputs: Arrays = {}
    if (spelled := encoder.character_ids(words)) is not None:
        ids = np.zeros((*mask.shape, metadata.config.max_characters), np.int64)
        ids[mask] = spelled
        if metadata.characters is None and not batch.all_positions:
            ids = ids[..., : encoder.lengths(spelled).max(initial=1)]
        inputs["character_ids"] = ids
    if (rows := encoder.word_ids(words)) is not None:
        inputs["word_ids"] = np.full(mask.shape, metadata.config.absent_word_id, np.int64)
        inputs["word_ids"][mask] = rows
    return inputs


def token_mask(batch: Batch) -> Bool:
    """Return bool [B, T], True at tokens."""
    lengths = np.array([len(sentence) for sentence in batch.sentences], np.int64)
    return np.arange(lengths.max(initial=batch.least_columns) + batch.extra_columns) < lengths[:, None]


def _first_rows(state: Array, rows: int) -> Array:
    """Return the first rows of [2 * layers, rows, D], with new ones zero."""
    new = max(0, rows - state.shape[1])
    return np.pad(state[:, :rows], ((0, 0), (0, new), (0, 0)))
