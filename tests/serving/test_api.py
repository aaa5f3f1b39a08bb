"""The application as a stranger, a browser and a colleague meet it: doors, roles, forms of errors, every route."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_phantom import Running, service
from test_ingress import Bundles, Direct, bundles_of, lines, nifti, plain_of, png

from medray.serving import ingress, keys, watched
from medray.serving.lineup import of_bundle

PROBLEM = ("type", "title", "status", "code", "detail", "hint", "request_id")
ID = "0" * 32
FEEDBACK = {"request_id": ID, "correct": True}
OPEN = (
    "/livez",
    "/readyz",
    "/v1/health",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/ui/",
    "/docs",
    "/openapi.json",
)
VIEWER = (
    "/metrics",
    "/v1/models",
    "/v1/models/plain",
    "/v1/drift",
    "/v1/agreement",
    "/v2/models/plain",
    "/v2/models/plain/ready",
)
USER: tuple[tuple[str, str, int], ...] = (
    ("POST", "/v1/predict", 411),
    ("POST", "/v1/feedback", 404),
    ("GET", "/v1/jobs", 200),
    ("GET", f"/v1/jobs/{ID}", 404),
    ("DELETE", f"/v1/jobs/{ID}", 404),
    ("GET", f"/v1/results/{ID}", 404),
    ("GET", f"/v1/results/{ID}/mask", 404),
    ("GET", f"/v1/results/{ID}/slices", 404),
    ("GET", f"/v1/results/{ID}/preview/mask.nii.gz", 404),
    ("POST", "/v2/models/plain/infer", 411),
    ("POST", "/v2/models/plain/versions/1/infer", 411),
)
"""What a user may ask, and what comes of it where there is nothing."""


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


def check_problem(answer: httpx.Response, status: int, code: str = "") -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert tuple(body) == PROBLEM
    assert (answer.status_code, body["status"]) == (status, status)
    assert not code or body["code"] == code
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


async def sent(running: Running, method: str, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    body = FEEDBACK if path == "/v1/feedback" else None
    return await running.client.request(method, path, json=body, headers=dict(headers or {}))


# Roles


def test_each_role_may_what_the_table_says_and_no_more(plain: Path, home: Path) -> None:
    made = {role: {"X-API-Key": keys.add(home / "keys.json", role, role)} for role in keys.ROLES}

    async def ask() -> None:
        async with service([plain]) as running:
            for path in OPEN:
                answer = await running.client.get(path)
                assert answer.status_code == 200, path
            for path in VIEWER:
                check_problem_or_error(await running.client.get(path), 401, "no_key")
                for headers in made.values():
                    assert (await running.client.get(path, headers=headers)).status_code == 200, path
            for method, path, status in USER:
                check_problem_or_error(await sent(running, method, path), 401, "no_key")
                check_problem_or_error(
                    await sent(running, method, path, {"X-API-Key": "mk_" + "A" * 43}), 401, "bad_key"
                )
                check_problem_or_error(await sent(running, method, path, made["viewer"]), 403, "role_too_low")
                for role in ("user", "admin"):
                    headers = made[role]
                    if status == 411:
                        answer = await running.client.request(method, path, headers=headers, content=empty())
                    else:
                        answer = await sent(running, method, path, headers)
                    assert answer.status_code == status, (path, answer.text)

    asyncio.run(ask())


async def empty() -> Any:
    """Sent in chunks, without a length."""
    yield b""


def check_problem_or_error(answer: httpx.Response, status: int, code: str) -> None:
    """The Open Inference Protocol has a form of its own."""
    if not answer.request.url.path.startswith("/v2"):
        check_problem(answer, status, code)
    else:
        assert answer.status_code == status
        assert list(answer.json()) == ["error"]
        assert answer.json()["error"].startswith(code)
    if status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_no_route_is_left_out_of_the_table_of_roles(plain: Path) -> None:
    """A route that is new has to be somewhere in it: who forgets to ask for a key is found here."""

    async def ask() -> None:
        async with service([plain]) as running:
            document = (await running.client.get("/openapi.json")).json()
            known = [*OPEN, *VIEWER, *(path for _, path, _ in USER)]
            templates = {template.replace("/versions/{number}", "") for template in document["paths"]}
            for template in templates:
                assert any(_is(template, path) for path in known), template

    asyncio.run(ask())


def _is(template: str, path: str) -> bool:
    parts, found = template.split("/"), path.split("/")
    return len(parts) == len(found) and all(a == b or "{" in a for a, b in zip(parts, found, strict=True))


def test_a_user_has_its_own_answers_and_jobs_and_an_administrator_all(bundles: Bundles, home: Path) -> None:
    made = {name: {"X-API-Key": keys.add(home / "keys.json", name, role)} for name, role in (
        ("ann", "user"), ("bob", "user"), ("eve", "admin"))}  # fmt: skip

    async def ask() -> None:
        async with service([bundles.flat]) as running:
            client = running.client
            body = (await client.post("/v1/predict", content=png(), headers=made["ann"])).json()
            job = await client.post("/v1/predict", content=png(), headers={**made["ann"], "Prefer": "respond-async"})
            places = [*body["links"].values(), job.headers["location"]]
            for place in places:
                assert (await client.get(place, headers=made["ann"])).status_code == 200
                assert (await client.get(place, headers=made["eve"])).status_code == 200
                stranger = await client.get(place, headers=made["bob"])
                unknown = await client.get(place.replace(body["request_id"], ID), headers=made["bob"])
                assert stranger.status_code == 404, "it is not even said that it is there"
                if body["request_id"] in place:
                    assert {**stranger.json(), "request_id": ""} == {**unknown.json(), "request_id": ""}
            assert (await client.delete(job.headers["location"], headers=made["bob"])).status_code == 404
            said = {"request_id": body["request_id"], "correct": False, "label": "lesion"}
            assert (await client.post("/v1/feedback", json=said, headers=made["bob"])).status_code == 404
            assert (await client.post("/v1/feedback", json=said, headers=made["ann"])).status_code == 201
            for name, count in (("ann", 1), ("bob", 0), ("eve", 1)):
                assert len((await client.get("/v1/jobs", headers=made[name])).json()["jobs"]) == count

    asyncio.run(ask())


# Doors


HOSTS = [
    ("127.0.0.1:8000", True),
    ("localhost", True),
    ("LocalHost:1", True),
    ("[::1]:8000", True),
    ("evil.com", False),
    ("evil.com:8000", False),
    ("127.0.0.1.evil.com", False),
    ("localhost.evil.com:8000", False),
    ("evil.com:localhost", False),
    ("10.0.0.1", False),
    ("0.0.0.0:8000", False),
    ("127.0.0.1@evil.com", False),
    ("xn--localhost-", False),
]


def test_on_loopback_only_its_own_names_are_answered(plain: Path) -> None:
    """DNS rebinding: a page's own name is made to lead here, and then it may read the answers."""

    async def ask() -> None:
        async with service([plain]) as running:
            for host, let_in in HOSTS:
                for path in ("/v1/models", "/ui/", "/livez", "/openapi.json", "/v1/results/" + ID, "/nothing"):
                    answer = await running.client.get(path, headers={"Host": host})
                    if let_in:
                        assert answer.status_code in (200, 404), host
                    else:
                        check_problem(answer, 403, "foreign_host")

    asyncio.run(ask())


