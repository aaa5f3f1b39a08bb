"""Ray Train: a training on the workers of a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from medray import cluster
from medray.cluster import Allotment
from medray.config import Experiment
from medray.pipeline.prepare import Prepared
from medray.tracking import journal
from medray.training.worker import CHECKPOINT_EVERY_S, Outcome, collect, work
from medray.training.world import joined_world, set_threads

RUN_NAME = "train"
"""Ray's folder inside the run's folder; the same name again goes on from its last checkpoint."""


class TrainingFailed(RuntimeError):
    """A training that ended without a model; the message is the cause on the worker."""


def launch(experiment: Experiment, prepared: Prepared, folder: Path, allotment: Allotment) -> Outcome:
    """Train on Ray's workers; the same `folder` again goes on from the last checkpoint.

    Raises:
        TrainingFailed: with the worker's own error.
    """
    with fit_on_workers(experiment, prepared, folder, allotment).as_directory() as place:
        return collect(Path(place))


def fit_on_workers(
    experiment: Experiment, prepared: Prepared, folder: Path, allotment: Allotment
) -> ray.train.Checkpoint:
    """The last checkpoint of a training on Ray's workers, as `collect` reads it.

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
        result = cluster.aside(trainer.fit)
    except ray.train.TrainingFailedError as error:
        raise TrainingFailed(_cause(error)) from error
    return result.checkpoint


class JournalWriter(UserCallback):  # type: ignore[misc]
    """Writes rank 0's report of each epoch to the journal; lives in Ray's controller, on the driver's node."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """One line per epoch."""
        if row := metrics[0]["row"]:
            journal.append(self.file, row)


class RayReporter:
    """Reports to Ray Train, which waits for all workers."""

    checkpoint_every_s = CHECKPOINT_EVERY_S

    def report(self, row: Mapping[str, float | None], place: Path | None) -> None:
        """The row reaches the controller; Ray keeps the checkpoint."""
        checkpoint = None if place is None else ray.train.Checkpoint.from_directory(str(place))
        ray.train.report({"row": dict(row)}, checkpoint=checkpoint)

    def finish(self, metrics: Mapping[str, float], place: Path | None) -> None:  # noqa: ARG002
        """Ray keeps the last checkpoint, which holds the metrics too."""
        self.report({}, place)

    def step(self, done: int, epoch: int) -> None:
        """Nothing: a job's log has a line per epoch."""


def train_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs on each worker."""
    set_threads(config["cpus"])
    world = joined_world(ray.train.torch.get_device())
    last = ray.train.get_checkpoint()
    with contextlib.nullcontext() if last is None else last.as_directory() as place:
        start = None if place is None else Path(place)
        work(config["experiment"], config["prepared"], world, RayReporter(), start)


def _cause(error: BaseException) -> str:
    """The first worker's own error, without Ray's frames around it."""
    failures = getattr(error, "worker_failures", None)
    cause: BaseException = next(iter(failures.values())) if failures else error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {cause}"
