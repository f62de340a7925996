"""The published algorithm in plain PyTorch: the truth that everything else is compared with.

reference.py      the bidirectional language model, and batches of sentences through it
torch_layers.py   its layers
padding.py        masks and sentence boundaries of padded batches
trainable.py      the same, faster where gradients are needed
pipeline.py       the reference with the interface of `WindowPipeline`
elmo.py           `Elmo`, AllenNLP's module; scalar_mix.py, its learned mix of layers
"""

from flashelmo.engine.errors import MissingExtraError

try:
    import torch  # noqa: F401 (before any module here)
except ImportError as error:
    raise MissingExtraError("torch", "torch", "the module Elmo, or the PyTorch reference,") from error
