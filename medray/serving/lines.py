"""The lines between the processes of a service on Ray: calls that outlive the replica that they went to.

Errors come back as values: raised in a replica they would be wrapped, and logged with a traceback each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from functools import wraps
from typing import Any, cast

import ray
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from medray.serving.kept import Kept
from medray.serving.messages import Answered, Asked, Entry, Job
from medray.serving.problems import Refused
from medray.types import Array, Case, InputError

TRIES = 5
"""Of one call, each at another replica than one that has died."""
PAUSE_S = 0.1
INLINE_BYTES = 100_000
"""Larger images go through the object store, from which a second try takes them again."""
Method = Callable[..., Coroutine[Any, Any, Any]]


def answered(method: Method) -> Method:
    """A replica's method that gives back what bad input and refusals raise."""

    @wraps(method)
    async def give(*args: Any) -> Any:
        try:
            return await method(*args)
        except (InputError, Refused, OSError) as error:
            return error.with_traceback(None)

    return give


async def call(handle: DeploymentHandle, method: str, *args: Any) -> Any:
    """Call a replica's method; one that dies over it is no reason to fail.

    Raises:
        InputError, Refused, OSError: what the method raised; 503 where nobody is there to answer.
    """
    for attempt in range(TRIES):
        response = getattr(handle, method).remote(*args)
        try:
            found = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except RayActorError:
            await asyncio.sleep(PAUSE_S * 2**attempt)
            continue
        if isinstance(found, Exception):
            raise found
        return found
    raise gone()


def gone() -> Refused:
    """Nobody is there to answer."""
    hint = "send it again after Retry-After seconds"
    return Refused(503, "unavailable", "the processes that answer ended over this request", hint, {"Retry-After": "2"})


class ModelLine:
    """serving/messages.py's Models, in other processes."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def predict(self, asked: Asked, raw: Case) -> Answered:
        """See Models."""
        return cast(Answered, await call(self._handle, "predict", asked, _by_reference(raw)))

    async def follow(self, asked: Asked, raw: Case) -> AsyncGenerator[float | Answered, None]:
        """See Models; begins again where the replica dies."""
        sent = _by_reference(raw)
        for attempt in range(TRIES):
            stream = self._handle.options(stream=True).follow.remote(asked, sent)
            try:
                async for news in stream:
                    if isinstance(news, Exception):
                        raise news
                    yield news
            except RayActorError:
                await asyncio.sleep(PAUSE_S * 2**attempt)
            except (asyncio.CancelledError, GeneratorExit):
                stream.cancel()
                raise
            else:
                return
        raise gone()

    async def infer(self, model: str, images: Array) -> tuple[Entry, Array]:
        """See Models."""
        return cast(tuple[Entry, Array], await call(self._handle, "infer", model, images))

    async def models(self) -> list[dict[str, Any]]:
        """See Models."""
        return cast(list[dict[str, Any]], await call(self._handle, "models"))

    async def card(self, model: str) -> dict[str, Any]:
        """See Models."""
        return cast(dict[str, Any], await call(self._handle, "card", model))


class DeskLine:
    """serving/messages.py's Desk, in another process."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def record(self, events: Sequence[Mapping[str, Any]]) -> None:
        """See Desk."""
        await call(self._handle, "record", list(events))

    async def take(self, caller: str) -> float:
        """See Desk."""
        return float(await call(self._handle, "take", caller))

    async def submit(self, job: Job, raw: Case) -> dict[str, Any]:
        """See Desk."""
        return cast(dict[str, Any], await call(self._handle, "submit", job, _by_reference(raw)))

    async def job(self, job_id: str, caller: str) -> dict[str, Any]:
        """See Desk."""
        return cast(dict[str, Any], await call(self._handle, "job", job_id, caller))

    async def jobs(self, caller: str) -> list[dict[str, Any]]:
        """See Desk."""
        return cast(list[dict[str, Any]], await call(self._handle, "jobs", caller))

    async def cancel(self, job_id: str, caller: str) -> dict[str, Any]:
        """See Desk."""
        return cast(dict[str, Any], await call(self._handle, "cancel", job_id, caller))

    async def keep(self, caller: str, kept: Kept) -> None:
        """See Desk."""
        await call(self._handle, "keep", caller, kept)

    async def kept(self, request_id: str, caller: str) -> Kept:
        """See Desk."""
        (reference,) = await call(self._handle, "kept", request_id, caller)
        return cast(Kept, await reference)

    async def metrics(self) -> str:
        """See Desk."""
        return str(await call(self._handle, "metrics"))

    async def drift(self) -> list[dict[str, Any]]:
        """See Desk."""
        return cast(list[dict[str, Any]], await call(self._handle, "drift"))

    async def agreement(self) -> list[dict[str, Any]]:
        """See Desk."""
        return cast(list[dict[str, Any]], await call(self._handle, "agreement"))


def boxed(kept: Kept) -> list[Any]:
    """A kept answer in the object store: it is copied there once, and not for each who reads it."""
    return [ray.put(kept)]


def _by_reference(raw: Case) -> Any:
    return ray.put(raw) if raw.image.nbytes > INLINE_BYTES else raw
