"""A client of `medray serve`: httpx alone, no torch, no Ray.

    with Client("http://127.0.0.1:8000", key="mk_...") as client:
        answer = client.predict("scan.nii.gz", on_progress=print)
        print(answer.labels, answer.volumes, answer.save("masks/"))

No name of a file leaves this machine: an image goes as bytes, a series as a zip of numbered files.
"""

from __future__ import annotations

import io
import random
import ssl
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, overload

import httpx

Image = bytes | str | Path | Sequence[str | Path]
"""The bytes of an image, its file, or a DICOM series: its folder, or its files in any order."""
Progress = Callable[[float], object] | None
"""Is told the share of a job that is done."""
Words = str | None
FIRST_WAIT_S, LONGEST_WAIT_S, CONNECT_S = 0.25, 5.0, 10.0
SUFFIXES = {"image/png": ".png", "application/gzip": ".nii.gz", "application/dicom": ".dcm", "text/html": ".html"}
HINT = "is `medray serve` running there? Large images take longer: Client(timeout_s=...)"


class ServiceError(Exception):
    """The service refused or failed (`status` of HTTP), or gave no answer at all (`status` 0).

    `code` is a fixed word: that of the service's problem, or unreachable, timeout, cancelled, failed, http.
    """

    def __init__(self, status: int, code: str, detail: str, hint: str = "", request_id: str = "") -> None:
        super().__init__(status, code, detail, hint, request_id)
        self.status, self.code, self.detail, self.hint, self.request_id = status, code, detail, hint, request_id

    def __str__(self) -> str:
        hint, request = f" ({self.hint})" * bool(self.hint), f" [request {self.request_id}]" * bool(self.request_id)
        return f"{self.code}: {self.detail}{hint}{request}"


@dataclass(frozen=True)
class Answer:
    """What a model (name/version) says of one image.

    `values` are a regression's, `volumes` a segmentation's (their unit is in json["structures"]); `conformal_set` holds
    the classes that cannot be ruled out, where the model knows; `json` is all that the service answered.
    """

    request_id: str
    model: str
    task: str
    labels: tuple[str, ...]
    probabilities: Mapping[str, float]
    values: Mapping[str, float]
    volumes: Mapping[str, float]
    warnings: tuple[str, ...]
    conformal_set: tuple[str, ...] | None
    json: Mapping[str, Any] = field(repr=False)
    client: Client = field(repr=False, compare=False)

    def file(self, what: str) -> bytes:
        """The answer's mask, overlay, explanation, dicom_seg or report; the service keeps them for some minutes."""
        return self._fetch(what).content

    def report(self) -> str:
        """The report: an HTML page in one file."""
        return self._fetch("report").text

    def save(self, place: str | Path, what: str = "mask") -> Path:
        """Write one of the answer's files to `place`, a file or an existing folder, and return where it is."""
        found, path = self._fetch(what), Path(place)
        if path.is_dir():
            suffix = SUFFIXES.get(found.headers.get("Content-Type", "").split(";")[0], "")
            path /= Path(f"{self.request_id}-{what}{suffix}").name
        path.write_bytes(found.content)
        return path

    def _fetch(self, what: str) -> httpx.Response:
        files = sorted({*self.json.get("links", ())} - {"self"})
        if what not in files:
            raise ValueError(f"the answer has no {what!r}; it has: {', '.join(files) or 'none, ask with keep=True'}")
        # Not the link itself: wherever it led, the key would go with it.
        return self.client.ask("GET", f"/v1/results/{self.request_id}/{what}")


