"""What requests hold. The texts of these classes are those of the OpenAPI page."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from flashelmo.engine.arguments import shown
from flashelmo.engine.text.sentences import SURROGATE, Sentence

TOKENS = {"type": "array", "items": {"type": "string"}}
INPUTS = {
    "description": "A sentence, or several, each a text or a list of tokens.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": [{"type": "string"}, TOKENS]}}],
}
LAYERS = {
    "description": '"average", "top", "all", the number of a layer, 0 being the characters\', or several numbers.',
    "anyOf": [
        {"enum": ["all", "top", "average"]},
        {"type": "integer", "minimum": 0},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True},
    ],
}
MIX = {
    "description": "In place of `layers` a coefficient for each layer, whose weighted sum is given.",
    "anyOf": [{"type": "array", "items": {"type": "number"}, "minItems": 1}, {"type": "null"}],
}


def checked_inputs(value: Any) -> list[str | Sentence]:
    """Sentences as the service takes them.

    Raises:
        ValueError: what is none, with its place.
    """
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f": expected a text or a list of sentences, found {shown(value)}")
    for b, sentence in enumerate(value):
        tokens = [sentence] if isinstance(sentence, str) else sentence
        if not isinstance(tokens, list):
            raise ValueError(f"[{b}]: expected a text or a list of tokens, found {shown(sentence)}")
        for t, token in enumerate(tokens):
            place = f"[{b}]" if tokens is not sentence else f"[{b}][{t}]"
            if not isinstance(token, str):
                raise ValueError(f"{place}: expected a token as text, found {shown(token)}")
            if not token.isascii() and SURROGATE.search(token):
                raise ValueError(f"{place}: expected Unicode, found half a surrogate pair in {shown(token)}")
    return value


def _nothing(value: Any) -> None:
    if value is not None:
        raise ValueError(f": expected none, as ELMo has no prompts, found {shown(value)}")


Inputs: TypeAlias = Annotated[list[str | Sentence], PlainValidator(checked_inputs), WithJsonSchema(INPUTS)]
Layers: TypeAlias = Annotated[Any, WithJsonSchema(LAYERS)]
Mix: TypeAlias = Annotated[Any, WithJsonSchema(MIX)]
NoPrompt: TypeAlias = Annotated[None, PlainValidator(_nothing), WithJsonSchema({"type": "null"})]


class Embed(BaseModel):
    """Sentences, and which vectors of theirs."""

    model_config = ConfigDict(extra="forbid")

    inputs: Inputs
    layers: Layers = "average"
    mix: Mix = None
    normalize: bool = Field(False, description="Scale every vector to length 1.")
    truncate: bool = Field(False, description="Cut sentences that are too long, in place of an error.")
    truncation_direction: Literal["Left", "Right", "left", "right"] = Field("Right", description="Where they are cut.")
    prompt_name: NoPrompt = None


class EmbedSentences(Embed):
    """As `Embed`, pooled over the tokens of each sentence."""

    pool: Literal["mean", "max"] = Field("mean", description="Of the vectors of a sentence's tokens.")


class EmbedTokens(Embed):
    """As `Embed`, a vector a token and a layer."""

    layers: Layers = "all"


class OpenAIEmbed(BaseModel):
    """OpenAI's request."""

    model_config = ConfigDict(extra="forbid")

    input: Inputs
    model: str = Field("", description="Any name; the answer has the name of the model that is served.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="The model's own, if any.")
    user: str | None = None


class Tensor(BaseModel):
    """A tensor of the Open Inference Protocol."""

    name: str
    shape: list[Annotated[int, Field(ge=0)]] = []
    datatype: str = "BYTES"
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    """A tensor of the answer."""

    name: str
    parameters: dict[str, Any] = {}


class Infer(BaseModel):
    """A request of the Open Inference Protocol: `text` [B, 1], or `tokens` [B, T], rows filled up with empty texts."""

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[Tensor]
    outputs: list[RequestedOutput] = []
