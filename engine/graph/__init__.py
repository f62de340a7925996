"""The network as ONNX pieces, which `cpu/` runs one by one and `export/` joins into one file.

pieces.py    words to vectors, an LSTM's input product, its steps
builder.py   a graph under construction
tensors.py   a model's weights by the names used in the pieces, in float32, float16 or 8 bits
"""
