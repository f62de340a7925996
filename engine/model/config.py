"""ElmoConfig: the dimensions and switches of one ELMo model, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from flashelmo.engine.arguments import FLOAT32_MAX, check, is_one_of, shown
from flashelmo.engine.errors import FlashElmoError

Family = Literal["bilm", "manylangs"]
MAX_COUNT = 1000
MAX_SIZE = 2**31 - 1


@dataclass(frozen=True)
class ElmoConfig:
    """Architecture of an ELMo model (Peters et al. 2018, https://arxiv.org/abs/1802.05365).

    Attributes:
        family: whose conventions the ids follow: "bilm" (bilm-tf, AllenNLP, NLPL, SeqVec; UTF-8 bytes)
            or "manylangs" (ELMoForManyLangs; code points and words looked up in lexicons).
        cell_size: C, size of the LSTM cell.
        projection_size: P, size of a hidden state; equals C where the LSTM has no projection.
        n_layers: LSTM layers in each direction, without the character layer.
        cell_clip, projection_clip: bounds of cell state and hidden state; None if unbounded.
        skip_connections: whether a layer's input is added to its output, from the second layer on.
        filters: (width, number) of each convolution over characters; empty for word-only models.
        n_highway: highway layers after the convolutions.
        activation: "relu" or "tanh", applied to the maximum over positions.
        character_size: E, size of a character embedding; 0 if the model has no characters.
        n_characters: rows of the character embedding, padding and boundaries included.
        max_characters: M, positions of a word, including its begin and end.
        word_size: size of a word embedding; 0 if the model has none.
        n_words: rows of the word embedding.
    """

    family: Family
    cell_size: int
    projection_size: int
    n_layers: int
    cell_clip: float | None
    projection_clip: float | None
    skip_connections: bool
    filters: tuple[tuple[int, int], ...]
    n_highway: int
    activation: Literal["relu", "tanh"]
    character_size: int
    n_characters: int
    max_characters: int
    word_size: int = 0
    n_words: int = 0

    def __post_init__(self) -> None:
        for name in ("cell_size", "projection_size", "n_layers", "max_characters"):
            check(_is_whole(getattr(self, name), 1), name, "a positive whole number", getattr(self, name))
        for name in ("n_highway", "character_size", "n_characters", "word_size", "n_words"):
            check(_is_whole(getattr(self, name), 0), name, "a whole number, zero or more", getattr(self, name))
        for name in ("n_layers", "n_highway", "max_characters"):  # a damaged file must not exhaust the memory
            check(getattr(self, name) <= MAX_COUNT, name, f"at most {MAX_COUNT}", getattr(self, name))
        for name in ("cell_size", "projection_size", "character_size", "n_characters", "word_size", "n_words"):
            check(getattr(self, name) <= MAX_SIZE, name, f"at most {MAX_SIZE}", getattr(self, name))
        check(isinstance(self.skip_connections, bool), "skip_connections", "true or false", self.skip_connections)
        for name in ("cell_clip", "projection_clip"):
            clip = getattr(self, name)
            check(clip is None or _is_bound(clip), name, "a positive number in float32's range or none", clip)
            if clip is not None:
                object.__setattr__(self, name, float(clip))  # whole numbers of that size fit no integer type
        check(is_one_of(self.family, "bilm", "manylangs"), "family", "'bilm' or 'manylangs'", self.family)
        check(is_one_of(self.activation, "relu", "tanh"), "activation", "'relu' or 'tanh'", self.activation)
        check(bool(self.character_size or self.word_size), "character_size", "characters or words as input", 0)
        check(_are_pairs(self.filters), "filters", "pairs of positive whole numbers [width, number]", self.filters)
        if self.character_size:
            if self.family == "bilm":  # ids of 256 bytes, begin and end of sentence and word, padding, and no token
                check(self.n_characters == 262, "n_characters", "262", self.n_characters)
            check(bool(self.filters), "filters", "pairs of positive whole numbers [width, number]", self.filters)
            widest = max(width for width, _ in self.filters)
            check(self.max_characters >= max(widest, 3), "max_characters", f">= {max(widest, 3)}", self.max_characters)

    @property
    def n_filters(self) -> int:
        """F, the number of filters of all widths."""
        return sum(number for _, number in self.filters)

    @property
    def absent_word_id(self) -> int:
        """The word id where there is no token; -1 in ELMoForManyLangs' models, whose 0 is a word."""
        return -1 if self.family == "manylangs" else 0

    @property
    def output_size(self) -> int:
        """2P, the size of a token's vector in one layer."""
        return 2 * self.projection_size

    @property
    def lstm_flops_per_token(self) -> int:
        """Floating-point operations of the four (layers x 2) LSTM products for one token."""
        recurrent = 2 * (2 * self.projection_size) * (4 * self.cell_size)
        projection = 2 * self.cell_size * self.projection_size if self.projection_size != self.cell_size else 0
        return 2 * self.n_layers * (recurrent + projection)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary that `from_dict` can read."""
        return {**asdict(self), "filters": [list(pair) for pair in self.filters]}

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config.json") -> ElmoConfig:
        """Read what `to_dict` wrote. Unknown and missing keys raise FlashElmoError naming `source`."""
        given: Any = values
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            raise FlashElmoError(f"{source}: expected values by their names, found {shown(values)}")
        known = {field.name for field in fields(cls)}
        required = known - {"word_size", "n_words"}
        if unknown := sorted(set(values) - known):
            raise FlashElmoError(f"{source}: unknown keys {unknown}; known: {sorted(known)}")
        if missing := sorted(required - set(values)):
            raise FlashElmoError(f"{source}: missing keys {missing}")
        try:
            filters = tuple((width, number) for width, number in values["filters"])
            return cls(**{**values, "filters": filters})
        except FlashElmoError as error:
            raise FlashElmoError(f"{source}: {error}") from None
        except (TypeError, ValueError) as error:
            raise FlashElmoError(f"{source}: a value has the wrong type: {error}") from None


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_pairs(values: object) -> bool:
    pairs = values if isinstance(values, list | tuple) else [values]
    return all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(_is_whole(v, 1) and v <= MAX_SIZE for v in pair)
        for pair in pairs
    )


def _is_bound(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= FLOAT32_MAX
