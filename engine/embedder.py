"""ElmoEmbedder: load a model, choose what runs it, embed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from flashelmo.engine.choice import make_pipeline
from flashelmo.engine.embed_file import Summary, embed_file
from flashelmo.engine.errors import FlashElmoError, shown
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.native import release_pages
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Array, Layers, Mix, Output, normalize, stack
from flashelmo.engine.pipeline import OnProgress, Statistics, Stream
from flashelmo.engine.settings import Options, Settings, check_at_least, shows_options
from flashelmo.engine.sinks import open_sink
from flashelmo.engine.text.sentences import Sentence, check_several, tokens_of
from flashelmo.engine.text.spelling import NO_CHARACTER
from flashelmo.engine.text.windows import Draft, Drafts, Window

if TYPE_CHECKING:
    from typing_extensions import Unpack

ALL_LAYERS = Output()
FIRST_TOKENS = 1 << 15  # of the first window where windows are planned ahead: a device waits for its plan


class ElmoEmbedder:
    """Contextual word vectors of an ELMo model. An instance can be used from several threads.

    Sentences are lists of tokens; a string is split on white space. Vectors are float32 arrays [L, T, 2P]: L layers
    (the characters' one, then each LSTM layer), T tokens, forward then backward halves; float64 for precision "fp64".
    `embed` gives fewer where fewer are asked for: one layer, their average, or the mean over the tokens.

    Attributes:
        config: the model's dimensions.
        settings: as they were given.
        device, precision: where and in what it is computed, now that "auto" is decided.
        window_limits: sentences and tokens that are computed together.

    The same sentence always gets the same vectors, unless `stateful`, which carries the LSTM state from batch to
    batch by batch row, as AllenNLP and bilm-tf do.

    One that was loaded from files is pickled as their path and its settings; a forked process may go on with it on the
    CPU, not on a CUDA device.
    """

    @shows_options
    def __init__(self, model: ElmoModel, **options: Unpack[Options]) -> None:
        """Make an embedder of a model in memory; see `load`."""
        self.settings = Settings.of(options)
        self._load_again: Callable[[], ElmoEmbedder] | None = None
        self.config: ElmoConfig = model.config
        self._pipeline, self.device, self.precision, max_tokens = make_pipeline(model, self.settings)
        self.window_limits: tuple[int, int]
        if self.settings.stateful or max_tokens is None:
            self.window_limits = (
                self.settings.batch_size,
                1 << 62,
            )  # a window is always batch_size sentences, however many tokens
        else:
            self.window_limits = (self.settings.window_tokens or max_tokens,) * 2
        release_pages(model.weights)  # the runtimes have packed their own

    @classmethod
    @shows_options
    def load(
        cls, path: str | Path, *, options_file: str | Path | None = None, **options: Unpack[Options]
    ) -> ElmoEmbedder:
        """Load a published or converted model.

        Args:
            path: a folder, an archive or a weights file, of any format that `flashelmo info` reads.
            options_file: the options of a weights file that has none beside it.
            **options: how it computes: the fields of `engine.settings.Settings`, which says what each means.

        Raises:
            FlashElmoError: files that are missing, damaged or of an unknown format; options that are unknown or do not
                go together.
            MissingExtraError: the chosen runtime's package is not installed.
        """
        Settings.of(options)  # what is wrong with them comes to light before a model is read
        embedder = cls(load_model(path, options_file), **options)
        options_file = None if options_file is None else os.path.abspath(options_file)
        embedder._load_again = partial(cls.load, os.path.abspath(path), options_file=options_file, **options)
        return embedder

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, also in another process, is loaded anew from the same files; a state that was carried stays behind.

        Raises:
            FlashElmoError: the model came from no file.
        """
        if self._load_again is None:
            raise FlashElmoError(
                "embedder of a model in memory: expected one made by `ElmoEmbedder.load`, which is copied by its path; "
                "make it where it is used"
            )
        return self._load_again, ()

    @property
    def statistics(self) -> Statistics:
        """Totals of everything this instance embedded."""
        return self._pipeline.statistics

    @property
    def reads_ahead(self) -> bool:
        """Whether it reads further windows while one is computed, so that a device never waits for its input."""
        return self._pipeline.ahead > 0

    def reset_state(self) -> None:
        """Let every row of a stateful embedder start at zero again."""
        self._pipeline.reset_state()

    def embed_windows(
        self,
        windows: Iterable[Window],
        on_progress: OnProgress = lambda fraction: None,
        output: Output = ALL_LAYERS,
        *,
        convert_to_numpy: bool = True,
    ) -> Stream:
        """Each window with an iterator of its sentences' vectors, in order.

        Args:
            windows: sentences that are computed together; `window_limits` bounds their memory.
            on_progress: called repeatedly with the computed fraction of the next window.
            output: which layers, and whether they are pooled; see `embed` for the shapes. Vectors may have its
                `dtype` already, or else the number type of the computation, which a sink casts.
            convert_to_numpy: numpy arrays; otherwise PyTorch tensors, on the device that computed them.

        Raises:
            FlashElmoError: a layer that the model lacks; raised by the call itself, before anything is read.
            MissingExtraError: tensors are asked for, and PyTorch is not installed; likewise.
        """
        output.check(self.config.n_layers + 1)
        return self._pipeline.stream(windows, output, on_progress, as_numpy=convert_to_numpy)

    def embed(
        self,
        sentences: Iterable[Sentence | str],
        *,
        layers: Layers = "all",
        mix: Mix | None = None,
        pool: str | None = None,
        convert_to_numpy: bool = True,
    ) -> Iterator[Any]:
        """Stream the vectors of any number of sentences, in order, in bounded memory.

        Args:
            sentences: token lists, or strings, which are split on white space.
            layers: "all", "top", "average" (of all layers), the number of a layer, 0 the one of the characters, or
                several numbers.
            mix: in place of `layers` a coefficient for each layer, of which the sum is given, as a trained
                `ScalarMix`'s gamma * softmax(w): numbers, an array or a tensor.
            pool: "mean" for the mean over a sentence's tokens (zeros for an empty sentence), None for every token.
                Boundaries that are kept count as tokens.
            convert_to_numpy: numpy arrays, which are the caller's; otherwise PyTorch tensors where they were computed,
                a window's in one piece of memory: clone those that are kept without their neighbours.

        Returns:
            For each sentence [L, T, 2P], or [T, 2P] where `layers` names one vector a token; pooled [L, 2P], or [2P].

        Raises:
            FlashElmoError: `layers`, `mix` or `pool` is none of these, or the model lacks the layer; one text, a
                dictionary or a table in place of sentences; raised by the call itself, before a sentence is read.
            MissingExtraError: tensors are asked for, and PyTorch is not installed; likewise.
        """
        return self._embed(sentences, self.window_limits, Output(layers, pool=pool, mix=mix), convert_to_numpy)

    def embed_batch(self, batch: Sequence[Sentence | str]) -> list[Array]:
        """The vectors [L, T, 2P] of each sentence (AllenNLP's method).

        A stateful embedder takes the sentences as one batch, however many, and a row of its state for each. As in
        AllenNLP, one empty sentence by itself leaves the state as it is, unless boundaries are kept.
        """
        if not self.settings.stateful:
            return list(self.embed(batch))
        check_several("sentences", batch)
        batch = list(batch)
        if len(batch) == 1 and not (self.settings.keep_sentence_boundaries or tokens_of(batch[0])):
            number = np.float64 if self.precision == "fp64" else np.float32
            return [np.empty((self.config.n_layers + 1, 0, self.config.output_size), number)]
        return list(self._embed(batch, self._limits(len(batch) or None), ALL_LAYERS))

    def embed_sentence(self, sentence: Sentence | str) -> Array:
        """The vectors [L, T, 2P] of one sentence (AllenNLP's method)."""
        return self.embed_batch([sentence])[0]

    def embed_sentences(self, sentences: Iterable[Sentence | str], batch_size: int | None = None) -> Iterator[Array]:
        """As `embed`; `batch_size` is the rows of a stateful embedder's batches (AllenNLP's method)."""
        limits = self._limits(batch_size)
        if not self.settings.stateful:
            return self._embed(sentences, limits, ALL_LAYERS)
        check_several("sentences", sentences)
        rest = iter(sentences)
        batches = iter(lambda: list(islice(rest, limits[0])), [])
        return chain.from_iterable(map(self.embed_batch, batches))

    def embed_file(
        self,
        input_file: str | Path | IO[Any],
        output_file_path: str | Path,
        output_format: str | int = "all",
        batch_size: int | None = None,
        forget_sentences: bool = False,
        use_sentence_keys: bool = False,
        *,
        overwrite: bool = False,
    ) -> Summary:
        """Embed a text of one sentence a line into a file in AllenNLP's layout (AllenNLP's method).

        Args:
            input_file: a path or an open file; tokens stand between white space.
            output_file_path: HDF5, or `.npz`; it appears when it is whole.
            output_format: "all" layers, "top", "average" or a layer's number.
            batch_size: as in `embed_sentences`.
            forget_sentences: leave out the index of sentences.
            use_sentence_keys: sentences, not line numbers, are the keys.
            overwrite: replace a file that exists.

        Raises:
            FlashElmoError: text that is not UTF-8, a layer that is not there, a file that cannot be written.
        """
        check_at_least("batch_size", batch_size, 1)
        with open_sink(
            output_file_path,
            Output(output_format),
            overwrite=overwrite,
            use_sentence_keys=use_sentence_keys,
            forget_sentences=forget_sentences,
        ) as sink:
            return embed_file(self, input_file, sink, max_sentences=batch_size)

    def encode(
        self,
        sentences: str | Sequence[str] | Sequence[Sentence],
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        output_value: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding",
        convert_to_numpy: bool = True,
        normalize_embeddings: bool = False,
        *,
        layers: Layers = "average",
        mix: Mix | None = None,
    ) -> Any:
        """Vectors of sentences under sentence-transformers' names.

        Args:
            sentences: one string, or a sequence of strings (split on white space) or of token lists.
            batch_size: at most this many sentences at once; None lets the schedule choose.
            show_progress_bar: show one on standard error.
            output_value: "sentence_embedding", the mean over tokens [2P] (zeros for an empty sentence), or
                "token_embeddings" [T, 2P].
            convert_to_numpy: numpy arrays; otherwise PyTorch tensors, on the device that computed them.
            normalize_embeddings: scale every vector to length 1; zeros stay zeros.
            layers: "average" of the layers, "top", or the number of one.
            mix: in place of `layers` a coefficient for each, as `embed` takes it.

        Returns:
            For "sentence_embedding" an array [B, 2P] ([2P] for one string); for "token_embeddings" a list of arrays
            (one array for one string).

        Raises:
            FlashElmoError: an argument that is none of these, a layer that the model lacks.
            MissingExtraError: tensors are asked for, and PyTorch is not installed.
        """
        if output_value not in ("sentence_embedding", "token_embeddings"):
            expected = "'sentence_embedding' or 'token_embeddings'"
            raise FlashElmoError(f"output_value: expected {expected}, found {output_value!r}")
        pooled = output_value == "sentence_embedding"
        output = Output(layers, pool="mean" if pooled else None, mix=mix)
        if not output.single:
            raise FlashElmoError(f"layers: expected 'average', 'top' or a layer's number, found {shown(layers)}")
        batch: Sequence[Sentence | str] = [sentences] if isinstance(sentences, str) else sentences
        stream = self._embed(batch, self._limits(batch_size), output, convert_to_numpy)
        if show_progress_bar:
            from tqdm import tqdm

            stream = tqdm(stream, total=len(batch), unit="sentence")
        results = [normalize(vectors) if normalize_embeddings else vectors for vectors in stream]
        if isinstance(sentences, str):
            return results[0]
        return stack(results, self.config.output_size, convert_to_numpy) if pooled else results

    def _embed(
        self,
        sentences: Iterable[Sentence | str],
        limits: tuple[int, int],
        output: Output,
        convert_to_numpy: bool = True,
    ) -> Iterator[Any]:
        """Results of sentences in windows of at most `limits` sentences and tokens."""
        check_several("sentences", sentences)
        grows = self.reads_ahead and not self.settings.stateful
        surrogate = NO_CHARACTER if self.config.family == "manylangs" else ""
        drafts = Drafts(_drafts(sentences, *limits, FIRST_TOKENS if grows else limits[1], surrogate))
        windows = self.embed_windows(drafts, output=output, convert_to_numpy=convert_to_numpy)
        return chain.from_iterable(results for _, results in windows)

    def _limits(self, batch_size: int | None) -> tuple[int, int]:
        """The window's limits, with a number of sentences that a caller chose."""
        if batch_size is None:
            return self.window_limits
        check_at_least("batch_size", batch_size, 1)
        return batch_size, self.window_limits[1]


def _drafts(
    sentences: Iterable[Sentence | str], max_sentences: int, max_tokens: int, first_tokens: int, surrogate: str
) -> Iterator[Draft]:
    """Group sentences; a window ends before it would pass either bound. The first has fewer tokens, the next twice."""
    bound = min(first_tokens, max_tokens)
    batch: list[Sentence] = []
    n_tokens = 0
    for sentence in sentences:
        tokens = tokens_of(sentence)
        if batch and (len(batch) == max_sentences or n_tokens + len(tokens) > bound):
            yield Draft.of(batch, surrogate)
            batch, n_tokens, bound = [], 0, min(2 * bound, max_tokens)
        batch.append(tokens)
        n_tokens += len(tokens)
    if batch:
        yield Draft.of(batch, surrogate)
