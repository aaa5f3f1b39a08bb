"""The description of the API, and whatever can be made up from it: nothing of that is a failure of the service."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from service_phantom import ADDRESS, Running, service
from test_ingress import Direct, bundles_of, nifti, png

from medray.imaging.writer import png_bytes
from medray.serving import asking
from medray.serving.oip import DATATYPES

OPERATIONS = 22
FILES: tuple[tuple[str, bytes], ...] = (
    ("image.png", png()),
    ("large.png", png(1, (40, 24))),
    ("colour.png", png_bytes(np.zeros((8, 8, 3), np.uint8))),
    ("volume.nii", nifti()),
    ("cut.png", png()[:90]),
    ("empty", b""),
    ("words.txt", b"no image"),
)


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medray.serving.ingress.Decoders", Direct)


def archive(*members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for number, member in enumerate(members):
            packed.writestr(f"{number}.dcm", member)
    return content.getvalue()


class Served:
    """A service that is asked from outside of its loop."""

    def __init__(self, runner: asyncio.Runner, running: Running) -> None:
        self._runner, self._running = runner, running

    def ask(self, method: str, url: str, **named: Any) -> httpx.Response:
        return self._runner.run(self._running.client.request(method, url, **named))

    def send(self, plain: requests.PreparedRequest) -> httpx.Response:
        body = plain.body.encode() if isinstance(plain.body, str) else plain.body or b""
        headers = [(name.encode("latin-1"), _bytes(value)) for name, value in plain.headers.items()]
        headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        return self.ask(str(plain.method), str(plain.url), content=body, headers=headers)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8")


def check(answer: httpx.Response) -> None:
    """What every answer has."""
    said = f"{answer.request.method} {answer.request.url} {answer.text[:200]}"
    assert answer.status_code < 500, said
    assert len(answer.headers["x-request-id"]) == 32, said
    if answer.status_code >= 400:
        body = answer.json()
        if answer.request.url.path.startswith("/v2"):
            assert list(body) == ["error"], said
        else:
            assert answer.headers["content-type"] == "application/problem+json", said
            assert (body["status"], body["request_id"]) == (answer.status_code, answer.headers["x-request-id"]), said


def served(factory: pytest.TempPathFactory, use: Callable[[Served], None]) -> None:
    bundles = bundles_of(factory)
    with asyncio.Runner() as runner:
        context = service([bundles.plain, bundles.flat, bundles.volume], jobs=10_000)
        running = runner.run(context.__aenter__())
        try:
            use(Served(runner, running))
        finally:
            runner.run(context.__aexit__(None, None, None))


def test_the_description_is_whole_and_tells_what_can_be_sent(tmp_path_factory: pytest.TempPathFactory) -> None:
    def use(there: Served) -> None:
        document = there.ask("GET", "/openapi.json").json()
        assert document["info"]["title"] == "medray"
        predict = document["paths"]["/v1/predict"]["post"]
        assert set(predict["requestBody"]["content"]) == {"multipart/form-data", "application/octet-stream"}
        assert {one["name"] for one in predict["parameters"]} == {"model", "explain", "target", "output", "keep"}
        operations = list(schemathesis.openapi.from_dict(document).get_all_operations())
        assert len(operations) >= OPERATIONS
        for operation in operations:
            assert operation.ok().definition.raw.get("description"), operation.ok().path
        assert not any(path.startswith(("/ui", "/docs")) for path in document["paths"])

    served(tmp_path_factory, use)


def _fuzz(there: Served, examples: int) -> None:
    statuses: list[int] = []
    document = there.ask("GET", "/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            deadline=None,
            max_examples=examples,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            try:
                plain = requests.Request(**case.as_transport_kwargs(base_url=ADDRESS)).prepare()
                answer = there.send(plain)
            except (UnicodeError, requests.RequestException, httpx.InvalidURL):
                assume(False)
            check(answer)
            statuses.append(answer.status_code)

        ask()
    assert len(statuses) > examples * OPERATIONS // 4
    assert {200, 404, 422} <= set(statuses)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_nothing_that_the_description_allows_is_a_failure(tmp_path_factory: pytest.TempPathFactory) -> None:
    served(tmp_path_factory, lambda there: _fuzz(there, 8))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_nothing_at_all_that_the_description_allows_is_a_failure(tmp_path_factory: pytest.TempPathFactory) -> None:
    served(tmp_path_factory, lambda there: _fuzz(there, 150))


UPLOADS = st.sampled_from([*FILES, ("series.zip", archive(b"x")), ("image.zip", archive(png(), png()))])
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


def mostly(*good: str) -> st.SearchStrategy[str]:
    """Words that mean something, and now and then one that does not."""
    return st.integers(0, 9).flatmap(lambda dice: WORDS if dice == 9 else st.sampled_from(good))


QUERY = st.fixed_dictionaries(
    {},
    optional={
        "model": mostly("plain", "flat", "volume", "flat@1", ""),
        # Explanations side by side are in test_ingress.py; here one comes after the other.
        "explain": mostly("none", "gradcam", "gradcam++", "occlusion", "smoothgrad"),
        "target": mostly("a", "b", "organ", "lesion", ""),
        "output": mostly(*asking.OUTPUTS),
        "keep": mostly("true", "false", "1", "TRUE"),
    },
)
PREFER = st.sampled_from(["", "", "respond-async", "RESPOND-ASYNC, wait=10", "wait"])


def _upload(there: Served, examples: int) -> None:
    kept: list[str] = []

    @settings(
        deadline=None,
        max_examples=examples,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(UPLOADS, QUERY, PREFER, st.booleans(), WORDS)
    def ask(upload: tuple[str, bytes], query: dict[str, str], prefer: str, raw: bool, name: str) -> None:
        named: dict[str, Any] = {"content": upload[1]} if raw else {"files": {"file": (name or "x", upload[1])}}
        answer = there.ask("POST", "/v1/predict", params=query, headers={"Prefer": prefer}, **named)
        check(answer)
        if answer.status_code in (200, 202):
            assert answer.headers.get("x-medray-model") or answer.status_code == 202
            kept.append(answer.headers["x-request-id"])
        for path in (
            "",
            "/slices",
            "/slices?axis=0&index=0&layer=image",
            "/overlay",
            "/report",
            "/preview/mask.nii.gz",
        ):
            if kept:
                check(there.ask("GET", f"/v1/results/{kept[-1]}{path}"))

    ask()
    assert len(kept) > examples // 20, "some of them have to be good"


def test_real_files_with_any_query_are_answered_or_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    served(tmp_path_factory, lambda there: _upload(there, 60))


@pytest.mark.slow
def test_many_real_files_with_any_query_are_answered_or_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    served(tmp_path_factory, lambda there: _upload(there, 500))


def _tensors(there: Served, examples: int) -> None:
    sizes = {"plain": (1, 16, 16), "flat": (1, 16, 16), "volume": (1, 8, 8, 8)}

    @settings(deadline=None, max_examples=examples, derandomize=True, database=None)
    @given(st.sampled_from(sorted(sizes)), st.integers(1, 3), st.sampled_from(sorted(DATATYPES)), st.integers(0, 200))
    def ask(name: str, count: int, datatype: str, number: int) -> None:
        shape = (count, *sizes[name])
        values = np.full(shape, number).ravel().tolist()
        body = {"inputs": [{"name": "input", "shape": shape, "datatype": datatype, "data": values}]}
        answer = there.ask("POST", f"/v2/models/{name}/infer", json=body)
        check(answer)
        assert answer.status_code == 200
        assert answer.json()["outputs"][0]["shape"][0] == count

    ask()


def test_tensors_of_every_datatype_are_taken(tmp_path_factory: pytest.TempPathFactory) -> None:
    served(tmp_path_factory, lambda there: _tensors(there, 30))


PATHS = st.lists(
    st.sampled_from(
        ["v1", "v2", "models", "jobs", "results", "ui", "docs", "slices", "preview", "..", ".", "", "%00", "%2f", "a"]
    )
    | st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#[]"), max_size=6),
    max_size=6,
)


def _paths(there: Served, examples: int) -> None:
    @settings(deadline=None, max_examples=examples, derandomize=True, database=None)
    @given(
        PATHS,
        st.sampled_from(["GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS"]),
        st.text("abc=&%;[]+01", max_size=20),
    )
    def ask(parts: list[str], method: str, query: str) -> None:
        try:
            answer = there.ask(method, "/" + "/".join(parts).lstrip("/"), params=query)
        except httpx.InvalidURL:
            assume(False)
        assert answer.status_code < 500
        assert "x-request-id" in answer.headers

    ask()


def test_no_path_at_all_is_a_failure(tmp_path_factory: pytest.TempPathFactory) -> None:
    served(tmp_path_factory, lambda there: _paths(there, 200))
