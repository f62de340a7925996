"""Measures the engine against the reference and against what the machine could do at best.

compare.py          the whole comparison in one interleaved run: `python -m benchmarks.compare`, or `flashelmo bench`
speed.py            bulk text and single sentences
cost.py             memory, load time, and where the time goes
accuracy.py         how far each precision lies from the exact vectors
roofline.py         the machine's matrix peak and bandwidths
host.py             text to schedules, on one core and on more
precision.py        each precision's error on a CUDA device, without one: `python -m benchmarks.precision`
gpu/                the engine on a card, end to end: `python -m benchmarks.gpu --out DIR`
onnx/               the exported ONNX file beside the engine: `python -m benchmarks.onnx`
kernels/            the GPU kernels by themselves, on a card and without one
report.py           README's tables and plots from results/
test_*.py           pytest-benchmark suites of the parts: `pytest benchmarks`
"""
