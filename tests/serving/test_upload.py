"""Uploads: refused by what they announce, ended where they hardly come, and handed on to the last bit."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import json
import logging
import runpy
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from medray.sections.service import ServeSection
from medray.serving import upload
from medray.serving.problems import Refused
from medray.serving.upload import MAX_FIELDS, Uploads, file_of_form

BAD_INPUTS = Path(__file__).parents[3] / "shared" / "bad_inputs" / "make_bad_inputs.py"
MIB = 2**20
FORM = "multipart/form-data; boundary=line"


def uploads(**changes: Any) -> Uploads:
    return Uploads(ServeSection.model_validate({"max_upload_mb": 1.0, **changes}))


def request(
    *parts: bytes, length: str | None = None, wait_s: float = 0.0, end: str = "whole", **headers: str
) -> Request:
    """A POST whose body comes in parts, one each `wait_s`; `end`: whole, gone (the client leaves) or hanging."""
    coming = iter(parts)
    left = [len(parts)]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(wait_s)
        if (part := next(coming, None)) is None:
            if end == "hanging":
                await asyncio.Event().wait()
            return {"type": "http.disconnect"} if end == "gone" else {"type": "http.request", "body": b""}
        left[0] -= 1
        return {"type": "http.request", "body": part, "more_body": bool(left[0]) or end != "whole"}

    told = {"content_length": str(sum(map(len, parts))) if length is None else length, **headers}
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in told.items() if value]
    return Request({"type": "http", "method": "POST", "path": "/v1/predict", "headers": pairs}, receive)


def never_read(**headers: str) -> Request:
    async def receive() -> dict[str, Any]:
        raise AssertionError("a byte of the body was asked for")

    pairs = [(name.replace("_", "-").encode(), value.encode("utf-8")) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": pairs}, receive)


def refusal(reader: Uploads, sent: Request) -> Refused:
    with pytest.raises(Refused) as caught:
        asyncio.run(reader.read(sent))
    assert caught.value.detail
    return caught.value


def part(
    content: bytes, disposition: str = 'form-data; name="file"; filename="image.png"', boundary: str = "line"
) -> bytes:
    return f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"


def form(*parts: bytes, boundary: str = "line") -> bytes:
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


# What is announced


@pytest.mark.parametrize("length", ["", "-1", "+5", "ten", "1.5", "1e3", "0x10", "5, 5", "5 5", "²", "\u0665"])
def test_no_length_is_411_before_a_byte_is_read(length: str) -> None:
    found = refusal(uploads(), never_read(content_length=length))
    assert (found.status, found.code) == (411, "length_required")


def test_a_chunked_body_is_411_before_a_byte_is_read() -> None:
    assert refusal(uploads(), never_read(transfer_encoding="chunked")).status == 411


@pytest.mark.parametrize("length", [str(MIB + 1), "9" * 18, "9" * 19, "9" * 100_000, "0" * 30])
def test_too_long_is_413_before_a_byte_is_read(length: str) -> None:
    """Digits without end are no number to be worked out, and are not repeated in the answer."""
    found = refusal(uploads(), never_read(content_length=length))
    assert (found.status, found.code) == (413, "too_large_upload")
    assert "at most 1 MiB" in found.detail
    assert len(found.detail) < 100


def test_the_limit_itself_is_taken() -> None:
    assert asyncio.run(uploads().read(request(b"x" * MIB))) == b"x" * MIB


def test_a_body_that_is_longer_than_it_said_ends_at_the_limit() -> None:
    """A server that is told both a length and `chunked` hands on all that comes."""
    sent = request(*[b"x" * (MIB // 4)] * 40, length="10", transfer_encoding="chunked")
    assert refusal(uploads(), sent).status in (400, 413)


# How it comes


def test_a_body_in_many_parts_is_whole() -> None:
    parts = [bytes([number]) * number for number in range(200)]
    assert asyncio.run(uploads().read(request(*parts))) == b"".join(parts)


@pytest.mark.parametrize("parts", [(), (b"x",)])
def test_silence_ends_with_408_and_the_line_is_closed(
    parts: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "GRACE_S", 0.1)
    began = time.monotonic()
    found = refusal(uploads(), request(*parts, length="100", end="hanging"))
    assert (found.status, found.code, found.headers) == (408, "upload_too_slow", {"Connection": "close"})
    assert 0.09 < time.monotonic() - began < 2


def test_drops_below_the_floor_end_with_408_although_each_is_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow-loris: a byte now and then keeps other servers waiting for ever."""
    monkeypatch.setattr(upload, "GRACE_S", 0.1)
    began = time.monotonic()
    sent = request(*[b"x"] * 1000, wait_s=0.01)
    assert refusal(uploads(upload_kb_per_s=100.0), sent).status == 408
    assert time.monotonic() - began < 2