@dataclass(frozen=True)
class Job:
    """A prediction that the service works on."""

    id: str
    client: Client = field(repr=False, compare=False)

    def status(self) -> dict[str, Any]:
        """`state` (pending, running, completed, failed, cancelled), `progress` and all else that is known of it."""
        return dict(self.client.ask("GET", f"/v1/jobs/{self.id}").json())

    def cancel(self) -> dict[str, Any]:
        """End it; the status."""
        return dict(self.client.ask("DELETE", f"/v1/jobs/{self.id}").json())

    def wait(self, timeout_s: float | None = None, on_progress: Progress = None) -> Answer:
        """The answer, once it is there; ServiceError where it failed, or is not there after `timeout_s`."""
        until = time.monotonic() + (self.client.timeout_s if timeout_s is None else timeout_s)
        pause = FIRST_WAIT_S
        while (found := self.status())["state"] in ("pending", "running"):
            if on_progress:
                on_progress(found["progress"])
            if time.monotonic() + pause > until:
                said = f"job {self.id} is {found['state']}, {found['progress']:.0%} done"
                raise ServiceError(0, "timeout", said, "the service goes on: wait() again, or cancel()")
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_WAIT_S)
        if found["state"] != "completed":
            raise _error(0, found["problem"] or {"code": found["state"], "detail": f"job {self.id}"})
        return _answer(self.client, found["result"])


