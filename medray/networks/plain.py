"""The classical small CNN: convolution, normalisation, ReLU and pooling, a few times; then global pooling."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from medray.sections.base import Count, NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

SPATIAL_DIMS = (2, 3)


class Config(NetworkSection):
    """A plain stack of 3-wide convolutions, each followed by max-pooling by 2; 2D and 3D."""

    name: Literal["plain"] = "plain"
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64, 128)
    """Channels of each block; a grid needs at least 2 ** len(widths) voxels along each axis."""
    norm: Literal["batch", "instance", "group", "none"] = "batch"
    """Ioffe 2015 (arXiv:1502.03167), Ulyanov 2016 (arXiv:1607.08022), or Wu 2018 (10.1007/978-3-030-01261-8_1):
    groups of up to 8; instance and group norm do not depend on the batch size."""


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K)."""
    from torch import nn

    from medray.networks.layers import Head, require_axes

    require_axes(cfg.name, io)
    three = io.spatial_dims == 3
    parts: list[nn.Module] = []
    channels = io.in_channels
    for width in cfg.widths:
        conv = nn.Conv3d if three else nn.Conv2d
        parts += [conv(channels, width, 3, padding=1, bias=cfg.norm == "none"), *_norm(cfg.norm, width, three)]
        parts += [nn.ReLU(inplace=True), nn.MaxPool3d(2) if three else nn.MaxPool2d(2)]
        channels = width
    parts += [nn.AdaptiveAvgPool3d(1) if three else nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*parts, Head(channels, io.outputs, cfg.dropout))


def _norm(kind: str, width: int, three: bool) -> list[nn.Module]:
    """The normalisation after a convolution, if any."""
    from torch import nn

    if kind == "batch":
        return [nn.BatchNorm3d(width) if three else nn.BatchNorm2d(width)]
    if kind == "instance":
        return [nn.InstanceNorm3d(width, affine=True) if three else nn.InstanceNorm2d(width, affine=True)]
    return [nn.GroupNorm(gcd(8, width), width)] if kind == "group" else []
