"""The main job: one training from an experiment to a registered model."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from medray import cluster
from medray.config import Experiment, load, to_yaml
from medray.pipeline.prepare import DataRefused, Prepared, prepare
from medray.tracking import journal
from medray.training.folds import cross_validate
from medray.training.live import LiveRecord
from medray.training.progress import Progress, say

RUNS = "runs"
RESULT = "result.json"


class RunNotFound(LookupError):
    """There is no run of that name to go on with."""


class TrackingFailed(RuntimeError):
    """The model is trained and safe on the disk, but MLflow does not know of it."""


def train(experiment: Experiment, began: float | None = None) -> dict[str, Any]:
    """Prepare, train, record, register.

    Args:
        experiment: the run.
        began: time.time() of the command's start, for the account of the start-up.

    Returns:
        run, run_id, metrics, bundle, model, champion, reason: the job's last line.

    Raises:
        ConfigError, DataRefused, StoreError, TrainingFailed, TrackingFailed: with what a person needs to know.
    """
    folder = new_folder(experiment)
    (folder / "experiment.yaml").write_text(to_yaml(experiment), encoding="utf-8")
    return _run(experiment, folder, began)


def resume(name: str, began: float | None = None) -> dict[str, Any]:
    """Go on with a run from its last checkpoint; one that is finished gives its result again.

    Raises:
        RunNotFound: there is no such run.
        and what `train` raises; DataRefused also where the data are no longer those that the run began with.
    """
    folder = cluster.home() / RUNS / name
    if (folder / "trials").is_dir():
        raise RunNotFound(f"{name} is a search; go on with it: medray tune --resume {name}")
    if not (folder / "experiment.yaml").is_file():
        runs = sorted((cluster.home() / RUNS).glob("*/experiment.yaml"), key=lambda file: file.stat().st_mtime)
        known = ", ".join(file.parent.name for file in runs[-5:])
        raise RunNotFound(f"no run '{name}' in {cluster.home() / RUNS}; the last ones are: {known or 'none'}")
    if (folder / RESULT).is_file():
        say(f"run {name} is finished")
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return result
    return _run(load(folder / "experiment.yaml"), folder, began)


def _run(experiment: Experiment, folder: Path, began: float | None) -> dict[str, Any]:
    """One training, or one per fold; what a finished one left is its result."""
    if experiment.train.folds is None:
        return _train(experiment, folder, Progress(began or time.time()))
    result = cross_validate(experiment, folder, _train_fold)
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")
    return result


def _train_fold(experiment: Experiment, folder: Path, parent: str) -> dict[str, Any]:
    """The training of one fold in `folder`, or its result if it is finished."""
    if (folder / RESULT).is_file():
        done: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return done
    folder.mkdir(exist_ok=True)
    (folder / "experiment.yaml").write_text(to_yaml(experiment), encoding="utf-8")
    return _train(experiment, folder, Progress(time.time()), parent)


def new_folder(experiment: Experiment) -> Path:
    """A new, empty folder for a run of `experiment`, named by it, the time and a chance word."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = cluster.home() / RUNS / f"{experiment.name}-{stamp}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True)
    return folder


def _train(experiment: Experiment, folder: Path, progress: Progress, parent: str | None = None) -> dict[str, Any]:
    """The run in `folder`, from its beginning or from its last checkpoint."""
    say(f"run {folder.name} in {folder}")
    allotment = cluster.allot(experiment.scaling)
    # A run stays where it began: each place keeps checkpoints in its own way.
    on_ray = allotment.workers > 1 or cluster.joins_cluster() or (folder / "train").is_dir()
    alone = not on_ray or (folder / "checkpoint").is_dir()
    with ThreadPoolExecutor(max_workers=1) as pool:
        # The trainer's imports, and Ray's start, take seconds; preparing the data needs neither.
        trainer = pool.submit(_trainer, alone)
        prepared = prepare(experiment, cluster.home() / "stores", cluster.parallel_map)
        check_same_data(folder / "data.json", prepared)
        progress.stage("data")
        run = trainer.result()
    progress.stage("imports" if alone else "Ray")
    progress.announce(experiment, prepared, allotment)
    record = LiveRecord(experiment, folder, prepared, parent)

    def listen(row: journal.Row) -> None:
        progress.epoch(row)
        record.epoch(row)

    try:
        with journal.followed(folder / "journal.jsonl", listen):
            outcome = run(experiment, prepared, folder, allotment)
        progress.finish(outcome)
        result = _close(record, experiment, folder, prepared, outcome)
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
    with ThreadPoolExecutor(max_workers=1) as pool:
        connecting = pool.submit(cluster.connect)
        from medray.training.launch import launch

        connecting.result()
    return launch


def check_same_data(file: Path, prepared: Prepared) -> None:
    """A run goes on with the data it began with: a new file could move test cases into train."""
    found = {"data": prepared.fingerprint, "split": prepared.split_fingerprint}
    if not file.is_file():
        file.write_text(json.dumps(found), encoding="utf-8")
    elif json.loads(file.read_text(encoding="utf-8")) != found:
        raise DataRefused("the data or their split are not those that the run began with; start a new run", ())


def _close(live: LiveRecord, experiment: Experiment, folder: Path, prepared: Prepared, outcome: Any) -> dict[str, Any]:
    """Bundle, figures, registry; what the job prints last."""
    from medray.tracking.run import tracking_uri
    from medray.training.record import close_record, describe, save_bundle

    shutil.rmtree(folder / "bundle", ignore_errors=True)
    bundle = save_bundle(folder / "bundle", experiment, prepared, outcome)
    try:
        live.flush()
        registered = close_record(live.opened(), folder, experiment, prepared, outcome)
    except Exception as error:
        way = f"when it answers again: medray train --resume {folder.name}"
        raise TrackingFailed(f"{error}; the model is safe in {bundle.folder}, but not in MLflow; {way}") from error
    if registered is not None:
        say(registered.verdict)
    result = {
        "run": folder.name,
        "run_id": live.opened().run_id,
        "tracking_uri": tracking_uri(experiment.tracking.uri),
        "metrics": describe(outcome),
        "intervals": bundle.card["intervals"],
        "bundle": str(bundle.folder),
        "model": registered.model if registered else None,
        "champion": bool(registered and registered.champion),
        "refused": len(prepared.refused),
        "reason": outcome.reason,
    }
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")
    return result
