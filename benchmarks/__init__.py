"""Measures the engine against the reference and against what the machine could do at best.

compare.py          the whole comparison in one interleaved run: `python -m benchmarks.compare`, or `flashelmo bench`
speed.py            bulk text and single sentences
cost.py             memory, load time, and where the time goes
accuracy.py         how far each precision lies from the exact vectors
roofline.py         the machine's matrix peak and bandwidths
gpu_kernels.py      every GPU kernel on this machine's card: `python -m benchmarks.gpu_kernels --out DIR`
gpu_tiles.py        the fastest of their tiles on this card: `python -m benchmarks.gpu_tiles --out DIR`
kernel_model.py     the time that each of them should take: `python -m benchmarks.kernel_model --card H200`
kernel_resources.py registers, spills and shared memory of each: `python -m benchmarks.kernel_resources`
report.py           README's table and plot from results/*.json
test_*.py           pytest-benchmark suites of the parts: `pytest benchmarks`
"""
