"""Attention U-Net (Oktay 2018, arXiv:1804.03999): MONAI's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from medray.sections.base import Fraction, NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

DENSE = True
SPATIAL_DIMS = (2, 3)


class Config(NetworkSection):
    """U-Net whose skip connections are gated by what lies below; 2D and 3D. Every level halves the grid."""

    name: Literal["attentionunet"] = "attentionunet"
    dropout: Fraction = 0.0
    """Dropout after the normalisations of the encoder and of the merged levels."""
    channels: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=2)] = (16, 32, 64, 128, 256)
    """Of each level, finest first."""


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K, *S)."""
    from monai.networks.nets.attentionunet import AttentionUnet

    from medray.networks.layers import Divisible, require_axes

    require_axes(cfg.name, io)
    halvings = len(cfg.channels) - 1
    network = AttentionUnet(
        spatial_dims=io.spatial_dims,
        in_channels=io.in_channels,
        out_channels=io.outputs,
        channels=cfg.channels,
        strides=(2,) * halvings,
        dropout=cfg.dropout,
    )
    return Divisible(network, (2**halvings,) * io.spatial_dims)
