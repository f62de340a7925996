"""ELMo's vectors of text from an exported file: a model of NVIDIA Triton Inference Server's Python backend.

It needs only numpy and onnxruntime, and spells the words itself, so that requests are text and need no padding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashelmo.export.onnx_elmo import OnnxElmo
from flashelmo.export.servers.models.text_requests import answer


class TritonPythonModel:
    """The class that the server uses, with the names that it expects."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the file.

        Args:
            args: from the server; `model_config` is the configuration in JSON.

        Raises:
            FlashElmoError: no such file, or no such provider; the server then reports this and does not load it.
        """
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {name: value["string_value"] for name, value in parameters.items()}
        on_gpu = args["model_instance_kind"] == "GPU"
        self._elmo = OnnxElmo(
            Path(__file__).parent / settings["model"],
            providers=[("cuda", {"device_id": args["model_instance_device_id"]})] if on_gpu else "cpu",
            threads=int(settings["threads"]) or None,
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response to each request; an error for those that cannot be read."""
        return answer(requests, lambda sentences: self._elmo.encode(sentences, output_value="token_embeddings"))

    def finalize(self) -> None:
        """Release the file."""
        del self._elmo
