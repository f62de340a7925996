"""The bidirectional LSTM with projection over the nodes of a schedule, in variants that share one cell.

A variant is a way to compute a run of consecutive depths (time steps), usually with two launches per depth: gates and
cell, then the projection. Each is a file with the same two functions: `serves(run, rows)`, whether the variant is
useful for depths of that many rows with this type on this card, and `launches(run, depths)`, its launches for a range
of depths, in order.

    fused.py             many rows: input and recurrent state are multiplied in one pass
    hoisted.py           few rows: the input part of many depths is one product, computed beforehand
    warp_specialized.py  many rows on Hopper, in Gluon: one warp copies, two groups of warps multiply in turn; the
                         kernel is in warp_specialized_kernel.py
    persistent.py        fewer rows on Hopper, in Gluon: hoisted, the steps of all depths in one launch, weights stay on
                         the chip; the kernel is in persistent_kernel.py, what its programs send each other in
                         persistent_exchange.py
    few_rows.py          few rows on Hopper, in Gluon: hoisted, weights are loading before the previous launch ends;
                         the kernels are in few_rows_kernels.py
    tma.py               many rows on sm_90 and sm_100, in plain Triton: the one of these that the interpreter runs
    int8.py              any rows, gates multiplied as 8-bit integers; a launch before them rounds a depth's rows
    int8_specialized.py  many rows on Hopper: the same, with the kernel of `warp_specialized`
    hopper.py            the weight layout that the Hopper variants share; hopper_projection.py, their projection

    layer.py             the table of the variants, in order of preference, and what the engine calls: `pack_lstm` at
                         load, `lstm_layer` for each layer of a window
    proven.py            compares a variant's first use on a card with the reference, or times it
    run.py               what a layer's launches are made of (schedule and tensors), and the check that it fits together
    training.py          the cell, forward and backward, for training, which has no schedule
    weights.py           canonical weights, and the layout that the portable variants read
    cell.py              the mathematics, and the parts of kernels that variants share
    steps.py             what a variant is; the launches of depths and their arguments, as far as variants share them
    roots.py             the states that the first depth starts from

To add a variant: write its file; add its row to `layer.VARIANTS`, with the function that lays out the weights as it
reads them; add its row to `VARIANTS` of `tests/kernel_lstm.py`; and add its kernels' rows to
`benchmarks/kernels/cases.py`, so that they are compiled.

Letters: D directions, N nodes, R rows of one step, T depths, M nodes of a slab (some depths whose input part is one
product), P projection, C cells.
"""
