"""The whole service in one process and without Ray: HTTP goes straight to the application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from medray.sections.service import ServeSection
from medray.serving.api import build
from medray.serving.desk import Desk
from medray.serving.engine import Engine
from medray.serving.ingress import Ingress
from medray.serving.lineup import of_bundle
from medray.serving.messages import Entry

ADDRESS = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Running:
    """A service, and a client of it."""

    client: httpx.AsyncClient
    ingress: Ingress
    engine: Engine
    desk: Desk


@contextlib.asynccontextmanager
async def service(bundles: Sequence[Path | Entry], **settings: Any) -> AsyncIterator[Running]:
    """A service of these bundles; `settings` are of the section `serve`."""
    cfg = ServeSection.model_validate({"decoders": 1, **settings})
    engine = Engine(cfg)
    engine.serve([one if isinstance(one, Entry) else of_bundle(one) for one in bundles])
    desk = Desk(cfg, engine)
    ingress = Ingress(cfg, engine, desk)
    transport = httpx.ASGITransport(build(ingress), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url=ADDRESS, timeout=60) as client:
            yield Running(client, ingress, engine, desk)
    finally:
        ingress.close()
        desk.close()
        engine.close()
