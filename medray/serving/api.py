"""The HTTP application of an ingress: its routes, its errors, and a guard in front of them."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medray.sections.service import LOOPBACK, ServeSection
from medray.serving import oip, pages, v1
from medray.serving.ingress import Ingress
from medray.serving.problems import Refused, problem, refusal_of
from medray.types import InputError

logger = logging.getLogger(__name__)
HOST = re.compile(r"(?:\[([0-9A-Fa-f:]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?")
REQUEST = "medray.request"
"""In a request's scope: its id."""
HEADERS: Mapping[str, str] = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
OWN = frozenset(("axis", "index", "layer", "job_id", "request_id", "name", "number", "what"))
"""Names of what routes take."""
CODES: Mapping[int, str] = {404: "not_found", 405: "method_not_allowed"}


def build(ingress: Ingress) -> ASGIApp:
    """The application: all routes, behind the guard."""
    cfg = ingress.cfg
    app = FastAPI(
        title="medray",
        description="Medical images in, a model's answer out. Research use only. Not a medical device.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.include_router(v1.routes(ingress))
    app.include_router(oip.routes(ingress))
    app.router.routes.extend(pages.routes())
    for kind in (Refused, InputError, RequestValidationError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _refuse)
    inner: ASGIApp = app
    if cfg.access.cors:
        methods = ["GET", "POST", "DELETE"]
        headers = ["Authorization", "Content-Type", "Prefer", "X-API-Key", "X-Medray-Sticky"]
        shown = ["X-Request-Id", "X-Medray-Model", "Location", "Retry-After"]
        inner = CORSMiddleware(
            inner, cfg.access.cors, allow_methods=methods, allow_headers=headers, expose_headers=shown
        )
    return Guard(inner, cfg)


async def _refuse(request: Request, error: Exception) -> Response:
    """Any error that a request can cause, as a problem; the Open Inference Protocol has a form of its own."""
    return _told(_refusal(error), request.scope)


def _told(refused: Refused, scope: Scope) -> Response:
    if str(scope["path"]).startswith("/v2"):
        text = f"{refused.code}: {refused.detail}" + (f" ({refused.hint})" if refused.hint else "")
        return JSONResponse({"error": text}, refused.status, dict(refused.headers))
    return problem(refused, scope.get(REQUEST, ""))


def _refusal(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, InputError):
        return refusal_of(error)
    if isinstance(error, RequestValidationError):
        # What is wrong and how, never what was sent: names of fields are sent too, unless they are the route's own.
        known = {str(found["loc"][-1]) for found in error.errors() if found["loc"][0] in ("path", "query")}
        fact = ", ".join(sorted(known & OWN)) or "the request"
        return Refused(422, "bad_request", f"{fact}: not as it must be", "see /docs")
    if isinstance(error, ClientDisconnect):
        return Refused(499, "disconnected", "the client has gone")
    if not isinstance(error, HTTPException):
        return Refused(500, "internal", "the service failed over this request", "tell who runs it the request's id")
    code = CODES.get(error.status_code, "bad_request")
    return Refused(error.status_code, code, "there is nothing here", "see /docs", dict(error.headers or {}))


class Guard:
    """Gives each request an id, keeps other sites' pages out, and lets no error out that has no form."""

    def __init__(self, app: ASGIApp, cfg: ServeSection) -> None:
        self._app, self._cfg = app, cfg

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[REQUEST] = request_id = uuid.uuid4().hex
        begun = ended = False

        async def answer(message: Message) -> None:
            nonlocal begun, ended
            if message["type"] == "http.response.start":
                begun = True
                _complete(message, request_id)
            ended = ended or (message["type"] == "http.response.body" and not message.get("more_body", False))
            await send(message)

        try:
            self._let_in(scope)
            await self._app(scope, receive, answer)
        except Exception as error:
            if not isinstance(error, Refused):
                # Its words could hold what is in an image or a path; the log stays on this machine.
                logger.exception("request %s failed", request_id)
            if begun and not ended:
                raise
            if not begun:
                await _told(_refusal(error), scope)(scope, receive, answer)

    def _let_in(self, scope: Scope) -> None:
        """Keep out what a page of another site sends: by a name of its own for this address, or from its own place.

        Raises:
            Refused: 403.
        """
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self._cfg.on_loopback and host and _name(host) not in LOOPBACK:
            raise Refused(403, "foreign_host", "the service listens on loopback, and was called by another name")
        origin = headers.get("origin", "")
        if not origin or origin in self._cfg.access.cors:
            return
        if origin.partition("://")[2] != host and scope["method"] not in ("GET", "HEAD"):
            raise Refused(403, "foreign_origin", "a page of another site may not ask", "see serve.access.cors")


def _name(host: str) -> str:
    """The host's name without its port; empty where it is none."""
    found = HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def _complete(message: MutableMapping[str, Any], request_id: str) -> None:
    """Add what every answer has."""
    headers: list[tuple[bytes, bytes]] = list(message.get("headers", ()))
    there = {name.lower() for name, _ in headers}
    more: Sequence[tuple[str, str]] = [*HEADERS.items(), ("X-Request-Id", request_id)]
    headers += [(name.lower().encode(), value.encode()) for name, value in more if name.lower().encode() not in there]
    message["headers"] = headers
