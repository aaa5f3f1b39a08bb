"""A load generator for HTTP services: asyncio and raw HTTP/1.1 alone, so that driving costs little of the cores.

Closed loop: so many clients, each of which sends its next request once it has its answer. Open loop: requests leave at
times drawn beforehand (Poisson), from which latency counts: a service that stalls is not asked less. Slow uploads:
connections that send half a body and then nothing.
Command: python -m medray.benchmarks.load URL FILE ... [--clients N | --rate R | --hang N] [--seconds S]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import resource
import sys
import time
from asyncio import StreamReader, StreamWriter
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

Body = tuple[bytes, str]  # what is sent, and its Content-Type
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".dcm": "application/dicom", ".json": "application/json"}
PREDICT = "/v1/predict"
TIMEOUT_S = 120.0
PAUSE_S = 0.05  # before a client tries again where nobody listens
HALVED: Body = (bytes(1 << 16), "image/png")


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one request."""

    due: float
    """Seconds after the start at which it was sent, or should have been; `seconds` count from then."""
    seconds: float
    status: int = 0
    """0 where it was lost: `error` is refused, closed (without a status), cut (in the middle of an answer), timeout."""
    error: str = ""
    model: str = ""
    """The header X-Medray-Model; `mixed` where the body names another."""
    request_id: str = ""
    retry_after: float | None = None
    mixed: bool = False
    stages: Mapping[str, float] = field(default_factory=dict)
    """The body's timings_ms, and its batch."""


class Lost(Exception):
    """No answer; its only argument is one of Record.error."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go: http://host:port/path?query, to PREDICT without a path."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self, body: Body) -> bytes:
        """The bytes of a POST."""
        parts = urlsplit(self.url)
        path = (parts.path.rstrip("/") or PREDICT) + f"?{parts.query}" * bool(parts.query)
        fields = {"Host": parts.netloc, "Content-Type": body[1], "Content-Length": len(body[0]), **self.headers}
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        return "\r\n".join(lines).encode() + body[0]

    async def connect(self) -> tuple[StreamReader, StreamWriter]:
        """A new connection. Raises Lost."""
        parts = urlsplit(self.url)
        try:
            return await asyncio.open_connection(parts.hostname, parts.port or 80)
        except OSError:
            raise Lost("refused") from None


Reply = tuple[int, dict[str, str], bytes]  # status, header fields by their lower-case names, body


async def reply(reader: StreamReader) -> Reply:
    """The next answer on a connection. Raises Lost."""
    error = "closed"
    try:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        error = "cut"
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        if fields.get("transfer-encoding", "").lower() != "chunked":
            return int(first.split()[1]), fields, await reader.readexactly(int(fields.get("content-length", "0")))
        parts = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            parts.append((await reader.readexactly(size + 2))[:-2])
        await reader.readuntil(b"\r\n")
        return int(first.split()[1]), fields, b"".join(parts)
    except (OSError, EOFError):
        raise Lost(error) from None


class Link:
    """One client's connection, kept alive and opened again where the service has closed it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._streams: tuple[StreamReader, StreamWriter] | None = None

    async def ask(self, request: bytes) -> Reply:
        """The answer to a request. Raises Lost."""
        keep, streams = False, self._streams
        if streams is None or streams[0].at_eof() or streams[1].is_closing():
            self.close()
            streams = self._streams = await self._target.connect()
        try:
            # Not drained: a service may refuse a body before it has come, and then reads no more of it.
            streams[1].write(request)
            found = await reply(streams[0])
            keep = found[1].get("connection", "") != "close" and not streams[1].transport.get_write_buffer_size()
            return found
        finally:
            if not keep:
                self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].transport.abort()
        self._streams = None


class Run:
    """Requests from one start with bodies in turn, and their records."""

    def __init__(self, target: Target, bodies: Sequence[Body]) -> None:
        self.target, self.records = target, list[Record]()
        self._requests, self._number = [target.request(body) for body in bodies], count()
        self._began = time.perf_counter()

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    async def one(self, link: Link, due: float) -> Record:
        """Send the next request."""
        request = self._requests[next(self._number) % len(self._requests)]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found = await link.ask(request)
            record = _record(due, self.now() - due, found)
        except (Lost, TimeoutError) as error:
            record = Record(due, self.now() - due, error=str(error) or "timeout")
        self.records.append(record)
        return record


def _record(due: float, seconds: float, found: Reply) -> Record:
    status, fields, content = found
    body = json.loads(content) if "json" in fields.get("content-type", "") else {}
    named, model, after = body.get("model", ""), fields.get("x-medray-model", ""), fields.get("retry-after", "")
    if isinstance(named, dict):
        named = f"{named.get('name')}/{named.get('version')}"
    mixed, wait = bool(named and model) and named != model, float(after) if after.isdigit() else None
    stages = dict(body.get("timings_ms") or {}) | ({"batch": body["batch"]} if "batch" in body else {})
    return Record(due, seconds, status, "", model, fields.get("x-request-id", ""), wait, mixed, stages)


