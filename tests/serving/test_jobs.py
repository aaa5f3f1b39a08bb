"""Jobs: they go their way without who asked, end in every case, are told to their owner alone, and are forgotten."""

from __future__ import annotations

import asyncio
import copy
import gc
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_phantom import Running, service
from test_ingress import Bundles, Direct, bundles_of, lines, nifti, of_request, plain_of, png

from medray.sections.service import ServeSection
from medray.serving import ingress, keys, watched
from medray.serving.jobs import Jobs
from medray.serving.messages import Answered, Asked, Entry, Job
from medray.serving.problems import Refused
from medray.types import Case, InputError

ENTRY = Entry("phantom", "3", "ab" * 32, "nowhere")
ENDED = ("completed", "failed", "cancelled")


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


class Thinker:
    """Models that tell shares one by one as they are let, and then answer or fail."""

    def __init__(self, *shares: float, ending: BaseException | None = None, silent: bool = False) -> None:
        self.shares, self.ending, self.silent = shares, ending, silent
        self.let = asyncio.Semaphore(0)
        self.at_work = self.most = self.ended = 0

    async def follow(self, _asked: Asked, _raw: Case) -> AsyncIterator[float | Answered]:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            for share in self.shares:
                await self.let.acquire()
                yield share
            await self.let.acquire()
            if self.ending is not None:
                # A new one each time: what is raised holds on to whom it passed.
                raise copy.copy(self.ending)
            if not self.silent:
                yield Answered(ENTRY, {}, {}, 1, {})
        finally:
            self.at_work -= 1
            self.ended += 1


class Office:
    """Jobs alone, what they finish and what they tell."""

    def __init__(self, models: Any, **changes: Any) -> None:
        self.told: list[tuple[str, str]] = []
        self.finished: list[str] = []
        self.broken: Exception | None = None
        cfg = ServeSection.model_validate({"max_replicas": 2, **changes})
        self.jobs = Jobs(cfg, models, self.finish, self.tell)

    async def finish(self, job: Job, _raw: Case, _answered: Answered) -> dict[str, Any]:
        self.finished.append(job.asked.request_id)
        return {"request_id": job.asked.request_id}

    async def tell(self, job: Job, answered: Answered | None, refused: Refused | None) -> None:
        if self.broken is not None:
            raise copy.copy(self.broken)
        self.told.append((job.asked.request_id, "answered" if answered else refused.code if refused else "nothing"))

    def submit(self, caller: str = "ann", size: int = 4, source: bytes = b"image") -> str:
        raw = Case("upload", np.zeros((1, size, size), np.uint8), np.eye(3))
        job = Job(Asked(uuid.uuid4().hex), caller, source, "png")
        state = self.jobs.submit(job, raw)
        assert state["state"] == "pending"
        return str(state["id"])


async def until(true: Callable[[], Any]) -> None:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < 10
        await asyncio.sleep(0.002)


