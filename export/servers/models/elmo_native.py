"""ELMo's vectors of text from flashelmo's engine: a model of NVIDIA Triton Inference Server's Python backend.

Its settings are the `parameters` of `config.pbtxt`; the weights are beside this file. The sentences of all requests
that the server combined are one stream for the engine, which computes their common words, beginnings and endings once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.export.servers.models.text_requests import answer


class TritonPythonModel:
    """The class that the server uses, with the names that it expects."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model.

        Args:
            args: from the server; `model_config` is the configuration in JSON.

        Raises:
            FlashElmoError: no such model, or parameters that do not go together; the server then reports this and does
                not load it.
        """
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {name: value["string_value"] for name, value in parameters.items()}
        device = settings["device"]
        if device == "instance":  # where instance_group puts it
            on_gpu = args["model_instance_kind"] == "GPU"
            device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        self._embedder = ElmoEmbedder.load(
            Path(__file__).parent / settings["model"],
            device=device,
            precision=settings["precision"],
            threads=int(settings["threads"]) or None,
        )
        self._output = _output(settings["layers"])
        self._output.check(self._embedder.config.n_layers + 1)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response to each request; an error for those that cannot be read."""
        layers, mix = self._output.layers, self._output.mix
        return answer(requests, lambda sentences: self._embedder.embed(sentences, layers=layers, mix=mix))

    def finalize(self) -> None:
        """Release the model."""
        del self._embedder


def _output(text: str) -> Output:
    """Return what the parameter `layers` requests: top, average, a layer's number or the coefficients of a mix."""
    if text.isdecimal():
        return Output(int(text))
    if text in ("top", "average"):
        return Output(text)
    try:
        return Output(mix=[float(value) for value in text.split(",")])
    except ValueError:
        expected = "top, average, a layer's number or a coefficient for each layer"
        raise FlashElmoError(f"layers: expected {expected}, found {text!r}") from None
