"""The CUDA runtime: windows of sentences through the Triton kernels, prepared by the host ahead of the device.

A window's plan (`engine/pipeline.py`) passes through

    pipeline.py      the loop: queues a window while the previous one computes, and halves one that does not fit
    executor.py      how it is computed: by a CUDA graph if it is small, launch by launch if it is large
    model.py         its distinct words' rows in the table of word vectors on the device, with the model's weights
    layout.py        its schedule as one array of integers, exact or in the sizes that a graph was captured for
    transfer.py      copies to and from the device, on their own streams
    compute.py       the kernels in order, from word vectors to the requested layers
    cuda_graphs.py   the same as a captured CUDA graph
    results.py       the results, sentence by sentence, on the device or in host memory

`forests.py` builds a schedule's nodes in C, `state.py` carries rows' states in stateful runs, `memory.py` estimates how
many tokens fit, and `requirements.py` says in one line what a machine lacks. Switches are in `engine/settings.py`.

Where Triton interprets its kernels on the CPU (TRITON_INTERPRET=1), everything except streams and graphs runs there
too: device "interpreter", for tests.
"""
