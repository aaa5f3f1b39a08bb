"""The bytes of one upload: refused by their announced size before any is read, and ended where they hardly come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from medray.sections.service import ServeSection
from medray.serving.problems import Refused

FORM_HINT = "curl -F file=@image.png"
GRACE_S = 5.0
"""Any upload may take so long, however slow."""
MAX_FIELDS = 8
ASIDE_BYTES = 1 << 20
"""More is worked on in a thread, so that others go on."""
MIB, KIB = 2**20, 2**10
SLOW = {"Connection": "close"}


class Uploads:
    """Reads uploads, and knows how much memory those take that are on their way."""

    def __init__(self, cfg: ServeSection) -> None:
        self._cfg = cfg
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """The one file of a request: its body, or the field `file` of its multipart form.

        Raises:
            Refused: no length, too long, too slow, a broken form, or none or several files in it.
        """
        body = await self.body(request)
        kind = request.headers.get("content-type", "")
        if not kind.lower().startswith("multipart/form-data"):
            return body
        if len(body) < ASIDE_BYTES:
            return file_of_form(body, kind)
        return await asyncio.to_thread(file_of_form, body, kind)

    def check(self, request: Request, most_mb: float | None = None) -> int:
        """The length that is announced; `most_mb` is less than uploads may have.

        Raises:
            Refused: no length, or too long.
        """
        most_mb = self._cfg.max_upload_mb if most_mb is None else min(most_mb, self._cfg.max_upload_mb)
        length = request.headers.get("content-length", "")
        if length and "transfer-encoding" in request.headers:
            raise Refused(400, "two_lengths", "a Content-Length beside Transfer-Encoding", "send one of them")
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "length_required", "the request has no Content-Length", "send the length of the body")
        if len(length) > 18 or int(length) > most_mb * MIB:
            raise Refused(413, "too_large_upload", f"{length[:18]} bytes, at most {most_mb:g} MiB are taken")
        return int(length)

    async def body(self, request: Request, most_mb: float | None = None) -> bytes:
        """The body as it is; raises as `check` and `read`."""
        announced = self.check(request, most_mb)
        began, held = time.monotonic(), 0
        parts: list[bytes] = []
        stream = request.stream().__aiter__()
        try:
            while True:
                left = began + self._patience(held) - time.monotonic()
                try:
                    part = await asyncio.wait_for(stream.__anext__(), max(left, 0.0))
                except StopAsyncIteration:
                    return b"".join(parts)
                except TimeoutError:
                    fact = f"{held} bytes came in {time.monotonic() - began:.0f} s"
                    raise Refused(408, "upload_too_slow", fact, "send it again over a faster line", SLOW) from None
                parts.append(part)
                held += len(part)
                self._held += len(part)
                if held > announced:
                    raise Refused(413, "too_large_upload", f"more than the {announced} bytes that were announced")
                if self._held > self._cfg.uploads_mb * MIB:
                    raise Refused(429, "too_many_uploads", "too much is being uploaded", "wait", {"Retry-After": "2"})
        finally:
            self._held -= held

    def _patience(self, held: int) -> float:
        """Seconds from its start that an upload may have taken when `held` bytes are here."""
        slowest = self._cfg.upload_kb_per_s * KIB
        return min(self._cfg.upload_s, GRACE_S + held / slowest) if slowest else self._cfg.upload_s


def file_of_form(body: bytes, content_type: str) -> bytes:
    """The one file, in field `file`, of a whole multipart form.

    Raises:
        Refused: a form that is cut or broken, that has no such file, several, or too many fields.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary or not body.rstrip().endswith(b"--" + boundary + b"--"):
        raise Refused(400, "bad_multipart", "the form does not end with its boundary", FORM_HINT)
    form = _Form()
    try:
        parser = MultipartParser(boundary, cast(Any, form.callbacks()))
        parser.write(body)
        parser.finalize()
    except (FormParserError, UnicodeDecodeError):
        raise Refused(400, "bad_multipart", "the form cannot be read", FORM_HINT) from None
    if form.file is None:
        raise Refused(400, "no_file", "the form has no file in its field 'file'", FORM_HINT)
    return b"".join(form.file)


class _Form:
    """What a parser tells of a form: nothing but the content of the file is kept."""

    def __init__(self) -> None:
        self.file: list[bytes] | None = None
        self._files = self._fields = 0
        self._into: list[bytes] | None = None
        self._name, self._value, self._disposition = b"", b"", b""

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """By the parser's names."""
        return {
            "on_part_begin": self._begin,
            "on_header_begin": self._header,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers,
            "on_part_data": self._data,
        }

    def _begin(self) -> None:
        self._into, self._disposition = None, b""

    def _header(self) -> None:
        self._name = self._value = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value

    def _headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        is_file = b"filename" in options
        self._files += is_file
        self._fields += not is_file
        if self._files > 1 or self._fields > MAX_FIELDS:
            raise Refused(413, "too_many_parts", f"more than one file or {MAX_FIELDS} fields", FORM_HINT)
        if is_file and options.get(b"name") == b"file":
            self.file = self._into = []

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._into is not None:
            self._into.append(data[start:end])
