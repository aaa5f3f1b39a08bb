"""Padding to a multiple, and where networks have their features."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from medray.config import load_plugin, plugins
from medray.networks.layers import Divisible, Features, bottleneck, feature_layer, feature_map
from medray.types import NetworkIO

SLOW = {("densenet", 3), ("efficientnet", 3), ("flexibleunet", 3), ("resnet", 3), ("seresnet", 3), ("vgg", 2)}
PAIRS = [
    pytest.param(family, dims, marks=[pytest.mark.slow] if (family, dims) in SLOW else [], id=f"{family}-{dims}d")
    for family in plugins("networks")
    for dims in load_plugin("networks", family).SPATIAL_DIMS
]
DEEPEST = {
    "attentionunet": (256, 16),
    "deeplabv3": (2048, 8),
    "dynunet": (320, 16),
    "fcn": (2048, 8),
    "flexibleunet": (320, 32),
    "segresnet": (128, 8),
    "swinunetr": (384, 32),
    "unet": (384, 16),
    "vnet": (256, 16),
}
"""Channels, and by how much the grid is coarser; the U-Net's deepest level joins its skip connection, 128 + 256."""
LAST = {"lenet": "4", "plain": "10", "resnet": "layer4", "seresnet": "layer4"}


class Strided(nn.Module):
    """Answers with its input, the same at half the grid along the last axis, and keeps what it saw."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        self.seen = image
        return [image, image[..., ::2]]


@settings(deadline=None, max_examples=40)
@given(
    size=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    factors=st.lists(st.sampled_from([1, 2, 4, 6]), min_size=2, max_size=3),
)
def test_divisible_repeats_edges_and_cuts_the_answers(size: list[int], factors: list[int]) -> None:
    axes = min(len(size), len(factors))
    size, factors = size[:axes], [*factors[: axes - 1], 2 * factors[axes - 1]]
    image, network = torch.randn(1, 2, *size), Strided()
    full, coarse = Divisible(network, factors)(image)
    assert torch.equal(full, image)
    assert torch.equal(coarse, image[..., ::2])
    assert network.seen.shape[2:] == tuple(
        -(-edge // factor) * factor for edge, factor in zip(size, factors, strict=True)
    )
    for axis, edge in enumerate(size, start=2):
        far = network.seen.narrow(axis, edge - 1, network.seen.shape[axis] - edge + 1)
        assert torch.equal(far, far.narrow(axis, 0, 1).expand_as(far))


def test_divisible_hands_on_a_grid_that_divides() -> None:
    network, image = Strided(), torch.randn(1, 1, 8, 12)
    full, _ = Divisible(network, (4, 4))(image)
    assert network.seen is image
    assert full is image


def shapes(family: str, io: NetworkIO) -> nn.Module:
    module = load_plugin("networks", family)
    with torch.device("meta"):
        network: nn.Module = module.build(module.Config(), io)
    return network


@pytest.mark.parametrize(("family", "dims"), PAIRS)
def test_features_are_found_in_every_family(family: str, dims: int) -> None:
    dense = getattr(load_plugin("networks", family), "DENSE", False)
    io = NetworkIO(1, (64,) * dims, 3, dense)
    network = shapes(family, io)
    features = None if dense else feature_layer(network, io)
    name = bottleneck(network, io) if features is None else features.layer
    assert name is not None
    seen: list[torch.Tensor] = []
    network.get_submodule(name).register_forward_hook(lambda _, __, output: seen.append(output))
    answer = network(torch.empty(2, 1, *io.size, device="meta"))
    assert len(seen) == 1
    assert not any(part._forward_hooks for other, part in network.named_modules() if other != name)
    if features is not None:
        linear = network.get_submodule(features.linear)
        assert isinstance(linear, nn.Linear)
        assert (linear.out_features, answer.shape) == (3, (2, 3))
        assert feature_map(seen[0], features).ndim == dims + 2
        assert features.layer == LAST.get(family, features.layer)
        return
    channels, shrinks = DEEPEST[family]
    assert seen[0].shape == (2, channels, *(64 // shrinks,) * dims)


def test_tokens_are_laid_out_on_their_grid() -> None:
    image = torch.randn(2, 5, 3, 4)
    tokens = functional.pad(image.flatten(2).transpose(1, 2), (0, 0, 1, 0))
    features = Features("encoder", "head", (3, 4))
    assert tokens.shape == (2, 1 + prod((3, 4)), 5)
    assert torch.equal(feature_map(tokens, features), image)
    assert feature_map(image, Features("layer4", "fc")) is image


def test_a_network_without_convolutions_has_no_bottleneck() -> None:
    assert bottleneck(nn.Sequential(nn.ReLU(), nn.Sigmoid()), NetworkIO(1, (8, 8), 1, dense=True)) is None
