"""The folder of a study: how long it has run, and cleared when all is done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medray.training.folder import write_whole
from medray.tuning.trials import TRIALS

RAY = "tune"
"""Ray Tune's own folder inside the study's; what it holds is not needed after a start."""
SPENT = "spent_s"


@contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Add the time of this start to that of the study."""
    before, began = spent(folder), time.monotonic()
    try:
        yield
    finally:
        write_whole(folder / SPENT, f"{before + time.monotonic() - began:.1f}")


def spent(folder: Path) -> float:
    """Seconds that the study has run, over all its starts."""
    file = folder / SPENT
    return float(file.read_text(encoding="ascii")) if file.is_file() else 0.0


def clear(folder: Path, best: int) -> None:
    """Free the disk of what a finished study needs no more: each setting can be trained again."""
    shutil.rmtree(folder / RAY, ignore_errors=True)
    for place in (folder / TRIALS).glob("*/*"):
        if place.is_dir() and int(place.parent.name) != best:
            shutil.rmtree(place, ignore_errors=True)
