"""A search by `medray tune` against the same trainings by hand, one command after the other.

Trials of the packaged phantom, one at a time, none stopped early. The search comes first, and says with which settings
its trials ran; `jobs/train.py` is then started once for each of them. Both draw, store and register in homes of their
own; the phantom's files are drawn before. What the search saves is mostly the start of each command.
Command: uv run jobs/benchmark.py tune [--quick] [--trials N] [--epochs N] [--concurrent N]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medray.benchmarks import commands, report
from medray.benchmarks.commands import Command
from medray.benchmarks.ratio import ratio_of
from medray.benchmarks.report import Sheet, times
from medray.datasets import phantom
from medray.tuning.trials import RECORD, TRIALS


@dataclass(frozen=True, slots=True)
class Plan:
    """What is searched, and where."""

    folder: Path
    cases: int
    epochs: int
    trials: int
    concurrent: int

    @property
    def settings(self) -> list[str]:
        """Of every training."""
        few = ["split.val=0.25", f"dataset.cases={self.cases}"]
        return ["phantom", *few, f"train.epochs={self.epochs}"]

    def home(self, name: str) -> Path:
        """A home that has the phantom's files and nothing else."""
        home = self.folder / name
        shutil.copytree(self.folder / "drawn" / "phantoms", home / "phantoms")
        return home

    def draw(self) -> None:
        """The phantom's files, once."""
        words = commands.job("train", *self.settings, "train.epochs=1")
        with Command(words, self.folder / "draw.log", {"MEDRAY_HOME": str(self.folder / "drawn")}) as command:
            command.end()

    def search(self, turn: int) -> tuple[float, list[dict[str, Any]]]:
        """Seconds of the search, and the settings of its trials."""
        home = self.home(f"search-{turn}")
        tune = f"tune.trials={self.trials} tune.concurrent={self.concurrent} tune.seed={turn}"
        words = commands.job("tune", *self.settings, *tune.split(), "tune.scheduler=none", "tune.baseline=false")
        seconds = _seconds(words, home, "search")
        records = sorted((home / "runs").glob(f"*/{TRIALS}/*/{RECORD}"))
        return seconds, [json.loads(file.read_text(encoding="utf-8"))["settings"] for file in records]

    def by_hand(self, turn: int, trials: list[dict[str, Any]]) -> float:
        """Seconds of one command per trial."""
        home = self.home(f"hand-{turn}")
        spent = 0.0
        for number, settings in enumerate(trials):
            words = commands.job("train", *self.settings, *_words(settings), "--new")
            spent += _seconds(words, home, f"train-{number}")
        return spent


def _words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as a command line has them."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _seconds(words: list[str], home: Path, name: str) -> float:
    began = time.monotonic()
    with Command(words, home / f"{name}.log", {"MEDRAY_HOME": str(home)}) as command:
        command.end()
        return time.monotonic() - began


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """Search and trainings in turn."""
    cases, epochs, trials = (120, 1, 2) if cfg.quick else (phantom.Config().cases, cfg.epochs, cfg.trials)
    turns = 1 if cfg.quick else cfg.pairs
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        plan = Plan(Path(name), cases, epochs, trials, cfg.concurrent)
        plan.draw()
        found = []
        for turn in range(turns):
            search, settings = plan.search(turn)
            sheet.say(f"round {turn + 1} of {turns}: {len(settings)} trials in {search:.0f} s")
            hand = plan.by_hand(turn, settings)
            sheet.say(f"round {turn + 1} of {turns}: the same trainings by hand in {hand:.0f} s")
            found.append((1 / search, 1 / hand))
        ratio = ratio_of(found)
        note = f"{1 / ratio.ratio:.2f} of the time by hand; {cfg.concurrent} trials at a time"
        sheet.add(times(f"{trials} trials of {epochs} epochs, against the same trainings by hand", ratio, note))


def options(parser: argparse.ArgumentParser) -> None:
    """How much is searched."""
    for name, default in (("trials", 8), ("epochs", 22), ("concurrent", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)


if __name__ == "__main__":
    report.run("tune", __doc__ or "", measure, sys.argv[1:], options, pairs=1)
