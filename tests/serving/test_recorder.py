"""Events on their way to the audit: in order, many in one call, and no answer without its line."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from service_phantom import Running, service
from test_ingress import Bundles, Direct, Gate, bundles_of, lines, nifti, of_request, plain_of, png

from medray.serving import ingress, keys, recorder, watched
from medray.serving.audit import AuditLog, default_folder, verify
from medray.serving.problems import Refused
from medray.serving.recorder import Recorder


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "Decoders", Direct)
    monkeypatch.setattr(watched, "LOOK_S", 0.0)


@pytest.fixture
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_of(tmp_path_factory)


@pytest.fixture
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return bundles_of(tmp_path_factory)


class Disk:
    """A desk whose disk is as slow as it is told, and fails when it is told."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = asyncio.Event()
        self.broken: Exception | None = None
        self.at_once = 0

    async def record(self, events: Sequence[Mapping[str, Any]]) -> None:
        assert self.at_once == 0, "one call at a time"
        self.at_once += 1
        self.calls.append([event["n"] for event in events])
        await self.gate.wait()
        self.at_once -= 1
        if self.broken is not None:
            raise self.broken


def scene() -> tuple[Disk, Recorder]:
    disk = Disk()
    return disk, Recorder(disk)  # type: ignore[arg-type]


def spawn(writer: Recorder, number: int) -> asyncio.Task[None]:
    return asyncio.ensure_future(writer.write({"n": number}))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_comes_while_one_call_is_under_way_goes_with_the_next() -> None:
    async def go() -> None:
        disk, writer = scene()
        first = spawn(writer, 0)
        await settle()
        others = [spawn(writer, number) for number in range(1, 100)]
        await settle()
        assert disk.calls == [[0]]
        assert not any(task.done() for task in (first, *others)), "an answer waits for its line"
        disk.gate.set()
        await asyncio.gather(first, *others)
        assert disk.calls == [[0], list(range(1, 100))], "in two calls, each once, in their order"

    asyncio.run(go())


def test_a_disk_that_is_full_costs_the_answers_of_that_call_and_no_later_ones() -> None:
    async def go() -> None:
        disk, writer = scene()
        disk.gate.set()
        disk.broken = OSError("no space left")
        failed = await asyncio.gather(*[spawn(writer, number) for number in range(9)], return_exceptions=True)
        for error in failed:
            assert isinstance(error, Refused)
            assert (error.status, error.code) == (503, "audit_unavailable")
            assert "space" not in error.detail
        disk.broken = None
        await writer.write({"n": 9})
        assert disk.calls[-1] == [9], "what was refused is not written later, as if it had been answered"

    asyncio.run(go())


@pytest.mark.parametrize("error", [Refused(503, "unavailable", "the desk is gone"), RuntimeError("broken")])
def test_no_desk_is_as_no_disk(error: Exception) -> None:
    async def go() -> None:
        disk, writer = scene()
        disk.gate.set()
        disk.broken = error
        with pytest.raises(Refused) as caught:
            await writer.write({"n": 0})
        assert caught.value.code == "audit_unavailable"

    asyncio.run(go())


def test_failures_while_others_wait_reach_only_those_that_they_are_of() -> None:
    async def go() -> None:
        disk, writer = scene()
        disk.broken = OSError()
        first = spawn(writer, 0)
        await settle()
        second = spawn(writer, 1)
        await settle()
        disk.gate.set()
        with pytest.raises(Refused):
            await first
        disk.broken = None
        disk.calls.clear()
        with contextlib.suppress(Refused):
            await second
        await writer.write({"n": 2})
        assert disk.calls[-1] == [2]

    asyncio.run(go())


def test_who_goes_takes_no_line_along() -> None:
    async def go() -> None:
        disk, writer = scene()
        first, second = spawn(writer, 0), spawn(writer, 1)
        await settle()
        third = spawn(writer, 2)
        await settle()
        for task in (first, third):
            task.cancel()
        await settle()
        disk.gate.set()
        await asyncio.wait_for(second, 5)
        await writer.write({"n": 3})
        assert list(chain.from_iterable(disk.calls)) == [0, 1, 2, 3]

    asyncio.run(go())


