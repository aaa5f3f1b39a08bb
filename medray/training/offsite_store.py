"""The place of a run in $MEDRAY_STORAGE: what lies there, who has it, and bringing it here."""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from medray import cluster
from medray.config import Experiment, to_yaml
from medray.remote import marks, opened, reason_of
from medray.training import checkpoint
from medray.training.checkpoint import CHECKPOINTS, FINISHED, SUMS, StorageError
from medray.training.folder import EXPERIMENT, RESULT, RUNS, RunLocked
from medray.training.progress import say

STORAGE = "MEDRAY_STORAGE"
OWNER = "owner.json"
NAME = "name-here"
ALIVE_S = 90.0
"""An owner that has not been heard of for so long has ended."""
POLL_S = 5.0
ASIDE = ".older"
"""In the folder of runs: what another machine has brought further."""
Progress = tuple[bool, float]
"""Whether there is a result, and the steps of the newest whole checkpoint."""


def storage() -> str | None:
    """Where runs are copied to, if anywhere."""
    return os.environ.get(STORAGE) or None


@dataclass(frozen=True, slots=True)
class Place:
    """A run's folder in the storage."""

    url: str
    fs: Any
    root: str

    def names(self) -> list[str]:
        """Every file, relative to the run."""
        root = self.root.strip("/")
        try:
            found = marks(self.fs.find(self.root, detail=True))
        except FileNotFoundError:
            return []
        return sorted(PurePosixPath(name).relative_to(root).as_posix() for name in found)

    def text(self, name: str) -> str:
        """A file's text; empty if there is none."""
        try:
            return str(self.fs.cat_file(f"{self.root}/{name}").decode("utf-8"))
        except FileNotFoundError:
            return ""

    def put(self, file: Path, name: str) -> None:
        """Send a file."""
        self.fs.put_file(str(file), f"{self.root}/{name}")

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self.fs.exists(f"{self.root}/{name}"):
            self.fs.rm_file(f"{self.root}/{name}")

    def progress(self, names: Collection[str]) -> Progress:
        """How far the run is there."""
        found = (re.fullmatch(rf"{CHECKPOINTS}/(step-\d+|{FINISHED})/{SUMS}", name) for name in names)
        steps = [checkpoint.step_of(Path(match[1])) for match in found if match]
        return RESULT in names, max(steps, default=-1.0)

    def owner(self) -> dict[str, Any]:
        """Who has the run, and when that was said last; empty where nobody does."""
        found: dict[str, Any] = json.loads(self.text(OWNER) or "{}")
        return found

    def require_free(self, me: str) -> None:
        """Wait until it is clear whether another machine has the run: one that was lost says nothing any more.

        Args:
            me: the name under which this machine has it, or had it before a restart.

        Raises:
            RunLocked: it has.
        """
        first = self.owner()
        while first and first["token"] != me and time.time() - first["at"] < ALIVE_S:
            time.sleep(POLL_S)
            now = self.owner()
            if now and now != first:
                way = "wait for it, end it, or begin another with --new"
                raise RunLocked(f"the run is being run on {now['host']}, says {self.url}; {way}")
            first = now

    def claim(self, me: str) -> None:
        """Say that this machine has the run.

        Raises:
            RunLocked: another one said so meanwhile.
        """
        owner = self.owner()
        if owner.get("token", me) != me and time.time() - owner["at"] < ALIVE_S:
            raise RunLocked(f"the run has been taken over by {owner['host']}")
        said = {"token": me, "host": platform.node(), "at": time.time()}
        self.fs.pipe_file(f"{self.root}/{OWNER}", json.dumps(said).encode())

    def release(self, me: str) -> None:
        """Leave the run to whoever comes."""
        try:
            if self.owner().get("token") == me:
                self.remove(OWNER)
        except Exception as error:
            say(f"warning: {self.url}: {reason_of(error)}")


def place_of(url: str, name: str = "") -> Place:
    """A run's place in the storage, or that of all runs.

    Raises:
        ConfigError: no package is installed for such a URL.
    """
    url = url.rstrip("/")
    return Place(url, *opened("/".join([url, RUNS, *([name] if name else [])])))


def name_here(folder: Path) -> str:
    """The name of this very folder of a run, which no copy of it has; empty where there is no folder."""
    file = folder / NAME
    if folder.is_dir() and not file.is_file():
        file.write_text(secrets.token_hex(8), encoding="ascii")
    return file.read_text(encoding="ascii") if file.is_file() else ""


def progress_here(folder: Path) -> Progress:
    """How far the run is on this machine."""
    steps = [checkpoint.step_of(place) for place in checkpoint.whole(folder)]
    return (folder / RESULT).is_file(), max(steps, default=-1.0)


def bring_back(experiment: Experiment) -> None:
    """Bring the newest run of this very experiment here, if the storage has it further than this machine.

    One that is finished there stays, unless this machine has its beginning.

    Raises:
        StorageError: the storage does not answer: a run there could not be gone on with.
        RunLocked: it is being run on another machine.
    """
    url = storage()
    if url is None:
        return
    runs, text = place_of(url), to_yaml(experiment)
    try:
        names = [PurePosixPath(str(name)).name for name in runs.fs.ls(runs.root, detail=False)]
        for name in sorted(names, reverse=True):
            # A run is named by its experiment, the time, and a chance word.
            if name.rsplit("-", 3)[0] != experiment.name or runs.text(f"{name}/{EXPERIMENT}") != text:
                continue
            if (cluster.home() / RUNS / name).is_dir() or not runs.fs.exists(f"{runs.root}/{name}/{RESULT}"):
                bring(name)
            return
    except FileNotFoundError:
        return
    except (StorageError, RunLocked):
        raise
    except Exception as error:
        raise StorageError(f"{STORAGE}: {runs.url} cannot be read: {reason_of(error)}") from error


def bring(name: str) -> None:
    """Bring a run of that name here, if the storage has it further than this machine; what is here is set aside.

    Raises:
        StorageError, RunLocked: as `bring_back`.
    """
    url = storage()
    if url is None:
        return
    folder, place = cluster.home() / RUNS / name, place_of(url, name)
    try:
        names = place.names()
        if not names or (folder.is_dir() and place.progress(names) <= progress_here(folder)):
            return
        place.require_free(name_here(folder))
        partial = folder.with_name(f".{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for file in names:
            if file != OWNER:
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                place.fs.get_file(f"{place.root}/{file}", str(partial / file))
    except RunLocked:
        raise
    except Exception as error:
        raise StorageError(f"{STORAGE}: {name} cannot be brought here: {reason_of(error)}") from error
    if folder.is_dir():
        aside = folder.parent / ASIDE / f"{name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
        say(f"what this machine had of {name} is set aside in {aside}")
    partial.rename(folder)
    say(f"run {name} was brought here from {url}")
