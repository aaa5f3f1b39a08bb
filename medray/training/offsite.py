"""A run's folder copied to $MEDRAY_STORAGE while it is run, a place that outlives the cluster, and brought back.

A thread follows the folder and nobody waits for it. A checkpoint's SHA256SUMS goes last, and first when it is deleted,
so that nothing there is whole that is not. The same command on another machine goes on from the copy, unless it is
being run elsewhere: `owner.json` there says by whom, and is written again as long as that lasts.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from medray.remote import reason_of
from medray.training.checkpoint import CHECKPOINTS, SUMS
from medray.training.folder import EXPERIMENT, LOCK, Interrupted, RunLocked
from medray.training.offsite_store import NAME, OWNER, Place, name_here, place_of, progress_here, storage
from medray.training.progress import say
from medray.training.watch import STOP

EVERY_S = 5.0
PATIENCE_S = 300.0
"""How long the end of a run waits for a storage that does not answer."""
PAUSE_S = 2.0
CLAIM_S = 15.0
"""How often this machine says that it has the run."""
LEFT_OUT = frozenset({LOCK, STOP, NAME, OWNER, "train", "tune"})
"""Of this machine alone, and Ray's own folders in a run's and a study's."""


@contextmanager
def copied(folder: Path) -> Iterator[None]:
    """While the block runs the run's folder is copied, if there is a storage; at its end all of it is.

    Raises:
        ConfigError: no package is installed for the storage's URL.
        RunLocked: the run is being run on another machine.
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


class Copy:
    """Brings the storage to where a run's folder is."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._place: Place = place_of(url, folder.name)
        self._me = name_here(folder)
        self._sent: dict[str, tuple[int, int]] = {}
        """Size and time of what is there."""
        self._looked = False
        self._claimed = -math.inf
        self._complained = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="offsite", daemon=True)

    def start(self) -> None:
        """Begin to follow the folder.

        Raises:
            RunLocked: another machine has the run.
        """
        try:
            self._place.require_free(self._me)
        except RunLocked:
            raise
        except Exception as error:
            self._complain(error)  # it may answer later
        self._thread.start()

    def finish(self, patience_s: float) -> None:
        """Copy what is left; what cannot be stays here, which is said."""
        self._over.set()
        self._thread.join()
        begun = time.monotonic()
        while not self._attempt():
            if time.monotonic() - begun > patience_s:
                say(f"{self._place.url} does not have all of {self._folder.name}; {self._folder} has it")
                return
            time.sleep(PAUSE_S)
        self._place.release(self._me)

    def _follow(self) -> None:
        while not self._over.wait(EVERY_S):
            self._attempt()

    def _attempt(self) -> bool:
        try:
            self.sync()
        except Exception as error:
            self._complain(error)
            return False
        if self._complained:
            say(f"{self._place.url} can be written again")
        self._complained = False
        return True

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            say(f"warning: {self._place.url} cannot be written: {reason_of(error)}; the run's folder has all")
        self._complained = True

    def sync(self) -> None:
        """Send what is new, sums last; then delete what is gone, sums first.

        Raises:
            OSError: the folder cannot be listed whole; nothing is deleted then.
            RunLocked: another machine has the run, or has brought it further.
        """
        now = self._files()
        self._claim()
        if not self._looked:
            self._look(now)
        new = [name for name, state in now.items() if self._sent.get(name) != state]
        for name in sorted(new, key=_is_sums):
            try:
                self._place.put(self._folder / name, name)
            except FileNotFoundError:
                if (self._folder / name).exists():
                    raise
                continue  # pruned since
            self._sent[name] = now[name]
            self._claim()
        for name in sorted(self._sent.keys() - now.keys(), key=_is_sums, reverse=True):
            self._place.remove(name)
            del self._sent[name]

    def _claim(self) -> None:
        if time.monotonic() - self._claimed > CLAIM_S:
            self._place.claim(self._me)
            self._claimed = time.monotonic()

    def _files(self) -> dict[str, tuple[int, int]]:
        """What is to be there: whole files, of checkpoints only those that are whole."""
        found = {}
        for parent, folders, files in os.walk(self._folder, onerror=_raise):
            folders[:] = [n for n in folders if n not in LEFT_OUT and not n.endswith((".partial", ".corrupt"))]
            place = Path(parent)
            if place.parent.name == CHECKPOINTS and SUMS not in files:
                continue
            for name in files:
                if name not in LEFT_OUT and not name.endswith(".partial"):
                    state = _state(place / name)
                    if state is not None:
                        found[(place / name).relative_to(self._folder).as_posix()] = state
        if EXPERIMENT not in found:
            raise FileNotFoundError(f"{self._folder} is not there")
        return found

    def _look(self, now: dict[str, tuple[int, int]]) -> None:
        """Find what is there from a start before: checkpoints with the same sums; all else is sent again."""
        there = set(self._place.names())
        if self._place.progress(there) > progress_here(self._folder):
            raise RunLocked(f"{self._place.url} has {self._folder.name} further than this machine; run it with --new")
        same = {
            str(PurePosixPath(name).parent)
            for name in there & now.keys()
            if _is_sums(name) and self._place.text(name) == (self._folder / name).read_text("ascii")
        }
        for name in there - {OWNER}:
            known = str(PurePosixPath(name).parent) in same
            # What is not known to be the same is sent again, or deleted if it is not here.
            self._sent[name] = now[name] if known and name in now else (-1, -1)
        self._looked = True


def _raise(error: OSError) -> None:
    raise error


def _is_sums(name: str) -> bool:
    return PurePosixPath(name).name == SUMS


def _state(file: Path) -> tuple[int, int] | None:
    """Size and time of change; None if it is gone by now."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns
