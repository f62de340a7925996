"""`config.pbtxt` of each model in a repository for NVIDIA Triton Inference Server, with the reasons as comments.

Fields: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html,
and https://github.com/triton-inference-server/onnxruntime_backend for the `parameters` of ONNX Runtime and
those of its CUDA provider, which have ONNX Runtime's names and are below `gpu_execution_accelerator`. A file's inputs
and outputs are read from the file itself, as the server compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnx import ModelProto, TensorProto, ValueInfoProto

from flashelmo.export.metadata import STATES, Metadata

DATATYPES: dict[int, str] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
}
MAX_BATCH_SIZE = 64  # rows of requests that the server may combine
QUEUE_DELAY_MICROSECONDS = 1000
IDLE_SECONDS = 60
MAX_TEXTS = 64


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: as in the graph.
        datatype: as the protocol names it ("FP32"); the configuration puts TYPE_ before it.
        shape: its axes, the batch's first, -1 if free.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


def graph_tensors(values: Iterable[ValueInfoProto]) -> list[Tensor]:
    """Return the inputs or outputs of a graph."""
    tensors = []
    for value in values:
        axes = value.type.tensor_type.shape.dim
        shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in axes)
        tensors.append(Tensor(value.name, DATATYPES[value.type.tensor_type.elem_type], shape))
    return tensors


def onnx_config(name: str, file: ModelProto, metadata: Metadata, example: Iterable[Tensor]) -> str:
    """Return the configuration of an exported file, which the ONNX Runtime backend runs.

    Args:
        name: of the model in the repository.
        file: the exported file; its weights may be elsewhere.
        metadata: what the file says about itself.
        example: the inputs of a request of one row, which are in `warmup/` under their names.
    """
    if metadata.stateful:
        batching = _one_row(file) + _sequence_batching(file)
    else:
        batching = _rows(file) + _dynamic_batching(metadata) + _warmup(example)
    parameters = {"intra_op_thread_count": "0", "execution_mode": "0", "enable_mem_pattern": "0"}
    return f"""\
name: "{name}"
backend: "onnxruntime"

{batching}
# One instance with all cores. On a GPU, for fp32 and fp16: kind: KIND_GPU gpus: [ 0 ]
# There ONNX Runtime drives Scan, which the LSTMs are, from the host step by step; elmo_native has kernels of its own.
{_FULL_FLOAT32 if metadata.precision == "fp32" else ""}instance_group [ {{ count: 1 kind: KIND_CPU }} ]

version_policy {{ latest {{ num_versions: 1 }} }}

# intra_op_thread_count: of an operator, 0 for all cores. execution_mode 0: one operator after the other, as the network
# is a chain of them. enable_mem_pattern 0: a plan of the memory would be kept for every sequence_length that ever came.
{_parameters(parameters)}"""


def text_config(name: str, size: int, parameters: Mapping[str, str], about: str) -> str:
    """Return the configuration of a model of text, which the Python backend runs.

    Args:
        name: of the model in the repository.
        size: 2P, of a vector.
        parameters: of the model, besides its threads.
        about: lines that explain the parameters.
    """
    vectors = [Tensor("token_embeddings", "FP32", (-1, size)), Tensor("sentence_embedding", "FP32", (size,))]
    comments = "".join(f"# {line}\n" for line in about.splitlines())
    return f"""\
name: "{name}"
backend: "python"

# Either text, a line whose tokens stand between white space, or tokens, rows filled up with "" at their end. Requests
# are joined whatever their lengths, and answered with rows as long as the longest sentence of their own.
max_batch_size: {MAX_BATCH_SIZE}
input [
  {{ name: "text" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "tokens" data_type: TYPE_STRING dims: [ -1 ] optional: true allow_ragged_batch: true }}
]
{_tensors("output", [*vectors, Tensor("mask", "BOOL", (-1,))])}

# Sentences that are computed together share what they have in common, so that a short wait for others pays.
dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_MICROSECONDS} }}

# An instance is a process with a copy of the model. On a GPU: kind: KIND_GPU gpus: [ 0 ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]

version_policy {{ latest {{ num_versions: 1 }} }}

{comments}{_parameters({**parameters, "threads": "0"})}{_warmup([Tensor("text", "STRING", (1, 1))])}"""


def _rows(file: ModelProto) -> str:
    """Return inputs and outputs without the batch axis."""
    inputs, outputs = graph_tensors(file.graph.input), graph_tensors(file.graph.output)
    return f"""\
