"""What a training loses where its workers, nodes, disks, memory and MLflow fail: real runs, hurt on this machine.

Runs of the packaged phantom. Steps that are done again are counted by the pace of the last epoch; figures in MLflow
from its own tables; weights, moments and scores of the end are compared to the last bit with an unbroken run's.
Command: uv run jobs/benchmark.py faults [--quick] [--kills N] [--only NAME ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from medray.benchmarks import disk_faults, process_faults
from medray.benchmarks.fault_rows import Bench, Row
from medray.benchmarks.victim import NotRecovered

FAULTS: Mapping[str, Callable[[Bench], Row]] = {**process_faults.FAULTS, **disk_faults.FAULTS}


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    heads = (
        "fault", "how", "exit codes", "steps done again", "epochs lost / doubled in MLflow",
        "same to the last bit", "back after, s", "found",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        tracked = "" if row.lost is None else f"{row.lost} / {row.doubled}"
        same = {None: "", True: "yes", False: "NO"}[row.same]
        cells = (row.fault, row.how, _several(row.codes), _several(row.repeated), tracked, same)
        lines.append(f"| {' | '.join((*cells, _several(row.seconds), row.found))} |")
    return "\n".join(lines) + "\n"


def _several(numbers: Sequence[float]) -> str:
    """All of a few numbers; of many their range."""
    words = [f"{number:.4g}" for number in numbers]
    return ", ".join(words) if len(words) <= 4 else f"{len(words)} times {min(numbers):.4g} to {max(numbers):.4g}"


def measure(bench: Bench, names: Sequence[str]) -> list[Row]:
    """A row per fault, or what went wrong."""
    rows = []
    for name in names:
        began = time.monotonic()
        try:
            rows.append(FAULTS[name](bench))
        except NotRecovered as error:
            rows.append(Row(name, FAULTS[name].__doc__ or "", found=f"NOT RECOVERED: {' '.join(str(error).split())}"))
        sys.stderr.write(f"{name}, {time.monotonic() - began:.0f} s: {rows[-1]}\n")
    return rows


def _leave(*_: object) -> None:
    """End in good order, trainings and all; another signal does not disturb it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, and write it as JSON; 1 where a training did not come back."""
    signal.signal(signal.SIGTERM, _leave)
    parser = argparse.ArgumentParser(prog="jobs/benchmark.py faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 kills instead of 20, and short outages")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--out", type=Path)
    cfg = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), kills=3 if cfg.quick else cfg.kills, outage_s=5.0 if cfg.quick else 30.0)
        rows = measure(bench, cfg.only)
    versions = [f"{name} {version(name)}" for name in ("torch", "ray", "mlflow")]
    machine = f"{os.cpu_count()} CPUs ({platform.machine()}), {platform.platform()}, Python {platform.python_version()}"
    about = ", ".join([machine, *versions]) + f"\ncommand: uv run jobs/benchmark.py faults {' '.join(arguments)}"
    sys.stdout.write(f"{about}\n\n{table(rows)}")
    if cfg.out:
        found = {"about": about, "rows": [asdict(row) for row in rows]}
        cfg.out.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return int(any(row.found.startswith("NOT RECOVERED") for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
