"""/v2: the Open Inference Protocol, for programs that have tensors. The tensor `input` is what the network takes.

Source: github.com/kserve/open-inference-protocol, inference_rest.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from medray.serving.asking import request_id_of
from medray.serving.ingress import Ingress
from medray.serving.problems import Refused
from medray.types import Array

DATATYPES: Mapping[str, str] = {"FP32": "float32", "FP64": "float64", "UINT8": "uint8", "INT16": "int16"}
MOST_MB = 8.0
"""Of a question: JSON of numbers is read by one thread, and holds up the others meanwhile."""
HINT = "see GET /v2/models/NAME for what the model takes"
TENSORS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object", "required": ["inputs"]}}},
    }
}


def routes(ingress: Ingress) -> APIRouter:
    """All of them; their errors are {"error": ...}, as the protocol has it."""
    router = APIRouter(prefix="/v2")
    _health(router, ingress)
    _models(router, ingress)
    return router


def _health(router: APIRouter, ingress: Ingress) -> None:
    @router.get("")
    async def server() -> dict[str, Any]:
        """Name and version."""
        return {"name": "medray", "version": version("medray"), "extensions": []}

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live")
    async def alive() -> dict[str, bool]:
        """This process answers."""
        return {"live": True}

    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health/ready")
    async def ready() -> JSONResponse:
        """Models are in memory, and gave their golden answers."""
        there = bool(await ingress.models.models())
        return JSONResponse({"ready": there}, 200 if there else 503)


def _models(router: APIRouter, ingress: Ingress) -> None:
    @router.get("/models/{name}")
    @router.get("/models/{name}/versions/{number}")
    async def metadata(request: Request, name: str, number: str = "") -> dict[str, Any]:
        """Tensors that a model takes and gives."""
        await ingress.caller(request, "viewer")
        return _metadata(await ingress.models.card(_reference(name, number)))

    @router.get("/models/{name}/ready")
    @router.get("/models/{name}/versions/{number}/ready")
    async def ready(request: Request, name: str, number: str = "") -> dict[str, Any]:
        """Whether a model is in memory."""
        await ingress.caller(request, "viewer")
        await ingress.models.card(_reference(name, number))
        return {"name": name, "ready": True}

    @router.post("/models/{name}/infer", openapi_extra=TENSORS)
    @router.post("/models/{name}/versions/{number}/infer", openapi_extra=TENSORS)
    async def infer(request: Request, name: str, number: str = "") -> Response:
        """Scores of network inputs; preprocessing is the caller's."""
        return await _infer(ingress, request, _reference(name, number))


async def _infer(ingress: Ingress, request: Request, reference: str) -> Response:
    async with ingress.recorder.noting(request_id_of(request), "/v2/infer") as noted:
        caller = await ingress.caller(request, "user", noted)
        ingress.uploads.check(request, MOST_MB)
        ingress.room.check()
        await ingress.rate(caller)
        content = await ingress.uploads.body(request, MOST_MB)
        noted.facts["input"] = hashlib.sha256(content).hexdigest()
        with ingress.room.take():
            body, images = await asyncio.to_thread(_question, content)
            entry, scores = await ingress.models.infer(reference, images)
        told = noted.event(batch=len(scores))
        await ingress.recorder.write({**told, "model": entry.reference, "digest": entry.digest})
    outputs = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape), "data": scores.ravel().tolist()}
    answer = {"model_name": entry.name, "model_version": entry.version, "outputs": [outputs]}
    said = body.get("id")
    if isinstance(said, str):
        answer["id"] = said
    return JSONResponse(answer, headers={"X-Medray-Model": entry.reference})


def _question(content: bytes) -> tuple[dict[str, Any], Array]:
    body = parsed(content)
    return body, tensor(body)


def parsed(content: bytes) -> dict[str, Any]:
    """The request's JSON.

    Raises:
        Refused: it is none.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused(400, "bad_json", "the body is no JSON", HINT) from None
    if not isinstance(body, dict):
        raise Refused(400, "bad_json", "the body is no JSON object", HINT)
    try:
        str(body.get("id", "")).encode()
    except UnicodeEncodeError:
        raise Refused(400, "bad_json", "id: no text", HINT) from None
    return body


def tensor(body: Mapping[str, Any]) -> Array:
    """(B, C, *W) float32, the one input.

    Raises:
        Refused: it is not as the protocol has it.
    """
    inputs = body.get("inputs")
    if not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)):
        raise Refused(400, "bad_tensor", "inputs: one tensor is taken", HINT)
    given = inputs[0]
    shape, kind = given.get("shape"), given.get("datatype")
    if not isinstance(kind, str) or kind not in DATATYPES:
        raise Refused(400, "bad_tensor", "datatype: none that is taken", f"take one of {', '.join(DATATYPES)}")
    sizes = shape if isinstance(shape, list) else []
    if not sizes or not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        raise Refused(400, "bad_tensor", "shape: not a list of sizes", HINT)
    values = _numbers(given.get("data"), DATATYPES[kind])
    if values.size != math.prod(sizes):
        fact = f"data: {values.size} numbers, the shape says {math.prod(sizes)}"
        raise Refused(400, "bad_tensor", fact, HINT)
    with np.errstate(over="ignore"):
        found = values.reshape(sizes).astype(np.float32)
    if not np.isfinite(found).all():
        raise Refused(400, "bad_tensor", "data: numbers that are not finite", HINT)
    return found


def _numbers(data: object, dtype: str) -> Array:
    """What JSON holds as an array of a datatype, whose numbers are the same."""
    wrong = Refused(400, "bad_tensor", "data: not numbers of that datatype", HINT)
    try:
        given = np.asarray(data)
        with np.errstate(all="ignore"):
            values = given.astype(dtype)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise wrong from None
    if given.dtype.kind not in "iuf" or (values.dtype.kind != "f" and not np.array_equal(values, given)):
        raise wrong
    return values


def _metadata(card: Mapping[str, Any]) -> dict[str, Any]:
    shape = card["input"]
    outputs = len(card["outputs"])
    dense = [outputs, *shape[2:]] if card["structures"] else [outputs]
    return {
        "name": card["name"],
        "versions": [card["version"]],
        "platform": "medray_pytorch",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": shape}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, *dense]}],
    }


def _reference(name: str, number: str) -> str:
    return f"{name}@{number}" if number else name
