"""The run: its loop, what it saves on the way and what it leaves.

Beside the new model's folder, `NAME.training` holds the encoded corpus, the two newest checkpoints and the snapshots.
A run that was killed continues from there when it is started again with the same arguments.
"""

from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.files import check_replaceable, new_folder
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.system.processor import processor_name
from flashelmo.engine.system.signals import signals_wait
from flashelmo.engine.training.checkpoint import SaveClock, checkpoints, load_checkpoint, save_checkpoint
from flashelmo.engine.training.evaluate import MAX_LOSS, scores_of
from flashelmo.engine.training.identity import fingerprint_of, only_run
from flashelmo.engine.training.initial import initial_tensors, tensors_from, word_biases
from flashelmo.engine.training.model import BiLM, check_trainable
from flashelmo.engine.training.optimizers import rate_at
from flashelmo.engine.training.processes import Processes, joined_processes
from flashelmo.engine.training.recurrence import kernels_work
from flashelmo.engine.training.results import Evaluation, Point, RunRecord, is_ours, write_results
from flashelmo.engine.training.settings import TrainSettings
from flashelmo.engine.training.spelling import Spelling
from flashelmo.engine.training.step import TrainingStep
from flashelmo.engine.training.streams import Streams
from flashelmo.engine.training.task import (
    Task,
    choose_compute,
    choose_device,
    choose_vocabulary,
    open_corpus,
    sums_of,
)

logger = logging.getLogger("flashelmo")


@dataclass(frozen=True)
class Progress:
    """A run's progress: `done` of 1, `left` seconds, tokens per second since it began, and the curve's last point."""

    done: float
    left: float
    tokens_per_second: float
    point: Point


OnTrainProgress = Callable[[Progress], None]


def train(task: Task, settings: TrainSettings, on_progress: OnTrainProgress | None = None) -> RunRecord:
    """Train a model and write its folder.

    Ctrl-C, SIGTERM and SIGHUP end a run of one process after a step, with a checkpoint to continue from.

    Raises:
        FlashElmoError: an empty corpus, a vocabulary without <UNK>, a checkpoint of another run or text, another run at
            work, a full disk, a loss that is not finite: one line each. What was saved before is intact.
    """
    if task.heldout is not None and settings.heldout_share:
        raise FlashElmoError("heldout_share: expected one of heldout and heldout_share, found both")
    if task.vocabulary is not None and (settings.min_count > 1 or settings.max_words is not None):
        raise FlashElmoError("vocabulary: expected one, or min_count and max_words to choose one by, found both")
    with joined_processes(settings.device) as processes:
        if processes.number > 1 and settings.seconds is not None:
            raise FlashElmoError(f"seconds: expected epochs or steps with {processes.number} processes")
        with only_run(task.work, processes):
            return _Run(task, settings, processes, on_progress or (lambda progress: None)).run()


