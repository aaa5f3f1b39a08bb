"""One worker of a training: runs the loop and hands each epoch and checkpoint to a reporter.

Who the reporter is decides where the training runs: this process alone (alone.py), Ray Train's workers
(launch.py), or a trial of Ray Tune (tuning/trial.py).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from medray.config import Experiment
from medray.pipeline.prepare import Prepared
from medray.tracking import journal
from medray.training import checkpoint
from medray.training.learner import Learner
from medray.training.loop import EpochDone, Finished, StepDone, fit
from medray.training.world import World
from medray.types import Array

CHECKPOINT_EVERY_S = 60.0


class Reporter(Protocol):
    """Where a worker's epochs and checkpoints go. Every worker of a training calls it equally often."""

    @property
    def checkpoint_every_s(self) -> float:
        """Seconds from one checkpoint to the next, 0 for one with each epoch."""

    def report(self, row: Mapping[str, float | None], place: Path | None) -> None:
        """Take an epoch's row and, from rank 0 when due, a checkpoint's folder.

        The folder is the worker's and goes when this returns.
        """

    def finish(self, metrics: Mapping[str, float], place: Path | None) -> None:
        """Take the metrics of the best weights and, from rank 0, the last checkpoint's folder, as `report` does."""

    def step(self, done: int, epoch: int) -> None:
        """Hear that `done` steps of `epoch` steps of an epoch are over."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a finished training leaves."""

    reason: str
    metrics: dict[str, float]
    """best_epoch, val/..., test/... of the best weights."""
    scores: dict[str, Array]
    """(n, K) probabilities of val and test."""
    weights: dict[str, Any]
    """State dict of the best epoch."""
    history: list[journal.Row]
    """One row per epoch."""
    unfit: tuple[str, ...]
    """What of network.weights did not fit."""


def work(experiment: Experiment, prepared: Prepared, world: World, reporter: Reporter, last: Path | None) -> None:
    """Train on this worker to the end.

    Args:
        experiment: the run.
        prepared: its data.
        world: this worker's place among all.
        reporter: hears of every epoch.
        last: a checkpoint to go on from.
    """
    times = {"at/worker": time.time()}
    learner = Learner(experiment, prepared, world)
    history: list[dict[str, float | None]] = []
    if last is not None:
        state = checkpoint.load(last)
        learner.load_state(state)
        history = state["history"]
        if "finished" in state:  # a restart after the end: nothing is left to do
            reporter.finish(state["finished"]["metrics"], last)
            return
    times["at/network"] = time.time()
    saved = time.monotonic()
    for event in fit(learner):
        match event:
            case StepDone():
                times.setdefault("at/first_step", time.time())
                reporter.step(event.step % learner.steps_per_epoch + 1, learner.steps_per_epoch)
            case EpochDone():
                row = journal.plain({**event.metrics, **times, "best": float(event.best)})
                history.append(row)
                due = time.monotonic() - saved > reporter.checkpoint_every_s
                saved = time.monotonic() if due else saved
                _hand_over(
                    learner, partial(reporter.report, row), {**learner.state(), "history": history} if due else None
                )
                times = {}
            case Finished():
                note = {"reason": event.reason, "metrics": event.metrics, "unfit": list(learner.unfit)}
                state = {**event.state, "history": history, "finished": note}
                _hand_over(learner, partial(reporter.finish, event.metrics), state, event.scores)


def _hand_over(
    learner: Learner,
    take: Callable[[Path | None], None],
    state: dict[str, Any] | None,
    scores: dict[str, Array] | None = None,
) -> None:
    """Let the reporter take what it takes; if there is a state, rank 0 adds a checkpoint of it."""
    if state is None or learner.world.rank != 0:
        take(None)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), state)
        if scores is not None:
            checkpoint.save_scores(Path(folder), scores)
        take(Path(folder))


def collect(place: Path) -> Outcome:
    """The outcome that a finished training left in its last checkpoint."""
    state = checkpoint.load(place)
    finished = state["finished"]
    return Outcome(
        reason=finished["reason"],
        metrics=finished["metrics"],
        scores=checkpoint.load_scores(place),
        weights=state["best_weights"],
        history=[journal.from_plain(row) for row in state["history"]],
        unfit=tuple(finished["unfit"]),
    )
