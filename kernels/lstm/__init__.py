"""The bidirectional LSTM with projection over the nodes of a schedule, in variants that share one cell.

A variant is a way to compute some depths (time steps) that follow each other. Each is a file with the same functions:
`serves(run, rows)`, whether it is of use for depths of so many rows in this type on this card, and
`launches(run, depths)`, its kernel launches for a range of depths, in order.

    fused.py        many rows: input and recurrent state are multiplied in one pass; two launches a depth
    hoisted.py      few rows: the input's part of many depths is one product beforehand; two launches a depth
    persistent.py   very few rows: likewise beforehand, and one launch for many depths

    variants.py     the table of the variants, in order of preference; the only place that knows all
    layer.py        what the engine calls: `pack_lstm` at load, `lstm_layer` for each layer of a window
    run.py          what the launches of a layer are made of, and the checks that it fits together
    weights.py      canonical weights, and the layout that these three variants read
    nodes.py        the schedule as the kernels read it
    cell.py         the mathematics, and the parts of kernels that variants share
    step.py         the two kernels of a step that is two launches: gates and projection
    barrier.py      where the programs of a persistent launch wait for each other

A new variant: its file; its row in `variants.VARIANTS`, with the function that lays out the weights as it reads them;
its tiles in `kernels/tuning.py`, if it chooses among some; its row in `VARIANTS` of `tests/kernel_lstm.py`.

Letters: D directions, N nodes, R rows of one step, T depths, M nodes of a slab (some depths whose input part is one
product), P projection, C cells.
"""
