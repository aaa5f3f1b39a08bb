"""Pieces that network families share: the head with dropout, the first convolution, the check of axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from medray.config import ConfigError, load_plugin, plugins
from medray.types import NetworkIO


class Head(nn.Linear):
    """Dropout, then a linear layer: (B, F) -> (B, K).

    It is a Linear with nothing but a Linear's state, so a file of weights written without dropout fits by name.
    """

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__(inputs, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name
        """The logits (B, K) of features (B, F)."""
        return functional.linear(self.dropout(input), self.weight, self.bias)


class SamePad(nn.Module):
    """Zeros around (B, C, *S) so that a convolution gives ceil(size / stride) along every axis."""

    def __init__(self, kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The padded image; the odd voxel goes to the far side, as in TensorFlow."""
        pads: list[int] = []
        for size, kernel, stride in zip(image.shape[2:], self.kernel, self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads = [total // 2, total - total // 2, *pads]
        return functional.pad(image, pads)


def require_axes(family: str, io: NetworkIO) -> None:
    """Refuse a grid whose number of axes is not in the family's `SPATIAL_DIMS`.

    Raises:
        ConfigError: naming the families that take such a grid.
    """
    dims = {name: load_plugin("networks", name).SPATIAL_DIMS for name in plugins("networks")}
    if io.spatial_dims not in dims[family]:
        able = ", ".join(name for name, known in dims.items() if io.spatial_dims in known) or "none"
        raise ConfigError([f"network.name: '{family}' has no {io.spatial_dims}D version; families that do: {able}"])


def add_dropout(network: nn.Module, dropout: float) -> nn.Module:
    """The network with its last linear layer, weights and name kept, made a `Head`."""
    name, linear = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Linear)][-1]
    head = Head(linear.in_features, linear.out_features, dropout)
    head.weight = linear.weight
    head.bias = linear.bias
    _replace(network, name, head)
    return network


def set_channels(network: nn.Module, channels: int, init: Callable[[torch.Tensor], object] | None = None) -> None:
    """Make a torchvision network's first convolution take `channels` instead of 3.

    `init` fills the new weight the way that the family does; by default as torch fills a convolution.
    """
    conv = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
    if channels == conv.in_channels:
        return
    conv.in_channels = channels
    conv.weight = nn.Parameter(conv.weight.new_empty(conv.out_channels, channels, *conv.kernel_size))
    conv.reset_parameters()
    if init is not None:
        init(conv.weight)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)


def _replace(network: nn.Module, name: str, part: nn.Module) -> None:
    """Put `part` where the submodule with that dotted name is."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, part)
