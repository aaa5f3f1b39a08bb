"""From a request to an answer: who asks, is there room, the upload, its decoding, the model, the record."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from medray.imaging.reader import SNIFF_BYTES, sniff
from medray.sections.service import ServeSection
from medray.serving.access import Access, Caller, require
from medray.serving.agreement import compare
from medray.serving.decoders import Decoders
from medray.serving.messages import Answered, Asked, Desk, Job, Models
from medray.serving.pages import REPORT_POLICY
from medray.serving.problems import Refused, refusal_of
from medray.serving.recorder import Recorder
from medray.serving.render import render
from medray.serving.respond import SHADOW, document, event, input_of, keeping
from medray.serving.upload import Uploads
from medray.types import Case, InputError

OUTPUTS = ("json", "mask", "overlay", "explanation", "dicom_seg", "report")
TRUTHS = {"true": True, "1": True, "false": False, "0": False}
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


class Ingress:
    """What an ingress replica is, without Ray: it holds nothing that another would miss."""

    def __init__(self, cfg: ServeSection, models: Models, desk: Desk) -> None:
        """Raises ConfigError where keys or tokens cannot be used."""
        self.cfg, self.models, self.desk = cfg, models, desk
        self.access = Access(cfg)
        self.room = Room(cfg.max_queued_requests)
        self.uploads = Uploads(cfg)
        self._decoders = Decoders(cfg.decoders)
        self._recorder = Recorder(desk)
        self._shadow: asyncio.Task[None] | None = None

    async def caller(self, request: Request, role: str) -> Caller:
        """Who asks; raises Refused where it is nobody known, or may not."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}
        if self.access.may_wait:
            caller = await asyncio.to_thread(self.access.caller, headers)
        else:
            caller = self.access.caller(headers)
        require(caller, role)  # type: ignore[arg-type]
        return caller

    async def predict(self, request: Request) -> Response:
        """POST /v1/predict."""
        began = time.perf_counter()
        request_id, facts = request_id_of(request), dict[str, Any]()
        caller = await self.caller(request, "user")
        try:
            self.uploads.check(request)
            self.room.check()
            await self._rate(caller)
            asked, output = asked_of(request.query_params, request_id)
            source = await self.uploads.read(request)
            read = time.perf_counter()
            facts["input"] = hashlib.sha256(source).hexdigest()
            with self.room.take():
                raw = await self._decoders.read(source)
                facts["timings_ms"] = {"read": _ms(read - began), "decode": _ms(time.perf_counter() - read)}
                return await self._answer(request, caller, asked, output, source, raw, facts, began)
        except (InputError, Refused) as error:
            refused = refusal_of(error) if isinstance(error, InputError) else error
            facts |= {"status": refused.status, "code": refused.code, "outcome": "refused"}
            facts.setdefault("timings_ms", {})["total"] = _ms(time.perf_counter() - began)
            self._recorder.note(event(request_id, caller.id, "/v1/predict", **facts))
            raise refused from None
        except asyncio.CancelledError:
            facts |= {"status": 499, "code": "disconnected", "outcome": "cancelled"}
            self._recorder.note(event(request_id, caller.id, "/v1/predict", **facts))
            raise

    async def _answer(
        self,
        request: Request,
        caller: Caller,
        asked: Asked,
        output: str,
        source: bytes,
        raw: Case,
        facts: dict[str, Any],
        began: float,
    ) -> Response:
        kind = sniff(source[:SNIFF_BYTES])
        about = input_of(raw, facts["input"], kind)
        sticky = request.headers.get("x-medray-sticky") or facts["input"]
        asked = Asked(asked.request_id, asked.model, sticky, asked.explain, asked.target, asked.keep)
        if output == "json" and self._later(request, raw):
            return await self._submit(caller, asked, source, kind, raw, about, facts)
        answered = await self.models.predict(asked, raw)
        facts["timings_ms"]["total"] = _ms(time.perf_counter() - began)
        body = document(asked.request_id, answered, about, facts["timings_ms"])
        headers = {"X-Medray-Model": answered.entry.reference}
        response: Response
        if output != "json":
            kept = keeping(body, answered, raw, source, kind, self.cfg.keep_s)
            response = await rendered(kept, output)
            response.headers.update(headers)
        else:
            if answered.prediction is not None:
                await self.desk.keep(caller.id, keeping(body, answered, raw, source, kind, self.cfg.keep_s))
            response = JSONResponse(body, headers=headers)
        await self._recorder.write(event(asked.request_id, caller.id, "/v1/predict", answered, **facts))
        self._ask_shadow(asked, raw, answered)
        return response

    def _later(self, request: Request, raw: Case) -> bool:
        wished = "respond-async" in request.headers.get("prefer", "").lower()
        return wished or (raw.spatial_dims == 3 and raw.image[0].size > self.cfg.sync_voxels)

    async def _submit(
        self,
        caller: Caller,
        asked: Asked,
        source: bytes,
        kind: str,
        raw: Case,
        about: Mapping[str, Any],
        facts: dict[str, Any],
    ) -> Response:
        asked = Asked(asked.request_id, asked.model, asked.sticky, asked.explain, asked.target, True)
        known = {"input": about, "timings_ms": facts["timings_ms"]}
        state = await self.desk.submit(Job(asked, caller.id, source, kind, known), raw)
        accepted = {**facts, "status": 202, "outcome": "accepted"}
        await self._recorder.write(event(asked.request_id, caller.id, "/v1/predict", **accepted))
        place = f"/v1/jobs/{asked.request_id}"
        return JSONResponse(state, 202, {"Location": place, "Retry-After": "1"})

    async def _rate(self, caller: Caller) -> None:
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
        with contextlib.suppress(InputError, Refused):
            answered = await self.models.predict(question, raw)
            told = {"route": SHADOW, "model": heard.entry.reference, "shadow": answered.entry.reference}
            self._recorder.note({**told, "agreement": compare(heard, answered)})

    async def write(self, told: Mapping[str, Any]) -> None:
        """Write an event of another route down; raises Refused where it cannot be."""
        await self._recorder.write(told)

    def close(self) -> None:
        """End the decoders."""
        self._decoders.close()


