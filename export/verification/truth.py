"""What exported files are compared with: the PyTorch reference, each sentence computed once."""

from __future__ import annotations

from collections.abc import Sequence

from flashelmo.engine.arrays import Floats
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.export.verification.cases import Batch, Sentence

BATCH_SIZE = 32


class Truth:
    """One model's vectors, computed when first needed and kept for every file made from it."""

    def __init__(self, model: ElmoModel) -> None:
        self.model = model
        self._layers: dict[Sentence, Floats] = {}
        self._carried: dict[tuple[Batch, ...], list[tuple[list[Floats], dict[str, Floats]]]] = {}

    def layers(self, sentences: Sequence[Sentence]) -> list[Floats]:
        """Return layers [L, tokens, 2P] of every sentence, each from a fresh state."""
        new = sorted(set(sentences) - self._layers.keys(), key=lambda sentence: (len(sentence), sentence))
        if new:  # by length, to save padding
            computed = ReferenceRuntime(self.model, batch_size=BATCH_SIZE).embed_batch(new)
            self._layers |= zip(new, computed, strict=True)
        return [self._layers[sentence] for sentence in sentences]

    def carried(self, batches: tuple[Batch, ...]) -> list[tuple[list[Floats], dict[str, Floats]]]:
        """Do as `layers`, for batches that each start where the previous one ended; also return each batch's final
        state.

        A state is that of the batch's own rows: {"hidden": [2 * LSTM layers, B, P], "cell": [2 * LSTM layers, B, C]}.
        """
        if batches not in self._carried:
            runtime = ReferenceRuntime(self.model, stateful=True)
            self._carried[batches] = [
                (runtime.embed_batch(batch.sentences), _state(runtime, len(batch.sentences))) for batch in batches
            ]
        return self._carried[batches]


def _state(runtime: ReferenceRuntime, rows: int) -> dict[str, Floats]:
    state = runtime.elmo.state
    assert state is not None  # a batch has run
    both = {"hidden": state.hidden, "cell": state.cell}
    return {name: values.flatten(0, 1)[:, :rows].numpy().copy() for name, values in both.items()}
