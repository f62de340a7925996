"""A model as the published code of ELMoForManyLangs has it in its folder."""

import json
from pathlib import Path

import numpy as np
import torch

from flashelmo.engine.model.weights import ElmoModel

CONFIGURATION = "cnn_tiny.json"


def state_dicts(model: ElmoModel) -> dict[str, dict[str, torch.Tensor]]:
    """A model as the published code names, orders and turns its tensors, by file."""
    ours = dict(model.weights.named_tensors())
    embedder, encoder = {}, {}
    for kind in {"word", "character"} & {name.removesuffix("_embedding") for name in ours}:
        embedder[f"{kind[:4]}_emb_layer.embedding.weight"] = ours[f"{kind}_embedding"]
    for i in range(len(model.config.filters)):
        embedder[f"convolutions.{i}.weight"] = ours[f"convolutions.{i}.weight"].transpose(2, 1, 0)
        embedder[f"convolutions.{i}.bias"] = ours[f"convolutions.{i}.bias"]
    for k in range(model.config.n_highway):
        for kind in ("weight", "bias"):
            transform, gate = ours[f"highways.{k}.transform.{kind}"].T, ours[f"highways.{k}.gate.{kind}"].T
            embedder[f"highways._layers.{k}.{kind}"] = np.concatenate([transform, -gate])
    embedder["projection.weight"] = ours["projection.weight"].T
    embedder["projection.bias"] = ours["projection.bias"]
    for layer in range(model.config.n_layers):
        for direction in ("forward", "backward"):
            name, cell = f"{direction}_layer_{layer}", f"lstm.{layer}.{direction}"
            encoder[f"{name}.input_linearity.weight"] = np.concatenate(
                [gate.T for gate in ours[f"{cell}.input_weight"]]
            )
            recurrent = [gate.T for gate in ours[f"{cell}.recurrent_weight"]]
            encoder[f"{name}.state_linearity.weight"] = np.concatenate(recurrent)
            encoder[f"{name}.state_linearity.bias"] = ours[f"{cell}.bias"].reshape(-1)
            encoder[f"{name}.state_projection.weight"] = ours[f"{cell}.projection"].T
    parts = {"token_embedder": embedder, "encoder": encoder}
    return {part: {name: torch.tensor(t.copy()) for name, t in tensors.items()} for part, tensors in parts.items()}


def configuration(model: ElmoModel) -> dict:
    config = model.config
    return {
        "encoder": {
            "name": "elmo",
            "projection_dim": config.projection_size,
            "cell_clip": config.cell_clip,
            "proj_clip": config.projection_clip,
            "dim": config.cell_size,
            "n_layers": config.n_layers,
        },
        "token_embedder": {
            "name": "cnn",
            "activation": config.activation,
            "filters": [list(pair) for pair in config.filters] or [[1, 3]],
            "n_highway": config.n_highway,
            "word_dim": config.word_size,
            "char_dim": config.character_size,
            "max_characters_per_token": config.max_characters,
        },
        "dropout": 0.1,
    }


def write(model: ElmoModel, folder: Path, **torch_options) -> Path:
    folder.mkdir(parents=True)
    for name, tensors in state_dicts(model).items():
        torch.save(tensors, folder / f"{name}.pkl", **torch_options)
    assert model.lexicon is not None
    for name, lexicon in (("char", model.lexicon.characters), ("word", model.lexicon.words)):
        (folder / f"{name}.dic").write_text("".join(f"{token}\t{row}\n" for token, row in lexicon.items()), "utf-8")
    (folder / CONFIGURATION).write_text(json.dumps(configuration(model)))
    (folder / "config.json").write_text(json.dumps({"config_path": f"/home/author/configs/{CONFIGURATION}", "seed": 1}))
    return folder
