"""What a run leaves: weights in two formats, softmax and vocabulary, the curve, and a card that describes the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flashelmo.engine.errors import first_line
from flashelmo.engine.model.checkpoints.bilm import write_bilm_files
from flashelmo.engine.model.checkpoints.files import MODEL_FILES
from flashelmo.engine.model.checkpoints.native import write_native_files
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.training.model import BiLM
from flashelmo.engine.training.softmax_files import SOFTMAX_FILE, Softmax, write_softmax

logger = logging.getLogger("flashelmo")

CURVE_FILE, PICTURE_FILE, CARD_FILE, BILM_FOLDER = "curve.json", "curve.png", "README.md", "bilm"
OURS = {*MODEL_FILES, SOFTMAX_FILE, CURVE_FILE, PICTURE_FILE, CARD_FILE}
OURS |= {f"{BILM_FOLDER}/{name}" for name in MODEL_FILES}


@dataclass(frozen=True)
class Point:
    """A point of the curve; perplexities are of training since the last point, with dropout and negatives.

    Attributes:
        step, tokens: taken and read so far.
        seconds: of the run, including those before it was resumed.
        rate: the learning rate.
        forward, backward: perplexities.
    """

    step: int
    tokens: int
    seconds: float
    rate: float
    forward: float
    backward: float


@dataclass(frozen=True)
class Evaluation:
    """Perplexities of a held-out text with the full softmax, each sentence from a fresh state."""

    step: int
    text: str
    tokens: int
    unknown: float
    forward: float
    backward: float


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run besides its weights; `run` is what was chosen, ready for JSON."""

    run: dict[str, Any]
    points: Sequence[Point]
    evaluations: Sequence[Evaluation]


def is_ours(name: str) -> bool:
    """Whether a folder with a file of this name may be replaced."""
    return name in OURS


def write_results(
    folder: Path, model: BiLM, words: list[str], record: RunRecord, *, dtype: str = "float32", card: str | None = None
) -> None:
    """Write everything into an existing folder.

    Args:
        folder: an existing folder.
        model: the trained model.
        words: of the softmax.
        record: of the run.
        dtype: of the native weights and the softmax on disk.
        card: a license's text, for the card; with None neither card, curve nor bilm-tf's files are written (a
            snapshot).
    """
    tensors = model.to_tensors()
    elmo = ElmoModel(model.config, model.to_weights(), None, folder, "native")
    write_native_files(elmo, folder, dtype)
    write_softmax(Softmax(tensors["softmax.weight"], tensors["softmax.bias"], words), folder, dtype)
    curve = {
        "run": record.run,
        "points": [asdict(point) for point in record.points],
        "evaluations": [asdict(evaluation) for evaluation in record.evaluations],
    }
    (folder / CURVE_FILE).write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
    if card is None:
        return
    (folder / BILM_FOLDER).mkdir()
    write_bilm_files(elmo, folder / BILM_FOLDER)
    draw_curve(record, folder / PICTURE_FILE)
    text = write_card(record, elmo, len(words), dtype, card)
    (folder / CARD_FILE).write_text(text, encoding="utf-8", errors="replace")  # a file's name may not be UTF-8


def draw_curve(record: RunRecord, path: Path) -> None:
    """Draw perplexity over tokens, if matplotlib can."""
    try:
        _draw(record, path)
    except ModuleNotFoundError:
        logger.warning("no picture of the curve, which needs matplotlib: pip install 'flashelmo[bench]'")
    except Exception as error:  # a user's settings may be for another machine; the model counts
        logger.warning("no picture of the curve: %s", first_line(error))
        path.unlink(missing_ok=True)


def _draw(record: RunRecord, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for direction in ("forward", "backward"):
        tokens = [point.tokens for point in record.points]
        axes.plot(tokens, [getattr(point, direction) for point in record.points], label=f"training, {direction}", lw=1)
    each = max((point.tokens / point.step for point in record.points), default=0.0)
    for direction, marker in (("forward", ">"), ("backward", "<")):
        values = [(each * evaluation.step, getattr(evaluation, direction)) for evaluation in record.evaluations]
        if values:
            axes.plot(*zip(*values, strict=True), marker, ls=":", label=f"held out, {direction}")
    axes.set(xlabel="tokens", ylabel="perplexity", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def write_card(record: RunRecord, model: ElmoModel, n_words: int, dtype: str, license_text: str) -> str:
    """Return the model's README.md."""
    run, config = record.run, model.config
    last = record.points[-1] if record.points else None
    lines = [
        "# ELMo, trained by flashelmo",
        "",
        f"{model.weights.n_parameters:,} parameters ({dtype} on disk): {config.n_layers} LSTM layers in each direction,"
        f" cell {config.cell_size}, projection {config.projection_size}, {config.n_filters} convolution filters,"
        f" {config.n_highway} highway {'layer' if config.n_highway == 1 else 'layers'}. The softmax predicts"
        f" {n_words:,} words and lies beside the model; embedding does not need it.",
        "",
        "| | |",
        "| --- | --- |",
    ]
    shown = {"command": run.get("command"), "corpus": ", ".join(run["corpus"]), **run["settings"]}
    shown |= {name: run[name] for name in ("device", "precision", "versions")}
    lines += [f"| {name} | {value} |" for name, value in shown.items() if value is not None]
    if last is not None:
        lines.append(
            f"| trained | {last.step:,} steps, {last.tokens:,} tokens, {last.seconds:,.0f} s; perplexity of training"
            f" (dropout, sampled negatives) {last.forward:.1f} forward, {last.backward:.1f} backward |"
        )
    if record.evaluations:
        lines += ["", "Perplexity of held-out text by the full softmax, each sentence from a fresh state:", ""]
        lines += ["| step | text | tokens | unknown to the softmax | forward | backward |", "| --- " * 6 + "|"]
        lines += [
            f"| {e.step:,} | {e.text} | {e.tokens:,} | {e.unknown:.2%} | {e.forward:.1f} | {e.backward:.1f} |"
            for e in record.evaluations
        ]
    if license_text:
        lines += ["", "## Licence", "", license_text.strip()]
    return "\n".join(lines) + "\n"
