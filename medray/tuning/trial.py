"""One trial, in its own process on the cluster: a training in the trial's folder that tells Ray Tune of its epochs.

With one worker the loop runs right here, which starts at once in a process that the trial before has left; with
several, Ray Train runs it beside.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from medray import cluster
from medray.cluster import Allotment
from medray.config import Experiment, override
from medray.pipeline.prepare import DataRefused, Prepared, prepare
from medray.tracking import journal
from medray.tracking.journal import JOURNAL
from medray.training.launch import TrainingFailed, launch
from medray.training.worker import work
from medray.training.world import World, device_of, set_threads
from medray.tuning.schedule import EPOCH, SCORE, grace_of
from medray.tuning.trials import ERROR, WORST, folder_of

ORIGIN = "trial.txt"
"""In a checkpoint that others may take over: the trial that wrote it."""


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """What all trials of a study share; picklable."""

    experiment: Experiment
    prepared: Prepared
    allotment: Allotment
    """Of one trial."""
    folder: Path
    """Seen by all nodes."""
    monitor: str
    sign: int
    """1 where more of `monitor` is better, -1 where less is."""


def run_trial(config: dict[str, Any], study: Study) -> None:
    """Train with the trial's settings, from its last checkpoint or the one that the scheduler hands it."""
    # A population's trial gets another's config; its name stays its own.
    index = int(tune.get_context().get_trial_name())
    chosen = override(study.experiment, config["settings"])
    folder = folder_of(study.folder, index)
    (folder / ERROR).unlink(missing_ok=True)
    try:
        prepared = prepared_for(chosen, study)
        if study.allotment.workers > 1:
            _train_on_workers(chosen, prepared, folder, study)
        else:
            _train_here(chosen, prepared, folder, study)
    except Exception as error:
        (folder / ERROR).write_text(cause(error), encoding="utf-8")
        raise
    finally:
        _release()


def _train_here(chosen: Experiment, prepared: Prepared, folder: Path, study: Study) -> None:
    set_threads(study.allotment.cpus)
    handed = tune.get_checkpoint()
    with contextlib.nullcontext() if handed is None else handed.as_directory() as place:
        origin = None if place is None else int((Path(place) / ORIGIN).read_text(encoding="ascii"))
        listener = TrialListener(folder, study, None if origin == int(folder.name) else origin)
        start = None if place is None else Path(place)
        work(chosen, prepared, World(device=device_of(study.allotment)), folder, listener, start)


def _train_on_workers(chosen: Experiment, prepared: Prepared, folder: Path, study: Study) -> None:
    listener = TrialListener(folder, study, None)
    with journal.followed(folder / JOURNAL, listener.epoch):
        outcome = launch(chosen, prepared, folder, study.allotment)
    listener.finished(outcome.metrics)


def prepared_for(chosen: Experiment, study: Study) -> Prepared:
    """The data of a trial: shared, unless its settings change them; then built once, whoever comes first.

    Raises:
        DataRefused: other cases are left, so that the trial could not be compared with the others.
    """
    parts = ("preprocess", "window")
    if all(getattr(chosen, part) == getattr(study.experiment, part) for part in parts):
        return study.prepared
    prepared = prepare(chosen, cluster.home() / "stores")
    if prepared.split != study.prepared.split:
        raise DataRefused("this preprocessing refuses other cases than the experiment's", prepared.refused)
    return prepared


def cause(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, TrainingFailed) else f"{type(error).__name__}: {text}"


def _release() -> None:
    """Give memory back: the process stays for the next trial, and a GPU may be shared."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class TrialListener:
    """Reports each epoch of a trial to Ray Tune, which may stop the trial there."""

    def __init__(self, folder: Path, study: Study, origin: int | None) -> None:
        self._folder = folder
        self._study = study
        self._inherited = {} if origin is None else {"inherited": origin}
        rows, _ = journal.read(folder / JOURNAL)
        self._best = max((self._value(row) for row in rows), default=WORST) if origin is None else WORST
        self._epoch = int(rows[-1]["epoch"]) if rows else 0

    def _value(self, row: Mapping[str, float | None]) -> float:
        value = row.get(self._study.monitor)
        return WORST if value is None or not math.isfinite(value) else self._study.sign * value

    def wants(self, epoch: int) -> bool:
        """Whether the scheduler can pause the trial after this epoch, or hand its weights on."""
        scheduler = self._study.experiment.tune.scheduler
        # Weights that were taken over are kept with the first word of them, or a restart would go on with its own.
        return (
            bool(self._inherited)
            or scheduler == "hyperband"
            or (scheduler == "pbt" and epoch % grace_of(self._study.experiment) == 0)
        )

    def epoch(self, row: Mapping[str, float | None], place: Path | None = None) -> None:
        """Report an epoch: `score` is the best monitored value so far, more being better."""
        if place is not None:
            (place / ORIGIN).write_text(self._folder.name, encoding="ascii")
        self._best = max(self._best, self._value(row))
        self._epoch = int(row["epoch"] or 0)
        found = {EPOCH: self._epoch, SCORE: self._best, "row": dict(row), **self._inherited}
        self._inherited = {}
        tune.report(found, checkpoint=None if place is None else tune.Checkpoint.from_directory(str(place)))

    def finished(self, metrics: Mapping[str, float]) -> None:
        """Report what the best weights measure, which ends the trial."""
        epoch = max(self._epoch, int(metrics["best_epoch"]))
        # A monitor of the training itself, such as train/loss, is not measured again.
        measured = {self._study.monitor: self._study.sign * self._best, **metrics}
        tune.report({EPOCH: epoch, SCORE: self._best, "measured": journal.plain(measured), **self._inherited})

    def step(self, done: int, epoch: int) -> None:
        """Nothing: Tune hears of epochs."""
