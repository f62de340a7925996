"""The exported ONNX file beside the engine and the reference: `flashelmo bench onnx`.

suite.py          what is measured
exported.py       a model and its files, which everybody loads
contestants.py    who takes part, and how each embeds a batch
speed.py          ragged batches, from tokens to vectors
peak.py           equal sentences: the graph's share of the matrix peak; products.py has its products alone
cost.py           time to load, in fresh processes, size of the files, and their distance from the exact vectors
cuda.py           the file on a card, beside the native kernels
tables.py         its tables in documents
"""
