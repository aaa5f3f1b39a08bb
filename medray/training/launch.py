"""Ray Train: a training on the workers of a cluster. Turns the loop's events into reports and journal lines."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from medray.cluster import Allotment
from medray.config import Experiment
from medray.pipeline.prepare import Prepared
from medray.tracking import journal
from medray.types import Array

CHECKPOINT_EVERY_S = 60.0
RUN_NAME = "train"
"""Ray's folder inside the run's folder; the same name again goes on from its last checkpoint."""


class TrainingFailed(RuntimeError):
    """A training that ended without a model; the message is the cause on the worker."""


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


def launch(experiment: Experiment, prepared: Prepared, folder: Path, allotment: Allotment) -> Outcome:
    """Train on Ray's workers; the same `folder` again goes on from the last checkpoint.

    Args:
        experiment: the run.
        prepared: its data.
        folder: the run's folder, seen by all nodes.
        allotment: workers and their resources.

    Raises:
        TrainingFailed: with the worker's own error.
    """
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"experiment": experiment, "prepared": prepared, "cpus": allotment.cpus},
        scaling_config=ScalingConfig(
            num_workers=allotment.workers,
            use_gpu=allotment.gpu,
            resources_per_worker={"CPU": allotment.cpus, **({"GPU": 1} if allotment.gpu else {})},
        ),
        run_config=RunConfig(
            name=RUN_NAME,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=experiment.scaling.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[JournalWriter(folder / "journal.jsonl")],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingFailed(_cause(error)) from error
    return collect(result.checkpoint.to_directory(), folder)


def collect(checkpoint_folder: str, folder: Path) -> Outcome:
    """The outcome that a training left in its last checkpoint and its journal."""
    from medray.training import checkpoint

    place = Path(checkpoint_folder)
    state = checkpoint.load(place)
    rows, _ = journal.read(folder / "journal.jsonl")
    finished = state["finished"]
    return Outcome(
        reason=finished["reason"],
        metrics=finished["metrics"],
        scores=checkpoint.load_scores(place),
        weights=state["best_weights"],
        history=journal.latest_epochs(rows),
        unfit=tuple(finished["unfit"]),
    )


class JournalWriter(UserCallback):  # type: ignore[misc]
    """Writes rank 0's report of each epoch to the journal; lives in Ray's controller, on the driver's node."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """One line per epoch."""
        row = metrics[0].get("row")
        if row:
            journal.append(self.file, row)


def train_worker(config: dict[str, Any]) -> None:
    """One worker of a training: steps, and reports each epoch to Ray."""
    entered = time.time()
    from medray.training import checkpoint
    from medray.training.learner import Learner
    from medray.training.loop import EpochDone, Finished, StepDone, fit
    from medray.training.world import joined_world, set_threads

    set_threads(config["cpus"])
    world = joined_world(ray.train.torch.get_device())
    learner = Learner(config["experiment"], config["prepared"], world)
    if (last := ray.train.get_checkpoint()) is not None:
        with last.as_directory() as place:
            learner.load_state(checkpoint.load(Path(place)))
    times = {"at/worker": entered, "at/network": time.time()}
    saved = time.monotonic()
    for event in fit(learner):
        match event:
            case StepDone():
                times.setdefault("at/first_step", time.time())
            case EpochDone():
                due = time.monotonic() - saved > CHECKPOINT_EVERY_S
                saved = time.monotonic() if due else saved
                _report(learner, {**event.metrics, **times, "best": float(event.best)}, save=due)
                times = {}
            case Finished():
                note = {"reason": event.reason, "metrics": event.metrics, "unfit": list(learner.unfit)}
                _report(learner, {}, save=True, finished=note, scores=event.scores)


def _report(
    learner: Any, row: dict[str, float], save: bool, finished: Any = None, scores: dict[str, Array] | None = None
) -> None:
    """Report to Ray, all workers together; rank 0 brings the row and, if due, the checkpoint."""
    from medray.training import checkpoint

    metrics = {"row": journal.plain(row)}
    if not save or learner.world.rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as place:
        checkpoint.save(Path(place), {**learner.state(), "finished": finished})
        if scores is not None:
            checkpoint.save_scores(Path(place), scores)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(place))


def _cause(error: BaseException) -> str:
    """The first worker's own error, without Ray's frames around it."""
    failures = getattr(error, "worker_failures", None)
    cause: BaseException = next(iter(failures.values())) if failures else error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {cause}"
