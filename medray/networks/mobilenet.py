"""MobileNet v2 (Sandler 2018, 10.1109/CVPR.2018.00474) and v3 (Howard 2019, 10.1109/ICCV.2019.00140): torchvision's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from medray.sections.base import NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

SPATIAL_DIMS = (2,)


class Config(NetworkSection):
    """MobileNet, for small machines; 2D only. The grid shrinks by 32."""

    name: Literal["mobilenet"] = "mobilenet"
    variant: Literal["v2", "v3_small", "v3_large"] = "v3_small"


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K)."""
    from torch import nn
    from torchvision import models

    from medray.networks.layers import add_dropout, require_axes, set_channels

    require_axes(cfg.name, io)
    network: nn.Module = getattr(models, f"mobilenet_{cfg.variant}")(num_classes=io.outputs, dropout=0.0)
    set_channels(network, io.in_channels, partial(nn.init.kaiming_normal_, mode="fan_out"))
    return add_dropout(network, cfg.dropout)
