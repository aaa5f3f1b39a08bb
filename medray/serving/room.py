"""How many requests one ingress answers at once: beyond that they are turned away before their body is read."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

from medray.serving.problems import Refused

SMOOTHING = 0.1
"""Weight of the newest answer in the mean time between answers."""


class Room:
    """How many requests are being answered, and when one more is likely to find room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken = 0
        self._between_s, self._last = 0.0, 0.0

    def check(self) -> None:
        """Raises Refused where there is no room."""
        if self.taken >= self._most:
            wait = max(1, math.ceil(self._between_s * self._most / 2))
            fact = f"{self.taken} requests are being answered, at most {self._most} are taken"
            raise Refused(429, "overloaded", fact, "wait as long as Retry-After says", {"Retry-After": str(wait)})

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Have room for the time of an answer; raises as `check`."""
        self.check()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
            now = time.monotonic()
            between = min(now - self._last, 60.0) if self._last else 0.0
            self._between_s += SMOOTHING * (between - self._between_s)
            self._last = now
