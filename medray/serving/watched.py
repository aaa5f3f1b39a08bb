"""A file that says who may ask: read again when it changes, and kept in mind while it is broken for a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from medray.config import ConfigError

Content = TypeVar("Content")

MOST_BYTES = 4 << 20
LOOK_S = 1.0
"""A file is looked at no more often."""
KEPT_S = 60.0
"""What a file said counts for so long after it has become unreadable. Then nothing does: else a key that was taken
out of a file, by a hand that broke it, would count on."""


class Watched(Generic[Content]):
    """What a file says, read again when it changes; may be asked from several threads."""

    def __init__(
        self,
        path: Path,
        parse: Callable[[bytes], Content],
        empty: Content,
        must_exist: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the file.

        Args:
            path: of the file.
            parse: its bytes -> what they say; ValueError says what is wrong.
            empty: what counts without a file.
            must_exist: whether it is wrong that there is none.
            clock: in seconds.

        Raises:
            ConfigError: it cannot be used.
        """
        self.path, self._parse, self._clock = path, parse, clock
        self._empty = self._content = empty
        self._trouble = ""
        self._since = 0.0
        self._tried: tuple[int, ...] | None = None
        self._lock = threading.Lock()
        self._looked = clock()
        self._look(self._looked)
        if self._trouble or (must_exist and self._tried is None):
            raise ConfigError([f"'{path}': {self._trouble or 'there is no such file'}"])

    @property
    def trouble(self) -> str:
        """Why the file cannot be used now; empty if it can."""
        self.get()
        return self._trouble

    def get(self) -> Content:
        """What it says now, or said a moment ago if it is broken for a moment."""
        with self._lock:
            now = self._clock()
            if now - self._looked >= LOOK_S:
                self._looked = now
                self._look(now)
            return self._content

    def _look(self, now: float) -> None:
        before = self._trouble
        try:
            identity = self._identity()
            if identity is None and self._tried is not None:
                self._tried, self._trouble = None, "it is gone"
            elif identity != self._tried:
                content = _read(self.path)
                self._tried = identity
                self._content, self._trouble = self._parse(content), ""
        except OSError as error:
            self._tried, self._trouble = None, error.strerror or "it cannot be read"
        except (ValueError, RecursionError) as error:
            self._trouble = str(error)
        if self._trouble and not before:
            self._since = now
        if self._trouble and now - self._since >= KEPT_S:
            self._content = self._empty

    def _identity(self) -> tuple[int, ...] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    return content
