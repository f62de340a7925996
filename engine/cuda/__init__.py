"""The CUDA runtime: windows of sentences through the Triton kernels, the device never waiting for the host.

A window passes through

    plan.py          its schedule, made ahead of its turn
    words.py         its distinct words' rows in the table of word vectors on the device
    layout.py        its schedule as one array of integers, exact or in a bucket's sizes
    executor.py      what is queued for it: a bucket's graph where it is small, launch by launch where it is large
    compute.py       the kernels in their order, from word vectors to what was asked for
    graphs.py        the same as a captured CUDA graph
    transfer.py      the copies up and down, on streams of their own through pinned memory
    results.py       what was asked for, sentence by sentence
    pipeline.py      the loop that joins them, and halves a window that does not fit

`weights.py` lays the model out on the device, `state.py` carries rows' states in stateful runs, `memory.py` says how
many tokens fit, `requirements.py` in one line what a machine lacks, and `settings.py` has the switches that only a
measurement can judge.

Where Triton interprets its kernels on the CPU (TRITON_INTERPRET=1), all of it but streams and graphs runs there too:
device "interpreter", for tests.
"""
