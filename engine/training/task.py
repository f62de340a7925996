"""What is trained on what, and all preparations before the first step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flashelmo.engine.arguments import is_stream
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.files import new_folder
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.system.processor import check_threads, cpu_flags
from flashelmo.engine.training.corpus import EncodedCorpus, most_frequent, read_corpus, read_vocabulary
from flashelmo.engine.training.processes import Processes
from flashelmo.engine.training.settings import TrainSettings


@dataclass(frozen=True)
class Task:
    """What is trained on what, and where it goes.

    Attributes:
        corpus: texts, with one tokenized sentence per line.
        output: folder for the new model.
        config: of a new model; or
        start: a model of any format to continue from.
        heldout: text on which perplexity is measured.
        vocabulary: the softmax's words; None takes the corpus's.
        license_text: for the card.
        command: what the user typed, for the card.
        dtype: of the native weights on disk, "float32" or "float16".
        overwrite: replace an existing model.
    """

    corpus: Sequence[Path]
    output: Path
    config: ElmoConfig | None = None
    start: Path | None = None
    heldout: Path | None = None
    vocabulary: Path | None = None
    license_text: str = ""
    command: str | None = None
    dtype: str = "float32"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16"):
            raise FlashElmoError(f"dtype: expected float32 or float16, found {self.dtype!r}")
        if (self.config is None) == (self.start is None):
            raise FlashElmoError("config: expected a configuration or a model to continue from, not both")
        if self.output.name in ("", ".."):
            raise FlashElmoError(f"output: expected the name of a new folder, found {str(self.output)!r}")

    @property
    def work(self) -> Path:
        """The folder of the encoded corpus, the checkpoints and the snapshots."""
        return self.output.with_name(f"{self.output.name}.training")


def use_threads(threads: int | None) -> None:
    """Make PyTorch compute with this many threads, in the whole process; None leaves their number unchanged.

    Raises:
        FlashElmoError: the number is invalid.
    """
    number = check_threads(threads)
    if number is not None:
        torch.set_num_threads(number)


def choose_device(name: str, processes: Processes) -> torch.device:
    """Return the device of this process."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise FlashElmoError(f"device: expected auto, cpu or cuda, found {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise FlashElmoError(f"device: expected auto, cpu or cuda, found {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise FlashElmoError(f"device: expected a CUDA device for {name!r}, found none")
        device = torch.device("cuda", processes.local if processes.number > 1 else device.index or 0)
        torch.cuda.set_device(device)
    return device


def choose_compute(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of products: bf16 if requested, or if the device multiplies it fast."""
    if precision == "auto":
        fast = (
            torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda" else "amx_bf16" in cpu_flags()
        )
        precision = "bf16" if fast else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def open_corpus(
    task: Task, settings: TrainSettings, processes: Processes, encoded: Sequence[str] | None
) -> tuple[EncodedCorpus, EncodedCorpus | None, list[str]]:
    """Return the corpus, the held-out text, if any, and `sums_of` what was encoded.

    The first process prepares them, and only it has the held-out text.

    Args:
        task: names the files.
        settings: how much is held out.
        processes: those of the run.
        encoded: `sums_of` what the run's checkpoint was made from; None without a checkpoint.

    Raises:
        FlashElmoError: text is not UTF-8, the corpus has too few sentences or others than the checkpoint's, or a folder
            cannot be written.
        OSError: a file cannot be read.
    """
    other: list[EncodedCorpus] = []

    def prepare() -> list[str]:
        if task.heldout is not None:
            other.append(read_corpus([task.heldout]))
        # what was read is not kept: Windows replaces no file that is mapped
        if encoded is None or sums_of(*(_read_encoded(task) or ())) != [*encoded]:
            return _encode(task, settings, encoded)
        if any(map(is_stream, task.corpus)):
            message = "the run goes on with the text that it began with; what comes through the pipe is not read"
            logging.getLogger("flashelmo").warning(message)
        return [*encoded]

    sums = processes.first(prepare)
    found = _read_encoded(task)
    if found is None:
        raise FlashElmoError(f"{task.work / 'corpus'}: cannot be read as the encoded corpus")
    return found[0], other[0] if other else found[1], sums


def sums_of(*parts: EncodedCorpus | None) -> list[str]:
    """Return what identifies a corpus and its held-out part."""
    return [part.sha256 for part in parts if part is not None]


def _read_encoded(task: Task) -> tuple[EncodedCorpus, EncodedCorpus | None] | None:
    """Return what an earlier attempt made of the corpus; None if that is missing or incomplete."""
    train, held_out = task.work / "corpus" / "train", task.work / "corpus" / "heldout"
    try:
        return EncodedCorpus.load(train), EncodedCorpus.load(held_out) if held_out.is_dir() else None
    except (OSError, ValueError, EOFError):
        return None


def _encode(task: Task, settings: TrainSettings, encoded: Sequence[str] | None) -> list[str]:
    """Read the corpus, and keep the result in the run's folder, unless it is not the checkpoint's."""
    corpus, held_out = read_corpus(task.corpus), None
    if settings.heldout_share:
        if len(corpus) < 2:
            raise FlashElmoError(f"heldout_share: expected two sentences or more, found {len(corpus)}")
        corpus, held_out = corpus.split(settings.heldout_share, settings.seed)
    sums = sums_of(corpus, held_out)
    if encoded is not None and sums != [*encoded]:
        name = ", ".join(path.name for path in task.corpus)
        expected = "expected the text of the last checkpoint"
        raise FlashElmoError(f"{name}: {expected}, found a different one; to start over, delete {task.work}")
    with new_folder(task.work / "corpus", overwrite=True, ours=lambda name: True) as target:
        corpus.save(target / "train")
        if held_out is not None:
            held_out.save(target / "heldout")
    return sums


def choose_vocabulary(task: Task, settings: TrainSettings, corpus: EncodedCorpus) -> list[str]:
    """Return the softmax's words."""
    if task.vocabulary is not None:
        return read_vocabulary(task.vocabulary)
    words = most_frequent(corpus, settings.min_count, settings.max_words)
    unknown = float(corpus.counts()[corpus.rows(words) == 2].sum() / corpus.n_tokens)
    logging.getLogger("flashelmo.training").info("%d words in the softmax, %.2f%% unknown", len(words), 100 * unknown)
    return words
