"""The exported graph's integers: in which order each direction reads the tokens, and where it leaves their states.

Both directions read a sentence from its own end, so that padding stands behind every sentence in both. With b a
sentence, len its number of tokens, t a token and p a time step:

                    token of step p                     step of token t
    forward         p                                   t
    backward        len - 1 - p                         len - 1 - t

With boundaries, which take the first step and the one after the last token, all steps are one later.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from flashelmo.engine.onnx_graph import Graph
from flashelmo.export.distinct_words import Words


@dataclass(frozen=True)
class Sentences:
    """Names of values that say where a batch's tokens are.

    present bool [B, T, 1]; lengths int64 [B, 1]; batch and size int64 [1], B and T; tokens int64 [1, T], their numbers;
    reverse int64 [B, T], the numbers of a sentence's tokens from its last to its first, then of the padding.
    """

    present: str
    lengths: str
    batch: str
    size: str
    tokens: str
    reverse: str


def sentences_of(graph: Graph, mask: str) -> Sentences:
    """All that follows from the mask [B, T]."""
    ones = graph.node("Cast", [mask], to=TensorProto.INT64)
    lengths = graph.node("ReduceSum", [ones, graph.ints(1)])
    batch, size = graph.node("Shape", [mask], end=1), graph.node("Shape", [mask], start=1)
    tokens = _count(graph, size, axis=0)
    mirrored = graph.node("Sub", [graph.node("Sub", [lengths, graph.ints(1)]), tokens])
    reverse = graph.node("Where", [graph.node("Less", [tokens, lengths]), mirrored, tokens])
    present = graph.node("Unsqueeze", [mask, graph.ints(2)])
    return Sentences(present, lengths, batch, size, tokens, reverse)


def words_of_steps(graph: Graph, sentences: Sentences, words: Words, direction: int) -> str:
    """Rows of the words' vectors that each step takes, int64 [T, B], or [T + 2, B] with boundaries."""
    if not words.boundary_rows:
        rows = words.rows
        if direction:
            rows = graph.node("GatherElements", [rows, sentences.reverse], axis=1)
        return graph.node("Transpose", [rows], perm=[1, 0])
    steps = _steps_with_boundaries(graph, sentences)
    distance = graph.node("Sub", [sentences.lengths, steps] if direction else [steps, graph.ints(1)])
    last = graph.node("Sub", [sentences.size, graph.ints(1)])
    number = graph.node("Min", [graph.node("Max", [distance, graph.ints(0)]), last])
    # of one shape for all, as GatherElements has no broadcasting
    number = graph.node("Add", [number, graph.node("Mul", [sentences.lengths, graph.ints(0)])])
    rows = graph.node("GatherElements", [words.rows, number], axis=1)
    ends = [graph.node("Gather", [words.boundary_rows, graph.ints(end)]) for end in (direction, 1 - direction)]
    behind = graph.node("Equal", [steps, graph.node("Add", [sentences.lengths, graph.ints(1)])])
    rows = graph.node("Where", [behind, ends[1], rows])
    rows = graph.node("Where", [graph.node("Equal", [steps, graph.ints(0)]), ends[0], rows])
    return graph.node("Transpose", [rows], perm=[1, 0])


def running_steps(graph: Graph, sentences: Sentences) -> str:
    """Whether a sentence, with its boundaries, has not ended before a step: bool [T + 2, B, 1]."""
    steps = _steps_with_boundaries(graph, sentences)
    running = graph.node("Less", [steps, graph.node("Add", [sentences.lengths, graph.ints(2)])])
    return graph.node("Unsqueeze", [graph.node("Transpose", [running], perm=[1, 0]), graph.ints(2)])


def states_of_tokens(graph: Graph, sentences: Sentences, direction: int, with_boundaries: bool) -> str:
    """Rows of a direction's states [T * B, P] that belong to the tokens, int64 [B, T]."""
    steps = sentences.reverse if direction else sentences.tokens
    if with_boundaries:
        steps = graph.node("Add", [steps, graph.ints(1)])
    firsts = graph.node("Mul", [steps, sentences.batch])
    return graph.node("Add", [firsts, _count(graph, sentences.batch, axis=1)])


def _steps_with_boundaries(graph: Graph, sentences: Sentences) -> str:
    """The numbers of T + 2 steps, int64 [1, T + 2]."""
    return _count(graph, graph.node("Add", [sentences.size, graph.ints(2)]), axis=0)


def _count(graph: Graph, number: str, axis: int) -> str:
    """0, 1, ... up to a number [1], with an axis of size 1 put in."""
    zero, one = graph.constant("first_number", 0), graph.constant("number_step", 1)
    numbers = graph.node("Range", [zero, graph.node("Squeeze", [number]), one])
    return graph.node("Unsqueeze", [numbers, graph.ints(axis)])
