"""The folder of a run: new, found again by the experiment it holds, and one process's alone."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from medray import cluster
from medray.config import Experiment, to_yaml

RUNS = "runs"
RESULT = "result.json"
EXPERIMENT = "experiment.yaml"
FAILURE = "failure.txt"
"""Why a run came to an end that another start would come to as well."""
LOCK = "lock"
TRIALS = "trials"
"""In the folder of a search."""


class RunLocked(RuntimeError):
    """The same run is being run by another process."""


class RunNotFound(LookupError):
    """There is no run of that name."""


class Interrupted(RuntimeError):
    """Someone asked a training to stop, and it has saved where it stood."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"run {folder.name} was asked to stop and has saved where it stood")


def new_folder(experiment: Experiment) -> Path:
    """A new folder for a run of `experiment`, named by it, the time and a chance word; the experiment is in it."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = cluster.home() / RUNS / f"{experiment.name}-{stamp}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True)
    (folder / EXPERIMENT).write_text(to_yaml(experiment), encoding="utf-8")
    return folder


def interrupted(experiment: Experiment, kind: Callable[[Path], bool]) -> Path | None:
    """The newest run of this very experiment, unless it has a result, or failed in a way that would come again.

    Args:
        experiment: as the command gives it.
        kind: whether a folder is of the kind of run that is looked for.
    """
    text = to_yaml(experiment)
    found = [
        folder
        for folder in (cluster.home() / RUNS).glob(f"{experiment.name}-*")
        if kind(folder)
        and (folder / EXPERIMENT).is_file()
        and (folder / EXPERIMENT).read_text(encoding="utf-8") == text
    ]
    last = max(found, key=lambda folder: (folder / EXPERIMENT).stat().st_mtime, default=None)
    return None if last is None or (last / RESULT).is_file() or failure_of(last) else last


def failure_of(folder: Path) -> str:
    """Why the run would fail again; empty if it would not, as after a disk that was full."""
    file = folder / FAILURE
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return "" if text.startswith("StorageError: ") else text


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """This process alone runs what is in `folder`; the lock goes with the process.

    Raises:
        RunLocked: another process has it.
    """
    with (folder / LOCK).open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            way = "wait for it, end it, or begin another with --new"
            raise RunLocked(f"run {folder.name} is being run by process {lock.read().strip()}; {way}") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {os.uname().nodename}")
        lock.flush()
        yield


def write_whole(file: Path, text: str) -> None:
    """Write a file that is there whole or as it was."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
