"""The model card of an exported folder: what its files are, how exact they are, and how to use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model import card
from flashelmo.engine.model.card import front_matter
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.export.card_examples import JAVASCRIPT, PYTHON, bare_example, flashelmo_example
from flashelmo.export.metadata import Metadata
from flashelmo.export.verification.report import Report, short, table
from flashelmo.export.verification.structure import expected_values, value_text

TAGS = ("onnx", *card.TAGS)
EXACT_LEVELS = 63  # two products of 8 by 7 bits never overflow the 16 bits in which x86 adds them


def model_card(metadata: Sequence[Metadata], reports: Sequence[Report]) -> str:
    """Return README.md for the folder, with the front matter that the Hugging Face hub reads.

    Args:
        metadata: of each file; they differ only in the precision, and in what follows from it.
        reports: of each file, in the same order.
    """
    if not reports or [each.precision for each in metadata] != [report.precision for report in reports]:
        raise FlashElmoError(f"model card: expected a report of each of {len(metadata)} files, found {len(reports)}")
    values = [each.arithmetic.dtype for each in metadata]
    shown = values.index("float32") if "float32" in values else 0
    first, file = metadata[shown], reports[shown].file
    used = file if first.bucket is None else file.rpartition("/")[0]
    parts = [
        front_matter(first.license, TAGS),
        "# ELMo in ONNX",
        _about(first.config),
        "## Files",
        _files(reports),
        *([] if first.bucket is None else [_UNROLLED]),
        _errors(reports),
        *(_int8(each.int8_levels) for each in metadata if each.int8_levels is not None),
        "## Inputs and outputs",
        _values(replace(first, bucket=None)),
        *_conventions(first, halves=len(metadata) > 1 and "float16" in values),
        "## Use",
        f"```python\n{flashelmo_example(used, first)}```",
        *([] if first.bucket else _bare(file, first)),
        "## Origin",
        _origin(first),
        "To verify a file again, with the weights that it was exported from:",
        f"```python\n{_VERIFY.format(file=file)}```",
    ]
    return "\n\n".join(parts) + "\n"


def _about(config: ElmoConfig) -> str:
    units = "bytes of UTF-8" if config.family == "bilm" else "characters"
    parts = []
    if config.character_size:
        parts.append(f"a convolution over the first {config.max_characters - 2} {units} of a word")
    if config.word_size:
        parts.append(f"an embedding of {config.n_words:,} words")
    return _ABOUT.format(
        words=" and ".join(parts),
        n_layers=config.n_layers,
        cell=config.cell_size,
        half=config.projection_size,
        size=config.output_size,
    )


def _files(reports: Sequence[Report]) -> str:
    """Return each file's size, and the relative error of its outputs."""
    names = list(reports[0].bounds)
    rows = []
    for report in reports:
        errors = {error.name: short(error.relative) for error in report.outputs}
        verdict = "" if report.passed else f" **failed its verification ({len(report.failures)})**"
        errors_in_order = [errors.get(name, "") for name in names]
        rows.append([f"`{report.file}`{verdict}", report.precision, f"{report.megabytes:,.1f}", *errors_in_order])
    return table(("file", "precision", "MB", *(f"`{name}`" for name in names)), rows)


def _errors(reports: Sequence[Report]) -> str:
    fp32 = [error.max_abs for report in reports if report.precision == "fp32" for error in report.outputs]
    most = f" In fp32 no value is off by more than {short(max(fp32))}." if fp32 else ""
    return _ERRORS.format(cases=len(reports[0].cases), sentences=reports[0].sentences, most=most)


def _int8(levels: int) -> str:
    return _INT8.format(levels=levels) + (_SEVEN_BITS if levels <= EXACT_LEVELS else _EIGHT_BITS)


def _values(metadata: Metadata) -> str:
    rows = []
    for kind, values in zip(("input", "output"), expected_values(metadata), strict=True):
        rows += [(f"`{name}`", kind, value_text(*value), _meaning(name, metadata)) for name, value in values.items()]
    return table(("name", "", "type and axes", "what"), rows)


def _meaning(name: str, metadata: Metadata) -> str:
    if name.startswith("hidden_states."):
        layer = name.rpartition(".")[2]
        return "layer 0: each word by itself" if layer == "0" else f"layer {layer}: an LSTM in both directions"
    if name == "token_embeddings":
        return f"sum of the {len(metadata.mix)} layers, weighted by {', '.join(f'{w:.6g}' for w in metadata.mix)}"
    return MEANINGS[name].format(absent=metadata.config.absent_word_id)


