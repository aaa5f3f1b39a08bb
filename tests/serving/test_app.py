"""The service without Ray running: what reaches its deployment, which requests it refuses, how it answers."""

from __future__ import annotations

import asyncio
import json
import runpy
import time
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic.warnings import PydanticDeprecatedSince20
from starlette.requests import Request

from medray.imaging.reader import read as read_image
from medray.sections.service import ServeSection
from medray.types import InputError, Prediction

BAD_INPUTS = Path(__file__).parents[3] / "shared" / "bad_inputs" / "make_bad_inputs.py"
ANSWER = Prediction("case", ("ill", "well"), np.array([0.25, 0.75], np.float32), ("well",), ("8 bits",))


@pytest.fixture(scope="module")
def app() -> ModuleType:
    """medray.serving.app; Ray Serve's own use of pydantic warns when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticDeprecatedSince20)
        from medray.serving import app as module
    return module


def request(body: bytes = b"", length: str | None = None, **headers: str) -> Request:
    """A POST as the server hands it on, its body in two parts; `length` replaces the true Content-Length."""
    told = {"content_length": str(len(body)) if length is None else length, **headers}
    half = len(body) // 2
    parts = iter([(body[:half], True), (body[half:], False)])

    async def receive() -> dict[str, Any]:
        part, more = next(parts)
        return {"type": "http.request", "body": part, "more_body": more}

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in told.items() if value]
    return Request({"type": "http", "method": "POST", "path": "/v1/predict", "headers": pairs}, receive)


def form(field: str, content: bytes, filename: str | None = "image.png") -> dict[str, Any]:
    """Body and type of a multipart form with one field."""
    name = f'name="{field}"' + (f'; filename="{filename}"' if filename else "")
    head = f"--line\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode()
    return {"body": head + content + b"\r\n--line--\r\n", "content_type": "multipart/form-data; boundary=line"}


def read(app: ModuleType, sent: Request, limit_mb: float = 1.0) -> bytes:
    return asyncio.run(app.read_body(sent, limit_mb))


def test_replicas_and_their_load_reach_the_deployment(app: ModuleType) -> None:
    cfg = ServeSection(min_replicas=2, max_replicas=5, target_ongoing_requests=1.5, max_ongoing_requests=3)
    deployment = app.application(Path("bundle"), "chest/1", cfg)._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 1.5)
    assert deployment.max_ongoing_requests == 3


def test_host_and_port_reach_the_server(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {}
    monkeypatch.setattr(app.serve, "start", lambda http_options: started.update(http_options))
    monkeypatch.setattr(app.serve, "run", lambda *_, **where: started.update(where))
    url = app.run(Path("bundle"), "chest/1", ServeSection(host="localhost", port=8123))
    assert started == {"host": "localhost", "port": 8123, "name": "medray", "route_prefix": "/"}
    assert url == "http://localhost:8123"


def ask(app: ModuleType, cfg: ServeSection, predict: Any, sent: Request) -> tuple[int, dict[str, Any]]:
    """What the deployment's method answers with a predictor of our own, outside any replica."""
    kind = app.application(Path("bundle"), "chest/1", cfg)._bound_deployment.func_or_class
    decoder, predictor = SimpleNamespace(read=lambda body: body), SimpleNamespace(predict=predict)
    answer = asyncio.run(kind.predict(SimpleNamespace(decoder=decoder, predictor=predictor), sent))
    return answer.status_code, json.loads(answer.body)


@pytest.mark.parametrize(("limit_mb", "status"), [(0.5, 200), (0.25, 413)])
def test_max_upload_mb_is_the_limit(app: ModuleType, limit_mb: float, status: int) -> None:
    found, answer = ask(app, ServeSection(max_upload_mb=limit_mb), lambda _: ANSWER, request(b"x" * (1 << 19)))
    assert found == status
    if status == 413:
        assert answer["code"] == "too_large_upload"
        assert answer["detail"] == "524288 bytes, at most 0.25 MiB are taken"


@pytest.mark.parametrize(
    ("code", "status"),
    [("unsupported_type", 415), ("too_many_pixels", 413), ("too_large_decompressed", 413), ("truncated", 422)],
)
def test_what_the_reader_refuses_has_its_status(app: ModuleType, code: str, status: int) -> None:
    def refuse(_: bytes) -> Prediction:
        raise InputError(code, "what was wrong", "how to mend it")

    found, answer = ask(app, ServeSection(), refuse, request(b"image"))
    assert (found, answer["status"]) == (status, status)
    assert (answer["code"], answer["detail"], answer["hint"]) == (code, "what was wrong", "how to mend it")


