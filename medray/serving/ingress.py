"""From a request to an answer: who asks, is there room, the upload, its decoding, the model, the record."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import random
import uuid
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from medray.imaging.reader import SNIFF_BYTES, sniff
from medray.sections.service import ServeSection
from medray.serving.access import Access, Caller, Role, require
from medray.serving.agreement import compare
from medray.serving.asking import asked_of, rendered, request_id_of
from medray.serving.decoders import Decoders
from medray.serving.messages import Answered, Asked, Desk, Job, Models
from medray.serving.problems import Refused
from medray.serving.recorder import Noted, Recorder
from medray.serving.respond import SHADOW, document, input_of, keeping
from medray.serving.room import Room
from medray.serving.upload import ASIDE_BYTES, Uploads
from medray.types import Case

logger = logging.getLogger(__name__)


class Ingress:
    """What an ingress replica is, without Ray: it holds nothing that another would miss."""

    def __init__(self, cfg: ServeSection, models: Models, desk: Desk) -> None:
        """Raises ConfigError where keys or tokens cannot be used."""
        self.cfg, self.models, self.desk = cfg, models, desk
        self.access = Access(cfg)
        self.room = Room(cfg.max_queued_requests)
        self.uploads = Uploads(cfg)
        self._decoders = Decoders(cfg.decoders)
        self.recorder = Recorder(desk)
        self._shadow: asyncio.Task[None] | None = None

    async def caller(self, request: Request, role: Role, noted: Noted | None = None) -> Caller:
        """Who asks; raises Refused where it is nobody known, or may not."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}
        if self.access.may_wait:
            caller = await asyncio.to_thread(self.access.caller, headers)
        else:
            caller = self.access.caller(headers)
        if noted is not None:
            noted.caller = caller.id
        require(caller, role)
        return caller

    async def predict(self, request: Request) -> Response:
        """POST /v1/predict."""
        request_id = request_id_of(request)
        async with self.recorder.noting(request_id, "/v1/predict") as noted:
            caller = await self.caller(request, "user", noted)
            self.uploads.check(request)
            self.room.check()
            await self.rate(caller)
            asked, output = asked_of(request.query_params, request_id)
            source = await self.uploads.read(request)
            noted.stage("read")
            digest = await _sha256(source)
            noted.facts["input"] = digest
            with self.room.take():
                raw = await self._decoders.read(source)
                noted.stage("decode")
                sent = Sent(source, sniff(source[:SNIFF_BYTES]), raw, digest)
                asked = replace(asked, sticky=request.headers.get("x-medray-sticky") or digest)
                if self._later(request, raw):
                    return await self._submit(noted, asked, output, sent)
                return await self._answer(noted, asked, output, sent)

    async def _answer(self, noted: Noted, asked: Asked, output: str, sent: Sent) -> Response:
        answered = await self.models.predict(asked, sent.raw)
        noted.stage("total")
        body = document(asked.request_id, answered, sent.about, noted.timings_ms)
        kept = None
        if answered.prediction is not None:
            kept = keeping(body, answered, sent.raw, sent.source, sent.kind, self.cfg.keep_s)
        headers = {"X-Medray-Model": answered.entry.reference}
        if output != "json":
            response = await rendered(kept, output)
            response.headers.update(headers)
        # What is not written down is neither given nor kept.
        await self.recorder.write(noted.event(answered))
        if output == "json":
            if kept is not None:
                await self.desk.keep(noted.caller, kept)
            response = JSONResponse(body, headers=headers)
        self._ask_shadow(asked, sent.raw, answered)
        return response

    def _later(self, request: Request, raw: Case) -> bool:
        wished = "respond-async" in request.headers.get("prefer", "").lower()
        return wished or (raw.spatial_dims == 3 and raw.image[0].size > self.cfg.sync_voxels)

    async def _submit(self, noted: Noted, asked: Asked, output: str, sent: Sent) -> Response:
        if output != "json":
            fact = f"the image has {sent.raw.image[0].size} voxels, or was asked for later: it becomes a job"
            raise Refused(
                422, "needs_a_job", fact, "leave output out, and fetch the file by the links of the job's result"
            )
        job = Job(replace(asked, keep=True), noted.caller, sent.source, sent.kind, sent.about, noted.timings_ms)
        state = await self.desk.submit(job, sent.raw)
        try:
            await self.recorder.write({**noted.event(), "status": 202, "outcome": "accepted"})
        except Refused:
            await self.desk.cancel(asked.request_id, noted.caller)
            raise
        place = f"/v1/jobs/{asked.request_id}"
        return JSONResponse(state, 202, {"Location": place, "Retry-After": "1"})

    async def rate(self, caller: Caller) -> None:
        """Count a caller's question; raises Refused where there were too many."""
        if self.cfg.access.per_minute is not None and (wait := await self.desk.take(caller.id)):
            fact = f"a key may ask {self.cfg.access.per_minute} times a minute"
            raise Refused(429, "rate_limited", fact, "wait", {"Retry-After": str(math.ceil(wait))})

    def _ask_shadow(self, asked: Asked, raw: Case, heard: Answered) -> None:
        """Ask a shadow too, if it has nothing else to do; nobody waits for it."""
        idle = self._shadow is None or self._shadow.done()
        if heard.shadow and idle and random.random() < self.cfg.shadow_share:  # noqa: S311
            question = Asked(uuid.uuid4().hex, heard.shadow, asked.sticky, shadow=True)
            self._shadow = asyncio.ensure_future(self._compare(question, raw, heard))

    async def _compare(self, question: Asked, raw: Case, heard: Answered) -> None:
        try:
            answered = await self.models.predict(question, raw)
        except Exception as error:
            logger.debug("a shadow did not answer: %s", type(error).__name__)
            return
        told = {"route": SHADOW, "model": heard.entry.reference, "shadow": answered.entry.reference}
        self.recorder.note({**told, "agreement": compare(heard, answered)})

    def close(self) -> None:
        """End the decoders."""
        self._decoders.close()


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """An upload that could be read."""

    source: bytes
    kind: str
    raw: Case
    digest: str

    @property
    def about(self) -> dict[str, Any]:
        """What an answer says of it."""
        return input_of(self.raw, self.digest, self.kind)


async def _sha256(content: bytes) -> str:
    """Of much in a thread, so that others go on."""
    if len(content) < ASIDE_BYTES:
        return hashlib.sha256(content).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
