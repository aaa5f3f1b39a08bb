"""What every section of an Experiment is: frozen, typed, unknown keys refused. Plug-ins bring their own by name.

Units are in the names; a probability is `p`; epochs may be fractional where a step can end a phase.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def is_remote(path: Path) -> bool:
    """Whether a path is a URL: as a path it has lost one of its slashes."""
    return re.match(r"[a-z][a-z0-9+]+:/", str(path)) is not None


def url_of(path: Path) -> str:
    """A path as people write it: a URL with both its slashes."""
    return str(path).replace(":/", "://", 1) if is_remote(path) else str(path)


def _absolute(path: Path) -> Path:
    path = Path(str(path).removeprefix("file:"))
    return path if is_remote(path) else path.expanduser().absolute()


AbsolutePath = Annotated[
    Path,
    AfterValidator(_absolute),
    PlainSerializer(url_of, return_type=str, when_used="json"),
]
"""Relative to the working folder of the command; absolute from then on, since workers have other folders. Or the URL of
a place that remote.py knows, such as s3://bucket/folder."""


class Section(BaseModel):
    """A frozen group of settings; an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Plugin(Section):
    """Settings of a plug-in: `name` is the file in the plug-in's folder."""

    name: str


class DatasetSection(Plugin):
    """What every dataset layout can be told."""

    max_bad_fraction: Fraction = 0.01
    """Unreadable cases are listed and left out up to this share; beyond it the run refuses to start."""
    manifest: AbsolutePath | None = None
    """The sha256 of each file as `sha256sum` writes them, paths relative to the manifest's folder: verified before
    the store is built, and a changed, missing or unlisted file is named."""


class NetworkSection(Plugin):
    """What every network family can be told."""

    dropout: Fraction = 0.0
    """Dropout before the last linear layer; a dense family says where it has it."""
    init: Literal["default", "xavier", "he"] = "default"
    """Weights of convolutions and linear layers: the family's own, Glorot 2010, or He 2015 (10.1109/ICCV.2015.123)."""
    weights: AbsolutePath | None = None
    """A .safetensors file or a bundle to start from; layers of another shape are left at their initial values."""
    freeze: bool = False
    """Train only what `weights` did not fill (usually the head)."""


class TaskSection(Plugin):
    """What every task can be told."""
