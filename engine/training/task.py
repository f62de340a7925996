"""What is trained on what, and all that is made ready before the first step."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.model.checkpoints.files import new_folder
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.processor import cpu_flags
from flashelmo.engine.training.corpus import EncodedCorpus, most_frequent, read_corpus, read_vocabulary
from flashelmo.engine.training.processes import Processes
from flashelmo.engine.training.settings import TrainSettings

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "torch", "training") from error


@dataclass(frozen=True)
class Task:
    """What is trained on what, and where it goes.

    Attributes:
        corpus: texts, a tokenized sentence a line.
        output: folder of the model to be.
        config: of a new model; or
        start: a model of any format to go on from.
        heldout: text that perplexity is measured on.
        vocabulary: the softmax's words; None takes the corpus's.
        license_text: for the card.
        command: what the user typed, for the card.
        dtype: of the native weights on the disk, "float32" or "float16".
        overwrite: replace a model that is there.
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
            raise FlashElmoError("config: expected a configuration, or a model to go on from, and not both")

    @property
    def work(self) -> Path:
        """Folder of the encoded corpus, the checkpoints and the snapshots."""
        return self.output.with_name(f"{self.output.name}.training")


def file_size(path: Path) -> int:
    """Bytes; FlashElmoError where there is no such file."""
    if not path.is_file():
        raise FlashElmoError(f"{path}: expected a file of text, found none")
    return path.stat().st_size


def choose_device(name: str, processes: Processes) -> torch.device:
    """The device of this process."""
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
    """The type of products: bf16 where it is asked for, or where the device multiplies it fast."""
    if precision == "auto":
        fast = (
            torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda" else "amx_bf16" in cpu_flags()
        )
        precision = "bf16" if fast else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def open_corpus(
    task: Task, settings: TrainSettings, processes: Processes, known: bool
) -> tuple[EncodedCorpus, EncodedCorpus | None]:
    """The corpus and what is held out of it, or None. One process prepares them, the others wait for it.

    Args:
        task: names the files.
        settings: say how much is held out.
        processes: those of the run.
        known: whether there is a checkpoint, whose corpus is the one that an earlier attempt put into the run's folder.

    Raises:
        FlashElmoError: text that is not UTF-8, a corpus of too few sentences, or a folder that cannot be written.
        OSError: a file that cannot be read.
    """
    if not processes.writes:
        processes.wait()
        return _prepare_corpus(task, settings, known=True)
    prepared = _prepare_corpus(task, settings, known)
    processes.wait()
    return prepared


def _prepare_corpus(task: Task, settings: TrainSettings, known: bool) -> tuple[EncodedCorpus, EncodedCorpus | None]:
    """Read the corpus, or map what an earlier attempt made of it."""
    folder = task.work / "corpus"
    if not (known and (folder / "train").is_dir()):
        corpus = read_corpus(task.corpus)
        parts = {"train": corpus}
        if settings.heldout_share:
            if len(corpus) < 2:
                raise FlashElmoError(f"heldout_share: expected two sentences or more, found {len(corpus)}")
            parts["train"], parts["heldout"] = corpus.split(settings.heldout_share, settings.seed)
        shutil.rmtree(folder, ignore_errors=True)
        with new_folder(folder, overwrite=False) as target:
            for name, part in parts.items():
                part.save(target / name)
    kept_out = EncodedCorpus.load(folder / "heldout") if (folder / "heldout").is_dir() else None
    return EncodedCorpus.load(folder / "train"), read_corpus([task.heldout]) if task.heldout else kept_out


def choose_vocabulary(task: Task, settings: TrainSettings, corpus: EncodedCorpus) -> list[str]:
    """The softmax's words."""
    if task.vocabulary is not None:
        return read_vocabulary(task.vocabulary)
    words = most_frequent(corpus, settings.min_count, settings.max_words)
    unknown = float(corpus.counts()[corpus.rows(words) == 2].sum() / corpus.n_tokens)
    logging.getLogger("flashelmo.training").info("%d words in the softmax, %.2f%% unknown", len(words), 100 * unknown)
    return words
