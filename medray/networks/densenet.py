"""Densely connected networks (Huang 2017, 10.1109/CVPR.2017.243): torchvision's in 2D, MONAI's in 3D."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from medray.sections.base import NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

SPATIAL_DIMS = (2, 3)
BLOCKS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32), 264: (6, 12, 64, 48)}


class Config(NetworkSection):
    """DenseNet with growth 32; 2D and 3D, from 29 voxels along each axis."""

    name: Literal["densenet"] = "densenet"
    depth: Literal[121, 169, 201, 264] = 121


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K)."""
    from torch import nn

    from medray.networks.layers import add_dropout, require_axes, set_channels

    require_axes(cfg.name, io)
    network: nn.Module
    if io.spatial_dims == 3:
        from monai.networks.nets.densenet import DenseNet as DenseNet3d

        network = DenseNet3d(3, io.in_channels, io.outputs, block_config=BLOCKS[cfg.depth])
    else:
        from torchvision.models.densenet import DenseNet as DenseNet2d

        network = DenseNet2d(block_config=BLOCKS[cfg.depth], num_classes=io.outputs)
        set_channels(network, io.in_channels, nn.init.kaiming_normal_)
    return add_dropout(network, cfg.dropout)
