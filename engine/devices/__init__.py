"""Several devices at once: one process each, windows to whichever has room, results back in order.

pool.py             the pipeline made of many
stream.py           one stream of windows: which are where, and which comes next
process.py          a device's process as the pool sees it
worker.py           the process itself
shared_arrays.py    arrays handed over through shared memory
"""
