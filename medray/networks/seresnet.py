"""Squeeze-and-excitation residual networks (Hu 2018, 10.1109/CVPR.2018.00745): torchvision in 2D, MONAI in 3D."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from medray.sections.base import NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

SPATIAL_DIMS = (2, 3)
LAYERS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
REDUCTION = 16


class Config(NetworkSection):
    """SE-ResNet with bottleneck blocks and reduction 16; 2D and 3D."""

    name: Literal["seresnet"] = "seresnet"
    depth: Literal[50, 101, 152] = 50


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K)."""
    from medray.networks.layers import add_dropout, require_axes

    require_axes(cfg.name, io)
    return add_dropout(_build_3d(cfg, io) if io.spatial_dims == 3 else _build_2d(cfg, io), cfg.dropout)


def _build_2d(cfg: Config, io: NetworkIO) -> nn.Module:
    """torchvision's ResNet, the end of every residual branch squeezed and excited."""
    from torch import nn
    from torchvision.models.resnet import Bottleneck, ResNet
    from torchvision.ops import SqueezeExcitation

    from medray.networks.layers import set_channels

    network: nn.Module = ResNet(Bottleneck, LAYERS[cfg.depth], num_classes=io.outputs)
    for part in list(network.modules()):
        if isinstance(part, Bottleneck):
            width = part.bn3.num_features
            part.bn3 = nn.Sequential(part.bn3, SqueezeExcitation(width, width // REDUCTION))
    set_channels(network, io.in_channels, partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"))
    return network


def _build_3d(cfg: Config, io: NetworkIO) -> nn.Module:
    """MONAI's network."""
    from monai.networks.nets.senet import SENet

    network: nn.Module = SENet(
        spatial_dims=3,
        in_channels=io.in_channels,
        block="se_resnet_bottleneck",
        layers=LAYERS[cfg.depth],
        groups=1,
        reduction=REDUCTION,
        dropout_prob=None,
        inplanes=64,
        downsample_kernel_size=1,
        input_3x3=False,
        num_classes=io.outputs,
    )
    return network
