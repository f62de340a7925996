"""Files of models that are broken on purpose."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Let `change` do what it likes with what a file holds."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def fails(path: Path, message: str) -> None:
    """No model is read, and one line says why."""
    with pytest.raises(FlashElmoError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
