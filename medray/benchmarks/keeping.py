"""Speed of a training that keeps checkpoints against the same training that keeps none before its end.

Command: uv run jobs/benchmark.py keeping [--quick] [--seconds S] [--every RHYTHM]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from medray.benchmarks import report
from medray.benchmarks.loop import CASES, FAMILIES, FEW, SETTINGS, STILL
from medray.benchmarks.ratio import compare
from medray.benchmarks.report import Sheet, speeds
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


def pace(root: Path, every: str, seconds: float, quick: bool = False) -> float:
    """Steps per second of ResNet-18 on 64x64 phantoms (quick: of the small CNN), validation and all."""
    settings = [*FAMILIES["plain" if quick else "resnet"], *SETTINGS, FEW if quick else CASES, STILL]
    settings += ["train.epochs=100000", f"train.checkpoint_every={every}"]
    experiment = load("phantom", settings)
    clock = Clock(seconds)
    with tempfile.TemporaryDirectory() as folder:
        try:
            work(experiment, prepare(experiment, root), World(), Path(folder), clock)
        except Enough:
            return clock.speed
    raise RuntimeError("the training ended before its time")


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """One rhythm against none."""
    every, seconds = ("2 steps", 2.0) if cfg.quick else (cfg.every, cfg.seconds)
    with tempfile.TemporaryDirectory() as root:

        def run(rhythm: str) -> float:
            return pace(Path(root), rhythm, seconds, cfg.quick)

        found = compare(lambda: run(every), lambda: run("never"), cfg.pairs)
    sheet.add(speeds(f"a checkpoint every {every}, against none", "steps/s", found))


def options(parser: argparse.ArgumentParser) -> None:
    """How long, and how often."""
    parser.add_argument("--seconds", type=float, default=66.0, help="of each run")
    parser.add_argument("--every", default="1 min", help="as train.checkpoint_every has it")


if __name__ == "__main__":
    report.run("keeping", __doc__ or "", measure, sys.argv[1:], options, pairs=2)