class _Run:
    """One run, from its arguments to its results."""

    def __init__(self, task: Task, settings: TrainSettings, processes: Processes, on_progress: OnTrainProgress) -> None:
        self.task, self.settings, self.processes, self.on_progress = task, settings, processes, on_progress
        self.device = choose_device(settings.device, processes)
        compute = choose_compute(settings.precision, self.device)
        start = None if task.start is None else load_model(task.start)
        config = task.config if start is None else start.config
        assert config is not None  # a task has one or the other
        check_trainable(config)
        processes.first(lambda: check_replaceable(task.output, task.overwrite, is_ours))
        self.fingerprint = fingerprint_of(task, settings, config, start, processes, str(compute))
        saved = load_checkpoint(task.work, self.fingerprint)
        encoded = None if saved is None else saved.values.get("encoded", ())
        self.corpus, self.held_out, self.encoded = open_corpus(task, settings, processes, encoded)
        name = task.heldout.name if task.heldout else f"{settings.heldout_share:g} of the corpus"
        self.held_out_text = [name, *sums_of(self.held_out)]  # which identifies it
        self.words = choose_vocabulary(task, settings, self.corpus)
        self.model = self._model(config, start, compute)
        self.step = self._training_step()
        self.taken, self.seconds, self.snapshots = 0, 0.0, 0
        self.points: list[Point] = []
        self.evaluations: list[Evaluation] = []
        if saved is not None:
            with saved.fits():
                self._restore(saved.values)

    def run(self) -> RunRecord:
        """Take all steps, then write the results."""
        if not self.taken:
            self._snapshot(0)
        self._began = self.taken, time.monotonic() - self.seconds, time.monotonic()
        self._clock = SaveClock(self.settings.save_every, self.processes, self.taken)
        try:
            done = self._done()
            while done < 1 or not self.taken:
                rate = rate_at(done, self.settings.warm_up, self.settings.peak, self.settings.optimizer == "adam")
                with signals_wait():
                    self.step(self.streams[self.taken], rate)
                    self.taken += 1
                    done = self._done()  # checked once per step, so that the last one is a point whenever time runs out
                    if self.taken % self.settings.log_every == 0 or done >= 1:
                        self._log(rate)
                self._look(done)
        except Exception:
            raise
        except BaseException:  # a request to stop
            self._save_what_is_done()
            raise
        return self._finish()

    def _model(self, config: ElmoConfig, start: ElmoModel | None, compute: torch.dtype) -> BiLM:
        """Return a new model, or one that continues from another's weights."""
        settings, words = self.settings, self.words
        torch.manual_seed(settings.seed)
        biases = word_biases(self.corpus, self.corpus.rows(words), len(words))
        tensors = (
            initial_tensors(config, len(words), settings.seed, biases)
            if start is None
            else tensors_from(start, words, settings.seed, biases)
        )
        model = BiLM(config, tensors, dropout=settings.dropout, compute=compute).to(self.device)
        model.kernels = self.processes.in_all(kernels_work(self.device))  # all update parameters alike
        return model

    def _training_step(self) -> TrainingStep:
        settings, processes = self.settings, self.processes
        batch, first = settings.batch * processes.number, settings.batch * processes.rank
        rows = slice(first, first + settings.batch)
        self.streams = Streams(self.corpus, batch, settings.unroll, settings.seed, rows)
        wrapped = None
        if processes.number > 1:
            wrapped = torch.nn.parallel.DistributedDataParallel(self.model)
        spelling = Spelling(self.model.config, self.corpus.words)
        return TrainingStep(self.model, settings, spelling, self.corpus.rows(self.words), self.streams, wrapped)

    def _done(self) -> float:
        """Return the share of the run that is over."""
        settings = self.settings
        if settings.seconds is not None:
            self.seconds = time.monotonic() - self._began[1]
            return self.seconds / settings.seconds
        steps = settings.steps or max(1, round((settings.epochs or 1) * self.streams.batches))
        return self.taken / steps

    def _look(self, done: float) -> None:
        """Do what is due after some steps: snapshots, checkpoints."""
        if (number := min(self.settings.snapshots, int(done * self.settings.snapshots + 1e-9))) > self.snapshots:
            self._snapshot(number)
        if done < 1 and self._clock.is_due(self.taken):
            if self._is_finite():  # else the curve's next point ends the run
                self._save()
            self._clock.restart()

    def _is_finite(self) -> bool:
        """Whether losses and parameters are finite, in all processes; waits for the device."""
        tensors = self.step.sums, *self.model.parameters()
        return self.processes.in_all(all(bool(tensor.isfinite().all()) for tensor in tensors))

    def _not_finite(self, expected: str, found: str) -> FlashElmoError:
        last = saved[-1].name if (saved := checkpoints(self.task.work)) else "there is none"
        advice = f"a lower learning rate than {self.settings.peak:g} may help; last checkpoint: {last}"
        return FlashElmoError(f"step {self.taken}: expected {expected}, found {found}; {advice}")

    def _log(self, rate: float) -> None:
        losses = self.processes.mean(self.step.read())
        if not all(map(math.isfinite, losses)):
            raise self._not_finite("a finite loss", f"{losses[0]} forward and {losses[1]} backward")
        self.seconds = time.monotonic() - self._began[1]
        forward, backward = (math.exp(min(MAX_LOSS, loss)) for loss in losses)
        each = self.settings.batch * self.settings.unroll * self.processes.number
        point = Point(self.taken, self.taken * each, self.seconds, rate, forward, backward)
        self.points.append(point)
        done, now = self._done(), time.monotonic() - self._began[2]
        speed = (self.taken - self._began[0]) * each / max(1e-9, now)
        self.on_progress(Progress(min(1.0, done), self.seconds * max(0.0, 1 - done) / max(1e-9, done), speed, point))

    def _snapshot(self, number: int) -> None:
        """Write a model's folder, named by the share of the run in percent."""
        if self.settings.snapshots:
            folder = self.task.work / "snapshots" / f"{100 * number // self.settings.snapshots:03d}"
            self.processes.first(lambda: self._write(folder, overwrite=True, card=None))
        self.snapshots = number  # last: if interrupted, the resumed run writes it

    def _write(self, folder: Path, overwrite: bool, card: str | None) -> None:
        """Write the folder of the model as it is now."""
        self._evaluate()
        with new_folder(folder, overwrite, is_ours) as target:
            write_results(target, self.model, self.words, self._record(), dtype=self.task.dtype, card=card)

    def _evaluate(self) -> None:
        """Measure the perplexity of the held-out text, if there is one, unless already done at this step."""
        if self.held_out is None or (self.evaluations and self.evaluations[-1].step == self.taken):
            return
        found = self.step.with_room(partial(scores_of, self.model, self.held_out, self.words))
        name, n_tokens = self.held_out_text[0], self.held_out.n_tokens
        self.evaluations.append(Evaluation(self.taken, name, n_tokens, found.unknown, found.forward, found.backward))

    def _save(self) -> None:
        """Write a checkpoint; in a run of several processes, with the states of all."""
        states = self.processes.gathered([tensor.cpu() for tensor in (*self.step.state, self.step.sums)])
        self.processes.first(lambda: save_checkpoint(self.task.work, self.taken, self._values(states)))

    def _values(self, states: list[Any]) -> dict[str, Any]:
        """Return the contents of a checkpoint."""
        return {
            "fingerprint": self.fingerprint,
            "encoded": self.encoded,
            "held_out": self.held_out_text,
            "model": self.model.state_dict(),
            "optimizer": self.step.optimizer.state_dict(),
            "states": states,
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "unread": self.step.steps,
            "taken": self.taken,
            "seconds": time.monotonic() - self._began[1],
            "snapshots": self.snapshots,
            "points": [asdict(point) for point in self.points],
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
        }

    def _save_what_is_done(self) -> None:
        """Save a checkpoint, except in runs of several processes, which would have to stop after the same step."""
        if not self.taken or self.processes.number > 1:
            return
        if not self._is_finite():
            logger.warning("interrupted: step %d is not saved, as its loss or parameters are not finite", self.taken)
            return
        self._save()
        logger.warning("interrupted: step %d is saved, and the same command goes on from it", self.taken)

    def _restore(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.step.optimizer.load_state_dict(saved["optimizer"])
        self.step.follow_rate()
        tensors = *self.step.state, self.step.sums
        for tensor, value in zip(tensors, saved["states"][self.processes.rank], strict=True):
            tensor.copy_(value)
        self.step.steps = saved["unread"]
        torch.set_rng_state(saved["random"])
        if saved["cuda_random"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda_random"], self.device)
        self.taken, self.seconds, self.snapshots = saved["taken"], saved["seconds"], saved["snapshots"]
        self.points = [Point(**point) for point in saved["points"]]
        evaluations = [Evaluation(**evaluation) for evaluation in saved["evaluations"]]
        if saved["held_out"] == self.held_out_text:
            self.evaluations = evaluations
        elif evaluations and self.processes.writes:
            logger.warning(
                "the held-out text is another one: of the one before, %s, nothing is kept", saved["held_out"][0]
            )

    def _record(self) -> RunRecord:
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else processor_name()
        run = {
            "command": self.task.command,
            "corpus": [path.name for path in self.task.corpus],
            "words": len(self.words),
            "tokens": self.corpus.n_tokens,
            "settings": asdict(self.settings),
            "processes": self.processes.number,
            "device": device,
            "precision": str(self.model.compute).removeprefix("torch."),
            "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}",
        }
        return RunRecord(run, self.points, self.evaluations)

    def _finish(self) -> RunRecord:
        """Save the last checkpoint, then write the model."""
        if not self._is_finite():
            raise self._not_finite("finite parameters", "infinity or NaN")
        self._save()
        self.processes.first(lambda: self._write(self.task.output, self.task.overwrite, self.task.license_text))
        self.processes.wait()
        return self._record()
