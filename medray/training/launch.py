"""Ray Train: a training on the workers of a cluster, and who starts it again when some are lost.

Workers keep rows and checkpoints in the run's folder themselves (worker.py). Ray has no part in that: it would hold
each report until all workers have brought theirs, and offer only its newest checkpoint, whole or not.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import ray.train
from ray.exceptions import OutOfMemoryError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from medray import cluster
from medray.cluster import Allotment
from medray.config import Experiment
from medray.networks.memory import MEND
from medray.pipeline.prepare import Prepared
from medray.training.checkpoint import CHECKPOINTS, FINISHED, StorageError
from medray.training.folder import FAILURE, Interrupted, write_whole
from medray.training.notes import note
from medray.training.worker import FINAL, Outcome, Quiet, collect, work
from medray.training.world import joined_world, set_threads

RUN_NAME = "train"
"""Ray's folder inside the run's folder."""
GONE = "WorkerHealthCheckFailedError"
"""What Ray says of a worker whose process does not answer."""
KILLED_FOR_MEMORY = 2
"""Ray may end a worker that takes the node's memory; so often is it started again."""


class TrainingFailed(RuntimeError):
    """A training that ended without a model; the message is the cause on the worker."""


def launch(experiment: Experiment, prepared: Prepared, folder: Path, allotment: Allotment) -> Outcome:
    """Train on Ray's workers; the same `folder` again goes on from the last checkpoint.

    Args:
        experiment: the run.
        prepared: its data.
        folder: the run's folder, seen by all nodes.
        allotment: workers and their resources.

    Raises:
        TrainingFailed: with the worker's own error.
        StorageError: what must be kept cannot be written.
        Interrupted: someone asked it to stop, and it has saved where it stood.
    """
    (folder / FAILURE).unlink(missing_ok=True)
    failures = experiment.scaling.max_failures
    trainer = _Trainer(
        train_worker,
        train_loop_config={"experiment": experiment, "prepared": prepared, "cpus": allotment.cpus, "folder": folder},
        torch_config=TorchConfig(timeout_s=int(60 * experiment.scaling.hang_minutes) + 60),
        scaling_config=ScalingConfig(
            num_workers=allotment.workers if allotment.least is None else (allotment.least, allotment.workers),
            use_gpu=allotment.gpu,
            resources_per_worker={"CPU": allotment.cpus, **({"GPU": 1} if allotment.gpu else {})},
        ),
        run_config=RunConfig(
            name=RUN_NAME,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=3 if failures == "auto" else failures),
            callbacks=[Losses(folder)],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        cluster.aside(trainer.fit)
    except ray.train.TrainingFailedError as error:
        _raise_final(folder)
        raise _as_known(cause(error)) from error
    _raise_final(folder)
    if not (folder / CHECKPOINTS / FINISHED).is_dir():
        raise Interrupted(folder)
    return collect(folder)


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's, without processes that start beside the workers, for seconds each time, and have nothing to do."""

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"}
        if not cluster.joins_cluster():
            # A cluster of our own ends with this process, and with it whatever a lost controller would leave.
            unused.add("PlacementGroupCleanerCallback")
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in unused]


def _raise_final(folder: Path) -> None:
    """Raise what a worker said another start would come to as well."""
    if (folder / FAILURE).is_file():
        raise _as_known((folder / FAILURE).read_text(encoding="utf-8"))


def _as_known(text: str) -> Exception:
    """The error that a worker named by its kind."""
    kind, _, message = text.partition(": ")
    return StorageError(message) if kind == StorageError.__name__ else TrainingFailed(text)


class Losses(UserCallback):  # type: ignore[misc]
    """Says which workers were lost; lives in Ray's controller, on the driver's node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.killed_for_memory = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """A line for the person; a worker that Ray ends again and again for its memory is not started again."""
        # Those who were left behind only say that nobody answers them.
        gone = {rank: error for rank, error in worker_exceptions.items() if type(error).__name__ == GONE}
        for rank, error in (gone or worker_exceptions).items():
            why = "its process was killed, or its node is gone" if gone else _short(cause(error))
            note(self.folder, f"worker {rank} was lost: {why}")
        if any(_has(error, OutOfMemoryError) for error in worker_exceptions.values()):
            self.killed_for_memory += 1
            if self.killed_for_memory >= KILLED_FOR_MEMORY:
                said = f"OutOfMemory: Ray has ended a worker {self.killed_for_memory} times for the node's memory"
                write_whole(self.folder / FAILURE, f"{said}; {MEND}")


def train_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs on each worker, at each start."""
    folder = config["folder"]
    if (folder / FAILURE).is_file():
        return
    set_threads(config["cpus"])
    world = joined_world(ray.train.torch.get_device())
    try:
        work(config["experiment"], config["prepared"], world, folder, Quiet())
    except (*FINAL, StorageError) as error:
        with contextlib.suppress(OSError):
            write_whole(folder / FAILURE, f"{type(error).__name__}: {error}")
        raise


def cause(error: BaseException) -> str:
    """The first worker's own error, without Ray's frames around it."""
    failures = getattr(error, "worker_failures", None)
    found: BaseException = next(iter(failures.values())) if failures else error
    while found.__cause__ is not None:
        found = found.__cause__
    return f"{type(found).__name__}: {found}"


def _short(text: str) -> str:
    """The words of gloo and NCCL for a neighbour that does not answer are long, and name no one."""
    alone = any(word in text for word in ("Connection closed by peer", "Connection reset", "NCCL", "gloo"))
    return "a process beside it was killed, or a node is gone" if alone else text[:300]


def _has(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an error, or what caused it, is of a kind."""
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__
    return False
