"""The network as fused Triton kernels: tensors in, tensors out.

    launch.py        a launch as a value; compiled.py and series.py, how it is queued without Triton
    arguments.py     the checks that all launchers share
    product.py       the main loop and the pointwise functions that kernels share
    tuning.py        their tiles, each with its reason
    char_cnn.py      character ids to features; char_cnn_weights.py, their weights as it reads them
    highway.py       a highway layer
    linear.py        a product with bias; linear_tma.py, the same by bulk copies
    gather.py        rows of words by node
    carry.py         the states that rows end with, to where they are carried on
    lstm/            the bidirectional LSTM over a schedule, a file a variant
    token_layers.py  tokens' layers gathered and mixed (mixing.py), and averaged over sentences (pooling.py)
    adagrad.py       an optimizer's step for one parameter, in training
    gluon.py         names of Gluon that differ between Triton's versions
    reference.py     the same mathematics in plain PyTorch, which every kernel is tested against

Letters of shapes are those of `engine/__init__.py`; K is what a product sums over, O the outputs mixed from layers, and
`lstm/` adds M, the nodes of a slab of depths. What holds the rows of one step at a time has the R of the largest depth.
"""
