"""A trained model as a language model: log-probabilities of words in both directions, and perplexity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flashelmo.engine.arguments import path_of
from flashelmo.engine.arrays import Float32
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.text.sentences import tokenized
from flashelmo.engine.training.corpus import EncodedCorpus, read_corpus
from flashelmo.engine.training.evaluate import Scores, log_probabilities, scores_of
from flashelmo.engine.training.model import BiLM, check_trainable
from flashelmo.engine.training.processes import Processes
from flashelmo.engine.training.softmax_files import SOFTMAX_FILE, find_softmax
from flashelmo.engine.training.task import choose_device, use_threads


class TokenScores(NamedTuple):
    """Natural logarithms of the probabilities of a sentence's predictions, float32 [n + 1] each.

    Attributes:
        forward: of its n words and its end, each given the words before.
        backward: of its begin and its n words, each given the words after: backward[t + 1] is that of word t.
    """

    forward: Float32
    backward: Float32


class LanguageModel:
    """The bidirectional language model with its softmax; every sentence starts from a fresh state.

    Args:
        model: with its parameters on a device.
        words: those of the softmax's rows.
    """

    def __init__(self, model: BiLM, words: Sequence[str]) -> None:
        self._model, self.words = model.eval(), list(words)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        options_file: str | Path | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> LanguageModel:
        """Read a model that `flashelmo train` wrote, or bilm-tf's HDF5 with `softmax/W`, `softmax/b` and a vocab.txt.

        Args:
            path: a folder, or a weights file with the softmax beside it.
            options_file: for weights that have none beside them.
            device: "auto", "cpu", "cuda" or "cuda:1".
            threads: PyTorch's processor threads, in the whole process; None leaves them unchanged.

        Raises:
            FlashElmoError: there is no softmax, as with published weights, or the model does not use characters; or
                `threads` is invalid.
        """
        use_threads(threads)
        model = load_model(path, options_file)
        check_trainable(model.config)
        softmax = find_softmax(model)
        if softmax is None:
            raise FlashElmoError(
                f"{model.path}: expected a softmax ({SOFTMAX_FILE}, or softmax/W and softmax/b in the HDF5 file) with "
                "its vocab.txt beside the weights, found none; ELMo's published weights come without"
            )
        tensors = dict(model.weights.named_tensors())
        tensors |= {"softmax.weight": softmax.weight, "softmax.bias": softmax.bias}
        return cls(BiLM(model.config, tensors).to(choose_device(device, Processes())), softmax.words)

    def log_probabilities(self, sentences: Iterable[Sequence[str] | str]) -> list[TokenScores]:
        """Return log-probabilities of every prediction, with each sentence from a fresh state.

        Args:
            sentences: token lists, or strings, which are split on white space.

        Returns:
            For each sentence of n words, float32 [n + 1] forward and backward: natural logarithms. In an empty one, the
            end is predicted after the begin, and vice versa.

        Raises:
            FlashElmoError: the argument is not a list of sentences.
        """
        given = list(tokenized("sentences", sentences))
        if not given:
            return []
        corpus = EncodedCorpus.of(given)
        forward, backward = log_probabilities(self._model, corpus, corpus.rows(self.words))
        ends = (corpus.offsets[1:] + np.arange(1, len(corpus) + 1)).tolist()
        starts = [0, *ends[:-1]]
        return [TokenScores(forward[a:b], backward[a:b]) for a, b in zip(starts, ends, strict=True)]

    def perplexity(self, text: str | Path | Iterable[Sequence[str] | str]) -> Scores:
        """Return a text's perplexity in both directions, each sentence from a fresh state; empty sentences are skipped.

        Args:
            text: a file's path, with one tokenized sentence per line; or token lists, or strings, which are split on
                white space.

        Raises:
            FlashElmoError: there is no token; a file is not UTF-8 text; the argument is not a list of sentences.
            OSError: a file cannot be read.
        """
        if isinstance(text, str | Path):
            corpus = read_corpus([path_of("text", text)])
        else:
            corpus = EncodedCorpus.of([tokens for tokens in tokenized("text", text) if len(tokens)])
            if not len(corpus):
                raise FlashElmoError("text: expected a sentence, found no token")
        return scores_of(self._model, corpus, self.words)
