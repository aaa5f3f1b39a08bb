"""Events on their way to the desk: an answer waits until it is written down, and those of one moment go together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import ClientDisconnect

from medray.serving.messages import Answered, Desk
from medray.serving.problems import Refused, refusal_of
from medray.serving.respond import event
from medray.types import InputError


class Noted:
    """What is known of a request until it ends."""

    def __init__(self, request_id: str, route: str) -> None:
        self.request_id, self.route = request_id, route
        self.caller = ""
        self.facts: dict[str, Any] = {}
        """Of the event: input, status, ..."""
        self.timings_ms: dict[str, float] = {}
        self._began = self._last = time.perf_counter()

    def stage(self, name: str) -> None:
        """A stage of this name has ended; `total` is from the beginning."""
        now = time.perf_counter()
        self.timings_ms[name] = round(1000 * (now - (self._began if name == "total" else self._last)), 3)
        self._last = now

    def event(self, answered: Answered | None = None, **facts: Any) -> dict[str, Any]:
        """What is written down."""
        if "total" not in self.timings_ms:
            self.stage("total")
        known = {**self.facts, "timings_ms": self.timings_ms, **facts}
        return event(self.request_id, self.caller, self.route, answered, **known)


PENDING = 10_000
"""Events that nobody waits for are left out beyond this many."""


class Recorder:
    """Of one ingress; at most one call to the desk is under way, and the next takes all that came meanwhile."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._events: list[Mapping[str, Any]] = []
        self._written: asyncio.Future[None] | None = None
        self._flushing: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def noting(self, request_id: str, route: str) -> AsyncIterator[Noted]:
        """Has every end of a request but the good one, which `write` is for, written down."""
        noted = Noted(request_id, route)
        try:
            yield noted
        except (InputError, Refused) as error:
            refused = refusal_of(error) if isinstance(error, InputError) else error
            self.note(noted.event(status=refused.status, code=refused.code, outcome="refused"))
            raise refused from None
        except (asyncio.CancelledError, ClientDisconnect):
            self.note(noted.event(status=499, code="disconnected", outcome="cancelled"))
            raise
        except Exception:
            self.note(noted.event(status=500, code="internal", outcome="failed"))
            raise

    async def write(self, told: Mapping[str, Any]) -> None:
        """Write an event down.

        Raises:
            Refused: it cannot be; then the answer that it is of must not be given.
        """
        self._events.append(told)
        await asyncio.shield(self._next())

    def note(self, told: Mapping[str, Any]) -> None:
        """Write an event down some time."""
        if len(self._events) < PENDING:
            self._events.append(told)
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
