"""From a family's settings to a network: initial weights from a seed, weights from a file, groups for the optimiser."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from medray.config import ConfigError, load_plugin
from medray.networks.layers import families, run_shapes
from medray.networks.quick import import_torchvision
from medray.remote import local
from medray.sections.base import NetworkSection
from medray.types import InputError, NetworkIO

BUNDLE_WEIGHTS = "weights.safetensors"
BUNDLE_HINT = "give a .safetensors file or a bundle"
CONVERT_HINT = "convert it with safetensors.torch.save_file(state_dict, path)"
PICKLES = (b"PK", b"\x80", b"\x1f\x8b")
"""How files of torch.save (a ZIP), of pickle, and their gzip begin."""
SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A network and what became of the file of weights that it started from."""

    network: nn.Module
    """(B, C, *S) -> (B, K) logits, dense ones (B, K, *S), on the CPU, in training mode. With deep supervision a list in
    training mode: (B, K, *S), then coarser."""
    loaded: tuple[str, ...] = ()
    """Parameters and buffers that the file filled."""
    unfit: tuple[str, ...] = ()
    """A line for every tensor of the file that was left out: 'fc.weight: file (1000, 512), network (3, 512)'."""
    missing: tuple[str, ...] = ()
    """Parameters and buffers that kept their initial values because the file does not name them."""


def build(cfg: NetworkSection, io: NetworkIO, seed: int, known: bool = False) -> Built:
    """The network that `cfg` describes; its initial weights depend on `seed` alone, and no global generator moves.

    One that is `known` to take its grid, as a bundle's has, is not tried: that would import torch's compiler.

    Raises:
        ConfigError: where the family cannot take such a grid, or `cfg.weights` does not fit.
    """
    if cfg.freeze and cfg.weights is None:
        raise ConfigError(["network.freeze: needs network.weights; without them nothing would be learned"])
    # Only the CPU's generator is forked and seeded: weights are made there, and torch.manual_seed
    # would seed every accelerator for good.
    import_torchvision()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        family = load_plugin("networks", cfg.name)
        _check_kind(cfg.name, io, getattr(family, "DENSE", False))
        network: nn.Module = family.build(cfg, io)
        _initialise(network, cfg.init)
        if not known:
            _check_grid(network, cfg.name, io)
    if cfg.weights is None:
        return Built(network)
    built = _load(network, local(cfg.weights))
    if cfg.freeze:
        _freeze(built)
    return built


def train_mode(network: nn.Module) -> None:
    """Training mode, but for frozen normalisation: it keeps its running statistics as its weights."""
    network.train()
    for part in network.modules():
        own = list(part.parameters(recurse=False))
        if isinstance(part, _NormBase) and own and not any(parameter.requires_grad for parameter in own):
            part.eval()


