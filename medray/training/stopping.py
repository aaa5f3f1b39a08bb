"""SIGTERM and Ctrl-C while a training runs: it saves where it stands first, and then they do what they always do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from medray.training.progress import say
from medray.training.watch import STOP

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """The first signal asks the trainings that run to stop; a second one ends them at once."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._asked: int | None = None
        self._folders: set[Path] = set()

    def install(self) -> None:
        """Take the signals; they are the main thread's, elsewhere nothing happens."""
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._hear) for kind in SIGNALS}

    def restore(self) -> None:
        """Give the signals back."""
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

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
            (folder / STOP).unlink(missing_ok=True)

    def deliver(self) -> None:
        """The signal that was heard does what it would have done without us."""
        if self._asked is not None:
            self.restore()
            signal.raise_signal(self._asked)

    def _hear(self, kind: int, frame: FrameType | None) -> None:
        # Once Ray is loaded its own handler runs first and sets an alarm that aborts the process 3 s later.
        signal.alarm(0)
        before: Callable[[int, FrameType | None], Any] | Any = self._before[kind]
        if self._asked is not None or not self._folders:
            if callable(before):
                before(kind, frame)
            return
        self._asked = kind
        for folder in self._folders:
            (folder / STOP).touch()
        say(f"{signal.Signals(kind).name}: saving a checkpoint; a second one ends the training at once")


@contextmanager
def stoppable() -> Iterator[Stopping]:
    """While the block runs, signals let trainings save first; what one did is then made up for."""
    stopping = Stopping()
    stopping.install()
    try:
        yield stopping
    finally:
        stopping.restore()
