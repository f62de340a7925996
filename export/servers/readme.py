"""The README of a repository for NVIDIA Triton Inference Server: how to start it, and how to send requests."""

from __future__ import annotations

from collections.abc import Sequence

from flashelmo.export.metadata import Metadata

IMAGE = "nvcr.io/nvidia/tritonserver:26.04-py3"


def readme(precisions: Sequence[str], metadata: Metadata) -> str:
    """Return the Markdown; `metadata` is of any of the files."""
    names = [f"elmo_{precision}" for precision in precisions]
    rows = [f"| `{name}` | ONNX Runtime | {_takes(metadata)} |" for name in names]
    rows.append("| `elmo_native` | Python, flashelmo's engine | text |")
    if not metadata.stateful:
        rows.append(f"| `elmo_onnx_text` | Python, the file of `{names[0]}` in ONNX Runtime | text |")
    return "\n".join(
        [_HEAD, *rows, "", _START.format(image=IMAGE, first=names[0]), _ask(names, metadata), _TEXT.strip(), ""]
    )


def _takes(metadata: Metadata) -> str:
    config = metadata.config
    ids = (("`character_ids`", config.character_size), ("`word_ids`", config.word_size))
    return " and ".join(name for name, size in ids if size)


def _ask(names: Sequence[str], metadata: Metadata) -> str:
    lines = ["## Ask it", "", _CURL.format(name=names[0]).strip(), ""]
    if "elmo_fp16" in names:
        lines += [_FP16.strip(), ""]
    if metadata.stateful:
        lines += [_STATEFUL.strip(), ""]
    else:
        lines += [_PADDING.strip(), ""]
    return "\n".join(lines)


_HEAD = """\
# ELMo in NVIDIA Triton Inference Server

| model | run by | takes |
| --- | --- | --- |"""

_START = """\
## Start it

The models that ONNX Runtime runs need nothing but the server's image:

```
docker run --rm -p 8000:8000 -v "$PWD:/models:ro" {image} \\
    tritonserver --model-repository=/models --model-control-mode=explicit --load-model={first}
```

The models of text are run by the Python backend. They need flashelmo in the image (`pip install 'flashelmo[cpu]'`, or
`[gpu]`), which must be of 24.12 or later, as earlier ones do not know numpy 2; and shared memory for the answers:
`--shm-size=1g`. There `tritonserver --model-repository=/models` serves all models.

For a GPU, add `--gpus=all` to docker's options and change `instance_group` in `config.pbtxt`, which says how, and for
fp32 how its products stay those of float32.
"""

_CURL = """
Every model has an example, `request.json`, in the Open Inference Protocol:

```
curl -s http://localhost:8000/v2/models/{name}/infer -d @{name}/request.json
curl -s http://localhost:8000/v2/models/elmo_native/infer -d @elmo_native/request.json
```
"""

_FP16 = """
JSON has no float16, so that the example of `elmo_fp16` asks for bytes: they stand behind the JSON of the answer, whose
length the header `Inference-Header-Content-Length` gives; `--output FILE` keeps them. The package `tritonclient` reads
them.
"""

_PADDING = """
Requests of ids are joined into batches only where their `sequence_length` agrees: fill it up to a multiple, of 8 say,
as `config.pbtxt` describes. Requests of text are joined whatever their lengths.
"""

_STATEFUL = """
These files carry their state from sentence to sentence. A request is one sentence, and its `sequence_id` says of which
text; `sequence_start` and `sequence_end` mark the first and the last. `elmo_native` carries none.
"""

_TEXT = """
A request of text has either `text`, whose tokens stand between white space, or `tokens`, lists filled up with `""`; the
answer is padded to its longest sentence, and `mask` says where tokens are.
"""
