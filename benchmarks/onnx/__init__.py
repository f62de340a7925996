"""The exported ONNX file beside the engine and the reference: `python -m benchmarks.onnx --out FILE.json`.

settings.py       what a run measures, and who takes part
exported.py       a model and its files, which everybody loads
contestants.py    ways to embed, each in a process of its own; the check that stands before every timing
speed.py          ragged batches, from tokens to vectors
peak.py           equal sentences: the graph's share of the matrix peak; products.py has its products alone
cost.py           time to load, in fresh processes (fresh.py), and size of the files
accuracy.py       how far each precision lies from the exact vectors
cuda.py           the file on a card, beside the native kernels
tables.py         README's tables
"""