def test_a_note_waits_for_nothing_and_is_written_all_the_same() -> None:
    async def go() -> None:
        disk, writer = scene()
        for number in range(5):
            writer.note({"n": number})
        await settle()
        disk.gate.set()
        await settle()
        assert list(chain.from_iterable(disk.calls)) == [0, 1, 2, 3, 4]

    asyncio.run(go())


def test_notes_of_a_flood_are_bounded_and_an_answer_is_written_beyond_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "PENDING", 3)

    async def go() -> None:
        disk, writer = scene()
        writer.note({"n": 0})
        await settle()
        for number in range(1, 100):
            writer.note({"n": number})
        answer = spawn(writer, 100)
        await settle()
        disk.gate.set()
        await answer
        assert disk.calls == [[0], [1, 2, 3, 100]]

    asyncio.run(go())


def test_notes_that_cannot_be_written_make_no_noise() -> None:
    async def go() -> list[Any]:
        noise: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
        disk, writer = scene()
        disk.gate.set()
        disk.broken = OSError()
        for number in range(5):
            writer.note({"n": number})
            await settle()
        del writer
        await settle()
        return noise

    assert asyncio.run(go()) == []


# In a service


def fail(*_: Any) -> None:
    raise OSError("no space left on /var/lib/secret")


async def asked(running: Running, path: str = "/v1/predict", **named: Any) -> Any:
    return await running.client.post(path, content=png(), **named)


def test_what_cannot_be_recorded_is_not_answered(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        async with service([bundles.plain, bundles.flat]) as running:
            with monkeypatch.context() as full:
                full.setattr(AuditLog, "append", fail)
                tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1, 16, 16], "data": [0.5] * 256}
                answers = [
                    await asked(running),
                    await asked(running, "/v1/predict?model=flat&output=mask"),
                    await asked(running, headers={"Prefer": "respond-async"}),
                    await running.client.post("/v2/models/plain/infer", json={"inputs": [tensor]}),
                ]
            for answer in answers:
                assert answer.status_code == 503
                assert "audit_unavailable" in answer.text
                assert not any(word in answer.text for word in ("probability", "scores", "secret", "links"))
            assert (await asked(running)).status_code == 200
            drift = (await running.client.get("/v1/drift")).json()["models"]
            assert sum(model["answers"] for model in drift) <= 1, "what was not answered counts for nothing"
            assert not verify(default_folder()).faults

    asyncio.run(go())


