"""The Python examples of the model card: complete programs that run as they are in the exported folder."""

from __future__ import annotations

from flashelmo.engine.text.spelling import BYTES
from flashelmo.export.metadata import Metadata

SENTENCES = [["In", "the", "beginning"], ["Rejoice", "evermore"]]


def flashelmo_example(file: str, metadata: Metadata) -> str:
    """Return the example with this package, which turns words into ids."""
    config, where = metadata.config, f'"{file}"' if metadata.bucket is None else f'"{file}", providers="cuda"'
    lines = ["from flashelmo.export import OnnxElmo", "", f"elmo = OnnxElmo({where})", f"sentences = {_text()}"]
    if metadata.layers:
        lines.append(f"layers = elmo.embed(sentences)  # [{len(metadata.layers)}, tokens, {config.output_size}] each")
    if metadata.stateful:
        lines.append("elmo.reset_state()  # otherwise row b goes on from where row b of the batch before it ended")
    lines.append(f"vectors = elmo.encode(sentences)  # [sentences, {config.output_size}], means of token_embeddings")
    return "\n".join(lines) + "\n"


def bare_example(file: str, metadata: Metadata) -> str:
    """Return the example with only ONNX Runtime and NumPy, in which words are turned into ids by hand."""
    config = metadata.config
    parts = [
        "import json\n\n" if metadata.lexicon is not None else "",
        "import numpy as np\nimport onnxruntime\n\n",
        f'session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])\n',
        _LEXICON if metadata.lexicon is not None else "",
        f"sentences = {_text()}\n",
        "shape = len(sentences), max(map(len, sentences))\ninputs = {}\n",
    ]
    if config.character_size:
        spell = _SPELL_BYTES if config.family == "bilm" else _SPELL_CODE_POINTS
        parts += [spell, _SPELL_ALL]
    if config.word_size:
        parts += [_LOOK_UP_CUT if config.family == "manylangs" else _LOOK_UP]
    if metadata.stateful:
        parts.append(_STATES)
    parts.append(_RUN)
    if metadata.stateful:
        parts.append(_CARRY)
    return _filled("".join(parts), metadata)


def _text() -> str:
    return str(SENTENCES).replace("'", '"')


def _filled(text: str, metadata: Metadata) -> str:
    """Return the program with this model's numbers."""
    config = metadata.config
    numbers = {
        "M": config.max_characters,
        "M-2": config.max_characters - 2,
        "BEGIN": BYTES.begin_word,
        "END": BYTES.end_word,
        "PADDING": BYTES.padding,
        "ABSENT": metadata.config.absent_word_id,
        "STATES": 2 * config.n_layers,
        "P": config.projection_size,
        "C": config.cell_size,
        "HIDDEN": metadata.arithmetic.dtype,
    }
    for name, number in numbers.items():
        text = text.replace(f"${name}$", str(number))
    return text


_LEXICON = 'lexicon = json.loads(session.get_modelmeta().custom_metadata_map["lexicon"])\n'

_SPELL_BYTES = """

def character_ids(word):  # bytes of UTF-8 plus 1, between begin and end of the word, then padding
    ids = [$BEGIN$, *(1 + byte for byte in word.encode()[:$M-2$]), $END$]
    return ids + [$PADDING$] * ($M$ - len(ids))
"""

_SPELL_CODE_POINTS = """

def character_ids(word):  # the model was trained with <eow> before a word and <bow> behind it
    rows = lexicon["characters"]
    ids = [rows["<eow>"], *(rows.get(character, rows["<oov>"]) for character in word[:$M-2$]), rows["<bow>"]]
    return ids + [rows["<pad>"]] * ($M$ - len(ids))
"""

_SPELL_ALL = """

inputs["character_ids"] = np.zeros((*shape, $M$), np.int64)  # zeros where there is no token
for row, sentence in zip(inputs["character_ids"], sentences):
    for place, word in zip(row, sentence):
        place[:] = character_ids(word)
"""

_LOOK_UP = """
inputs["word_ids"] = np.full(shape, $ABSENT$, np.int64)  # $ABSENT$ where there is no token
for row, sentence in zip(inputs["word_ids"], sentences):
    row[: len(sentence)] = [lexicon["words"].get(word, lexicon["words"]["<UNK>"]) for word in sentence]
"""

_LOOK_UP_CUT = """
inputs["word_ids"] = np.full(shape, $ABSENT$, np.int64)  # $ABSENT$ where there is no token
for row, sentence in zip(inputs["word_ids"], sentences):
    row[: len(sentence)] = [lexicon["words"].get(word[:$M-2$], lexicon["words"]["<oov>"]) for word in sentence]
"""

_STATES = """
inputs["state.hidden"] = np.zeros(($STATES$, len(sentences), $P$), np.$HIDDEN$)
inputs["state.cell"] = np.zeros(($STATES$, len(sentences), $C$), np.float32)
"""

_RUN = """
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(names, inputs)))
for name, values in outputs.items():
    print(name, values.shape)
"""

_CARRY = """
# The next batch goes on from here: row b of it continues row b of this one.
inputs["state.hidden"], inputs["state.cell"] = outputs["new_state.hidden"], outputs["new_state.cell"]
"""
