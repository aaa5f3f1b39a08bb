"""Cross-validation: one training per fold, recorded under one parent run with the mean and the spread of the folds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medray import cluster
from medray.config import ConfigError, Experiment, override
from medray.training import handover
from medray.training.handover import End
from medray.training.live import LiveRecord, status_of
from medray.training.progress import say

TrainFold = Callable[[Experiment, Path, str], dict[str, Any]]
"""Trains in a run's folder, a part of the whole of that name, from its beginning or its last checkpoint."""


def cross_validate(experiment: Experiment, folder: Path, train_fold: TrainFold) -> dict[str, Any]:
    """Train every fold of `experiment`; the same `folder` again goes on where it ended.

    Folds run at the same time where a cluster that was joined has room for more than one training.

    Args:
        experiment: with train.folds.
        folder: of the whole; the run of fold i lies beside it, in a folder of that name and `-fold{i}`.
        train_fold: how one of them is trained.

    Returns:
        folds (the result of each), metrics (mean of each figure), spread (its standard deviation), bundles.
    """
    count = experiment.train.folds or 0
    places = [folder.with_name(f"{folder.name}-fold{fold}") for fold in range(count)]
    live = LiveRecord(experiment, folder)
    live.open()

    def run(fold: int) -> dict[str, Any]:
        say(f"fold {fold + 1} of {count}")
        return train_fold(fold_of(experiment, fold), places[fold], folder.name)

    try:
        with ThreadPoolExecutor(max_workers=min(count, room(experiment))) as pool:
            results = list(pool.map(run, range(count)))
        figures, spread = summary([result["metrics"] for result in results])
        metrics = {**figures, **{f"{name}/spread": value for name, value in spread.items()}}
        handover.end(folder, End("FINISHED", metrics=metrics))
        delivered = live.deliver()
    except BaseException as error:
        live.abandon(status_of(error))
        raise
    for name in figures:
        say(f"{name:28} {figures[name]:.4f} +- {spread[name]:.4f} over {count} folds")
    return {
        "run": folder.name,
        "run_id": delivered.run_id if delivered else None,
        "metrics": figures,
        "spread": spread,
        "folds": results,
        "bundles": [result["bundle"] for result in results],
        "refused": max(result["refused"] for result in results),
        "tracked": delivered is not None,
    }


def fold_of(experiment: Experiment, fold: int) -> Experiment:
    """The experiment that trains one fold; it registers nothing, since one fold is no better than the others.

    Raises:
        ConfigError: the split cannot be dealt into folds.
    """
    if experiment.split.method in ("given", "fraction"):
        mistake = f"is {experiment.split.method}, but train.folds deals the cases into folds; leave one of them out"
        raise ConfigError([f"split.method: {mistake}"])
    if experiment.split.join_val:
        raise ConfigError(["split.join_val: train.folds measures on the validation cases; leave one of them out"])
    values = {
        "train.folds": None,
        "split.method": "kfold",
        "split.folds": experiment.train.folds,
        "split.fold": fold,
        "tracking.register_model": False,
    }
    return override(experiment, values)


def room(experiment: Experiment) -> int:
    """Trainings that the cluster which was joined has CPUs and GPUs for at once; one on this machine alone."""
    if not cluster.joins_cluster():
        return 1
    one = cluster.allot(experiment.scaling)
    cpus, gpus = cluster.resources()
    fits = [int(cpus // (one.workers * one.cpus))] + ([gpus // one.workers] if one.gpu else [])
    return max(1, min(fits))


def summary(rows: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation of each figure that all folds have."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    columns = {name: [float(row[name]) for row in rows] for name in names}
    means = {name: round(statistics.fmean(values), 6) for name, values in columns.items()}
    return means, {name: round(statistics.pstdev(values), 6) for name, values in columns.items()}
