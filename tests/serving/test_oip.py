"""The Open Inference Protocol: tensors in and out as it says, its own form of errors, and no garbage that breaks it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_phantom import service
from test_ingress import Bundles, Direct, bundles_of, of_request, plain_of, png, unread

from medray.imaging.reader import read
from medray.inference.predictor import Predictor
from medray.serving import ingress, keys, watched
from medray.serving.lineup import of_bundle
from medray.serving.oip import parsed, tensor
from medray.serving.problems import Refused

JSON = {"Content-Type": "application/json"}


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


def wish(values: Any = None, shape: Any = (1, 1, 16, 16), datatype: Any = "FP32", **more: Any) -> dict[str, Any]:
    data = [0.5] * 256 if values is None else values
    return {"inputs": [{"name": "input", "shape": list(shape), "datatype": datatype, "data": data}], **more}


def error_of(answer: httpx.Response, status: int) -> str:
    body = answer.json()
    assert answer.status_code == status, answer.text
    assert list(body) == ["error"]
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) == 32
    return str(body["error"])


# What it says


def test_server_health_and_metadata_are_as_the_protocol_has_them(bundles: Bundles) -> None:
    async def ask() -> None:
        async with service([bundles.plain, bundles.flat, bundles.volume]) as running:
            client = running.client
            assert (await client.get("/v2")).json() == {
                "name": "medray",
                "version": version("medray"),
                "extensions": [],
            }
            assert (await client.get("/v2/health/live")).json() == {"live": True}
            assert (await client.get("/v2/health/ready")).json() == {"ready": True}
            expected = {
                "plain": ([-1, 1, 16, 16], [-1, 2]),
                "flat": ([-1, 1, 16, 16], [-1, 3, 16, 16]),
                "volume": ([-1, 1, 8, 8, 8], [-1, 3, 8, 8, 8]),
            }
            for name, (taken, given_back) in expected.items():
                entry = of_bundle(getattr(bundles, name))
                for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{entry.version}"):
                    about = (await client.get(path)).json()
                    assert (about["name"], about["versions"]) == (name, [entry.version])
                    assert isinstance(about["platform"], str)
                    assert about["inputs"] == [{"name": "input", "datatype": "FP32", "shape": taken}]
                    assert about["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": given_back}]
                    assert (await client.get(f"{path}/ready")).json() == {"name": name, "ready": True}

    asyncio.run(ask())


def test_scores_have_the_shape_that_was_promised_and_are_those_of_the_model(bundles: Bundles) -> None:
    async def ask() -> None:
        async with service([bundles.plain, bundles.flat, bundles.volume]) as running:
            for name, shape, given_back in (
                ("plain", (3, 1, 16, 16), [3, 2]),
                ("flat", (2, 1, 16, 16), [2, 3, 16, 16]),
                ("volume", (1, 1, 8, 8, 8), [1, 3, 8, 8, 8]),
            ):
                values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
                body = wish(values.tolist(), shape, id="call 7")
                answer = await running.client.post(f"/v2/models/{name}/infer", json=body)
                found, entry = answer.json(), of_bundle(getattr(bundles, name))
                assert (found["model_name"], found["model_version"], found["id"]) == (name, entry.version, "call 7")
                assert answer.headers["x-medray-model"] == entry.reference
                (scores,) = found["outputs"]
                assert (scores["name"], scores["datatype"], scores["shape"]) == ("scores", "FP32", given_back)
                assert len(scores["data"]) == math.prod(given_back)
                assert np.reshape(scores["data"], given_back).sum(1) == pytest.approx(1, abs=1e-4)
                line = await of_request(answer.headers["x-request-id"])
                assert (line["model"], line["batch"], line["outcome"]) == (entry.reference, shape[0], "answered")

    asyncio.run(ask())


def test_the_same_image_has_the_same_scores_on_both_roads(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            told = (await running.client.post("/v1/predict", content=png())).json()["predictions"]
            _, values = Predictor(plain).prepare(read(png()))
            answer = await running.client.post("/v2/models/plain/infer", json=wish(values.ravel().tolist()))
            (scores,) = answer.json()["outputs"]
            assert scores["data"] == pytest.approx([one["probability"] for one in told], abs=1e-5)

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("datatype", "number"), [("FP32", 0.25), ("FP64", 0.25), ("UINT8", 255), ("INT16", -32768), ("FP64", 1)]
)
@pytest.mark.parametrize("nested", [True, False])
def test_all_datatypes_come_out_as_float32(datatype: str, number: float, nested: bool) -> None:
    values = np.full((2, 1, 4, 4), number)
    data = values.tolist() if nested else values.ravel().tolist()
    found = tensor(wish(data, (2, 1, 4, 4), datatype))
    assert (found.dtype, found.shape) == (np.float32, (2, 1, 4, 4))
    assert np.array_equal(found, values.astype(np.float32))


# What it refuses

WRONG: tuple[Any, ...] = (
    {},
    {"inputs": []},
    {"inputs": None},
    {"inputs": {}},
    {"inputs": [None]},
    {"inputs": [[]]},
    {"inputs": wish()["inputs"] * 2},
    wish(datatype=None),
    wish(datatype="FP16"),
    wish(datatype="BYTES"),
    wish(datatype="float32"),
    wish(datatype=["FP32"]),
    wish(shape=()),
    wish(shape=(256,) * 9),
    wish(shape=(1, 1, 16, 15)),
    wish(shape=(1, 1, 16, -16)),
    wish(shape=(1, 1, 16, 0)),
    wish(shape=(1.0, 1, 16, 16)),
    wish(shape=(True, 1, 16, 16)),
    wish(shape=(2**40, 2**40)),
    wish(shape=("1", 1, 16, 16)),
    {"inputs": [{**wish()["inputs"][0], "shape": "1,1,16,16"}]},
    wish(values="abc"),
    wish(values={}),
    wish(values=[[0.5] * 16] * 15 + [[0.5]]),
    wish(values=[None] * 256),
    wish(values=["x"] * 256),
    wish(values=[math.nan] * 256),
    wish(values=[math.inf] * 256),
    wish(values=[1e300] * 256, datatype="FP64"),
    wish(values=[256] * 256, datatype="UINT8"),
    wish(values=[-1] * 256, datatype="UINT8"),
    wish(values=[32768] * 256, datatype="INT16"),
    wish(values=[10**400] * 256),
    wish(values=[{}] * 256),
)


def test_tensors_that_are_not_as_they_say_are_400() -> None:
    for body in WRONG:
        with pytest.raises(Refused) as caught:
            tensor(body)
        assert (caught.value.status, caught.value.code) == (400, "bad_tensor"), body
        assert len(caught.value.detail) < 200


def test_a_number_too_large_for_float32_is_no_warning() -> None:
    with pytest.raises(Refused):
        tensor(wish(values=[1e300] * 256))


@pytest.mark.parametrize(
    ("values", "datatype"),
    [([1.5] * 256, "UINT8"), ([0.7] * 256, "INT16"), (["1.5"] * 256, "FP32"), ([True] * 256, "FP32"), ("0.5", "FP32")],
)
def test_numbers_of_another_kind_are_not_bent_to_fit(values: Any, datatype: str) -> None:
    """1.5 as UINT8 would be answered as 1: a client's mistake becomes a wrong answer."""
    with pytest.raises(Refused):
        tensor(wish(values, (1, 1, 16, 16) if isinstance(values, list) else (1,), datatype))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"1", b"null", b'"x"', b"\xff", b"\xfe\xff\0{", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000],
)
def test_what_is_no_json_object_is_400(content: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parsed(content)
    assert (caught.value.status, caught.value.code) == (400, "bad_json")


def test_errors_have_the_protocol_s_form_and_name_nobody(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            client = running.client
            number = of_bundle(plain).version
            assert error_of(await client.get("/v2/models/Doe%5EJane"), 404).startswith("no_model")
            assert "Doe" not in (await client.get("/v2/models/Doe%5EJane/ready")).text
            error_of(await client.get("/v2/models/plain/versions/9"), 404)
            error_of(await client.post("/v2/models/plain/versions/9/infer", json=wish()), 404)
            assert (await client.post(f"/v2/models/plain/versions/{number}/infer", json=wish())).status_code == 200
            assert error_of(await client.post("/v2/models/plain/infer", content=b"x"), 400).startswith("bad_json")
            wrong = await client.post("/v2/models/plain/infer", json=wish(values=[0.5] * 64, shape=(1, 1, 8, 8)))
            assert "[1, 1, 8, 8]" in error_of(wrong, 422)
            assert error_of(await unread(running, "/v2/models/plain/infer", **{"Content-Length": "x"}), 411)
            assert error_of(await unread(running, "/v2/models/plain/infer", **{"Content-Length": "9" * 15}), 413)
            error_of(await client.get("/v2/nothing"), 404)
            error_of(await client.get("/v2/models/plain/infer"), 405)

    asyncio.run(ask())


def test_who_is_not_let_in_is_told_in_the_protocol_s_form_too(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            error_of(await running.client.get("/v2/models/plain", headers={"Host": "evil.com"}), 403)

    asyncio.run(ask())


def test_an_id_that_is_no_text_is_no_failure(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            content = json.dumps(wish(id="\ud800")).encode()
            answer = await running.client.post("/v2/models/plain/infer", content=content, headers=JSON)
            assert answer.status_code in (200, 400)

    asyncio.run(ask())


def test_an_id_is_given_back_if_it_is_a_text(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            for said, expected in (("Ä\n", "Ä\n"), ("", ""), (7, None), (None, None), ([1], None)):
                body = (await running.client.post("/v2/models/plain/infer", json=wish(id=said))).json()
                assert body.get("id") == expected

    asyncio.run(ask())


def test_beyond_the_queue_is_429(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain], max_queued_requests=1) as running:
            with running.ingress.room.take():
                answer = await unread(running, "/v2/models/plain/infer")
                assert error_of(answer, 429).startswith("overloaded")
                assert int(answer.headers["retry-after"]) >= 1
            assert (await running.client.post("/v2/models/plain/infer", json=wish())).status_code == 200
            assert (await running.client.post("/v2/models/plain/infer", content=b"x")).status_code == 400
            assert running.ingress.room.taken == 0

    asyncio.run(ask())


def test_slow_uploads_take_no_room(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain], max_queued_requests=2) as running:
            stuck = asyncio.Event()

            async def slowly() -> AsyncIterator[bytes]:
                yield b"{"
                await stuck.wait()

            def hang() -> Any:
                headers = {**JSON, "Content-Length": "99"}
                return running.client.post("/v2/models/plain/infer", content=slowly(), headers=headers)

            slow = [asyncio.ensure_future(hang()) for _ in range(2)]
            await asyncio.sleep(0.1)
            answer = await running.client.post("/v1/predict", content=png())
            stuck.set()
            await asyncio.gather(*slow, return_exceptions=True)
            assert answer.status_code == 200

    asyncio.run(ask())


def test_the_rate_of_a_key_counts_on_this_road_too(plain: Path, home: Path) -> None:
    key = {"X-API-Key": keys.add(home / "keys.json", "a")}

    async def ask() -> None:
        async with service([plain], access={"per_minute": 6, "burst": 2}) as running:
            statuses = []
            for _ in range(3):
                answer = await running.client.post("/v2/models/plain/infer", json=wish(), headers=key)
                statuses.append(answer.status_code)
            assert statuses == [200, 200, 429]

    asyncio.run(ask())


def test_what_is_refused_is_recorded(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            for content in (b"x", json.dumps(wish(shape=(1, 1, 8, 8), values=[0.5] * 64)).encode()):
                answer = await running.client.post("/v2/models/plain/infer", content=content)
                line = await of_request(answer.headers["x-request-id"])
                assert (line["route"], line["outcome"]) == ("/v2/infer", "refused")

    asyncio.run(ask())


def test_a_large_tensor_holds_nobody_up(plain: Path) -> None:
    async def ask() -> None:
        async with service([plain]) as running:
            content = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [%s0]}]}' % (
                b"0.123456," * 3_000_000
            )
            longest, done = 0.0, False

            async def watch() -> None:
                nonlocal longest
                while not done:
                    began = time.monotonic()
                    await asyncio.sleep(0.005)
                    longest = max(longest, time.monotonic() - began)

            watching = asyncio.ensure_future(watch())
            answer = await running.client.post("/v2/models/plain/infer", content=content)
            done = True
            await watching
            assert answer.status_code in (400, 413)
            assert longest < 0.2

    asyncio.run(ask())


