"""Files of models that are broken on purpose."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.weights import ElmoModel


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Let `change` do what it likes with what a file holds."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def same_model(found: ElmoModel, expected: ElmoModel, forget_bias: float = 0.0) -> None:
    """The LSTM's biases may differ by so much."""
    assert found.config == expected.config and found.lexicon == expected.lexicon
    tensors = dict(expected.weights.named_tensors())
    assert [name for name, _ in found.weights.named_tensors()] == list(tensors)
    for name, tensor in found.weights.named_tensors():
        bound = forget_bias if name.startswith("lstm.") and name.endswith(".bias") else 0.0
        np.testing.assert_allclose(tensor, tensors[name], rtol=0, atol=bound, err_msg=name)
        assert tensor.flags.c_contiguous


def fails(path: Path, message: str) -> None:
    """No model is read, and one line says why."""
    with pytest.raises(FlashElmoError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
