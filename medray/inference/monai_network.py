"""A network said as a class of MONAI or torchvision with plain arguments, so that it runs without medray.

The arguments mirror what medray/networks builds; `filled` loads strictly and the export compares the answers, so an
argument that drifts apart is refused and never written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import gcd
from typing import Any

from torch import Tensor, nn

from medray.bundle import BundleError
from medray.config import ConfigError
from medray.networks import densenet, dynunet, resnet, segresnet, seresnet, vnet
from medray.networks.layers import Divisible
from medray.sections.base import NetworkSection
from medray.types import NetworkIO

NETS = "monai.networks.nets"
COLOURS = 3
SUPERVISED = "deep_supervision_heads."
"""Answers that serve training alone."""
TORCHVISION_DENSENET = ((r"(denselayer\d+)\.", r"\1.layers."), (r"^classifier\.", "class_layers.out."))
"""From torchvision's names of weights to MONAI's, whose network is the same."""

Definition = dict[str, Any]


def definition(cfg: NetworkSection, network: nn.Module, io: NetworkIO) -> Definition:
    """The class and its arguments, as a MONAI config says them.

    Raises:
        ConfigError: the family, or this grid, has no such class; naming the families that have.
    """
    make = FAMILIES.get(cfg.name)
    if make is None:
        able = ", ".join(sorted(FAMILIES))
        raise ConfigError(
            [f"network.name: no class of MONAI or torchvision is '{cfg.name}'; families that are: {able}"]
        )
    if isinstance(network, Divisible) and any(e % f for e, f in zip(io.size, network.factor, strict=True)):
        grid, factor = ("x".join(map(str, edges)) for edges in (io.size, network.factor))
        raise ConfigError([f"window.size: MONAI's {cfg.name} does not pad a window of {grid} to multiples of {factor}"])
    return make(cfg, io)


def filled(plain: nn.Module, network: nn.Module) -> dict[str, Tensor]:
    """The state of `plain` once it has the weights of `network`.

    Raises:
        BundleError: it has others.
    """
    state = {
        name.removeprefix("network.") if isinstance(network, Divisible) else name: tensor
        for name, tensor in network.state_dict().items()
    }
    state = {name: tensor for name, tensor in state.items() if not name.startswith(SUPERVISED)}
    own = plain.state_dict()
    if not state.keys() <= own.keys():
        state = {_renamed(name): tensor for name, tensor in state.items()}
    missing, unexpected = plain.load_state_dict(state, strict=False)
    # MONAI's DynUNet lists its weights twice; they are the same tensors.
    there = {own[name].data_ptr() for name in state if name in own}
    lost = [name for name in missing if own[name].data_ptr() not in there]
    if lost or unexpected:
        raise BundleError(
            f"{type(plain).__name__} has other weights than the model: {', '.join((lost + unexpected)[:3])}"
        )
    return plain.state_dict()


def _renamed(name: str) -> str:
    for pattern, replacement in TORCHVISION_DENSENET:
        name = re.sub(pattern, replacement, name)
    return name


def _resnet(cfg: Any, io: NetworkIO) -> Definition:
    block, layers = resnet.BLOCKS[cfg.depth]
    small = cfg.stem == "small"
    return {
        "_target_": f"{NETS}.ResNet",
        "block": block,
        "layers": layers,
        "block_inplanes": [64, 128, 256, 512],
        "spatial_dims": io.spatial_dims,
        "n_input_channels": io.in_channels,
        "conv1_t_size": 3 if small else 7,
        "conv1_t_stride": 1 if small else 2,
        "no_max_pool": small,
        "bias_downsample": False,
        "num_classes": io.outputs,
    }


def _densenet(cfg: Any, io: NetworkIO) -> Definition:
    blocks = list(densenet.BLOCKS[cfg.depth])
    return {"_target_": f"{NETS}.DenseNet", **_grid(io), "block_config": blocks}


def _seresnet(cfg: Any, io: NetworkIO) -> Definition:
    if io.spatial_dims != 3:
        raise ConfigError(["network.name: no class of MONAI or torchvision is seresnet in 2D"])
    return {
        "_target_": f"{NETS}.SENet",
        "spatial_dims": 3,
        "in_channels": io.in_channels,
        "block": "se_resnet_bottleneck",
        "layers": seresnet.LAYERS[cfg.depth],
        "groups": 1,
        "reduction": seresnet.REDUCTION,
        "dropout_prob": None,
        "inplanes": 64,
        "downsample_kernel_size": 1,
        "input_3x3": False,
        "num_classes": io.outputs,
    }


def _unet(cfg: Any, io: NetworkIO) -> Definition:
    return {
        "_target_": f"{NETS}.UNet",
        **_grid(io),
        "channels": list(cfg.channels),
        "strides": list(cfg.strides or (2,) * (len(cfg.channels) - 1)),
        "num_res_units": cfg.residual_units,
        "norm": cfg.norm,
        "dropout": cfg.dropout,
    }


def _attentionunet(cfg: Any, io: NetworkIO) -> Definition:
    strides = [2] * (len(cfg.channels) - 1)
    return {"_target_": f"{NETS}.AttentionUnet", **_grid(io), "channels": list(cfg.channels), "strides": strides}


def _dynunet(cfg: Any, io: NetworkIO) -> Definition:
    if len(cfg.filters) < 3:
        raise ConfigError([f"network.filters: MONAI's DynUNet has 3 levels or more, this network {len(cfg.filters)}"])
    kernels, strides = (
        [list(level) * (io.spatial_dims if len(level) == 1 else 1) for level in levels]
        for levels in (cfg.kernels or ((3,),) * len(cfg.filters), cfg.strides)
    )
    settings: Definition = {"affine": True}
    if cfg.norm == "group":
        settings["num_groups"] = gcd(8, *cfg.filters)
    return {
        "_target_": f"{NETS}.DynUNet",
        **_grid(io),
        "kernel_size": kernels,
        "strides": strides,
        "upsample_kernel_size": strides[1:],
        "filters": list(cfg.filters),
        "norm_name": [dynunet.NORMS[cfg.norm], settings],
        "res_block": cfg.residual,
    }


def _segresnet(cfg: Any, io: NetworkIO) -> Definition:
    return {
        "_target_": f"{NETS}.SegResNet",
        **_grid(io),
        "init_filters": cfg.filters,
        "norm": ["GROUP", {"num_groups": segresnet.GROUPS}],
        "blocks_down": list(cfg.blocks_down),
        "blocks_up": list(cfg.blocks_up),
    }


def _swinunetr(cfg: Any, io: NetworkIO) -> Definition:
    return {
        "_target_": f"{NETS}.SwinUNETR",
        **_grid(io),
        "feature_size": cfg.features,
        "depths": list(cfg.depths),
        "window_size": cfg.attention_window,
    }


def _vnet(_: Any, io: NetworkIO) -> Definition:
    if vnet.WIDTH % io.in_channels:
        raise ConfigError([f"network.name: MONAI's VNet takes 1, 2, 4, 8 or 16 channels, this one {io.in_channels}"])
    return {"_target_": f"{NETS}.VNet", **_grid(io), "act": ["elu", {"inplace": True}]}


def _grid(io: NetworkIO) -> Definition:
    return {"spatial_dims": io.spatial_dims, "in_channels": io.in_channels, "out_channels": io.outputs}


def _torchvision(name: Callable[[Any], str]) -> Callable[[Any, NetworkIO], Definition]:
    """For a family that medray takes from torchvision, where the images are colour: other channels are medray's own."""

    def make(cfg: Any, io: NetworkIO) -> Definition:
        if (io.in_channels, io.spatial_dims) != (COLOURS, 2):
            have = f"{io.in_channels} in {io.spatial_dims}D"
            raise ConfigError([f"network.name: torchvision's {cfg.name} takes 3 channels in 2D, this one {have}"])
        return {"_target_": f"torchvision.models.{name(cfg)}", "num_classes": io.outputs}

    return make


FAMILIES: Mapping[str, Callable[[Any, NetworkIO], Definition]] = {
    "alexnet": _torchvision(lambda _: "alexnet"),
    "attentionunet": _attentionunet,
    "convnext": _torchvision(lambda cfg: f"convnext_{cfg.variant}"),
    "densenet": _densenet,
    "dynunet": _dynunet,
    "efficientnet": _torchvision(lambda cfg: f"efficientnet_{cfg.variant}"),
    "mobilenet": _torchvision(lambda cfg: f"mobilenet_{cfg.variant}"),
    "resnet": _resnet,
    "segresnet": _segresnet,
    "seresnet": _seresnet,
    "swinunetr": _swinunetr,
    "unet": _unet,
    "vgg": _torchvision(lambda cfg: f"vgg{cfg.depth}" + ("_bn" if cfg.norm == "batch" else "")),
    "vnet": _vnet,
}
