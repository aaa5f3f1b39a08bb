"""One worker of a training: runs the loop, and keeps its rows and checkpoints in the run's folder.

Who listens decides where the training runs: this process alone (alone.py), Ray Train's workers (launch.py), or a trial
of Ray Tune (tuning/trial.py). The folder is all that a start needs of the starts before it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from medray.config import ConfigError, Experiment
from medray.networks import memory
from medray.networks.memory import STATES
from medray.pipeline.prepare import DataRefused, Prepared
from medray.sections.training import rhythm_of
from medray.tracking import journal
from medray.training import checkpoint, state
from medray.training.checkpoint import CHECKPOINTS, FINISHED, State, StorageError
from medray.training.keeper import Keeper, describe
from medray.training.learner import Learner
from medray.training.loop import EpochDone, Finished, NonFiniteLoss, StepDone, Stopped, Trained, fit
from medray.training.notes import note
from medray.training.profile import Profile, profiled
from medray.training.watch import Watch, awake, is_asked
from medray.training.world import World
from medray.types import Array

NOTHING, LAST = -1, -2


class OutOfMemory(RuntimeError):
    """A step found no memory; the message says what it was thought to need, what there is, and what lowers the need."""


FINAL = (NonFiniteLoss, OutOfMemory, ConfigError, DataRefused)
"""What would happen again: another start is not tried."""


class Listener(Protocol):
    """Who hears of a worker's progress. Every worker of a training has one."""

    def step(self, done: int, epoch: int) -> None:
        """`done` steps of `epoch` steps of an epoch are over."""

    def wants(self, epoch: int) -> bool:
        """Whether `epoch` is to be told with a whole checkpoint; the same on every worker."""

    def epoch(self, row: Mapping[str, float | None], place: Path | None) -> None:
        """An epoch is over; its row is on its way to the journal, its checkpoint, if it was wanted, in `place`."""

    def finished(self, metrics: Mapping[str, float]) -> None:
        """All is done: the metrics of the best weights. The last checkpoint holds them too."""


class Quiet:
    """A listener that hears, wants and says nothing: a job's progress follows its journal."""

    def step(self, done: int, epoch: int) -> None:
        """Nothing."""

    def wants(self, epoch: int) -> bool:  # noqa: ARG002
        """No checkpoint."""
        return False

    def epoch(self, row: Mapping[str, float | None], place: Path | None) -> None:
        """Nothing."""

    def finished(self, metrics: Mapping[str, float]) -> None:
        """Nothing."""


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


def work(
    experiment: Experiment,
    prepared: Prepared,
    world: World,
    folder: Path,
    listener: Listener,
    start: Path | None = None,
) -> bool:
    """Train on this worker to the end, from the newest whole checkpoint in the run's folder.

    Args:
        experiment: the run.
        prepared: its data.
        world: this worker's place among all.
        folder: the run's, seen by all workers.
        listener: hears of every epoch.
        start: a checkpoint from elsewhere, to go on from instead.

    Returns:
        Whether it came to its end; not if someone asked it to stop, which it did where it stood.

    Raises:
        NonFiniteLoss, OutOfMemory, StorageError: with what a person needs to know.
    """
    times = {"at/worker": time.time()}
    if world.any(is_asked(folder)):
        return False
    if world.rank == 0:
        checkpoint.clear_partial(folder)
    _require_shared(folder, world)
    place = start or _newest(folder, world)
    saved = None if place is None else checkpoint.load(place)
    if saved is not None and FINISHED in saved.shared.values:
        listener.finished(saved.shared.values[FINISHED]["metrics"])
        return True
    learner = Learner(experiment, prepared, world)
    if saved is not None:
        state.give(learner, saved)
        if start is not None and world.rank == 0:
            checkpoint.forget(folder, learner.step)
    _require_room(learner, folder)
    times["at/network"] = time.time()
    keeper = Keeper(folder, world, 60 * experiment.scaling.storage_minutes)
    worker = _Worker(learner, keeper, listener, folder, times)
    try:
        hang_s = 60 * experiment.scaling.hang_minutes
        with awake(folder, world.rank, hang_s, worker.moved), profiled(learner, folder) as worker.profile:
            return worker.run()
    except Exception as error:
        if memory.ran_out(error):
            raise OutOfMemory(memory.explain(error, learner.memory, str(world.device))) from error
        raise
    finally:
        keeper.close()


