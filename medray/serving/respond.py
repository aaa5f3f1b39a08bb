"""The JSON of an answer, put together of what is known of the upload and what the model says."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from medray.serving.kept import Kept
from medray.serving.messages import Answered
from medray.types import Case

SHADOW = "/v1/shadow"
"""The route of events that compare a shadow with who is heard."""
NOTICE = "Research use only. Not a medical device."
PATHS: Mapping[str, str] = {
    "image_preview": "preview/image.nii.gz",
    "mask_preview": "preview/mask.nii.gz",
    "heat_preview": "preview/heat.nii.gz",
}
"""Where those files of a result are that are not at their own name."""


def stamp(seconds: float) -> str:
    """UTC of time.time() seconds, as ISO 8601 says it."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def input_of(raw: Case, digest: str, kind: str) -> dict[str, Any]:
    """What an answer says of the upload, whose sha256 is `digest`."""
    return {
        "sha256": digest,
        "kind": kind,
        "shape": list(raw.image.shape[1:]),
        "channels": len(raw.image),
        "spacing": [float(f"{edge:.6g}") for edge in raw.spacing],
        "unit": raw.unit,
        "modality": raw.modality,
    }


def document(
    request_id: str, answered: Answered, about: Mapping[str, Any], timings_ms: Mapping[str, float]
) -> dict[str, Any]:
    """The answer; `about` is `input_of`, `timings_ms` are of all but the model."""
    entry = answered.entry
    return {
        "request_id": request_id,
        "model": {"name": entry.name, "version": entry.version, "digest": entry.digest},
        "input": dict(about),
        **answered.body,
        "timings_ms": {**timings_ms, **answered.timings_ms},
        "batch": answered.batch,
        "notice": NOTICE,
    }


def links(request_id: str, available: Iterable[str]) -> dict[str, str]:
    """Where the files of a kept answer are."""
    place = f"/v1/results/{request_id}"
    return {"self": place, **{name: f"{place}/{PATHS.get(name, name)}" for name in available}}


def event(request_id: str, caller: str, route: str, answered: Answered | None = None, **facts: Any) -> dict[str, Any]:
    """What is written down of a request; `facts` are status, code, outcome, input and timings_ms."""
    told: dict[str, Any] = {
        "time": stamp(time.time()),
        "request": request_id,
        "caller": caller,
        "route": route,
        "status": 200,
        "code": "",
        "outcome": "answered",
        "input": "",
        "model": "",
        "digest": "",
        **facts,
    }
    if answered is not None:
        told |= {"model": answered.entry.reference, "digest": answered.entry.digest, "signals": answered.signals}
        told["timings_ms"] = {**told.get("timings_ms", {}), **answered.timings_ms}
        told["batch"] = answered.batch
    return told


def keeping(body: dict[str, Any], answered: Answered, raw: Case, source: bytes, kind: str, keep_s: float) -> Kept:
    """What is kept of an answer with a prediction; `body` gets the links to its files, and says until when."""
    if answered.prediction is None or answered.facts is None:
        raise ValueError("the answer came without what its files are made of")
    kept = Kept(
        request_id=body["request_id"],
        model=answered.entry.reference,
        digest=answered.entry.digest,
        body=body,
        raw=raw,
        source=source,
        kind=kind,
        answer=answered.prediction,
        facts=answered.facts,
        heat=answered.heat,
    )
    body["links"] = links(kept.request_id, kept.available())
    body["expires"] = stamp(time.time() + keep_s)
    return kept
