"""The exported graph's first part: its inputs, where they hold tokens, and the vectors of the distinct words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from flashelmo.engine.arrays import Int64
from flashelmo.engine.graph.builder import Graph
from flashelmo.engine.graph.pieces import maxima_nodes, vector_nodes, widest
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.export.metadata import Metadata

BATCH = ("batch_size", "sequence_length")
WORDS_AT_ONCE = 128  # so that the convolutions' sums take little memory, however many words a batch has
TO_THE_END = 2**62


@dataclass(frozen=True)
class Vocabulary:
    """Ids that the graph itself needs.

    Attributes:
        boundary_characters: of the begin and the end of a sentence, [2, M]; None if a model has no characters.
        boundary_words: likewise [2]; None if a model has no words.
        padding_character: follows a word's end.
    """

    boundary_characters: Int64 | None
    boundary_words: Int64 | None
    padding_character: int


@dataclass(frozen=True)
class Words:
    """Names of values: mask bool [B, T]; vectors [W, P] of the distinct words, and each token's row in them [B, T].

    boundary_rows int64 [2]: the rows of the begin and the end of a sentence; empty unless stateful.

    If a batch has no sentences or columns, B or T is nevertheless 1, since few operators accept empty values: sizes
    int64 [2] are those that were given, missing int64 [2] says how many more there are here.
    """

    mask: str
    vectors: str
    rows: str
    boundary_rows: str
    sizes: str
    missing: str


def distinct_words(graph: Graph, metadata: Metadata, vocabulary: Vocabulary) -> Words:
    """Declare the ids as inputs, and compute the vectors of their words, once for each distinct one."""
    config = metadata.config
    given = []
    if config.character_size:
        shape = [*BATCH, metadata.characters or "characters"]
        given.append(graph.input("character_ids", shape, TensorProto.INT64))
    if config.word_size:
        given.append(graph.input("word_ids", BATCH, TensorProto.INT64))
    sizes = graph.node("Shape", [given[0]], end=2)
    missing = graph.node("Max", [graph.node("Sub", [graph.ints(1), sizes]), graph.ints(0)])
    characters = word_ids = ""
    if config.character_size:
        pads = graph.node("Concat", [graph.ints(0, 0, 0), missing, graph.ints(0)], axis=0)
        characters = graph.node("Pad", [given[0], pads])
    if config.word_size:
        pads = graph.node("Concat", [graph.ints(0, 0), missing], axis=0)
        word_ids = graph.node("Pad", [given[-1], pads, graph.constant("absent_word", config.absent_word_id)])
    mask = _mask(graph, metadata, characters, word_ids)
    keys = [_character_rows(graph, metadata, vocabulary, mask, characters)] if characters else []
    keys += [_word_rows(graph, metadata, vocabulary, mask, word_ids)] if word_ids else []
    rows = graph.node("Concat", keys, axis=1) if len(keys) > 1 else keys[0]
    distinct, places = graph.add("Unique", [rows], ["distinct_words", "", "places"], axis=0)
    vectors = _vectors(graph, config, vocabulary, distinct)
    if not metadata.stateful:
        rows = graph.node("Reshape", [places, graph.node("Shape", [mask])])
        return Words(mask, vectors, rows, "", sizes, missing)
    tokens = graph.node("Slice", [places, graph.ints(0), graph.ints(-2)])
    boundaries = graph.node("Slice", [places, graph.ints(-2), graph.ints(TO_THE_END)])
    rows = graph.node("Reshape", [tokens, graph.node("Shape", [mask])])
    return Words(mask, vectors, rows, boundaries, sizes, missing)


def of_given(graph: Graph, value: str, words: Words, output: str = "") -> str:
    """Return the part of a value [B, T, ...] that belongs to what was given, which may be empty."""
    return graph.node("Slice", [value, graph.ints(0, 0), words.sizes, graph.ints(0, 1)], output)


def _mask(graph: Graph, metadata: Metadata, characters: str, word_ids: str) -> str:
    """Return where tokens are, bool [B, T]. In every model, a token's character ids are never all 0."""
    if characters:
        largest = graph.node("ReduceMax", [characters, graph.ints(2)], keepdims=0)
        return graph.node("Greater", [largest, graph.ints(0)])
    absent = graph.node("Equal", [word_ids, graph.ints(metadata.config.absent_word_id)])
    return graph.node("Not", [absent])


