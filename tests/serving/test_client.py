"""The client against a small service that answers as the API says: retries, jobs, files, and nothing else leaks."""

from __future__ import annotations

import asyncio
import io
import pickle
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from medray import client as module
from medray.client import Answer, Client, Job, ServiceError

ID = "0123456789abcdef0123456789abcdef"
ANSWER: dict[str, Any] = {
    "request_id": ID,
    "model": {"name": "chest", "version": "3", "digest": "d" * 64},
    "task": "classification",
    "labels": ["well"],
    "predictions": [{"label": "ill", "probability": 0.25}, {"label": "well", "probability": 0.75}],
    "structures": [{"label": "organ", "volume": 1.5, "unit": "mL", "value": 1, "colour": "#E69F00"}],
    "values": [{"name": "age", "value": 61.5, "interval": [55.0, 68.0]}],
    "conformal_set": ["well"],
    "warnings": [{"word": "low_quality_noise", "meaning": "noisier than the training images"}],
    # A link that leads elsewhere: the key must not follow it.
    "links": {"self": f"/v1/results/{ID}", "mask": "http://192.0.2.1/mask", "report": f"/v1/results/{ID}/report"},
    "notice": "Research use only. Not a medical device.",
}


def problem(status: int, code: str, headers: dict[str, str] | None = None) -> Response:
    body = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": "what was wrong"}
    body |= {"hint": "how to mend it", "request_id": ID}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


class Service:
    """Remembers every request; answers what is in `script` first, and after that as if all were well."""

    def __init__(self) -> None:
        self.seen: list[tuple[Request, bytes]] = []
        self.script: list[Response] = []
        self.states: list[dict[str, Any]] = []
        methods = ["GET", "POST", "DELETE"]
        self.app = Starlette(routes=[Route("/{path:path}", self.handle, methods=methods)])
        self.url = ""

    async def handle(self, request: Request) -> Response:
        self.seen.append((request, await request.body()))
        if self.script:
            return self.script.pop(0)
        head = request.url.path.split("/")
        if head[-1] == "predict":
            wants_job = request.headers.get("prefer") == "respond-async" or request.query_params.get("model") == "large"
            job = {"id": "7", "state": "pending", "progress": 0.0, "problem": None, "result": None}
            return JSONResponse(job, 202, {"Location": "/v1/jobs/7"}) if wants_job else JSONResponse(ANSWER)
        if "jobs" in head:
            if request.method == "DELETE":
                self.states = [{"state": "cancelled", "progress": 0.5}]
            found = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            return JSONResponse({"id": "7", "problem": None, "result": None, **found})
        if "results" in head:
            kind = {"mask": "application/gzip", "report": "text/html; charset=utf-8"}[head[-1]]
            return Response(b"<p>report</p>" if head[-1] == "report" else b"\x1f\x8bmask", media_type=kind)
        if head[-1] == "models":
            return JSONResponse({"models": [{"name": "chest", "default": True}]})
        return JSONResponse({"name": head[-1], "card": {}, "models": []})

    @property
    def predictions(self) -> list[tuple[Request, bytes]]:
        return [one for one in self.seen if one[0].url.path == "/v1/predict"]


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    server = uvicorn.Server(uvicorn.Config(made.app, port=0, log_level="error", ws="none", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    made.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield made
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)
    with Client(service.url, key="mk_secret", timeout_s=20) as made:
        yield made


def test_importing_it_loads_no_heavy_library() -> None:
    heavy = "torch,ray,fastapi,starlette,mlflow,numpy,pydicom"
    code = (
        f"import sys, medray.client; sys.exit(', '.join(sorted({{*'{heavy}'.split(',')}} & {{*sys.modules}})) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_answer_has_its_fields(client: Client, service: Service) -> None:
    answer = client.predict(b"pixels", "chest@champion", explain="gradcam", target="ill", keep=True)
    assert isinstance(answer, Answer)
    assert (answer.request_id, answer.model, answer.task, answer.labels) == (ID, "chest/3", "classification", ("well",))
    assert answer.probabilities == {"ill": 0.25, "well": 0.75}
    assert (answer.values, answer.volumes, answer.conformal_set) == ({"age": 61.5}, {"organ": 1.5}, ("well",))
    assert answer.warnings == ("low_quality_noise",)
    assert answer.json == ANSWER
    (request, body) = service.seen[0]
    assert body == b"pixels"
    assert dict(request.query_params) == {
        "model": "chest@champion",
        "explain": "gradcam",
        "target": "ill",
        "keep": "true",
    }
    assert request.headers["authorization"] == "Bearer mk_secret"


def test_a_file_is_streamed_with_its_length_and_without_its_name(
    client: Client, service: Service, tmp_path: Path
) -> None:
    file = tmp_path / "Doe^John.png"
    file.write_bytes(b"pixels" * 50_000)
    client.predict(file)
    client.predict(str(file))
    for request, body in service.seen:
        assert body == file.read_bytes()
        assert request.headers["content-length"] == "300000"
        assert "transfer-encoding" not in request.headers
        assert "Doe" not in str(request.url) + str(request.headers)
        assert not request.query_params


def test_a_series_is_a_zip_of_numbered_files(client: Client, service: Service, tmp_path: Path) -> None:
    names = ("Doe-2.DCM", "Doe-10.dcm", "sub/IM0001", ".DS_Store", "DICOMDIR")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    client.predict(tmp_path)
    client.predict([tmp_path / "sub" / "IM0001", str(tmp_path / "Doe-2.DCM")])
    folder, listed = (zipfile.ZipFile(io.BytesIO(body)) for _, body in service.seen)
    found = {info.filename: folder.read(info).decode() for info in folder.infolist()}
    assert found == {"000001.dcm": "Doe-10.dcm", "000002.dcm": "Doe-2.DCM", "000003": "sub/IM0001"}
    assert [info.compress_type for info in folder.infolist()] == [zipfile.ZIP_STORED] * 3
    assert listed.namelist() == ["000001", "000002.dcm"], "in the order in which they were given"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no file"):
        client.predict(tmp_path / "empty")


def test_a_busy_service_is_asked_again_when_it_says(client: Client, service: Service, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"pixels")
    service.script = [problem(429, "busy", {"Retry-After": "1"}), problem(503, "starting")]
    started = time.monotonic()
    assert client.predict(tmp_path / "x.png").labels == ("well",)
    assert time.monotonic() - started >= 1, "not before Retry-After"
    assert [body for _, body in service.seen] == [b"pixels"] * 3, "the file is sent from its start each time"


def test_what_stays_busy_is_an_error_after_the_retries_or_at_once_where_the_time_does_not_suffice(
    client: Client, service: Service
) -> None:
    service.script = [problem(503, "starting") for _ in range(9)]
    with pytest.raises(ServiceError, match="starting"):
        client.predict(b"pixels")
    assert len(service.seen) == 1 + client.retries
    service.script = [problem(429, "busy", {"Retry-After": "60"})]
    started = time.monotonic()
    with pytest.raises(ServiceError, match="busy") as refused:
        client.predict(b"pixels")
    assert refused.value.status == 429
    assert time.monotonic() - started < 10, "a wait that is longer than timeout_s is not begun"


def test_a_refusal_says_what_a_user_needs_and_is_not_repeated(client: Client, service: Service) -> None:
    service.script = [problem(422, "wrong_shape")]
    with pytest.raises(ServiceError) as refused:
        client.predict(b"pixels")
    error = refused.value
    expected = (422, "wrong_shape", "what was wrong", "how to mend it", ID)
    assert (error.status, error.code, error.detail, error.hint, error.request_id) == expected
    assert str(error) == f"wrong_shape: what was wrong (how to mend it) [request {ID}]"
    assert len(service.seen) == 1
    assert str(pickle.loads(pickle.dumps(error))) == str(error), "as a pool of processes hands it on"  # noqa: S301
    service.script = [Response("<html>Bad Gateway</html>", 502, media_type="text/html")]
    with pytest.raises(ServiceError, match="502") as proxy:
        client.predict(b"pixels")
    assert (proxy.value.status, proxy.value.code) == (502, "http")


def test_nobody_there_and_nobody_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, retries=1) as client:
            assert not client.ready()
            with pytest.raises(ServiceError, match="is `medray serve` running") as unreachable:
                client.predict(b"pixels")
        assert (unreachable.value.status, unreachable.value.code) == (0, "unreachable")
        silent.listen()
        with Client(url, timeout_s=0.2) as client, pytest.raises(ServiceError, match="timed out") as late:
            client.predict(b"pixels")
        assert late.value.code == "timeout"


def test_a_broken_connection_is_repeated_but_for_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)
    taken = []

    def hang_up(listener: socket.socket) -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            taken.append(link.recv(65536))
            link.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=hang_up, args=(listener,), daemon=True).start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", retries=2) as client:
            with pytest.raises(ServiceError, match="unreachable"):
                client.predict(b"pixels")
            assert len(taken) == 3
            with pytest.raises(ServiceError, match="unreachable"):
                client.feedback(ID, True)
            assert len(taken) == 4, "it may have been counted"
        listener.shutdown(socket.SHUT_RDWR)


