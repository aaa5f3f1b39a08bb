"""What can happen to the processes of a training: each strikes one that runs, and it has to come back."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import Callable

from medray.benchmarks.victim import NotRecovered, Training

HANG = "scaling.hang_minutes=0.25"
"""For `freeze`."""
_CHANCE = random.Random(0)  # noqa: S311  # the same moments each time


def kill_worker(run: Training) -> None:
    """SIGKILL to one of the workers."""
    os.kill(_CHANCE.choice(run.workers()), signal.SIGKILL)


def kill_driver(run: Training) -> int:
    """SIGKILL to the command, and the same command again at once."""
    run.process.kill()
    return _again(run)


def terminate(run: Training) -> int:
    """SIGTERM to the command, as a batch system does it, and the same command again."""
    run.process.terminate()
    return _again(run)


def _again(run: Training) -> int:
    code = run.process.wait(60)
    run.codes.append(code)
    run.start()
    return code


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


def repeatedly(run: Training, strike: Callable[[Training], None], pause_s: tuple[float, float]) -> Callable[[], None]:
    """One more strike, some seconds after the training has moved."""

    def once() -> None:
        time.sleep(_CHANCE.uniform(*pause_s))
        with contextlib.suppress(IndexError):
            strike(run)
        if run.process.poll() is not None:
            raise NotRecovered(f"{run.name} was over before the next fault")

    return once