def test_the_body_and_the_form_hand_on_the_same_bytes(app: ModuleType) -> None:
    heard: list[bytes] = []

    def predict(body: bytes) -> Prediction:
        heard.append(body)
        return ANSWER

    assert ask(app, ServeSection(), predict, request(b"pixels"))[1]["model"] == "chest/1"
    assert ask(app, ServeSection(), predict, request(**form("file", b"pixels")))[0] == 200
    assert heard == [b"pixels", b"pixels"]


def two_files() -> dict[str, Any]:
    sent = form("file", b"pixels")
    first = sent["body"].removesuffix(b"--line--\r\n")
    return {**sent, "body": first + sent["body"]}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (two_files(), (413, "too_many_parts")),
        ({**two_files(), "content_type": "multipart/form-data"}, (400, "bad_multipart")),
    ],
)
@pytest.mark.parametrize("in_app", [True, False])
def test_a_form_that_cannot_be_read_is_a_problem_too(
    app: ModuleType, sent: dict[str, Any], expected: tuple[int, str], in_app: bool
) -> None:
    """In a running service too, where starlette answers for itself if nobody catches its exception."""
    asked = request(**sent)
    if in_app:
        asked.scope["app"] = None
    status, answer = ask(app, ServeSection(), lambda _: ANSWER, asked)
    assert (status, answer["code"]) == expected


def test_the_hostile_forms_beside_the_checkout_have_their_answers(app: ModuleType, tmp_path: Path) -> None:
    if not BAD_INPUTS.exists():
        pytest.skip("no ../shared/bad_inputs beside this checkout")
    manifest = runpy.run_path(str(BAD_INPUTS))["make"](tmp_path, only={"http"})

    def predict(body: bytes) -> Prediction:
        read_image(body)
        return ANSWER

    for entry in manifest["cases"]:
        file = tmp_path / entry["path"]
        kind = json.loads(Path(f"{file}.headers.json").read_text())["Content-Type"]
        started = time.monotonic()
        status, answer = ask(app, ServeSection(), predict, request(file.read_bytes(), content_type=kind))
        assert (status, answer["code"]) == (entry["serve"]["status"], entry["serve"]["code"]), entry["id"]
        assert time.monotonic() - started < 1
        assert "<script>" not in json.dumps(answer)


@pytest.mark.parametrize("length", ["", "-1", "ten", "1.5"])
def test_a_request_without_a_length_is_411_and_not_read(app: ModuleType, length: str) -> None:
    sent = request(b"pixels", length)
    if not length:
        sent = Request({**sent.scope, "headers": [(b"transfer-encoding", b"chunked")]})
    with pytest.raises(app.RequestRefused) as refused:
        read(app, sent)
    assert (refused.value.status, refused.value.code) == (411, "length_required")


def test_a_length_above_the_limit_is_413_before_a_byte_is_read(app: ModuleType) -> None:
    sent = request(b"x", length=str((1 << 20) + 1))
    with pytest.raises(app.RequestRefused) as refused:
        read(app, Request(sent.scope), limit_mb=1.0)
    assert (refused.value.status, refused.value.code) == (413, "too_large_upload")
    assert read(app, request(b"x", length=str(1 << 20))) == b"x", "the limit itself is taken"


@pytest.mark.parametrize(
    "sent", [form("image", b"pixels"), form("file", b"pixels", filename=None)], ids=["another field", "no file"]
)
def test_a_form_without_a_file_is_400(app: ModuleType, sent: dict[str, Any]) -> None:
    with pytest.raises(app.RequestRefused) as refused:
        read(app, request(**sent))
    assert (refused.value.status, refused.value.code) == (400, "no_file")
    assert "curl" in refused.value.hint


def test_a_problem_is_as_rfc_9457_says(app: ModuleType) -> None:
    answer = app.problem(413, "too_large_upload", "9 bytes", "send fewer")
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.body) == {
        "type": "about:blank",
        "title": "too large upload",
        "status": 413,
        "code": "too_large_upload",
        "detail": "9 bytes",
        "hint": "send fewer",
    }


def test_an_answer_names_model_labels_probabilities_and_warnings(app: ModuleType) -> None:
    answer = app.as_json(ANSWER, "chest/1", 0.123456)
    assert answer.pop("notice").startswith("Research use only")
    assert answer == {
        "model": "chest/1",
        "labels": ["well"],
        "predictions": [{"label": "ill", "probability": 0.25}, {"label": "well", "probability": 0.75}],
        "warnings": ["8 bits"],
        "seconds": 0.1235,
    }
    json.dumps(answer)
