"""A run's folder copied to $MEDRAY_STORAGE while it is run, a URL that outlives the cluster, and brought back.

A thread follows the folder and nobody waits for it. A checkpoint's SHA256SUMS goes last, and first when it is deleted,
so that nothing there is whole that is not. The same command on another machine goes on from the copy.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from medray import cluster
from medray.config import ConfigError, Experiment, to_yaml
from medray.remote import marks, opened, reason_of
from medray.training.checkpoint import CHECKPOINTS, SUMS
from medray.training.folder import EXPERIMENT, LOCK, RESULT, RUNS, Interrupted
from medray.training.progress import say
from medray.training.watch import STOP

STORAGE = "MEDRAY_STORAGE"
EVERY_S = 5.0
PATIENCE_S = 300.0
"""How long the end of a run waits for a storage that does not answer."""
PAUSE_S = 2.0
LEFT_OUT = frozenset({LOCK, STOP, "train", "ray"})
"""Of this machine alone, and Ray's own folders in a run's and a study's."""


def storage() -> str | None:
    """Where runs are copied to, if anywhere."""
    return os.environ.get(STORAGE) or None


@contextmanager
def copied(folder: Path) -> Iterator[None]:
    """While the block runs the run's folder is copied, if there is a storage; at its end all of it is.

    Raises:
        ConfigError: no package is installed for the storage's URL.
    """
    url = storage()
    if url is None:
        yield
        return
    copy = Copy(folder, url)
    copy.start()
    stopped = False
    try:
        yield
    except BaseException as error:
        stopped = not isinstance(error, Exception) or isinstance(error, Interrupted)
        raise
    finally:
        copy.finish(0.0 if stopped else PATIENCE_S)


def bring_back(experiment: Experiment) -> None:
    """Bring the newest unfinished run of this very experiment here, if the storage has one that this machine lacks."""
    url = storage()
    if url is None:
        return
    fs, root = opened(f"{url.rstrip('/')}/{RUNS}")
    text = to_yaml(experiment)
    for name in sorted(_names(fs, root), reverse=True):
        # A run is named by its experiment, the time, and a chance word.
        if name.rsplit("-", 3)[0] != experiment.name or _text(fs, f"{root}/{name}/{EXPERIMENT}") != text:
            continue
        if not (cluster.home() / RUNS / name).is_dir() and not fs.exists(f"{root}/{name}/{RESULT}"):
            bring(name)
        return


def bring(name: str) -> bool:
    """Bring a run of that name here, unless it is; whether it is here now."""
    folder = cluster.home() / RUNS / name
    url = storage()
    if folder.is_dir() or url is None:
        return folder.is_dir()
    fs, root = opened(f"{url.rstrip('/')}/{RUNS}/{name}")
    partial = folder.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        files = _found(fs, root)
        for file in files:
            target = partial / PurePosixPath(file).relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(file, str(target))
    except Exception as error:
        raise ConfigError([f"{STORAGE}: {name} cannot be brought here: {reason_of(error)}"]) from error
    if not files:
        return False
    partial.rename(folder)
    say(f"run {name} was brought here from {url}")
    return True


class Copy:
    """Brings the storage to where a run's folder is."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url.rstrip("/")
        self._fs, self._root = opened(f"{self._url}/{RUNS}/{folder.name}")
        self._sent: dict[str, tuple[int, int]] = {}
        """Size and time of what is there."""
        self._looked = False
        self._complained = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="offsite", daemon=True)

    def start(self) -> None:
        """Begin to follow the folder."""
        self._thread.start()

    def finish(self, patience_s: float) -> None:
        """Copy what is left; what cannot be stays here, which is said."""
        self._over.set()
        self._thread.join()
        begun = time.monotonic()
        while not self._attempt():
            if time.monotonic() - begun > patience_s:
                say(f"{self._url} does not have all of {self._folder.name}; {self._folder} has it")
                return
            time.sleep(PAUSE_S)

    def _follow(self) -> None:
        while not self._over.wait(EVERY_S):
            self._attempt()

    def _attempt(self) -> bool:
        try:
            self.sync()
        except Exception as error:
            if not self._complained:
                say(f"warning: {self._url} cannot be written: {reason_of(error)}; the run goes on, its folder has all")
            self._complained = True
            return False
        if self._complained:
            say(f"{self._url} can be written again")
        self._complained = False
        return True

    def sync(self) -> None:
        """Send what is new, sums last; then delete what is gone, sums first."""
        if not self._looked:
            self._look()
        now = self._files()
        new = [name for name, state in now.items() if self._sent.get(name) != state]
        for name in sorted(new, key=_is_sums):
            try:
                self._fs.put_file(str(self._folder / name), f"{self._root}/{name}")
            except FileNotFoundError:
                if (self._folder / name).exists():
                    raise
                continue  # pruned since
            self._sent[name] = now[name]
        for name in sorted(self._sent.keys() - now.keys(), key=_is_sums, reverse=True):
            if self._fs.exists(f"{self._root}/{name}"):
                self._fs.rm_file(f"{self._root}/{name}")
            del self._sent[name]

    def _files(self) -> dict[str, tuple[int, int]]:
        """What is to be there: whole files, of checkpoints only those that are whole."""
        found = {}
        for parent, folders, files in os.walk(self._folder):
            folders[:] = [
                name for name in folders if name not in LEFT_OUT and not name.endswith((".partial", ".corrupt"))
            ]
            place = Path(parent)
            if place.parent.name == CHECKPOINTS and SUMS not in files:
                continue
            for name in files:
                if name not in LEFT_OUT and not name.endswith(".partial"):
                    state = _state(place / name)
                    if state is not None:
                        found[(place / name).relative_to(self._folder).as_posix()] = state
        return found

    def _look(self) -> None:
        """Find what is there from a start before: checkpoints with the same sums; all else is sent again."""
        there = {name.removeprefix(f"{self._root}/") for name in _found(self._fs, self._root)}
        now = self._files()
        same = {
            str(PurePosixPath(name).parent)
            for name in there & now.keys()
            if _is_sums(name) and _text(self._fs, f"{self._root}/{name}") == (self._folder / name).read_text("ascii")
        }
        for name in there:
            known = str(PurePosixPath(name).parent) in same
            # What is not known to be the same is sent again, or deleted if it is not here.
            self._sent[name] = now[name] if known and name in now else (-1, -1)
        self._looked = True


def _is_sums(name: str) -> bool:
    return PurePosixPath(name).name == SUMS


def _state(file: Path) -> tuple[int, int] | None:
    """Size and time of change; None if it is gone by now."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def _found(fs: Any, root: str) -> list[str]:
    """Every file below `root`."""
    try:
        return sorted(marks(fs.find(root, detail=True)))
    except FileNotFoundError:
        return []


def _names(fs: Any, root: str) -> list[str]:
    """Of the runs that the storage has."""
    try:
        return [PurePosixPath(str(name)).name for name in fs.ls(root, detail=False)]
    except FileNotFoundError:
        return []
    except Exception as error:
        raise ConfigError([f"{STORAGE}: {root} cannot be read: {reason_of(error)}"]) from error


def _text(fs: Any, name: str) -> str:
    """A file's text; empty if there is none."""
    try:
        return str(fs.cat_file(name).decode("utf-8"))
    except FileNotFoundError:
        return ""