def test_a_host_that_is_none_is_not_let_in(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            found = {}
            for host in ("[", "[]", "]", ":", ":8000"):
                found[host] = (await running.client.get("/v1/models", headers={"Host": host})).status_code
            assert set(found.values()) == {403}, found

    asyncio.run(ask())


def test_elsewhere_than_on_loopback_any_name_may_lead_here(plain: Path, home: Path) -> None:
    key = {"X-API-Key": keys.add(home / "keys.json", "a")}

    async def ask() -> None:
        async with service([plain], host="0.0.0.0") as running:  # noqa: S104
            headers = {"Host": "medray.hospital.org", **key}
            assert (await running.client.get("/v1/models", headers=headers)).status_code == 200
            check_problem(await running.client.get("/v1/models", headers={"Host": "medray.hospital.org"}), 401)

    asyncio.run(ask())


def test_a_page_of_another_site_may_not_make_the_browser_send(plain: Path) -> None:
    """A form can be sent across sites without asking; on loopback nothing else would stop it."""

    async def ask() -> None:
        async with service([plain]) as running:
            for origin in ("https://evil.com", "null", "http://127.0.0.1:9000", "http://localhost:8000", "x"):
                for method, path in (("POST", "/v1/predict"), ("POST", "/v1/feedback"), ("DELETE", "/v1/jobs/x")):
                    headers = {"Origin": origin}
                    answer = await running.client.request(method, path, content=png(), headers=headers)
                    check_problem(answer, 403, "foreign_origin")
                    assert "access-control-allow-origin" not in answer.headers
            assert lines() == []

    asyncio.run(ask())


def test_the_service_s_own_page_may_send_and_others_may_look_at_nothing(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            own = {"Origin": "http://127.0.0.1:8000"}
            assert (await running.client.post("/v1/predict", content=png(), headers=own)).status_code == 200
            answer = await running.client.get("/v1/models", headers={"Origin": "https://evil.com"})
            assert "access-control-allow-origin" not in answer.headers

    asyncio.run(ask())


def test_an_origin_that_is_no_address_is_refused_and_no_failure(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            found = {}
            for origin in ("http://[evil", "http://[::1", "https://[x]y"):
                answer = await running.client.post("/v1/predict", content=png(), headers={"Origin": origin})
                found[origin] = answer.status_code
            assert set(found.values()) == {403}, found

    asyncio.run(ask())


ALLOWED = "https://pacs.hospital.org"


def test_listed_origins_may_ask_after_a_preflight(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain], access={"cors": [ALLOWED]}) as running:
            wish = {
                "Origin": ALLOWED,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "x-api-key, content-type, prefer, authorization, x-medray-sticky",
            }
            allowed = await running.client.options("/v1/predict", headers=wish)
            assert allowed.status_code == 200
            assert allowed.headers["access-control-allow-origin"] == ALLOWED
            assert "POST" in allowed.headers["access-control-allow-methods"]
            assert "access-control-allow-credentials" not in allowed.headers
            answer = await running.client.post("/v1/predict", content=png(), headers={"Origin": ALLOWED})
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == ALLOWED
            shown = answer.headers["access-control-expose-headers"].lower()
            assert all(name in shown for name in ("x-request-id", "x-medray-model", "location", "retry-after"))
            refused = await running.client.post("/v1/predict?output=x", content=png(), headers={"Origin": ALLOWED})
            assert refused.headers["access-control-allow-origin"] == ALLOWED, "the page can read why"
            for other in ("https://evil.com", ALLOWED + ".evil.com", ALLOWED.replace("https", "http"), "null"):
                answer = await running.client.options("/v1/predict", headers={**wish, "Origin": other})
                assert answer.status_code == 403
                assert "access-control-allow-origin" not in answer.headers
                answer = await running.client.post("/v1/predict", content=png(), headers={"Origin": other})
                check_problem(answer, 403, "foreign_origin")
                assert "access-control-allow-origin" not in answer.headers
            put = await running.client.options("/v1/predict", headers={**wish, "Access-Control-Request-Method": "PUT"})
            assert put.status_code == 400

    asyncio.run(ask())


def test_a_preflight_has_the_headers_of_every_answer_and_its_host_is_looked_at(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain], access={"cors": [ALLOWED]}) as running:
            wish = {"Origin": ALLOWED, "Access-Control-Request-Method": "POST"}
            answer = await running.client.options("/v1/predict", headers=wish)
            assert len(answer.headers.get("x-request-id", "")) == 32
            foreign = await running.client.options("/v1/predict", headers={**wish, "Host": "evil.com"})
            assert foreign.status_code == 403

    asyncio.run(ask())


# Every answer


def test_every_answer_has_an_id_of_its_own_and_is_taken_for_what_it_says(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            client, seen = running.client, set()
            answers = [
                await client.get(path) for path in (*OPEN, *VIEWER, "/", "/nothing", "/ui/nothing", "/docs/assets/x")
            ]
            answers += [await sent(running, method, path) for method, path, _ in USER]
            answers += [await client.get("/", headers={"Host": "evil"}), await client.put("/v1/predict")]
            for answer in answers:
                assert answer.headers["x-content-type-options"] == "nosniff", answer.url
                assert "cache-control" in answer.headers
                assert len(answer.headers["x-request-id"]) == 32
                assert "server" not in answer.headers
                seen.add(answer.headers["x-request-id"])
            assert len(seen) == len(answers)

    asyncio.run(ask())


def test_nobody_can_choose_the_id_of_a_request(plain: Path) -> None:
    """Who could would have others' answers under a name that they know."""

    async def ask() -> None:
        async with service([plain]) as running:
            headers = {"X-Request-Id": "f" * 32, "X-Medray-Model": "x"}
            answer = await running.client.post("/v1/predict?keep=true", content=png(), headers=headers)
            assert answer.json()["request_id"] != "f" * 32
            assert answer.headers["x-medray-model"] == of_bundle(plain).reference

    asyncio.run(ask())


NOWHERE = [
    ("GET", "/nothing", 404),
    ("GET", "/v1", 404),
    ("GET", "/v1/models/a/b", 404),
    ("GET", "/v1/models/nobody", 404),
    ("GET", "/v1/models/%00", 404),
    ("GET", "/v1/models/%FF%FE", 404),
    ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
    ("GET", "/v1/models/" + "a" * 8000, 404),
    ("GET", "/v1/jobs/x", 404),
    ("GET", "/v1/jobs/%00", 404),
    ("GET", "/v1/results/%F0%9F%98%80", 404),
    ("GET", "/v1/results/x/mask", 404),
    ("GET", "/v1/results/x/preview/../../x.nii.gz", 404),
    ("GET", "/v1/predict", 405),
    ("PUT", "/v1/predict", 405),
    ("PATCH", "/v1/jobs/x", 405),
    ("DELETE", "/v1/results/x", 405),
    ("TRACE", "/v1/models", 405),
    ("BREW", "/livez", 405),
    ("OPTIONS", "/v1/predict", 405),
    ("GET", f"/v1/results/{ID}/slices?axis=x", 422),
    ("GET", f"/v1/results/{ID}/slices?axis=" + "9" * 5000, 422),
    ("GET", f"/v1/results/{ID}/slices?index=1.5", 422),
]


def test_what_is_not_there_is_a_problem_and_repeats_nothing(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            for method, path, status in NOWHERE:
                answer = await running.client.request(method, path)
                assert answer.status_code == status, path
                assert check_problem(answer, status)["hint"]
                assert not any(word in answer.text for word in ("passwd", "a" * 20, "9" * 20))
                if status == 405:
                    assert answer.headers["allow"]

    asyncio.run(ask())


def test_strange_queries_are_no_failure(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            for query in ("x=" + "a" * 60_000, "&" * 50_000, "model=%00", "model=%ff", "x[]=1&x=2", "%", "=&=&"):
                assert (await running.client.get(f"/v1/models?{query}")).status_code == 200
                answer = await running.client.post(f"/v1/predict?{query}", content=png())
                assert answer.status_code == (404 if "model" in query else 200), query

    asyncio.run(ask())


def test_a_page_is_found_with_head_too(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            for path in ("/ui/", "/docs"):
                answer = await running.client.head(path)
                assert (answer.status_code, answer.content) == (200, b"")

    asyncio.run(ask())


def test_health_answers_head_as_balancers_ask_it(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            for path in ("/livez", "/readyz", "/v2/health/ready"):
                assert (await running.client.head(path)).status_code == 200

    asyncio.run(ask())


def test_headers_that_are_no_text_are_no_failure(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            for name in ("Prefer", "X-Medray-Sticky", "Content-Type", "X-API-Key", "Authorization", "If-None-Match"):
                for value in (
                    b"\xff\xfe",
                    b"multipart/form-data; boundary=\xff",
                    b"a" * 60_000,
                    b"",
                    b"\x80;=\xc3\x28",
                ):
                    headers = [(name.encode(), value)]
                    answer = await running.client.post("/v1/predict", content=png(), headers=headers)
                    assert answer.status_code in (200, 400), (name, value)

    asyncio.run(ask())


# Errors that nobody foresaw


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/jobs", "/v2/models/plain"])
def test_a_route_that_breaks_is_a_problem_with_the_id_that_the_log_has(
    plain: Path, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("/secret/path of Doe^Jane")

    async def ask() -> None:
        async with service([plain]) as running:
            for part, names in ((running.engine, ("models", "card")), (running.desk, ("drift", "metrics", "jobs"))):
                for name in names:
                    monkeypatch.setattr(part, name, broken)
            answer = await running.client.get(path)
            assert answer.status_code == 500
            assert "secret" not in answer.text
            assert answer.headers["content-type"] in ("application/problem+json", "application/json")
            if path.startswith("/v1"):
                check_problem(answer, 500, "internal")
            assert answer.headers["x-request-id"] in caplog.text

    asyncio.run(ask())


def test_where_no_model_is_loaded_yet_it_is_alive_and_not_ready() -> None:
    async def ask() -> None:
        async with service([]) as running:
            assert (await running.client.get("/livez")).text == "ok"
            answer = await running.client.get("/readyz")
            check_problem(answer, 503, "not_ready")
            assert answer.headers["retry-after"]
            assert (await running.client.get("/v2/health/ready")).status_code == 503
            assert (await running.client.get("/v1/health")).json()["status"] == "starting"
            check_problem(await running.client.post("/v1/predict", content=png()), 404, "no_model")

    asyncio.run(ask())


# Feedback, models


def test_feedback_is_recorded_by_the_place_of_a_class_and_never_in_words(bundles: Bundles) -> None:
    async def ask() -> None:
        async with service([bundles.plain]) as running:
            client = running.client
            body = (await client.post("/v1/predict?keep=true", content=png())).json()
            said = {"request_id": body["request_id"]}
            for label, correct, code in ((None, True, "correct"), (None, False, "wrong"), ("b", False, "wrong_is_1")):
                answer = await client.post("/v1/feedback", json={**said, "correct": correct, "label": label})
                assert answer.status_code == 201
                assert answer.json() == {**said, "recorded": code}
            assert [(line["code"], line["route"]) for line in lines()[1:]] == [
                ("correct", "/v1/feedback"),
                ("wrong", "/v1/feedback"),
                ("wrong_is_1", "/v1/feedback"),
            ]
            assert {line["model"] for line in lines()} == {of_bundle(bundles.plain).reference}
            answer = await client.post("/v1/feedback", json={**said, "correct": False, "label": "Doe^Jane"})
            check_problem(answer, 422, "no_such_class")
            assert "Doe" not in answer.text
            check_problem(await client.post("/v1/feedback", json=FEEDBACK), 404, "no_result")

    asyncio.run(ask())


NO_FEEDBACK = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"{}",
    b'{"request_id": 1, "correct": true}',
    b'{"request_id": "%s", "correct": "perhaps"}' % ID.encode(),
    b'{"request_id": "%s\\n", "correct": true}' % ID.encode(),
    b'{"request_id": "../../x", "correct": true}',
    b'{"request_id": "%s", "correct": true, "label": "%s"}' % (ID.encode(), b"x" * 201),
    b'{"request_id": "%s", "correct": true, "\\ud800": 1}' % ID.encode(),
    b'{"request_id": "%s", "correct": true, "label": "\\ud800"}' % ID.encode(),
    b"\xff\xfe",
    b"[" * 100_000,
    b"1" * 10_000,
]


def test_feedback_of_any_other_form_is_refused(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            for content in NO_FEEDBACK:
                for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", ""):
                    answer = await running.client.post("/v1/feedback", content=content, headers={"Content-Type": kind})
                    assert answer.status_code in (400, 413, 422), (kind, content[:80])
                    check_problem(answer, answer.status_code)

    asyncio.run(ask())


def test_a_field_that_is_unknown_is_not_repeated(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            answer = await running.client.post("/v1/feedback", json={**FEEDBACK, "Doe^Jane": 1})
            check_problem(answer, 422)
            assert "Doe" not in answer.text

    asyncio.run(ask())


def test_feedback_that_is_no_text_is_told_so(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            headers = {"Content-Type": "application/json"}
            answer = await running.client.post("/v1/feedback", content=b"\xff\xfe{", headers=headers)
            assert check_problem(answer, 422)["detail"] != "there is nothing here"

    asyncio.run(ask())


@pytest.mark.parametrize("known", [True, False])
def test_feedback_takes_no_body_without_end_and_none_of_a_stranger(plain: Path, home: Path, known: bool) -> None:
    key = keys.add(home / "keys.json", "a")

    async def ask() -> None:
        async with service([plain]) as running:
            read = 0

            async def endless() -> Any:
                nonlocal read
                for _ in range(64):
                    read += 1
                    yield b" " * 2**20

            headers = {"Content-Type": "application/json"} | ({"X-API-Key": key} if known else {})
            answer = await running.client.post("/v1/feedback", content=endless(), headers=headers)
            assert answer.status_code in ((411, 413) if known else (401, 411, 413))
            assert read <= 2

    asyncio.run(ask())


def test_models_and_their_cards_are_told(bundles: Bundles) -> None:
    async def ask() -> None:
        async with service([bundles.plain, bundles.flat]) as running:
            models = (await running.client.get("/v1/models")).json()["models"]
            assert [(one["name"], one["task"], one["default"]) for one in models] == [
                ("plain", "classification", True),
                ("flat", "segmentation", False),
            ]
            needed = {"name", "version", "digest", "alias", "task", "axes", "channels", "classes", "structures", "role"}
            assert all(needed <= set(one) for one in models)
            card = (await running.client.get("/v1/models/flat")).json()
            assert card["card"]["classes"] == ["background", "organ", "lesion"]
            by_version = await running.client.get(f"/v1/models/flat@{card['version']}")
            assert by_version.json()["digest"] == card["digest"]
            told = (await running.client.get("/v1/models/flat")).text
            assert str(bundles.flat.parent) not in told, "no path of this machine"

    asyncio.run(ask())


def test_planes_and_previews_that_there_are_not_are_refused(bundles: Bundles) -> None:
    async def ask() -> None:
        async with service([bundles.volume, bundles.flat]) as running:
            client = running.client
            place = (await client.post("/v1/predict", content=nifti())).json()["links"]["self"]
            good = await client.get(f"{place}/slices?axis=2&index=7&layer=mask")
            assert (good.status_code, good.headers["content-type"]) == (200, "image/png")
            for query in (
                "axis=2&index=8&layer=mask",
                "axis=2&index=-1&layer=mask",
                "axis=3&index=0&layer=mask",
                "axis=-1&index=0&layer=mask",
                "layer=mask",
                "axis=2&layer=image",
                "axis=0&index=0&layer=heat",
                "axis=0&index=0&layer=x",
                f"axis=0&index={2**70}&layer=image",
            ):
                check_problem(await client.get(f"{place}/slices?{query}"), 422)
            for path in ("preview/x.nii.gz", "preview/heat.nii.gz", "explanation", "dicom_seg"):
                check_problem(await client.get(f"{place}/{path}"), 422, "no_such_file")
            for path in ("slice", "image_preview", "%2e%2e", "mask%00", "source", "raw"):
                check_problem(await client.get(f"{place}/{path}"), 404)
            flat = (await client.post("/v1/predict?model=flat", content=png())).json()["links"]["self"]
            check_problem(await client.get(f"{flat}/preview/image.nii.gz"), 422, "no_such_file")
            assert (await client.get(f"{flat}/slices?layer=image")).status_code == 200

    asyncio.run(ask())


def test_a_layer_that_is_none_is_not_repeated(bundles: Bundles) -> None:
    async def ask() -> None:
        async with service([bundles.flat]) as running:
            place = (await running.client.post("/v1/predict", content=png())).json()["links"]["self"]
            assert "Doe" not in (await running.client.get(f"{place}/slices?layer=Doe%5EJane")).text

    asyncio.run(ask())


@pytest.mark.parametrize("query", ["explain=Doe%5EJane", "explain=gradcam&target=Doe%5EJane"])
def test_a_method_or_class_that_there_is_not_is_not_repeated(plain: Path, query: str) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            answer = await running.client.post(f"/v1/predict?{query}", content=png())
            check_problem(answer, 422)
            assert "Doe" not in answer.text
            assert "--" not in answer.json()["detail"], "an API has no options of a command"

    asyncio.run(ask())


def test_a_method_can_be_typed_as_it_is_called(plain: Path) -> None:
    """curl and the address bar send gradcam++ as it is."""

    async def ask() -> None:
        async with service([plain]) as running:
            answer = await running.client.post("/v1/predict?explain=gradcam++", content=png())
            assert answer.status_code == 200

    asyncio.run(ask())
