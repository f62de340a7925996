"""The published algorithm in plain PyTorch: the truth that every other runtime is tested against.

A batch of sentences is padded, every token in it goes through the character convolutions, and each LSTM advances time
step by time step, as in AllenNLP's `Elmo`, bilm-tf and ELMoForManyLangs (Peters et al. 2018,
https://arxiv.org/abs/1802.05365). Nothing is hoisted, shared or cached, so it is also the benchmarks' baseline.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flashelmo.engine.arrays import Floats
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel, ElmoWeights, Lexicon
from flashelmo.engine.precision import PRECISIONS
from flashelmo.engine.reference.padding import add_boundaries, pad_tokens, positions_before, sentence_lengths
from flashelmo.engine.reference.torch_layers import (
    ConvolutionLayer,
    DenseLayer,
    HighwayLayer,
    LstmLayer,
    LstmState,
    canonical_tensor,
    embedding_parameter,
)
from flashelmo.engine.system.autocast import without_autocast
from flashelmo.engine.system.forks import is_forked
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.kernels.pytorch import float32_products

if hasattr(os, "register_at_fork"):  # a forked process lacks PyTorch's threads, and would wait for them for ever
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

REFERENCE_PRECISIONS = tuple(name for name, each in PRECISIONS.items() if "reference" in each.runtimes)
TOKENS_AT_ONCE = 512  # the widest convolution of the published models takes 180 KB per token


class ReferenceElmo(torch.nn.Module):
    """The bidirectional language model of one configuration; parameters are float32 on the CPU until moved.

    Args:
        lexicon: needed by models that look words or characters up.
        requires_grad: whether the parameters can be trained.
        stateful: carry the LSTM state from batch to batch by batch row, as AllenNLP and bilm-tf do.

    Attributes:
        state: the LstmState carried; None before the first batch, and always None if not stateful.
        num_layers: L, the number of output layers.
    """

    def __init__(
        self,
        config: ElmoConfig,
        weights: ElmoWeights,
        lexicon: Lexicon | None = None,
        *,
        requires_grad: bool = False,
        stateful: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.stateful = stateful
        self.state: LstmState | None = None
        self.num_layers = config.n_layers + 1
        self.character_embedding = embedding_parameter(weights.character_embedding)
        self.word_embedding = embedding_parameter(weights.word_embedding)
        self.convolutions = torch.nn.ModuleList(map(ConvolutionLayer, weights.convolutions))
        self.highways = torch.nn.ModuleList(map(HighwayLayer, weights.highways))
        self.projection = None if weights.projection is None else DenseLayer(weights.projection)
        self.forward_layers = torch.nn.ModuleList(LstmLayer(cell, config, False) for cell, _ in weights.lstm)
        self.backward_layers = torch.nn.ModuleList(LstmLayer(cell, config, True) for _, cell in weights.lstm)
        self.requires_grad_(requires_grad)
        encoder = WordEncoder(config, lexicon)
        for name, ids in zip(("characters", "words"), encode(encoder, encoder.boundary_words), strict=True):
            self.register_buffer(f"boundary_{name}", ids, persistent=False)

    def get_output_dim(self) -> int:
        """2P, the size of a token's vector in one layer."""
        return self.config.output_size

    def reset_state(self) -> None:
        """Reset every row's state to zero."""
        self.state = None

    def to_weights(self) -> ElmoWeights:
        """Return the parameters, perhaps fine-tuned, in the canonical layout (copies, float32)."""
        tensors = {}
        for name, parameter in self.named_parameters():
            name = re.sub(r"^(forward|backward)_layers\.(\d+)", r"lstm.\2.\1", name)
            tensors[name] = canonical_tensor(name, parameter.detach().cpu().float().numpy())
        return ElmoWeights.from_named_tensors(tensors, self.config)

    def forward(
        self, character_ids: Tensor | None, word_ids: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Any]:
        """Embed a padded batch; the sentence boundaries are added here.

        Args:
            character_ids: integers [B, T, M]; None for word-only models.
            word_ids: integers [B, T]; None for character-only models.
            mask: [B, T], True or 1 at tokens; by default, tokens are positions with a character other than 0, or in
                word-only models with an id other than `absent_word_id`.

        Returns:
            {"activations": L tensors [B, T + 2, 2P], zero where padded, "mask": bool [B, T + 2]}.
        """
        character_ids = self._checked("character_ids", character_ids, self.character_embedding)
        word_ids = self._checked("word_ids", word_ids, self.word_embedding)
        mask = self._token_mask(character_ids, word_ids) if mask is None else mask.bool()
        word_ids = None if word_ids is None else word_ids.clamp(min=0)  # padding may be negative
        lengths = sentence_lengths(mask)
        if character_ids is not None:
            character_ids = add_boundaries(character_ids, lengths, self.get_buffer("boundary_characters"))
        if word_ids is not None:
            word_ids = add_boundaries(word_ids, lengths, self.get_buffer("boundary_words"))
        vectors = self.token_vectors(character_ids, word_ids)
        mask = positions_before(lengths + 2, mask.shape[1] + 2)
        return {"activations": self.layers(vectors, mask), "mask": mask}

    def boundary_vectors(self) -> Tensor:
        """Return context-free vectors [2, P] of the begin and the end of a sentence."""
        ids: Any = self.boundary_characters, self.boundary_words
        return self.token_vectors(*ids)

    def token_vectors(self, character_ids: Tensor | None, word_ids: Tensor | None) -> Tensor:
        """Return context-free vectors [..., P] of character_ids [..., M] and word_ids [...], made a few at a time."""
        parts, shape = [], torch.Size()
        if word_ids is not None:
            shape = word_ids.shape
            parts.append(_look_up(self.word_embedding, word_ids.flatten()))
        if character_ids is not None:
            shape = character_ids.shape[:-1]
            chunks = character_ids.reshape(-1, self.config.max_characters).split(TOKENS_AT_ONCE)
            parts.append(torch.cat([self._character_features(chunk) for chunk in chunks]))
        vectors = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        vectors = vectors if self.projection is None else self.projection(vectors)
        return vectors.view(*shape, vectors.shape[-1])

    def layers(self, vectors: Tensor, mask: Tensor) -> list[Tensor]:
        """Return all L layers [B, T, 2P] of sentences with boundaries: vectors [B, T, P], mask bool [B, T]."""
        order = mask.sum(dim=1).argsort(descending=True, stable=True)
        restore = order.argsort()
        rows: list[int] = mask.sum(dim=0).tolist()
        state = self.state or LstmState.empty(self.config)
        before = state.first(len(vectors), vectors)
        outputs = [torch.cat([vectors, vectors], dim=-1) * mask.unsqueeze(-1)]
        inputs = [vectors[order]] * 2
        after: list[list[Tensor]] = []
        for k, both in enumerate(zip(self.forward_layers, self.backward_layers, strict=True)):
            for d, layer in enumerate(both):
                output, *ended = layer(inputs[d], rows, before.hidden[k, d, order], before.cell[k, d, order])
                inputs[d] = output + inputs[d] if k > 0 and self.config.skip_connections else output
                after.append(ended)
            outputs.append(torch.cat(inputs, dim=-1)[restore])
        if self.stateful:
            hidden, cell = (torch.stack(ended).detach()[:, restore] for ended in zip(*after, strict=True))
            self.state = state.with_first(LstmState(hidden.unflatten(0, (-1, 2)), cell.unflatten(0, (-1, 2))))
        return outputs

    def _character_features(self, character_ids: Tensor) -> Tensor:
        """Apply convolutions, the maximum over all positions, padding included, and highways: [N, M] -> [N, F]."""
        embedded = _look_up(self.character_embedding, character_ids).transpose(1, 2)
        maxima = torch.cat([convolution(embedded).amax(dim=-1) for convolution in self.convolutions], dim=-1)
        features = torch.relu(maxima) if self.config.activation == "relu" else torch.tanh(maxima)
        for highway in self.highways:
            features = highway(features)
        return features

    def _token_mask(self, character_ids: Tensor | None, word_ids: Tensor | None) -> Tensor:
        if character_ids is not None:
            return (character_ids > 0).any(dim=-1)
        assert word_ids is not None  # a model has characters or words
        return word_ids != self.config.absent_word_id

    def _checked(self, name: str, ids: Tensor | None, embedding: Tensor | None) -> Tensor | None:
        """Return the ids if they fit the embedding; None if the model has no such embedding."""
        if embedding is None:
            return None
        if ids is None:
            raise FlashElmoError(f"{name}: this model needs them, found none")
        ids = whole_numbers(name, ids)
        if name == "character_ids" and ids.shape[-1] != self.config.max_characters:
            raise FlashElmoError(f"{name}: expected [..., {self.config.max_characters}], found {list(ids.shape)}")
        lowest = self.config.absent_word_id if name == "word_ids" else 0
        if ids.numel() and not lowest <= int(ids.min()) <= int(ids.max()) < len(embedding):
            found = f"{int(ids.min())} to {int(ids.max())}"
            raise FlashElmoError(f"{name}: expected ids from {lowest} to {len(embedding) - 1}, found {found}")
        return ids


