"""AlexNet (Krizhevsky 2012, 10.1145/3065386), in torchvision's one-tower form (arXiv:1404.5997)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from medray.sections.base import NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

SPATIAL_DIMS = (2,)


class Config(NetworkSection):
    """AlexNet; 2D only, from 63 pixels along each axis."""

    name: Literal["alexnet"] = "alexnet"


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K)."""
    from torchvision.models import AlexNet

    from medray.networks.layers import add_dropout, require_axes, set_channels

    require_axes(cfg.name, io)
    network: nn.Module = AlexNet(num_classes=io.outputs, dropout=0.0)
    set_channels(network, io.in_channels)
    return add_dropout(network, cfg.dropout)
