"""The main job: one training from an experiment to a registered model."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
    with ThreadPoolExecutor(max_workers=2) as pool:
        # Ray's start and the imports of torch and MLflow take seconds each; the data need none of them.
        connecting = pool.submit(cluster.connect)
        opening = pool.submit(_open_record, experiment, folder)
        try:
            prepared = prepare(experiment, cluster.home() / "stores", cluster.parallel_map)
            progress.stage("data")
            connecting.result()
        except BaseException:
            _finish(opening, "FAILED")
            raise
        progress.stage("ray")
        return _train(experiment, prepared, folder, opening, progress)


def _train(
    experiment: Experiment, prepared: Prepared, folder: Path, opening: Future[Any], progress: Progress
) -> dict[str, Any]:
    """Launch, follow, record."""
    from medray.training.launch import launch

    allotment = cluster.allot(experiment.scaling)
    progress.announce(experiment, prepared, allotment)
    status = "FAILED"
    try:
        with journal.followed(folder / "journal.jsonl", _listener(opening, experiment, prepared, progress)):
            outcome = launch(experiment, prepared, folder, allotment)
        progress.finish(outcome)
        result = _record(experiment, prepared, folder, opening, outcome)
        status = "FINISHED"
        return result
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        _finish(opening, status)


def _listener(
    opening: Future[Any], experiment: Experiment, prepared: Prepared, progress: Progress
) -> Callable[[journal.Row], None]:
    """What is done with each epoch: a line for the person, numbers for MLflow."""
    opened = False

    def listen(row: journal.Row) -> None:
        nonlocal opened
        from medray.training.record import open_record

        progress.epoch(row)
        record = opening.result()
        if not opened:
            open_record(record, experiment, prepared)
            opened = True
        record.log_metrics(row, step=int(row["epoch"]))

    return listen


def _record(
    experiment: Experiment, prepared: Prepared, folder: Path, opening: Future[Any], outcome: Any
) -> dict[str, Any]:
    """Bundle, figures, registry; what the job prints last."""
    from medray.training.record import close_record, describe, save_bundle

    shutil.rmtree(folder / "bundle", ignore_errors=True)
    bundle = save_bundle(folder / "bundle", experiment, prepared, outcome)
    registered = close_record(opening.result(), folder, experiment, prepared, outcome)
    if registered is not None:
        say(registered.verdict)
    return {
        "run": folder.name,
        "run_id": opening.result().run_id,
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


def _open_record(experiment: Experiment, folder: Path) -> Any:
    """The run's record in MLflow: exactly one, however often the run is taken up again."""
    from medray.tracking.run import client, start

    file = folder / "run.json"
    known = json.loads(file.read_text(encoding="utf-8"))["run_id"] if file.is_file() else None
    record = start(client(experiment.tracking.uri), experiment.name, folder.name, known)
    file.write_text(json.dumps({"run_id": record.run_id}), encoding="utf-8")
    return record


def _finish(opening: Future[Any], status: str) -> None:
    """Close the record, if there ever was one."""
    if opening.exception() is None:
        opening.result().finish(status)
