"""How often each caller may ask: a token bucket each, kept as the one number that says when it is full again.

That form is the generic cell rate algorithm (ITU-T I.371): `burst` at once, then one every 60 / per_minute seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

MOST = 100_000
"""Callers that are remembered at once; beyond them those whose buckets are fullest are forgotten."""
SWEEP_S = 60.0
SLACK_S = 1e-3
"""Nobody is sent away for less, which may be the rounding of many sums."""


class Rates:
    """Limits per caller. Not for several threads: the one process that counts asks from its event loop."""

    def __init__(self, per_minute: int, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._each = 60 / per_minute
        self._room = burst * self._each
        self._clock = clock
        self._full: dict[str, float] = {}
        self._swept = clock()

    def __len__(self) -> int:
        """Callers that are remembered."""
        return len(self._full)

    def take(self, caller_id: str, now: float | None = None) -> float:
        """Seconds to wait, in which case nothing was taken; 0.0 admits the caller.

        Args:
            caller_id: who asks.
            now: by the clock's count; by default what it says.
        """
        now = self._clock() if now is None else now
        if not 0 <= now - self._swept < SWEEP_S or len(self._full) >= MOST:
            self._sweep(now)
        # No further ahead than an empty bucket is, should a clock have gone back.
        full = min(max(self._full.get(caller_id, now), now), now + self._room)
        wait = full + self._each - self._room - now
        if wait > SLACK_S:
            return wait
        self._full[caller_id] = full + self._each
        return 0.0

    def _sweep(self, now: float) -> None:
        """Forget full buckets: a new one is the same."""
        self._swept = now
        self._full = {caller: full for caller, full in self._full.items() if full > now}
        if len(self._full) >= MOST:
            emptiest = sorted(self._full.items(), key=lambda item: item[1])[MOST // 10 :]
            self._full = dict(emptiest)
