"""The one process that remembers: jobs and results in memory, counters of callers, the audit on a disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medray.sections.service import ServeSection
from medray.serving.agreement import Agreement
from medray.serving.audit import AuditLog, default_folder
from medray.serving.jobs import Jobs
from medray.serving.kept import Kept
from medray.serving.messages import Answered, Job, Models
from medray.serving.monitor import Monitor
from medray.serving.problems import Refused
from medray.serving.rates import Rates
from medray.serving.respond import SHADOW, document, event, keeping
from medray.serving.results import Results
from medray.types import Case

logger = logging.getLogger(__name__)
LEARN_S = 5.0


class Desk:
    """Without Ray; all methods run on one event loop. `box` is how a kept answer is stored, by default as it is."""

    def __init__(self, cfg: ServeSection, models: Models, box: Callable[[Kept], Any] = lambda kept: kept) -> None:
        """Raises ConfigError where another process writes the audit."""
        access = cfg.access
        self._cfg, self._models, self._box = cfg, models, box
        folder = cfg.audit.folder or default_folder()
        self._audit = AuditLog(folder, cfg.audit.keep_days) if cfg.audit.on else None
        self._rates = Rates(access.per_minute, access.burst) if access.per_minute else None
        self._monitor = Monitor(cfg.drift)
        self._results = Results(cfg)
        self._jobs = Jobs(cfg, models, self._finish, self._tell)
        self._known: dict[str, asyncio.Task[bool]] = {}
        self._agreements: dict[tuple[str, str], Agreement] = {}
        self._writing = asyncio.Lock()

    async def record(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Write events down, in the audit first; raises OSError where that cannot be written."""
        compared = [one for one in events if one["route"] == SHADOW]
        for one in compared:
            key = one["model"], one["shadow"]
            self._agreements.setdefault(key, Agreement(*key)).add(one["agreement"])
        requests = [one for one in events if one["route"] != SHADOW]
        if self._audit is not None and requests:
            async with self._writing:
                await asyncio.to_thread(self._audit.append, requests)
        for one in requests:
            if model := one["model"]:
                await self._know(model)
            self._monitor.record(one)

    async def _know(self, reference: str) -> None:
        """Have the monitor know what a model's training looked like; without that its requests are counted alone."""
        learning = self._known.get(reference)
        if learning is None:
            learning = self._known[reference] = asyncio.ensure_future(self._learn(reference))
            await asyncio.shield(learning)
        elif not learning.done():
            await asyncio.shield(learning)
        elif not learning.result():  # again, but nobody waits for it
            self._known[reference] = asyncio.ensure_future(self._learn(reference))

    async def _learn(self, reference: str) -> bool:
        try:
            card = await asyncio.wait_for(self._models.card(reference.replace("/", "@")), LEARN_S)
            self._monitor.reference(reference, card["card"])
        except Exception as error:  # no reason to refuse an answer
            logger.warning("%s is not compared with its training: %s", reference, type(error).__name__)
            return False
        return True

    async def take(self, caller: str) -> float:
        """Seconds that a caller must wait for its next prediction; 0 where it may go on."""
        return self._rates.take(caller) if self._rates is not None else 0.0

    async def submit(self, job: Job, raw: Case) -> dict[str, Any]:
        """A job's state; raises Refused where there are too many."""
        return self._jobs.submit(job, raw)

    async def job(self, job_id: str, caller: str) -> dict[str, Any]:
        """A job's state; raises Refused."""
        return self._jobs.state(job_id, caller)

    async def jobs(self, caller: str) -> list[dict[str, Any]]:
        """All of a caller's."""
        return self._jobs.all(caller)

    async def cancel(self, job_id: str, caller: str) -> dict[str, Any]:
        """A job's state after it was told to end; raises Refused."""
        return await self._jobs.cancel(job_id, caller)

    async def keep(self, caller: str, kept: Kept) -> None:
        """Keep an answer for a while."""
        self._results.keep(kept.request_id, caller, kept.nbytes, self._box(kept))
        # Whether or not somebody asks then, it has gone.
        asyncio.get_running_loop().call_later(self._cfg.keep_s + 1, self._results.sweep)

    async def kept(self, request_id: str, caller: str) -> Any:
        """An answer that was kept, as it was boxed; raises Refused."""
        return self._results.get(request_id, caller)

    async def metrics(self) -> str:
        """Prometheus' text."""
        self._results.sweep()
        return self._monitor.prometheus({"jobs_open": self._jobs.open, "results_bytes": self._results.size})

    async def drift(self) -> list[dict[str, Any]]:
        """How answers differ from those of the training, for each model."""
        return self._monitor.drift()

    async def agreement(self) -> list[dict[str, Any]]:
        """How shadows agree with those who are heard."""
        return [one.as_dict() for one in self._agreements.values()]

    def close(self) -> None:
        """Let another process write the audit."""
        if self._audit is not None:
            self._audit.close()

    async def _finish(self, job: Job, raw: Case, answered: Answered) -> dict[str, Any]:
        """Keep the answer of a job; what its JSON is."""
        body = document(job.asked.request_id, answered, job.about, job.timings_ms)
        await self.keep(job.caller, keeping(body, answered, raw, job.source, job.kind, self._cfg.keep_s))
        return body

    async def _tell(self, job: Job, answered: Answered | None, refused: Refused | None) -> None:
        """Write down how a job ended."""
        facts: dict[str, Any] = {"input": job.about["sha256"], "timings_ms": job.timings_ms}
        if refused is not None:
            outcome = "cancelled" if refused.code == "cancelled" else "failed"
            facts |= {"status": refused.status, "code": refused.code, "outcome": outcome}
        await self.record([event(job.asked.request_id, job.caller, "/v1/jobs", answered, **facts)])
