"""From a request to an answer: what comes in which order, what is refused and how soon, and that no way out leaks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import hashlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from prediction_phantom import classifier, segmenter
from service_phantom import Running, service

from medray.imaging.reader import read
from medray.imaging.writer import png_bytes
from medray.inference.predictor import Predictor
from medray.networks.layers import feature_layer
from medray.serving import ingress, keys, upload, watched
from medray.serving.api import build
from medray.serving.audit import default_folder
from medray.serving.lineup import of_bundle
from medray.serving.messages import Answered, Asked
from medray.serving.problems import Refused
from medray.serving.room import Room
from medray.types import Case, InputError


@dataclass(frozen=True)
class Bundles:
    """Small models: 2D classes, 2D and 3D structures."""

    plain: Path
    flat: Path
    volume: Path


@cache
def _made(folder: Path) -> Bundles:
    classifier(folder / "plain")
    segmenter(folder / "flat")
    segmenter(folder / "volume", dims=3)
    return Bundles(folder / "plain", folder / "flat", folder / "volume")


@cache
def _plain(folder: Path) -> Path:
    classifier(folder / "plain")
    return folder / "plain"


def bundles_of(factory: pytest.TempPathFactory) -> Bundles:
    """The same for all tests of a session."""
    return _made(factory.getbasetemp() / "served")


def plain_of(factory: pytest.TempPathFactory) -> Path:
    """A classification alone, which is made sooner."""
    return _plain(factory.getbasetemp() / "served_alone")


class Direct:
    """Decoders without a process of their own, which takes a second to start."""

    def __init__(self, most: int) -> None:
        self.most = most

    async def read(self, content: bytes) -> Case:
        return await asyncio.to_thread(read, content)

    def close(self) -> None:
        """There is nothing to end."""


def png(seed: int = 0, size: tuple[int, int] = (16, 16)) -> bytes:
    return png_bytes(np.random.default_rng(seed).integers(0, 255, size).astype(np.uint8))


def nifti(seed: int = 0, shape: tuple[int, int, int] = (12, 10, 8)) -> bytes:
    voxels = np.random.default_rng(seed).integers(-500, 1500, shape).astype(np.int16)
    return bytes(nib.Nifti1Image(voxels, np.diag([1.5, 1.5, 3.0, 1.0])).to_bytes())


def lines() -> list[dict[str, Any]]:
    """What the audit says of requests."""
    files = sorted(default_folder().glob("audit-*.jsonl"))
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in found if "note" not in line]


async def of_request(request_id: str) -> dict[str, Any]:
    """The line of a request, which may come a little later."""
    for _ in range(100):
        if found := [line for line in lines() if line["request"] == request_id]:
            assert len(found) == 1
            return found[0]
        await asyncio.sleep(0.01)
    raise AssertionError("the audit has no line of the request")


async def never_read() -> AsyncIterator[bytes]:
    """A body of which not a byte may be asked for."""
    raise AssertionError("the body was read")
    yield b""


def unread(running: Running, path: str = "/v1/predict", **headers: str) -> Any:
    return running.client.post(path, content=never_read(), headers={"Content-Length": "100", **headers})


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


class Gate:
    """Holds the models' answers until it is opened; `broken` is raised instead."""

    def __init__(self, running: Running, broken: BaseException | None = None) -> None:
        self._predict = running.engine.predict
        self.open, self.waiting, self.broken = asyncio.Event(), 0, broken
        self.asked: list[Asked] = []
        running.engine.predict = self.predict  # type: ignore[method-assign]

    async def predict(self, asked: Asked, raw: Case) -> Answered:
        self.asked.append(asked)
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1
        if self.broken is not None:
            raise self.broken
        return await self._predict(asked, raw)

    async def until(self, waiting: int) -> None:
        for _ in range(1000):
            if self.waiting == waiting:
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"{self.waiting} wait, not {waiting}")


# Answers


