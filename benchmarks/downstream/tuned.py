"""The language model fine-tuned with a task through `Elmo(requires_grad=True)`.

It is converted back to weights (`Elmo.to_model`), and the task is judged with the engine embedding with them.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.benchmarks.tasks import Sample, Task
from flashelmo.engine.arrays import Float32, Float64
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.reference.elmo import Elmo

# isort: split
import torch  # after the reference, whose error says how to install it
from torch import Tensor
from torch.nn import functional as F

EPOCHS, BATCH = 3, 32
RATE, MODEL_RATE, DROPOUT = 2e-3, 5e-4, 0.2
POOL = 50  # batches whose sentences are sorted by length together, to save padding


class Tuned(torch.nn.Module):
    """`Elmo`, and a linear function of each token's vector or of their mean."""

    def __init__(self, folder: Path, task: Task) -> None:
        super().__init__()
        self.task = task
        self.elmo = Elmo(folder, None, 1, requires_grad=True, dropout=DROPOUT)
        self.output = torch.nn.Linear(self.elmo.get_output_dim(), len(task.classes))

    def forward(self, samples: list[Sample]) -> Tensor:
        """Return the classes' logits [N, classes] for all tokens, or for the sentences."""
        device = self.output.weight.device
        found = self.elmo(self.elmo.batch_to_ids([sample.tokens for sample in samples]).to(device))
        vectors, mask = found["elmo_representations"][0], found["mask"]
        if self.task.by_token:
            vectors = vectors[mask]
        else:
            vectors = vectors.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        logits: Tensor = self.output(vectors)
        return logits

    def right(self, samples: list[Sample]) -> Float64:
        """Return 1 where it is right, else 0, with the weights in the engine [N]."""
        mix: Any = self.elmo.get_submodule("scalar_mix_0")
        weights = mix.gamma.detach() * torch.cat([each.detach() for each in mix.scalar_parameters]).softmax(dim=0)
        embedder = ElmoEmbedder(self.elmo.to_model(), device="cpu", precision="fp32")
        vectors = self.task.features(lambda each: _one_layer(embedder, each, weights.cpu()), samples)[:, 0]
        logits = vectors @ self.output.weight.detach().cpu().numpy().T + self.output.bias.detach().cpu().numpy()
        found: Float64 = (logits.argmax(axis=1) == self.task.numbers(samples)).astype(np.float64)
        return found


def _one_layer(embedder: ElmoEmbedder, sentences: Any, mix: Tensor) -> Any:
    """Return the mix of the layers as a single one [1, T, 2P]."""
    found: list[Float32] = [vectors[None] for vectors in embedder.embed(sentences, mix=mix.tolist())]
    return iter(found)


def learn(folder: Path, task: Task, seed: int, epochs: int = EPOCHS) -> Tuned:
    """Train model and task together, keeping the epoch that was best on `dev`; on a card if there is one."""
    torch.manual_seed(seed)
    model = Tuned(folder, task).to("cuda" if torch.cuda.is_available() else "cpu")
    own = {id(parameter) for parameter in model.elmo.bilm.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    groups = [{"params": list(model.elmo.bilm.parameters()), "lr": MODEL_RATE}, {"params": rest, "lr": RATE}]
    optimizer = torch.optim.Adam(groups)
    best, kept = -1.0, deepcopy(model.state_dict())
    for _ in range(epochs):
        model.train()
        for samples in batches(task.train, torch.randperm(len(task.train)).tolist()):
            classes = torch.from_numpy(task.numbers(samples)).to(model.output.weight.device)
            optimizer.zero_grad()
            backward: Any = F.cross_entropy(model(samples), classes).backward
            backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if (accuracy := float(model.right(task.dev).mean())) > best:
            best, kept = accuracy, deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model


def batches(samples: list[Sample], order: list[int]) -> list[list[Sample]]:
    """Return batches in this order, grouping nearby sentences of similar length."""
    result = []
    for start in range(0, len(order), POOL * BATCH):
        pool = sorted(order[start : start + POOL * BATCH], key=lambda place: len(samples[place].tokens))
        result += [[samples[place] for place in pool[k : k + BATCH]] for k in range(0, len(pool), BATCH)]
    shuffled = torch.randperm(len(result)).tolist()
    return [result[k] for k in shuffled]
