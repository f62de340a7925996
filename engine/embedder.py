"""ElmoEmbedder: load a model, choose what runs it, embed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from flashelmo.engine.choice import Precision, RuntimeName, choose_runtime
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.cuda.settings import CudaSettings
from flashelmo.engine.embed_file import Summary, embed_file
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.make_pipeline import make_pipeline
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.native import release_pages
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Layers, Output, normalize, stack
from flashelmo.engine.pipeline import OnShare, Statistics, Stream, WindowPipeline
from flashelmo.engine.sinks import open_sink
from flashelmo.engine.text.windows import Window

Sentence: TypeAlias = Sequence[str]

ALL_LAYERS = Output()


class ElmoEmbedder:
    """Contextual word vectors of an ELMo model. An instance can be used from several threads.

    Sentences are lists of tokens; a string is split on white space. Vectors are float32 arrays [L, T, 2P]: L layers
    (the characters' one, then each LSTM layer), T tokens, forward then backward halves; float64 for precision "fp64".
    `embed` gives fewer where fewer are asked for: one layer, their average, or the mean over the tokens.

    Attributes:
        config: the model's dimensions.
        device, precision: where and in what it is computed, now that "auto" is decided.
        window_limits: sentences and tokens that are computed together.

    The same sentence always gets the same vectors, unless `stateful`, which carries the LSTM state from batch to
    batch by batch row, as AllenNLP and bilm-tf do.
    """

    def __init__(
        self,
        model: ElmoModel,
        *,
        device: str | Sequence[str] = "auto",
        precision: Precision = "auto",
        runtime: RuntimeName = "auto",
        stateful: bool = False,
        batch_size: int = 64,
        threads: int | None = None,
        keep_sentence_boundaries: bool = False,
        share: bool = True,
        cache_bytes: int = 128 << 20,
        window_tokens: int | None = None,
        cuda: CudaSettings | None = None,
    ) -> None:
        """Make an embedder of a model in memory; see `load`."""
        for name, value in (("batch_size", batch_size), ("threads", threads), ("window_tokens", window_tokens)):
            if value is not None:
                _check_positive(name, value)
        if cache_bytes < 0:
            raise FlashElmoError(f"cache_bytes: expected 0 or more, found {cache_bytes}")
        self.config: ElmoConfig = model.config
        self.keep_sentence_boundaries = keep_sentence_boundaries
        choice = choose_runtime(device, precision, runtime)
        made = make_pipeline(
            model,
            choice,
            keep_boundaries=keep_sentence_boundaries,
            share=share,
            stateful=stateful,
            batch_size=batch_size,
            cache_bytes=cache_bytes,
            window_tokens=window_tokens,
            threads=threads,
            cuda=cuda or CudaSettings(),
        )
        self._pipeline: WindowPipeline = made.pipeline
        self.device, self.precision = made.device, made.precision
        most_tokens = window_tokens or made.max_tokens
        self.window_limits: tuple[int, int] = (most_tokens, most_tokens)
        if stateful or choice.runtime == "reference":
            self.window_limits = (batch_size, 1 << 62)  # a batch is its rows, however long
        release_pages(model.weights)  # the runtimes have packed their own

    @classmethod
    def load(cls, path: str | Path, *, options_file: str | Path | None = None, **settings: Any) -> ElmoEmbedder:
        """Load a published or converted model.

        Args:
            path: a folder, an archive or a weights file, of any format that `flashelmo info` reads.
            options_file: the options of a weights file that has none beside it.
            **settings: what the constructor takes:
                device: "cpu"; "cuda", "cuda:1", or a list of such names, each of which gets a process; "auto" is
                    "cuda" where it can be used, and otherwise says once that it is the CPU.
                precision: on the CPU "fp32", "int8" (8-bit LSTM weights), "bf16" (OpenVINO) or "fp64" (the PyTorch
                    reference); on a CUDA device "bf16", "fp16", "fp32", "tf32", or "int8" (8-bit LSTM weights, the
                    rest in bf16). "auto" is "bf16" on CUDA devices that have it, otherwise "fp32".
                runtime: "auto"; on the CPU "ort", "openvino" or "reference", on a CUDA device "cuda".
                stateful: carry the LSTM state from batch to batch of `batch_size` sentences.
                batch_size: sentences of a batch where stateful, or with the reference; otherwise without effect.
                threads: processor threads; None takes all cores. On a CUDA device they make schedules, 4 at most.
                keep_sentence_boundaries: give the vectors of the begin and end of sentence too, T + 2 rows.
                share: compute equal prefixes and suffixes of sentences once.
                cache_bytes: bound of the word vectors kept from call to call.
                window_tokens: tokens (and sentences) computed together; None bounds their hidden states to 256 MiB,
                    on a CUDA device to what fits its free memory.
                cuda: switches of the CUDA runtime that change its speed alone (`engine.cuda.settings`).

        Raises:
            FlashElmoError: files that are missing, damaged or of an unknown format; settings that do not go together.
            MissingExtraError: the chosen runtime's package is not installed.
        """
        return cls(load_model(path, options_file), **settings)

    @property
    def statistics(self) -> Statistics:
        """Totals of everything this instance embedded."""
        return self._pipeline.statistics

    @property
    def reads_ahead(self) -> bool:
        """Whether windows are read before those ahead of them are computed, as a device never waits for its input."""
        return self._pipeline.ahead > 0

    def reset_state(self) -> None:
        """Let every row of a stateful embedder start at zero again."""
        self._pipeline.reset_state()

    def embed_windows(
        self,
        windows: Iterable[Window],
        on_share: OnShare = lambda share: None,
        output: Output = ALL_LAYERS,
        *,
        convert_to_numpy: bool = True,
    ) -> Stream:
        """Each window with an iterator of its sentences' vectors, in order.

        Args:
            windows: sentences that are computed together; `window_limits` bounds their memory.
            on_share: hears again and again what share is computed of the window that comes next.
            output: which layers, and whether they are pooled; see `embed` for the shapes. Vectors may have its
                `dtype` already, or else the number type of the computation, which a sink casts.
            convert_to_numpy: numpy arrays; otherwise PyTorch tensors, on the device that computed them.

        Raises:
            FlashElmoError: a layer that the model lacks; raised by the call itself, before anything is read.
            MissingExtraError: tensors are asked for, and PyTorch is not installed; likewise.
        """
        output.check(self.config.n_layers + 1)
        return self._pipeline.stream(windows, output, on_share, as_numpy=convert_to_numpy)

    def embed(
        self,
        sentences: Iterable[Sentence | str],
        *,
        layers: Layers = "all",
        pool: str | None = None,
        convert_to_numpy: bool = True,
    ) -> Iterator[Any]:
        """Stream the vectors of any number of sentences, in order, in bounded memory.

        Args:
            sentences: token lists, or strings, which are split on white space.
            layers: "all", "top", "average" (of all layers), the number of a layer, 0 the one of the characters, or a
                mix: a coefficient for each layer, as a trained `ScalarMix`'s gamma * softmax(w).
            pool: "mean" for the mean over a sentence's tokens (zeros for an empty sentence), None for every token.
                Boundaries that are kept count as tokens.
            convert_to_numpy: numpy arrays, which are the caller's; otherwise PyTorch tensors where they were computed,
                a window's in one piece of memory: clone those that are kept without their neighbours.

        Returns:
            For each sentence [L, T, 2P], or [T, 2P] where `layers` is not "all"; pooled [L, 2P], or [2P].

        Raises:
            FlashElmoError: `layers` or `pool` is none of these, or the model lacks the layer; raised by the call
                itself, before a sentence is read.
            MissingExtraError: tensors are asked for, and PyTorch is not installed; likewise.
        """
        return self._embed(sentences, self.window_limits, Output(layers, pool=pool), convert_to_numpy)

    def embed_batch(self, batch: Sequence[Sentence | str]) -> list[Array]:
        """The vectors [L, T, 2P] of each sentence (AllenNLP's method)."""
        return list(self.embed(batch))

    def embed_sentence(self, sentence: Sentence | str) -> Array:
        """The vectors [L, T, 2P] of one sentence (AllenNLP's method)."""
        return self.embed_batch([sentence])[0]

    def embed_sentences(self, sentences: Iterable[Sentence | str], batch_size: int | None = None) -> Iterator[Array]:
        """As `embed`; `batch_size` is the rows of a stateful embedder's batches (AllenNLP's method)."""
        return self._embed(sentences, self._limits(batch_size), ALL_LAYERS)

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
        if batch_size is not None:
            _check_positive("batch_size", batch_size)
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
            layers: "average" of the layers, "top", the number of one, or a mix, as `embed` takes it.

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
        if layers == "all":
            raise FlashElmoError("layers: expected 'average', 'top', a layer's number or a mix, found 'all'")
        pooled = output_value == "sentence_embedding"
        output = Output(layers, pool="mean" if pooled else None)
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
        windows = self.embed_windows(_windows(sentences, *limits), output=output, convert_to_numpy=convert_to_numpy)
        return chain.from_iterable(results for _, results in windows)

    def _limits(self, batch_size: int | None) -> tuple[int, int]:
        """The window's limits, with a number of sentences that a caller chose."""
        if batch_size is None:
            return self.window_limits
        _check_positive("batch_size", batch_size)
        return batch_size, self.window_limits[1]


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise FlashElmoError(f"{name}: expected 1 or more, found {value}")


def _windows(sentences: Iterable[Sentence | str], max_sentences: int, max_tokens: int) -> Iterator[Window]:
    """Group sentences; a window ends before it would pass either bound."""
    batch: list[Sentence] = []
    n_tokens = 0
    for sentence in sentences:
        tokens = sentence.split() if isinstance(sentence, str) else sentence
        if not isinstance(tokens, Sequence):
            raise FlashElmoError(f"sentence: expected text or a list of tokens, found {sentence!r}")
        if batch and (len(batch) == max_sentences or n_tokens + len(tokens) > max_tokens):
            yield Window.from_sentences(batch)
            batch, n_tokens = [], 0
        batch.append(tokens)
        n_tokens += len(tokens)
    if batch:
        yield Window.from_sentences(batch)