def _conventions(first: Metadata, *, halves: bool) -> list[str]:
    """Return paragraphs on what no table says; `halves` if there are other files and one is of fp16."""
    config = first.config
    decides = _DECIDES if config.character_size and config.word_size else ""
    paragraphs = [_PADDING + decides + _BOUNDARIES]
    if halves:
        paragraphs.append(_HALF)
    if first.characters is None and config.character_size:
        paragraphs.append(_DYNAMIC.format(most=config.max_characters))
    return [*paragraphs, _STATEFUL if first.stateful else _STATELESS]


def _bare(file: str, metadata: Metadata) -> list[str]:
    """Return programs that need no flashelmo."""
    return [
        "With only ONNX Runtime and NumPy:",
        f"```python\n{bare_example(file, metadata, PYTHON)}```",
        "In JavaScript, as a file `vectors.mjs` here, with `onnxruntime-node` (`onnxruntime-web` in a browser):",
        f"```js\n{bare_example(file, metadata, JAVASCRIPT)}```",
    ]


def _origin(metadata: Metadata) -> str:
    facts = [
        ("weights' format", metadata.source_format),
        ("model's sha256", metadata.weights_sha256),
        ("weights' licence", metadata.license),
    ]
    return f"{table(('', ''), facts)}\n\n{_METADATA}"


MEANINGS = {
    "character_ids": "each word's ids; zeros where there is no token",
    "word_ids": "each word's row; {absent} where there is no token",
    "sentence_embedding": "mean of `token_embeddings` over the tokens; zeros for an empty sentence",
    "mask": "true where there is a token",
    "state.hidden": "hidden states before the batch, initially zeros; index 2 * layer + direction, forward first",
    "state.cell": "cell states before the batch, likewise",
    "new_state.hidden": "hidden states after the batch",
    "new_state.cell": "cell states after the batch",
}

_ABOUT = """\
ELMo, Embeddings from Language Models ([Peters et al. 2018](https://arxiv.org/abs/1802.05365)), gives a vector for \
every word of a sentence: {words}, then {n_layers} layers of LSTMs in both directions, with cell states of {cell} \
values and hidden states of {half}. Each layer's vectors have {size} values, those of the forward LSTM before those of \
the backward one; layer 0, which depends on the word alone, repeats its {half} values."""

_ERRORS = """\
The columns named after outputs give their relative errors, ||a - b|| / ||b||, against the published algorithm in \
PyTorch and float32: the worst of {cases} cases, which have {sentences} sentences of all lengths.{most} The reports \
beside the files list all cases and bounds."""

_INT8 = """\
The int8 file stores the LSTMs' matrices as integers from -{levels} to {levels}, and quantizes each row of their \
inputs by its own largest magnitude, so a vector does not depend on the other sentences of its batch. """

_SEVEN_BITS = "Products of such 7-bit weights are exact on every processor."

_EIGHT_BITS = """\
On x86 processors without VNNI (AVX-512 VNNI or AVX-VNNI), 8-bit weights may overflow the 16 bits in which pairs of \
products are added, and errors are larger than above: for these, export the file with `reduce_range`."""

_UNROLLED = """\
Each file takes one shape, which its name gives: `batch_size` sentences of `sequence_length` tokens. Smaller batches \
are padded. All nodes have kernels in ONNX Runtime's CUDA provider, so they can be replayed as a CUDA graph \
(`enable_cuda_graph`). The files of a folder share `weights.onnx_data`, which is counted in the size of each."""

_PADDING = """\
Sentences of a batch are padded on the right, and outputs are exactly zero where there is no token. A batch without \
sentences or columns gives correspondingly empty outputs. """

_DECIDES = "Where the tokens are follows from `character_ids` alone. "

_HALF = "In the fp16 file, all float32 values are float16, except the cell states of a stateful file."

_BOUNDARIES = """\
Sentence boundaries are neither inputs nor outputs: the graph adds and removes them."""

_DYNAMIC = """\
`characters` may be any number from 1 to {most}: omitted positions count as padding."""

_STATELESS = """\
Every sentence starts from a fresh state, so its vectors do not depend on the sentences before it. In AllenNLP and \
bilm-tf they do: these carry the state from batch to batch."""

_STATEFUL = """\
The LSTMs' states are inputs and outputs, as AllenNLP and bilm-tf carry them from batch to batch: row b of a batch \
continues row b of the batch before. Zeros are a fresh state. An empty sentence still runs through its two \
boundaries."""

_METADATA = """\
The file's metadata (`metadata_props`) contain these facts, the configuration, the lexicon and the mix; \
`report_sha256` is the digest of the report beside the file."""

_VERIFY = """\
from flashelmo import load_model
from flashelmo.export import verify

report = verify("{file}", load_model("WEIGHTS"))
print(report.to_markdown())
"""
