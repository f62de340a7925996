"""The engine on a card, end to end: `python -m benchmarks.gpu --out DIR`.

__main__.py     the command
run.py          one run, whose results are kept as they come
jobs.py         what it measures, in which order
settings.py     how much of it
subject.py      a model on the card
accuracy.py     against the reference, before anything is timed; golden.py: against published vectors
sanitizer.py    the same under compute-sanitizer
workloads.py    what is embedded for speed, and what the card allows at best; ceilings.py: its limits
speed.py        in turns with rivals.py; wall_timing.py: how
stages.py       where the card's time goes
switches.py     the runtime's switches, each against its opposite
targets.py      how far all this is from what it should reach
rows.py         rows of results
tables.py       tables and plots: `python -m benchmarks.gpu.tables`
"""
