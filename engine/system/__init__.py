"""What the engine needs of the operating system, of Python and of PyTorch as they are.

threads.py     calls in background threads that stay safe whenever Ctrl-C comes
forks.py       what a forked process must make anew
child.py       child processes
signals.py     Ctrl-C and other signals that ask to stop
files.py       checksums, locks and temporary names of files, flushing them to disk, why one could not be written
processor.py   instruction sets, cores, cache
allocator.py   returning freed memory to the system
autocast.py    a caller's PyTorch autocast
names.py       public names that are imported on first use
captures.py    streams for CUDA graphs, and ending a capture that failed
"""
