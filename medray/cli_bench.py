"""The verb bench: medray's own measurements. It belongs to medray/cli.py."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from medray.config import PACKAGE, ConfigError

Argument = Annotated[str, Parameter(allow_leading_hyphen=True)]


def register(app: App) -> None:
    """Add the verb to `app`."""
    app.command(bench)


def bench(name: str | None = None, *arguments: Argument) -> str:
    """Measure something of medray on this machine, and print the figures; without a name, what there is.

    Args:
        name: of the measurement.
        arguments: its own.
    """
    known = _programs()
    if name is None:
        return "".join(f"{known_name:12} {_purpose(file)}\n" for known_name, file in known.items())
    if name not in known:
        raise ConfigError([f"no benchmark '{name}'; there are: {', '.join(known)}"])
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


def _programs() -> dict[str, Path]:
    """The modules of medray/benchmarks that are programs."""
    files = sorted((PACKAGE / "benchmarks").glob("*.py"))
    return {file.stem: file for file in files if "\nif __name__ ==" in file.read_text(encoding="utf-8")}


def _purpose(file: Path) -> str:
    """The first line of its docstring."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
