"""The exported graph's integers: which row and which steps of the LSTMs' Scans each token takes.

Both directions read a sentence from its own end, so that padding follows every sentence in both. With b a sentence, len
its number of tokens and t the index of a token in it, the token takes row[b] in this step:

    forward         first[b] + t
    backward        first[b] + len - 1 - t

A row may hold several sentences, one after the other: a batch of varying lengths then takes fewer rows, and hardly more
steps. Stateful files have a row for each sentence, since a state belongs to a row, and boundaries in the steps before
the first token and after the last.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from flashelmo.engine.graph.builder import Graph
from flashelmo.export.distinct_words import Words, divide_up

MOST_SENTENCES = 8  # per row
STREAMED_ROWS = 16  # a step costs as much as this many rows more, since its weights come from memory


@dataclass(frozen=True)
class Sentences:
    """Names of values that say where a batch's tokens are.

    mask bool [B, T]; lengths int64 [B, 1]; tokens int64 [B, T], their indices; rows, steps int64 [1], R and S of the
    Scans; row int64 [B, 1], a sentence's row; first int64 [B, 1] or [1], the step of its first token.

    `tokens` counts tokens, not columns: if a caller leaves a column empty in the middle of a sentence, the tokens after
    it still take steps of their own sentence.
    """

    mask: str
    lengths: str
    tokens: str
    rows: str
    steps: str
    row: str
    first: str


def sentences_of(graph: Graph, mask: str, *, stateful: bool) -> Sentences:
    """Derive all of this from the mask [B, T]."""
    ones = graph.node("Cast", [mask], to=TensorProto.INT64)
    lengths = graph.node("ReduceSum", [ones, graph.ints(1)])
    batch, size = graph.node("Shape", [mask], end=1), graph.node("Shape", [mask], start=1)
    own_row, zero = _count(graph, batch, axis=1), graph.ints(0)
    tokens = graph.node("CumSum", [ones, graph.constant("tokens_axis", 1)], exclusive=1)
    if stateful:
        steps = graph.node("Add", [size, graph.ints(2)])
        return Sentences(mask, lengths, tokens, batch, steps, own_row, graph.ints(1))
    longest = graph.node("Max", [graph.node("ReduceMax", [lengths, graph.ints(0, 1)], keepdims=0), graph.ints(1)])
    shared = _shared_rows(graph, lengths, batch, longest)
    better = graph.node("Less", [_cost(graph, *shared[:2]), _cost(graph, batch, longest)])
    alone = (batch, longest, own_row, zero)
    chosen = [graph.node("Where", [better, *both]) for both in zip(shared, alone, strict=True)]
    return Sentences(mask, lengths, tokens, *chosen)


def _cost(graph: Graph, rows: str, steps: str) -> str:
    """Return the cost of these steps, in rows."""
    return graph.node("Mul", [steps, graph.node("Add", [rows, graph.ints(STREAMED_ROWS)])])


def _shared_rows(graph: Graph, lengths: str, batch: str, longest: str) -> tuple[str, str, str, str]:
    """Return rows R and steps S [1], and each sentence's row and first step [B, 1], with rows shared by sentences.

    They are assigned to the rows by length, longest first, in as many rounds as the batch has padding for and in snake
    order: every second round runs backwards, so that the longest are followed by the shortest.
    """
    flat = graph.node("Reshape", [lengths, graph.ints(-1)])
    by_length, order = graph.add("TopK", [flat, batch], ["lengths_by_length", "sentences_by_length"])
    n_tokens = graph.node("Max", [graph.node("ReduceSum", [flat]), graph.ints(1)])
    rounds = graph.node("Div", [graph.node("Mul", [batch, longest]), n_tokens])
    rounds = graph.node("Max", [graph.node("Min", [rounds, graph.ints(MOST_SENTENCES)]), graph.ints(1)])
    rows = divide_up(graph, batch, rounds)
    number = graph.node("Reshape", [_count(graph, batch, axis=0), graph.ints(-1)])
    turn = graph.node("Div", [number, rows])
    there = graph.node("Sub", [number, graph.node("Mul", [turn, rows])])
    back = graph.node("Sub", [graph.node("Sub", [rows, graph.ints(1)]), there])
    is_back = graph.node("Equal", [graph.node("Mod", [turn, graph.ints(2)]), graph.ints(1)])
    row = graph.node("Where", [is_back, back, there])
    place = graph.node("Add", [graph.node("Mul", [turn, rows]), row])
    none = graph.node("Expand", [graph.ints(0), graph.node("Mul", [rounds, rows])])
    dealt = graph.node("ScatterElements", [none, place, by_length])
    dealt = graph.node("Reshape", [dealt, graph.node("Concat", [rounds, rows], axis=0)])  # rounds, rows
    before = graph.node("CumSum", [dealt, graph.constant("rounds_axis", 0)], exclusive=1)
    first = graph.node("Gather", [graph.node("Reshape", [before, graph.ints(-1)]), place])
    steps = graph.node("ReduceMax", [graph.node("ReduceSum", [dealt, graph.ints(0)], keepdims=0)])
    steps = graph.node("Max", [steps, graph.ints(1)])
    in_order = [graph.node("ScatterElements", [flat, order, values]) for values in (row, first)]
    row, first = (graph.node("Unsqueeze", [values, graph.ints(1)]) for values in in_order)
    return rows, steps, row, first


def places_of_tokens(graph: Graph, sentences: Sentences, direction: int) -> str:
    """Return each token's step and row as one number, step * R + row, int64 [B, T]; 0 where there is no token."""
    number = sentences.tokens
    if direction:
        last = graph.node("Sub", [sentences.lengths, graph.ints(1)])
        number = graph.node("Sub", [last, number])
    step = graph.node("Add", [sentences.first, number])
    return graph.node("Where", [sentences.mask, _place(graph, sentences, step), graph.ints(0)])


