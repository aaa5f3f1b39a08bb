"""Answers that are kept for a while: in memory alone, no longer than said, and no more than there is room for."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medray.sections.service import ServeSection
from medray.serving.problems import Refused

REMEMBERED = 10_000
"""Ids of answers that have gone, so that it can be said."""


@dataclass(frozen=True, slots=True)
class _Held:
    owner: str
    until: float
    size: int
    box: Any


class Results:
    """What was kept, by request id."""

    def __init__(self, cfg: ServeSection, clock: Callable[[], float] = time.time) -> None:
        self._cfg, self._clock = cfg, clock
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._gone: OrderedDict[str, str] = OrderedDict()
        self.size = 0
        """Bytes that are held."""

    def keep(self, request_id: str, owner: str, size: int, box: Any) -> float:
        """Keep what is in `box`; until when, in seconds of the clock."""
        until = self._clock() + self._cfg.keep_s
        if request_id in self._held:
            self._drop(request_id)
        self._held[request_id] = _Held(owner, until, size, box)
        self.size += size
        self.sweep()
        return until

    def get(self, request_id: str, owner: str) -> Any:
        """What was kept; `owner` is who may have it, empty for all.

        Raises:
            Refused: 404 there is none, 410 there is none any more.
        """
        self.sweep()
        held = self._held.get(request_id)
        if held is not None and owner in ("", held.owner):
            return held.box
        if held is None and owner in ("", self._gone.get(request_id, "-")) and request_id in self._gone:
            raise Refused(410, "expired", "the result is kept no longer", "send the image again")
        raise Refused(404, "no_result", "there is no such result", "ask with keep=true, and fetch it in time")

    def sweep(self) -> None:
        """Leave out what is too old, and the oldest of what is too much."""
        now = self._clock()
        while self._held:
            request_id, oldest = next(iter(self._held.items()))
            if oldest.until > now and (self.size <= self._cfg.keep_mb * 2**20 or len(self._held) == 1):
                break
            self._drop(request_id)
            self._gone[request_id] = oldest.owner
        while len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)

    def _drop(self, request_id: str) -> None:
        self.size -= self._held.pop(request_id).size
