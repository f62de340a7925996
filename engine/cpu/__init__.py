"""The processor's way: windows through ONNX graphs.

pipeline.py       a window from its plan to its sentences' vectors
word_vectors.py   distinct words' vectors, and the cache that keeps them
word_file.py      keeps them from run to run
bilstm.py         the biLSTM over a window's forests, step by step
runtime.py        what executes the graphs' pieces: a protocol, for ort.py (ONNX Runtime) and openvino.py
"""