class _Worker:
    """The loop's events turned into rows, checkpoints and words to the listener."""

    def __init__(
        self, learner: Learner, keeper: Keeper, listener: Listener, folder: Path, times: dict[str, float]
    ) -> None:
        self.learner = learner
        self.keeper = keeper
        self.listener = listener
        self.folder = folder
        self.times = times
        rhythm = rhythm_of(learner.experiment.train.checkpoint_every)
        self.watch = Watch(folder, learner, rhythm, lambda: keeper.busy)
        self.trained: tuple[State, State] | None = None
        self.profile: Profile | None = None

    def moved(self) -> float:
        """When it moved last; while a checkpoint is on its way to the disk, the keeper's patience counts, not this."""
        return time.monotonic() if self.keeper.busy else self.watch.moved

    def run(self) -> bool:
        """Whether the training came to its end."""
        learner = self.learner
        try:
            for event in fit(learner, self.watch):
                match event:
                    case StepDone():
                        self.times.setdefault("at/first_step", time.time())
                        self.listener.step(learner.steps_into_epoch, learner.steps_per_epoch)
                        if event.save:
                            self._save()
                    case EpochDone():
                        self._close_epoch(event)
                    case Trained():
                        self.trained = state.take(learner)
                    case Finished():
                        self._finish(event)
        except Stopped:
            self._stop()
            return False
        return True

    def _save(self) -> None:
        self.watch.saved()
        self.keeper.save(checkpoint.name_of(self.learner.step), *state.take(self.learner))

    def _close_epoch(self, event: EpochDone) -> None:
        metrics = event.metrics | (self.profile.figures(event.metrics) if self.profile else {})
        row = journal.plain({**metrics, **self.times, "best": float(event.best), journal.END: time.time()})
        self.keeper.row(row)
        self.times = {}
        place = None
        if self.listener.wants(event.epoch):
            self.keeper.wait()
            self._save()
            place = self.keeper.wait()
        elif self.watch.due_after_epoch():
            self._save()
        self.listener.epoch(row, place)

    def _stop(self) -> None:
        """Save where the training stands; after the last epoch that is where it stood before its best was measured."""
        self.keeper.wait()
        self.keeper.save(checkpoint.name_of(self.learner.step), *(self.trained or state.take(self.learner)))
        self.keeper.insist()
        if self.learner.world.rank == 0:
            note(self.folder, f"stopped after step {self.learner.step} (epoch {self.learner.epoch + 1}); all is saved")

    def _finish(self, event: Finished) -> None:
        """Keep the last checkpoint, with all that `collect` reads; older ones make room for it where there is none."""
        shared, own = self.trained or state.take(self.learner)
        scores = {
            f"scores/{split}": torch.from_numpy(np.ascontiguousarray(table)) for split, table in event.scores.items()
        }
        finished = {"reason": event.reason, "metrics": journal.plain(event.metrics), "unfit": list(self.learner.unfit)}
        shared = replace(shared, tensors=shared.tensors | scores, values={**shared.values, FINISHED: finished})
        self.keeper.wait()
        try:
            self.keeper.save(FINISHED, shared, own)
            self.keeper.insist()
        except StorageError:
            if self.learner.world.size > 1:
                raise
            checkpoint.prune(self.folder, 1)
            self.keeper.save(FINISHED, shared, own)
            self.keeper.insist()
        self.listener.finished(event.metrics)


def _require_shared(folder: Path, world: World) -> None:
    """Refuse to train where a worker would keep its part of a checkpoint on a disk of its own."""
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    mark = folder / CHECKPOINTS / f"{world.agreed_token()}.mark"
    if world.rank == 0:
        mark.touch()
    world.any(False)  # all wait for it
    blind = world.any(not mark.exists())
    if world.rank == 0:
        mark.unlink(missing_ok=True)
    if blind:
        raise ConfigError([f"{folder} is not the same on all nodes: MEDRAY_HOME must lie on a disk that they share"])


def _newest(folder: Path, world: World) -> Path | None:
    """The newest whole checkpoint, as rank 0 found it."""
    step = NOTHING
    if world.rank == 0:
        place = checkpoint.newest(folder, lambda line: note(folder, line))
        if place is not None:
            step = LAST if place.name == FINISHED else int(checkpoint.step_of(place))
    step = world.from_first([step])[0]
    if step == NOTHING:
        return None
    if step != LAST and world.rank == 0:
        note(folder, f"going on after step {step}")
    return folder / CHECKPOINTS / (FINISHED if step == LAST else checkpoint.name_of(step))


def _require_room(learner: Learner, folder: Path) -> None:
    """Refuse to begin what cannot be kept: a checkpoint takes the weights, the best ones and the optimiser's memory."""
    copies = 2 + (learner.averaged is not None) + STATES[learner.experiment.optimizer.name]
    weights = sum(tensor.nbytes for tensor in learner.network.state_dict().values())
    missing = checkpoint.KEPT + 1 - len(checkpoint.whole(folder))
    place = folder / CHECKPOINTS
    try:
        checkpoint.require_room(place, copies * weights * max(1, missing) + checkpoint.SPARE_BYTES)
    except OSError as error:
        raise StorageError(describe(place, f"checkpoints ({checkpoint.KEPT} and one on its way)", error)) from error


def collect(folder: Path) -> Outcome:
    """The outcome that a finished training left in its last checkpoint.

    Raises:
        StorageError: there is none, or it cannot be read.
    """
    saved = checkpoint.load(folder / CHECKPOINTS / FINISHED)
    tensors, finished = saved.shared.tensors, saved.shared.values[FINISHED]
    scores = {name.removeprefix("scores/"): t.numpy() for name, t in tensors.items() if name.startswith("scores/")}
    return Outcome(
        reason=finished["reason"],
        metrics=journal.from_plain(finished["metrics"]),
        scores={split: scores[split] for split in ("val", "test") if split in scores},
        weights={name.removeprefix("best/"): tensor for name, tensor in tensors.items() if name.startswith("best/")},
        history=journal.epochs(folder / journal.JOURNAL),
        unfit=tuple(finished["unfit"]),
    )
