"""Elmo: AllenNLP's module, to embed inside a PyTorch model and to fine-tune."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashelmo.engine.arguments import finite_numbers, flag, path_of, shown, whole_number
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.reference.padding import (
    add_boundaries,
    pad_tokens,
    positions_before,
    remove_boundaries,
    sentence_lengths,
)
from flashelmo.engine.reference.reference import ReferenceElmo, check_is_tensor, encode, whole_numbers
from flashelmo.engine.reference.scalar_mix import ScalarMix
from flashelmo.engine.reference.trainable import TrainableElmo
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.engine.text.sentences import Sentence, several, tokenized

logger = logging.getLogger(__name__)

MOST_REPRESENTATIONS = 1000  # more are a mistake, and would take for ever

# AllenNLP's names of what `Elmo` keeps, and this module's. Layouts agree but for the highways.
ALLENNLP_NAMES = (
    (r"_elmo_lstm\._word_embedding\.", "cached_words."),
    (r"_elmo_lstm\._token_embedder\._char_embedding_weights", "bilm.character_embedding"),
    (r"_elmo_lstm\._token_embedder\.char_conv_(\d+)\.", r"bilm.convolutions.\1."),
    (r"_elmo_lstm\._token_embedder\._projection\.", "bilm.projection."),
    (r"_elmo_lstm\._elmo_lstm\.(forward|backward)_layer_(\d+)\.input_linearity\.", r"bilm.\1_layers.\2.input_"),
    (r"_elmo_lstm\._elmo_lstm\.(forward|backward)_layer_(\d+)\.state_linearity\.bias", r"bilm.\1_layers.\2.bias"),
    (r"_elmo_lstm\._elmo_lstm\.(forward|backward)_layer_(\d+)\.state_linearity\.", r"bilm.\1_layers.\2.recurrent_"),
    (r"_elmo_lstm\._elmo_lstm\.(forward|backward)_layer_(\d+)\.state_projection\..*", r"bilm.\1_layers.\2.projection"),
)
ALLENNLP_HIGHWAY = re.compile(r"_elmo_lstm\._token_embedder\._highways\._layers\.(\d+)\.(weight|bias)")


class Elmo(torch.nn.Module):
    """ELMo representations for a task: the biLM's layers, mixed by learned weights, with dropout.

    The constructor, `forward` and output match AllenNLP 0.9 to 2.x (`allennlp.modules.elmo.Elmo`), and its state dicts
    load. Unlike in AllenNLP, a call does not depend on earlier ones unless `stateful`.

    Args:
        options_file: options.json; or, if `weight_file` is None, anything that holds a whole model, such as a folder.
        weight_file: the weights.
        num_output_representations: the number of separately learned mixes.
        requires_grad: fine-tune the biLM.
        do_layer_norm: normalise the layers before they are mixed.
        dropout: dropout probability for the representations.
        vocab_to_cache: words whose context-free vectors are computed once; `forward` then takes as `word_inputs`
            positions in this list. Position 0 means padding.
        keep_sentence_boundaries: keep the vectors of the sentence boundaries.
        scalar_mix_parameters: fixed weights of the mix, before the softmax.
        module: used instead of the pretrained biLM, with both files None; it must have `num_layers`, `get_output_dim`
            and a `forward(inputs, word_inputs)` that returns `activations` and `mask`.
        stateful: carry the LSTM state from batch to batch by batch row, as AllenNLP does.

    Raises:
        FlashElmoError: a file or an argument is wrong.
    """

    def __init__(
        self,
        options_file: str | Path | None,
        weight_file: str | Path | None,
        num_output_representations: int,
        requires_grad: bool = False,
        do_layer_norm: bool = False,
        dropout: float = 0.5,
        vocab_to_cache: Sequence[str] | None = None,
        keep_sentence_boundaries: bool = False,
        scalar_mix_parameters: Sequence[float] | None = None,
        module: torch.nn.Module | None = None,
        *,
        stateful: bool = False,
    ) -> None:
        super().__init__()
        requires_grad, stateful = flag("requires_grad", requires_grad), flag("stateful", stateful)
        self.keep_sentence_boundaries = flag("keep_sentence_boundaries", keep_sentence_boundaries)
        self.cached_words: torch.nn.Embedding | None = None
        self._encoder: WordEncoder | None = None
        self._with_weights: Callable[..., ElmoModel] | None = None
        if module is not None:
            if options_file is not None or weight_file is not None:
                raise FlashElmoError("module: cannot be combined with options_file and weight_file")
            if not isinstance(module, torch.nn.Module):
                raise FlashElmoError(f"module: expected a torch.nn.Module, found {shown(module)}")
            for name in ("num_layers", "get_output_dim"):
                if not hasattr(module, name):
                    raise FlashElmoError(f"module: expected one that has {name}, found {shown(module)}")
            self.bilm = module
        else:
            model = _load(options_file, weight_file)
            self.bilm = (TrainableElmo if requires_grad else ReferenceElmo)(
                model.config, model.weights, model.lexicon, requires_grad=requires_grad, stateful=stateful
            )
            self._encoder = WordEncoder(model.config, model.lexicon)
            about = {name: getattr(model, name) for name in ("config", "lexicon", "path", "format", "source_format")}
            self._with_weights = partial(ElmoModel, **about)
            if vocab_to_cache is not None:
                words = list(several("vocab_to_cache", vocab_to_cache))
                self._cache_words(self.bilm, self._encoder, words, requires_grad)
        self.dropout = torch.nn.Dropout(_probability("dropout", dropout))
        self.num_output_representations = whole_number(
            "num_output_representations", num_output_representations, 0, MOST_REPRESENTATIONS
        )
        num_layers: Any = self.bilm.num_layers
        norm, fixed = flag("do_layer_norm", do_layer_norm), scalar_mix_parameters
        fixed = None if fixed is None else finite_numbers("scalar_mix_parameters", fixed)
        for k in range(self.num_output_representations):
            mix = ScalarMix(num_layers, norm, fixed, trainable=fixed is None)
            self.add_module(f"scalar_mix_{k}", mix)

    def get_output_dim(self) -> int:
        """2P, the size of a representation."""
        get_output_dim: Any = self.bilm.get_output_dim
        return int(get_output_dim())

    def reset_state(self) -> None:
        """Reset the state of a stateful module."""
        if isinstance(self.bilm, ReferenceElmo):
            self.bilm.reset_state()

    def to_model(self) -> ElmoModel:
        """The biLM with its current, possibly fine-tuned weights: `ElmoEmbedder` takes it, `save` writes it.

        It does not include the mixes; pass their coefficients to `embed(mix=...)`.

        Raises:
            FlashElmoError: the biLM was passed as a `module`; cached words have vectors that were trained on their own,
                for which a model has no place; a weight is not finite.
        """
        if self._with_weights is None or not isinstance(self.bilm, ReferenceElmo):
            raise FlashElmoError("module: expected a biLM loaded from files, found a module passed in")
        if self.cached_words is not None and self.cached_words.weight.requires_grad:
            raise FlashElmoError(
                "vocab_to_cache: a model has no place for words' vectors that were trained instead of the characters"
            )
        return self._with_weights(weights=self.bilm.to_weights())

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write `to_model` to a new folder, in the format of `flashelmo convert`, for `load` and for `convert`.

        Raises:
            FlashElmoError: as for `to_model`; the folder exists or cannot be written.
        """
        write_native(self.to_model(), folder, overwrite=flag("overwrite", overwrite))

    def batch_to_ids(self, batch: Iterable[Sentence | str]) -> Tensor:
        """Character ids of tokenized sentences for this model: the `inputs` of `forward`.

        Args:
            batch: token lists, or strings to split on whitespace.

        Returns:
            int64 [B, T, M] with T the length of the longest sentence; shorter ones are padded with zeros. For bilm-tf's
            models with M = 50, these equal those of the function `batch_to_ids`.

        Raises:
            FlashElmoError: `batch` is not a list of sentences; the model has no characters, or was passed as a
                `module`.
        """
        return self._batch_ids(batch, 0)

    def batch_to_word_ids(self, batch: Iterable[Sentence | str]) -> Tensor:
        """Word ids of tokenized sentences for a model that looks up words: the `word_inputs` of `forward`.

        Args:
            batch: token lists, or strings to split on whitespace.

        Returns:
            int64 [B, T] with T the length of the longest sentence; shorter ones are padded with `absent_word_id`.

        Raises:
            FlashElmoError: `batch` is not a list of sentences; the model has no words, or was passed as a `module`.
        """
        return self._batch_ids(batch, 1)

    def forward(self, inputs: Tensor | None, word_inputs: Tensor | None = None) -> dict[str, Any]:
        """Embed a batch; leading dimensions may be more than one.

        Args:
            inputs: character ids [..., T, M] from `batch_to_ids`, of any integer type; may be None if `word_inputs` are
                given.
            word_inputs: word ids [..., T]: positions in `vocab_to_cache`, 0 at padding, or those of
                `batch_to_word_ids` for a model that looks up words.

        Returns:
            {"elmo_representations": num_output_representations tensors [..., T, 2P], "mask": bool [..., T]};
            T + 2 if boundaries are kept.

        Raises:
            FlashElmoError: inputs are not integer tensors or have other shapes; ids are outside the model's embeddings;
                padding is not on the right.
        """
        if word_inputs is not None and not self._takes_words():
            logger.warning("word_inputs is ignored: there is no vocab_to_cache")
            word_inputs = None
        leading = _leading_shape(inputs, word_inputs)
        n_rows = math.prod(leading)
        inputs = None if inputs is None else inputs.reshape(n_rows, *inputs.shape[-2:])
        word_inputs = None if word_inputs is None else word_inputs.reshape(n_rows, word_inputs.shape[-1])
        output = self._run_bilm(inputs, word_inputs)
        mask_with_boundaries = mask = output["mask"].bool()  # a module that was given may have one of integers
        representations = []
        for k in range(self.num_output_representations):
            mixed = self.get_submodule(f"scalar_mix_{k}")(output["activations"], mask_with_boundaries)
            if not self.keep_sentence_boundaries:
                mixed, mask = remove_boundaries(mixed, mask_with_boundaries)
            representations.append(self.dropout(mixed).reshape(*leading, *mixed.shape[1:]))
        return {"elmo_representations": representations, "mask": mask.reshape(*leading, mask.shape[1])}

    def _batch_ids(self, batch: Iterable[Sentence | str], kind: int) -> Tensor:
        """Ids of tokenized sentences and their padding: of characters for kind 0, of words for 1."""
        if self._encoder is None:
            raise FlashElmoError("module: ids need a model loaded from files, found a module passed in")
        sentences = list(tokenized("batch", batch))
        ids = encode(self._encoder, [word for sentence in sentences for word in sentence])[kind]
        if ids is None:
            raise FlashElmoError(f"ids: this model has none of {('characters', 'words')[kind]}")
        lengths = [len(sentence) for sentence in sentences]
        mask = positions_before(torch.tensor(lengths, dtype=torch.long, device="cpu"), max(lengths, default=0))
        padding = (0, self._encoder.config.absent_word_id)[kind]
        return pad_tokens(ids - padding, mask) + padding

    def _takes_words(self) -> bool:
        if not isinstance(self.bilm, ReferenceElmo):
            return True
        return self.cached_words is not None or self.bilm.config.word_size > 0

    def _run_bilm(self, inputs: Tensor | None, word_inputs: Tensor | None) -> dict[str, Any]:
        """The biLM's activations and mask, from cached words where they are all cached."""
        cached = self.cached_words
        if cached is None or word_inputs is None or not isinstance(self.bilm, ReferenceElmo):
            result: dict[str, Any] = self.bilm(inputs, word_inputs)
            return result
        word_inputs = whole_numbers("word_inputs", word_inputs)
        if word_inputs.numel():
            least, largest = (int(each) for each in word_inputs.aminmax())
            if least < 0 or (largest >= cached.num_embeddings and inputs is None):
                found = least if least < 0 else largest
                raise FlashElmoError(f"word_inputs: expected ids from 0 to {cached.num_embeddings - 1}, found {found}")
            if largest >= cached.num_embeddings:  # a word that is not cached: AllenNLP backs off to the characters
                return self._run_bilm(inputs, None)
        lengths = sentence_lengths(word_inputs > 0)
        vectors = add_boundaries(cached(word_inputs), lengths, self.get_buffer("boundary_vectors"))
        mask = positions_before(lengths + 2, vectors.shape[1])
        return {"activations": self.bilm.layers(vectors, mask), "mask": mask}

    @torch.no_grad()
    def _cache_words(self, bilm: ReferenceElmo, encoder: WordEncoder, words: Sequence[str], trainable: bool) -> None:
        """Compute the context-free vectors of the words [V, P] and of the two boundaries [2, P], if there are words."""
        if not words:
            return
        self.register_buffer("boundary_vectors", bilm.boundary_vectors(), persistent=False)
        module: Any = self  # PyTorch's method has no types
        module.register_load_state_dict_post_hook(_renew_boundaries)
        vectors = bilm.token_vectors(*encode(encoder, words))
        self.cached_words = torch.nn.Embedding.from_pretrained(vectors, freeze=not trainable, padding_idx=0)
        self.cached_words.weight[0] = 0.0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load, reading AllenNLP's names too."""
        for name in [name for name in state_dict if name.startswith(f"{prefix}_elmo_lstm.")]:
            for own, tensor in _from_allennlp(name[len(prefix) :], state_dict.pop(name)).items():
                state_dict[prefix + own] = tensor
        super()._load_from_state_dict(state_dict, prefix, *args)