async def closed_loop(run: Run, clients: int, seconds: float, patient: bool = False) -> list[Record]:
    """The records of `clients` that ask one request after another; `patient`: they wait as Retry-After says."""

    async def client(draw: Random) -> None:
        with closing(Link(run.target)) as link:
            while run.now() < seconds:
                record = await run.one(link, run.now())
                if patient and record.retry_after is not None:
                    await asyncio.sleep(record.retry_after * draw.uniform(1, 1.5))
                elif record.error == "refused":
                    await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(client(Random(number)) for number in range(clients)))  # noqa: S311
    return run.records


async def open_loop(run: Run, rate: float, seconds: float, seed: int = 0) -> list[Record]:
    """The records of `rate` requests per second, sent whether the ones before were answered or not."""
    draw, idle = Random(seed), list[Link]()  # noqa: S311

    async def client(due: float) -> None:
        link = idle.pop() if idle else links.enter_context(closing(Link(run.target)))
        await run.one(link, due)
        idle.append(link)

    due = draw.expovariate(rate)
    with ExitStack() as links:
        async with asyncio.TaskGroup() as group:
            while due < seconds:
                await asyncio.sleep(max(0.0, due - run.now()))
                group.create_task(client(due))
                due += draw.expovariate(rate)
    return run.records


async def hang(target: Target, connections: int, seconds: float, body: Body = HALVED) -> dict[str, Any]:
    """Hold `connections` with half a body each for `seconds`, opening those again that the service ends.

    Returns the most that were open at once, how often each status (or word of Lost) ended one, and after how many
    seconds in the median.
    """
    half = target.request(body)[: -(len(body[0]) // 2)]
    ended, held, now, most = Counter[str](), list[float](), 0, 0

    async def one() -> None:
        nonlocal now, most
        while True:
            streams, started = None, time.perf_counter()
            try:
                streams = await target.connect()
                now, most = now + 1, max(most, now + 1)
                streams[1].write(half)
                ended[str((await reply(streams[0]))[0])] += 1
                held.append(time.perf_counter() - started)
            except Lost as error:
                ended[str(error)] += 1
                await asyncio.sleep(PAUSE_S)
            finally:
                if streams is not None:
                    now -= 1
                    streams[1].transport.abort()

    tasks = [asyncio.create_task(one()) for _ in range(connections)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {"open": most, "ended": dict(ended), "held_s": percentile(held, 0.5)}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that `share` of them do not exceed; 0 of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0


def summarise(records: Sequence[Record], seconds: float, warm_s: float = 0.0) -> dict[str, Any]:
    """The figures of a run of `seconds` without its first `warm_s`.

    per_s counts the 200s that came in that time; p50_ms to p99_ms are theirs; refused_* are of 429 and 503; stages are
    the means of what the bodies tell.
    """
    seen = [record for record in records if record.due >= warm_s]
    good = [record.seconds for record in seen if record.status == 200]
    refused = [record for record in seen if record.status in (429, 503)]
    done = sum(record.status == 200 and warm_s <= record.due + record.seconds <= seconds for record in records)
    told: dict[str, list[float]] = {}
    for name, value in (pair for record in seen for pair in record.stages.items()):
        told.setdefault(name, []).append(value)
    return {
        "sent": len(records),
        "requests": len(seen),
        "answered": len(good),
        "per_s": done / (seconds - warm_s),
        **{f"p{share}_ms": 1e3 * percentile(good, share / 100) for share in (50, 90, 95, 99)},
        "statuses": dict(Counter(str(record.status) for record in seen if record.status)),
        "lost": dict(Counter(record.error for record in seen if record.error)),
        "refused_p99_ms": 1e3 * percentile([record.seconds for record in refused], 0.99),
        "refused_without_retry_after": sum(record.retry_after is None for record in refused),
        "models": sorted({record.model for record in seen if record.model}),
        "mixed": sum(record.mixed for record in seen),
        "stages": {name: sum(values) / len(values) for name, values in told.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Drive a service from a process of its own; one line of JSON on stdout."""
    parser = argparse.ArgumentParser(prog="python -m medray.benchmarks.load", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("files", nargs="+", type=Path)
    for name, default in (("clients", 8), ("rate", 0.0), ("hang", 0), ("seconds", 10.0), ("warm", 0.0)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--patient", action="store_true", help="wait as Retry-After says")
    parser.add_argument("--header", action="append", default=[], help="'Name: value'")
    cfg = parser.parse_args(arguments)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bodies = [(file.read_bytes(), KINDS.get(file.suffix, "application/octet-stream")) for file in cfg.files]
    run = Run(Target(cfg.url, dict(header.split(": ", 1) for header in cfg.header)), bodies)
    if cfg.hang:
        found = asyncio.run(hang(run.target, cfg.hang, cfg.seconds, bodies[0]))
    else:
        rated = open_loop(run, cfg.rate, cfg.seconds) if cfg.rate else None
        asyncio.run(rated or closed_loop(run, cfg.clients, cfg.seconds, cfg.patient))
        found = summarise(run.records, cfg.seconds, cfg.warm)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
