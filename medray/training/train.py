"""The main job: one training from an experiment to a registered model."""

from __future__ import annotations

import json
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from medray import cluster
from medray.config import Experiment, load, to_yaml
from medray.pipeline.prepare import Prepared, prepare
from medray.tracking import journal
from medray.training.progress import Progress, say

RUNS = "runs"


class RunNotFound(LookupError):
    """There is no run of that name to go on with."""


def train(experiment: Experiment, resume: str | None = None, began: float | None = None) -> dict[str, Any]:
    """Prepare, train, record, register.

    Args:
        experiment: the run; with `resume` the one that the run began with counts.
        resume: name of a run to go on with from its last checkpoint.
        began: time.time() of the command's start, for the account of the start-up.

    Returns:
        run, run_id, metrics, bundle, model, champion, reason: the job's last line.

    Raises:
        ConfigError, DataRefused, StoreError, TrainingFailed: with what a person needs to know.
    """
    progress = Progress(began or time.time())
    folder = _open_folder(experiment, resume)
    experiment = load(folder / "experiment.yaml")
    say(f"run {folder.name} in {folder}")
    allotment = cluster.allot(experiment.scaling)
    alone = allotment.workers == 1 and not cluster.joins_cluster()
    record = _Record(experiment, folder)
    with ThreadPoolExecutor(max_workers=1) as pool:
        # The trainer's imports, and Ray's start, take seconds; preparing the data needs neither.
        trainer = pool.submit(_trainer, alone)
        prepared = prepare(experiment, cluster.home() / "stores", cluster.parallel_map)
        progress.stage("data")
        run = trainer.result()
    progress.stage("imports" if alone else "Ray")
    progress.announce(experiment, prepared, allotment)
    try:
        with journal.followed(folder / "journal.jsonl", _listener(record, prepared, progress)):
            outcome = run(experiment, prepared, folder, allotment)
        progress.finish(outcome)
        result = _close(record, prepared, outcome)
    except BaseException as error:
        record.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    record.finish("FINISHED")
    return result


def _trainer(alone: bool) -> Callable[..., Any]:
    """Where the training will run: in this process, or on the workers of a cluster, which is connected."""
    if alone:
        from medray.training.alone import train_alone

        return train_alone
    connecting = threading.Thread(target=cluster.connect)
    connecting.start()
    from medray.training.launch import launch

    connecting.join()
    return launch


class _Record:
    """The run's record in MLflow, opened with the first epoch: until then there is nothing to show."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment = experiment
        self.folder = folder
        self._opened: Any = None

    def opened(self, prepared: Prepared) -> Any:
        """The record; exactly one, however often the run is taken up again."""
        if self._opened is None:
            from medray.tracking.run import client, start
            from medray.training.record import open_record

            file = self.folder / "run.json"
            known = json.loads(file.read_text(encoding="utf-8"))["run_id"] if file.is_file() else None
            mlflow = client(self.experiment.tracking.uri)
            self._opened = start(mlflow, self.experiment.name, self.folder.name, known)
            file.write_text(json.dumps({"run_id": self._opened.run_id}), encoding="utf-8")
            if known is None:
                open_record(self._opened, self.experiment, prepared)
        return self._opened

    def finish(self, status: str) -> None:
        """Close the record, if there is one."""
        if self._opened is not None:
            self._opened.finish(status)


def _listener(record: _Record, prepared: Prepared, progress: Progress) -> Callable[[journal.Row], None]:
    """What is done with each epoch: a line for the person, numbers for MLflow."""

    def listen(row: journal.Row) -> None:
        progress.epoch(row)
        record.opened(prepared).log_metrics(row, step=int(row["epoch"]))

    return listen


def _close(record: _Record, prepared: Prepared, outcome: Any) -> dict[str, Any]:
    """Bundle, figures, registry; what the job prints last."""
    from medray.training.record import close_record, describe, save_bundle

    experiment, folder = record.experiment, record.folder
    shutil.rmtree(folder / "bundle", ignore_errors=True)
    bundle = save_bundle(folder / "bundle", experiment, prepared, outcome)
    mlflow = record.opened(prepared)
    registered = close_record(mlflow, folder, experiment, prepared, outcome)
    if registered is not None:
        say(registered.verdict)
    return {
        "run": folder.name,
        "run_id": mlflow.run_id,
        "metrics": describe(outcome),
        "intervals": bundle.card["intervals"],
        "bundle": str(bundle.folder),
        "model": registered.model if registered else None,
        "champion": bool(registered and registered.champion),
        "refused": len(prepared.refused),
        "reason": outcome.reason,
    }


def _open_folder(experiment: Experiment, resume: str | None) -> Path:
    """The run's folder, new or old, with its experiment in it."""
    runs = cluster.home() / RUNS
    if resume is not None:
        if not (runs / resume / "experiment.yaml").is_file():
            known = sorted(item.name for item in runs.glob(f"{experiment.name}-*"))[-5:]
            raise RunNotFound(f"no run '{resume}' in {runs}; the last ones are: {', '.join(known) or 'none'}")
        return runs / resume
    folder = new_folder(experiment)
    (folder / "experiment.yaml").write_text(to_yaml(experiment), encoding="utf-8")
    return folder


def new_folder(experiment: Experiment) -> Path:
    """A new, empty folder for a run of `experiment`, named by it, the time and a chance word."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = cluster.home() / RUNS / f"{experiment.name}-{stamp}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True)
    return folder
