"""The engine on a card, end to end: `python -m benchmarks gpu --out DIR`.

suite.py      the command line of it; engine.py: what is measured, in which order
check.py      what a card must show, in minutes; ahead.py: kernels compiled before; check_tables.py: what it found
subject.py    a model on the card
accuracy.py   against the reference and published vectors, before anything is timed
sanitizer.py  the same under compute-sanitizer
workloads.py  what is embedded for speed, and what the card allows at best
speed.py      in turns with rivals.py, and each of the runtime's switches against its opposite
stages.py     where the card's time goes; timeline.py: a picture of the device and the host
tables.py     targets, tables and plots
"""