class Client:
    """One service; safe to share by threads.

    A call that meets a busy service (429, 503: after what its Retry-After says) or a broken connection is repeated up
    to `retries` times; feedback, which would count twice, only if it never arrived. All of it takes at most
    `timeout_s`. `verify`: whether the certificate is checked, or the file of the authority to check it by.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: Words = None,
        timeout_s: float = 300.0,
        verify: bool | str | Path = True,
        retries: int = 3,
    ) -> None:
        self.timeout_s, self.retries = timeout_s, retries
        checked = verify if isinstance(verify, bool) else ssl.create_default_context(cafile=verify)
        # What goes to this machine itself takes no way through a proxy of the environment.
        away = httpx.URL(url).host not in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(base_url=url, verify=checked, trust_env=away)
        if key:
            self._http.headers["Authorization"] = f"Bearer {key}"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    # fmt: off
    @overload
    def predict(self, image: Image, model: Words = None, explain: Words = None, target: Words = None,
                keep: bool | None = None, *, wait: Literal[False]) -> Job: ...
    @overload
    def predict(self, image: Image, model: Words = None, explain: Words = None, target: Words = None,
                keep: bool | None = None, wait: Literal[True] = True, on_progress: Progress = None) -> Answer: ...
    def predict(self, image: Image, model: Words = None, explain: Words = None, target: Words = None,
                keep: bool | None = None, wait: bool = True, on_progress: Progress = None) -> Answer | Job:
        # fmt: on
        """What a model says of one image; ServiceError says why there is no answer, and how to mend it.

        Args:
            image: PNG, JPEG, DICOM, NIfTI, NRRD, npy, a zip of one of them, or a DICOM series.
            model: name, name@alias or name@version; by default the service's first.
            explain: gradcam, or another method.
            target: the class to explain; by default the likeliest.
            keep: whether the answer's files can be fetched; by default only those of a segmentation.
            wait: False: return a job at once. Large volumes become jobs in any case, and are waited for.
            on_progress: is told the share of a job that is done.
        """
        until = time.monotonic() + self.timeout_s
        asked = {"model": model, "explain": explain, "target": target, "keep": keep}
        headers = {"Content-Type": "application/octet-stream"} | ({} if wait else {"Prefer": "respond-async"})
        params = {name: value for name, value in asked.items() if value is not None}
        with _opened(image) as content:
            found = self.ask("POST", "/v1/predict", content=content, params=params, headers=headers)
        if found.status_code == 200:
            return _answer(self, found.json())
        job = Job(found.json()["id"], self)
        return job.wait(until - time.monotonic(), on_progress) if wait else job

    def models(self) -> list[dict[str, Any]]:
        """The models that are served."""
        return list(self.ask("GET", "/v1/models").json()["models"])

    def card(self, name: str) -> dict[str, Any]:
        """All that is known of a model."""
        return dict(self.ask("GET", f"/v1/models/{name}").json())

    def drift(self) -> list[dict[str, Any]]:
        """How the newest answers of each model compare with those of its training."""
        return list(self.ask("GET", "/v1/drift").json()["models"])

    def feedback(self, request_id: str, correct: bool, label: Words = None) -> None:
        """Tell whether an answer that was kept was right, and which label would have been."""
        self.ask("POST", "/v1/feedback", False, json={"request_id": request_id, "correct": correct, "label": label})

    def ready(self) -> bool:
        """Whether the service is there and its models are loaded."""
        try:
            return self._http.get("/readyz", timeout=CONNECT_S).status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, method: str, path: str, again: bool = True, **request: Any) -> httpx.Response:
        """The response to any request, below 400; `again`: whether what may have arrived can be sent once more."""
        until, pause, left = time.monotonic() + self.timeout_s, FIRST_WAIT_S, self.retries
        while True:
            if "content" in request:
                request["content"].seek(0)
            wait, pause = pause, 2 * pause
            try:
                limits = httpx.Timeout(max(0.001, until - time.monotonic()), connect=min(CONNECT_S, self.timeout_s))
                found = self._http.request(method, path, timeout=limits, **request)
                if found.status_code < 400:
                    return found
                problem = "problem+json" in found.headers.get("Content-Type", "")
                # A proxy between here and there answers otherwise.
                other = {"code": "http", "detail": f"{found.url} answered {found.status_code}"}
                error = _error(found.status_code, found.json() if problem else other)
                repeat, retry_after = found.status_code in (429, 503), found.headers.get("Retry-After", "")
                wait = max(wait, float(retry_after) if retry_after.isdigit() else 0.0)
            except httpx.TransportError as broken:
                code = "timeout" if isinstance(broken, httpx.TimeoutException) else "unreachable"
                error = ServiceError(0, code, f"{self._http.base_url}: {broken}", HINT)
                repeat = again or isinstance(broken, httpx.ConnectError)
            # Clients that were refused together do not come back together.
            wait *= random.uniform(1, 1.5)  # noqa: S311
            if not repeat or not left or time.monotonic() + wait > until:
                raise error
            time.sleep(wait)
            left -= 1


def _error(status: int, said: Mapping[str, Any]) -> ServiceError:
    return ServiceError(status, *(str(said.get(word) or "") for word in ("code", "detail", "hint", "request_id")))


def _answer(client: Client, body: Mapping[str, Any]) -> Answer:
    conformal = body.get("conformal_set")
    return Answer(
        request_id=body["request_id"],
        model=f"{body['model']['name']}/{body['model']['version']}",
        task=body["task"],
        labels=tuple(body["labels"]),
        probabilities={item["label"]: item["probability"] for item in body.get("predictions", ())},
        values={item["name"]: item["value"] for item in body.get("values", ())},
        volumes={item["label"]: item["volume"] for item in body.get("structures", ())},
        warnings=tuple(item["word"] for item in body.get("warnings", ())),
        conformal_set=None if conformal is None else tuple(conformal),
        json=body,
        client=client,
    )


def _opened(image: Image) -> IO[bytes]:
    """The body of a request, whose length is known."""
    if isinstance(image, bytes):
        return io.BytesIO(image)
    if isinstance(image, str | Path):
        return _zipped(sorted(Path(image).rglob("*"))) if Path(image).is_dir() else Path(image).open("rb")
    return _zipped([Path(file) for file in image])


def _zipped(files: Iterable[Path]) -> IO[bytes]:
    """The files of a series, stored and numbered; the service leaves out what is no DICOM."""
    packed = io.BytesIO()
    slices = [file for file in files if file.is_file() and not file.name.startswith(".") and file.name != "DICOMDIR"]
    if not slices:
        raise ValueError("there is no file in the folder or the list")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for number, file in enumerate(slices, 1):
            # A damaged file of that suffix is told from one that does not belong to the series.
            suffix = ".dcm" if file.suffix.lower() in (".dcm", ".dicom", ".ima") else ""
            archive.writestr(zipfile.ZipInfo(f"{number:06d}{suffix}"), file.read_bytes())
    return packed
