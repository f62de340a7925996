"""Measures the engine against the reference and against what the machine could do at best.

compare.py      the whole comparison in one interleaved run: `python -m benchmarks.compare`, or `flashelmo bench`
speed.py        bulk text and single sentences
cost.py         memory, load time, and where the time goes
accuracy.py     how far each precision lies from the exact vectors
roofline.py     the machine's matrix peak and bandwidths
report.py       README's table and plot from results/*.json
test_*.py       pytest-benchmark suites of the parts: `pytest benchmarks`
"""
