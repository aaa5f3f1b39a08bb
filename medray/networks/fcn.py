"""Fully convolutional network (Long 2015, 10.1109/CVPR.2015.7298965): torchvision's, on a dilated ResNet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from medray.sections.base import Fraction, NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

DENSE = True
SPATIAL_DIMS = (2,)


class Config(NetworkSection):
    """Dilated ResNet and a small head at an eighth of the grid; 2D only."""

    name: Literal["fcn"] = "fcn"
    dropout: Fraction = 0.0
    """Dropout before the last convolution; 0.1 in torchvision."""
    depth: Literal[50, 101] = 50
    """Layers of the ResNet."""


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K, *S)."""
    from torchvision.models import segmentation

    from medray.networks.layers import per_pixel, require_axes

    require_axes(cfg.name, io)
    make = getattr(segmentation, f"fcn_resnet{cfg.depth}")
    return per_pixel(make(weights=None, weights_backbone=None, num_classes=io.outputs), io.in_channels, cfg.dropout)
