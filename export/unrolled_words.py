"""The first part of an unrolled graph: its inputs, where they hold tokens, and the vectors at all places of a batch."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from flashelmo.engine.arrays import Arrays, Int64
from flashelmo.engine.graph.builder import Graph, Tensors
from flashelmo.engine.graph.pieces import highway_nodes, vector_nodes, widest
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.export.distinct_words import Vocabulary
from flashelmo.export.metadata import Metadata

FEW_WORDS = 256
MAXIMA_AT_ONCE = 8  # that one kernel of ONNX Runtime takes


def int32(graph: Graph, x: str) -> str:
    """Convert integers to 32 bits: those of 64 may be taken for sizes, which belong on the host."""
    return graph.node("Cast", [x], to=TensorProto.INT32)


def words_of_places(graph: Graph, metadata: Metadata, vocabulary: Vocabulary) -> tuple[str, str]:
    """Declare the ids as inputs; return where tokens are, bool [B, T], and the vectors at all places [B * T, P]."""
    config, bucket = metadata.config, metadata.bucket
    assert bucket is not None
    mask = maxima = word_ids = ""
    if config.character_size:
        given = graph.input("character_ids", [*bucket, config.max_characters], TensorProto.INT64)
        characters = int32(graph, given)
        largest = graph.node("ReduceMax", [characters, graph.ints(2)], keepdims=0)
        mask = graph.node("Greater", [largest, graph.constant("no_character", 0, np.int32)], "mask")
        maxima = _maxima(graph, metadata, vocabulary, mask, characters)
    if config.word_size:
        words = int32(graph, graph.input("word_ids", bucket, TensorProto.INT64))
        absent = graph.constant("absent_word", config.absent_word_id, np.int32)
        mask = mask or graph.node("Not", [graph.node("Equal", [words, absent])], "mask")
        words = graph.node("Where", [mask, words, graph.constant("any_word", 0, np.int32)])
        word_ids = graph.node("Reshape", [words, graph.ints(-1)])
    if not (maxima and word_ids):
        return mask, vector_nodes(graph, config, maxima, word_ids)
    embedded = graph.node("Gather", [graph.weight("word_embedding"), word_ids])
    weights = [graph.weight(f"projection.weight.{kind}") for kind in ("words", "characters")]
    projected = graph.node("Gemm", [embedded, weights[0], graph.weight("projection.bias")])
    spelled = graph.node("MatMul", [highway_nodes(graph, config, maxima), weights[1]])
    return mask, graph.node("Add", [projected, spelled])


def _maxima(graph: Graph, metadata: Metadata, vocabulary: Vocabulary, mask: str, characters: str) -> str:
    """Return the convolutions' maxima [W, F] over all positions of a word, for W = B * T places.

    Convolutions of all widths are one product, with a window of the widest. One that reaches beyond the last position
    must never be the maximum, which a term of the sum ensures. For many words, each position is its own product, and
    the maximum is taken of eight at a time, so that the sums of all positions, W * M * F values, never go through
    memory; for few words all positions are one product, so that there is less to launch.
    """
    config, (batch, steps) = metadata.config, metadata.bucket or (0, 0)
    padding = graph.constant("padding_character", vocabulary.padding_character, np.int32)
    present = graph.node("Unsqueeze", [mask, graph.ints(2)])
    ids = graph.node("Where", [present, characters, padding])
    ids = graph.node("Reshape", [ids, graph.ints(-1, config.max_characters)])
    return (_all_positions if batch * steps <= FEW_WORDS else _each_position)(graph, config, ids)


def _all_positions(graph: Graph, config: ElmoConfig, ids: str) -> str:
    """Return the sums from the windows of all positions, [W, M, width * E]."""
    places = np.arange(config.max_characters)[:, None] + np.arange(widest(config))
    windows = _embedded(graph, config, ids, places)
    flat = graph.ints(-1, config.max_characters, widest(config) * config.character_size)
    sums = graph.node("MatMul", [graph.node("Reshape", [windows, flat]), graph.weight("convolutions")])
    sums = graph.node("Add", [sums, graph.weight("convolutions.beyond")])
    return graph.node("ReduceMax", [sums, graph.ints(1)], keepdims=0)


def _each_position(graph: Graph, config: ElmoConfig, ids: str) -> str:
    """Return the sums from one position's window after the other, [W, width * E]: slices of the word's characters."""
    n_positions, size, width = config.max_characters, config.character_size, widest(config)
    n_characters = n_positions + width - 1
    characters = _embedded(graph, config, ids, np.arange(n_characters))
    flat = graph.node("Reshape", [characters, graph.ints(-1, n_characters * size)])
    found: list[str] = []
    for position in range(n_positions):
        ends = graph.ints(position * size), graph.ints((position + width) * size)
        sums = graph.node("MatMul", [graph.node("Slice", [flat, *ends, graph.ints(1)]), graph.weight("convolutions")])
        if position + width > n_positions:
            row = graph.constant(f"position {position}", position, np.int32)
            sums = graph.node("Add", [sums, graph.node("Gather", [graph.weight("convolutions.beyond"), row])])
        found.append(sums)
        if len(found) == MAXIMA_AT_ONCE or position == n_positions - 1:
            found = [graph.node("Max", found)]
    return found[0]


def _embedded(graph: Graph, config: ElmoConfig, ids: str, places: Int64) -> str:
    """Return characters' vectors at some places of each word, [W, ..., E]; places past the end take the last one."""
    known = np.minimum(places, config.max_characters - 1)
    chosen = graph.node("Gather", [ids, graph.constant("places_of_characters", known, np.int32)], axis=1)
    return graph.node("Gather", [graph.weight("characters"), chosen])


def convolution_tensors(config: ElmoConfig, tensors: Tensors) -> Arrays:
    """Return the embedding [n_characters, E], matrix [width * E, F] without the masking column, and mask terms [M, F].

    Rows are then a multiple of 16 bytes at the published size, as fast 16-bit products require.
    """
    matrix = tensors["convolutions"].reshape(widest(config), config.character_size + 1, config.n_filters)
    widths = np.repeat(*np.array(config.filters, np.int64).T)
    is_beyond = np.arange(config.max_characters)[:, None] + widths > config.max_characters
    masked = matrix[0, -1]  # the same for all filters
    return {
        "characters": np.ascontiguousarray(tensors["characters"][:-1, :-1]),
        "convolutions": np.ascontiguousarray(matrix[:, :-1]).reshape(-1, config.n_filters),
        "convolutions.beyond": np.where(is_beyond, masked, masked.dtype.type(0)),
    }


def most_values_of_words(config: ElmoConfig, n_words: int) -> int:
    """Return the number of values of the largest array that this many words take."""
    if not config.filters:
        return n_words * config.word_size
    positions = config.max_characters if n_words <= FEW_WORDS else 1
    characters = (config.max_characters + widest(config)) * config.character_size
    return n_words * max(positions * config.n_filters, positions * characters)