def test_an_answer_says_what_was_asked_of_whom_and_of_which_bytes(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            answer = await running.client.post("/v1/predict", content=png())
            body, entry = answer.json(), of_bundle(plain)
            assert answer.status_code == 200
            assert answer.headers["x-request-id"] == body["request_id"]
            assert answer.headers["x-medray-model"] == entry.reference
            assert body["model"] == {"name": entry.name, "version": entry.version, "digest": entry.digest}
            assert body["input"]["sha256"] == hashlib.sha256(png()).hexdigest()
            assert (body["input"]["kind"], body["input"]["shape"]) == ("png", [16, 16])
            assert sum(one["probability"] for one in body["predictions"]) == pytest.approx(1)
            stages = {"read", "decode", "preprocess", "queue", "forward", "postprocess", "total"}
            assert set(body["timings_ms"]) == stages
            assert all(0 <= ms < 60_000 for ms in body["timings_ms"].values())
            assert "Not a medical device" in body["notice"]
            line = await of_request(body["request_id"])
            assert (line["caller"], line["status"], line["outcome"]) == ("local", 200, "answered")
            assert (line["model"], line["digest"]) == (entry.reference, entry.digest)
            assert "signals" not in line

    asyncio.run(ask())


def test_body_and_form_have_the_same_answer(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            first = (await running.client.post("/v1/predict", content=png())).json()
            form = {"file": ("../../image.dcm", png(), "application/dicom")}
            second = (await running.client.post("/v1/predict", files=form, data={"note": "x"})).json()
            for part in ("predictions", "input", "labels"):
                assert first[part] == second[part]

    asyncio.run(ask())


def test_an_answer_can_be_one_of_its_files(bundles: Bundles) -> None:
    async def ask() -> None:
        async with service([bundles.flat, bundles.volume]) as running:
            kinds = {
                "mask": "image/png",
                "overlay": "image/png",
                "report": "text/html; charset=utf-8",
                "explanation": "image/png",
            }
            for output, kind in kinds.items():
                answer = await running.client.post(f"/v1/predict?output={output}", content=png())
                assert (answer.status_code, answer.headers["content-type"]) == (200, kind), output
                assert answer.headers["x-medray-model"] == of_bundle(bundles.flat).reference
                assert "no-store" in answer.headers["cache-control"]
                assert (await of_request(answer.headers["x-request-id"]))["outcome"] == "answered"
            volume = await running.client.post("/v1/predict?output=mask&model=volume", content=nifti())
            mask = nib.Nifti1Image.from_bytes(gzip.decompress(volume.content))
            assert mask.shape == (12, 10, 8)

    asyncio.run(ask())


def test_files_that_there_are_not_are_refused_and_recorded(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            for output in ("mask", "overlay", "dicom_seg"):
                answer = await running.client.post(f"/v1/predict?output={output}", content=png())
                assert (answer.status_code, answer.json()["code"]) == (422, "no_such_file")
                assert (await of_request(answer.headers["x-request-id"]))["code"] == "no_such_file"

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("model", "keep", "kept"),
    [("plain", "", False), ("plain", "true", True), ("flat", "", True), ("flat", "false", False), ("flat", "0", False)],
)
def test_keep_says_what_is_kept(bundles: Bundles, model: str, keep: str, kept: bool) -> None:
    async def ask() -> None:
        async with service([bundles.plain, bundles.flat]) as running:
            query = {"model": model} | ({"keep": keep} if keep else {})
            body = (await running.client.post("/v1/predict", params=query, content=png())).json()
            found = await running.client.get(f"/v1/results/{body['request_id']}")
            assert found.status_code == (200 if kept else 404)
            assert ("links" in body, "expires" in body) == (kept, kept)
            if kept:
                assert found.json() == body
                for place in body["links"].values():
                    assert (await running.client.get(place)).status_code == 200

    asyncio.run(ask())


@pytest.mark.parametrize("query", ["output=x", "output=", "keep=maybe", "keep=", "output=slices", "output=mask%00"])
def test_a_query_that_cannot_be_is_refused_before_the_body_is_read(plain: Path, query: str) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            answer = await unread(running, f"/v1/predict?{query}")
            assert (answer.status_code, answer.json()["code"]) == (422, "bad_query")

    asyncio.run(ask())


def test_large_volumes_become_jobs(bundles: Bundles) -> None:
    async def ask() -> None:
        async with service([bundles.volume], sync_voxels=12 * 10 * 8) as running:
            assert (await running.client.post("/v1/predict", content=nifti())).status_code == 200
            answer = await running.client.post("/v1/predict", content=nifti(shape=(12, 10, 9)))
            assert answer.status_code == 202
            assert answer.headers["location"] == answer.json()["links"]["self"]
            assert answer.headers["location"].endswith(answer.headers["x-request-id"])

    asyncio.run(ask())


def test_a_large_volume_is_not_answered_at_once_for_the_asking_of_a_file(bundles: Bundles) -> None:
    async def ask() -> None:
        async with service([bundles.volume], sync_voxels=100) as running:
            answer = await running.client.post("/v1/predict?output=mask", content=nifti())
            assert answer.status_code in (202, 413, 422)

    asyncio.run(ask())


def test_sticky_words_and_else_the_bytes_choose_the_version(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            gate = Gate(running)
            gate.open.set()
            await running.client.post("/v1/predict", content=png(), headers={"X-Medray-Sticky": "study 7"})
            await running.client.post("/v1/predict", content=png())
            assert [one.sticky for one in gate.asked] == ["study 7", hashlib.sha256(png()).hexdigest()]

    asyncio.run(ask())


# Room


def test_beyond_the_queue_is_429_at_once_without_reading_and_then_there_is_room_again(plain: Path) -> None:
    async def crowd() -> None:
        async with service([plain], max_queued_requests=2) as running:
            gate = Gate(running)
            inside = [asyncio.ensure_future(running.client.post("/v1/predict", content=png(n))) for n in range(2)]
            await gate.until(2)
            began = time.monotonic()
            turned_away = [await unread(running) for _ in range(20)]
            assert (time.monotonic() - began) / 20 < 0.1
            for answer in turned_away:
                assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
                assert int(answer.headers["retry-after"]) >= 1
                assert (await of_request(answer.headers["x-request-id"]))["status"] == 429
            assert "medray_ingress_requests 2" in (await running.client.get("/metrics")).text
            gate.open.set()
            assert [one.status_code for one in await asyncio.gather(*inside)] == [200, 200]
            again = await asyncio.gather(*[running.client.post("/v1/predict", content=png(n)) for n in range(2)])
            assert [one.status_code for one in again] == [200, 200]

    asyncio.run(crowd())


@pytest.mark.parametrize(
    "broken", [InputError("corrupt", "bad"), Refused(503, "busy", "busy"), RuntimeError("broken"), None]
)
def test_room_is_free_again_however_an_answer_ended(plain: Path, broken: Exception | None) -> None:
    async def crowd() -> None:
        async with service([plain], max_queued_requests=1) as running:
            gate = Gate(running, broken)
            task = asyncio.ensure_future(running.client.post("/v1/predict", content=png()))
            await gate.until(1)
            assert (await unread(running)).status_code == 429
            if broken is None:
                task.cancel()
            gate.open.set()
            await asyncio.gather(task, return_exceptions=True)
            gate.broken = None
            assert running.ingress.room.taken == 0
            assert (await running.client.post("/v1/predict", content=png())).status_code == 200

    asyncio.run(crowd())


def test_retry_after_grows_with_the_time_between_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def waits(between_s: float) -> int:
        room = Room(4)
        for _ in range(50):
            with room.take():
                now[0] += between_s
        with contextlib.ExitStack() as inside:
            for _ in range(4):
                inside.enter_context(room.take())
            with pytest.raises(Refused) as caught:
                room.check()
        assert room.taken == 0
        return int(caught.value.headers["Retry-After"])

    assert waits(0.001) == 1
    assert 15 <= waits(10.0) <= 20


def test_slow_uploads_take_no_room(plain: Path) -> None:
    """Those that hang would keep out all others: room is for what can be answered."""

    async def crowd() -> None:
        async with service([plain], max_queued_requests=2) as running:
            stuck = asyncio.Event()

            async def slowly() -> AsyncIterator[bytes]:
                yield b"x"
                await stuck.wait()

            def hang() -> Any:
                return running.client.post("/v1/predict", content=slowly(), headers={"Content-Length": "9"})

            slow = [asyncio.ensure_future(hang()) for _ in range(50)]
            await asyncio.sleep(0.2)
            assert (await running.client.post("/v1/predict", content=png())).status_code == 200
            stuck.set()
            await asyncio.gather(*slow, return_exceptions=True)

    asyncio.run(crowd())


def test_a_key_has_its_rate_and_others_have_theirs(plain: Path, home: Path) -> None:
    both = [{"X-API-Key": keys.add(home / "keys.json", name)} for name in ("a", "b")]

    async def often() -> None:
        async with service([plain], access={"per_minute": 6, "burst": 2}) as running:
            for headers in both:
                for _ in range(2):
                    assert (await running.client.post("/v1/predict", content=png(), headers=headers)).status_code == 200
                answer = await unread(running, **headers)
                assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
                assert 1 <= int(answer.headers["retry-after"]) <= 10

    asyncio.run(often())


def test_large_uploads_are_unpacked_and_hashed_beside_the_loop(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """512 MB take a second or two, in which nobody else would be answered, not even /livez."""
    busy: list[int] = []
    sha256, unpack = hashlib.sha256, upload.file_of_form

    def hashed(content: bytes = b"", **named: Any) -> Any:
        busy.extend([threading.get_ident()] * (len(content) > 2**20))
        return sha256(content, **named)

    def unpacked(*args: Any) -> bytes:
        busy.append(threading.get_ident())
        return unpack(*args)

    monkeypatch.setattr(ingress.hashlib, "sha256", hashed)
    monkeypatch.setattr(upload, "file_of_form", unpacked)

    async def ask() -> None:
        async with service([plain]) as running:
            busy.clear()  # the files of the page are hashed when the service starts
            answer = await running.client.post("/v1/predict", files={"file": ("x", b"x" * 4 * 2**20)})
            assert answer.status_code == 415

    asyncio.run(ask())
    assert threading.get_ident() not in busy


# Bad endings


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def left_in_the_middle(running: Running) -> list[dict[str, Any]]:
    """What is answered to a client that goes before its upload is whole."""
    messages = iter([{"type": "http.request", "body": b"half", "more_body": True}])
    said: list[dict[str, Any]] = []

    async def receive() -> Any:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        said.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/predict",
        "raw_path": b"/v1/predict",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"content-length", b"100")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    with contextlib.suppress(Exception):
        await build(running.ingress)(scope, receive, send)
    return said


def test_who_leaves_in_the_middle_of_an_upload_is_recorded_and_no_failure(
    plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> None:
        async with service([plain]) as running:
            said = await left_in_the_middle(running)
            assert not [message for message in said if message.get("status", 0) >= 500]
            await asyncio.sleep(0.1)
            assert [line["outcome"] for line in lines()] == ["cancelled"]

    asyncio.run(leave())
    assert told(caplog) == []


def test_who_leaves_while_the_model_thinks_is_recorded_as_cancelled(plain: Path) -> None:
    async def leave() -> None:
        async with service([plain]) as running:
            gate = Gate(running)
            task = asyncio.ensure_future(running.client.post("/v1/predict", content=png()))
            await gate.until(1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert gate.waiting == 0, "nobody works for who has gone"
            await asyncio.sleep(0.1)
            (line,) = lines()
            assert (line["status"], line["code"], line["outcome"]) == (499, "disconnected", "cancelled")
            assert line["input"] == hashlib.sha256(png()).hexdigest()

    asyncio.run(leave())


def test_an_error_that_nobody_foresaw_is_a_problem_too_and_says_nothing(
    plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        async with service([plain]) as running:
            Gate(running, RuntimeError("/secret/path of Doe^Jane")).open.set()
            answer = await running.client.post("/v1/predict", content=png())
            assert answer.status_code in (500, 503)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["request_id"] == answer.headers["x-request-id"]
            assert "secret" not in answer.text

    asyncio.run(fail())
    assert len(told(caplog)) == 1, "who runs it can find out why"


def test_an_answer_that_failed_is_recorded(plain: Path) -> None:
    async def fail() -> None:
        async with service([plain]) as running:
            Gate(running, RuntimeError("broken")).open.set()
            answer = await running.client.post("/v1/predict", content=png())
            line = await of_request(answer.headers["x-request-id"])
            assert (line["outcome"], line["input"]) == ("failed", hashlib.sha256(png()).hexdigest())

    asyncio.run(fail())


def test_a_shadow_is_asked_beside_and_neither_its_time_nor_its_failure_is_felt(plain: Path) -> None:
    async def ask() -> None:
        entry = of_bundle(plain)
        async with service([entry, replace(entry, version="2", part="shadow")]) as running:
            predict, gate, unheard = running.engine.predict, asyncio.Event(), []

            async def asked(question: Asked, raw: Case) -> Answered:
                if question.shadow:
                    unheard.append(question)
                    await gate.wait()
                return await predict(question, raw)

            running.engine.predict = asked  # type: ignore[method-assign]
            for number in range(3):
                answer = await running.client.post("/v1/predict", content=png(number))
                assert answer.headers["x-medray-model"] == entry.reference
            assert len(unheard) == 1, "one at a time, else they would pile up"
            gate.set()
            for _ in range(100):
                if found := (await running.client.get("/v1/agreement")).json()["shadows"]:
                    break
                await asyncio.sleep(0.01)
            assert len(found) == 1
            assert len(lines()) == 3, "nobody was answered by the shadow"

    asyncio.run(ask())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_shadow_that_breaks_is_nothing_to_make_noise_about(plain: Path) -> None:
    async def ask() -> list[Any]:
        noise: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
        entry = of_bundle(plain)
        async with service([entry, replace(entry, version="2", part="shadow")]) as running:
            predict = running.engine.predict

            async def asked(question: Asked, raw: Case) -> Answered:
                if question.shadow:
                    raise RuntimeError("broken")
                return await predict(question, raw)

            running.engine.predict = asked  # type: ignore[method-assign]
            assert (await running.client.post("/v1/predict", content=png())).status_code == 200
            await asyncio.sleep(0.05)
            running.ingress._shadow = None
        gc.collect()
        await asyncio.sleep(0)
        return noise

    assert asyncio.run(ask()) == []


def test_many_at_once_have_each_their_own_answer(plain: Path) -> None:
    """Nobody may get what another image said, however they are batched."""

    async def ask() -> None:
        async with service([plain]) as running:

            async def one(seed: int) -> httpx.Response:
                return await running.client.post("/v1/predict", content=png(seed))

            alone = [(await one(seed)).json()["predictions"] for seed in range(8)]
            together = await asyncio.gather(*[one(number % 8) for number in range(48)])
            assert len({answer.headers["x-request-id"] for answer in together}) == 48
            for number, answer in enumerate(together):
                body = answer.json()
                assert body["input"]["sha256"] == hashlib.sha256(png(number % 8)).hexdigest()
                for found, expected in zip(body["predictions"], alone[number % 8], strict=True):
                    assert found["probability"] == pytest.approx(expected["probability"], abs=1e-5)

    asyncio.run(ask())


def test_looking_for_the_layer_of_one_explanation_runs_no_hook_of_another(plain: Path) -> None:
    """What Grad-CAM of another request keeps by its hook would be a tensor without numbers: 500."""
    predictor, seen = Predictor(plain), []
    for part in predictor.network.modules():
        part.register_forward_hook(lambda *_: seen.append(1))
    feature_layer(predictor.network, predictor.bundle.io)
    assert seen == []


def test_explanations_break_nobody_s_answers(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            for _ in range(6):
                queries = ["explain=gradcam", "", "explain=smoothgrad", ""] * 8
                asked = [running.client.post(f"/v1/predict?{query}", content=png()) for query in queries]
                answers = await asyncio.gather(*asked)
                assert [answer.status_code for answer in answers] == [200] * 32

    asyncio.run(ask())