def test_above_the_floor_it_may_take_longer_than_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "GRACE_S", 0.1)
    sent = request(*[b"x" * 8 * 1024] * 12, wait_s=0.03)
    assert len(asyncio.run(uploads(upload_kb_per_s=32.0).read(sent))) == 12 * 8 * 1024


@pytest.mark.parametrize("floor", [0.0, 16.0])
def test_no_upload_takes_longer_than_upload_s(floor: float) -> None:
    sent = request(*[b"x" * 1000] * 1000, wait_s=0.01)
    began = time.monotonic()
    assert refusal(uploads(upload_s=0.2, upload_kb_per_s=floor), sent).status == 408
    assert time.monotonic() - began < 2


def test_slow_uploads_do_not_hold_up_a_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "GRACE_S", 1.0)
    reader = uploads()

    async def all_at_once() -> float:
        slow = [asyncio.ensure_future(reader.read(request(b"x", length="9", end="hanging"))) for _ in range(500)]
        await asyncio.sleep(0)
        began = time.monotonic()
        assert await reader.read(request(b"fast")) == b"fast"
        spent = time.monotonic() - began
        found = await asyncio.gather(*slow, return_exceptions=True)
        assert {one.status for one in found if isinstance(one, Refused)} == {408}
        return spent

    assert asyncio.run(all_at_once()) < 0.5


# How much at once


async def _half_there(reader: Uploads) -> asyncio.Task[bytes]:
    task = asyncio.ensure_future(reader.read(request(b"x" * (MIB - 1), length=str(MIB), end="hanging")))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


def test_all_uploads_together_have_a_budget() -> None:
    async def two() -> None:
        reader = uploads(uploads_mb=1.5)
        task = await _half_there(reader)
        with pytest.raises(Refused) as caught:
            await reader.read(request(b"x" * MIB))
        assert (caught.value.status, caught.value.code) == (429, "too_many_uploads")
        assert int(caught.value.headers["Retry-After"]) > 0
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert len(await reader.read(request(b"x" * MIB))) == MIB, "its part of the budget is free again"

    asyncio.run(two())


def test_the_budget_is_free_again_however_an_upload_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "GRACE_S", 0.02)
    reader = uploads(uploads_mb=1.0, upload_kb_per_s=1e6)
    broken = form(part(b"x" * 900_000))[:-5]
    endings: list[tuple[dict[str, Any], type[BaseException]]] = [
        ({"length": str(MIB), "end": "hanging"}, Refused),
        ({"length": str(MIB), "end": "gone"}, ClientDisconnect),
        ({"content_type": FORM}, Refused),
    ]

    async def all_of_them() -> None:
        for _ in range(3):
            for sent, kind in endings:
                with pytest.raises(kind):
                    await reader.read(request(broken, **sent))
            with pytest.raises(Refused):
                await reader.read(request(b"x" * MIB, b"x", length=str(MIB)))  # over the budget alone
        monkeypatch.setattr(upload, "GRACE_S", 5.0)
        assert len(await reader.read(request(b"x" * MIB))) == MIB

    asyncio.run(all_of_them())


# Forms


