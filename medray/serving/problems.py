"""Errors as RFC 9457 says: a fixed word, what was wrong, how to mend it; never a path, a tag or a patient's name."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from medray.types import InputError

MEDIA_TYPE = "application/problem+json"
STATUS: Mapping[str, int] = {
    "unsupported_type": 415,
    "too_large": 413,
    "too_large_decompressed": 413,
    "too_many_pixels": 413,
    "too_many_voxels": 413,
    "too_many_files": 413,
}
"""HTTP status of an InputError's code; what can be decoded but is wrong is 422."""


class Refused(Exception):
    """A request that gets a problem for an answer.

    `code` is a fixed word, `detail` names the fact, the limit and the value, `hint` says how to mend it.
    """

    def __init__(
        self, status: int, code: str, detail: str, hint: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, code, detail, hint, headers)
        self.status, self.code, self.detail, self.hint = status, code, detail, hint
        self.headers = dict(headers or {})


def refusal_of(error: InputError) -> Refused:
    """What bad input gets."""
    return Refused(STATUS.get(error.code, 422), error.code, error.detail, error.hint)


def problem(refused: Refused, request_id: str = "") -> JSONResponse:
    """The answer to a refused request."""
    body = {
        "type": "about:blank",
        "title": refused.code.replace("_", " "),
        "status": refused.status,
        "code": refused.code,
        "detail": refused.detail,
        "hint": refused.hint,
        "request_id": request_id,
    }
    return JSONResponse(body, refused.status, dict(refused.headers), media_type=MEDIA_TYPE)
