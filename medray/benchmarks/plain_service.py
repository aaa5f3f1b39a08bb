"""What `medray serve` is compared with: the bare network, a well-made plain service and MLflow's; how a service is run.

The plain service is one process: FastAPI on uvicorn (uvloop, httptools), uploads decoded by isolated workers as medray
does, and a thread that answers all that waits, up to BATCH images in one pass of the network. It has no keys, limits,
audit, drift, jobs, or second process that goes on when one ends.
Command: python -m medray.benchmarks.plain_service BUNDLE PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import platform
import queue
import signal
import socket
import subprocess
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
from medray.cluster import ENVIRONMENT
from medray.imaging.isolation.decoder import Decoder
from medray.inference.predictor import Predictor
from medray.types import Array, Case, InputError, Prediction

BATCH, DECODERS = 16, 2
START_S, END_S = 180.0, 30.0
TICKS = os.sysconf("SC_CLK_TCK")


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


class Service:
    """A service and all its processes, from the start until the `with` ends.

    Args:
        name: for a person, and for the file of what it prints.
        command: {port} in a word stands for that of `url`.
        folder: for that file.
        ready: the path that answers 200 once it can be asked.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path, ready: str = "/readyz") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.name, self.url, self._ready = name, f"http://127.0.0.1:{port}", ready
        self._command = [word.replace("{port}", str(port)) for word in command]
        self._folder, self._log = folder, folder / f"{name.replace(' ', '-')}.log"

    def __enter__(self) -> Service:
        # Keys, audit and the registry of whoever measures are no business of it; MLflow looks for its server in PATH.
        home, path = str(self._folder / "home"), f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = {**os.environ, **ENVIRONMENT, "MEDRAY_HOME": home, "PATH": path}
        with self._log.open("wb") as log:
            options: dict[str, Any] = {"stdout": log, "stderr": log, "start_new_session": True}
            self._process = subprocess.Popen(self._command, env=variables, **options)
        until = time.monotonic() + START_S
        try:
            while not self._answers():
                if self._process.poll() is not None or time.monotonic() > until:
                    said = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise RuntimeError(f"{self.name} does not start: {said}")
                time.sleep(0.5)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _answers(self) -> bool:
        link = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=5)
        with contextlib.closing(link), contextlib.suppress(OSError, http.client.HTTPException):
            link.request("GET", self._ready)
            return link.getresponse().status == 200
        return False

    def __exit__(self, *_: object) -> None:
        before = family(self._process.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Those that outlive what started them; never another's that was given the same number.
        for member in {*before, *family(self._process.pid)}:
            if (now := _process(member.pid)) is not None and now.born == member.born:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)

    def cpu(self) -> Mapping[int, Process]:
        """All its processes, by their numbers."""
        return {member.pid: member for member in family(self._process.pid)}


@dataclass(frozen=True, slots=True)
class Process:
    """A process, and the CPU time that it has used."""

    pid: int
    parent: int
    session: int
    born: int
    name: str
    cpu_s: float


def family(root: int) -> list[Process]:
    """The first process of a session and all that descend from it, those too that have lost their parents."""
    everyone = [found for entry in Path("/proc").glob("[0-9]*") if (found := _process(int(entry.name)))]
    inside, grown = {root, *(one.pid for one in everyone if one.session == root)}, True
    while grown:
        more = {one.pid for one in everyone if one.parent in inside} - inside
        inside, grown = inside | more, bool(more)
    return [one for one in everyone if one.pid in inside]


def spent(before: Mapping[int, Process], after: Mapping[int, Process]) -> dict[str, float]:
    """CPU seconds between two looks, by name; Ray's workers carry that of what they run."""
    used: dict[str, float] = {}
    for pid, one in after.items():
        used[one.name] = used.get(one.name, 0.0) + one.cpu_s - (before[pid].cpu_s if pid in before else 0.0)
    return used


def _process(pid: int) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return None
    parent, session, born = (int(fields[place]) for place in (1, 3, 19))
    return Process(pid, parent, session, born, _name(words), (int(fields[11]) + int(fields[12])) / TICKS)


def _name(words: Sequence[str]) -> str:
    """ray::ServeReplica:app:model.method -> ServeReplica:app:model; python -m a.b -> a.b; /bin/x -> x."""
    if words[0].startswith("ray::"):
        return words[0][5:].split(".")[0].split(" ")[0]
    program = Path(words[0]).name
    if not program.startswith("python"):
        return program
    given = [word for word in words[1:] if word and not (word.startswith("-") and word != "-m")]
    return Path(given[1] if given[:1] == ["-m"] and len(given) > 1 else (given or [program])[0]).name


def main() -> None:
    """Serve until a signal ends it."""
    predictor = Predictor(Path(sys.argv[1]))
    with contextlib.ExitStack() as stack:
        decoders = [stack.enter_context(Decoder(limits=predictor.limits)) for _ in range(DECODERS)]
        app, port = application(predictor, decoders), int(sys.argv[2])
        uvicorn.run(app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
