"""The network as fused Triton kernels: tensors in, tensors out.

    launch.py        a launch as a value; compiled.py and series.py, how it is queued without Triton
    arguments.py     the checks that all launchers share
    pytorch.py       how PyTorch multiplies float32, and how it says that there is no memory
    product.py       the main loop and the pointwise functions that kernels share
    tuning.py        their tiles, with the reason for each
    char_cnn.py      character ids to features; char_cnn_weights.py, the weights as it reads them
    highway.py       a highway layer
    linear.py        a product with bias; linear_tma.py, the same with bulk copies
    gather.py        rows of words by node
    carry.py         copies the states that rows end with to where they are carried on
    lstm/            the bidirectional LSTM over a schedule, one file per variant
    token_layers.py  tokens' layers gathered and mixed (mixing.py), and averaged over sentences (pooling.py)
    adagrad.py       an optimizer's step for one parameter, in training
    gluon.py         names of Gluon that differ between Triton's versions
    reference.py     the same mathematics in plain PyTorch, which every kernel is tested against

The letters in shapes are those of `engine/__init__.py`; K is what a product sums over, O the outputs mixed from layers,
and `lstm/` adds M, the nodes of a slab of depths. Tensors that hold the rows of one step at a time have the R of the
largest depth.
"""
