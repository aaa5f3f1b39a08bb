"""Where runs are recorded, and how models are served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from medray.sections.base import AbsolutePath, Count, NonNegative, Positive, Section

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class TrackingSection(Section):
    """Where runs are recorded."""

    uri: str | None = None
    """MLflow server; by default an SQLite file in medray's home folder."""
    model: str | None = None
    """Name in the registry; by default the experiment's name."""
    register_model: bool = True


class AccessSection(Section):
    """Who may ask. On loopback nobody is asked for a key unless there are keys."""

    keys: AbsolutePath | None = None
    """File of API keys, see `medray key add`; by default keys.json in medray's home folder."""
    jwks: str | None = None
    """OpenID Connect: where the signing keys of tokens are, https://... or a file."""
    issuer: str | None = None
    """What a token must say of who made it (iss)."""
    audience: str | None = None
    """What a token must say of whom it is for (aud)."""
    role_claim: str = "role"
    """Where a token says viewer, user or admin; dots lead into objects, and a list may hold others beside it."""
    cors: tuple[str, ...] = ()
    """Origins, https://host, whose pages may ask from a browser; by default only the service's own."""
    per_minute: Count | None = None
    """Predictions that one key may ask for in a minute."""
    burst: Count = 20
    """Of them at once."""

    @field_validator("jwks")
    @classmethod
    def _absolute(cls, jwks: str | None) -> str | None:
        """A file is relative to the working folder of the command; replicas have other folders."""
        return jwks if jwks is None or "://" in jwks else str(Path(jwks).expanduser().absolute())

    @model_validator(mode="after")
    def _check(self) -> AccessSection:
        if self.jwks and not (self.issuer and self.audience):
            raise ValueError("jwks: tokens are checked against issuer and audience; name both")
        if any(not origin.startswith(("http://", "https://")) for origin in self.cors):
            raise ValueError("cors: an origin is https://host or http://host:port; '*' is not taken")
        return self


class AuditSection(Section):
    """The record of who asked what of which model."""

    on: bool = True
    folder: AbsolutePath | None = None
    """By default audit in medray's home folder."""
    keep_days: Count = 400
    """Older files are deleted (EU AI Act, articles 19 and 26: at least six months)."""


class DriftSection(Section):
    """When answers are told to differ from those of the training."""

    window: Count = 1000
    """Newest answers that are compared."""
    least: Count = 100
    """Fewer say nothing."""
    psi: Positive = 0.2
    """Population stability index from which on a distribution has moved (Yurdakul 2018: 0.1 some, 0.25 much)."""


class ServeSection(Section):
    """The HTTP service."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    certificate: AbsolutePath | None = None
    """PEM file: with it and `private_key` the service speaks HTTPS."""
    private_key: AbsolutePath | None = None
    device: str = "auto"
    """cpu, cuda, or auto: cuda where the cluster has GPUs."""
    cpus_per_replica: Positive | None = None
    """CPUs, and threads, of each model replica; by default an even share of what there is."""
    min_replicas: Count = 1
    max_replicas: Count | None = None
    """By default as many as there are GPUs, or nodes without: two on the same CPUs answer no more than one."""
    target_ongoing_requests: Positive = 4.0
    """Requests per model replica above which another replica is started."""
    max_ongoing_requests: Count = 32
    """Requests that one model replica takes at once."""
    upscale_delay_s: NonNegative = 10.0
    downscale_delay_s: NonNegative = 120.0
    ingresses: Count = 1
    """Processes that read, check and decode uploads; on a cluster take two or more."""
    decoders: Count = 2
    """Isolated processes of each ingress that decode files."""
    max_queued_requests: Count = 64
    """Requests that one ingress has accepted and not answered; beyond them 429 and when to come back."""
    max_batch: Count = 16
    """Images, of different requests too, in one forward pass; of windows as many as the bundle's window.batch says."""
    batching: bool = True
    """Whether requests share forward passes; without, an answer does not depend on the others to the last bit."""
    max_upload_mb: Positive = 512.0
    upload_s: Positive = 60.0
    """Longest time of an upload."""
    upload_kb_per_s: NonNegative = 16.0
    """Slower uploads are ended, after 5 s of grace."""
    uploads_mb: Positive = 2048.0
    """Of all uploads that one ingress is reading."""
    sync_voxels: Count = 64_000_000
    """Volumes with more become jobs."""
    jobs: Count = 64
    """Jobs that wait or run at once."""
    keep_s: Positive = 900.0
    """Results are kept so long, in memory alone."""
    keep_mb: Positive = 2048.0
    """And no more than this; the oldest go first."""
    shadow_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the requests that a shadow model is asked too, where it has time."""
    access: AccessSection = AccessSection()
    audit: AuditSection = AuditSection()
    drift: DriftSection = DriftSection()

    @property
    def most_replicas(self) -> int:
        """max_replicas, where it is not left to the cluster."""
        return self.max_replicas or self.min_replicas

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK

    @model_validator(mode="after")
    def _check(self) -> ServeSection:
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError("target_ongoing_requests above max_ongoing_requests would never scale up")
        if self.max_replicas is not None and self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together; give both or none")
        return self
