"""Pieces that network families share: heads, first convolutions, padding, and where their features are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

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


class Divisible(nn.Module):
    """A dense network on a grid of any size: edges are repeated up to a multiple of `factor`, and the answer is cut.

    A coarser answer of deep supervision is cut to ceil(size / stride) along every axis. A grid that divides goes
    through as it is.
    """

    def __init__(self, network: nn.Module, factor: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.factor = tuple(factor)
        """Along each axis: what the network shrinks the grid by."""

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """(B, C, *S) -> (B, K, *S), or a list that starts with it."""
        size = image.shape[2:]
        far = [-edge % factor for edge, factor in zip(size, self.factor, strict=True)]
        if not any(far):
            answer: torch.Tensor | list[torch.Tensor] = self.network(image)
            return answer
        padded = functional.pad(image, [pad for edge in reversed(far) for pad in (0, edge)], mode="replicate")
        answer = self.network(padded)
        if isinstance(answer, torch.Tensor):
            return _cut(answer, size, padded.shape[2:])
        return [_cut(head, size, padded.shape[2:]) for head in answer]


class PerPixel(nn.Module):
    """A torchvision segmentation network that gives its logits alone, not a dict; names of weights are kept."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, *S) -> (B, K, *S), interpolated from the coarse grid of the features."""
        logits = self.classifier(self.backbone(image)["out"])
        return functional.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False)


