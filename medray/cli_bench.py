"""The verb bench: medray's own measurements. It belongs to medray/cli.py."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import Annotated

from cyclopts import App, Parameter

from medray.config import PACKAGE, ConfigError

Argument = Annotated[str, Parameter(allow_leading_hyphen=True)]
NAMES = (
    *("loop", "input", "store", "window", "serve", "scaling", "tune", "start", "faults"),
    *("isolation", "keeping", "lossless", "many"),
)
"""Modules of medray/benchmarks, in the order in which they are listed."""


def register(app: App) -> None:
    """Add the verb to `app`."""
    app.command(bench)


def bench(name: str | None = None, *arguments: Argument) -> str:
    """Measure something of medray on this machine, and print the figures; without a name, what there is.

    A report is written to bench/bench-NAME.md and .json in the current folder, or to --out FOLDER; the last line of
    stdout is the same JSON. --quick tries small sizes, NAME --help says what is measured and how.

    Args:
        name: of the measurement.
        arguments: its own.
    """
    if name is None:
        return "".join(f"{known:10} {_purpose(known)}\n" for known in NAMES)
    if name not in NAMES:
        raise ConfigError([f"no benchmark '{name}'; there are: {', '.join(NAMES)}"])
    command = [sys.executable, "-m", f"medray.benchmarks.{name}", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            printed, _ = process.communicate()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        sys.stderr.write(printed)
        raise SystemExit(process.returncode)
    return printed


def _purpose(name: str) -> str:
    """The first line of its docstring."""
    text = (PACKAGE / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
