"""Events on their way to the desk: an answer waits until it is written down, and those of one moment go together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from medray.serving.messages import Desk
from medray.serving.problems import Refused

PENDING = 10_000
"""Events that nobody waits for are left out beyond this many."""


class Recorder:
    """Of one ingress; at most one call to the desk is under way, and the next takes all that came meanwhile."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._events: list[Mapping[str, Any]] = []
        self._written: asyncio.Future[None] | None = None
        self._flushing: asyncio.Task[None] | None = None

    async def write(self, event: Mapping[str, Any]) -> None:
        """Write an event down.

        Raises:
            Refused: it cannot be; then the answer that it is of must not be given.
        """
        self._events.append(event)
        await asyncio.shield(self._next())

    def note(self, event: Mapping[str, Any]) -> None:
        """Write an event down some time."""
        if len(self._events) < PENDING:
            self._events.append(event)
            self._next().add_done_callback(lambda written: written.cancelled() or written.exception())

    def _next(self) -> asyncio.Future[None]:
        """Done when what is pending now is written."""
        if self._written is None:
            self._written = asyncio.get_running_loop().create_future()
        if self._flushing is None:
            self._flushing = asyncio.ensure_future(self._flush())
        return self._written

    async def _flush(self) -> None:
        while self._events and self._written is not None:
            events, written = self._events, self._written
            self._events, self._written = [], None
            try:
                await self._desk.record(events)
            except Exception:
                refused = Refused(503, "audit_unavailable", "the answer cannot be recorded, so it is not given")
                written.set_exception(refused)
                written.exception()
            else:
                written.set_result(None)
        self._flushing = None
