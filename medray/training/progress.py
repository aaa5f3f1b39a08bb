"""What a person sees of a training on stderr: where time went at the start, one line per epoch, the end."""

from __future__ import annotations

import itertools
import sys
import time
from typing import TYPE_CHECKING

from medray.cluster import Allotment
from medray.config import Experiment
from medray.pipeline.prepare import Prepared
from medray.tracking.journal import Row
from medray.training.goal import monitor_of

if TYPE_CHECKING:
    from medray.training.worker import Outcome


def say(text: str) -> None:
    """A line for the person, on stderr: stdout belongs to the job's result."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def show_steps(done: int, epoch: int) -> None:
    """How far an epoch is, on one line that is written over; only on a terminal."""
    if sys.stderr.isatty():
        bar = "#" * (30 * done // epoch)
        sys.stderr.write(f"\r[{bar:30}] {done}/{epoch} steps" if done < epoch else f"\r{'':60}\r")
        sys.stderr.flush()


class Progress:
    """Keeps the times of one training and turns its journal into lines."""

    def __init__(self, began: float) -> None:
        self._marks = [("start", began)]
        self._monitor = ""
        self._epochs = 0
        self._epoch_times: list[float] = []

    def stage(self, name: str) -> None:
        """The stage `name` of the start-up is over."""
        self._marks.append((name, time.time()))

    def announce(self, experiment: Experiment, prepared: Prepared, allotment: Allotment) -> None:
        """What is going to be trained, on what."""
        split, classes = prepared.split, prepared.dataset.classes
        counts = " + ".join(f"{len(getattr(split, name))} {name}" for name in ("train", "val", "test"))
        shape = "x".join(str(edge) for edge in prepared.shape)
        for note in prepared.dataset.notes:
            say(f"note: {note}")
        what = f"cases in windows of {shape}" if prepared.dense else f"cases of {shape}"
        say(f"data: {counts} {what}, {len(classes)} classes ({', '.join(classes[:8])}); {split.method}")
        for item in prepared.refused[:10]:
            say(f"left out: {item}")
        for warning, count in prepared.warnings.items():
            say(f"warning: {count} cases: {warning}")
        workers = f"{allotment.workers} {'GPU' if allotment.gpu else 'CPU'} worker(s), {allotment.cpus:g} CPUs each"
        say(f"training {experiment.network.name} on {workers}")
        self._monitor = monitor_of(experiment, prepared)
        self._epochs = experiment.train.epochs

    def epoch(self, row: Row) -> None:
        """One line per epoch; with the first one the account of the start-up."""
        if "at/first_step" in row and not self._epoch_times:
            self._account(row)
        # An epoch that was profiled, or the first, took longer than those to come.
        self._epoch_times.append(row.get("profile/epoch_s", row["epoch_s"]))
        recent = self._epoch_times[-5:]
        left = (self._epochs - row["epoch"]) * sum(recent) / len(recent)
        best = " best" if row.get("best") else ""
        say(
            f"epoch {int(row['epoch']):>3}/{self._epochs}  {row['epoch_s']:6.1f} s  "
            f"{row['samples_per_s']:7.0f} cases/s  loss {row['train/loss']:.4f}  {self._judged(row)}{best:5}  "
            f"{duration(left)} left"
        )

    def _judged(self, row: Row) -> str:
        """What the validation cases say, if there are any."""
        if "val/loss" not in row:
            return ""
        value = row.get(self._monitor, float("nan"))
        return f"val {row['val/loss']:.4f}  {self._monitor.removeprefix('val/')} {value:.4f}"

    def _account(self, row: Row) -> None:
        """Where the time from the command to the first step went."""
        marks = [*self._marks, ("workers", row["at/worker"]), ("network", row["at/network"])]
        marks.append(("first step", row["at/first_step"]))
        parts = [f"{name} {after - before:.1f}" for (_, before), (name, after) in itertools.pairwise(marks)]
        say(f"first step after {marks[-1][1] - marks[0][1]:.1f} s ({', '.join(parts)})")

    def finish(self, outcome: Outcome) -> None:
        """How it ended."""
        for line in outcome.unfit[:10]:
            say(f"network.weights: {line}")
        metrics = outcome.metrics
        say(f"{outcome.reason}; best epoch {int(metrics['best_epoch'])}: " + _figures(metrics, "val"))
        if any(name.startswith("test/") for name in metrics):
            say("test: " + _figures(metrics, "test"))


def _figures(metrics: dict[str, float], split: str) -> str:
    shown = ("dice", "iou", "mae", "r2", "auroc", "accuracy", "balanced_accuracy", "f1", "loss")
    return ", ".join(f"{name} {metrics[f'{split}/{name}']:.4f}" for name in shown if f"{split}/{name}" in metrics)


def duration(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
