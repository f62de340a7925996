"""From text to ELMo vectors.

    embedder.py     load a model, embed, stream, encode; embed_file.py: a text file to a file of vectors
    settings.py     everything that can be chosen
    choice.py       what runs a model, by device, precision and runtime
    precision.py    what each precision computes in, where it runs, and how exact it is
    pipeline.py     what all pipelines share: windows of sentences in, results out
    output.py       hidden states to the vectors that were asked for
    files.py        sums of files, and the wait until they are on the disk
    processor.py    the processor: instruction sets, cores, cache
    allocator.py    what becomes of memory that was freed, in programs that run for hours
    model/          configuration, weights, and readers of every format
    text/           lines to windows, words to ids, sentences to schedules
    graph/          the network's pieces as ONNX graphs
    cpu/            runs them: word vectors, then the biLSTM over a schedule
    cuda/           the same on a card
    reference/      the published algorithm in plain PyTorch
    devices/        several cards, a process each
    sinks/          where vectors are written

docs/layout.md follows a sentence through them.

One legend of dimension letters holds in every shape of this project:

    B  sentences of a batch        T  tokens, time steps       L  layers (LSTM layers + 1)
    W  distinct words              M  characters of a word     N  nodes of a forest
    R  rows of one step            E  character embedding      F  filters, summed over widths
    C  LSTM cell                   P  LSTM projection (the size of a hidden state)
    D  directions
"""
