"""The folder of a study: found again by the experiment it holds, one process's alone, cleared when all is done."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medray import cluster
from medray.config import Experiment, to_yaml
from medray.training.train import RESULT, RUNS
from medray.tuning.trials import TRIALS, write_whole

RAY = "tune"
"""Ray Tune's own folder inside the study's; what it holds is not needed after a start."""
SPENT = "spent_s"


class StudyRunning(RuntimeError):
    """The same study is being run by another process."""


def interrupted(experiment: Experiment) -> Path | None:
    """The newest study of this very experiment that has no result."""
    text = to_yaml(experiment)
    found = [
        folder
        for folder in (cluster.home() / RUNS).glob(f"{experiment.name}-*")
        if (folder / TRIALS).is_dir()
        and not (folder / RESULT).is_file()
        and (folder / "experiment.yaml").is_file()
        and (folder / "experiment.yaml").read_text(encoding="utf-8") == text
    ]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """This process alone runs the study; the lock goes with the process."""
    with (folder / "lock").open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            way = "wait for it, end it, or begin another with --new"
            raise StudyRunning(f"study {folder.name} is being run by process {lock.read().strip()}; {way}") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {os.uname().nodename}")
        lock.flush()
        yield


@contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Add the time of this start to that of the study."""
    before, began = spent(folder), time.monotonic()
    try:
        yield
    finally:
        write_whole(folder / SPENT, f"{before + time.monotonic() - began:.1f}")


def spent(folder: Path) -> float:
    """Seconds that the study has run, over all its starts."""
    file = folder / SPENT
    return float(file.read_text(encoding="ascii")) if file.is_file() else 0.0


def clear(folder: Path, best: int) -> None:
    """Free the disk of what a finished study needs no more: each setting can be trained again."""
    shutil.rmtree(folder / RAY, ignore_errors=True)
    for place in (folder / TRIALS).glob("*/*"):
        if place.is_dir() and int(place.parent.name) != best:
            shutil.rmtree(place, ignore_errors=True)
