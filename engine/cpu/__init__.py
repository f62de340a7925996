"""The CPU runtimes: windows through the network's pieces.

pipeline.py       a window from its plan to its sentences' vectors
word_vectors.py   distinct words' vectors, and the cache that keeps them
word_file.py      keeps them from run to run
bilstm.py         the biLSTM over a window's forests, both directions at the same time, step by step
calls.py          cuts a forest into the nodes of one call
runtime.py        what executes the network's pieces: a protocol, for ort.py (ONNX Runtime), openvino.py and
sessions.py       how ONNX Runtime's threads work and wait
avx512.py         16 and 8 bits: lstm.c, which lstm_c.py compiles; words_c.py has word vectors (words.c)
*.c, *.h          for these: products.h multiplies, numbers.h has vectors' functions, team.h the threads
"""
