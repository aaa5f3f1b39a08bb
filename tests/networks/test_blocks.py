"""Parts of dense families, against the networks of MONAI and torchvision that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.vnet import InputTransition
from pydantic import ValidationError
from safetensors.torch import save_file
from torch.nn import functional
from torchvision.models.segmentation import fcn_resnet50

from medray.config import ConfigError, load_plugin
from medray.networks.blocks import AnyInput
from medray.networks.build import build
from medray.networks.layers import Divisible
from medray.types import NetworkIO

FILTERS = (4, 8, 12, 16)
ELU = ("elu", {"inplace": True})


def dynunet(io: NetworkIO, **options: object) -> Divisible:
    cfg = load_plugin("networks", "dynunet").Config(**{"filters": FILTERS, **options})
    network = build(cfg, io, seed=0).network
    assert isinstance(network, Divisible)
    return network


@pytest.mark.parametrize(
    ("strides", "kernels", "residual", "norm", "settings"),
    [
        (((1,), (2,), (2,), (2,)), None, False, "instance", ("INSTANCE", {"affine": True})),
        (((1, 1, 1), (2, 2, 1), (2, 2, 2), (1, 2, 1)), ((3, 3, 1), (3,), (3,), (1, 3, 3)), True, "batch", "BATCH"),
        (((1,), (2,), (1,), (2,)), None, False, "group", ("GROUP", {"num_groups": 4})),
    ],
)
def test_dynunet_is_monais(
    strides: tuple[tuple[int, ...], ...],
    kernels: tuple[tuple[int, ...], ...] | None,
    residual: bool,
    norm: str,
    settings: object,
) -> None:
    """Same weights, same answer, and the coarse heads are those that MONAI stretches."""
    io = NetworkIO(2, (16, 16, 16), 3, dense=True)
    options = {"strides": strides, "kernels": kernels, "residual": residual, "norm": norm, "deep_supervision": 2}
    own = dynunet(io, **options)
    every = [level * 3 if len(level) == 1 else level for level in strides]
    edges = [level * 3 if len(level) == 1 else level for level in kernels or ((3,),) * 4]
    other = DynUNet(
        3,
        2,
        3,
        edges,
        every,
        every[1:],
        FILTERS,
        None,
        settings,
        deep_supervision=True,
        deep_supr_num=2,
        res_block=residual,
    )
    missing, unexpected = other.load_state_dict(own.network.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith("skip_layers.") for name in missing)
    images = torch.randn(2, 2, *io.size)
    heads, stretched = own(images), other(images).unbind(1)
    assert [head.shape[2:] for head in heads] == [
        tuple(edge // stride for edge, stride in zip(io.size, step, strict=True))
        for step in [every[0], every[1], tuple(a * b for a, b in zip(every[1], every[2], strict=True))]
    ]
    for head, expected in zip(heads, stretched, strict=True):
        torch.testing.assert_close(functional.interpolate(head, io.size), expected)
    with torch.no_grad():
        torch.testing.assert_close(own.eval()(images), other.eval()(images))


def test_dynunet_draws_the_weights_that_monai_draws() -> None:
    own = dynunet(NetworkIO(1, (16, 16), 2, dense=True), filters=(64, 64, 64), strides=((1,), (2,), (2,)))
    for name in ("network.bottleneck.conv2.conv.weight", "network.upsamples.0.conv_block.conv2.conv.weight"):
        expected = (2 / (1 + 0.01**2) / (64 * 9)) ** 0.5
        assert float(own.get_parameter(name).detach().std()) == pytest.approx(expected, rel=0.03)


def test_dynunet_takes_weights_of_monai_by_name(tmp_path: Path) -> None:
    other = DynUNet(2, 1, 3, [3] * 4, [1, 2, 2, 2], [2, 2, 2], FILTERS, None, ("INSTANCE", {"affine": True}))
    state = {name: tensor.clone() for name, tensor in other.state_dict().items() if not name.startswith("skip_layers.")}
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "weights.safetensors")
    cfg = load_plugin("networks", "dynunet").Config(filters=FILTERS, strides=((1,), (2,), (2,), (2,)), weights=tmp_path)
    built = build(cfg, NetworkIO(1, (16, 16), 3, dense=True), seed=0)
    assert (built.unfit, built.missing) == ((), ())
    assert set(built.loaded) == {f"network.{name}" for name in state}
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(built.network.eval()(images), other.eval()(images))


def test_two_levels_are_enough() -> None:
    network = dynunet(NetworkIO(1, (8, 8), 2, dense=True), filters=(4, 8), strides=((1,), (2,)))
    assert network(torch.randn(1, 1, 8, 8)).shape == (1, 2, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": ((1,), (2,))}, "strides has 2 levels, filters has 4"),
        ({"kernels": ((3,),)}, "kernels has 1 levels, filters has 4"),
        ({"strides": ((2,), (2,), (2,), (2,))}, r"strides starts with \(2,\)"),
        ({"kernels": ((3,), (3,), (2,), (3,))}, "kernels must be odd"),
        ({"deep_supervision": 3}, "deep_supervision is at most 2 with 4 levels"),
    ],
)
def test_levels_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        load_plugin("networks", "dynunet").Config(
            **{"filters": FILTERS, "strides": ((1,), (2,), (2,), (2,)), **options}
        )


def test_axes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"network\.strides: \(2, 2, 1\) has 3 axes, the grid has 2"):
        dynunet(NetworkIO(1, (8, 8), 2, dense=True), filters=(4, 8), strides=((1,), (2, 2, 1)))
    for family, options in (("unet", {"strides": (2,)}), ("segresnet", {"blocks_up": (1,)})):
        with pytest.raises(ValidationError, match=next(iter(options))):
            load_plugin("networks", family).Config(**options)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_input_is_monais_where_that_exists(channels: int) -> None:
    own, other = AnyInput(3, channels, 16, ELU), InputTransition(3, channels, 16, ELU)
    other.load_state_dict(own.state_dict())
    images = torch.randn(2, channels, 6, 6, 6)
    torch.testing.assert_close(own(images), other(images))


def test_any_input_repeats_channels_in_turn() -> None:
    own = AnyInput(2, 3, 16, ELU).eval()
    torch.nn.init.zeros_(own.conv_block.conv.weight)
    images = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(own(images), images.repeat(1, 6, 1, 1)[:, :16])


def test_per_pixel_is_torchvisions() -> None:
    own = build(load_plugin("networks", "fcn").Config(), NetworkIO(3, (24, 40), 2, dense=True), seed=0).network.eval()
    with torch.device("meta"):
        other = fcn_resnet50(weights=None, weights_backbone=None, num_classes=2).eval()
    other.load_state_dict(own.state_dict(), assign=True)
    images = torch.randn(1, 3, 24, 40)
    with torch.inference_mode():
        torch.testing.assert_close(own(images), other(images)["out"])