class ReferenceRuntime:
    """Words in, layers out, through `ReferenceElmo`, in batches in the given order.

    Args:
        precision: of the arithmetic and the result: "fp32" or "fp64", those of `PRECISIONS` that it has.
        device: a PyTorch device; on a GPU products stay in full float32, without TF32.
        threads: PyTorch's threads, a setting of the whole process; None leaves them unchanged.
        stateful: carry the LSTM state, so that results depend on what was embedded before.
        batch_size: sentences that are computed together; if stateful, each call is one batch of any size.
    """

    def __init__(
        self,
        model: ElmoModel,
        *,
        precision: str = "fp32",
        device: str | torch.device = "cpu",
        threads: int | None = None,
        stateful: bool = False,
        batch_size: int = 32,
    ) -> None:
        if precision not in REFERENCE_PRECISIONS:
            expected = " or ".join(REFERENCE_PRECISIONS)
            raise FlashElmoError(f"precision: expected {expected} for the reference, found {precision!r}")
        if batch_size < 1:
            raise FlashElmoError(f"batch_size: expected 1 or more, found {batch_size}")
        if threads is not None:
            torch.set_num_threads(1 if is_forked() else threads)  # a forked process has no PyTorch threads
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.encoder = WordEncoder(model.config, model.lexicon)
        self.elmo = ReferenceElmo(model.config, model.weights, model.lexicon, stateful=stateful).eval()
        self.elmo.to(self.device, getattr(torch, PRECISIONS[precision].on("cpu").dtype))

    def reset_state(self) -> None:
        """Forget the carried state."""
        self.elmo.reset_state()

    def embed_batch(self, sentences: Sequence[Sequence[str]], keep_sentence_boundaries: bool = False) -> list[Floats]:
        """Return every sentence's layers, [L, tokens, 2P] or [L, tokens + 2, 2P] with boundaries."""
        results = []
        size = max(1, len(sentences)) if self.elmo.stateful else self.batch_size
        for start in range(0, len(sentences), size):
            batch = sentences[start : start + size]
            stacked = self._layers(batch)
            for row, sentence in enumerate(batch):
                span = slice(0, len(sentence) + 2) if keep_sentence_boundaries else slice(1, len(sentence) + 1)
                results.append(stacked[:, row, span].copy())
        return results

    def _layers(self, batch: Sequence[Sequence[str]]) -> Floats:
        """Return [L, B, T + 2, 2P] for a padded batch."""
        with self._full_float32():
            return self.activations(batch).cpu().numpy()

    def activations(self, batch: Sequence[Sequence[str]]) -> Tensor:
        """Return [L, B, T + 2, 2P] for one padded batch, on the device, with PyTorch's current settings."""
        lengths = torch.tensor([len(sentence) for sentence in batch], device="cpu")
        mask = positions_before(lengths, int(lengths.max()))
        ids = encode(self.encoder, [word for sentence in batch for word in sentence])
        with torch.inference_mode(), without_autocast(self.device):
            padded = [None if flat is None else pad_tokens(flat, mask).to(self.device) for flat in ids]
            return torch.stack(self.elmo(*padded, mask.to(self.device))["activations"])

    def _full_float32(self) -> AbstractContextManager[Any]:
        if self.device.type != "cuda":
            return nullcontext()
        return float32_products("ieee", convolutions=True)


def encode(encoder: WordEncoder, words: Sequence[str]) -> tuple[Tensor | None, Tensor | None]:
    """Return character ids int64 [W, M] and word ids int64 [W], each None if the model has none."""
    both = encoder.character_ids(list(words)), encoder.word_ids(list(words))
    characters, word_ids = (None if ids is None else torch.from_numpy(ids.astype(np.int64)) for ids in both)
    return characters, word_ids


def check_is_tensor(name: str, ids: object) -> None:
    """Raise FlashElmoError if ids are given as a list or in NumPy."""
    if not isinstance(ids, Tensor):
        raise FlashElmoError(f"{name}: expected a tensor of integers, found {type(ids).__name__}")


def whole_numbers(name: str, ids: Tensor) -> Tensor:
    """Return ids of any integer type as int64."""
    check_is_tensor(name, ids)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise FlashElmoError(f"{name}: expected integers, found {ids.dtype}")
    return ids.long()


def _look_up(embedding: Tensor | None, ids: Tensor) -> Tensor:
    assert embedding is not None  # the same configuration made and checked the ids
    return F.embedding(ids, embedding)
