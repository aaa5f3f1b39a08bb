"""U-Net with an EfficientNet (Tan 2019, arXiv:1905.11946) as encoder: MONAI's FlexibleUNet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from medray.sections.base import Count, Fraction, NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

DENSE = True
SPATIAL_DIMS = (2, 3)
SHRINKS = 32


class Config(NetworkSection):
    """EfficientNet encoder and a convolutional decoder with batch normalisation; 2D and 3D. The grid shrinks by 32."""

    name: Literal["flexibleunet"] = "flexibleunet"
    dropout: Fraction = 0.0
    """Dropout after every normalisation of the decoder."""
    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"] = "b0"
    """Width and depth of the encoder grow together."""
    decoder: tuple[Count, Count, Count, Count, Count] = (256, 128, 64, 32, 16)
    """Channels of each level of the decoder, coarsest first."""


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K, *S)."""
    from monai.networks.nets.flexible_unet import FlexibleUNet

    from medray.networks.blocks import take_any_grid
    from medray.networks.layers import Divisible, require_axes

    require_axes(cfg.name, io)
    network = FlexibleUNet(
        in_channels=io.in_channels,
        out_channels=io.outputs,
        backbone=f"efficientnet-{cfg.variant}",
        pretrained=False,
        decoder_channels=cfg.decoder,
        spatial_dims=io.spatial_dims,
        dropout=cfg.dropout,
        is_pad=False,
    )
    take_any_grid(network.encoder)
    for name in ("_conv_head", "_conv_head_padding", "_bn1", "_avg_pooling", "_dropout", "_fc"):
        # The classifier of the encoder, through which nothing passes.
        delattr(network.encoder, name)
    return Divisible(network, (SHRINKS,) * io.spatial_dims)
