"""Speed of a training that keeps checkpoints against the same training that keeps none before its end.

Command: uv run python -m medray.benchmarks.keeping [SECONDS of each run] [PAIRS] [EVERY]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from medray.benchmarks.loop import FAMILIES, SETTINGS
from medray.benchmarks.ratio import compare, show
from medray.config import load
from medray.pipeline.prepare import prepare
from medray.training.worker import Quiet, work
from medray.training.world import World

WARM_STEPS = 3


class Enough(Exception):
    """The time is over."""


class Clock(Quiet):
    """Counts the steps of so many seconds, the first ones left out."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = 0.0
        self._steps = -WARM_STEPS

    def step(self, done: int, epoch: int) -> None:  # noqa: ARG002
        """Raises Enough when the time is over."""
        self._steps += 1
        if self._steps == 0:
            self._begun = time.perf_counter()
        elif self._steps > 0 and time.perf_counter() - self._begun > self._seconds:
            raise Enough

    @property
    def speed(self) -> float:
        """Steps per second."""
        return self._steps / (time.perf_counter() - self._begun)


def measure(root: Path, every: str, seconds: float) -> float:
    """Steps per second of ResNet-18 on 64x64 phantoms, validation and all."""
    settings = [*FAMILIES["resnet"], *SETTINGS, "train.epochs=100000", f"train.checkpoint_every={every}"]
    experiment = load("phantom", settings)
    clock = Clock(seconds)
    with tempfile.TemporaryDirectory() as folder:
        try:
            work(experiment, prepare(experiment, root), World(), Path(folder), clock)
        except Enough:
            return clock.speed
    raise RuntimeError("the training ended before its time")


def main(seconds: float = 66.0, pairs: int = 2, every: str = "1 min") -> None:
    """Compare, and print the ratio."""
    with tempfile.TemporaryDirectory() as root:
        place = Path(root)
        found = compare(lambda: measure(place, every, seconds), lambda: measure(place, "never", seconds), pairs)
        show(f"keeping/{every}", "steps/s", found)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(float(given[0]) if given else 66.0, int(given[1]) if len(given) > 1 else 2, given[2] if given[2:] else "1 min")
