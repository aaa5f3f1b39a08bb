"""What a request asks for, and the files that are given for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from medray.serving.messages import Asked
from medray.serving.pages import REPORT_POLICY
from medray.serving.problems import Refused
from medray.serving.render import render

OUTPUTS = ("json", "mask", "overlay", "explanation", "dicom_seg", "report")
TRUTHS = {"true": True, "1": True, "false": False, "0": False}


async def rendered(kept: Any, what: str, **where: Any) -> Response:
    """One file of an answer.

    Raises:
        Refused: the answer has no such file.
    """
    try:
        file = await asyncio.to_thread(lambda: render(kept, what, **where))
    except ValueError:
        raise Refused(422, "no_such_file", "the answer has no such file, plane or layer", "see its links") from None
    headers = {"Content-Disposition": f'inline; filename="{file.filename}"', "Cache-Control": "private, no-store"}
    if what == "report":
        headers["Content-Security-Policy"] = REPORT_POLICY
    return Response(file.content, headers=headers, media_type=file.media_type)


def request_id_of(request: Request) -> str:
    """Of a request that the guard let in."""
    return str(request.scope["medray.request"])


def asked_of(query: Mapping[str, str], request_id: str) -> tuple[Asked, str]:
    """What a query asks for, and as what kind of file.

    Raises:
        Refused: a word that is none.
    """
    # In an address a plus that is not escaped is a space.
    output, explain = query.get("output", "json"), query.get("explain", "none").replace(" ", "+")
    if output not in OUTPUTS:
        raise Refused(422, "bad_query", "output: there is no such kind", f"take one of {', '.join(OUTPUTS)}")
    keep = query.get("keep")
    if keep is not None and keep.lower() not in TRUTHS:
        raise Refused(422, "bad_query", "keep: neither true nor false")
    kept = True if output != "json" else None if keep is None else TRUTHS[keep.lower()]
    if output == "explanation" and explain == "none":
        explain = "gradcam"
    model, target = query.get("model", ""), query.get("target", "")
    return Asked(request_id, model, "", "" if explain == "none" else explain, target, kept), output
