"""Vision transformers (Dosovitskiy 2021, arXiv:2010.11929): torchvision's encoder over 2D or 3D patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from medray.config import ConfigError
from medray.sections.base import Count, NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

SPATIAL_DIMS = (2, 3)
SHAPES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}


class Config(NetworkSection):
    """ViT on the grid that preprocessing gives; 2D and 3D."""

    name: Literal["vit"] = "vit"
    variant: Literal["tiny", "small", "base"] = "tiny"
    """Width 192, 384 or 768 with 3, 6 or 12 attention heads; 12 layers (Touvron 2021, arXiv:2012.12877)."""
    patch: Count = 16
    """Edge of a patch in voxels; it must divide every edge of the grid."""


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K), for the grid `io.size` alone.

    Raises:
        ConfigError: where patches do not tile the grid.
    """
    from medray.networks.layers import require_axes
    from medray.networks.transformer import PatchTransformer

    require_axes(cfg.name, io)
    if any(edge % cfg.patch for edge in io.size):
        fits = [patch for patch in range(1, min(io.size) + 1) if not any(edge % patch for edge in io.size)]
        known = ", ".join(map(str, fits))
        raise ConfigError([f"network.patch: {cfg.patch} does not divide the grid {io.size}; what does: {known}"])
    return PatchTransformer(io, cfg.patch, SHAPES[cfg.variant], cfg.dropout)