def _cut(head: torch.Tensor, size: Sequence[int], padded: Sequence[int]) -> torch.Tensor:
    """The part of an answer, at whatever stride, that lies on the grid before padding."""
    for axis, (edge, whole) in enumerate(zip(size, padded, strict=True), start=2):
        head = head.narrow(axis, 0, -(-edge * head.shape[axis] // whole))
    return head


def require_axes(family: str, io: NetworkIO) -> None:
    """Refuse a grid whose number of axes is not in the family's `SPATIAL_DIMS`.

    Raises:
        ConfigError: naming the families that take such a grid and answer as the task needs.
    """
    if io.spatial_dims not in load_plugin("networks", family).SPATIAL_DIMS:
        able = ", ".join(families(io)) or "none"
        raise ConfigError([f"network.name: '{family}' has no {io.spatial_dims}D version; families that do: {able}"])


def families(io: NetworkIO) -> list[str]:
    """Names of the families that take grids of so many axes and answer per voxel, or per case, as `io` says."""
    modules = {name: load_plugin("networks", name) for name in plugins("networks")}
    return [
        name
        for name, module in modules.items()
        if io.spatial_dims in module.SPATIAL_DIMS and getattr(module, "DENSE", False) == io.dense
    ]


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


def per_pixel(network: nn.Module, channels: int, dropout: float) -> nn.Module:
    """A torchvision segmentation network that takes `channels`, with its dropout set."""
    he_fan_out = partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
    set_channels(network, channels, he_fan_out)
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.p = dropout
    return PerPixel(network.get_submodule("backbone"), network.get_submodule("classifier"))


def _replace(network: nn.Module, name: str, part: nn.Module) -> None:
    """Put `part` where the submodule with that dotted name is."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, part)


def run_shapes(network: nn.Module, io: NetworkIO, size: tuple[int, ...]) -> Any:
    """What the network gives for two images of a grid, as shapes without numbers: nothing is computed or changed."""
    return _run_outline(outline(network), io, size)


def outline(network: nn.Module) -> nn.Module:
    """The same network without numbers, beside the one that may be answering at this moment."""
    numbers: list[torch.Tensor] = [*network.parameters(), *network.buffers()]
    shapes: dict[int, Any] = {id(one): torch.empty_like(one, device="meta") for one in numbers}
    for one in network.parameters():
        shapes[id(one)] = nn.Parameter(shapes[id(one)], requires_grad=False)
    alone = deepcopy(network, shapes)
    for part in alone.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return alone


def _run_outline(network: nn.Module, io: NetworkIO, size: tuple[int, ...]) -> Any:
    with torch.no_grad():
        return network(torch.empty(2, io.in_channels, *size, device="meta"))


@dataclass(frozen=True, slots=True)
class Features:
    """Where a network that answers per case has its features."""

    layer: str
    """The module whose output is the last feature map, (B, F, *G), or in a transformer the last tokens that are
    attended to, (B, 1 + N, F)."""
    linear: str
    """The last linear layer: its input (B, F) is the embedding of the case."""
    tokens: tuple[int, ...] | None = None
    """Grid of the patches behind the class token, where `layer` gives tokens; see `feature_map`."""


def feature_map(output: torch.Tensor, features: Features) -> torch.Tensor:
    """(B, F, *G) of what `features.layer` gave: tokens are laid out on their grid, without the class token."""
    if features.tokens is None:
        return output
    patches = output[:, 1:].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], *features.tokens)


def last_linear(network: nn.Module) -> str:
    """The last linear layer of a network that answers per case: its input (B, F) is the embedding."""
    names: list[str] = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    return names[-1]


def feature_layer(network: nn.Module, io: NetworkIO) -> Features:
    """Where a network that answers per case has its last feature map and its embedding.

    The map is the last one that a module with a convolution gives, or what normalisation and activation make of it.
    Of a transformer it is the normalised input of the last attention: past that only the class token counts
    (Gildenblat 2021, github.com/jacobgil/pytorch-grad-cam).
    """
    from torchvision.models.vision_transformer import EncoderBlock

    linear = last_linear(network)
    maps = _maps(network, io, io.size)
    convolved = [index for index, found in enumerate(maps) if found.convolves]
    last = maps[convolved[-1]]
    blocks = [name for name, part in network.named_modules() if isinstance(part, EncoderBlock)]
    if blocks:
        return Features(f"{blocks[-1]}.ln_1", linear, last.shape[2:])
    for found in maps[convolved[-1] :]:
        if found.shape == last.shape and not found.pools:
            last = found
    return Features(last.name, linear)


def bottleneck(network: nn.Module, io: NetworkIO) -> str | None:
    """The module of a dense network whose output (B, F, *G) is its deepest feature map; None where there is none.

    Of the modules with a convolution whose map is on the smallest grid, the last with the most channels; a part of
    a larger such module does not count.
    """
    # On a grid twice as large a feature map has more than one voxel; what still has one is pooled.
    maps = _maps(network, io, tuple(2 * edge for edge in io.size))
    spatial = [found for found in maps if found.convolves and prod(found.shape[2:]) > 1]
    if not spatial:
        return None
    smallest = min(prod(found.shape[2:]) for found in spatial)
    deepest = [found for found in spatial if prod(found.shape[2:]) == smallest]
    names = {found.name for found in deepest}
    outer = [found for found in deepest if not any(found.name.startswith(f"{name}.") for name in names)]
    return max(reversed(outer), key=lambda found: found.shape[1]).name


@dataclass(frozen=True, slots=True)
class _Map:
    """A feature map that a module gave."""

    name: str
    shape: tuple[int, ...]
    """(B, F, *G)."""
    convolves: bool
    """Whether the module holds a convolution."""
    pools: bool


def _maps(network: nn.Module, io: NetworkIO, size: tuple[int, ...]) -> list[_Map]:
    """The feature maps that modules give once each on a grid, in the order in which they are ready."""
    seen: dict[str, list[tuple[int, ...]]] = {}
    network = outline(network)
    parts = dict(network.named_modules())

    def record(name: str, output: object) -> None:
        # Passes of other threads have numbers.
        if isinstance(output, torch.Tensor) and output.is_meta and output.ndim == len(size) + 2:
            seen.setdefault(name, []).append(tuple(output.shape))

    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: record(name, output))
        for name, part in parts.items()
        if name
    ]
    try:
        _run_outline(network, io, size)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        _Map(name, shapes[0], any(isinstance(part, _ConvNd) for part in parts[name].modules()), "Pool" in kind)
        for name, shapes in seen.items()
        if len(shapes) == 1
        for kind in [type(parts[name]).__name__]
    ]