# Garbage

VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from([1e300, 1e38, 2**31, 2**63, 10**400, -1, "FP32", "UINT8", "INT16", "FP64", 0.5, 1]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=20,
)
SHAPES = st.one_of(VALUES, st.lists(st.integers(-2, 20), max_size=5), st.just([1, 1, 16, 16]), st.just([2, 1, 16, 16]))
NUMBERS = st.one_of(
    st.lists(st.one_of(st.integers(-300, 300), st.floats(width=32), st.sampled_from([1e39, 1e300, None])), max_size=20),
    st.integers(0, 300).map(lambda count: [0.5] * count),
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": VALUES,
        "shape": SHAPES,
        "datatype": st.one_of(st.sampled_from(["FP32", "FP64", "UINT8", "INT16", "BOOL"]), VALUES),
        "data": st.one_of(NUMBERS, VALUES),
        "parameters": VALUES,
    },
)
BODY = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {}, optional={"inputs": st.one_of(st.lists(TENSOR, max_size=2), VALUES), "id": VALUES, "outputs": VALUES}
    ),
)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@settings(deadline=None, max_examples=300)
@given(BODY)
def test_any_json_is_a_tensor_or_refused(body: Any) -> None:
    content = json.dumps(body).encode()
    with contextlib.suppress(Refused):
        found = tensor(parsed(content))
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        assert list(found.shape) == body["inputs"][0]["shape"]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_garbage_is_never_a_failure_of_the_service(plain: Path) -> None:
    with asyncio.Runner() as runner:
        context = service([plain])
        running = runner.run(context.__aenter__())

        @settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
        @given(BODY, st.binary(max_size=20), st.booleans())
        def ask(body: Any, junk: bytes, spoil: bool) -> None:
            content = json.dumps(body).encode() + (junk if spoil else b"")
            answer = runner.run(running.client.post("/v2/models/plain/infer", content=content, headers=JSON))
            assert answer.status_code in (200, 400, 422)
            assert set(answer.json()) == {"error"} or answer.status_code == 200

        try:
            ask()
        finally:
            runner.run(context.__aexit__(None, None, None))
