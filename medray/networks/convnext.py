"""ConvNeXt (Liu 2022, 10.1109/CVPR52688.2022.01167): torchvision's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from medray.sections.base import NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

SPATIAL_DIMS = (2,)


class Config(NetworkSection):
    """ConvNeXt; 2D only, from 32 pixels along each axis."""

    name: Literal["convnext"] = "convnext"
    variant: Literal["tiny", "small", "base", "large"] = "tiny"


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K)."""
    from torch import nn
    from torchvision.models import convnext

    from medray.networks.layers import add_dropout, require_axes, set_channels

    require_axes(cfg.name, io)
    network: nn.Module = getattr(convnext, f"convnext_{cfg.variant}")(num_classes=io.outputs)
    set_channels(network, io.in_channels, partial(nn.init.trunc_normal_, std=0.02))
    return add_dropout(network, cfg.dropout)