def read_form(body: bytes, content_type: str = FORM) -> bytes:
    return asyncio.run(uploads(max_upload_mb=16.0).read(request(body[:7], body[7:], content_type=content_type)))


def test_body_and_form_hand_on_the_same_bytes() -> None:
    assert asyncio.run(uploads().read(request(b"pixels", content_type="image/png"))) == b"pixels"
    assert read_form(form(part(b"pixels"))) == b"pixels"
    assert read_form(form(part(b"pixels")), FORM.replace("multipart/form-data", "Multipart/Form-Data")) == b"pixels"
    assert read_form(form(part(b"pixels")), 'multipart/form-data; charset=utf-8; boundary="line"') == b"pixels"


FULL = settings(deadline=None, max_examples=150)
NEAR = st.lists(
    st.sampled_from([b"\r", b"\n", b"--", b"line", b"\r\n--", b"\r\n--lin", b"--line--", b"\0", b"PK", b":", b"x"])
)


@FULL
@given(st.one_of(st.binary(max_size=400), NEAR.map(b"".join)))
def test_any_bytes_come_out_of_a_form_as_they_went_in(content: bytes) -> None:
    if b"\r\n--line" not in b"\r\n" + content:
        assert file_of_form(form(part(content)), FORM) == content


@FULL
@given(NEAR.map(b"".join))
def test_content_that_holds_the_boundary_is_never_cut_short_in_silence(content: bytes) -> None:
    """A client that lets that happen sends a broken form, and half an image must not be answered."""
    with contextlib.suppress(Refused):
        found = file_of_form(form(part(content)), FORM)
        assert found == content or b"\r\n--line" in b"\r\n" + content
        assert content.startswith(found)


@FULL
@given(st.binary(max_size=300), st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60))
def test_no_form_and_no_type_of_content_ends_in_anything_but_bytes_or_a_refusal(junk: bytes, kind: str) -> None:
    for body in (junk, form(junk), form(part(junk), junk), form(b"--line\r\n" + junk + b"\r\n\r\nx\r\n")):
        for content_type in (FORM, f"multipart/form-data; boundary={kind}", f"multipart/form-data{kind}"):
            try:
                assert isinstance(file_of_form(body, content_type), bytes)
            except Refused as refused:
                found = (refused.status, refused.code)
                assert found in {(400, "bad_multipart"), (400, "no_file"), (413, "too_many_parts")}


def test_a_form_that_is_cut_anywhere_is_400() -> None:
    """A cut upload is never processed as a whole file."""
    whole = form(part(b"pixels of an image"), part(b"more", 'form-data; name="note"')).rstrip()
    for length in range(len(whole)):
        with pytest.raises(Refused) as caught:
            file_of_form(whole[:length], FORM)
        assert (caught.value.status, caught.value.code) == (400, "bad_multipart")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (form(part(b"a"), part(b"b")), (413, "too_many_parts")),
        (form(part(b"a"), part(b"b", 'form-data; name="other"; filename="x"')), (413, "too_many_parts")),
        (form(*[part(b"", 'form-data; name="x"')] * (MAX_FIELDS + 1), part(b"a")), (413, "too_many_parts")),
        (form(part(b"a", 'form-data; name="image"; filename="x.png"')), (400, "no_file")),
        (form(part(b"a", 'form-data; name="file"')), (400, "no_file")),
        (form(part(b"a", 'form-data; filename="x.png"')), (400, "no_file")),
        (form(b"--line\r\n\r\na\r\n"), (400, "no_file")),
        (form(), (400, "no_file")),
        (b"", (400, "bad_multipart")),
        (b"pixels", (400, "bad_multipart")),
        (form(b"--line\r\nbroken header\r\n\r\na\r\n"), (400, "bad_multipart")),
        (form(b"--line\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\na\r\n"), (400, "bad_multipart")),
        (form(b"--line\r\nX-A: " + b"b" * MIB + b"\r\n\r\na\r\n"), (400, "bad_multipart")),
    ],
    ids=[
        "two files",
        "a file in another field too",
        "too many fields",
        "only another field",
        "no file name",
        "no field name",
        "no disposition",
        "no part",
        "empty",
        "no form at all",
        "no colon in a header",
        "20,000 headers",
        "a header of 1 MiB",
    ],
)
def test_forms_without_one_file_in_its_field(body: bytes, expected: tuple[int, str]) -> None:
    with pytest.raises(Refused) as caught:
        read_form(body)
    assert (caught.value.status, caught.value.code) == expected
    assert "curl" in caught.value.hint


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=other", FORM + "x" * 300],
)
def test_a_form_without_its_boundary_is_400(content_type: str) -> None:
    with pytest.raises(Refused) as caught:
        read_form(form(part(b"a"), part(b"b")), content_type)
    assert (caught.value.status, caught.value.code) == (400, "bad_multipart")


