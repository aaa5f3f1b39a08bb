"""Which code, with which libraries, a run was made by. Imports nothing that takes time."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from medray.config import PACKAGE


def environment() -> dict[str, str]:
    """Versions and code revision."""
    names = ("medray", "torch", "torchvision", "monai", "numpy", "ray", "mlflow")
    return {"python": platform.python_version(), "revision": revision(), **{name: _version(name) for name in names}}


def revision() -> str:
    """The commit of the code that runs, '+' where it was changed since; 'unknown' outside a repository."""
    git = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=40"]
    if not (PACKAGE.parent / ".git").exists():
        return "unknown"
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def _version(name: str) -> str:
    """Version of an installed package; medray itself may run from an uploaded folder."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
