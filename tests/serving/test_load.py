"""The load generator against a tiny server in the same loop: what it counts, when it sends, what it calls lost."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from medray.benchmarks.load import Record, Run, Target, closed_loop, hang, open_loop, percentile, summarise

BODIES = [(b"one", "image/png"), (b"two!", "image/jpeg")]
OK: dict[str, Any] = {"model": {"name": "chest", "version": "3"}, "timings_ms": {"forward": 4.0}, "batch": 2}
Handler = Callable[[StreamWriter, bytes, bytes], Awaitable[None]]
"""Is given the writer, head and body of a request."""


def answer(writer: StreamWriter, status: int = 200, body: Any = OK, **fields: str) -> None:
    content = json.dumps(body).encode()
    told = {"Content-Type": "application/json", "Content-Length": str(len(content)), "X-Medray-Model": "chest/3"}
    told |= {name.replace("_", "-"): value for name, value in fields.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    writer.write(f"HTTP/1.1 {status} Word\r\n{head}\r\n".encode() + content)


Connected = Callable[[StreamReader, StreamWriter], Awaitable[None]]
Use = Callable[[str], Coroutine[Any, Any, Any]]


def listening(connected: Connected, use: Use) -> Any:
    """What `use` returns of a server's URL."""
    links: set[asyncio.Task[None]] = set()

    async def accepted(reader: StreamReader, writer: StreamWriter) -> None:
        links.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            await connected(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def both() -> Any:
        async with await asyncio.start_server(accepted, "127.0.0.1", 0) as server:
            found = await use(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await asyncio.wait_for(asyncio.gather(*links), 5)
        return found

    return asyncio.run(both())


def served(handle: Handler, use: Use) -> tuple[Any, int]:
    """The same of a server that hands each request to `handle`, and how many connections it had."""
    opened = 0

    async def connected(reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal opened
        opened += 1
        while not writer.is_closing():
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
            await handle(writer, head, await reader.readexactly(length))

    return listening(connected, use), opened


def test_a_closed_loop_keeps_so_many_requests_going_on_kept_connections() -> None:
    going = most = 0
    heard: list[tuple[bytes, bytes]] = []

    async def handle(writer: StreamWriter, head: bytes, body: bytes) -> None:
        nonlocal going, most
        going += 1
        most = max(most, going)
        heard.append((head, body))
        await asyncio.sleep(0.01)
        going -= 1
        answer(writer, X_Request_Id="ab12")

    async def use(url: str) -> list[Record]:
        return await closed_loop(Run(Target(url, {"X-API-Key": "mk_1"}), BODIES), clients=4, seconds=0.2)

    records, opened = served(handle, use)
    assert (most, opened) == (4, 4)
    assert {body for _, body in heard} == {b"one", b"two!"}
    assert all(head.startswith(b"POST /v1/predict HTTP/1.1\r\n") and b"X-API-Key: mk_1" in head for head, _ in heard)
    assert all(b"image/jpeg" in head for head, body in heard if body == b"two!")
    first = records[0]
    assert (first.status, first.model, first.request_id, first.mixed) == (200, "chest/3", "ab12", False)
    assert first.stages == {"forward": 4.0, "batch": 2}
    told = summarise(records, 0.2, warm_s=0.1)
    assert 10 < told["per_s"] < 500, "four clients, 10 ms each"
    assert told["stages"] == {"forward": 4.0, "batch": 2.0}
    assert told["p50_ms"] >= 10


def test_an_open_loop_goes_on_sending_and_counts_from_the_time_that_was_due() -> None:
    """A server that stalls for 0.3 s: half of the requests that were due meanwhile waited more than 0.1 s."""
    stalled = False

    async def handle(writer: StreamWriter, _head: bytes, _body: bytes) -> None:
        nonlocal stalled
        if not stalled:
            stalled = True
            # The loop itself stands still: the generator in it can send nothing meanwhile, and has to count it anyway.
            time.sleep(0.3)
        answer(writer)

    async def use(url: str) -> list[Record]:
        return await open_loop(Run(Target(url), BODIES), rate=100, seconds=0.4, seed=1)

    records, _ = served(handle, use)
    assert len(records) == pytest.approx(40, abs=20)
    late = [record for record in records if record.seconds > 0.1]
    assert len(late) > 8
    again, _ = served(handle, use)
    assert [one.due for one in sorted(again, key=lambda one: one.due)] == sorted(one.due for one in records)


def test_what_is_lost_has_its_reason() -> None:
    steps = iter(("closed", "cut", "well"))

    async def handle(writer: StreamWriter, _head: bytes, _body: bytes) -> None:
        step = next(steps, "well")
        if step == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            await writer.drain()
        if step == "well":
            answer(writer)
        else:
            writer.close()

    async def use(url: str) -> list[Record]:
        found = await closed_loop(Run(Target(url), BODIES), 1, 0.05)
        return found + await closed_loop(Run(Target("http://127.0.0.1:9"), BODIES), 1, 0.01)

    records, _ = served(handle, use)
    assert [record.error for record in records[:3]] == ["closed", "cut", ""]
    assert records[-1].error == "refused"
    told = summarise(records, 0.05)
    assert told["lost"] == {"closed": 1, "cut": 1, "refused": 1}
    assert told["statuses"] == {"200": told["answered"]}


def test_refusals_are_counted_and_waited_for_by_the_patient() -> None:
    async def handle(writer: StreamWriter, _head: bytes, _body: bytes) -> None:
        answer(writer, 429, {"code": "busy"}, Retry_After="1")

    async def use(url: str, patient: bool) -> list[Record]:
        run = Run(Target(url), BODIES)
        work = asyncio.create_task(closed_loop(run, 2, 0.1, patient))
        await asyncio.wait([work], timeout=0.3)
        work.cancel()
        return run.records

    polite, _ = served(handle, lambda url: use(url, True))
    assert len(polite) == 2, "they still wait"
    rude, _ = served(handle, lambda url: use(url, False))
    assert len(rude) > 4
    told = summarise(rude, 0.1)
    assert (told["answered"], told["refused_without_retry_after"]) == (0, 0)
    assert told["refused_p99_ms"] > 0


def test_an_answer_of_another_model_than_its_header_is_mixed() -> None:
    async def handle(writer: StreamWriter, _head: bytes, body: bytes) -> None:
        answer(writer, X_Medray_Model="chest/4" if body == b"one" else "chest/3")

    async def use(url: str) -> list[Record]:
        return await closed_loop(Run(Target(url), BODIES), 1, 0.03)

    records, _ = served(handle, use)
    told = summarise(records, 0.03)
    assert told["mixed"] == sum(record.model == "chest/4" for record in records) > 0
    assert told["models"] == ["chest/3", "chest/4"]


def test_chunks_early_refusals_and_closing_services_are_understood() -> None:
    sent = 0

    async def handle(writer: StreamWriter, _head: bytes, _body: bytes) -> None:
        nonlocal sent
        sent += 1
        if sent % 2:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b'4\r\n{"ba\r\na\r\ntch": 3, "\r\n6\r\nx": 1}\r\n0\r\n\r\n')
        else:
            answer(writer, Connection="close")
            writer.close()

    async def use(url: str) -> list[Record]:
        return await closed_loop(Run(Target(url), BODIES), 1, 0.05)

    records, opened = served(handle, use)
    assert {record.status for record in records} == {200}
    assert records[0].stages == {"batch": 3}
    assert opened == pytest.approx(len(records) / 2, abs=1)

    async def refuse(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        answer(writer, 413, {})
        await asyncio.sleep(0.2)

    async def early(url: str) -> list[Record]:
        return await closed_loop(Run(Target(url), [(bytes(8 << 20), "image/png")]), 1, 0.01)

    assert listening(refuse, early)[0].status == 413


def test_slow_uploads_send_half_and_come_again() -> None:
    lengths: list[int] = []

    async def slow(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        lengths.append(len(await reader.read(1 << 20)))
        await asyncio.sleep(0.05)
        answer(writer, 408, {})

    found = listening(slow, lambda url: hang(Target(url), 5, 0.4, (bytes(100), "image/png")))
    assert set(lengths) == {50}
    assert found["open"] == 5
    assert list(found["ended"]) == ["408"]
    assert found["ended"]["408"] >= 5
    assert 0.05 <= found["held_s"] < 0.4


def test_percentiles_and_the_window_of_a_summary() -> None:
    assert (percentile([3, 1, 2], 0.5), percentile([1, 2], 0.99), percentile([], 0.5)) == (2, 2, 0)
    # One from the warm-up that ends in the window counts for the rate and not for the latency; one after it neither.
    records = [Record(0.5, 1.0, 200), Record(1.2, 0.1, 200), Record(1.9, 0.5, 200)]
    told = summarise(records, seconds=2.0, warm_s=1.0)
    assert (told["per_s"], told["answered"], told["requests"]) == (2.0, 2, 2)


def test_a_process_of_its_own_says_one_line_of_json(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"one")

    async def handle(writer: StreamWriter, head: bytes, _body: bytes) -> None:
        assert b"Content-Type: image/png" in head
        assert head.startswith(b"POST /v1/predict?model=chest ")
        answer(writer)

    async def use(url: str) -> list[dict[str, Any]]:
        found = []
        for options in (["--clients", "2"], ["--rate", "50"], ["--hang", "3"]):
            command = [sys.executable, "-m", "medray.benchmarks.load", f"{url}/v1/predict?model=chest", "x.png"]
            process = await asyncio.create_subprocess_exec(
                *command, *options, "--seconds", "0.3", cwd=tmp_path, stdout=subprocess.PIPE
            )
            found.append(json.loads((await process.communicate())[0]))
        return found

    (closed, opened, hung), _ = served(handle, use)
    assert closed["answered"] > 2
    assert opened["answered"] == pytest.approx(15, abs=12)
    assert hung["open"] == 3
