"""Residual networks (He 2016, 10.1109/CVPR.2016.90): torchvision's in 2D, MONAI's in 3D."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from medray.sections.base import NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

SPATIAL_DIMS = (2, 3)
BLOCKS = {
    10: ("basic", [1, 1, 1, 1]),
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
}


class Config(NetworkSection):
    """ResNet with 10 to 152 layers; 2D and 3D."""

    name: Literal["resnet"] = "resnet"
    depth: Literal[10, 18, 34, 50, 101, 152] = 18
    """Layers; 10 is one basic block per stage (Chen 2019, MedicalNet, arXiv:1904.00625)."""
    stem: Literal["default", "small"] = "default"
    """`default`: 7-wide convolution with stride 2 and max-pooling, the grid shrinks by 4. `small`: 3-wide with
    stride 1 and no pooling, as He 2016 took for the 32x32 images of CIFAR: for grids of about 64 and less."""


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K)."""
    from medray.networks.layers import add_dropout, require_axes

    require_axes(cfg.name, io)
    return add_dropout(_build_3d(cfg, io) if io.spatial_dims == 3 else _build_2d(cfg, io), cfg.dropout)


def _build_2d(cfg: Config, io: NetworkIO) -> nn.Module:
    """torchvision's network."""
    from torch import nn
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    from medray.networks.layers import set_channels

    block, layers = BLOCKS[cfg.depth]
    network: nn.Module = ResNet(BasicBlock if block == "basic" else Bottleneck, layers, num_classes=io.outputs)
    he_fan_out = partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
    if cfg.stem == "small":
        network.conv1 = nn.Conv2d(io.in_channels, 64, 3, padding=1, bias=False)
        he_fan_out(network.conv1.weight)
        network.maxpool = nn.Identity()
    set_channels(network, io.in_channels, he_fan_out)
    return network


def _build_3d(cfg: Config, io: NetworkIO) -> nn.Module:
    """MONAI's network."""
    from monai.networks.nets.resnet import ResNet

    block, layers = BLOCKS[cfg.depth]
    small = cfg.stem == "small"
    # Shortcut B at every depth: MONAI's shortcut A (its 18 and 34) detaches its input, so no gradient passes it.
    network: nn.Module = ResNet(
        block=block,
        layers=layers,
        block_inplanes=[64, 128, 256, 512],
        n_input_channels=io.in_channels,
        conv1_t_size=3 if small else 7,
        conv1_t_stride=1 if small else 2,
        no_max_pool=small,
        shortcut_type="B",
        bias_downsample=False,
        num_classes=io.outputs,
    )
    return network
