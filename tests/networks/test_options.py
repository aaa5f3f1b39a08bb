"""Every option of every family, by the structure or the published size that it must give."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from medray.config import ConfigError, load_plugin
from medray.networks.build import build
from medray.networks.layers import SamePad
from medray.types import NetworkIO

IMAGENET = NetworkIO(3, (224, 224), 1000)
SMALL_3D = NetworkIO(1, (32, 32, 32), 2)


def shapes(io: NetworkIO, family: str, **options: object) -> nn.Module:
    """The network without numbers."""
    module = load_plugin("networks", family)
    with torch.device("meta"):
        return module.build(module.Config(**options), io)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def layers(network: nn.Module) -> int:
    """Convolutions and linear layers on the main path."""
    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear)
    aside = ("downsample", "project", "fc1", "fc2", "se_layer")
    named = network.named_modules()
    return sum(isinstance(part, kinds) and not any(word in name for word in aside) for name, part in named)


@pytest.mark.parametrize(
    ("family", "options", "parameters"),
    [
        ("alexnet", {}, 61_100_840),
        ("convnext", {"variant": "tiny"}, 28_589_128),
        ("convnext", {"variant": "large"}, 197_767_336),
        ("densenet", {"depth": 121}, 7_978_856),
        ("densenet", {"depth": 201}, 20_013_928),
        ("densenet", {"depth": 264}, 33_337_704),
        ("efficientnet", {"variant": "b0"}, 5_288_548),
        ("efficientnet", {"variant": "b7"}, 66_347_960),
        ("mobilenet", {"variant": "v2"}, 3_504_872),
        ("mobilenet", {"variant": "v3_small"}, 2_542_856),
        ("mobilenet", {"variant": "v3_large"}, 5_483_032),
        ("resnet", {"depth": 18}, 11_689_512),
        ("resnet", {"depth": 152}, 60_192_808),
        ("seresnet", {"depth": 50}, 28_088_024),
        ("vgg", {"depth": 11, "norm": "none"}, 132_863_336),
        ("vgg", {"depth": 16, "norm": "batch"}, 138_365_992),
        ("vit", {"variant": "tiny"}, 5_717_416),
        ("vit", {"variant": "base"}, 86_567_656),
    ],
)
def test_published_number_of_weights(family: str, options: dict[str, object], parameters: int) -> None:
    assert count(shapes(IMAGENET, family, **options)) == parameters


def test_lenet_is_lenet_5() -> None:
    assert count(shapes(NetworkIO(1, (28, 28), 10), "lenet")) == 61_706


@pytest.mark.parametrize(
    ("family", "depths"),
    [
        ("resnet", (10, 18, 34, 50, 101, 152)),
        ("densenet", (121, 169, 201)),
        ("vgg", (11, 13, 16, 19)),
        ("seresnet", (50, 101, 152)),
    ],
)
def test_depth_is_the_number_of_layers(family: str, depths: tuple[int, ...]) -> None:
    assert [layers(shapes(IMAGENET, family, depth=depth)) for depth in depths] == list(depths)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "depths"),
    [
        ("resnet", (10, 18, 34, 50, 101, 152)),
        ("densenet", (121, 169, 201)),
        ("seresnet", (50, 101, 152)),
    ],
)
def test_depth_is_the_number_of_layers_3d(family: str, depths: tuple[int, ...]) -> None:
    assert [layers(shapes(SMALL_3D, family, depth=depth)) for depth in depths] == list(depths)


@pytest.mark.parametrize("io", [IMAGENET, pytest.param(SMALL_3D, marks=pytest.mark.slow)])
def test_densenet_264_has_the_blocks_of_the_paper(io: NetworkIO) -> None:
    """Its table gives 6, 12, 64 and 48 pairs of convolutions, three transitions, a stem and a head: 265 layers."""
    assert layers(shapes(io, "densenet", depth=264)) == 2 * (6 + 12 + 64 + 48) + 5


@pytest.mark.parametrize(
    ("family", "variants", "io"),
    [
        ("efficientnet", "b0 b1 b2 b3 b4 b5 b6 b7", IMAGENET),
        ("convnext", "tiny small base large", IMAGENET),
        ("vit", "tiny small base", IMAGENET),
        ("vit", "tiny small base", SMALL_3D),
        pytest.param("efficientnet", "b0 b3 b7", SMALL_3D, marks=pytest.mark.slow),
    ],
)
def test_variants_grow(family: str, variants: str, io: NetworkIO) -> None:
    sizes = [count(shapes(io, family, variant=variant)) for variant in variants.split()]
    assert all(small < large for small, large in pairwise(sizes))


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_small_stem_keeps_the_grid(size: tuple[int, ...]) -> None:
    io = NetworkIO(2, size, 3)
    seen = {}
    for stem in ("default", "small"):
        network = shapes(io, "resnet", depth=10, stem=stem)
        network.get_submodule("layer1").register_forward_pre_hook(
            lambda _, args, stem=stem: seen.update({stem: tuple(args[0].shape[2:])})
        )
        assert network(torch.empty(2, 2, *size, device="meta")).shape == (2, 3)
    assert seen == {"default": tuple(edge // 4 for edge in size), "small": size}


def test_3d_shortcuts_let_the_gradient_pass() -> None:
    network = shapes(SMALL_3D, "resnet", depth=18)
    for stage in (2, 3, 4):
        assert isinstance(network.get_submodule(f"layer{stage}.0.downsample.0"), nn.Conv3d)


@pytest.mark.parametrize(
    ("norm", "kinds"),
    [
        ("batch", (nn.BatchNorm2d, nn.BatchNorm3d)),
        ("instance", (nn.InstanceNorm2d, nn.InstanceNorm3d)),
        ("group", (nn.GroupNorm, nn.GroupNorm)),
        ("none", (nn.Identity, nn.Identity)),
    ],
)
def test_plain_widths_and_norm(norm: str, kinds: tuple[type[nn.Module], type[nn.Module]]) -> None:
    cfg = load_plugin("networks", "plain").Config(widths=(4, 12), norm=norm)
    for kind, size in zip(kinds, [(8, 8), (8, 8, 8)], strict=True):
        network = build(cfg, NetworkIO(1, size, 2), seed=0).network
        assert network(torch.randn(2, 1, *size)).shape == (2, 2)
        convs = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)]
        assert [conv.out_channels for conv in convs] == [4, 12]
        assert sum(isinstance(part, kind) for part in network.modules()) == (0 if norm == "none" else 2)


def test_vit_is_torchvisions() -> None:
    io = NetworkIO(3, (16, 16), 2)
    own = build(load_plugin("networks", "vit").Config(patch=8, init="xavier"), io, seed=0).network.eval()
    other = VisionTransformer(16, 8, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=2).eval()
    other.load_state_dict(own.state_dict())
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(own(images), other(images))


@pytest.mark.parametrize("size", [(16, 24), (8, 16, 24)])
def test_vit_takes_oblong_grids(size: tuple[int, ...]) -> None:
    network = shapes(NetworkIO(1, size, 2), "vit", patch=8)
    assert network(torch.empty(2, 1, *size, device="meta")).shape == (2, 2)


def test_patches_must_tile_the_grid() -> None:
    with pytest.raises(ConfigError, match=r"patch: 16 does not divide the grid \(28, 42\); what does: 1, 2, 7, 14"):
        shapes(NetworkIO(1, (28, 42), 2), "vit")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8, 8), (33, 48, 17)])
def test_efficientnet_takes_any_3d_grid(size: tuple[int, ...]) -> None:
    network = shapes(NetworkIO(1, size, 2), "efficientnet")
    assert network(torch.empty(2, 1, *size, device="meta")).shape == (2, 2)


@pytest.mark.parametrize(("size", "stride"), [(7, 1), (7, 2), (8, 2), (1, 2), (2, 2)])
def test_same_padding(size: int, stride: int) -> None:
    image = torch.ones(1, 1, size, 9)
    padded = SamePad((3, 5), (stride, 1))(image)
    out = nn.functional.conv2d(padded, torch.ones(1, 1, 3, 5), stride=(stride, 1))
    assert out.shape[2:] == (-(-size // stride), 9)
    assert padded.sum() == image.sum()


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        ("lenet", (11, 28), "at least 12 voxels"),
        ("alexnet", (32, 32), "alexnet cannot take a grid of 32x32"),
        ("densenet", (16, 16), "densenet cannot take a grid of 16x16"),
        ("plain", (7, 7, 7), "plain cannot take a grid of 7x7x7"),
    ],
)
def test_grid_too_small_is_refused(family: str, size: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(load_plugin("networks", family).Config(), NetworkIO(1, size, 2), seed=0)


@pytest.mark.parametrize(
    "family", ["alexnet", "densenet", "resnet", "vit", pytest.param("vgg", marks=pytest.mark.slow)]
)
def test_first_convolution_of_gray_networks_has_the_familys_scale(family: str) -> None:
    options = {"vgg": {"depth": 11}, "resnet": {"depth": 10}}.get(family, {})
    module = load_plugin("networks", family)
    stds = {}
    for channels in (1, 3):
        torch.manual_seed(0)
        network = module.build(module.Config(**options), NetworkIO(channels, (64, 64), 2))
        conv = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
        assert conv.weight.shape[1] == channels
        stds[channels] = float(conv.weight.detach().std())
    ratio = 3**0.5 if family in ("alexnet", "densenet", "vit") else 1.0
    assert stds[1] / stds[3] == pytest.approx(ratio, rel=0.06)
