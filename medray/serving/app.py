"""The service on Ray Serve: three deployments around plain classes, and how they are started and changed.

ingress  serving/api.py       many slots, no CPU of its own: reads, checks and decodes uploads
model    serving/engine.py    autoscaled, with CPUs or a GPU: all models that are served, and one lane to the device
desk     serving/desk.py      one small process: jobs, results, counters, audit, metrics
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from medray.sections.service import ServeSection
from medray.serving.lines import DeskLine, ModelLine, answered, boxed
from medray.serving.messages import Answered, Asked, Entry, Job
from medray.serving.problems import Refused
from medray.types import Array, Case, InputError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

NAME = "medray"
SLOTS = 4096
"""Requests that an ingress holds at once; most of them may be uploads that hardly come."""
SWITCH_S = 5e-4
"""How long a Python thread may hold up another: by default 10 times that, which a forward pass would wait for at each
of its layers."""
QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")


class Model:
    """A replica of `model`."""

    def __init__(self, settings: Mapping[str, Any], cpus: float) -> None:
        import torch

        from medray.serving.engine import Engine

        sys.setswitchinterval(SWITCH_S)
        torch.set_num_threads(max(1, int(cpus)))
        cfg = ServeSection.model_validate(settings)
        self._engine = Engine(cfg, cfg.device)

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Serve what `configured` says; called by Serve at the start and at every change."""
        lineup, standby = ([Entry.of(plain) for plain in config[part]] for part in ("lineup", "standby"))
        await asyncio.to_thread(self._engine.serve, lineup, standby)

    @answered
    async def predict(self, asked: Asked, raw: Case) -> Answered:
        """See messages.Models."""
        return await self._engine.predict(asked, raw)

    async def follow(self, asked: Asked, raw: Case) -> AsyncIterator[Any]:
        """See messages.Models."""
        try:
            async for news in self._engine.follow(asked, raw):
                yield news
        except (InputError, Refused) as error:
            yield error.with_traceback(None)

    @answered
    async def infer(self, model: str, images: Array) -> tuple[Entry, Array]:
        """See messages.Models."""
        return await self._engine.infer(model, images)

    @answered
    async def models(self) -> list[dict[str, Any]]:
        """See messages.Models."""
        return await self._engine.models()

    @answered
    async def card(self, model: str) -> dict[str, Any]:
        """See messages.Models."""
        return await self._engine.card(model)


class DeskReplica:
    """The replica of `desk`."""

    def __init__(self, settings: Mapping[str, Any], models: DeploymentHandle) -> None:
        from medray.serving.desk import Desk

        self._desk = Desk(ServeSection.model_validate(settings), ModelLine(models), boxed)

    @answered
    async def record(self, events: Sequence[Mapping[str, Any]]) -> None:
        """See messages.Desk."""
        await self._desk.record(events)

    @answered
    async def take(self, caller: str) -> float:
        """See messages.Desk."""
        return await self._desk.take(caller)

    @answered
    async def submit(self, job: Job, raw: Case) -> dict[str, Any]:
        """See messages.Desk."""
        return await self._desk.submit(job, raw)

    @answered
    async def job(self, job_id: str, caller: str) -> dict[str, Any]:
        """See messages.Desk."""
        return await self._desk.job(job_id, caller)

    @answered
    async def jobs(self, caller: str) -> list[dict[str, Any]]:
        """See messages.Desk."""
        return await self._desk.jobs(caller)

    @answered
    async def cancel(self, job_id: str, caller: str) -> dict[str, Any]:
        """See messages.Desk."""
        return await self._desk.cancel(job_id, caller)

    @answered
    async def keep(self, caller: str, kept: Any) -> None:
        """See messages.Desk."""
        await self._desk.keep(caller, kept)

    @answered
    async def kept(self, request_id: str, caller: str) -> Any:
        """See messages.Desk."""
        return await self._desk.kept(request_id, caller)

    @answered
    async def metrics(self) -> str:
        """See messages.Desk."""
        return await self._desk.metrics()

    @answered
    async def drift(self) -> list[dict[str, Any]]:
        """See messages.Desk."""
        return await self._desk.drift()

    @answered
    async def agreement(self) -> list[dict[str, Any]]:
        """See messages.Desk."""
        return await self._desk.agreement()


@serve.ingress()
class IngressReplica:
    """A replica of `ingress`."""

    def __init__(self, settings: Mapping[str, Any], models: DeploymentHandle, desk: DeploymentHandle) -> None:
        self._settings, self._models, self._desk = settings, models, desk

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What answers HTTP; Serve asks for it in the replica."""
        from medray.serving.api import build
        from medray.serving.ingress import Ingress

        cfg = ServeSection.model_validate(self._settings)
        return build(Ingress(cfg, ModelLine(self._models), DeskLine(self._desk)))


def application(
    lineup: Sequence[Entry], cfg: ServeSection, cpus: float, gpu: bool, standby: Sequence[Entry] = ()
) -> Any:
    """The Serve application.

    Args:
        lineup: what is served, the first by default.
        cfg: the settings.
        cpus: of each model replica, and its threads.
        gpu: whether each has a GPU.
        standby: what is loaded too, and not asked.
    """
    settings = cfg.model_copy(update={"device": "cuda" if gpu else "cpu"}).model_dump(mode="json")
    scaling = {
        "min_replicas": cfg.min_replicas,
        "max_replicas": cfg.most_replicas,
        "target_ongoing_requests": cfg.target_ongoing_requests,
        "upscale_delay_s": cfg.upscale_delay_s,
        "downscale_delay_s": cfg.downscale_delay_s,
    }
    model = _deployment(
        Model,
        settings,
        name="model",
        autoscaling_config=scaling,
        max_ongoing_requests=cfg.max_ongoing_requests,
        ray_actor_options={"num_cpus": cpus, "num_gpus": int(gpu)},
        user_config={"lineup": [one.as_dict() for one in lineup], "standby": [one.as_dict() for one in standby]},
    ).bind(settings, cpus)
    small = {"max_ongoing_requests": SLOTS, "ray_actor_options": {"num_cpus": 0}}
    desk = _deployment(DeskReplica, settings, name="desk", num_replicas=1, **small).bind(settings, model)
    ingress = _deployment(IngressReplica, settings, name="ingress", num_replicas=cfg.ingresses, **small)
    return ingress.bind(settings, model, desk)


def _deployment(kind: Any, settings: Mapping[str, Any], **options: Any) -> Any:
    """A deployment whose replicas stay when nothing but its user_config changes."""
    told = json.dumps([version("medray"), settings, {**options, "user_config": None}], sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()
    return serve.deployment(**options)(kind).options(version=digest, _internal=True)


def start(cfg: ServeSection) -> str:
    """Start Serve's HTTP server on the connected cluster; the service's address."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    options: dict[str, Any] = {"host": cfg.host, "port": cfg.port, "request_timeout_s": None}
    if cfg.certificate is not None:
        options |= {"ssl_certfile": str(cfg.certificate), "ssl_keyfile": str(cfg.private_key)}
    serve.start(http_options=options, logging_config=QUIET)
    host = f"[{cfg.host}]" if ":" in cfg.host else cfg.host
    return f"{'https' if cfg.certificate else 'http'}://{host}:{cfg.port}"


def deploy(target: Any) -> None:
    """Deploy an application, or change the one that runs; returns when all replicas are as it says."""
    serve.run(target, name=NAME, route_prefix="/", logging_config=QUIET)


def stop() -> None:
    """Take the service off the cluster, which may go on without it."""
    serve.delete(NAME)
