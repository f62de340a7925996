"""The network as fused Triton kernels: tensors in, tensors out.

Letters of shapes are those of `engine/__init__.py`; R is the rows of a forest's largest depth, T its depths, M in
`lstm.py` the nodes of a slab of depths; K is what a product sums over, O the outputs mixed from layers.
"""