def refusal(function: Callable[..., Any], *args: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        function(*args)
    return caught.value


# Alone


def test_progress_rises_and_never_falls() -> None:
    """A replica that died is followed by another, which begins at nothing."""

    async def go() -> None:
        models = Thinker(0.1, 0.4, 0.2, 0.0, 0.5, 1.0)
        office = Office(models)
        job = office.submit()
        seen = [0.0]
        for _ in range(7):
            models.let.release()
            for _ in range(20):
                await asyncio.sleep(0)
            seen.append(office.jobs.state(job, "ann")["progress"])
        assert seen == [0.0, 0.1, 0.4, 0.4, 0.4, 0.5, 1.0, 1.0]
        state = office.jobs.state(job, "ann")
        assert (state["state"], state["model"]) == ("completed", "phantom/3")
        assert state["links"] == {"self": f"/v1/jobs/{job}", "result": f"/v1/results/{job}"}
        assert state["result"] == {"request_id": job}
        assert office.told == [(job, "answered")]

    asyncio.run(go())


@pytest.mark.parametrize(
    ("models", "status", "code"),
    [
        (lambda: Thinker(ending=InputError("wrong_rank", "2 axes", "give 3")), 422, "wrong_rank"),
        (lambda: Thinker(0.5, ending=Refused(503, "out_of_memory", "no room", "later")), 503, "out_of_memory"),
        (lambda: Thinker(0.5, ending=RuntimeError("/secret/path of Doe^Jane")), 503, "job_failed"),
        (lambda: Thinker(0.5, ending=KeyError("Doe^Jane")), 503, "job_failed"),
        (lambda: Thinker(0.5, ending=MemoryError()), 503, "job_failed"),
        (lambda: Thinker(0.5, silent=True), 503, "job_failed"),
    ],
)
def test_a_job_that_fails_says_why_and_nothing_of_the_image(models: Any, status: int, code: str) -> None:
    async def go() -> None:
        thinker = models()
        office = Office(thinker)
        job = office.submit()
        for _ in range(3):
            thinker.let.release()
        await until(lambda: office.jobs.state(job, "")["state"] in ENDED)
        state = office.jobs.state(job, "ann")
        assert (state["state"], state["result"], list(state["links"])) == ("failed", None, ["self"])
        assert (state["problem"]["status"], state["problem"]["code"]) == (status, code)
        assert set(state["problem"]) == {"status", "code", "title", "detail", "hint"}
        assert "Doe" not in str(state)
        assert office.told == [(job, code)]
        assert office.jobs.open == 0

    asyncio.run(go())


def test_cancelling_ends_the_work_and_keeps_its_word() -> None:
    async def go() -> None:
        models = Thinker(0.5, 1.0)
        office = Office(models)
        job = office.submit()
        models.let.release()
        await until(lambda: office.jobs.state(job, "")["progress"])
        assert (await office.jobs.cancel(job, "ann"))["state"] == "cancelled"
        await until(lambda: models.ended)
        assert (models.at_work, office.finished) == (0, [])
        state = await office.jobs.cancel(job, "ann")
        assert (state["state"], state["result"], state["progress"]) == ("cancelled", None, 0.5)
        assert office.told == [(job, "cancelled")]

    asyncio.run(go())


def test_a_job_that_waits_can_be_cancelled_too() -> None:
    async def go() -> None:
        models = Thinker()
        office = Office(models, max_replicas=1)
        first, second, third = (office.submit() for _ in range(3))
        await until(lambda: models.at_work == 2)
        await office.jobs.cancel(third, "ann")
        for _ in range(2):
            models.let.release()
        await until(lambda: office.jobs.open == 0)
        states = [office.jobs.state(job, "")["state"] for job in (first, second, third)]
        assert states == ["completed", "completed", "cancelled"]
        await until(lambda: len(office.told) == 3)
        assert (third, "cancelled") in office.told

    asyncio.run(go())


def test_a_job_that_has_not_begun_is_told_of_when_it_is_cancelled() -> None:
    async def go() -> None:
        office = Office(Thinker())
        job = office.submit()
        await office.jobs.cancel(job, "ann")
        await asyncio.sleep(0.05)
        assert office.told == [(job, "cancelled")]

    asyncio.run(go())


def test_what_is_cancelled_at_the_last_moment_is_one_or_the_other() -> None:
    async def go() -> None:
        models = Thinker()
        office = Office(models)
        telling = asyncio.Event()

        async def slowly(*args: Any) -> None:
            telling.set()
            await asyncio.sleep(0.05)
            await office.tell(*args)

        office.jobs._tell = slowly
        job = office.submit()
        models.let.release()
        await telling.wait()
        await office.jobs.cancel(job, "ann")
        await asyncio.sleep(0.2)
        state = office.jobs.state(job, "")
        if state["state"] == "cancelled":
            assert (state["result"], list(state["links"])) == (None, ["self"])
        assert len(office.told) == 1

    asyncio.run(go())


def test_a_result_is_not_told_before_it_is_recorded() -> None:
    async def go() -> None:
        models = Thinker()
        office = Office(models)
        telling = asyncio.Event()

        async def slowly(*_: Any) -> None:
            telling.set()
            await asyncio.Event().wait()

        office.jobs._tell = slowly
        job = office.submit()
        models.let.release()
        await telling.wait()
        state = office.jobs.state(job, "")
        assert state["result"] is None

    asyncio.run(go())


def test_a_cancelled_job_makes_no_noise_where_the_audit_is_full() -> None:
    async def go() -> list[Any]:
        noise: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
        office = Office(Thinker())
        office.broken = OSError("full")
        job = office.submit()
        await asyncio.sleep(0)
        await office.jobs.cancel(job, "ann")
        await asyncio.sleep(0.01)
        office.jobs._jobs.clear()
        gc.collect()
        return noise

    assert asyncio.run(go()) == []


def test_an_audit_that_fails_makes_a_job_fail() -> None:
    async def go() -> None:
        models = Thinker()
        office = Office(models)
        office.broken = OSError("full")
        job = office.submit()
        models.let.release()
        await until(lambda: office.jobs.state(job, "")["state"] in ENDED)
        state = office.jobs.state(job, "")
        assert (state["state"], state["problem"]["code"], state["result"]) == ("failed", "audit_unavailable", None)

    asyncio.run(go())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_error_leaves_a_job_without_an_end() -> None:
    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        models = Thinker()
        office = Office(models)
        office.broken = RuntimeError("broken")
        job = office.submit()
        models.let.release()
        await asyncio.sleep(0.05)
        assert office.jobs.state(job, "")["state"] in ENDED

    asyncio.run(go())


def test_no_more_run_at_once_than_there_are_places_and_the_first_come_first() -> None:
    async def go() -> None:
        models = Thinker()
        office = Office(models, max_replicas=2)
        jobs = [office.submit() for _ in range(12)]
        await until(lambda: models.at_work == 4)
        states = [office.jobs.state(job, "")["state"] for job in jobs]
        assert states == ["running"] * 4 + ["pending"] * 8
        for _ in jobs:
            models.let.release()
        await until(lambda: office.jobs.open == 0)
        assert models.most == 4
        assert office.finished == jobs

    asyncio.run(go())


def test_too_many_jobs_are_429_until_one_has_ended() -> None:
    async def go() -> None:
        models = Thinker()
        office = Office(models, jobs=3)
        jobs = [office.submit() for _ in range(3)]
        found = refusal(office.submit)
        assert (found.status, found.code) == (429, "too_many_jobs")
        assert int(found.headers["Retry-After"]) > 0
        await office.jobs.cancel(jobs[0], "ann")
        office.submit()

    asyncio.run(go())


def test_jobs_take_no_more_memory_than_results_may() -> None:
    async def go() -> None:
        office = Office(Thinker(), keep_mb=1.0)
        office.submit(size=700)
        assert refusal(lambda: office.submit(size=800)).code == "too_many_jobs"
        office.submit(size=100)
        await asyncio.sleep(0)

    asyncio.run(go())


def test_a_single_job_may_be_larger_than_that() -> None:
    async def go() -> None:
        Office(Thinker(), keep_mb=0.1).submit(size=700)
        await asyncio.sleep(0)

    asyncio.run(go())


class Weighed(bytes):
    """Bytes that say when they are gone."""

    gone: list[str]

    def __del__(self) -> None:
        self.gone.append("gone")


@pytest.mark.parametrize("ending", [None, RuntimeError("broken")])
def test_a_job_that_has_ended_holds_the_image_no_more(ending: Exception | None) -> None:
    """Otherwise many that end soon fill the memory of the one process that remembers."""

    async def go() -> None:
        models = Thinker(ending=ending)
        office = Office(models)
        source = Weighed(b"x" * 1000)
        source.gone = gone = []
        job = office.submit(source=source)
        del source
        models.let.release()
        await until(lambda: office.jobs.state(job, "")["state"] in ENDED)
        await asyncio.sleep(0.01)
        gc.collect()
        assert gone == ["gone"]

    asyncio.run(go())


@pytest.mark.parametrize("ending", [None, RuntimeError("broken"), "cancel"])
def test_a_job_that_has_ended_holds_no_voxels(ending: Any) -> None:
    async def go() -> None:
        models = Thinker(ending=ending if isinstance(ending, Exception) else None)
        office = Office(models)
        voxels = np.zeros((1, 64, 64), np.uint8)
        still = weakref.ref(voxels)
        job = Job(Asked("a" * 32), "ann", b"", "png")
        office.jobs.submit(job, Case("upload", voxels, np.eye(3)))
        del voxels
        await until(lambda: models.at_work)
        if ending == "cancel":
            await office.jobs.cancel("a" * 32, "ann")
        models.let.release()
        await until(lambda: office.jobs.open == 0)
        await asyncio.sleep(0.01)
        gc.collect()
        assert still() is None

    asyncio.run(go())


def test_jobs_are_told_to_their_owner_alone() -> None:
    async def go() -> None:
        office = Office(Thinker())
        job = office.submit("ann")
        strange, unknown = (refusal(office.jobs.state, *which) for which in ((job, "bob"), ("0" * 32, "bob")))
        assert (strange.status, strange.code, strange.detail) == (unknown.status, unknown.code, unknown.detail)
        with pytest.raises(Refused) as caught:
            await office.jobs.cancel(job, "bob")
        assert caught.value.status == 404
        assert office.jobs.state(job, "ann") == office.jobs.state(job, "")
        assert (len(office.jobs.all("ann")), office.jobs.all("bob"), len(office.jobs.all(""))) == (1, [], 1)

    asyncio.run(go())


def test_jobs_are_forgotten_some_time_after_their_end_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("medray.serving.jobs.time.time", lambda: now[0])

    async def go() -> None:
        models = Thinker()
        office = Office(models, keep_s=60.0)
        job = office.submit()
        now[0] += 1000
        assert office.jobs.state(job, "")["expires"] is None, "it has not ended yet"
        models.let.release()
        await until(lambda: office.jobs.open == 0)
        now[0] += 59
        assert office.jobs.state(job, "")["expires"] == "1970-01-01T00:34:20.000Z"
        now[0] += 2
        assert refusal(office.jobs.state, job, "").status == 404
        assert office.jobs.all("") == []

    asyncio.run(go())


# Over HTTP


async def ended(running: Running, place: str, **headers: str) -> dict[str, Any]:
    for _ in range(1000):
        state: dict[str, Any] = (await running.client.get(place, headers=headers)).json()
        if state["state"] in ENDED:
            return state
        await asyncio.sleep(0.01)
    raise AssertionError(f"it does not end: {state}")


ASYNC = {"Prefer": "respond-async"}


def test_a_job_gives_what_would_have_been_answered_at_once(bundles: Bundles) -> None:
    async def go() -> None:
        async with service([bundles.plain, bundles.flat, bundles.volume]) as running:
            for query, content in (("", png()), ("?model=flat", png()), ("?model=volume&explain=gradcam", nifti())):
                at_once = (await running.client.post(f"/v1/predict{query}", content=content)).json()
                answer = await running.client.post(f"/v1/predict{query}", content=content, headers=ASYNC)
                state, request_id = answer.json(), answer.headers["x-request-id"]
                assert answer.status_code == 202
                assert answer.headers["location"] == f"/v1/jobs/{request_id}" == state["links"]["self"]
                assert (state["id"], state["result"], state["problem"]) == (request_id, None, None)
                state = await ended(running, answer.headers["location"])
                assert (state["state"], state["progress"]) == ("completed", 1.0)
                later = state["result"]
                # Others may have been in the same pass.
                for part in ("timings_ms", "batch", "request_id", "links", "expires", "predictions"):
                    at_once.pop(part, None)
                assert {name: later[name] for name in at_once} == at_once
                assert (await running.client.get(state["links"]["result"])).json() == later
                for place in later["links"].values():
                    assert (await running.client.get(place)).status_code == 200
                found = [line["outcome"] for line in await _lines_of(request_id, 2)]
                assert found == ["accepted", "answered"]

    asyncio.run(go())


async def _lines_of(request_id: str, count: int) -> list[dict[str, Any]]:
    for _ in range(200):
        if len(found := [line for line in lines() if line["request"] == request_id]) == count:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(found)


def test_progress_of_a_volume_is_seen_while_it_runs(bundles: Bundles) -> None:
    async def go() -> None:
        async with service([bundles.volume], sync_voxels=1000) as running:
            answer = await running.client.post("/v1/predict", content=nifti(shape=(64, 48, 40)))
            assert answer.status_code == 202
            seen = []
            while not seen or seen[-1] < 1:
                state = (await running.client.get(answer.headers["location"])).json()
                assert state["state"] != "failed"
                seen.append(state["progress"])
                await asyncio.sleep(0.002)
            assert seen == sorted(seen)
            assert any(0 < share < 1 for share in seen)

    asyncio.run(go())


def test_a_job_that_is_cancelled_ends_at_its_next_pass_and_others_go_on(bundles: Bundles) -> None:
    async def go() -> None:
        async with service([bundles.plain, bundles.volume]) as running:
            big = nifti(shape=(120, 120, 80))
            answer = await running.client.post("/v1/predict?model=volume", content=big, headers=ASYNC)
            place = answer.headers["location"]
            for _ in range(1000):
                if (await running.client.get(place)).json()["progress"] > 0:
                    break
                await asyncio.sleep(0.005)
            state = (await running.client.delete(place)).json()
            assert (state["state"], state["result"]) == ("cancelled", None)
            assert 0 < state["progress"] < 1
            began = time.monotonic()
            assert (await running.client.post("/v1/predict", content=png())).status_code == 200
            assert time.monotonic() - began < 5
            await asyncio.sleep(0.2)
            assert running.engine.waiting == 0
            assert (await running.client.get(place)).json()["state"] == "cancelled"
            assert (await running.client.get(place.replace("jobs", "results"))).status_code == 404
            found = await _lines_of(state["id"], 2)
            assert [line["outcome"] for line in found] == ["accepted", "cancelled"]

    asyncio.run(go())


def test_jobs_have_their_limits_and_their_owners_over_http(plain: Path, home: Path) -> None:
    ann, bob = ({"X-API-Key": keys.add(home / "keys.json", name)} for name in ("ann", "bob"))

    async def go() -> None:
        async with service([plain], jobs=2) as running:
            hold = asyncio.Event()

            async def slowly(*_: Any) -> Any:
                await hold.wait()
                raise InputError("wrong_rank", "found 2 axes")
                yield 0.0

            running.engine.follow = slowly  # type: ignore[method-assign]
            made = [await running.client.post("/v1/predict", content=png(), headers={**ASYNC, **ann}) for _ in range(2)]
            full = await running.client.post("/v1/predict", content=png(), headers={**ASYNC, **bob})
            assert (full.status_code, full.json()["code"]) == (429, "too_many_jobs")
            assert full.headers["retry-after"]
            assert (await of_request(full.headers["x-request-id"]))["code"] == "too_many_jobs"
            place = made[0].headers["location"]
            assert (await running.client.get(place, headers=bob)).status_code == 404
            assert (await running.client.delete(place, headers=bob)).status_code == 404
            waiting = await running.client.get(place, headers=ann)
            assert (waiting.json()["state"], waiting.headers["retry-after"]) == ("running", "1")
            hold.set()
            state = await ended(running, place, **ann)
            assert (state["state"], state["problem"]["code"]) == ("failed", "wrong_rank")
            assert (await running.client.get(place.replace("jobs", "results"), headers=ann)).status_code == 404
            lines = await _lines_of(state["id"], 2)
            assert [(line["outcome"], line["caller"]) for line in lines] == [("accepted", "ann"), ("failed", "ann")]

    asyncio.run(go())


def test_jobs_and_their_results_expire(plain: Path) -> None:
    async def go() -> None:
        async with service([plain], keep_s=0.3) as running:
            answer = await running.client.post("/v1/predict", content=png(), headers=ASYNC)
            place = answer.headers["location"]
            state = await ended(running, place)
            assert state["expires"] is not None
            await asyncio.sleep(0.35)
            assert (await running.client.get(place)).status_code == 404
            gone = await running.client.get(state["links"]["result"])
            assert (gone.status_code, gone.json()["code"]) == (410, "expired")
            assert (await running.client.get("/v1/jobs")).json() == {"jobs": []}

    asyncio.run(go())


def test_states_of_jobs_hold_what_the_page_counts_on(plain: Path) -> None:
    async def go() -> None:
        async with service([plain]) as running:
            answer = await running.client.post("/v1/predict", content=png(), headers=ASYNC)
            await ended(running, answer.headers["location"])
            (listed,) = (await running.client.get("/v1/jobs")).json()["jobs"]
            fields = ["id", "state", "progress", "created", "expires", "model", "links", "problem", "result"]
            assert list(listed) == fields
            assert listed["result"] is None, "a list is short"

    asyncio.run(go())
