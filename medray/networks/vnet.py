"""V-Net (Milletari 2016, 10.1109/3DV.2016.79): MONAI's, for any number of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from medray.sections.base import Fraction, NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

DENSE = True
SPATIAL_DIMS = (2, 3)
SHRINKS = 16
WIDTH = 16


class Config(NetworkSection):
    """Residual encoder and decoder of 5-wide convolutions with batch normalisation; 2D and 3D. The grid shrinks by 16.

    45 million weights in 3D. ELU stands for the paper's PReLU, as in MONAI.
    """

    name: Literal["vnet"] = "vnet"
    dropout: Fraction = 0.0
    """Dropout of whole channels at the deep levels and on the skip connections; 0.5 in MONAI."""


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K, *S)."""
    from monai.networks.nets.vnet import VNet
    from torch import nn

    from medray.networks.blocks import AnyInput
    from medray.networks.layers import Divisible, require_axes

    require_axes(cfg.name, io)
    act: tuple[str, dict[str, object]] = ("elu", {"inplace": True})
    network = VNet(spatial_dims=io.spatial_dims, out_channels=io.outputs, act=act)
    # MONAI's last two levels drop 0.5 whatever they are told, in 2D whole cases instead of channels.
    drop = nn.Dropout3d if io.spatial_dims == 3 else nn.Dropout2d
    for part in list(network.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Dropout3d):
                setattr(part, name, drop(cfg.dropout))
    network.in_tr = AnyInput(io.spatial_dims, io.in_channels, WIDTH, act)
    return Divisible(network, (SHRINKS,) * io.spatial_dims)
