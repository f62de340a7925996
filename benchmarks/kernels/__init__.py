"""The GPU kernels by themselves: what they cost without a card, and how fast they are on one.

cases.py        every kernel with every tile, as it is compiled
compile.py      compiles for a card that is not there, and reads what came of it
resources.py    registers, shared memory and matrix instructions of each: `python -m benchmarks.kernels.resources`
ptx.py          whether dependent launches wait in time
model.py        the time that bytes, operations and launches should take: `python -m benchmarks.kernels.model`
measure.py      on a card: correct first, then how fast: `python -m benchmarks.kernels.measure`
checks.py       each kernel against its reference
contestants.py  what is timed
timing.py       how it is timed
report.py       what was found, for people
tiles.py        on a card: which tiles are fastest: `python -m benchmarks.kernels.tiles`
"""