def test_some_fields_beside_the_file_are_no_harm() -> None:
    fields = [part(b"words", 'form-data; name="note"')] * MAX_FIELDS
    assert read_form(form(*fields[:4], part(b"pixels"), *fields[4:])) == b"pixels"


@pytest.mark.parametrize(
    "name",
    ["../../../etc/cron.d/x", "/etc/passwd", "C:\\\\boot.ini", "", "a" * 2000, "x%0d%0ay", "\u202egnp.exe", "a\0b"],
)
def test_the_name_of_a_file_is_used_for_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    opened: list[Any] = []
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda *args, **named: opened.append(args) or real(*args, **named))
    for written in ("open", "mkdir", "stat"):
        monkeypatch.setattr(f"os.{written}", lambda *args, **_: opened.append(args))
    body = form(part(b"pixels", f'form-data; name="file"; filename="{name}"'))
    found = read_form(body)
    monkeypatch.undo()
    assert (found, opened) == (b"pixels", [])
    assert not name or name not in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        form(part(b"\r\n--lin" * (MIB // 2))),
        form(part(b"\r" * 4 * MIB)),
        b"\r\n" * 2 * MIB + form(part(b"x")),
        form(part(b"x")) + b"\r\n" * 2 * MIB,
        form(part(b"x")) + b"\r\n" * MIB + b"--line--",
        b"".join(part(b"x", f'form-data; name="n{number}"') for number in range(30_000)) + form(),
        form(part(b"x", 'form-data; name="file"; filename="' + '\\"' * 4000 + '"')),
        form(part(b"x", "form-data" + ";" * 7000)),
    ],
    ids=["near boundaries", "returns", "preamble", "epilogue", "two ends", "many fields", "escapes", "semicolons"],
)
def test_no_form_takes_long(body: bytes) -> None:
    """A parser that goes back over what it read takes minutes over some of these, and all others wait."""
    began = time.process_time()
    with contextlib.suppress(Refused):
        read_form(body)
    assert time.process_time() - began < 0.5


def test_the_hostile_forms_beside_the_checkout_have_their_answers(tmp_path: Path) -> None:
    if not BAD_INPUTS.exists():
        pytest.skip("no ../shared/bad_inputs beside this checkout")
    manifest = runpy.run_path(str(BAD_INPUTS))["make"](tmp_path, only={"http"})
    assert len(manifest["cases"]) == 6
    for entry in manifest["cases"]:
        file = tmp_path / entry["path"]
        kind = json.loads(Path(f"{file}.headers.json").read_text())["Content-Type"]
        began = time.process_time()
        # What comes whole out of its form is no image, which the reader says: see test_hostile_http.py.
        found = (415, "unsupported_type")
        try:
            read_form(file.read_bytes(), kind)
        except Refused as refused:
            found = (refused.status, refused.code)
        assert found == (entry["serve"]["status"], entry["serve"]["code"]), entry["id"]
        assert time.process_time() - began < 1


# Who goes


def test_who_leaves_in_the_middle_is_not_waited_for() -> None:
    with pytest.raises(ClientDisconnect):
        asyncio.run(asyncio.wait_for(uploads().read(request(b"half", length="100", end="gone")), 2))
