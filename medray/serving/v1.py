"""The routes of /v1, and of health and metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medray.serving.asking import OUTPUTS, rendered
from medray.serving.ingress import Ingress
from medray.serving.planes import slices_info
from medray.serving.problems import Refused
from medray.serving.respond import NOTICE, event

FILES = ("mask", "overlay", "explanation", "dicom_seg", "report")
LAYERS = ("image", "mask", "heat")
BODY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
FORM: dict[str, Any] = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}},
    }
}


def _query(name: str, about: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": about, "schema": {"type": "string", **schema}}


PREDICT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": FORM, "application/octet-stream": BODY},
    },
    "parameters": [
        _query("model", "name, name@version or name@alias; by default the first that is served"),
        _query("explain", "a method such as gradcam: where the reasons for a class lie", default="none"),
        _query("target", "the class to explain; by default the one that is answered"),
        _query("output", "what the answer is", enum=list(OUTPUTS), default="json"),
        _query("keep", "whether the answer's files can be fetched for a while", enum=["true", "false"]),
    ],
}


class Feedback(BaseModel):
    """Whether an answer was right. There is no free text: it could name a patient."""

    model_config = ConfigDict(extra="forbid")

    request_id: str = Field(pattern="^[0-9a-f]{32}$")
    correct: bool
    label: str | None = Field(default=None, max_length=200)
    """The right class, one of the model's."""


FEEDBACK_MB = 1 / 16
FEEDBACK: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": Feedback.model_json_schema()}}}
}


def feedback_of(content: bytes) -> Feedback:
    """What a body says.

    Raises:
        Refused: it is none; what it holds is not repeated.
    """
    try:
        return Feedback.model_validate_json(content)
    except ValidationError:
        hint = "see /docs: request_id of an answer, correct true or false, and perhaps a label"
        raise Refused(422, "bad_feedback", "the body is no feedback", hint) from None


def routes(ingress: Ingress) -> APIRouter:
    """All of them."""
    router = APIRouter()
    _predictions(router, ingress)
    _jobs(router, ingress)
    _results(router, ingress)
    _models(router, ingress)
    _health(router, ingress)
    return router


async def _owner(ingress: Ingress, request: Request) -> str:
    """Whose jobs and results a caller may have: its own, an administrator all."""
    caller = await ingress.caller(request, "user")
    return "" if caller.may("admin") else caller.id


def _predictions(router: APIRouter, ingress: Ingress) -> None:
    @router.post("/v1/predict", openapi_extra=PREDICT)
    async def predict(request: Request) -> Response:
        """One image: a PNG, JPEG, DICOM, NIfTI, NRRD or npy file, or a zip of a DICOM series."""
        return await ingress.predict(request)

    @router.post("/v1/feedback", status_code=201, openapi_extra=FEEDBACK)
    async def feedback(request: Request) -> dict[str, str]:
        """Whether an answer that was kept was right."""
        caller = await ingress.caller(request, "user")
        said = feedback_of(await ingress.uploads.body(request, FEEDBACK_MB))
        kept = await ingress.desk.kept(said.request_id, "" if caller.may("admin") else caller.id)
        known = (*kept.facts.classes, *kept.facts.structures)
        if said.label is not None and said.label not in known:
            raise Refused(422, "no_such_class", "the model has no such class", f"it has {', '.join(known)}")
        place = known.index(said.label) if said.label is not None else None
        code = "correct" if said.correct else "wrong" if place is None else f"wrong_is_{place}"
        told = event(said.request_id, caller.id, "/v1/feedback", status=201, code=code, outcome="accepted")
        await ingress.recorder.write({**told, "model": kept.model, "digest": kept.digest})
        return {"request_id": said.request_id, "recorded": code}


