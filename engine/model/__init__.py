"""The model itself: dimensions, weights, and the files that they are read from.

config.py       dimensions and conventions
weights.py      the canonical layout, which every reader makes and every runtime starts from
initialize.py   random weights at a published size
checkpoints/    one file per format
named/          published models by name: downloaded, verified, kept
card.py         a model's folder with its card, as hubs expect it
tiny/           the small English model that comes with the package
"""
