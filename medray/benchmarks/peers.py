"""What benchmarks compare with, loaded where it is measured and nowhere else: nothing of medray runs on it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from medray.benchmarks.report import Row

PACKAGES = {"ignite": "pytorch-ignite", "lightning": "lightning", "litserve": "litserve"}
"""Module -> package of the dependency group `peers`."""


def missing(*modules: str) -> list[str]:
    """Which of these optional modules are not installed."""
    return [name for name in modules if find_spec(name) is None]


def absent(name: str, benchmark: str) -> Row:
    """What a report says in the place of a peer that is not installed."""
    command = f"uv run --group peers jobs/benchmark.py {benchmark}"
    return Row(PACKAGES.get(name, name), note=f"not installed; {command}")


def load(name: str) -> Any:
    """A peer's module; untyped, since types are checked without peers too."""
    return import_module(name)