# The batch axis is left out below: sequence_length comes first, but in sentence_embedding.
max_batch_size: {MAX_BATCH_SIZE}
{_tensors("input", [Tensor(tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in inputs])}
{_tensors("output", [Tensor(tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in outputs])}
"""


def _one_row(file: ModelProto) -> str:
    """Return inputs and outputs of a file with states; the server requires the outputs' axes to be the file's."""
    inputs = [tensor for tensor in graph_tensors(file.graph.input) if tensor.name not in STATES]
    outputs = [tensor for tensor in graph_tensors(file.graph.output) if tensor.name not in STATES.values()]
    return f"""\
# A request is one sentence, [1, sequence_length, ...]: the states' batch axis is their second, and the server joins
# along the first alone.
max_batch_size: 0
{_tensors("input", [Tensor(tensor.name, tensor.datatype, (1, *tensor.shape[1:])) for tensor in inputs])}
{_tensors("output", outputs)}
"""


def _dynamic_batching(metadata: Metadata) -> str:
    absent = metadata.config.absent_word_id
    filling = "zeros" if absent == 0 else f"zeros, of {absent} in word_ids"
    return f"""
# Requests are joined where all their axes but the batch's agree: so fill sequence_length up to a multiple, of 8 say,
# with rows of {filling}. That changes no vector, and mask says where tokens are. No size of batch is
# preferred: requests wait for others as long as is said here, or until max_batch_size rows are there.
dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_MICROSECONDS} }}
"""


def _sequence_batching(file: ModelProto) -> str:
    """Return the section with which the server keeps a sequence's states from request to request."""
    states = ",\n".join(_state(tensor) for tensor in graph_tensors(file.graph.input) if tensor.name in STATES)
    return f"""
# A sequence is a text, its requests the sentences in their order: the server brings the LSTMs' states from each to the
# next, beginning with zeros. {MAX_TEXTS} texts take turns; one that is silent for {IDLE_SECONDS} s is forgotten.
sequence_batching {{
  max_sequence_idle_microseconds: {IDLE_SECONDS * 1_000_000}
  oldest {{ max_candidate_sequences: {MAX_TEXTS} }}
  state [
{states}
  ]
}}
"""


def _state(tensor: Tensor) -> str:
    """Return an input that is an output of the previous request, with one row."""
    form = f"data_type: TYPE_{tensor.datatype} dims: {[axis if axis > 0 else 1 for axis in tensor.shape]}"
    return f"""\
    {{
      input_name: "{tensor.name}" output_name: "{STATES[tensor.name]}" {form}
      initial_state {{ name: "zeros" {form} zero_data: true }}
    }}"""


def _warmup(example: Iterable[Tensor]) -> str:
    """Return a request of one row before the first, from the files in `warmup/` with the inputs' names."""
    inputs = "\n".join(
        f'    inputs {{ key: "{tensor.name}" value {{ data_type: TYPE_{tensor.datatype} '
        f'dims: {list(tensor.shape[1:])} input_data_file: "{tensor.name}" }} }}'
        for tensor in example
    )
    return f"""
# The first run is slower than all others, so that the server makes one of its own before it says that it is ready.
model_warmup [
  {{
    name: "sentence"
    batch_size: 1
{inputs}
  }}
]
"""


def _tensors(field: str, tensors: Iterable[Tensor]) -> str:
    lines = (
        f'  {{ name: "{tensor.name}" data_type: TYPE_{tensor.datatype} dims: {list(tensor.shape)} }}'
        for tensor in tensors
    )
    return f"{field} [\n" + ",\n".join(lines) + "\n]"


def _parameters(values: Mapping[str, str]) -> str:
    lines = (f'  {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}' for key, value in values.items())
    return "parameters [\n" + ",\n".join(lines) + "\n]\n"


# Form: "ONNX Runtime with CUDA Execution Provider optimization" in onnxruntime_backend's README.
_FULL_FLOAT32 = """\
# On a GPU ONNX Runtime rounds the inputs of float32 products to 11 bits (TF32), unless it is told:
# optimization { execution_accelerators {
#   gpu_execution_accelerator : [ {
#     name : "cuda"
#     parameters { key: "use_tf32" value: "0" }
#   } ]
# } }
"""