def test_a_large_volume_becomes_a_job_that_is_waited_for(client: Client, service: Service) -> None:
    running = [{"state": "pending", "progress": 0.0}, {"state": "running", "progress": 0.5}]
    service.states = [*running, {"state": "completed", "progress": 1.0, "result": ANSWER}]
    told: list[float] = []
    answer = client.predict(b"voxels", "large", on_progress=told.append)
    assert (answer.labels, told) == (("well",), [0.0, 0.5])
    assert "prefer" not in service.predictions[0][0].headers


def test_a_job_can_be_left_looked_at_and_cancelled(client: Client, service: Service) -> None:
    service.states = [{"state": "running", "progress": 0.25}]
    job = client.predict(b"voxels", wait=False)
    assert isinstance(job, Job)
    assert service.predictions[0][0].headers["prefer"] == "respond-async"
    assert (job.status()["state"], job.status()["progress"]) == ("running", 0.25)
    with pytest.raises(ServiceError, match="job 7 is running, 25% done") as late:
        job.wait(timeout_s=0.05)
    assert late.value.code == "timeout"
    assert job.cancel()["state"] == "cancelled"
    with pytest.raises(ServiceError, match="cancelled"):
        job.wait()


def test_a_failed_job_raises_its_problem(client: Client, service: Service) -> None:
    said = {"code": "out_of_memory", "detail": "too large", "hint": "send less", "request_id": ID, "status": 500}
    service.states = [{"state": "failed", "progress": 0.5, "problem": said}]
    with pytest.raises(ServiceError, match=r"out_of_memory: too large \(send less\)"):
        client.predict(b"voxels", "large")


def test_files_of_an_answer_come_from_the_service_alone(client: Client, service: Service, tmp_path: Path) -> None:
    answer = client.predict(b"pixels")
    assert answer.report() == "<p>report</p>"
    assert answer.file("mask") == b"\x1f\x8bmask"
    assert answer.save(tmp_path) == tmp_path / f"{ID}-mask.nii.gz"
    assert answer.save(tmp_path / "x.html", "report").read_bytes() == b"<p>report</p>"
    assert {request.url.hostname for request, _ in service.seen} == {"127.0.0.1"}
    with pytest.raises(ValueError, match="no 'overlay'; it has: mask, report"):
        answer.file("overlay")


def test_the_other_calls(client: Client, service: Service) -> None:
    assert client.ready()
    assert client.models() == [{"name": "chest", "default": True}]
    assert client.card("chest")["card"] == {}
    assert client.drift() == []
    client.feedback(ID, False, "ill")
    request, body = service.seen[-1]
    assert (request.method, request.url.path) == ("POST", "/v1/feedback")
    assert b'"correct":false' in body
    service.script = [problem(503, "starting")]
    assert not client.ready()


def test_threads_share_a_client(client: Client, service: Service) -> None:
    def ask(number: int) -> Answer:
        return client.predict(b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(ask, range(40)))) == 40
    assert sorted(int(body) for _, body in service.seen) == list(range(40))
