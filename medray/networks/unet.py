"""U-Net (Ronneberger 2015, 10.1007/978-3-319-24574-4_28), MONAI's: strided, with residual units (Kerfoot 2019)."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from medray.sections.base import Count, Fraction, NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

DENSE = True
SPATIAL_DIMS = (2, 3)


class Config(NetworkSection):
    """U-Net with strided and transposed convolutions and PReLU (Kerfoot 2019, 10.1007/978-3-030-12029-0_40); 2D and 3D.

    The defaults are those of MONAI's tutorials and model zoo.
    """

    name: Literal["unet"] = "unet"
    dropout: Fraction = 0.0
    """Dropout after every normalisation."""
    channels: Annotated[tuple[Count, ...], Field(min_length=2)] = (16, 32, 64, 128, 256)
    """Of each level, finest first."""
    strides: tuple[Count, ...] | None = None
    """From each level to the next, one fewer than channels; all 2 by default."""
    residual_units: Annotated[int, Field(ge=0)] = 2
    """Convolutions in the residual unit of each level; 0: one plain convolution instead."""
    norm: Literal["instance", "batch"] = "instance"
    """Ulyanov 2016 (arXiv:1607.08022), without scale and shift, or Ioffe 2015 (arXiv:1502.03167)."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.strides is not None and len(self.strides) != len(self.channels) - 1:
            raise ValueError(f"strides has {len(self.strides)} numbers; {len(self.channels) - 1} are between channels")
        return self


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K, *S)."""
    from monai.networks.nets.unet import UNet

    from medray.networks.layers import Divisible, require_axes

    require_axes(cfg.name, io)
    strides = cfg.strides or (2,) * (len(cfg.channels) - 1)
    network = UNet(
        spatial_dims=io.spatial_dims,
        in_channels=io.in_channels,
        out_channels=io.outputs,
        channels=cfg.channels,
        strides=strides,
        num_res_units=cfg.residual_units,
        norm=cfg.norm,
        dropout=cfg.dropout,
    )
    return Divisible(network, (prod(strides),) * io.spatial_dims)
