"""The examples of the model card: complete programs that run as they are in the exported folder."""

from __future__ import annotations

from typing import NamedTuple

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


class Parts(NamedTuple):
    """What a program with only ONNX Runtime consists of, in one language; a model's has those that it needs."""

    reading: str
    start: str
    lexicon: str
    sentences: str
    spell_bytes: str
    spell_code_points: str
    spell_all: str
    look_up: str
    look_up_cut: str
    states: str
    run: str
    carry: str


def bare_example(file: str, metadata: Metadata, parts: Parts) -> str:
    """Return the example with only ONNX Runtime, in which words are turned into ids by hand."""
    config, lexicon = metadata.config, metadata.lexicon is not None
    spell = parts.spell_bytes if config.family == "bilm" else parts.spell_code_points
    chosen = [
        parts.reading if lexicon else "",
        parts.start,
        parts.lexicon if lexicon else "",
        parts.sentences,
        spell + parts.spell_all if config.character_size else "",
        (parts.look_up_cut if config.family == "manylangs" else parts.look_up) if config.word_size else "",
        parts.states if metadata.stateful else "",
        parts.run,
        parts.carry if metadata.stateful else "",
    ]
    return _filled("".join(chosen), file, metadata)


def _text() -> str:
    return str(SENTENCES).replace("'", '"')


def _filled(text: str, file: str, metadata: Metadata) -> str:
    """Return the program with this model's numbers."""
    config, half = metadata.config, metadata.arithmetic.dtype == "float16"
    values = {
        "FILE": file,
        "SENTENCES": _text(),
        "M": config.max_characters,
        "M-2": config.max_characters - 2,
        "BEGIN": BYTES.begin_word,
        "END": BYTES.end_word,
        "PADDING": BYTES.padding,
        "ABSENT": metadata.config.absent_word_id,
        "STATES": 2 * config.n_layers,
        "P": config.projection_size,
        "C": config.cell_size,
        "SIZE": config.output_size,
        "HIDDEN": metadata.arithmetic.dtype,
        "ARRAY": "Uint16Array" if half else "Float32Array",
    }
    for name, value in values.items():
        text = text.replace(f"${name}$", str(value))
    return text


PYTHON = Parts(
    reading="import json\n\n",
    start="""\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("$FILE$", providers=["CPUExecutionProvider"])
""",
    lexicon='lexicon = json.loads(session.get_modelmeta().custom_metadata_map["lexicon"])\n',
    sentences="""\
sentences = $SENTENCES$
shape = len(sentences), max(map(len, sentences))
inputs = {}
""",
    spell_bytes="""

def character_ids(word):  # bytes of UTF-8 plus 1, between begin and end of the word, then padding
    ids = [$BEGIN$, *(1 + byte for byte in word.encode(errors="ignore")[:$M-2$]), $END$]
    return ids + [$PADDING$] * ($M$ - len(ids))
""",
    spell_code_points="""

def character_ids(word):  # the model was trained with <eow> before a word and <bow> behind it
    rows = lexicon["characters"]
    ids = [rows["<eow>"], *(rows.get(character, rows["<oov>"]) for character in word[:$M-2$]), rows["<bow>"]]
    return ids + [rows["<pad>"]] * ($M$ - len(ids))
""",
    spell_all="""

inputs["character_ids"] = np.zeros((*shape, $M$), np.int64)  # zeros where there is no token
for row, sentence in zip(inputs["character_ids"], sentences):
    for place, word in zip(row, sentence):
        place[:] = character_ids(word)
""",
    look_up="""
inputs["word_ids"] = np.full(shape, $ABSENT$, np.int64)  # $ABSENT$ where there is no token
for row, sentence in zip(inputs["word_ids"], sentences):
    row[: len(sentence)] = [lexicon["words"].get(word, lexicon["words"]["<UNK>"]) for word in sentence]
""",
    look_up_cut="""
inputs["word_ids"] = np.full(shape, $ABSENT$, np.int64)  # $ABSENT$ where there is no token
for row, sentence in zip(inputs["word_ids"], sentences):
    row[: len(sentence)] = [lexicon["words"].get(word[:$M-2$], lexicon["words"]["<oov>"]) for word in sentence]
""",
    states="""
inputs["state.hidden"] = np.zeros(($STATES$, len(sentences), $P$), np.$HIDDEN$)
inputs["state.cell"] = np.zeros(($STATES$, len(sentences), $C$), np.float32)
""",
    run="""
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(names, inputs)))
for name, values in outputs.items():
    print(name, values.shape)
""",
    carry="""
# The next batch goes on from here: row b of it continues row b of this one.
inputs["state.hidden"], inputs["state.cell"] = outputs["new_state.hidden"], outputs["new_state.cell"]
""",
)

