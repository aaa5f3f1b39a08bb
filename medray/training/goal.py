"""What a training is judged by: its task on the data at hand, the metric that chooses the best epoch."""

from __future__ import annotations

from typing import Literal

from medray.config import Experiment
from medray.pipeline.prepare import Prepared
from medray.tasks.task import Task, build

LOWER_IS_BETTER = ("loss", "brier", "ece", "mae", "mse", "rmse", "median_absolute_error")


def task_of(experiment: Experiment, prepared: Prepared) -> Task:
    """The experiment's task on this dataset; it sees the targets of the training cases alone."""
    targets = prepared.targets[prepared.rows("train")]
    return build(experiment.task, prepared.dataset.classes, prepared.dataset.multilabel, targets)


def measured_by(task: Task) -> list[str]:
    """Metrics that a training with this task reports of every epoch and can be judged by."""
    return [*(f"val/{name}" for name in task.metrics), "train/loss"]


def monitor_of(experiment: Experiment, prepared: Prepared) -> str:
    """The metric that chooses the best epoch: the experiment's, else the task's."""
    return experiment.train.monitor or task_of(experiment, prepared).monitor


def monitor_sign(monitor: str, mode: Literal["max", "min"] | None) -> int:
    """1 where more is better, -1 where less is."""
    if mode is not None:
        return 1 if mode == "max" else -1
    return -1 if monitor.rpartition("/")[2] in LOWER_IS_BETTER else 1
