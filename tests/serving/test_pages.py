"""The page and the description of the API: all from here, nothing from elsewhere, nothing but what is meant to be."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from medray.serving import pages
from medray.serving.pages import SHOWN, WEB, routes

OWN = [file for file in sorted(WEB.iterdir()) if file.suffix in SHOWN]
LARGEST = 60_000
"""Bytes of the page as they are sent."""


Get = Callable[..., httpx.Response]
"""(path, headers) -> the answer."""


def getter() -> Get:
    app = Starlette(routes=routes())

    async def ask(path: str, headers: dict[str, str]) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get(path, headers=headers)

    return lambda path, headers=None: asyncio.run(ask(path, headers or {}))


@pytest.fixture(scope="module")
def get() -> Get:
    return getter()


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/ui/", "text/html"),
        ("/ui/index.html", "text/html"),
        ("/ui/app.js", "text/javascript"),
        ("/ui/style.css", "text/css"),
        ("/ui/icon.svg", "image/svg+xml"),
        ("/ui/about.json", "application/json"),
        ("/ui/drift.html", "text/html"),
        ("/docs", "text/html"),
        ("/docs/assets/swagger-ui-bundle.js", "text/javascript"),
        ("/docs/assets/docs.js", "text/javascript"),
        ("/docs/assets/favicon-32x32.png", "image/png"),
    ],
)
def test_files_come_as_what_they_are(get: Get, path: str, media_type: str) -> None:
    found = get(path)
    assert found.status_code == 200
    assert found.headers["content-type"].startswith(media_type)
    assert "frame-ancestors 'none'" in found.headers["content-security-policy"]
    assert "unsafe" not in found.headers["content-security-policy"]
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["referrer-policy"] == "no-referrer"


def test_the_front_door_leads_to_the_page(get: Get) -> None:
    for path in ("/", "/ui"):
        assert get(path).headers["location"] == "/ui/"


def test_who_has_a_file_is_not_sent_it_again(get: Get) -> None:
    first = get("/ui/app.js")
    again = get("/ui/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert get("/ui/app.js", headers={"If-None-Match": 'W/"other"'}).status_code == 200


def test_text_is_packed_for_who_can_unpack_it(get: Get) -> None:
    plain = get("/ui/app.js", headers={"Accept-Encoding": "identity"})
    packed = get("/ui/app.js", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content == (WEB / "app.js").read_bytes()
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 2


@pytest.mark.parametrize(
    "path",
    [
        "/ui/package.json",
        "/ui/build.mjs",
        "/ui/volume.src.mjs",
        "/ui/.npmrc",
        "/ui/../pages.py",
        "/ui/%2e%2e/pages.py",
        "/ui/..%2fpages.py",
        "/ui//etc/passwd",
        "/docs/assets/index.html",
        "/docs/assets/..%2f..%2f__init__.py",
    ],
)
def test_nothing_else_is_given_away(get: Get, path: str) -> None:
    assert get(path).status_code == 404


def test_the_page_is_small() -> None:
    page = [file for file in OWN if file.stem not in ("docs", "drift")]
    assert sum(len(gzip.compress(file.read_bytes(), 6)) for file in page) < LARGEST


@pytest.mark.parametrize("file", OWN, ids=lambda file: file.name)
def test_files_hold_to_the_policy(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    named = set(re.findall(r"https?://[^\s\"')]+", text))
    assert named <= {"http://www.w3.org/2000/svg"}
    for word in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage", "document.cookie"):
        assert word not in text, word
    if file.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\bsrc=)|\bstyle=|\bon[a-z]+=", text)
        assert "modulepreload" not in text or all(
            (WEB / name).exists() for name in re.findall(r'preload" href="(.+?)"', text)
        )


def test_the_viewer_is_offered_where_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in OWN:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(pages, "WEB", tmp_path)
    without = getter()
    assert without("/ui/about.json").json() == {"volume": None}
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "volume.js").write_text("export class Volume {}")
    built = getter()
    assert built("/ui/about.json").json() == {"volume": "./dist/volume.js"}
    assert built("/ui/dist/volume.js").text == "export class Volume {}"
