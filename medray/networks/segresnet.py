"""SegResNet (Myronenko 2019, 10.1007/978-3-030-11726-9_28): MONAI's, without the variational branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from medray.sections.base import Count, Fraction, NetworkSection

if TYPE_CHECKING:
    from torch import nn

    from medray.types import NetworkIO

DENSE = True
SPATIAL_DIMS = (2, 3)
GROUPS = 8


class Config(NetworkSection):
    """Residual encoder with group normalisation and a small decoder; 2D and 3D. Winner of BraTS 2018."""

    name: Literal["segresnet"] = "segresnet"
    dropout: Fraction = 0.0
    """Dropout of whole channels after the first convolution; 0.2 in the paper."""
    filters: Annotated[int, Field(ge=GROUPS, multiple_of=GROUPS)] = 16
    """Channels of the finest level, a multiple of 8; each coarser level has twice as many. 32 in the paper."""
    blocks_down: Annotated[tuple[Count, ...], Field(min_length=2)] = (1, 2, 2, 4)
    """Residual blocks of each level of the encoder, finest first; every level but the first halves the grid."""
    blocks_up: tuple[Count, ...] = (1, 1, 1)
    """Residual blocks of each level of the decoder, coarsest first: one fewer than `blocks_down`."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        steps = len(self.blocks_down) - 1
        if len(self.blocks_up) != steps:
            raise ValueError(f"blocks_up has {len(self.blocks_up)} levels; {steps} go with blocks_down")
        return self


def build(cfg: Config, io: NetworkIO) -> nn.Module:
    """(B, C, *S) -> (B, K, *S)."""
    from monai.networks.nets.segresnet import SegResNet

    from medray.networks.layers import Divisible, require_axes

    require_axes(cfg.name, io)
    network = SegResNet(
        spatial_dims=io.spatial_dims,
        init_filters=cfg.filters,
        in_channels=io.in_channels,
        out_channels=io.outputs,
        dropout_prob=cfg.dropout or None,
        norm=("GROUP", {"num_groups": GROUPS}),
        blocks_down=cfg.blocks_down,
        blocks_up=cfg.blocks_up,
    )
    return Divisible(network, (2 ** len(cfg.blocks_up),) * io.spatial_dims)
