"""What can happen to the processes of a training: each strikes one that runs, and it has to come back."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable

from medray.benchmarks.victim import Training

HANG = "scaling.hang_minutes=0.25"
"""For `freeze`."""
_CHANCE = random.Random(0)  # noqa: S311  # the same moments each time


def kill_worker(run: Training) -> None:
    """SIGKILL to one of the workers."""
    os.kill(_CHANCE.choice(run.workers()), signal.SIGKILL)


def kill_driver(run: Training) -> int:
    """SIGKILL to the command, and the same command again at once."""
    run.process.kill()
    run.end(-signal.SIGKILL)
    run.start()
    return -signal.SIGKILL


def freeze(run: Training) -> None:
    """SIGSTOP to one of the workers: it is there, and does nothing."""
    os.kill(_CHANCE.choice(run.workers()), signal.SIGSTOP)


def seconds_to_stop(run: Training) -> float:
    """SIGTERM to the command; seconds until it has ended, all being saved.

    Raises:
        NotRecovered: it ended otherwise than with 75.
    """
    struck = time.monotonic()
    run.process.terminate()
    run.end(75, 60)
    return time.monotonic() - struck


def starve(run: Training) -> None:
    """Leave the command no memory beyond what it has."""
    resource.prlimit(run.process.pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))


def later(strike: Callable[[Training], None], pause_s: tuple[float, float]) -> Callable[[Training], None]:
    """The same fault, some seconds later."""

    def strike_later(run: Training) -> None:
        time.sleep(_CHANCE.uniform(*pause_s))
        strike(run)

    return strike_later
