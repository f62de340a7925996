"""A model's folder for hubs: flashelmo's own format, with a model card for the Hugging Face hub."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from flashelmo.engine.arguments import flag, shown
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.model.checkpoints.files import read_json
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.named.table import RECORD, named_models
from flashelmo.engine.model.weights import ElmoModel

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Identifiers of Hugging Face's hub; any other licence is named beside `license: other`.
LICENSES = ("unknown", "apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0")
ANYTHING, LANGUAGE = re.compile(".+"), re.compile("[a-z]{2,8}(-[A-Za-z0-9]+)*")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", flags=re.ASCII)
TAGS = ("elmo", "bilm", "word-embeddings", "contextual-embeddings")


def front_matter(license: str, tags: Sequence[str] = TAGS, language: str | None = None) -> str:
    """Return the head of a model card: YAML between two lines of dashes.

    Args:
        license: one of LICENSES in any case, or the name of another.
        tags: for the hub's search.
        language: an ISO 639 code.
    """
    lines = [f"license: {license.lower()}"]
    if license.lower() not in LICENSES:
        lines = ["license: other", f"license_name: {json.dumps(license, ensure_ascii=False)}"]
    lines = [
        *([] if language is None else [f"language: {language}"]),
        "library_name: flashelmo",
        "pipeline_tag: feature-extraction",
        *lines,
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(["---", *lines, "---"])


def model_card(model: ElmoModel, license: str | None = None, language: str | None = None) -> str:
    """Return README.md for a model's folder: what it is, where it came from, how to use it.

    Args:
        model: the model to describe.
        license, language: of the weights; with None, what the list of named models says of a downloaded one, or else
            unknown.
    """
    license, language = _text("license", license), _text("language", language, LANGUAGE)
    origin = _origin(model.path)
    named = named_models().get(origin.get("name", ""))
    if named is not None:
        license = license or named.license
        language = language or (named.language if named.language.isalpha() and len(named.language) <= 3 else None)
    config = model.config
    inputs = [name for name, size in (("characters", config.character_size), ("words", config.word_size)) if size]
    facts = {
        "vectors a token": f"{config.n_layers + 1} (layer 0, then each LSTM's)",
        "size of a vector": f"{config.output_size} (forward half, backward half)",
        "LSTM cells": f"{config.cell_size:,}",
        "parameters": f"{model.weights.n_parameters:,}",
        "input": " and ".join(inputs),
        "read from": model.source_format or model.format,
        "model's sha256": model.sha256,
        **{f"`{name}`": f"{file['url']}, sha256 {file['sha256']}" for name, file in origin.get("files", {}).items()},
    }
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())])
    return _CARD.format(
        head=front_matter(license or "unknown", language=language),
        about=f"{named.about}, from {named.page}." if named is not None else "An ELMo model.",
        facts=table,
    )


def save_pretrained(
    model: ElmoModel,
    folder: str | Path,
    *,
    license: str | None = None,
    language: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model's folder with its card; it appears complete or not at all.

    Args:
        model: the model to save.
        folder: its files are `config.json`, `model.safetensors`, `README.md` and, if the model has one, `lexicon.json`.
        license, language: see `model_card`.
        overwrite: replace a folder, if it holds only a model and a flashelmo card.

    Raises:
        FlashElmoError: the folder exists, or cannot be written.
    """
    write_native(model, folder, overwrite=flag("overwrite", overwrite), card=model_card(model, license, language))


class HubOptions(TypedDict, total=False):
    """Options of `push_to_hub`.

    Attributes:
        license, language: see `model_card`.
        private: whether a new repository is private; None for the owner's default.
        commit_message: of the upload.
        token: of the account; None for the one that `hf auth login` has stored.
    """

    license: str | None
    language: str | None
    private: bool | None
    commit_message: str | None
    token: str | None


def push_to_hub(model: ElmoModel, repo_id: str, **options: Unpack[HubOptions]) -> str:
    """Upload what `save_pretrained` writes to a repository on the Hugging Face hub, creating it if needed.

    Args:
        model: the model to upload.
        repo_id: "user/name".
        **options: see `HubOptions`.

    Returns:
        The repository's URL.

    Raises:
        FlashElmoError: an unknown option, or the hub refuses.
        MissingExtraError: huggingface_hub is not installed.
    """
    if unknown := sorted(options.keys() - HubOptions.__annotations__.keys()):
        raise FlashElmoError(f"{unknown[0]}: no such option; expected {', '.join(HubOptions.__annotations__)}")
    if _text("repo_id", repo_id) is None or not REPOSITORY.fullmatch(repo_id):
        raise FlashElmoError(f"repo_id: expected 'user/name', found {shown(repo_id)}")
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub", "push_to_hub") from error
    with tempfile.TemporaryDirectory(prefix="flashelmo.") as work:
        folder = Path(work, "model")
        save_pretrained(model, folder, license=options.get("license"), language=options.get("language"))
        try:
            api = HfApi(token=options.get("token"))
            address = api.create_repo(repo_id, private=options.get("private"), exist_ok=True)
            message = options.get("commit_message") or "Upload an ELMo model"
            api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message=message)
        except Exception as error:  # of several families: its own, and its HTTP client's
            raise FlashElmoError(f"{repo_id}: {str(error).partition(chr(10))[0]}") from None
    return str(address)


def _text(name: str, value: Any, pattern: re.Pattern[str] = ANYTHING) -> str | None:
    """Check a one-line text or None, and return it; FlashElmoError if it is something else."""
    if value is not None and not (isinstance(value, str) and value.isprintable() and pattern.fullmatch(value)):
        raise FlashElmoError(f"{name}: expected a text such as 'mit' or 'en', found {shown(value)}")
    return value


def _origin(path: Path) -> dict[str, Any]:
    """Return the record of a downloaded model's files; empty for others."""
    record = next((folder / RECORD for folder in (path, path.parent) if (folder / RECORD).is_file()), None)
    return {} if record is None else read_json(record)


_CARD = """\
{head}

# ELMo

{about}
Embeddings from Language Models ([Peters et al. 2018](https://arxiv.org/abs/1802.05365)): vectors of every word in its
sentence.

{facts}

## Use

```python
from huggingface_hub import snapshot_download
from flashelmo import ElmoEmbedder

elmo = ElmoEmbedder.load(snapshot_download("USER/NAME"))  # or the path of this folder
vectors = elmo.embed_sentence(["Let", "there", "be", "light"])  # layers, tokens, size
```

Sentences are independent of each other; `stateful=True` carries the state on from sentence to sentence, as AllenNLP
does. `model.safetensors` holds float32 tensors under flashelmo's names.

## Citation

```bibtex
@inproceedings{{peters-etal-2018-deep,
  title = "Deep Contextualized Word Representations",
  author = "Peters, Matthew E. and Neumann, Mark and Iyyer, Mohit and Gardner, Matt and
    Clark, Christopher and Lee, Kenton and Zettlemoyer, Luke",
  booktitle = "Proceedings of NAACL-HLT 2018",
  year = "2018",
  doi = "10.18653/v1/N18-1202",
}}
```
"""
