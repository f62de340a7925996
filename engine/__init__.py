"""From text to ELMo vectors.

    embedder.py     load a model, embed, stream, encode; embed_file.py: a text file to a file of vectors
    allennlp.py     AllenNLP's arguments and padded batches; sentence_transformers.py: its `encode`
    neighbours.py   the uses of a word that are nearest to a given one
    bulk/           whole corpora: records of many formats into folders of shards
    training/       trains the language model
    settings.py     everything that can be chosen
    arguments.py    checks of callers' arguments; errors.py: the errors that they get
    arrays.py       the types of arrays
    choice.py       what runs a model, by device, precision and runtime
    precision.py    what each precision computes in, where it runs, and how exact it is
    pipeline.py     what all pipelines share: windows of sentences in, results out
    output.py       hidden states to the requested vectors
    system/         threads, forks, child processes, files, the processor, and what a caller set in PyTorch
    model/          configuration, weights, and readers of every format
    text/           lines to windows, words to ids, sentences to schedules
    graph/          the network's pieces as ONNX graphs
    cpu/            runs them: word vectors, then the biLSTM over a schedule
    cuda/           the same on a card
    reference/      the published algorithm in plain PyTorch
    devices/        several cards, one process each
    sinks/          where vectors are written

docs/layout.md follows a sentence through them.

The dimension letters in every shape of this project:

    B  sentences of a batch        T  tokens, time steps       L  layers (LSTM layers + 1)
    W  distinct words              M  characters of a word     N  nodes of a forest
    R  rows of one step            E  character embedding      F  filters, summed over widths
    C  LSTM cell                   P  LSTM projection (the size of a hidden state)
    D  directions
"""
