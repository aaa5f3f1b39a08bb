"""What the processes of a service say to each other: what is served, a question, an answer, and who answers what."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from medray.inference.about import Facts
from medray.types import Array, Case, Prediction

Part = Literal["serving", "canary", "shadow"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a model that is served."""

    name: str
    version: str
    digest: str
    """sha256 that names the bytes of the bundle."""
    folder: str
    """The bundle, on a disk that each node has or shares."""
    alias: str = ""
    """What it was named by."""
    part: Part = "serving"
    """serving: who is asked; canary: who is asked by a share; shadow: who is asked too, and not heard."""
    share: float = 1.0
    """Of a canary: of the images that it answers for."""

    @property
    def reference(self) -> str:
        """name/version, as every answer says it."""
        return f"{self.name}/{self.version}"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, as Serve's user_config holds it."""
        return {name: getattr(self, name) for name in self.__slots__}

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Entry:
        """The entry of what `as_dict` gave."""
        return Entry(**plain)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a model about one image."""

    request_id: str
    model: str = ""
    """name, or name@version, or name@alias; empty: the first that is served."""
    sticky: str = ""
    """Equal words are answered by the same version, where a canary is served too."""
    explain: str = ""
    """A name of inference/attribution.py's METHODS, or empty."""
    target: str = ""
    """The class to explain; by default the one that is answered."""
    keep: bool | None = None
    """Whether the answer comes with all that its files are made of; by default where it has a mask."""
    shadow: bool = False
    """Whether nobody waits: busy models refuse it."""


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What a model says of one image."""

    entry: Entry
    body: Mapping[str, Any]
    """The model's part of the JSON answer."""
    timings_ms: Mapping[str, float]
    batch: int
    """Images in the largest forward pass that it had a part in."""
    signals: Mapping[str, Any]
    """What drift is told by."""
    shadow: str = ""
    """name@version of one that is to be asked too."""
    prediction: Prediction | None = None
    """Where it was asked for, or has a mask: then with `facts`."""
    facts: Facts | None = None
    heat: Array | None = None


class Models(Protocol):
    """The model replicas, or one in this process."""

    async def predict(self, asked: Asked, raw: Case) -> Answered:
        """The answer; raises InputError and Refused."""

    def follow(self, asked: Asked, raw: Case) -> AsyncGenerator[float | Answered, None]:
        """Shares that are done, and at the end the answer."""

    async def infer(self, model: str, images: Array) -> tuple[Entry, Array]:
        """Scores (B, K), or (B, K, *W), of network inputs (B, C, *W) float32."""

    async def models(self) -> list[dict[str, Any]]:
        """What is served."""

    async def card(self, model: str) -> dict[str, Any]:
        """What is known of one; raises Refused."""


@dataclass(frozen=True, slots=True)
class Job:
    """A question that nobody waits for."""

    asked: Asked
    caller: str
    source: bytes
    kind: str
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the answer says of the upload."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    """Of what was done before."""


class Desk(Protocol):
    """The one process that remembers: jobs, results, counters, the audit."""

    async def record(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Write events down; raises OSError where the audit cannot be written."""

    async def take(self, caller: str) -> float:
        """Seconds that a caller must wait for its next prediction; 0 where it may go on."""

    async def submit(self, job: Job, raw: Case) -> dict[str, Any]:
        """A job's state; raises Refused where there are too many."""

    async def job(self, job_id: str, caller: str) -> dict[str, Any]:
        """A job's state; raises Refused."""

    async def jobs(self, caller: str) -> list[dict[str, Any]]:
        """All of a caller's."""

    async def cancel(self, job_id: str, caller: str) -> dict[str, Any]:
        """A job's state after it was told to end; raises Refused."""

    async def keep(self, caller: str, kept: Any) -> None:
        """Keep an answer (serving/kept.py's Kept) for a while."""

    async def kept(self, request_id: str, caller: str) -> Any:
        """An answer that was kept; raises Refused."""

    async def metrics(self) -> str:
        """Prometheus' text."""

    async def drift(self) -> list[dict[str, Any]]:
        """How answers differ from those of the training, for each model."""

    async def agreement(self) -> list[dict[str, Any]]:
        """How shadows agree with those who are heard."""
