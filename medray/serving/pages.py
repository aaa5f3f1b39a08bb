"""What a browser is shown: the page under /ui/, and the description of the API under /docs. Nothing from elsewhere.

Every file is read once and answered from memory, so that no request names a place on the disk.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

WEB = Path(__file__).parent / "web"
SHOWN = (".html", ".css", ".js", ".svg")
"""Files of the page by their suffix; what else lies beside them builds the viewer."""
BUILT = "dist"
"""The folder of the viewer for volumes, which `npm run build` makes."""
VIEWER = f"{BUILT}/volume.js"
SWAGGER = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".png": "image/png",
}
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Scripts and styles are files of the service: what an image's name or a model's card says can never become one."""
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
"""Of the report of an answer, which is one file with its style and pictures in it."""
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A browser asks each time and gets 304: after an update nobody sees half of the old page.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
PACKED_FROM = 1024
"""Bytes from which on text is worth being compressed."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of a page."""

    content: bytes
    packed: bytes | None
    """By gzip; None where that saves nothing."""
    media_type: str
    etag: str

    @staticmethod
    def of(name: str, content: bytes) -> Asset:
        """The file `name`, whose suffix says what it is."""
        media_type = TYPES[Path(name).suffix]
        text = media_type != "image/png" and len(content) >= PACKED_FROM
        packed = gzip.compress(content, 6, mtime=0) if text else None
        return Asset(content, packed, media_type, f'W/"{hashlib.sha256(content).hexdigest()[:32]}"')

    def answer(self, request: Request) -> Response:
        """The file, or 304 for who has it."""
        headers = {**HEADERS, "ETag": self.etag}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        content = self.content
        if self.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            content, headers["Content-Encoding"] = self.packed, "gzip"
        return Response(content, headers=headers, media_type=self.media_type)


def routes() -> list[BaseRoute]:
    """The routes of /, /ui and /docs; they belong behind those of the API."""
    page = _page()
    docs = {name: Asset.of(name, (_swagger() / name).read_bytes()) for name in SWAGGER}
    docs["docs.js"] = page["docs.js"]

    async def ui(request: Request) -> Response:
        return _found(page, request.path_params["name"] or "index.html", request)

    async def description(request: Request) -> Response:
        return page["docs.html"].answer(request)

    async def assets(request: Request) -> Response:
        return _found(docs, request.path_params["name"], request)

    async def home(_: Request) -> Response:
        return RedirectResponse("/ui/", 307, headers=dict(HEADERS))

    return [
        Route("/", home),
        Route("/ui", home),
        Route("/ui/{name:path}", ui),
        Route("/docs", description),
        Route("/docs/assets/{name}", assets),
    ]


def _page() -> dict[str, Asset]:
    """Name -> file of the page, with those of the viewer for volumes where it is built."""
    files = {file.name: file for file in WEB.iterdir() if file.suffix in SHOWN}
    built = WEB / BUILT
    if built.is_dir():
        files |= {f"{BUILT}/{file.name}": file for file in built.iterdir() if file.suffix in TYPES}
    found = {name: Asset.of(name, file.read_bytes()) for name, file in files.items()}
    # The page asks for this and not for the viewer itself: a browser counts what is not there as an error.
    about = json.dumps({"volume": f"./{VIEWER}" if VIEWER in found else None})
    return found | {"about.json": Asset.of("about.json", about.encode())}


def _swagger() -> Path:
    from swagger_ui_bundle import swagger_ui_path

    return Path(swagger_ui_path)


def _found(files: Mapping[str, Asset], name: str, request: Request) -> Response:
    asset = files.get(name)
    if asset is None:
        return Response("not found\n", 404, dict(HEADERS), "text/plain; charset=utf-8")
    return asset.answer(request)
