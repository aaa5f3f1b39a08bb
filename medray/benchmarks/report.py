"""What a benchmark leaves: machine, versions, command, medians and ratios; a table for a person, JSON for a program."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from medray.benchmarks.machine import machine, versions
from medray.benchmarks.ratio import PAIRS, Ratio

OUT = Path("bench")
"""Where reports are written by default, in the current folder."""
QUICK_PAIRS = 2
Cells = dict[str, Any]
Tables = Mapping[str, Sequence[Cells]]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of medray's beside a peer's."""

    what: str
    unit: str = ""
    ours: float | None = None
    """Median, in `unit`."""
    peer: float | None = None
    ratio: float | None = None
    """How many times as fast medray is: of speeds ours / peer, of times peer / ours."""
    low: float | None = None
    """95 % interval of the ratio."""
    high: float | None = None
    pairs: int = 0
    note: str = ""

    def line(self) -> str:
        """For a person."""
        figures = [] if self.ours is None else [f"{self.ours:.4g}"]
        figures += [] if self.peer is None else [f"against {self.peer:.4g}"]
        parts = [" ".join([*figures, self.unit]).strip()] if figures else []
        if self.ratio is not None:
            span = "" if self.low is None or self.high is None else f" [{self.low:.3f}, {self.high:.3f}]"
            parts.append(f"ratio {self.ratio:.3f}{span} over {self.pairs} pairs")
        return f"{self.what}: {', '.join([*parts, self.note] if self.note else parts)}"


def speeds(what: str, unit: str, found: Ratio, note: str = "") -> Row:
    """A comparison of two speeds."""
    return Row(what, unit, found.ours, found.theirs, found.ratio, found.low, found.high, found.pairs, note)


def times(what: str, found: Ratio, note: str = "") -> Row:
    """A comparison of two times in seconds, measured as speeds (1/s)."""
    return Row(what, "s", 1 / found.ours, 1 / found.theirs, found.ratio, found.low, found.high, found.pairs, note)


@dataclass(frozen=True, slots=True)
class Report:
    """All that one benchmark says."""

    name: str
    command: str
    date: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    rows: tuple[Row, ...]
    tables: Tables
    """Title -> rows of what is no comparison."""

    def json_line(self) -> str:
        """The whole of it, for a program."""
        return json.dumps(asdict(self), default=str)

    def markdown(self) -> str:
        """The whole of it, for a person."""
        lines = [f"# {self.name}", "", f"`{self.command}`, {self.date}", ""]
        lines += [f"* {name}: {said}" for name, said in {**self.machine, **self.versions}.items()]
        compared = [_cells(row) for row in self.rows]
        return "\n".join([*lines, "", tables_of({**({"Figures": compared} if compared else {}), **self.tables})])


def _cells(row: Row) -> Cells:
    """A row as its line of the table."""
    span = None if row.low is None or row.high is None else f"[{row.low:.3f}, {row.high:.3f}]"
    figures = {"unit": row.unit, "medray": row.ours, "peer": row.peer, "ratio": row.ratio, "95 %": span}
    return {"what": row.what, **figures, "pairs": row.pairs or None, "note": row.note}


def tables_of(tables: Tables) -> str:
    """Tables in Markdown; a cell that a row lacks is empty."""
    lines = []
    for title, rows in tables.items():
        heads = list(dict.fromkeys(chain.from_iterable(rows)))
        lines += [f"### {title}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in rows:
            cells = [row.get(head) for head in heads]
            words = [f"{cell:.4g}" if isinstance(cell, float) else str("" if cell is None else cell) for cell in cells]
            lines.append(f"| {' | '.join(words)} |")
        lines.append("")
    return "\n".join(lines)


class Sheet:
    """The report of a benchmark that runs: each row is printed as it comes."""

    def __init__(self, name: str, arguments: Sequence[str] = ()) -> None:
        self._name, self._rows, self._tables = name, list[Row](), dict[str, Sequence[Cells]]()
        self._command = shlex.join(["uv", "run", "jobs/benchmark.py", name, *arguments])
        self._date = datetime.now().astimezone().isoformat(timespec="minutes")
        self._machine = machine()

    def add(self, row: Row) -> None:
        """Keep a row, and print it."""
        self._rows.append(row)
        self.say(row.line())

    def table(self, title: str, rows: Sequence[Cells]) -> None:
        """Keep a table of what is no comparison, and print it."""
        self._tables[title] = rows
        sys.stderr.write(f"{tables_of({title: rows})}\n")

    def say(self, line: str) -> None:
        """Tell a person how far it is; nothing of it is kept."""
        sys.stderr.write(f"{self._name}/{line}\n")
        sys.stderr.flush()

    def report(self) -> Report:
        """What there is so far."""
        return Report(
            self._name, self._command, self._date, self._machine, versions(), tuple(self._rows), dict(self._tables)
        )


def write(report: Report, folder: Path) -> None:
    """bench-NAME.json and bench-NAME.md."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"bench-{report.name}"
    place.with_suffix(".json").write_text(report.json_line() + "\n", encoding="utf-8")
    place.with_suffix(".md").write_text(report.markdown(), encoding="utf-8")


def run(
    name: str,
    about: str,
    measure: Callable[[argparse.Namespace, Sheet], None],
    arguments: Sequence[str],
    options: Callable[[argparse.ArgumentParser], None] | None = None,
    pairs: int = PAIRS,
) -> Report:
    """A benchmark's program: parse, measure, print, write; what was measured before an error is written too.

    Args:
        name: of the benchmark.
        about: its docstring, which --help shows.
        measure: takes the arguments and adds rows.
        arguments: of the command line.
        options: adds those of its own.
        pairs: of measurements, unless --pairs or --quick says otherwise.
    """
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"jobs/benchmark.py {name}", description=about, formatter_class=shape)
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it works, not how fast it is")
    parser.add_argument("--pairs", type=int, help=f"of measurements; {pairs} by default, {QUICK_PAIRS} with --quick")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for the report, by default ./{OUT}")
    if options:
        options(parser)
    cfg = parser.parse_args(arguments)
    cfg.pairs = cfg.pairs or (QUICK_PAIRS if cfg.quick else pairs)
    sheet = Sheet(name, arguments)
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        with _own_home():
            measure(cfg, sheet)
    finally:
        signal.signal(signal.SIGTERM, before)
        report = sheet.report()
        if report.rows or report.tables:
            write(report, cfg.out)
    sys.stderr.write(f"\n{report.markdown()}\nwritten to {cfg.out}/bench-{name}.md and .json\n")
    sys.stdout.write(report.json_line() + "\n")
    return report


@contextmanager
def _own_home() -> Iterator[None]:
    """What is drawn, stored and registered leaves nothing in the home of whoever measures."""
    before = os.environ.get("MEDRAY_HOME")
    storage = os.environ.pop("MEDRAY_STORAGE", None)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as home:
        os.environ["MEDRAY_HOME"] = home
        try:
            yield
        finally:
            os.environ.pop("MEDRAY_HOME")
            kept = {"MEDRAY_HOME": before, "MEDRAY_STORAGE": storage}
            os.environ.update({name: value for name, value in kept.items() if value is not None})


def _leave(*_: object) -> None:
    """End in good order, services and trainings too; another signal does not disturb it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)
