"""The model card of an exported folder: what its files are, how exact they are, and how to use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model import card
from flashelmo.engine.model.card import front_matter
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.export.card_examples import bare_example, flashelmo_example
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
        *([] if first.bucket else ["With ONNX Runtime and NumPy alone:", f"```python\n{bare_example(file, first)}```"]),
        "## Origin",
        _origin(first),
        "Verified again, from the weights that the files were exported from:",
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
        return "layer 0, the words by themselves" if layer == "0" else f"layer {layer}, of LSTMs"
    if name == "token_embeddings":
        return f"sum of all {len(metadata.mix)} layers, weighted by {', '.join(f'{w:.6g}' for w in metadata.mix)}"
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
    "state.hidden": "hidden states before the batch, zeros at first; row 2 * layer + direction, forward first",
    "state.cell": "cells before the batch, likewise",
    "new_state.hidden": "hidden states after the batch",
    "new_state.cell": "cells after the batch",
}

_ABOUT = """\
Embeddings from Language Models ([Peters et al. 2018](https://arxiv.org/abs/1802.05365)), a vector for every word of a \
sentence: {words}, then {n_layers} layers of LSTMs in both directions, with cells of {cell} values and hidden states \
of {half}. The forward LSTM's {half} values stand before the backward one's in each layer's {size}; layer 0, which \
sees the word alone, has its vector twice."""

_ERRORS = """\
Below each output's name stands its relative error, ||a - b|| / ||b||, against the published algorithm in PyTorch and \
float32: the worst of {cases} cases, {sentences} ragged sentences in all.{most} The reports beside the files have all \
cases and bounds."""

_INT8 = """\
The int8 file holds the LSTMs' matrices as integers from -{levels} to {levels}, and quantizes each row of \
their inputs by its own largest magnitude, so that a vector does not depend on the other sentences of its batch. """

_SEVEN_BITS = "Products of such weights, of 7 bits, are exact on every processor."

_EIGHT_BITS = """\
x86 processors without VNNI (AVX-512 VNNI or AVX-VNNI) add products in pairs of 16 bits, which weights of 8 bits \
saturate: there the errors are larger than above, unless the file is exported with `reduce_range`."""

_UNROLLED = """\
Each file takes one shape: `batch_size` sentences of `sequence_length` tokens, as its name says; what a batch lacks is \
padding. All nodes have kernels in ONNX Runtime's CUDA provider, so that `enable_cuda_graph` replays them. A folder's \
files share `weights.onnx_data`, which is counted with each."""

_PADDING = """\
Sentences of a batch are padded on the right, and outputs are exactly zero where there is no token. A batch of no \
sentences or no columns has outputs as empty. """

_DECIDES = "`character_ids` alone determine where tokens are. "

_HALF = "In the fp16 file float32 is float16, but for the cells of a stateful one."

_BOUNDARIES = """\
Sentence boundaries are no input and no output: the graph adds them and takes them away."""

_DYNAMIC = """\
`characters` may be any number from 1 to {most}: positions that are left out are padding."""

_STATELESS = """\
Every sentence starts from a fresh state: its vectors do not depend on the sentences before it, as they do in AllenNLP \
and bilm-tf, which carry the state from batch to batch."""

_STATEFUL = """\
The LSTMs' states are inputs and outputs, as AllenNLP and bilm-tf carry them from batch to batch: row b of a batch \
continues row b of the batch before. Zeros are a fresh state. An empty sentence still runs its two boundaries."""

_METADATA = """\
The file's metadata (`metadata_props`) hold these facts, the configuration, the lexicon and the mix; `report_sha256` \
is the digest of the report beside the file."""

_VERIFY = """\
from flashelmo import load_model
from flashelmo.export import verify

report = verify("{file}", load_model("WEIGHTS"))
print(report.to_markdown())
"""
