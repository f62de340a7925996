"""OnnxElmo: an exported file in ONNX Runtime, for deployment. It needs only numpy and onnxruntime."""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flashelmo.engine.arguments import flag, is_one_of, utf8_path_of
from flashelmo.engine.arrays import Arrays, Floats
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import normalize
from flashelmo.engine.sentence_transformers import is_pooled
from flashelmo.engine.system.forks import InEachProcess
from flashelmo.engine.system.processor import int8_levels
from flashelmo.engine.text.sentences import Sentence, several
from flashelmo.engine.text.spelling import Speller
from flashelmo.export.batches import batches, check_inputs, input_names, pad, state_shape, token_lists
from flashelmo.export.buckets import Buckets, bucket_of
from flashelmo.export.metadata import STATES, Metadata, bucket_name
from flashelmo.export.open_session import (
    ORT_ERRORS,
    Provider,
    available_providers,
    device_of,
    model_files,
    number_type,
    open_session,
    options_of,
    properties_of,
    reason,
)

logger = logging.getLogger("flashelmo")


class OnnxElmo:
    """Computes word and sentence vectors with an exported file. Unless it is stateful, an instance is thread-safe.

    Args:
        path: the `.onnx` file, or the folder that `flashelmo export` wrote, of which `onnx/model.onnx` is used, or the
            only file if it has another name. Unrolled files (`--for cuda`) are used together, given their own folder or
            the exported one; each batch runs in the smallest file that fits it.
        providers: ONNX Runtime's execution providers in order of precedence, each a name or (name, options); "cpu"
            and "cuda" are short for `CPUExecutionProvider` and `CUDAExecutionProvider`, which from ONNX Runtime 1.18
            on multiplies in full float32 unless its options set `use_tf32`. A missing provider is an error: nothing
            falls back to the CPU silently.
        session_options: onnxruntime.SessionOptions to use instead of the defaults here.
        threads: CPU threads; None uses all cores.

    Attributes:
        metadata: the file's metadata.
        layers: numbers of the layers that the file returns; 0 is the character layer.
        providers: the execution providers in use; ONNX Runtime always adds the CPU's, for what the others lack.
        output_size: 2P, the size of a vector.

    Raises:
        FlashElmoError: a file is missing, damaged, not exported by this package or without its external data; a folder
            has several files, none of them `model.onnx`; a provider is missing or does not load.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: str | Sequence[Provider] = ("CPUExecutionProvider",),
        session_options: Any = None,
        threads: int | None = None,
    ) -> None:
        files = model_files(utf8_path_of("path", path))
        self._file = files[0].parent if len(files) > 1 else files[0]
        self._open_again = partial(type(self), os.path.abspath(self._file), providers=providers, threads=threads)
        self._has_options = session_options is not None
        wanted = available_providers(providers)
        options = options_of(session_options, threads)
        self._buckets = None if bucket_of(files[0]) is None else Buckets(files, wanted, options)
        self._session: Callable[[], Any]
        if self._buckets is None:
            first, self._session = files[0], InEachProcess(partial(open_session, files[0], wanted, options))
        else:
            first, self._session = self._buckets.smallest, self._buckets.session
        session = self._session()
        self.metadata = Metadata.from_properties(properties_of(session, first), str(first))
        if self.metadata.bucket != bucket_of(first):
            expected = "a general file" if self.metadata.bucket is None else bucket_name(self.metadata.bucket)
            raise FlashElmoError(f"{first}: its metadata belong to another name: {expected}")
        self._inputs = {value.name: number_type(value.type) for value in session.get_inputs()}
        self._outputs = {value.name: number_type(value.type) for value in session.get_outputs()}
        if sorted(self._inputs) != sorted(input_names(self.metadata)):
            expected, found = ", ".join(input_names(self.metadata)), ", ".join(self._inputs)
            raise FlashElmoError(f"{self._file}: expected the inputs {expected}, found {found}")
        self.layers: tuple[int, ...] = self.metadata.layers
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self.output_size: int = self.metadata.config.output_size
        self._device = device_of(*wanted[0])
        if self._buckets is not None and self._device[0] == "cpu":
            logger.warning("%s: unrolled for CUDA; on the processor the general file is faster", self._file)
        try:
            self._speller = Speller(self.metadata.config, self.metadata.lexicon)
        except FlashElmoError as error:  # a token that every look-up needs is not in the lexicon
            raise FlashElmoError(f"{self._file}: {error}") from None
        self._lock = InEachProcess(threading.Lock)
        self.reset_state()
        _warn_of_saturation(self._file, self.metadata)
        if self.metadata.arithmetic.lstm_weights == "int8" and self._device[0] == "cuda":
            logger.warning(
                "%s: its 8-bit products have no CUDA kernels in ONNX Runtime and run on the CPU; take a file of fp16",
                self._file,
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, also in another process, opens the same file anew; a state that was carried stays behind.

        Raises:
            FlashElmoError: there are session options, which ONNX Runtime cannot copy.
        """
        if self._has_options:
            raise FlashElmoError("session_options: an OnnxElmo that has them cannot be copied or pickled")
        return self._open_again, ()

    def reset_state(self) -> None:
        """Let every row of a stateful file's next batch start at zero."""
        with self._lock():
            self._state = self._zero_state(0)

    def inputs(self, sentences: Iterable[Sentence | str]) -> dict[str, Any]:
        """The padded arrays of one batch, as `run` takes them.

        Returns:
            character_ids int64 [B, T, M] and word_ids int64 [B, T], those that the file takes; T is at least 1.
        """
        return pad(token_lists(sentences), self._speller, self.metadata)

    def embed(self, sentences: Iterable[Sentence | str], *, batch_size: int = 32) -> list[Floats]:
        """The layers [K, T, 2P] of every sentence, in the order given, for the K layers in the file.

        Args:
            sentences: token lists, or strings to split on whitespace.
            batch_size: sentences that are computed together. They are first sorted by length, except for a stateful
                file, where row b of a batch continues row b of the batch before.

        Raises:
            FlashElmoError: a sentence is not text; the file returns no layers.
        """
        if not self.layers:
            raise FlashElmoError(f"{self._file}: expected hidden_states among the outputs, found none")
        names = [f"hidden_states.{layer}" for layer in self.layers]
        tokens = token_lists(sentences)
        results: dict[int, Floats] = {}
        for rows, outputs in self._batches(tokens, batch_size, names):
            for b, row in enumerate(rows):
                results[row] = np.stack([outputs[name][b, : len(tokens[row])] for name in names])
        return [results[row] for row in range(len(tokens))]

    def encode(
        self,
        sentences: str | Iterable[Sentence | str],
        batch_size: int = 32,
        *,
        output_value: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding",
        normalize_embeddings: bool = False,
    ) -> Any:
        """Embed sentences with the file's mix of layers, with sentence-transformers' parameter names.

        Args:
            sentences: one string, or strings (split on whitespace) or token lists.
            batch_size: as for `embed`.
            output_value: "sentence_embedding", the mean over tokens [2P] (zeros for an empty sentence), or
                "token_embeddings" [T, 2P].
            normalize_embeddings: scale every vector to length 1; zeros stay zeros.

        Returns:
            For "sentence_embedding" an array [B, 2P] ([2P] for one string); for "token_embeddings" a list of arrays
            (one array for one string).

        Raises:
            FlashElmoError: another `output_value`, or one that is no output of the file; a sentence that is no text.
        """
        pooled = is_pooled(output_value)
        unit = flag("normalize_embeddings", normalize_embeddings)
        self._check_outputs([output_value])
        tokens = token_lists([sentences] if isinstance(sentences, str) else sentences)
        results: dict[int, Floats] = {}
        for rows, outputs in self._batches(tokens, batch_size, [output_value]):
            for vectors, row in zip(outputs[output_value], rows, strict=True):
                chosen = vectors if pooled else vectors[: len(tokens[row])].copy()
                results[row] = _normalize(chosen) if unit else chosen
        ordered = [results[row] for row in range(len(tokens))]
        if isinstance(sentences, str):
            return ordered[0]
        if not pooled:
            return ordered
        return np.stack(ordered) if ordered else np.empty((0, self.output_size), self._outputs[output_value])

    def run(self, *, outputs: Sequence[str] | None = None, on_device: bool = False, **inputs: Any) -> dict[str, Any]:
        """Run the graph on one padded batch; no state is kept between calls.

        Args:
            outputs: names of the outputs to compute and copy; None for all.
            on_device: return onnxruntime.OrtValues where the first provider computed them; those of unrolled files
                have the shape of the file that the batch ran in, and are overwritten by the next batch of that shape.
            **inputs: character_ids [B, T, M] and word_ids [B, T], as far as the file takes them, of any integer type,
                as `inputs` makes them. A stateful file also takes `state.hidden` and `state.cell`, zeros if omitted.

        Returns:
            Arrays by the outputs' names.

        Raises:
            FlashElmoError: inputs that the file does not take, see `check_inputs` in `export/batches.py`; an output
                that it lacks; what ONNX Runtime failed at.
        """
        on_device = flag("on_device", on_device)
        names = list(self._outputs) if outputs is None else list(several("outputs", outputs))
        self._check_outputs(names)
        names = list(dict.fromkeys(names))
        checked = check_inputs(inputs, self.metadata)
        n_rows = len(next(iter(checked.values())))
        return self._run(self._zero_state(n_rows) | checked, names, on_device)

    def _batches(self, tokens: list[Sentence], batch_size: int, names: list[str]) -> Iterator[tuple[list[int], Arrays]]:
        """Numbers of the sentences of each batch, and the outputs that are wanted of it."""
        for rows in batches(tokens, batch_size, in_order=self.metadata.stateful):
            inputs = pad([tokens[row] for row in rows], self._speller, self.metadata)
            yield rows.tolist(), self._continue(inputs, len(rows), names)

    def _continue(self, inputs: Arrays, n_rows: int, names: list[str]) -> Arrays:
        """Run a batch from the state of the one before it, where the file has one."""
        if not self.metadata.stateful:
            return self._run(inputs, names)
        with self._lock():
            zeros = self._zero_state(n_rows)
            for name, state in self._state.items():
                zeros[name][:, : state.shape[1]] = state[:, :n_rows]
            outputs = self._run(inputs | zeros, [*names, *STATES.values()])
            self._state = {  # all at once: whatever is raised before, the batch did not happen
                name: np.concatenate([outputs[new], self._state[name][:, n_rows:]], axis=1)
                for name, new in STATES.items()
            }
        return outputs

    def _zero_state(self, n_rows: int) -> Arrays:
        """States before any token; none for a file that is not stateful."""
        names = STATES if self.metadata.stateful else ()
        return {name: np.zeros(state_shape(name, self.metadata, n_rows), self._inputs[name]) for name in names}

    def _check_outputs(self, names: Sequence[str]) -> None:
        for name in names or ["none"]:
            if not is_one_of(name, *self._outputs):
                raise FlashElmoError(
                    f"{self._file}: expected outputs of {', '.join(self._outputs)}, found {name!s:.60}"
                )

    def _run(self, inputs: Arrays, names: list[str], on_device: bool = False) -> dict[str, Any]:
        """Bind, run, and copy what is wanted off the device at once."""
        if self._buckets is not None:
            return self._buckets.run(inputs, self.metadata, names, on_device)
        session = self._session()
        binding = session.io_binding()
        feeds = {name: np.ascontiguousarray(array, self._inputs[name]) for name, array in inputs.items()}
        try:
            for name, array in feeds.items():  # which must live until the graph has run
                binding.bind_cpu_input(name, array)
            for name in names:
                binding.bind_output(name, *self._device)
            session.run_with_iobinding(binding)
            results = binding.get_outputs() if on_device else binding.copy_outputs_to_cpu()
        except ORT_ERRORS as error:
            raise FlashElmoError(f"{self._file}: ONNX Runtime failed: {reason(error)}") from error
        return dict(zip(names, results, strict=True))


def _normalize(vectors: Floats) -> Floats:
    """Every vector [..., 2P] at length 1 in its own type; float16 could not hold the squares of small values."""
    unit: Floats = normalize(vectors.astype(np.float32)).astype(vectors.dtype)
    return unit


def _warn_of_saturation(file: Path, metadata: Metadata) -> None:
    """Say where 8-bit weights are too large for this processor, which adds their products in saturating 16 bits."""
    levels = metadata.int8_levels or 0
    if levels > int8_levels() and platform.machine() in ("x86_64", "AMD64"):
        logger.warning(
            "%s: its 8-bit weights of up to %d saturate on a processor without AVX-512 VNNI or AVX-VNNI; "
            "export again with reduce_range",
            file,
            levels,
        )
