"""What the de-identification of one file is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Profile:
    """How to de-identify."""

    key: bytes
    """32 secret bytes; see keyed.load_key."""
    dates: Literal["remove", "shift"] = "remove"
    """Shifted by a number of days per patient, the distances between dates stay (option 113107 of PS3.15)."""
    allow_burned_in: bool = False
    """Take images that may show a name in their pixels: medray does not look for it."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """One file, clean."""

    content: bytes
    suffix: str
    verify: Callable[[bytes], str]
    """What is wrong with the written bytes, read again; nothing where they are clean."""
    warnings: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    """Pseudonyms of patient, study and series, where the file knows them."""
