"""Swin UNETR (Hatamizadeh 2022, 10.1007/978-3-031-08999-2_22): MONAI's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from medray.sections.base import Count, Fraction, NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

DENSE = True
SPATIAL_DIMS = (2, 3)
SHRINKS = 32
Four = tuple[Count, Count, Count, Count]


class Config(NetworkSection):
    """Swin transformer as encoder of a U-Net; 2D and 3D, from 33 voxels along one axis. The grid shrinks by 32."""

    name: Literal["swinunetr"] = "swinunetr"
    dropout: Fraction = 0.0
    """Dropout in the transformer: after the embedding, attention and the dense layers."""
    features: Annotated[int, Field(ge=12, multiple_of=12)] = 24
    """Width of the first stage, a multiple of 12; 48 in the paper."""
    depths: Four = (2, 2, 2, 2)
    """Transformer blocks of each stage."""
    attention_window: Count = 7
    """Edge of the window within which patches of 2 voxels attend to each other."""
    checkpoint: bool = False
    """Compute the encoder twice instead of keeping its activations: less memory, more time (Chen 2016,
    arXiv:1604.06174)."""


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K, *S)."""
    import torch
    from monai.networks.nets.swin_unetr import SwinUNETR

    from medray.networks.layers import Divisible, require_axes

    require_axes(cfg.name, io)
    # MONAI reads numbers from a tensor while it builds, which one without numbers (meta) does not allow.
    device = torch.get_default_device()
    with torch.device("cpu"):
        network = SwinUNETR(
            spatial_dims=io.spatial_dims,
            in_channels=io.in_channels,
            out_channels=io.outputs,
            feature_size=cfg.features,
            depths=cfg.depths,
            window_size=cfg.attention_window,
            drop_rate=cfg.dropout,
            use_checkpoint=cfg.checkpoint,
        )
    return Divisible(network.to(device), (SHRINKS,) * io.spatial_dims)
