"""The main job: one training from an experiment to a registered model."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medray import cluster
from medray.config import Experiment, load, to_yaml
from medray.pipeline.prepare import DataRefused, Prepared, prepare
from medray.tracking import journal
from medray.training import checkpoint, handover, notes
from medray.training.folder import (
    EXPERIMENT,
    RESULT,
    RUNS,
    TRIALS,
    Interrupted,
    RunNotFound,
    interrupted,
    locked,
    new_folder,
    write_whole,
)
from medray.training.folds import cross_validate
from medray.training.live import LiveRecord, status_of
from medray.training.offsite import copied
from medray.training.offsite_store import bring, bring_back
from medray.training.progress import Progress, say
from medray.training.stopping import Stopping, stoppable


def train(experiment: Experiment, began: float | None = None, new: bool = False) -> dict[str, Any]:
    """Prepare, train, record, register; the same experiment again goes on with a run that was interrupted.

    Args:
        experiment: the run.
        began: time.time() of the command's start, for the account of the start-up.
        new: begin anew, whatever was interrupted.

    Returns:
        run, run_id, metrics, bundle, model, champion, reason: the job's last line.

    Raises:
        ConfigError, DataRefused, StoreError, TrainingFailed, StorageError: with what a person needs to know.
        RunLocked: another process is at this run.
        Interrupted: someone asked it to stop, and it has saved where it stood.
    """
    if not new:
        bring_back(experiment)
    folder = None if new else interrupted(experiment, lambda found: not _is_study(found))
    if folder is None:
        return _run(experiment, new_folder(experiment), began)
    return _run(experiment, folder, began, "going on with a run that was interrupted (--new begins another)")


def resume(name: str, began: float | None = None) -> dict[str, Any]:
    """Go on with a run from its last checkpoint; one that is finished gives its result again.

    Raises:
        RunNotFound: there is no such run.
        and what `train` raises; DataRefused also where the data are no longer those that the run began with.
    """
    folder = cluster.home() / RUNS / name
    bring(name)
    if _is_study(folder):
        raise RunNotFound(f"{name} is a search; go on with it: medray tune --resume {name}")
    if not (folder / EXPERIMENT).is_file():
        runs = sorted((cluster.home() / RUNS).glob(f"*/{EXPERIMENT}"), key=lambda file: file.stat().st_mtime)
        known = ", ".join(file.parent.name for file in runs[-5:])
        raise RunNotFound(f"no run '{name}' in {cluster.home() / RUNS}; the last ones are: {known or 'none'}")
    if (folder / RESULT).is_file():
        say(f"run {name} is finished")
        from medray.training.sync import result_of

        return result_of(name)
    return _run(load(folder / EXPERIMENT), folder, began)


def _is_study(folder: Path) -> bool:
    return (folder / TRIALS).is_dir()


def _run(experiment: Experiment, folder: Path, began: float | None, word: str = "") -> dict[str, Any]:
    """One training, or one per fold; what a finished one left is its result."""
    # A checkpoint may wait for a disk that is away.
    grace_s = 60 * (experiment.scaling.storage_minutes + 1)
    with locked(folder), copied(folder), stoppable(grace_s) as stopping:
        if word:
            say(word)
        try:
            if experiment.train.folds is None:
                return _train(experiment, folder, Progress(began or time.time()), stopping)

            def train_fold(fold: Experiment, place: Path, parent: str) -> dict[str, Any]:
                return _train_fold(fold, place, parent, stopping)

            result = cross_validate(experiment, folder, train_fold)
            write_whole(folder / RESULT, json.dumps(result))
            return result
        except Interrupted:
            stopping.deliver()
            raise


def _train_fold(experiment: Experiment, folder: Path, parent: str, stopping: Stopping) -> dict[str, Any]:
    """The training of one fold in `folder`, or its result if it is finished."""
    bring(folder.name)
    if (folder / RESULT).is_file():
        done: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return done
    folder.mkdir(exist_ok=True)
    (folder / EXPERIMENT).write_text(to_yaml(experiment), encoding="utf-8")
    with locked(folder), copied(folder):
        return _train(experiment, folder, Progress(time.time()), stopping, parent)


def _train(
    experiment: Experiment, folder: Path, progress: Progress, stopping: Stopping, parent: str | None = None
) -> dict[str, Any]:
    """The run in `folder`, from its beginning or from its last checkpoint."""
    say(f"run {folder.name} in {folder}")
    allotment = cluster.allot(experiment.scaling)
    alone = allotment.workers == 1 and not cluster.joins_cluster()
    with ThreadPoolExecutor(max_workers=1) as pool:
        # The trainer's imports, and Ray's start, take seconds; preparing the data needs neither.
        trainer = pool.submit(_trainer, alone)
        prepared = prepare(experiment, cluster.home() / "stores", cluster.parallel_map)
        check_same_data(folder / "data.json", prepared)
        progress.stage("data")
        run = trainer.result()
    progress.stage("imports" if alone else "Ray")
    progress.announce(experiment, prepared, allotment)
    live = LiveRecord(experiment, folder, prepared, parent)
    live.open()
    try:
        with stopping.guarded(folder), _followed(folder, progress.epoch):
            outcome = run(experiment, prepared, folder, allotment)
        progress.finish(outcome)
        return _close(live, experiment, folder, prepared, outcome)
    except BaseException as error:
        live.abandon(status_of(error))
        raise


@contextmanager
def _followed(folder: Path, listen: Callable[[journal.Row], None]) -> Iterator[None]:
    """What workers write down of epochs, and have to say, is said here."""
    with (
        journal.lines_followed(folder / notes.NOTES, say, notes.read),
        journal.followed(folder / journal.JOURNAL, listen),
    ):
        yield


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
        raise DataRefused("the data or their split are not those that the run began with; begin another with --new", ())


def _close(live: LiveRecord, experiment: Experiment, folder: Path, prepared: Prepared, outcome: Any) -> dict[str, Any]:
    """Bundle, figures, registry; what the job prints last. MLflow may have none of it: the folder keeps it all."""
    from medray.tracking.run import tracking_uri
    from medray.training.delivery import outcome_of
    from medray.training.record import describe, keep_end, save_bundle

    shutil.rmtree(folder / "bundle", ignore_errors=True)
    bundle = save_bundle(folder / "bundle", experiment, prepared, outcome)
    keep_end(folder, experiment, prepared, outcome)
    result = {
        "run": folder.name,
        "tracking_uri": tracking_uri(experiment.tracking.uri),
        **outcome_of(None),
        "metrics": describe(outcome),
        "intervals": bundle.card["intervals"],
        "bundle": str(bundle.folder),
        "refused": len(prepared.refused),
        "reason": outcome.reason,
    }
    # The run is finished from here on; the delivery adds to its result what MLflow has of it.
    write_whole(folder / RESULT, json.dumps(result))
    checkpoint.prune(folder, 1)
    live.deliver()
    return handover.read(folder / RESULT)