def _character_rows(graph: Graph, metadata: Metadata, vocabulary: Vocabulary, mask: str, characters: str) -> str:
    """Return character ids [B, T, m] as rows [N, M]: only padding where there is no token, then boundaries, if any."""
    n_positions = metadata.config.max_characters
    padding = graph.constant("padding_character", vocabulary.padding_character)
    present = graph.node("Unsqueeze", [mask, graph.ints(2)])
    ids = graph.node("Where", [present, characters, padding])
    if metadata.characters is None:
        given = graph.node("Shape", [characters], start=2)
        pads = [graph.ints(0, 0, 0, 0, 0), graph.node("Sub", [graph.ints(n_positions), given])]
        ids = graph.node("Pad", [ids, graph.node("Concat", pads, axis=0), padding])
    rows = graph.node("Reshape", [ids, graph.ints(-1, n_positions)])
    if not metadata.stateful:
        return rows
    assert vocabulary.boundary_characters is not None  # the model has characters
    boundaries = graph.constant("boundary_characters", vocabulary.boundary_characters)
    return graph.node("Concat", [rows, boundaries], axis=0)


def _word_rows(graph: Graph, metadata: Metadata, vocabulary: Vocabulary, mask: str, word_ids: str) -> str:
    """Return word ids [B, T] as rows [N, 1]: 0 where there is no token, then boundaries, if any."""
    ids = graph.node("Where", [mask, word_ids, graph.ints(0)])
    rows = graph.node("Reshape", [ids, graph.ints(-1, 1)])
    if not metadata.stateful:
        return rows
    assert vocabulary.boundary_words is not None  # the model has words
    return graph.node("Concat", [rows, graph.constant("boundary_words", vocabulary.boundary_words[:, None])], axis=0)


def _vectors(graph: Graph, config: ElmoConfig, vocabulary: Vocabulary, distinct: str) -> str:
    """Return vectors [W, P] of distinct rows of character ids, of a word id, or of both."""
    maxima = word_ids = ""
    if config.character_size:
        maxima = _maxima(graph, config, vocabulary, distinct)
    if config.word_size:
        column = graph.constant("last_column", -1)
        word_ids = graph.node("Gather", [distinct, column], axis=1)
    return vector_nodes(graph, config, maxima, word_ids)


def _maxima(graph: Graph, config: ElmoConfig, vocabulary: Vocabulary, distinct: str) -> str:
    """Return the convolutions' maxima [W, F] over the windows of words' characters, computed in blocks of words."""
    ends = graph.ints(config.max_characters)
    ids = graph.node("Slice", [distinct, graph.ints(0), ends, graph.ints(1)]) if config.word_size else distinct
    windows = _windows(graph, config, vocabulary, ids)
    n_words = graph.node("Shape", [ids], end=1)
    n_blocks = divide_up(graph, n_words, graph.ints(WORDS_AT_ONCE))
    size = divide_up(graph, n_words, n_blocks)
    missing = graph.node("Sub", [graph.node("Mul", [n_blocks, size]), n_words])
    pads = graph.node("Concat", [graph.ints(0, 0, 0), missing, graph.ints(0, 0)], axis=0)
    shape = graph.node("Concat", [n_blocks, size, graph.ints(-1, widest(config))], axis=0)
    blocks = graph.node("Reshape", [graph.node("Pad", [windows, pads]), shape])
    body = Graph(graph.weight_type, "words.")
    block = body.input("words.windows", ["w", "m", widest(config)], TensorProto.INT64)
    body.node("Identity", [maxima_nodes(body, config, block)], "words.maxima")
    body.output("words.maxima", ["w", config.n_filters])
    graph.scan([], [blocks], ["words.all_maxima"], body)
    maxima = graph.node("Reshape", ["words.all_maxima", graph.ints(-1, config.n_filters)])
    return graph.node("Slice", [maxima, graph.ints(0), n_words])


def _windows(graph: Graph, config: ElmoConfig, vocabulary: Vocabulary, ids: str) -> str:
    """Convert character ids [W, M] to windows [W, m, width] as in `engine.graph.pieces`; the longest word sets m."""
    n_positions, width = config.max_characters, widest(config)
    padding = graph.constant("padding_character", vocabulary.padding_character)
    occupied = graph.node("Not", [graph.node("Equal", [ids, padding])])
    occupied = graph.node("Cast", [occupied], to=TensorProto.INT64)
    longest = graph.node("ReduceSum", [graph.node("ReduceMax", [occupied, graph.ints(0)], keepdims=0)])
    needed = graph.node("Min", [graph.node("Add", [longest, graph.ints(1)]), graph.ints(n_positions)])
    places = np.arange(n_positions)[:, None] + np.arange(width)
    places_needed = graph.node("Slice", [graph.constant("windows", places), graph.ints(0), needed])
    beyond = graph.constant("beyond_a_word", config.n_characters)
    padded = graph.node("Pad", [ids, graph.ints(0, 0, 0, width - 1), beyond])
    return graph.node("Gather", [padded, places_needed], axis=1)


def divide_up(graph: Graph, number: str, by: str) -> str:
    """Return number / by, rounded up."""
    return graph.node("Div", [graph.node("Sub", [graph.node("Add", [number, by]), graph.ints(1)]), by])
