"""What watches over a worker: who wants it to stop, when a checkpoint is due, whether it still moves."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medray.sections.training import Unit
from medray.training.learner import Learner
from medray.training.loop import Wish
from medray.training.notes import note

STOP = "stop"
"""A file in the run's folder: whoever makes it asks all workers to save where they stand, and to stop."""
STACKS = "stacks"
LOOK_S = 0.2
LEAVE_S = 10.0
HUNG = 75
"""Exit code of a worker that stood still."""


def is_asked(folder: Path) -> bool:
    """Whether someone asked the training in `folder` to stop; not while its disk is away."""
    return os.path.exists(folder / STOP)  # noqa: PTH110  (Path.exists raises where a disk does not answer)


class Watch:
    """Asked by the loop after every step, which is also how it knows that the worker moves."""

    def __init__(
        self, folder: Path, learner: Learner, rhythm: tuple[float, Unit] | None, busy: Callable[[], bool]
    ) -> None:
        self._stop = folder / STOP
        self._learner = learner
        self._rhythm = rhythm
        self._busy = busy
        self._looked = 0.0
        self._stopping = False
        self.moved = time.monotonic()
        self.saved()

    def saved(self) -> None:
        """A checkpoint is being taken here."""
        self._saved_at = time.monotonic()
        self._saved_step, self._saved_epoch = self._learner.step, self._learner.epoch

    def __call__(self) -> Wish:
        """What this worker wants of all, before the step at hand is done."""
        self.moved = now = time.monotonic()
        if now - self._looked > LOOK_S:
            self._looked, self._stopping = now, is_asked(self._stop.parent)
        return Wish(self._stopping, self._due_in_epoch(now), self._busy())

    def _due_in_epoch(self, now: float) -> bool:
        match self._rhythm:
            case (seconds, "s"):
                # One clock for all workers.
                return self._learner.world.rank == 0 and now - self._saved_at >= seconds
            case (steps, "step"):
                return self._learner.step + 1 - self._saved_step >= steps
        return False

    def due_after_epoch(self) -> bool:
        """Whether the epoch that has just ended is one to keep; the same on every worker."""
        match self._rhythm:
            case (epochs, "epoch"):
                return self._learner.epoch - self._saved_epoch >= epochs and not self._learner.world.any(self._busy())
        return False


@contextmanager
def awake(folder: Path, rank: int, limit_s: float, moved: Callable[[], float]) -> Iterator[None]:
    """While the block runs, a worker that has not moved for `limit_s` writes down its stacks and ends its process.

    A worker that waits for another one in a collective cannot be woken otherwise; whoever started it starts it again.
    """
    over = threading.Event()

    def look() -> None:
        while not over.wait(min(5.0, limit_s / 10)):
            still = time.monotonic() - moved()
            if still > limit_s:
                _end_here(folder, rank, still)

    threading.Thread(target=look, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _end_here(folder: Path, rank: int, still: float) -> None:
    """Write down where all threads stand, and leave without waiting for any, or for a disk that hangs."""
    late = threading.Timer(LEAVE_S, os._exit, (HUNG,))
    late.daemon = True
    late.start()
    file = folder / STACKS / f"{time.strftime('%Y%m%dT%H%M%S')}-rank{rank}.txt"
    try:
        file.parent.mkdir(exist_ok=True)
        with file.open("w", encoding="utf-8") as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
        note(folder, f"worker {rank} has not moved for {still:.0f} s and is ended; where it stood: {file}")
    finally:
        # A training alone in its process has nobody who reads its notes by then.
        sys.stderr.write(f"worker {rank} has not moved for {still:.0f} s; the same command goes on; see {file}\n")
        sys.stderr.flush()
        os._exit(HUNG)
