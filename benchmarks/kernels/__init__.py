"""The GPU kernels by themselves: what they cost without a card, and how fast they are on one.

suite.py         on a card: correct first, then how fast: `python -m benchmarks kernels --out DIR`
tiles.py         on a card: which tiles are fastest: `python -m benchmarks tiles --out DIR`
resources.py     registers, shared memory, matrix instructions, without a card: `python -m benchmarks resources`
model.py         the time that bytes, operations and launches should take: `python -m benchmarks model`
problems.py      the work of each kernel, with its reference; lstm.py: the LSTM's
checks.py        each kernel against its reference; groups.py: what is timed; graph_timing.py: how
cases.py         every kernel with every tile, as it is compiled; compile.py: without a card
ptx.py           whether dependent launches wait in time
card.py          cards and their limits
"""
