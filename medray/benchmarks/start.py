"""From a command to its first step, and to its first answer: medians over cold starts.

`jobs/train.py` alone and with two Ray workers, by the time of the first step that its journal holds (the phantom's
files and their store are there already, as in every start but the first one ever), beside a bare TorchTrainer (two
workers, the same network over random tensors, its first step in DDP). `jobs/serve.py --bundle` to the first answer of a
PNG, beside a plain FastAPI service and, where it is installed, LitServe around the same model.
Nothing is warmed up but the disk's cache; every process is new, and Ray's cluster too.
Command: uv run jobs/benchmark.py start [--quick] [--only train workers serve]
"""

from __future__ import annotations

import argparse
import http.client
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from medray.benchmarks import commands, peers, report
from medray.benchmarks.commands import Command
from medray.benchmarks.load import KINDS
from medray.benchmarks.processes import Service
from medray.benchmarks.ratio import compare
from medray.benchmarks.report import Row, Sheet, times
from medray.benchmarks.services import Plan, lit, lit_bodies, plain
from medray.tracking import journal

WORKERS = 2
FEW = ("phantom", "dataset.cases=400", "train.epochs=1")


class Starts:
    """Cold starts in one folder, numbered, so that each run has a name of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def train(self, workers: int) -> float:
        """Seconds from `jobs/train.py` to its first step."""
        self._count += 1
        settings = [*FEW, f"scaling={{workers: {workers}, cpus_per_worker: 1}}"]
        with commands.training(self._folder / "home", f"start{self._count}", settings) as (command, file):
            return float(journal.read(file)[0][0]["at/first_step"]) - command.began

    def trainer(self) -> float:
        """Seconds from a bare TorchTrainer's command to its first step."""
        self._count += 1
        out = self._folder / f"trainer{self._count}.txt"
        words = commands.module("bare_trainer", str(WORKERS), str(out))
        with Command(words, out.with_suffix(".log")) as command:
            return float(command.until(out).read_text(encoding="ascii")) - command.began


def answered(service: Callable[[], Service], file: Path) -> float:
    """Seconds from a service's command to its first answer."""
    began = time.monotonic()
    with service() as running:
        parts = urlsplit(running.url)
        with closing(http.client.HTTPConnection(parts.netloc, timeout=120)) as link:
            link.request("POST", "/v1/predict", file.read_bytes(), {"Content-Type": KINDS[file.suffix]})
            answer = link.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"{running.name} answered {answer.status}: {answer.read()[:300]!r}")
            answer.read()
        return time.monotonic() - began


def training(sheet: Sheet, starts: Starts, pairs: int, names: list[str]) -> None:
    """Command to first step."""
    first = starts.train(1)
    if "train" in names:
        sheet.add(Row("jobs/train.py, the first start ever", "s", first, note="draws its images and makes their store"))
        found = sorted(starts.train(1) for _ in range(pairs))
        span = f"{found[0]:.1f} to {found[-1]:.1f} in {pairs} starts"
        sheet.add(Row("jobs/train.py, to the first step", "s", found[len(found) // 2], note=span))
    if "workers" in names:
        ratio = compare(lambda: 1 / starts.train(WORKERS), lambda: 1 / starts.trainer(), pairs, warm=False)
        sheet.add(times(f"jobs/train.py scaling.workers={WORKERS}, to the first step, against TorchTrainer", ratio))


def serving(sheet: Sheet, folder: Path, pairs: int) -> None:
    """Command to first answer."""
    plan = Plan(folder)
    bundle, image = plan.bundle("flat"), plan.images()[0]
    ours = partial(answered, lambda: plan.medray(bundle), image)
    rivals = {"a plain FastAPI service": partial(answered, lambda: plain(folder, bundle), image)}
    if peers.missing("litserve"):
        sheet.add(peers.absent("litserve", "start"))
    else:
        rivals["LitServe"] = partial(answered, lambda: lit(folder, bundle), lit_bodies([image])[0])
    for name, theirs in rivals.items():
        ratio = compare(lambda: 1 / ours(), lambda theirs=theirs: 1 / theirs(), pairs, warm=False)  # type: ignore[misc]
        sheet.add(times(f"jobs/serve.py, to the first answer, against {name}", ratio))


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """Trainings, then services."""
    pairs = 1 if cfg.quick else cfg.pairs
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if {"train", "workers"} & set(cfg.only):
            training(sheet, Starts(folder), pairs, cfg.only)
        if "serve" in cfg.only:
            serving(sheet, folder, pairs)


def options(parser: argparse.ArgumentParser) -> None:
    """Which starts."""
    every = ["train", "workers", "serve"]
    parser.add_argument("--only", nargs="+", choices=every, default=every)


if __name__ == "__main__":
    report.run("start", __doc__ or "", measure, sys.argv[1:], options, pairs=5)
