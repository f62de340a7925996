"""The model itself: dimensions, weights, and the files that they are read from.

config.py       dimensions and conventions
weights.py      the one canonical layout, which every reader makes and every runtime starts from
initialize.py   random weights at a published size
checkpoints/    a file a format
"""
