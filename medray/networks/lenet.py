"""LeNet-5 (LeCun 1998, 10.1109/5.726791), and the same with a third axis."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal

from medray.sections.base import NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

SPATIAL_DIMS = (2, 3)
SMALLEST = 12


class Config(NetworkSection):
    """Two 5-wide convolutions with average pooling, three dense layers; 2D and 3D, from 12 voxels along each axis.

    ReLU stands for the scaled tanh of 1998 (Glorot 2011, proceedings.mlr.press/v15/glorot11a).
    The first dense layer grows with the grid: the network is meant for small images.
    """

    name: Literal["lenet"] = "lenet"


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K)."""
    from torch import nn

    from medray.config import ConfigError
    from medray.networks.layers import Head, require_axes

    require_axes(cfg.name, io)
    if min(io.size) < SMALLEST:
        raise ConfigError([f"network.name: lenet needs at least {SMALLEST} voxels along each axis, got {io.size}"])
    three = io.spatial_dims == 3
    conv = nn.Conv3d if three else nn.Conv2d
    pool = nn.AvgPool3d if three else nn.AvgPool2d
    features = 16 * prod((edge // 2 - 4) // 2 for edge in io.size)
    return nn.Sequential(
        *(conv(io.in_channels, 6, 5, padding=2), nn.ReLU(inplace=True), pool(2)),
        *(conv(6, 16, 5), nn.ReLU(inplace=True), pool(2), nn.Flatten()),
        *(nn.Linear(features, 120), nn.ReLU(inplace=True), nn.Linear(120, 84), nn.ReLU(inplace=True)),
        Head(84, io.outputs, cfg.dropout),
    )