def parameter_groups(
    network: nn.Module, loaded: Collection[str], lr: float, weight_decay: float, backbone_factor: float
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser: `params`, `lr`, `weight_decay`, `name`; in a fixed order, none of them empty.

    Biases and vectors (scales of normalisation) do not decay (He 2019, 10.1109/CVPR.2019.00065, section 3.1);
    parameters named in `loaded` learn with lr * backbone_factor; frozen ones are left out.
    """
    names = set(loaded)
    groups: dict[tuple[bool, bool], dict[str, Any]] = {
        (old, decays): {
            "params": [],
            "lr": lr * backbone_factor if old else lr,
            "weight_decay": weight_decay if decays else 0.0,
            "name": ("loaded" if old else "new") + ("" if decays else "_no_decay"),
        }
        for old in (True, False)
        for decays in (True, False)
    }
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith("bias")
            groups[name in names, decays]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _initialise(network: nn.Module, init: str) -> None:
    """Fill the weights of convolutions and linear layers by name of the method, their biases with zero."""
    if init == "default":
        return
    for part in network.modules():
        if not isinstance(part, _ConvNd | nn.Linear):
            continue
        if init == "xavier":
            nn.init.xavier_uniform_(part.weight)
        else:
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def _check_kind(family: str, io: NetworkIO, dense: bool) -> None:
    """Refuse a network that answers per case where voxels are asked for, and the reverse."""
    if dense != io.dense:
        gives, needs = ("per voxel", "per case") if dense else ("per case", "per voxel")
        fit = ", ".join(families(io)) or "none"
        raise ConfigError(
            [f"network.name: {family} answers {gives}, the task needs an answer {needs}; families: {fit}"]
        )


def _check_grid(network: nn.Module, family: str, io: NetworkIO) -> None:
    """Run shapes without numbers through the network, so that a grid too small for it is found here."""
    grid = "x".join(map(str, io.size))
    try:
        logits = run_shapes(network, io, io.size)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        hint = f"take a larger {'window.size' if io.dense else 'preprocess.size'} or another network"
        raise ConfigError([f"network.name: {family} cannot take a grid of {grid} ({reason}); {hint}"]) from error
    first = logits[0] if isinstance(logits, list) else logits
    expected = (2, io.outputs, *io.size) if io.dense else (2, io.outputs)
    if first.shape != expected:
        got = f"{tuple(first.shape[1:])} per case, expected {expected[1:]}"
        raise ConfigError([f"network.name: {family} gives {got}"])


def _load(network: nn.Module, path: Path) -> Built:
    """Fill the network by name and shape from a file or a bundle."""
    state = network.state_dict()
    tensors = {_own_name(name, state): tensor for name, tensor in _read(path).items()}
    unfit: list[str] = []
    loaded: list[str] = []
    for name, tensor in tensors.items():
        if name not in state:
            unfit.append(f"{name}: file {tuple(tensor.shape)}, network has no such tensor")
        elif tensor.shape != state[name].shape:
            unfit.append(f"{name}: file {tuple(tensor.shape)}, network {tuple(state[name].shape)}")
        elif tensor.is_floating_point() != state[name].is_floating_point():
            unfit.append(f"{name}: file {tensor.dtype}, network {state[name].dtype}")
        else:
            state[name].copy_(tensor)
            loaded.append(name)
    # Counters of BatchNorm are scalars and fit everywhere; only a parameter shows that the file is of this family.
    if not {name for name, _ in network.named_parameters()} & set(loaded):
        shown = "; ".join(unfit[:SHOWN]) + (f"; and {len(unfit) - SHOWN} more" if len(unfit) > SHOWN else "")
        raise ConfigError([f"network.weights: nothing in '{path}' fits this network: {shown or 'it is empty'}"])
    return Built(network, tuple(loaded), tuple(unfit), tuple(name for name in state if name not in tensors))


def _own_name(name: str, state: Collection[str]) -> str:
    """A file's name as this network says it: without the wrapper of DDP, and within `layers.Divisible`."""
    name = name.removeprefix("module.")
    return f"network.{name}" if name not in state and f"network.{name}" in state else name


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of the one in a bundle.

    Raises InputError: unsafe_model (a pickle in any wrapping, or an MLflow model: loading it would run its code),
    corrupt_model.
    """
    file = path / BUNDLE_WEIGHTS if path.is_dir() else path
    if (path / "MLmodel").is_file() and not file.is_file():
        raise InputError("unsafe_model", "network.weights is an MLflow model, which may run its own code", BUNDLE_HINT)
    if not file.is_file():
        raise ConfigError([f"network.weights: '{file}' does not exist; {BUNDLE_HINT}"])
    try:
        tensors: dict[str, torch.Tensor] = load_file(file)
    except SafetensorError as error:
        with file.open("rb") as stream:
            pickled = stream.read(2).startswith(PICKLES)
        if pickled:
            fact = "network.weights is a pickle, which runs code when it is loaded"
            raise InputError("unsafe_model", fact, CONVERT_HINT) from None
        fact = f"network.weights is not a safetensors file ({error})"
        raise InputError("corrupt_model", fact, CONVERT_HINT) from None
    return tensors


def _freeze(built: Built) -> None:
    """Stop the gradient of every parameter that the file filled."""
    loaded = set(built.loaded)
    parameters = dict(built.network.named_parameters())
    if loaded.issuperset(parameters):
        raise ConfigError(["network.freeze: network.weights fill every parameter, so nothing would be left to train"])
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in loaded)
