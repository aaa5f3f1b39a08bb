"""Questions that nobody waits for: they run when there is room, tell how far they are, and outlive who runs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from medray.sections.service import ServeSection
from medray.serving.messages import Answered, Job, Models
from medray.serving.problems import Refused, refusal_of
from medray.serving.respond import stamp
from medray.types import Case, InputError

logger = logging.getLogger(__name__)
CANCEL_S = 5.0
"""As long as a job that was told to end is waited for."""
TELL_S = 3.0
"""And as long as it may take to write an end down: a process that ends does not wait for ever."""
State = Literal["pending", "running", "completed", "failed", "cancelled"]
Finish = Callable[[Job, Case, Answered], Awaitable[dict[str, Any]]]
"""Keeps the answer of a job; what its JSON is."""
Tell = Callable[[Job, Answered | None, Refused | None], Awaitable[None]]
"""Writes down how a job ended."""


@dataclass(slots=True, eq=False)
class _Running:
    job: Job
    size: int
    created: float = field(default_factory=time.time)
    state: State = "pending"
    progress: float = 0.0
    ended: float | None = None
    model: str | None = None
    problem: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    task: asyncio.Task[None] | None = None


class Jobs:
    """All jobs of a service."""

    def __init__(self, cfg: ServeSection, models: Models, finish: Finish, tell: Tell) -> None:
        self._cfg, self._models, self._finish, self._tell = cfg, models, finish, tell
        self._jobs: dict[str, _Running] = {}
        self._room = asyncio.Semaphore(2 * cfg.most_replicas)

    def submit(self, job: Job, raw: Case) -> dict[str, Any]:
        """Start a job, or say how the one of this id is.

        Raises:
            Refused: too many wait, or they take too much memory.
        """
        self._forget()
        job_id = job.asked.request_id
        if job_id not in self._jobs:
            open_jobs = [one for one in self._jobs.values() if one.ended is None]
            size = raw.image.nbytes + len(job.source)
            held = sum(one.size for one in open_jobs)
            if len(open_jobs) >= self._cfg.jobs or (open_jobs and held + size > self._cfg.keep_mb * 2**20):
                fact = f"{len(open_jobs)} jobs wait or run"
                raise Refused(429, "too_many_jobs", fact, "wait until one has ended", {"Retry-After": "10"})
            running = self._jobs[job_id] = _Running(job, size)
            running.task = asyncio.ensure_future(self._run(running, raw))
        return self._told(self._jobs[job_id])

    def state(self, job_id: str, owner: str) -> dict[str, Any]:
        """How a job is; `owner` is who may know, empty for all.

        Raises:
            Refused: there is none, or none any more.
        """
        return self._told(self._find(job_id, owner))

    def all(self, owner: str) -> list[dict[str, Any]]:
        """All jobs of an owner, without their results."""
        self._forget()
        mine = [one for one in self._jobs.values() if owner in ("", one.job.caller)]
        return [{**self._told(one), "result": None} for one in mine]

    async def cancel(self, job_id: str, owner: str) -> dict[str, Any]:
        """End a job that has not ended; raises as `state`."""
        running = self._find(job_id, owner)
        if running.ended is None and running.task is not None:
            running.task.cancel()
            await asyncio.wait([running.task], timeout=CANCEL_S)
            if running.ended is None and running.task.done():  # it had not begun
                refused = Refused(499, "cancelled", "it was cancelled")
                with contextlib.suppress(Exception):
                    await self._tell(running.job, None, refused)
                self._end(running, refused)
        return self._told(running)

    @property
    def open(self) -> int:
        """Jobs that wait or run."""
        return sum(one.ended is None for one in self._jobs.values())

    async def _run(self, running: _Running, raw: Case) -> None:
        """From the start of a job to its end; it has ended only when that is written down."""
        answered: Answered | None = None
        refused: Refused | None = None
        try:
            answered = await self._answered(running, raw)
            await self._tell(running.job, answered, None)
            running.result = await self._finish(running.job, raw, answered)
        except InputError as error:
            refused = refusal_of(error)
        except Refused as error:
            refused = error
        except asyncio.CancelledError:
            refused = Refused(499, "cancelled", "it was cancelled")
        except OSError:
            refused = Refused(503, "audit_unavailable", "the answer cannot be recorded, so it is not given")
        except Exception as error:
            logger.error("a job failed with %s", type(error).__name__)
            refused = Refused(503, "job_failed", "the models failed", "send it again")
        if refused is not None:
            running.result = None
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await asyncio.wait_for(self._tell(running.job, None, refused), TELL_S)
        self._end(running, refused)

    async def _answered(self, running: _Running, raw: Case) -> Answered:
        async with self._room:
            running.state = "running"
            async with contextlib.aclosing(self._models.follow(running.job.asked, raw)) as stream:
                async for news in stream:
                    if isinstance(news, Answered):
                        running.model = news.entry.reference
                        return news
                    running.progress = max(running.progress, round(news, 4))
        raise RuntimeError("the model ended without an answer")

    def _end(self, running: _Running, refused: Refused | None) -> None:
        """Let go of all but what is told."""
        cancelled = refused is not None and refused.code == "cancelled"
        running.state = "completed" if refused is None else "cancelled" if cancelled else "failed"
        running.ended, running.task, running.size = time.time(), None, 0
        running.job = replace(running.job, source=b"")
        if refused is None:
            running.progress = 1.0
        elif not cancelled:
            running.problem = {"status": refused.status, "code": refused.code, "detail": refused.detail}
            running.problem |= {"title": refused.code.replace("_", " "), "hint": refused.hint}
        asyncio.get_running_loop().call_later(self._cfg.keep_s + 1, self._forget)

    def _find(self, job_id: str, owner: str) -> _Running:
        self._forget()
        running = self._jobs.get(job_id)
        if running is None or owner not in ("", running.job.caller):
            raise Refused(404, "no_job", "there is no such job", "a job is forgotten some time after its end")
        return running

    def _forget(self) -> None:
        """Leave out what ended long ago."""
        oldest = time.time() - self._cfg.keep_s
        for job_id in [job_id for job_id, one in self._jobs.items() if one.ended is not None and one.ended < oldest]:
            del self._jobs[job_id]

    def _told(self, running: _Running) -> dict[str, Any]:
        job_id = running.job.asked.request_id
        links = {"self": f"/v1/jobs/{job_id}"}
        if running.result is not None:
            links["result"] = f"/v1/results/{job_id}"
        return {
            "id": job_id,
            "state": running.state,
            "progress": running.progress,
            "created": stamp(running.created),
            "expires": None if running.ended is None else stamp(running.ended + self._cfg.keep_s),
            "model": running.model,
            "links": links,
            "problem": running.problem,
            "result": running.result,
        }