async def rendered(kept: Any, what: str, **where: Any) -> Response:
    """One file of an answer.

    Raises:
        Refused: the answer has no such file.
    """
    try:
        file = await asyncio.to_thread(lambda: render(kept, what, **where))
    except ValueError as error:
        raise Refused(422, "no_such_file", str(error), "see the links of the answer") from None
    headers = {"Content-Disposition": f'inline; filename="{file.filename}"', "Cache-Control": "private, no-store"}
    if what == "report":
        headers["Content-Security-Policy"] = REPORT_POLICY
    return Response(file.content, headers=headers, media_type=file.media_type)


def request_id_of(request: Request) -> str:
    """Of a request that the guard let in."""
    return str(request.scope["medray.request"])


def asked_of(query: Mapping[str, str], request_id: str) -> tuple[Asked, str]:
    """What a query asks for, and as what kind of file.

    Raises:
        Refused: a word that is none.
    """
    output, explain = query.get("output", "json"), query.get("explain", "none")
    if output not in OUTPUTS:
        raise Refused(422, "bad_query", "output: there is no such kind", f"take one of {', '.join(OUTPUTS)}")
    keep = query.get("keep")
    if keep is not None and keep.lower() not in TRUTHS:
        raise Refused(422, "bad_query", "keep: neither true nor false")
    kept = True if output != "json" else None if keep is None else TRUTHS[keep.lower()]
    if output == "explanation" and explain == "none":
        explain = "gradcam"
    model, target = query.get("model", ""), query.get("target", "")
    return Asked(request_id, model, "", "" if explain == "none" else explain, target, kept), output


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