JAVASCRIPT = Parts(
    reading='import { readFileSync } from "node:fs";\n',
    start="""\
import { InferenceSession, Tensor } from "onnxruntime-node";

const session = await InferenceSession.create("$FILE$");
""",
    lexicon=r"""
// ONNX Runtime shows JavaScript no metadata: they end the file, each a key, a length (7 bits a byte) and a value.
const file = readFileSync("$FILE$");
let [at, size, shift] = [file.lastIndexOf("\n\x07lexicon\x12") + 10, 0, 0];
do {
  size += (file[at] & 127) << shift;
  shift += 7;
} while (file[at++] > 127);
const lexicon = JSON.parse(file.toString("utf8", at, at + size));

""",
    sentences="""\
const sentences = $SENTENCES$;
const length = Math.max(...sentences.map((sentence) => sentence.length));
const inputs = {};
""",
    spell_bytes=r"""
function characterIds(word) { // bytes of UTF-8 plus 1, between begin and end of the word, then padding
  const bytes = new TextEncoder().encode(word.replace(/\p{Cs}/gu, "")).subarray(0, $M-2$);
  return [$BEGIN$, ...bytes.map((byte) => 1 + byte), $END$, ...Array($M-2$ - bytes.length).fill($PADDING$)];
}
""",
    spell_code_points="""
const rows = new Map(Object.entries(lexicon.characters));
const id = (character) => rows.get(character) ?? rows.get("<oov>");

function characterIds(word) { // the model was trained with <eow> before a word and <bow> behind it
  const ids = [...word].slice(0, $M-2$).map(id);
  return [id("<eow>"), ...ids, id("<bow>"), ...Array($M-2$ - ids.length).fill(id("<pad>"))];
}
""",
    spell_all="""
const characters = sentences.flatMap((sentence) => [
  ...sentence.flatMap(characterIds),
  ...Array($M$ * (length - sentence.length)).fill(0), // zeros where there is no token
]);
inputs.character_ids = new Tensor("int64", characters, [sentences.length, length, $M$]);
""",
    look_up="""
const vocabulary = new Map(Object.entries(lexicon.words));
const words = sentences.flatMap((sentence) => [
  ...sentence.map((word) => vocabulary.get(word) ?? vocabulary.get("<UNK>")),
  ...Array(length - sentence.length).fill($ABSENT$), // $ABSENT$ where there is no token
]);
inputs.word_ids = new Tensor("int64", words, [sentences.length, length]);
""",
    look_up_cut="""
const vocabulary = new Map(Object.entries(lexicon.words));
const words = sentences.flatMap((sentence) => [
  ...sentence.map((word) => vocabulary.get([...word].slice(0, $M-2$).join("")) ?? vocabulary.get("<oov>")),
  ...Array(length - sentence.length).fill($ABSENT$), // $ABSENT$ where there is no token
]);
inputs.word_ids = new Tensor("int64", words, [sentences.length, length]);
""",
    states="""
const count = $STATES$ * sentences.length;
inputs["state.hidden"] = new Tensor("$HIDDEN$", new $ARRAY$(count * $P$), [$STATES$, sentences.length, $P$]);
inputs["state.cell"] = new Tensor("float32", new Float32Array(count * $C$), [$STATES$, sentences.length, $C$]);
""",
    run="""
const outputs = await session.run(inputs);
for (const [name, { dims }] of Object.entries(outputs)) console.log(name, dims);

const { data } = outputs.token_embeddings; // one vector after the other
const vector = (row, place) => data.subarray((row * length + place) * $SIZE$, (row * length + place + 1) * $SIZE$);
""",
    carry="""
// The next batch goes on from here: row b of it continues row b of this one.
[inputs["state.hidden"], inputs["state.cell"]] = [outputs["new_state.hidden"], outputs["new_state.cell"]];
""",
)
