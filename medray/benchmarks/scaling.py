"""Training on 1, 2, 4, ... workers: images per second and efficiency, next to plain torchrun.

ResNet-18 on 64x64 phantoms, in bf16 where the CPU has it, on all sides. Weak scaling: each worker has 64 cases of a
batch and as many threads (cores / most workers), so that efficiency is the rate of N workers over N times that of one.
Three ways, measured in turn, the order reversed from round to round:
medray: `jobs/train.py scaling.workers=N`: Ray Train from 2 workers on, this command's own process with one;
medray under torchrun: the same loop without Ray; torchrun: DistributedDataParallel around the same network over tensors
in memory, nothing augmented, checked or logged. A rate is the median of the epochs after the first one, without their
validation.
Command: uv run jobs/benchmark.py scaling [--quick] [--workers 1 2 4] [--family resnet] [--steps N]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from medray.benchmarks import commands, report
from medray.benchmarks.commands import Command
from medray.benchmarks.loop import BATCH, FAMILIES, STILL
from medray.benchmarks.ratio import Ratio, ratio_of
from medray.benchmarks.report import Cells, Sheet, speeds
from medray.tracking import journal

MEDRAY, INSIDE, PLAIN = "medray", "medray under torchrun", "torchrun"
GOAL_POINTS = 3
"""So close to torchrun's efficiency medray wants to be with two workers."""
Rates = dict[tuple[str, int], list[float]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What every run has in common."""

    home: Path
    family: str
    threads: int
    steps: int
    epochs: int

    def settings(self, workers: int) -> list[str]:
        """Of the experiment; the whole batch grows with the workers."""
        return [
            "phantom",
            *FAMILIES[self.family],
            f"dataset.cases={max(400, 2 * BATCH * workers)}",
            "split.test=0",
            "split.val=0.1",
            STILL,
            f"train={{epochs: {self.epochs}, steps_per_epoch: {self.steps}, batch_size: {BATCH * workers}}}",
            "train.checkpoint_every=never",
            f"scaling={{workers: {workers}, cpus_per_worker: {self.threads}}}",
        ]

    def medray(self, workers: int, turn: int) -> float:
        """Images per second by its own command."""
        with commands.training(self.home, f"w{workers}-{turn}", self.settings(workers)) as (command, file):
            command.end()
            return steady([row["samples_per_s"] for row in journal.epochs(file)])

    def torchrun(self, way: str, workers: int, turn: int) -> float:
        """Images per second of the plain loop, or of medray's, under torchrun."""
        out = self.home / f"{way.replace(' ', '-')}-{workers}-{turn}.json"
        loop = ["--medray"] if way == INSIDE else []
        sizes = [f"--threads={self.threads}", f"--epochs={self.epochs}", f"--out={out}", *loop]
        words = commands.torchrun(workers, "scaling_worker", *sizes, *self.settings(workers))
        variables = {"MEDRAY_HOME": str(self.home), "OMP_NUM_THREADS": str(self.threads)}
        with Command(words, out.with_suffix(".log"), variables) as command:
            command.end()
            return steady(commands.result(out.read_text(encoding="utf-8"))["samples_per_s"])


def steady(rates: Sequence[float]) -> float:
    """The median of the epochs after the first, which warms up."""
    return float(median(rates[1:] or rates))


def rounds(plan: Plan, workers: Sequence[int], turns: int, sheet: Sheet) -> Rates:
    """Rates of each way with each number of workers, round by round."""
    ways: dict[str, Callable[[int, int], float]] = {
        MEDRAY: plan.medray,
        INSIDE: lambda count, turn: plan.torchrun(INSIDE, count, turn),
        PLAIN: lambda count, turn: plan.torchrun(PLAIN, count, turn),
    }
    cells = [(name, count) for count in workers for name in ways]
    found: Rates = {cell: [] for cell in cells}
    for turn in range(turns):
        for name, count in cells[:: -1 if turn % 2 else 1]:
            found[name, count].append(ways[name](count, turn))
            sheet.say(f"round {turn + 1} of {turns}, {name}, {count} workers: {found[name, count][-1]:.1f} images/s")
    return found


def efficiency(rates: Rates, way: str, count: int) -> list[float]:
    """Round by round; 1 is perfect."""
    return [many / count / one for many, one in zip(rates[way, count], rates[way, 1], strict=True)]


def tell(sheet: Sheet, rates: Rates, workers: Sequence[int]) -> None:
    """A row per number of workers and rival, and the table of efficiencies."""
    for count in workers:
        for rival in (PLAIN, INSIDE):
            pairs = list(zip(rates[MEDRAY, count], rates[rival, count], strict=True))
            sheet.add(speeds(f"{count} workers, against {rival}", "images/s", ratio_of(pairs)))
    table: list[Cells] = []
    for way in (MEDRAY, INSIDE, PLAIN):
        for count in workers:
            cells = {"": way, "workers": count, "images/s": median(rates[way, count])}
            table.append({**cells, "efficiency": median(efficiency(rates, way, count))})
    sheet.table("Efficiency", table)
    for count in workers[1:]:
        ours, theirs = (efficiency(rates, way, count) for way in (MEDRAY, PLAIN))
        found: Ratio = ratio_of(list(zip(ours, theirs, strict=True)))
        points = 100 * (median(ours) - median(theirs))
        sheet.add(speeds(f"{count} workers, efficiency against torchrun", "", found, f"{points:+.1f} points"))


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """All numbers of workers, in rounds."""
    places = torch.cuda.device_count() or os.cpu_count() or 1
    powers = [2**power for power in range(places.bit_length()) if 2**power <= places]
    workers = sorted({1, *(cfg.workers or powers)})
    threads = max(1, (os.cpu_count() or 1) // workers[-1])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        steps, epochs = (2, 2) if cfg.quick else (cfg.steps, 4)
        plan = Plan(Path(name), "plain" if cfg.quick else cfg.family, threads, steps, epochs)
        sheet.say(f"{threads} threads for each of {workers} workers")
        tell(sheet, rounds(plan, workers, cfg.pairs, sheet), workers)


def options(parser: argparse.ArgumentParser) -> None:
    """How many workers, which network, how many steps."""
    parser.add_argument("--workers", type=int, nargs="+", help="by default 1, 2, 4, ... up to the GPUs or cores")
    parser.add_argument("--family", choices=list(FAMILIES), default="resnet")
    parser.add_argument("--steps", type=int, default=20, help="of an epoch")


if __name__ == "__main__":
    report.run("scaling", __doc__ or "", measure, sys.argv[1:], options, pairs=2)
