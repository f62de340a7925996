"""ElmoEmbedder: load a model, choose what runs it, embed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from flashelmo.engine.allennlp import files_of, padded, with_defaults
from flashelmo.engine.arguments import flag, is_one_of, path_of, shown, whole_number
from flashelmo.engine.arrays import Array
from flashelmo.engine.choice import make_pipeline
from flashelmo.engine.embed_file import Summary, embed_file
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.card import HubOptions, push_to_hub, save_pretrained
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.native import release_pages
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.named.locate import bundled
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Layers, Mix, Output
from flashelmo.engine.pipeline import ClosedPipeline, OnProgress, Statistics, Stream
from flashelmo.engine.sentence_transformers import check_foreign, encode
from flashelmo.engine.settings import Device, Options, Settings, shows_options
from flashelmo.engine.sinks import open_sink
from flashelmo.engine.system.processor import int8_levels
from flashelmo.engine.text.schedule import MAX_WINDOW_SENTENCES
from flashelmo.engine.text.sentences import Sentence, grouped, several, tokenized, tokens_of
from flashelmo.engine.text.spelling import in_place_of_surrogates
from flashelmo.engine.text.windows import Draft, Drafts, Window

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self, Unpack

logger = logging.getLogger("flashelmo")

ALL_LAYERS = Output()
FIRST_TOKENS = 1 << 15  # of the first window where windows are planned ahead: a device waits for its plan


class ElmoEmbedder:
    """Computes contextual word vectors with an ELMo model. Instances are thread-safe.

    Sentences are lists of tokens; a string is split on whitespace. Vectors are float32 arrays [L, T, 2P]: L layers
    (the character layer, then each LSTM layer), T tokens, forward then backward halves; float64 for precision "fp64".
    `embed` can return less: a single layer, the layers' average, or vectors pooled over the tokens.

    Attributes:
        config: the model's dimensions.
        settings: the settings as given.
        device, runtime, precision: what is actually used, with "auto" resolved.
        window_limits: the most sentences and tokens that are computed together.

    The same sentence always gets the same vectors, unless `stateful`, which carries the LSTM state from batch to
    batch by batch row, as AllenNLP and bilm-tf do.

    An embedder loaded from files is pickled as their path and its settings. A forked process may keep using it on the
    CPU, but not on a CUDA device.
    """

    @shows_options
    def __init__(
        self,
        model: ElmoModel | str | Path | None = None,
        weight_file: str | Path | None = None,
        cuda_device: int | None = None,
        *,
        options_file: str | Path | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Create an embedder from a model in memory or from files; also takes AllenNLP's arguments.

        Args:
            model: a model in memory, or whatever `load` takes; together with `weight_file`, AllenNLP's options file.
            weight_file: the weights, as in AllenNLP.
            cuda_device: a card's number, or -1 for the CPU. With this or `weight_file`, the defaults are AllenNLP's:
                the CPU and float32.
            options_file, **options: as for `load`.
        """
        options = with_defaults(weight_file, cuda_device, options)
        self.settings = Settings.of(options)  # what is wrong with them comes to light before a model is read
        self._load_again: Callable[[], ElmoEmbedder] | None = None
        self._read_model: Callable[[], ElmoModel]
        if not isinstance(model, ElmoModel):
            path, options_file = files_of(model, weight_file, options_file)
            model = load_model(path, options_file)
            again = os.path.abspath(model.path), None if options_file is None else os.path.abspath(options_file)
            self._read_model = partial(load_model, *again)
            self._load_again = partial(type(self).load, again[0], options_file=again[1], **options)
        elif weight_file is not None or options_file is not None:
            raise FlashElmoError("weight_file, options_file: cannot be combined with a model in memory")
        else:
            self._read_model = lambda: model
        self.config: ElmoConfig = model.config
        self._path = model.path
        self._pipeline, self.device, self.runtime, self.precision, max_tokens = make_pipeline(model, self.settings)
        self.window_limits: tuple[int, int]
        if self.settings.stateful or max_tokens is None:
            self.window_limits = (self.settings.batch_size, 1 << 62)  # so many sentences, however many tokens
        else:
            max_tokens = self.settings.window_tokens or max_tokens
            self.window_limits = (min(max_tokens, MAX_WINDOW_SENTENCES), max_tokens)
        release_pages(model.weights)  # the runtimes have packed their own
        logger.info(
            "%s: %s parameters, %s, %s", model.path, f"{model.weights.n_parameters:,}", self.device, self.precision
        )

    @classmethod
    @shows_options
    def load(
        cls, path: str | Path | None = None, *, options_file: str | Path | None = None, **options: Unpack[Options]
    ) -> ElmoEmbedder:
        """Load a published or converted model, or the small English one that comes with the package.

        Args:
            path: a folder, an archive or a weights file, in any format that `flashelmo info` reads; or a name listed
                by `flashelmo models`, such as "original", which is downloaded on first use if no such path exists. None
                is the model of 3.0M parameters that comes with the package ("tiny").
            options_file: the options file, if it is not next to the weights.
            **options: how to compute: the fields of `engine.settings.Settings`, documented there.

        Raises:
            FlashElmoError: files are missing, damaged or of an unknown format; a download fails; options are unknown
                or incompatible.
            MissingExtraError: the package of the chosen runtime, or for downloads, is not installed.
        """
        return cls(bundled() if path is None else path_of("path", path), options_file=options_file, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, in this or another process, are loaded again from the same files; carried state is not copied.

        Raises:
            FlashElmoError: the model was not loaded from files.
        """
        if self._load_again is None:
            raise FlashElmoError(
                "embedder of a model in memory: expected one made by `ElmoEmbedder.load`, which is copied by its path; "
                "make it where it is used"
            )
        return self._load_again, ()

    def close(self) -> None:
        """Let go of what computes: the packed weights, a card's memory, the processes of several devices.

        The last reference to an embedder does the same, and so does the end of a `with` block. Streams that have begun
        go on; further calls raise FlashElmoError.
        """
        self._pipeline = ClosedPipeline(self._pipeline.statistics)

    def __enter__(self) -> Self:
        """For `with`: the embedder itself, which is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """As "ElmoEmbedder(model, device='cpu', runtime='ort', precision='fp32')"."""
        where = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("device", "runtime", "precision"))
        return f"{type(self).__name__}({str(self._path)!r}, {where})"

    @property
    def statistics(self) -> Statistics:
        """Totals over everything that this instance has embedded."""
        return self._pipeline.statistics

    def fingerprint(self) -> dict[str, Any]:
        """What the vectors depend on, as JSON values: the model's sha256, dimensions, runtime, precision and settings.

        Weights that came from files are read again for this.

        Raises:
            FlashElmoError: the files are no longer there.
        """
        more: dict[str, Any] = {}  # of which nothing is said where it is as usual, as by folders without these entries
        if self.runtime == "cuda" and self.settings.cuda.batch_invariant:
            more = {"batch_invariant": True}
        elif (self.runtime, self.precision) == ("ort", "int8") and int8_levels() < 127:
            more = {"int8_levels": int8_levels()}  # this processor needs weights of fewer bits
        return {
            "sha256": self._read_model().sha256,
            **self.config.to_dict(),
            "runtime": self.runtime,
            "precision": self.precision,
            "keep_sentence_boundaries": self.settings.keep_sentence_boundaries,
            "stateful": self.settings.stateful,
            **more,
        }

    def save_pretrained(
        self, folder: str | Path, *, license: str | None = None, language: str | None = None, overwrite: bool = False
    ) -> None:
        """Write the model to a folder in flashelmo's own format, with a model card: see `engine.model.card`."""
        save_pretrained(self._read_model(), folder, license=license, language=language, overwrite=overwrite)

    def push_to_hub(self, repo_id: str, **options: Unpack[HubOptions]) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; returns its URL: see `engine.model.card`."""
        return push_to_hub(self._read_model(), repo_id, **options)

    @property
    def reads_ahead(self) -> bool:
        """Whether further windows are read while one is computed, so that a device never waits for input."""
        return self._pipeline.ahead > 0

    @property
    def first_tokens(self) -> int:
        """Token limit of a stream's first window; it then doubles, so that a device starts early."""
        grows = self.reads_ahead and not self.settings.stateful
        return min(FIRST_TOKENS, self.window_limits[1]) if grows else self.window_limits[1]

    def reset_state(self) -> None:
        """Reset every row of a stateful embedder to zero; without `stateful` there is no state to reset.

        Raises:
            FlashElmoError: called from within the embedder's own progress callback.
        """
        self._pipeline.reset_state()

    def embed_windows(
        self,
        windows: Iterable[Window],
        on_progress: OnProgress = lambda fraction: None,
        output: Output = ALL_LAYERS,
        *,
        convert_to_numpy: bool = True,
    ) -> Stream:
        """Yield each window with an iterator over its sentences' vectors, in order.

        Args:
            windows: sentences to compute together; `window_limits` bounds their memory.
            on_progress: called repeatedly with the computed fraction of the next window.
            output: which layers, and whether they are pooled; see `embed` for the shapes. Vectors may already have
                its `dtype`, or else the number type of the computation, which a sink casts.
            convert_to_numpy: return numpy arrays; otherwise PyTorch tensors, on the device that computed them.

        Raises:
            FlashElmoError: the model lacks a layer; raised by the call itself, before anything is read.
            MissingExtraError: tensors are requested but PyTorch is not installed; also raised by the call itself.
        """
        if not isinstance(output, Output):
            raise FlashElmoError(f"output: expected an Output, found {shown(output)}")
        if not callable(on_progress):
            raise FlashElmoError(f"on_progress: expected a function, found {shown(on_progress)}")
        output.check(self.config.n_layers + 1)
        if not isinstance(windows, Drafts):
            windows = map(_checked_window, several("windows", windows))
        convert_to_numpy = flag("convert_to_numpy", convert_to_numpy)
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
            sentences: token lists, or strings to split on whitespace: in a list, an iterator, a NumPy or Arrow array,
                or a column of a table.
            layers: "all", "top", "average" (of all layers), a layer's number (0 is the character layer), or several
                numbers.
            mix: instead of `layers`, a coefficient for each layer of a weighted sum, such as a trained `ScalarMix`'s
                gamma * softmax(w): numbers, an array or a tensor.
            pool: "mean" or "max" over a sentence's tokens (zeros for an empty sentence), or None for no pooling.
                Boundaries that are kept count as tokens.
            convert_to_numpy: return numpy arrays, which the caller owns; otherwise PyTorch tensors on the device that
                computed them. A window's tensors share memory: clone those that you keep without the others.

        Returns:
            For each sentence [L, T, 2P], or [T, 2P] if `layers` selects one vector per token; pooled [L, 2P], or [2P].

        Raises:
            FlashElmoError: `layers`, `mix` or `pool` is invalid, or the model lacks the layer; `sentences` is a single
                text, a dictionary or a table; raised by the call itself, before a sentence is read.
            MissingExtraError: tensors are requested but PyTorch is not installed; also raised by the call itself.
        """
        given = several("sentences", sentences)
        return self._embed(given, self.window_limits, Output(layers, pool=pool, mix=mix), convert_to_numpy)

    def embed_batch(self, batch: Iterable[Sentence | str]) -> list[Array]:
        """Embed the sentences of one batch (AllenNLP's method).

        A stateful embedder takes the sentences as one batch, whatever their number, with a row of state for each. As in
        AllenNLP, a single empty sentence leaves the state unchanged, unless boundaries are kept.

        Returns:
            For each sentence all layers [L, T, 2P], or [L, T + 2, 2P] if boundaries are kept.

        Raises:
            FlashElmoError: `batch` is a single text, a dictionary or a table; vectors are not finite.
        """
        rows = list(several("batch", batch))
        keeps_state = self.settings.stateful and len(rows) == 1 and not self.settings.keep_sentence_boundaries
        if keeps_state and not tokens_of(rows[0]):
            return [self._none(self.config.n_layers + 1, 0)]
        return self._embed_rows(rows)

    def batch_to_embeddings(self, batch: Iterable[Sentence | str]) -> tuple[Tensor, Tensor]:
        """Embed one batch to tensors on the device that computed them (AllenNLP's method).

        Returns:
            The vectors [B, L, T, 2P], zero past a sentence's end, and the mask int64 [B, T], 1 at tokens; T is the
            length of the longest sentence.

        Raises:
            FlashElmoError: `batch` is empty or does not consist of sentences.
            MissingExtraError: PyTorch is not installed.
        """
        rows = list(several("batch", batch))
        if not rows:
            raise FlashElmoError("batch: expected one sentence or more, found none")
        return padded(self._embed_rows(rows, convert_to_numpy=False))

    def embed_sentence(self, sentence: Sentence | str) -> Array:
        """Embed one sentence (AllenNLP's method).

        Returns:
            All layers [L, T, 2P], or [L, T + 2, 2P] if boundaries are kept.

        Raises:
            FlashElmoError: `sentence` is neither a list of tokens nor a text; vectors are not finite.
        """
        tokens = tokens_of(sentence)
        return self.embed_batch([tokens])[0]

    def embed_sentences(self, sentences: Iterable[Sentence | str], batch_size: int | None = None) -> Iterator[Array]:
        """Stream the vectors of sentences, like `embed` (AllenNLP's method).

        Args:
            sentences: as for `embed`.
            batch_size: the most sentences to compute at once; a stateful embedder's batches have exactly as many rows.
                None is the embedder's own limit.

        Returns:
            For each sentence all layers [L, T, 2P], or [L, T + 2, 2P] if boundaries are kept.

        Raises:
            FlashElmoError: as for `embed`; `batch_size` is not a whole number of at least 1.
        """
        limits = self._limits(batch_size)
        if not self.settings.stateful:
            return self._embed(several("sentences", sentences), limits, ALL_LAYERS)
        rest = tokenized("sentences", sentences)
        batches = iter(lambda: list(islice(rest, limits[0])), [])
        return _one_by_one(map(self.embed_batch, batches))

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
        """Embed a text with one sentence per line into a file in AllenNLP's layout (AllenNLP's method).

        Args:
            input_file: a path or an open file, with tokens separated by whitespace.
            output_file_path: HDF5, or `.npz`; the file appears only when complete.
            output_format: "all" layers, "top", "average" or a layer's number.
            batch_size: as in `embed_sentences`.
            forget_sentences: omit the index of sentences.
            use_sentence_keys: use sentences, not line numbers, as keys.
            overwrite: replace an existing file.

        Raises:
            FlashElmoError: the text is not UTF-8, the model lacks the layer, or the file cannot be written.
        """
        max_sentences = None if batch_size is None else self._limits(batch_size)[0]
        if not hasattr(input_file, "read") and not is_one_of(input_file, "-"):
            input_file = path_of("input_file", input_file)
        with open_sink(
            path_of("output_file_path", output_file_path),
            self._output_format(output_format),
            overwrite=overwrite,
            use_sentence_keys=use_sentence_keys,
            forget_sentences=forget_sentences,
        ) as sink:
            return embed_file(self, input_file, sink, max_sentences=max_sentences)

    def encode(
        self,
        sentences: str | Iterable[Sentence | str],
        batch_size: int | None = None,
        show_progress_bar: bool | None = False,
        output_value: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding",
        convert_to_numpy: bool = True,
        normalize_embeddings: bool = False,
        *,
        layers: Layers = "average",
        mix: Mix | None = None,
        convert_to_tensor: bool = False,
        device: Device | None = None,
        precision: str = "float32",
        prompt_name: str | None = None,
    ) -> Any:
        """Embed sentences, with sentence-transformers' parameter names.

        Args:
            sentences: one string, or what `embed` takes.
            batch_size: the most sentences to compute at once; None lets the schedule choose.
            show_progress_bar: show a progress bar on standard error.
            output_value: "sentence_embedding", the mean over tokens [2P] (zeros for an empty sentence), or
                "token_embeddings" [T, 2P].
            convert_to_numpy: return numpy arrays; otherwise PyTorch tensors, on the device that computed them.
            normalize_embeddings: scale every vector to length 1; zeros stay zeros.
            layers: "average" of the layers, "top", or a layer's number.
            mix: instead of `layers`, a coefficient for each layer, as for `embed`.
            convert_to_tensor: return PyTorch tensors, whatever `convert_to_numpy` is.
            device: None, or the device of this embedder.
            precision: only "float32"; quantized vectors are not supported.
            prompt_name: ignored, with one warning: ELMo has no prompts.

        Returns:
            For "sentence_embedding" an array [B, 2P] ([2P] for one string); for "token_embeddings" a list of arrays
            (one array for one string).

        Raises:
            FlashElmoError: an argument is invalid, or the model lacks the layer.
            MissingExtraError: tensors are requested but PyTorch is not installed.
        """
        check_foreign(self.device, device, precision, prompt_name)
        as_numpy = flag("convert_to_numpy", convert_to_numpy) and not flag("convert_to_tensor", convert_to_tensor)
        limits = self._limits(batch_size)
        return encode(
            lambda rows, output: self._embed(rows, limits, output, as_numpy),
            sentences,
            none=lambda: self._none(0),
            output_value=output_value,
            layers=layers,
            mix=mix,
            as_numpy=as_numpy,
            normalize_embeddings=normalize_embeddings,
            show_progress_bar=show_progress_bar,
        )

    def _none(self, *shape: int) -> Array:
        """Vectors [*shape, 2P] of no tokens or sentences, of the type that others have."""
        return np.empty((*shape, self.config.output_size), np.float64 if self.precision == "fp64" else np.float32)

    def _output_format(self, name: Layers) -> Output:
        """What AllenNLP's argument of this name asks for."""
        try:
            output = Output(name)
            output.check(self.config.n_layers + 1)
        except FlashElmoError as error:
            raise FlashElmoError(f"output_format: {str(error).partition(': ')[2]}") from None
        return output

    def _embed_rows(self, rows: list[Sentence | str], convert_to_numpy: bool = True) -> list[Any]:
        """All layers of the sentences of one batch, which is a stateful embedder's however many they are."""
        limits = self._limits(len(rows) or None) if self.settings.stateful else self.window_limits
        return list(self._embed(iter(rows), limits, ALL_LAYERS, convert_to_numpy))

    def _embed(
        self,
        sentences: Iterator[Sentence | str],
        limits: tuple[int, int],
        output: Output,
        convert_to_numpy: bool = True,
    ) -> Iterator[Any]:
        """Results of sentences in windows of at most `limits` sentences and tokens."""
        surrogate = in_place_of_surrogates(self.config.family)
        groups = grouped(sentences, *limits, self.first_tokens)
        drafts = Drafts(Draft.of(group, surrogate) for group in groups)
        windows = self.embed_windows(drafts, output=output, convert_to_numpy=convert_to_numpy)
        return _one_by_one(results for _, results in windows)

    def _limits(self, batch_size: int | None) -> tuple[int, int]:
        """The window's limits, with a number of sentences that a caller chose."""
        if batch_size is None:
            return self.window_limits
        batch_size = whole_number("batch_size", batch_size, 1)
        return batch_size if self.settings.stateful else min(batch_size, MAX_WINDOW_SENTENCES), self.window_limits[1]


def _one_by_one(several: Iterable[Iterable[Any]]) -> Iterator[Any]:
    """All values in order. Unlike `itertools.chain`, it raises, and does not crash, if several threads share it."""
    for values in several:
        yield from values


def _checked_window(window: Any) -> Window:
    if not isinstance(window, Window):
        raise FlashElmoError(f"windows: expected a Window, found {shown(window)}")
    return window
