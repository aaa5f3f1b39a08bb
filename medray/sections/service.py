"""Where runs are recorded and models served."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from medray.sections.base import Count, Positive, Section


class TrackingSection(Section):
    """Where runs are recorded."""

    uri: str | None = None
    """MLflow server; by default an SQLite file in medray's home folder."""
    model: str | None = None
    """Name in the registry; by default the experiment's name."""
    register_model: bool = True


class ServeSection(Section):
    """The HTTP service."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    min_replicas: Count = 1
    max_replicas: Count = 2
    target_ongoing_requests: Positive = 2.0
    max_ongoing_requests: Count = 8
    max_upload_mb: Positive = 512.0

    @model_validator(mode="after")
    def _check(self) -> ServeSection:
        if self.host not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError(f"host {self.host}: the service has no keys yet, so it listens on loopback alone")
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError("target_ongoing_requests above max_ongoing_requests would never scale up")
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self
