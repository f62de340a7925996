"""What an exported file says of itself, in ONNX's `metadata_props`: everything that who deploys it must know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flashelmo.engine.config import ElmoConfig
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.weights import Lexicon

FORMAT_VERSION = 1
Precision = Literal["fp32", "fp16", "int8"]

# Inputs of a stateful file, and the outputs that hold the states after the batch. A row of the first dimension
# [2 * LSTM layers] is a layer and direction: 2 * layer + direction, forward first.
STATES = {"state.hidden": "new_state.hidden", "state.cell": "new_state.cell"}


@dataclass(frozen=True)
class Metadata:
    """The facts of one exported file.

    Attributes:
        config, lexicon: of the model; the lexicon is None for models of bytes.
        precision: "fp32", "fp16" or "int8".
        layers: numbers of the `hidden_states.K` that are outputs, 0 the characters' one.
        mix: coefficient of each layer in `token_embeddings`, one for every layer of the model.
        stateful: whether states are inputs and outputs.
        characters: positions of a word in `character_ids`: M, or None where any number up to M is taken.
        int8_levels: largest magnitude of an 8-bit weight; None but for int8.
        weights_sha256: digest of the canonical float32 tensors, names and values, in their order.
        source_format: the format that the weights were read from.
        license: of the weights, as whoever exported them said.
        report_sha256: digest of the verification report beside the file; empty before it is verified.
    """

    config: ElmoConfig
    lexicon: Lexicon | None
    precision: Precision
    layers: tuple[int, ...]
    mix: tuple[float, ...]
    stateful: bool = False
    characters: int | None = None
    int8_levels: int | None = None
    weights_sha256: str = ""
    source_format: str = ""
    license: str = "unknown"
    report_sha256: str = ""

    @property
    def absent_word_id(self) -> int:
        """What `word_ids` holds where there is no token; -1 in ELMoForManyLangs' models, whose 0 is a word."""
        return -1 if self.config.family == "manylangs" else 0

    def to_properties(self) -> dict[str, str]:
        """Strings for `metadata_props`, some of them JSON."""
        lexicon = self.lexicon and {"characters": dict(self.lexicon.characters), "words": dict(self.lexicon.words)}
        values = {
            "config": self.config.to_dict(),
            "lexicon": lexicon,
            "layers": list(self.layers),
            "mix": list(self.mix),
            "stateful": self.stateful,
            "characters": self.characters,
            "int8_levels": self.int8_levels,
        }
        return {
            "format": "flashelmo",
            "format_version": str(FORMAT_VERSION),
            "precision": self.precision,
            "weights_sha256": self.weights_sha256,
            "source_format": self.source_format,
            "license": self.license,
            "report_sha256": self.report_sha256,
            "layer_order": "characters, then LSTM layers from the lowest; forward half, then backward half",
            "boundaries": "added and removed inside the graph; every sentence starts from a fresh state"
            if not self.stateful
            else "added and removed inside the graph; a row starts from the state given",
            **{name: json.dumps(value, ensure_ascii=False) for name, value in values.items()},
        }

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], source: str) -> Metadata:
        """Read what `to_properties` wrote.

        Raises:
            FlashElmoError: a file that this package did not export, or a later version did; naming `source`.
        """
        if properties.get("format") != "flashelmo":
            raise FlashElmoError(f"{source}: expected a model exported by flashelmo, found no metadata of it")
        version = properties.get("format_version")
        if version != str(FORMAT_VERSION):
            raise FlashElmoError(f"{source}: expected format_version {FORMAT_VERSION}, found {version}")
        try:
            names = ("config", "lexicon", "layers", "mix", "stateful", "characters", "int8_levels")
            values = {name: json.loads(properties[name]) for name in names}
            texts = ("precision", "weights_sha256", "source_format", "license", "report_sha256")
            values |= {name: properties[name] for name in texts}
            lexicon = values["lexicon"]
            values["config"] = ElmoConfig.from_dict(values["config"], source)
            values["lexicon"] = lexicon and Lexicon(lexicon["characters"], lexicon["words"])
            values["layers"], values["mix"] = tuple(values["layers"]), tuple(values["mix"])
        except (KeyError, TypeError, ValueError) as error:
            raise FlashElmoError(f"{source}: damaged metadata: {error!r}") from None
        return cls(**values)
