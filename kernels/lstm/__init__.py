"""The bidirectional LSTM with projection over the nodes of a schedule, in variants that share one cell.

A variant is a way to compute some depths (time steps) that follow each other, as a rule with two launches a depth:
gates and cell, then the projection. Each is a file with the same functions: `serves(run, rows)`, whether it is of use
for depths of so many rows in this type on this card, and `launches(run, depths)`, its launches for a range of depths,
in order.

    fused.py             many rows: input and recurrent state are multiplied in one pass
    hoisted.py           few rows: the input's part of many depths is one product beforehand
    warp_specialized.py  many rows on Hopper, in Gluon: one warp copies, two groups of warps multiply in turn; the
                         kernel is in warp_specialized_kernel.py
    persistent.py        fewer rows on Hopper, in Gluon: hoisted, the steps of all depths in one launch, weights stay on
                         the chip; the kernel is in persistent_kernel.py
    few_rows.py          few rows on Hopper, in Gluon: hoisted, weights under way before the launch before has ended;
                         the kernels are in few_rows_kernels.py
    tma.py               many rows on sm_90 and sm_100, in plain Triton: what the interpreter runs of the above
    int8.py              any rows, gates multiplied as 8-bit integers; a launch before them rounds a depth's rows
    int8_specialized.py  many rows on Hopper, the same by the kernel of `warp_specialized`
    hopper.py            the weights' layout that those for Hopper share; hopper_projection.py, their projection

    layer.py             the table of the variants, in order of preference, and what the engine calls: `pack_lstm` at
                         load, `lstm_layer` for each layer of a window
    proven.py            a variant's first use on a card, compared with the reference, or timed
    run.py               what the launches of a layer are made of, schedule and tensors, and the check that it fits
    training.py          the cell forward and backward while it is trained, which has no schedule
    weights.py           canonical weights, and the layout that the portable variants read
    cell.py              the mathematics, and the parts of kernels that variants share
    steps.py             what a variant is; the launches of depths, and what they are given, as far as variants share it
    roots.py             the states that the first depth starts from

A new variant: its file; its row in `layer.VARIANTS`, with the function that lays out the weights as it reads them; its
row in `VARIANTS` of `tests/kernel_lstm.py`; its kernels' rows in `benchmarks/kernels/cases.py`, to be compiled.

Letters: D directions, N nodes, R rows of one step, T depths, M nodes of a slab (some depths whose input part is one
product), P projection, C cells.
"""
