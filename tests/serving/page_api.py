"""A service as the page sees it, without Ray: the routes of the API that it asks, on answers of a plain function."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from answer_phantom import MODEL, kept
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from medray.imaging.reader import read
from medray.inference.about import Facts
from medray.serving.kept import Kept
from medray.serving.pages import routes
from medray.serving.planes import slices_info
from medray.serving.problems import Refused, problem, refusal_of
from medray.serving.render import render
from medray.types import Array, Case, InputError, Prediction

Answerer = Callable[[bytes, Case, str], tuple[Prediction, Facts, Array | None]]
"""(upload, image, explanation) -> the answer, the model and the heat."""
FILES = ("mask", "overlay", "explanation", "dicom_seg", "report")


def application(
    answer: Answerer, known: Facts, card: Mapping[str, Any], *, key: str = "", job_from: int = 1 << 62
) -> FastAPI:
    """The service; with a `key` it asks for it, and images of `job_from` voxels or more become jobs."""
    api = FastAPI(title="medray", docs_url=None, redoc_url=None)
    results: dict[str, Kept] = {}
    jobs: dict[str, dict[str, Any]] = {}
    api.state.feedback = []
    model = {
        **dict(zip(("name", "version", "digest"), MODEL, strict=True)),
        "alias": "champion",
        "task": known.task,
        "axes": known.axes,
        "channels": known.channels,
        "classes": known.classes,
        "structures": known.structures,
        "default": True,
        "share": 1.0,
        "role": "serving",
    }

    @api.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return problem(error, "f" * 32)

    @api.middleware("http")
    async def access(request: Request, go_on: Any) -> Response:
        asked = request.url.path.startswith("/v1/") and key and request.headers.get("x-api-key") != key
        if asked:
            return problem(Refused(401, "key_needed", "The service wants an API key.", "ask who runs it"), "e" * 32)
        return await go_on(request)

    def answered(content: bytes, explain: str) -> Kept:
        try:
            raw = read(content)
        except InputError as error:
            raise refusal_of(error) from None
        said, facts, heat = answer(content, raw, explain)
        made = kept(content, said, facts, heat if explain != "none" else None, raw)
        root = f"/v1/results/{made.request_id}"
        links = {name: f"{root}/{name}" for name in made.available()}
        previews = {name: f"{root}/preview/{name[:-8]}.nii.gz" for name in links if name.endswith("_preview")}
        made.body.update(links={"self": root, **links, **previews})  # type: ignore[attr-defined]
        results[made.request_id] = made
        return made

    @api.post("/v1/predict")
    async def predict(request: Request) -> Response:
        assert request.query_params["keep"] == "true"
        made = answered(await request.body(), request.query_params["explain"])
        if made.raw.image.size < job_from:
            return JSONResponse(made.body)
        place = f"/v1/jobs/{made.request_id}"
        jobs[made.request_id] = {"id": made.request_id, "state": "pending", "links": {"self": place}, "at": time.time()}
        return JSONResponse(jobs[made.request_id], 202, {"Location": place})

    @api.get("/v1/jobs/{name}")
    async def job(name: str) -> Any:
        found = jobs[name]
        age = time.time() - found["at"]
        if found["state"] != "cancelled":
            found["state"] = "running" if age < 1.5 else "completed"
        found["progress"] = min(age / 1.5, 1)
        return {**found, "result": results[name].body if found["state"] == "completed" else None}

    @api.delete("/v1/jobs/{name}")
    async def cancel(name: str) -> Any:
        jobs[name]["state"] = "cancelled"
        return jobs[name]

    @api.get("/v1/models")
    async def models() -> Any:
        return {"models": [model]}

    @api.get("/v1/models/{name}")
    async def one(name: str) -> Any:
        assert name == MODEL[0]
        return {**model, "card": card}

    @api.get("/v1/results/{name}/slices")
    async def slices(name: str, axis: int | None = None, index: int | None = None, layer: str = "image") -> Any:
        if axis is None:
            return slices_info(results[name])
        return file(results[name], "slices", axis=axis, index=index, layer=layer)

    @api.get("/v1/results/{name}/preview/{layer}.nii.gz")
    async def preview(name: str, layer: str) -> Response:
        return file(results[name], f"{layer}_preview")

    @api.get("/v1/results/{name}/{what}")
    async def result(name: str, what: str) -> Response:
        assert what in FILES
        return file(results[name], what)

    def file(made: Kept, what: str, **place: Any) -> Response:
        found = render(made, what, **place)
        said = {"Content-Disposition": f'attachment; filename="{found.filename}"'}
        return Response(found.content, headers=said, media_type=found.media_type)

    @api.post("/v1/feedback", status_code=201)
    async def feedback(request: Request) -> Any:
        api.state.feedback.append(await request.json())
        return {}

    @api.get("/v1/drift")
    async def drift() -> Any:
        shares = {"expected": [0.25] * 4, "found": [0.1, 0.2, 0.3, 0.4], "edges": [0, 1, 2, 3, 4]}
        checks = [
            {"name": "scores/lesion", "psi": 0.31, "threshold": 0.2, "drifted": True, **shares},
            {"name": "noise", "psi": 0.02, "threshold": 0.2, "drifted": False, **shares},
        ]
        about = {"answers": 240, "window": 1000, "enough": True, "drifted": True, "checks": checks}
        return {"models": [{"model": "phantom/3", **about, "warnings": {"unseen_intensity": 0.02}}]}

    api.router.routes.extend(routes())
    return api
