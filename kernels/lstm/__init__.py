"""The bidirectional LSTM with projection over the nodes of a schedule, in variants that share one cell.

A variant is a way to compute some depths (time steps) that follow each other. Each is a file with the same functions:
`serves(run, rows)`, whether it is of use for depths of so many rows in this type on this card, and
`launches(run, depths)`, its kernel launches for a range of depths, in order.

    fused.py        many rows: input and recurrent state are multiplied in one pass; two launches a depth
    hoisted.py      few rows: the input's part of many depths is one product beforehand; two launches a depth
    persistent.py   very few rows: likewise beforehand, and one launch for many depths

    layer.py        the table of the variants, in order of preference, and what the engine calls: `pack_lstm` at load,
                    `lstm_layer` for each layer of a window
    proven.py       the first use of a variant that was written without a card
    run.py          what the launches of a layer are made of, schedule and tensors, and the check that it fits together
    weights.py      canonical weights, and the layout that these three variants read
    cell.py         the mathematics, and the parts of kernels that variants share

A new variant: its file; its row in `layer.VARIANTS`, with the function that lays out the weights as it reads them; its
row in `VARIANTS` of `tests/kernel_lstm.py`; its kernels' rows in `benchmarks/kernels/cases.py`, to be compiled.

Letters: D directions, N nodes, R rows of one step, T depths, M nodes of a slab (some depths whose input part is one
product), P projection, C cells.
"""
