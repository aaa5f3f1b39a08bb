"""The champion on Ray Serve: POST /v1/predict takes one image and answers as Predictor does.

Annotations are evaluated here: FastAPI reads those of the deployment's methods after Serve has moved them.
"""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from python_multipart.multipart import parse_options_header
from ray import serve
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from medray.imaging.isolation.decoder import Decoder
from medray.inference.predictor import Predictor
from medray.sections.service import ServeSection
from medray.types import Case, InputError, Prediction

STATUS = {
    "unsupported_type": 415,
    "too_large": 413,
    "too_large_decompressed": 413,
    "too_many_pixels": 413,
    "too_many_voxels": 413,
    "too_many_files": 413,
}
"""HTTP status of an InputError's code; what can be decoded but is wrong is 422."""


FORM_HINT = "curl -F file=@image.png"


class RequestRefused(Exception):
    """A request that never reaches the reader."""

    def __init__(self, status: int, code: str, detail: str, hint: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.detail, self.hint = status, code, detail, hint


def application(folder: Path, model: str, cfg: ServeSection) -> Any:
    """The Serve application that answers with the bundle in `folder`.

    Args:
        folder: a bundle, seen by every node that may run a replica.
        model: name/version, in every answer.
        cfg: replicas and limits.
    """
    api = FastAPI(title="medray", description="Research use only. Not a medical device.", docs_url=None, redoc_url=None)

    @serve.deployment(
        name="model",
        max_ongoing_requests=cfg.max_ongoing_requests,
        autoscaling_config={
            "min_replicas": cfg.min_replicas,
            "max_replicas": cfg.max_replicas,
            "target_ongoing_requests": cfg.target_ongoing_requests,
        },
    )
    @serve.ingress(api)
    class Model:
        def __init__(self) -> None:
            self.predictor = Predictor(folder)
            self.decoder = Decoder(limits=self.predictor.limits)

        @api.get("/v1/health")
        def health(self) -> dict[str, str]:
            """Ready: the model is loaded and gave its golden answer."""
            return {"status": "ready", "model": model}

        @api.post("/v1/predict")
        async def predict(self, request: Request) -> JSONResponse:
            """One image, as the request's body or as multipart field `file`."""
            try:
                started = time.perf_counter()
                body = await read_body(request, cfg.max_upload_mb)
                case = await asyncio.to_thread(self.decoder.read, body)
                answer = await asyncio.to_thread(self.predictor.predict, case)
                seconds = time.perf_counter() - started
                return JSONResponse(as_json(answer, model, seconds, volume_unit(case) if answer.volumes else ""))
            except InputError as error:
                return problem(STATUS.get(error.code, 422), error.code, error.detail, error.hint)
            except RequestRefused as refused:
                return problem(refused.status, refused.code, refused.detail, refused.hint)

    return Model.bind()  # type: ignore[attr-defined]


async def read_body(request: Request, limit_mb: float) -> bytes:
    """The image's bytes, refused by their announced size before any is read.

    Raises:
        RequestRefused: no length, too long, a broken multipart body, or none or several files in it.
    """
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        raise RequestRefused(411, "length_required", "the request has no Content-Length", "send the length of the body")
    if int(length) > limit_mb * 2**20:
        raise RequestRefused(413, "too_large_upload", f"{int(length)} bytes, at most {limit_mb:g} MiB are taken")
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await request.body()
    return await _file_of_form(request)


async def _file_of_form(request: Request) -> bytes:
    """The one file of a multipart form that is whole: starlette takes a form that was cut for one without a file."""
    _, options = parse_options_header(request.headers["content-type"])
    if not (await request.body()).rstrip().endswith(b"--" + options.get(b"boundary", b"--") + b"--"):
        raise RequestRefused(400, "bad_multipart", "the form does not end with its boundary", FORM_HINT)
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestRefused(400, "no_file", "the form has no file in its field 'file'", FORM_HINT)
            return await file.read()
    except (HTTPException, MultiPartException) as error:
        detail = error.detail if isinstance(error, HTTPException) else error.message
        if "Too many" in detail:
            raise RequestRefused(413, "too_many_parts", "more than one file or 8 fields", FORM_HINT) from None
        raise RequestRefused(400, "bad_multipart", "the form cannot be read", FORM_HINT) from None


def as_json(answer: Prediction, model: str, seconds: float, unit: str = "") -> dict[str, Any]:
    """The answer's body; `unit` is that of the volumes of a segmentation, which has no predictions but structures.

    What the answer does not have is left out: quality, conformal_set, structures.
    """
    scores = zip(answer.classes, answer.scores.tolist(), strict=True) if len(answer.scores) else ()
    body: dict[str, Any] = {
        "model": model,
        "labels": list(answer.labels),
        "predictions": [{"label": name, "probability": score} for name, score in scores],
        "warnings": list(answer.warnings),
        "seconds": round(seconds, 4),
        "notice": "Research use only. Not a medical device.",
    }
    if answer.quality:
        body["quality"] = {name: float(f"{value:.4g}") for name, value in answer.quality.items()}
    if answer.conformal_set is not None:
        body["conformal_set"] = list(answer.conformal_set)
    if answer.mask is not None:
        body["structures"] = [{"label": name, "volume": size, "unit": unit} for name, size in answer.volumes.items()]
    return body


def volume_unit(case: Case) -> str:
    """The unit of Prediction.volumes for a raw case."""
    if case.unit != "mm":
        return "voxels"
    return "mL" if case.spatial_dims == 3 else "mm2"


def problem(status: int, code: str, detail: str, hint: str) -> JSONResponse:
    """An error as RFC 9457 says."""
    body = {"type": "about:blank", "title": code.replace("_", " "), "status": status, "code": code, "detail": detail}
    return JSONResponse({**body, "hint": hint}, status, media_type="application/problem+json")


def stop() -> None:
    """Take the service off the cluster, which may go on without it."""
    serve.delete("medray")


def run(folder: Path, model: str, cfg: ServeSection) -> str:
    """Start Serve on the connected cluster and deploy; returns the service's address."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": cfg.host, "port": cfg.port})
    serve.run(application(folder, model, cfg), name="medray", route_prefix="/")
    return f"http://{cfg.host}:{cfg.port}"