def words_of_steps(graph: Graph, sentences: Sentences, words: Words, direction: int, places: str) -> str:
    """Return the rows of the words' vectors that each step takes, int64 [S, R]; any row where there is no token."""
    nowhere = graph.node("Mul", [sentences.steps, sentences.rows])
    places = graph.node("Where", [sentences.mask, places, nowhere])
    pairs = [(places, words.rows)]
    if words.boundary_rows:
        behind = graph.node("Add", [sentences.lengths, graph.ints(1)])
        for step, boundary in ((graph.ints(0), direction), (behind, 1 - direction)):
            place = _place(graph, sentences, step)
            word = graph.node("Gather", [words.boundary_rows, graph.ints(boundary)])
            pairs.append((place, graph.node("Expand", [word, graph.node("Shape", [place])])))
    return _written(graph, sentences, pairs)


def fresh_rows(graph: Graph, sentences: Sentences) -> str:
    """Return where a sentence begins: bool [S, R, 1]."""
    nowhere = graph.node("Mul", [sentences.steps, sentences.rows])
    place = _place(graph, sentences, sentences.first)
    place = graph.node("Where", [graph.node("Greater", [sentences.lengths, graph.ints(0)]), place, nowhere])
    ones = graph.node("Expand", [graph.ints(1), graph.node("Shape", [place])])
    fresh = graph.node("Cast", [_written(graph, sentences, [(place, ones)])], to=TensorProto.BOOL)
    return graph.node("Unsqueeze", [fresh, graph.ints(2)])


def running_rows(graph: Graph, sentences: Sentences) -> str:
    """Return where a sentence, with its boundaries, has not ended: bool [S, R, 1], with a row for each sentence."""
    step = _count(graph, sentences.steps, axis=1)
    ends = graph.node("Transpose", [graph.node("Add", [sentences.lengths, graph.ints(2)])], perm=[1, 0])
    return graph.node("Unsqueeze", [graph.node("Less", [step, ends]), graph.ints(2)])


def _place(graph: Graph, sentences: Sentences, step: str) -> str:
    return graph.node("Add", [graph.node("Mul", [step, sentences.rows]), sentences.row])


def _written(graph: Graph, sentences: Sentences, pairs: list[tuple[str, str]]) -> str:
    """Return zeros [S, R] with values written at places; the place S * R is outside."""
    places, values = (
        graph.node("Concat", [graph.node("Reshape", [each, graph.ints(-1)]) for each in column], axis=0)
        for column in zip(*pairs, strict=True)
    )
    size = graph.node("Mul", [sentences.steps, sentences.rows])
    zeros = graph.node("Expand", [graph.ints(0), graph.node("Add", [size, graph.ints(1)])])
    written = graph.node("ScatterElements", [zeros, places, values])
    shape = graph.node("Concat", [sentences.steps, sentences.rows], axis=0)
    return graph.node("Reshape", [graph.node("Slice", [written, graph.ints(0), size]), shape])


def _count(graph: Graph, number: str, axis: int) -> str:
    """Return 0, 1, ... up to a number [1], with an axis of size 1 inserted."""
    start, step = graph.constant("first_number", 0), graph.constant("number_step", 1)
    numbers = graph.node("Range", [start, graph.node("Squeeze", [number]), step])
    return graph.node("Unsqueeze", [numbers, graph.ints(axis)])
