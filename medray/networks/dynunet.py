"""The U-Net that nnU-Net plans (Isensee 2021, 10.1038/s41592-020-01008-z), of the blocks of MONAI's DynUNet."""

from __future__ import annotations

from math import gcd, prod
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from medray.sections.base import Count, Fraction, NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

DENSE = True
SPATIAL_DIMS = (2, 3)
Level = Annotated[tuple[Count, ...], Field(min_length=1, max_length=3)]
"""One number per axis; a single one stands for all axes."""
NORMS = {"instance": "INSTANCE", "batch": "BATCH", "group": "GROUP"}


class Config(NetworkSection):
    """Two convolutions per level, a strided one on the way down, a transposed one on the way up; 2D and 3D.

    `medray plan` writes filters, kernels and strides for a dataset; a level per entry, finest first.
    """

    name: Literal["dynunet"] = "dynunet"
    dropout: Fraction = 0.0
    """Dropout after every convolution but the last."""
    filters: Annotated[tuple[Count, ...], Field(min_length=2)] = (32, 64, 128, 256, 320)
    kernels: tuple[Level, ...] | None = None
    """Edges of the convolutions of each level; all 3 by default."""
    strides: tuple[Level, ...] = ((1,), (2,), (2,), (2,), (2,))
    """By how much each level is coarser than the one before; the first is all 1."""
    norm: Literal["instance", "batch", "group"] = "instance"
    """Ulyanov 2016 (arXiv:1607.08022), Ioffe 2015 (arXiv:1502.03167), or Wu 2018 (10.1007/978-3-030-01261-8_1) in up
    to 8 groups; all with a scale and shift per channel."""
    deep_supervision: Annotated[int, Field(ge=0)] = 0
    """Further answers at the next coarser levels, in training (Lee 2015, arXiv:1409.5185); 0 is off."""
    residual: bool = False
    """Residual blocks on the way down (He 2016, 10.1109/CVPR.2016.90)."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        levels = len(self.filters)
        if len(self.strides) != levels:
            raise ValueError(f"strides has {len(self.strides)} levels, filters has {levels}")
        if self.kernels is not None and len(self.kernels) != levels:
            raise ValueError(f"kernels has {len(self.kernels)} levels, filters has {levels}")
        if any(edge != 1 for edge in self.strides[0]):
            raise ValueError(f"strides starts with {self.strides[0]}; the first level keeps the grid, all 1")
        if self.kernels is not None and any(edge % 2 == 0 for kernel in self.kernels for edge in kernel):
            raise ValueError("kernels must be odd, so that a convolution keeps its grid")
        if self.deep_supervision > levels - 2:
            raise ValueError(f"deep_supervision is at most {levels - 2} with {levels} levels")
        return self


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K, *S); with deep supervision in training a list, coarser and coarser.

    Raises:
        ConfigError: where kernels or strides have another number of axes than the grid.
    """
    from medray.networks.blocks import DynamicUNet
    from medray.networks.layers import Divisible, require_axes

    require_axes(cfg.name, io)
    kernels = _per_axis("kernels", cfg.kernels or ((3,),) * len(cfg.filters), io.spatial_dims)
    strides = _per_axis("strides", cfg.strides, io.spatial_dims)
    settings: dict[str, object] = {"affine": True}
    if cfg.norm == "group":
        settings["num_groups"] = gcd(8, *cfg.filters)
    norm = (NORMS[cfg.norm], settings)
    levels = (cfg.filters, kernels, strides)
    network = DynamicUNet(io, levels, norm, cfg.residual, cfg.deep_supervision, cfg.dropout or None)
    return Divisible(network, [prod(edges) for edges in zip(*strides, strict=True)])


def _per_axis(key: str, levels: tuple[tuple[int, ...], ...], axes: int) -> tuple[tuple[int, ...], ...]:
    """One number per axis for every level."""
    from medray.config import ConfigError

    for level in levels:
        if len(level) not in (1, axes):
            raise ConfigError([f"network.{key}: {level} has {len(level)} axes, the grid has {axes}"])
    return tuple(level * axes if len(level) == 1 else level for level in levels)
