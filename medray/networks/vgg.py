"""VGG (Simonyan 2015, arXiv:1409.1556): torchvision's, with batch normalisation or without."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from medray.sections.base import NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

SPATIAL_DIMS = (2,)


class Config(NetworkSection):
    """VGG; 2D only, from 32 pixels along each axis. Its dense layers alone hold 119 million weights."""

    name: Literal["vgg"] = "vgg"
    depth: Literal[11, 13, 16, 19] = 16
    norm: Literal["batch", "none"] = "batch"
    """Ioffe 2015 (arXiv:1502.03167), or none as in 2015, which trains only with care."""


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K)."""
    from torch import nn
    from torchvision.models import vgg

    from medray.networks.layers import add_dropout, require_axes, set_channels

    require_axes(cfg.name, io)
    make = getattr(vgg, f"vgg{cfg.depth}" + ("_bn" if cfg.norm == "batch" else ""))
    network: nn.Module = make(num_classes=io.outputs, dropout=0.0)
    set_channels(network, io.in_channels, partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"))
    return add_dropout(network, cfg.dropout)
