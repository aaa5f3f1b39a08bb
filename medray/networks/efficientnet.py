"""EfficientNet (Tan 2019, arXiv:1905.11946): torchvision's in 2D, MONAI's in 3D."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from medray.sections.base import NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

SPATIAL_DIMS = (2, 3)


class Config(NetworkSection):
    """EfficientNet; 2D and 3D. The grid shrinks by 32."""

    name: Literal["efficientnet"] = "efficientnet"
    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"] = "b0"
    """Width and depth grow together, from 4 (b0) to 64 (b7) million weights in 2D."""


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K)."""
    from medray.networks.layers import add_dropout, require_axes

    require_axes(cfg.name, io)
    return add_dropout(_build_3d(cfg, io) if io.spatial_dims == 3 else _build_2d(cfg, io), cfg.dropout)


def _build_2d(cfg: Config, io: NetworkIO) -> nn.Module:
    """torchvision's network."""
    from torch import nn
    from torchvision.models import efficientnet

    from medray.networks.layers import set_channels

    make = getattr(efficientnet, f"efficientnet_{cfg.variant}")
    network: nn.Module = make(num_classes=io.outputs, dropout=0.0)
    set_channels(network, io.in_channels, partial(nn.init.kaiming_normal_, mode="fan_out"))
    return network


def _build_3d(cfg: Config, io: NetworkIO) -> nn.Module:
    """MONAI's network, for grids of any shape."""
    from monai.networks.nets.efficientnet import EfficientNetBN
    from torch import nn

    from medray.networks.blocks import take_any_grid

    network: nn.Module = EfficientNetBN(
        f"efficientnet-{cfg.variant}",
        pretrained=False,
        spatial_dims=3,
        in_channels=io.in_channels,
        num_classes=io.outputs,
    )
    network._dropout = nn.Identity()
    take_any_grid(network)
    return network
