"""SIGTERM and Ctrl-C while a training runs: it saves where it stands first, and then they do what they always do."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from medray.training.progress import say
from medray.training.watch import STOP

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """The first signal asks the trainings that run to stop; a second one ends them at once."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._before: dict[int, Any] = {}
        self._asked: int | None = None
        self._folders: set[Path] = set()
        self._late: threading.Timer | None = None

    def install(self) -> None:
        """Take the signals; they are the main thread's, elsewhere nothing happens."""
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._hear) for kind in SIGNALS}

    def restore(self) -> None:
        """Give the signals back."""
        self._cancel()
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _cancel(self) -> None:
        if self._late is not None:
            self._late.cancel()

    @contextmanager
    def guarded(self, folder: Path) -> Iterator[None]:
        """While the block runs, a signal asks the training in `folder` to stop."""
        (folder / STOP).unlink(missing_ok=True)
        self._folders.add(folder)
        try:
            if self._asked is not None:
                (folder / STOP).touch()
            yield
        finally:
            self._folders.discard(folder)
            self._cancel()
            with contextlib.suppress(OSError):
                (folder / STOP).unlink(missing_ok=True)

    def deliver(self) -> None:
        """The signal that was heard does what it would have done without us."""
        if self._asked is not None:
            self.restore()
            signal.raise_signal(self._asked)

    def _hear(self, kind: int, _: FrameType | None) -> None:
        # Once Ray is loaded its own handler runs first and sets an alarm that aborts the process 3 s later.
        signal.alarm(0)
        if self._asked is not None or not self._folders:
            self.restore()
            signal.raise_signal(kind)
            return
        self._asked = kind
        self._late = threading.Timer(self._grace_s, os.kill, (os.getpid(), kind))
        self._late.daemon = True
        self._late.start()
        for folder in self._folders:
            (folder / STOP).touch()
        say(f"{signal.Signals(kind).name}: saving a checkpoint; a second one ends the training at once")


@contextmanager
def stoppable(grace_s: float) -> Iterator[Stopping]:
    """While the block runs, signals let trainings save first; what one did is then made up for.

    Args:
        grace_s: a training that has not stopped by then (its workers may never have started) is ended as by a second
            signal.
    """
    stopping = Stopping(grace_s)
    stopping.install()
    try:
        yield stopping
    finally:
        stopping.restore()
