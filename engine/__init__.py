"""From text to ELMo vectors.

A sentence passes through these files in this order:

    characters.py   words to character ids
    schedule.py     sentences to distinct words and forests of prefixes and suffixes
    graph.py        the network's pieces as ONNX graphs, run by runtimes/
    output.py       hidden states to the vectors that were asked for
    embedder.py     the loop that joins them

One legend of dimension letters holds in every shape of this project:

    B  sentences of a batch        T  tokens, time steps       L  layers (LSTM layers + 1)
    W  distinct words              M  characters of a word     N  nodes of a forest
    R  rows of one step            E  character embedding      F  filters, summed over widths
    C  LSTM cell                   P  LSTM projection (the size of a hidden state)
    D  directions
"""
