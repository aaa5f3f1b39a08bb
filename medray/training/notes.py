"""What workers have to say to the person at the terminal: lines in the run's folder, which its driver follows."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from medray.tracking import journal

NOTES = "notes.txt"


def note(folder: Path, text: str) -> None:
    """Add a line; where the disk does not take it, the worker's own stderr is all there is."""
    line = " ".join(text.split())
    try:
        with (folder / NOTES).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    except OSError:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{line}\n")


def read(file: Path, start: int = 0) -> tuple[list[str], int]:
    """Whole lines from byte `start`, and the byte where the next reading begins."""
    lines, end = journal.whole_lines(file, start)
    return [line.decode("utf-8", errors="replace") for line in lines], end