def test_what_could_not_be_recorded_cannot_be_fetched_either(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem names the request id, which is where the answer would lie."""

    async def go() -> None:
        async with service([bundles.flat]) as running:
            with monkeypatch.context() as full:
                full.setattr(AuditLog, "append", fail)
                refused = await asked(running)
                assert refused.status_code == 503
                place = f"/v1/results/{refused.json()['request_id']}"
                assert (await running.client.get(place)).status_code == 404
                assert (await running.client.get(f"{place}/mask")).status_code == 404

    asyncio.run(go())


def test_a_job_that_could_not_be_recorded_has_failed_and_its_answer_cannot_be_fetched(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with service([bundles.flat]) as running:
            gate = asyncio.Event()
            follow = running.engine.follow

            async def slowly(*args: Any) -> Any:
                await gate.wait()
                async for news in follow(*args):
                    yield news

            running.engine.follow = slowly  # type: ignore[method-assign]
            place = (await asked(running, headers={"Prefer": "respond-async"})).headers["location"]
            monkeypatch.setattr(AuditLog, "append", fail)
            gate.set()
            for _ in range(500):
                job = (await running.client.get(place)).json()
                if job["state"] not in ("pending", "running"):
                    break
                await asyncio.sleep(0.01)
            assert (job["state"], job["problem"]["code"], job["result"]) == ("failed", "audit_unavailable", None)
            assert (await running.client.get(place.replace("jobs", "results"))).status_code == 404

    asyncio.run(go())


def test_a_job_that_could_not_be_recorded_does_not_start(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        async with service([plain]) as running:
            with monkeypatch.context() as full:
                full.setattr(AuditLog, "append", fail)
                assert (await asked(running, headers={"Prefer": "respond-async"})).status_code == 503
            jobs = (await running.client.get("/v1/jobs")).json()["jobs"]
            assert [job["state"] for job in jobs] in ([], ["cancelled"])

    asyncio.run(go())


@pytest.mark.parametrize("path", ["/v1/predict", "/v2/models/plain/infer"])
def test_who_may_not_ask_is_recorded(plain: Path, home: Path, path: str) -> None:
    key = keys.add(home / "keys.json", "eve", "viewer")

    async def go() -> None:
        async with service([plain]) as running:
            answer = await asked(running, path, headers={"X-API-Key": key})
            line = await of_request(answer.headers["x-request-id"])
            assert (line["caller"], line["status"], line["code"]) == ("eve", 403, "role_too_low")

    asyncio.run(go())


def test_two_hundred_mixed_requests_have_each_its_line_and_the_record_holds(bundles: Bundles, home: Path) -> None:
    made = {name: keys.add(home / "keys.json", name) for name in ("ann", "bob")}

    async def go() -> None:
        async with service([bundles.plain, bundles.flat, bundles.volume]) as running:
            expected: dict[str, tuple[str, int, str]] = {}

            async def one(number: int) -> None:
                name = ("ann", "bob")[number % 2]
                kinds: list[tuple[str, bytes, dict[str, str]]] = [
                    ("", png(number), {}),
                    ("?model=flat", png(number), {}),
                    ("?model=volume", nifti(number), {}),
                    ("?model=volume", png(number), {}),
                    ("?output=x", png(number), {}),
                    ("", b"no image %d" % number, {}),
                    ("?model=nobody", png(number), {}),
                    ("", png(number)[:60], {}),
                    ("?keep=true", png(number), {}),
                    ("", png(number), {"Prefer": "respond-async"}),
                ]
                query, content, headers = kinds[number % 10]
                headers = {**headers, "X-API-Key": made[name]}
                answer = await running.client.post(f"/v1/predict{query}", content=content, headers=headers)
                assert answer.status_code < 500, (number % 10, answer.text)
                expected[answer.headers["x-request-id"]] = (
                    name,
                    answer.status_code,
                    hashlib.sha256(content).hexdigest(),
                )

            for start in range(0, 180, 20):
                await asyncio.gather(*[one(number) for number in range(start, start + 20)])
            gate = Gate(running)
            headers = {"X-API-Key": made["ann"]}
            leaving = [asyncio.ensure_future(asked(running, headers=headers)) for _ in range(20)]
            await gate.until(20)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            gate.open.set()
            for _ in range(500):
                if (
                    len([line for line in lines() if line["route"] == "/v1/predict"]) == 200
                    and not running.desk._jobs.open
                ):
                    break
                await asyncio.sleep(0.01)
            found = [line for line in lines() if line["route"] == "/v1/predict"]
            jobs = [line for line in lines() if line["route"] == "/v1/jobs"]
            assert len(found) == 200
            cancelled = [line for line in found if line["outcome"] == "cancelled"]
            assert len(cancelled) == 20
            for line in found:
                if line["outcome"] != "cancelled":
                    name, status, digest = expected.pop(line["request"])
                    assert (line["caller"], line["status"]) == (name, status)
                    assert line["input"] == ("" if line["code"] == "bad_query" else digest)
                    assert (line["outcome"] == "answered") == (status == 200)
            assert expected == {}
            assert {line["status"] for line in found} >= {200, 202, 404, 415, 422, 499}
            assert [line["outcome"] for line in jobs] == ["answered"] * 18
            assert not any("left_out" in line or "unknown" in line for line in found + jobs)
        verdict = verify(default_folder())
        assert (verdict.lines >= 218, verdict.faults) == (True, ())

    asyncio.run(go())
