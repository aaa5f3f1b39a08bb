"""What a training loses where its workers, nodes, disks, memory and MLflow fail: real runs, hurt on this machine.

Runs of the packaged phantom. Steps that are done again are counted by the pace of the last epoch; figures in MLflow
from its own tables; weights, moments and scores of the end are compared to the last bit with an unbroken run's.
Command: uv run jobs/benchmark.py faults [--quick] [--kills N] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from medray.benchmarks import disk_faults, process_faults, report
from medray.benchmarks.fault_rows import Bench, Row
from medray.benchmarks.report import Cells, Sheet
from medray.benchmarks.victim import NotRecovered

LOST = "NOT RECOVERED"
FAULTS: Mapping[str, Callable[[Bench], Row]] = {**process_faults.FAULTS, **disk_faults.FAULTS}


def cells(row: Row) -> Cells:
    """A row as a line of the table."""
    return {
        "fault": row.fault,
        "how": row.how,
        "exit codes": _several(row.codes),
        "steps done again": _several(row.repeated),
        "epochs lost / doubled in MLflow": "" if row.lost is None else f"{row.lost} / {row.doubled}",
        "same to the last bit": {None: "", True: "yes", False: "NO"}[row.same],
        "back after, s": _several(row.seconds),
        "found": row.found,
    }


def _several(numbers: Sequence[float]) -> str:
    """All of a few numbers; of many their range."""
    words = [f"{number:.4g}" for number in numbers]
    return ", ".join(words) if len(words) <= 4 else f"{len(words)} times {min(numbers):.4g} to {max(numbers):.4g}"


def rows(bench: Bench, names: Sequence[str], sheet: Sheet) -> list[Row]:
    """A row per fault, or what went wrong."""
    found = []
    for name in names:
        began = time.monotonic()
        try:
            found.append(FAULTS[name](bench))
        except NotRecovered as error:
            found.append(Row(name, FAULTS[name].__doc__ or "", found=f"{LOST}: {' '.join(str(error).split())}"))
        sheet.say(f"{name}, {time.monotonic() - began:.0f} s: {found[-1]}")
    return found


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """All faults, or those that are asked for."""
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), kills=3 if cfg.quick else cfg.kills, outage_s=5.0 if cfg.quick else 30.0)
        found = rows(bench, cfg.only, sheet)
    sheet.table("Faults", [cells(row) for row in found])


def options(parser: argparse.ArgumentParser) -> None:
    """Which faults."""
    parser.add_argument("--kills", type=int, default=20, help="of workers in one run; 3 with --quick")
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS))


def main(arguments: Sequence[str]) -> int:
    """1 where a training did not come back."""
    found = report.run("faults", __doc__ or "", measure, arguments, options)
    return int(any(str(row["found"]).startswith(LOST) for row in found.tables["Faults"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
