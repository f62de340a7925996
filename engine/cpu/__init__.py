"""The processor's way: windows through the network's pieces.

pipeline.py       a window from its plan to its sentences' vectors
word_vectors.py   distinct words' vectors, and the cache that keeps them
word_file.py      keeps them from run to run
bilstm.py         the biLSTM over a window's forests, step by step: calls.py cuts a forest into what is computed at
                  once, directions.py runs both directions beside each other
runtime.py        what executes the network's pieces: a protocol, for ort.py (ONNX Runtime), openvino.py and
avx512.py         16 and 8 bits: lstm.c, which lstm_c.py compiles, and its words (words_c.py)
"""
