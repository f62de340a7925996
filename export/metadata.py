"""What an exported file says about itself, in ONNX's `metadata_props`: all that is needed to deploy it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.files import check_rows
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import Lexicon
from flashelmo.engine.precision import PRECISIONS, Arithmetic, PrecisionName, precisions_on

FORMAT_VERSION = 1
UNROLLED_VERSION = 2  # of files of one shape, which earlier versions of this package cannot run

# Inputs of a stateful file, and the outputs with the states after the batch. A row of the first dimension
# [2 * LSTM layers] is a layer and direction: 2 * layer + direction, forward first.
STATES = {"state.hidden": "new_state.hidden", "state.cell": "new_state.cell"}
JSON_VALUES = ("config", "lexicon", "layers", "mix", "stateful", "characters", "int8_levels")
TEXTS = ("precision", "weights_sha256", "source_format", "license", "report_sha256")
MAX_INT8_LEVELS = 127
BUCKET = r"batch[1-9]\d*_steps[1-9]\d*"  # names of unrolled files, which share the weights beside them
BUCKET_FILE = BUCKET + r"\.onnx"
BUCKET_DATA = "weights.onnx_data"


@dataclass(frozen=True)
class Metadata:
    """The facts of one exported file.

    Attributes:
        config, lexicon: of the model; the lexicon is None for models of bytes.
        precision: one that exported files can have (`engine.precision`).
        layers: numbers of the `hidden_states.K` that are outputs; 0 is the characters' one.
        mix: coefficient of each layer in `token_embeddings`, one for every layer of the model.
        stateful: whether states are inputs and outputs.
        characters: positions of a word in `character_ids`: M, or None if any number up to M is accepted.
        int8_levels: largest magnitude of an 8-bit weight; None except for int8.
        weights_sha256: the model's sha256, of its float32 tensors and lexicon (`ElmoModel.sha256`).
        source_format: the format from which the weights were read.
        license: of the weights, as stated at export.
        report_sha256: digest of the verification report beside the file; empty before verification.
        bucket: (sentences, tokens of each) of the one shape that an unrolled file takes; None if any is accepted.
    """

    config: ElmoConfig
    lexicon: Lexicon | None
    precision: PrecisionName
    layers: tuple[int, ...]
    mix: tuple[float, ...]
    stateful: bool = False
    characters: int | None = None
    int8_levels: int | None = None
    weights_sha256: str = ""
    source_format: str = ""
    license: str = "unknown"
    report_sha256: str = ""
    bucket: tuple[int, int] | None = None

    @property
    def arithmetic(self) -> Arithmetic:
        """How the file computes."""
        return PRECISIONS[self.precision].on("onnx")

    def to_properties(self) -> dict[str, str]:
        """Return strings for `metadata_props`, some of them JSON."""
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
        if self.bucket is not None:
            values["bucket"] = list(self.bucket)
        return {
            "format": "flashelmo",
            "format_version": str(FORMAT_VERSION if self.bucket is None else UNROLLED_VERSION),
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
        """Read the properties that `to_properties` made.

        Raises:
            FlashElmoError: this package did not export the file, or a later version did, or the metadata are damaged or
                contradictory; names `source`.
        """
        if properties.get("format") != "flashelmo":
            raise FlashElmoError(f"{source}: expected a model exported by flashelmo, found no metadata of it")
        version = properties.get("format_version")
        expected = UNROLLED_VERSION if "bucket" in properties else FORMAT_VERSION
        if version != str(expected):
            found = " ".join(str(version).split())
            raise FlashElmoError(f"{source}: expected format_version {expected}, found {found:.80}")
        try:
            return cls(**_values(properties, source))
        except FlashElmoError:
            raise
        except (KeyError, OverflowError, RecursionError, ValueError) as error:
            raise FlashElmoError(f"{source}: damaged metadata: {error!r}") from None


def bucket_name(bucket: tuple[int, int]) -> str:
    """Return the name of the unrolled file for this many sentences and tokens."""
    batch, steps = bucket
    return f"batch{batch}_steps{steps}.onnx"


def _values(properties: Mapping[str, str], source: str) -> dict[str, Any]:
    """Return the fields of Metadata, each with its type and consistent with the configuration."""
    values: dict[str, Any] = {name: json.loads(properties[name]) for name in JSON_VALUES}
    values |= {name: properties[name] for name in TEXTS}
    values["bucket"] = _bucket(json.loads(properties["bucket"]), source) if "bucket" in properties else None
    _check(isinstance(values["config"], dict), source, "config", "an object", values["config"])
    config = values["config"] = ElmoConfig.from_dict(values["config"], source)
    values["lexicon"] = _lexicon(values["lexicon"], config, source)
    values["layers"] = _layers(values["layers"], config.n_layers + 1, source)
    values["mix"] = _mix(values["mix"], config.n_layers + 1, source)
    _check(isinstance(values["stateful"], bool), source, "stateful", "true or false", values["stateful"])
    _check_characters(values["characters"], config, source)
    precisions = precisions_on("onnx")
    _check(values["precision"] in precisions, source, "precision", " or ".join(precisions), values["precision"])
    _check_levels(values["int8_levels"], values["precision"], source)
    return values


def _lexicon(values: Any, config: ElmoConfig, source: str) -> Lexicon | None:
    """Return the rows of tokens, all within their embedding."""
    looks_up = config.word_size or (config.character_size and config.family == "manylangs")
    if values is None and not looks_up:
        return None
    _check(isinstance(values, dict), source, "lexicon", "an object, as the model looks tokens up", values)
    for name, n_rows in (("characters", config.n_characters), ("words", config.n_words)):
        rows = values.get(name)
        whole = isinstance(rows, dict) and all(type(row) is int for row in rows.values())
        _check(whole, source, f"lexicon: {name}", "an object of tokens and rows", rows)
        if n_rows:  # a lexicon may have words that the model does not look up
            check_rows(rows, n_rows, Path(source))
    return Lexicon(values["characters"], values["words"])


def _layers(values: Any, n_layers: int, source: str) -> tuple[int, ...]:
    whole = isinstance(values, list) and all(type(layer) is int and 0 <= layer < n_layers for layer in values)
    different = whole and len(set(values)) == len(values)
    _check(different, source, "layers", f"different numbers from 0 to {n_layers - 1}", values)
    return tuple(values)


def _mix(values: Any, n_layers: int, source: str) -> tuple[float, ...]:
    numbers = isinstance(values, list) and all(type(weight) in (int, float) for weight in values)
    finite = numbers and len(values) == n_layers and all(map(math.isfinite, values))
    _check(finite, source, "mix", f"{n_layers} finite coefficients", values)
    return tuple(map(float, values))


def _bucket(values: Any, source: str) -> tuple[int, int]:
    whole = isinstance(values, list) and len(values) == 2 and all(type(size) is int and size > 0 for size in values)
    _check(whole, source, "bucket", "two positive whole numbers", values)
    return values[0], values[1]


def _check_characters(found: Any, config: ElmoConfig, source: str) -> None:
    most = config.max_characters if config.character_size else None
    expected = "null" if most is None else f"{most} or null"
    _check(found is None or (type(found) is int and found == most), source, "characters", expected, found)


def _check_levels(found: Any, precision: str, source: str) -> None:
    if PRECISIONS[precision].on("onnx").lstm_weights == "int8":
        whole = type(found) is int and 1 <= found <= MAX_INT8_LEVELS
        _check(whole, source, "int8_levels", f"a whole number from 1 to {MAX_INT8_LEVELS}", found)
    else:
        _check(found is None, source, "int8_levels", f"null in {precision}", found)


def _check(holds: bool, source: str, name: str, expected: str, found: Any) -> None:
    if not holds:
        raise FlashElmoError(f"{source}: metadata: {name}: expected {expected}, found {found!r:.80}")
