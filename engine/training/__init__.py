"""Pretraining: the published bidirectional language model, from text to weights.

settings.py     everything that can be chosen of a run
corpus.py       text to word ids; the words that the softmax predicts
spelling.py     a batch's distinct words and their characters
streams.py      word ids to batches of streams, both directions
recurrence.py   one LSTM layer over a window of time steps, with its own backward pass
softmax.py      sampled and full softmax, loss and gradients in one pass
model.py        the language model in PyTorch; from and to `ElmoWeights`
optimizers.py   Adagrad as published, Adam; the learning rate's schedule
step.py         one training step, which on a card is captured as a CUDA graph
checkpoint.py   what a run is resumed from, and when the next one is written
identity.py     what identifies a run, and the lock that keeps others out
task.py         what is trained on what: the corpus, the device, the vocabulary
initial.py      the weights with which a run begins
processes.py    several processes that train one model
softmax_files.py  the softmax and its words, beside a model's weights
trainer.py      the loop
evaluate.py     log-probabilities and perplexity
language_model.py  a trained model's log-probabilities, from Python
results.py      the folder that a run leaves: weights, softmax, curve, card
"""

from flashelmo.engine.errors import MissingExtraError

try:
    import torch  # noqa: F401 (before any module here)
except ImportError as error:
    raise MissingExtraError("torch", "torch", "training") from error
