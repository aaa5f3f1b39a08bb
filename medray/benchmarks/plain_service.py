"""What `medray serve` is compared with: the bare network, a well-made plain service and MLflow's.

The plain service is one process: FastAPI on uvicorn (uvloop, httptools), uploads decoded by isolated workers as medray
does, and a thread that answers all that waits, up to BATCH images in one pass of the network. It has no keys, limits,
audit, drift, jobs, or second process that goes on when one ends.
Command: python -m medray.benchmarks.plain_service BUNDLE PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from medray.bundle import ModelBundle
from medray.imaging.isolation.decoder import Decoder
from medray.inference.predictor import Predictor
from medray.types import Array, Case, InputError, Prediction

BATCH, DECODERS = 16, 2


class Batcher:
    """A thread that answers what waits."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._waiting: queue.SimpleQueue[tuple[Case, Future[Prediction]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="batches", daemon=True).start()

    def ask(self, case: Case) -> Future[Prediction]:
        """The answer, or its InputError, once it is there."""
        future: Future[Prediction] = Future()
        # From here on it cannot be cancelled, so that what the thread sets is never refused.
        future.set_running_or_notify_cancel()
        self._waiting.put((case, future))
        return future

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get())
            try:
                answers = self._predictor.predict_all([case for case, _ in batch], BATCH)
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if isinstance(answer, InputError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)


def application(predictor: Predictor, decoders: Sequence[Decoder]) -> FastAPI:
    """The service: POST /v1/predict with the bytes of an image, GET /readyz."""
    app, batcher = FastAPI(), Batcher(predictor)
    idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
    for decoder in decoders:
        idle.put(decoder)
    threads = ThreadPoolExecutor(len(decoders))

    def decode(body: bytes) -> Case:
        decoder = idle.get()
        try:
            return decoder.read(body)
        finally:
            idle.put(decoder)

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/predict")
    async def predict(request: Request) -> JSONResponse:
        body = await request.body()
        try:
            case = await asyncio.get_running_loop().run_in_executor(threads, decode, body)
            return JSONResponse(as_json(await asyncio.wrap_future(batcher.ask(case))))
        except InputError as error:
            return JSONResponse({"code": error.code, "detail": error.detail, "hint": error.hint}, 422)

    return app


def as_json(answer: Prediction) -> dict[str, Any]:
    """The body of an answer."""
    return {
        "request_id": uuid4().hex,
        "labels": list(answer.labels),
        "predictions": dict(zip(answer.classes, answer.scores.tolist(), strict=True)),
        "quality": dict(answer.quality),
        "warnings": list(answer.warnings),
    }


class Bare:
    """The network alone, on all threads."""

    def __init__(self, bundle: ModelBundle) -> None:
        self._network, self._shape = bundle.network(), (bundle.io.in_channels, *bundle.io.size)
        self._threads = torch.get_num_threads()

    def seconds(self, batch: int, passes: int) -> list[float]:
        """Of each of the passes."""
        images, found = torch.randn(batch, *self._shape), []
        with torch.inference_mode():
            for _ in range(passes + 1):
                started = time.perf_counter()
                self._network(images)
                found.append(time.perf_counter() - started)
        return found[1:]

    def speed(self, batch: int, seconds: float, threads: int = 0) -> dict[str, Any]:
        """Images per second, and CPU milliseconds of an image; one of several threads burns some while it waits."""
        torch.set_num_threads(threads or self._threads)
        passes, started = max(2, round(seconds / self.seconds(batch, 1)[0])), time.process_time()
        per_s = batch * passes / sum(self.seconds(batch, passes))
        return {"per_s": per_s, "cpu_ms": {"network": 1e3 * (time.process_time() - started) / batch / (passes + 1)}}


@dataclass(frozen=True)
class Scorer:
    """The network as MLflow serves it: tensors in, scores out, nothing decoded or preprocessed."""

    predictor: Predictor

    def predict(self, images: Any, params: Mapping[str, Any] | None = None) -> Array:  # noqa: ARG002  # MLflow's form
        """(B, K) of network inputs (B, C, *S)."""
        return self.predictor.scores(np.asarray(images, np.float32))


def _load_pyfunc(folder: str) -> Scorer:
    """Called by MLflow for a model that names this module as its loader."""
    return Scorer(Predictor(Path(folder).resolve()))


def write_mlflow_model(folder: Path, bundle: Path) -> None:
    """An MLflow model around a bundle, without importing MLflow."""
    folder.mkdir()
    (folder / "bundle").symlink_to(bundle.resolve())
    flavor = {"loader_module": Scorer.__module__, "data": "bundle", "python_version": platform.python_version()}
    about = {"mlflow_version": version("mlflow"), "model_uuid": uuid4().hex, "flavors": {"python_function": flavor}}
    # JSON is YAML.
    (folder / "MLmodel").write_text(json.dumps(about, indent=2), encoding="utf-8")


def main() -> None:
    """Serve until a signal ends it."""
    predictor = Predictor(Path(sys.argv[1]))
    with contextlib.ExitStack() as stack:
        decoders = [stack.enter_context(Decoder(limits=predictor.limits)) for _ in range(DECODERS)]
        app, port = application(predictor, decoders), int(sys.argv[2])
        uvicorn.run(app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