def _load(options_file: str | Path | None, weight_file: str | Path | None) -> ElmoModel:
    options = None if options_file is None else path_of("options_file", options_file)
    if weight_file is not None:
        return load_model(path_of("weight_file", weight_file), options)
    if options is None:
        raise FlashElmoError("options_file, weight_file: expected files or a module, found neither")
    return load_model(options)


def _probability(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise FlashElmoError(f"{name}: expected a number from 0 to 1, found {shown(value)}")
    return float(value)


@torch.no_grad()
def _renew_boundaries(module: Any, incompatible_keys: object) -> None:
    """A state dict holds the cached words, but not the boundaries, which are those of the biLM that it brought."""
    module.boundary_vectors.copy_(module.bilm.boundary_vectors())


def _leading_shape(inputs: Tensor | None, word_inputs: Tensor | None) -> tuple[int, ...]:
    """The dimensions before the tokens, of whichever input is there."""
    for name, ids in (("inputs", inputs), ("word_inputs", word_inputs)):
        if ids is not None:
            check_is_tensor(name, ids)
    tokens = None if inputs is None else inputs.shape[:-1]
    if word_inputs is not None and word_inputs.dim() >= 2 and tokens in (None, word_inputs.shape):
        return tuple(word_inputs.shape[:-1])
    if word_inputs is None and tokens is not None and len(tokens) >= 2:
        return tuple(tokens[:-1])
    found = [None if ids is None else list(ids.shape) for ids in (inputs, word_inputs)]
    raise FlashElmoError(f"inputs, word_inputs: expected shapes [..., T, M], [..., T], found {found[0]}, {found[1]}")


def _from_allennlp(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """This module's names and tensors for one of AllenNLP's; the rest is of a `module` that was given."""
    if found := ALLENNLP_HIGHWAY.fullmatch(name):
        transform, keep = tensor.chunk(2)  # AllenNLP's gate keeps the input
        prefix, kind = f"bilm.highways.{found[1]}", found[2]
        return {f"{prefix}.transform.{kind}": transform, f"{prefix}.gate.{kind}": -keep}
    for pattern, own in ALLENNLP_NAMES:
        if re.match(pattern, name):
            return {re.sub(pattern, own, name): tensor}
    return {re.sub(r"^_elmo_lstm\.", "bilm.", name): tensor}
