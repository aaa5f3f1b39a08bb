"""What many cases cost before the first is read: finding them, dealing them to train, val and test, carrying them.

Files without content, in a folder per class and patient: no pixel is read. Figures are per million cases. What a
worker gets is the list of cases as it is sent to each of them.
Command: uv run jobs/benchmark.py many [--quick] [--cases 50000]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TypeVar

from medray.benchmarks import report
from medray.benchmarks.report import Row, Sheet
from medray.datasets import folder
from medray.datasets.scan import scan
from medray.pipeline.split import split
from medray.sections.data import SplitSection

Result = TypeVar("Result")

CASES, FEW = 50_000, 1_000
CLASSES, IMAGES_OF_A_PATIENT = 3, 2
MILLION = 1e6


def draw(root: Path, cases: int) -> None:
    """Files as people have them, but empty."""
    for number in range(cases):
        patient = number // IMAGES_OF_A_PATIENT
        place = root / f"class{patient % CLASSES}" / f"PAT{patient:07d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"IM{number:07d}.png").touch()


def timed(act: Callable[[], Result]) -> tuple[Result, float]:
    """What it gives, and the seconds that it took."""
    started = time.perf_counter()
    return act(), time.perf_counter() - started


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """A row for each of what is done once with all cases."""
    cases = FEW if cfg.quick else cfg.cases
    with tempfile.TemporaryDirectory() as root:
        draw(Path(root), cases)
        dataset, scan_s = timed(lambda: scan(folder.Config(path=Path(root))))
    dealt, split_s = timed(lambda: split(dataset, SplitSection()))
    carried, carry_s = timed(lambda: ForkingPickler.dumps((dataset, dealt)))
    factor, drawn = MILLION / cases, f"of {cases}"
    sheet.add(Row("finding the files", "s per million cases", scan_s * factor, note=drawn))
    sheet.add(Row("dealing them by patient", "s per million cases", split_s * factor, note=drawn))
    sheet.add(Row("packing the list for a worker", "s per million cases", carry_s * factor, note=drawn))
    sheet.add(Row("the list that a worker gets", "MB per million cases", len(carried) * factor / 1e6, note=drawn))


def options(parser: argparse.ArgumentParser) -> None:
    """How many."""
    parser.add_argument("--cases", type=int, default=CASES, help=f"files to draw, by default {CASES}")


if __name__ == "__main__":
    report.run("many", __doc__ or "", measure, sys.argv[1:], options)