def _jobs(router: APIRouter, ingress: Ingress) -> None:
    @router.get("/v1/jobs")
    async def jobs(request: Request) -> dict[str, Any]:
        """The caller's jobs."""
        return {"jobs": await ingress.desk.jobs(await _owner(ingress, request))}

    @router.get("/v1/jobs/{job_id}")
    async def job(job_id: str, request: Request) -> JSONResponse:
        """How a job is, and its result."""
        state = await ingress.desk.job(job_id, await _owner(ingress, request))
        return JSONResponse(state, headers={"Retry-After": "1"} if state["state"] in ("pending", "running") else None)

    @router.delete("/v1/jobs/{job_id}")
    async def cancel(job_id: str, request: Request) -> dict[str, Any]:
        """End a job."""
        return await ingress.desk.cancel(job_id, await _owner(ingress, request))


def _results(router: APIRouter, ingress: Ingress) -> None:
    @router.get("/v1/results/{request_id}")
    async def result(request_id: str, request: Request) -> dict[str, Any]:
        """An answer that was kept."""
        kept = await ingress.desk.kept(request_id, await _owner(ingress, request))
        return dict(kept.body)

    @router.get("/v1/results/{request_id}/slices")
    async def slices(
        request_id: str, request: Request, axis: int | None = None, index: int | None = None, layer: str = ""
    ) -> Response:
        """One plane of a volume as PNG; without a layer which planes there are."""
        kept = await ingress.desk.kept(request_id, await _owner(ingress, request))
        if not layer:
            return JSONResponse(slices_info(kept))
        if layer not in LAYERS:
            raise Refused(422, "no_such_file", "there is no such layer", f"take one of {', '.join(LAYERS)}")
        return await rendered(kept, "slices", axis=axis, index=index, layer=layer)

    @router.get("/v1/results/{request_id}/preview/{name}.nii.gz")
    async def preview(request_id: str, name: str, request: Request) -> Response:
        """A volume that a browser can hold."""
        kept = await ingress.desk.kept(request_id, await _owner(ingress, request))
        return await rendered(kept, f"{name}_preview" if name in LAYERS else "preview")

    @router.get("/v1/results/{request_id}/{what}")
    async def file(request_id: str, what: str, request: Request) -> Response:
        """A file of an answer: mask, overlay, explanation, dicom_seg or report."""
        kept = await ingress.desk.kept(request_id, await _owner(ingress, request))
        if what not in FILES:
            raise Refused(404, "no_such_file", "an answer has no such file", f"there are: {', '.join(FILES)}")
        return await rendered(kept, what)


def _models(router: APIRouter, ingress: Ingress) -> None:
    @router.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """What is served."""
        await ingress.caller(request, "viewer")
        return {"models": await ingress.models.models()}

    @router.get("/v1/models/{name}")
    async def card(name: str, request: Request) -> dict[str, Any]:
        """What is known of a model: its card."""
        await ingress.caller(request, "viewer")
        return await ingress.models.card(name)

    @router.get("/v1/drift")
    async def drift(request: Request) -> dict[str, Any]:
        """How answers differ from those of the training."""
        await ingress.caller(request, "viewer")
        return {"models": await ingress.desk.drift()}

    @router.get("/v1/agreement")
    async def agreement(request: Request) -> dict[str, Any]:
        """How shadows agree with the models that are heard."""
        await ingress.caller(request, "viewer")
        return {"shadows": await ingress.desk.agreement()}


def _health(router: APIRouter, ingress: Ingress) -> None:
    @router.head("/livez", include_in_schema=False)
    @router.get("/livez", response_class=PlainTextResponse)
    async def alive() -> str:
        """This process answers."""
        return "ok"

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", response_class=PlainTextResponse)
    async def ready() -> str:
        """Models are in memory, and gave their golden answers."""
        if not await ingress.models.models():
            raise Refused(503, "not_ready", "no model is loaded yet", "try again soon", {"Retry-After": "2"})
        return "ok"

    @router.get("/v1/health")
    async def health() -> dict[str, Any]:
        """Which models answer."""
        names = [f"{one['name']}/{one['version']}" for one in await ingress.models.models()]
        return {"status": "ready" if names else "starting", "models": names, "notice": NOTICE}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> PlainTextResponse:
        """For Prometheus."""
        await ingress.caller(request, "viewer")
        text = await ingress.desk.metrics()
        text += f"# TYPE medray_ingress_requests gauge\nmedray_ingress_requests {ingress.room.taken}\n"
        return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)
