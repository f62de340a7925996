"""The engine on a card, end to end: `python -m benchmarks gpu --out DIR`.

suite.py      the command line of it; engine.py: what is measured, in which order
check.py      what a card must show, in minutes; ahead.py: kernels compiled before
accuracy.py   a model on the card against the reference, before anything is timed
speed.py      in turns with rivals.py, and each of the runtime's switches against its opposite
limits.py     what the card allows at best
profile.py    where the card's and the host's time goes
tables.py     targets and tables
"""
