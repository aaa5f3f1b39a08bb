"""What every family that answers per voxel keeps to."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from medray.config import ConfigError, load_plugin, plugins
from medray.networks.build import build
from medray.sections.base import NetworkSection
from medray.types import NetworkIO

ALL = plugins("networks")
FAMILIES = [family for family in ALL if getattr(load_plugin("networks", family), "DENSE", False)]
PER_CASE = [family for family in ALL if family not in FAMILIES]
SMALLEST = {
    "attentionunet": {"channels": (4, 8, 12)},
    "dynunet": {"filters": (4, 8, 12, 16), "strides": ((1,), (2,), (2,), (1,)), "deep_supervision": 2},
    "flexibleunet": {"decoder": (8, 8, 8, 8, 4)},
    "segresnet": {"filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)},
    "swinunetr": {"features": 12, "depths": (1, 1, 1, 1), "attention_window": 2},
    "unet": {"channels": (4, 8, 12)},
}
SIZES = {2: (32, 48), 3: (16, 16, 32)}
LARGER = {("swinunetr", 3): (32, 32, 64), ("flexibleunet", 3): (32, 32, 64), ("swinunetr", 2): (32, 64)}
SLOW = {("deeplabv3", 2), ("flexibleunet", 3), ("swinunetr", 3), ("vnet", 3)}
ABLE = [
    pytest.param((family, dims), marks=[pytest.mark.slow] if (family, dims) in SLOW else [], id=f"{family}-{dims}d")
    for family in FAMILIES
    for dims in load_plugin("networks", family).SPATIAL_DIMS
]


@dataclass(frozen=True)
class Subject:
    cfg: NetworkSection
    io: NetworkIO
    network: nn.Module
    """In training mode, and left as it is by every test."""

    def images(self, batch: int, shrink: int = 0) -> torch.Tensor:
        size = [edge - shrink for edge in self.io.size]
        return torch.randn(batch, self.io.in_channels, *size, generator=torch.Generator().manual_seed(0))

    def evaluated(self) -> nn.Module:
        return copy.deepcopy(self.network).eval()


def config(family: str, **options: object) -> NetworkSection:
    return load_plugin("networks", family).Config(**{**SMALLEST.get(family, {}), **options})


def grid(family: str, dims: int) -> tuple[int, ...]:
    return LARGER.get((family, dims), SIZES[dims])


def first(answer: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return answer[0] if isinstance(answer, list) else answer


@pytest.fixture(scope="module", params=ABLE)
def subject(request: pytest.FixtureRequest) -> Subject:
    family, dims = request.param
    cfg, io = config(family), NetworkIO(1, grid(family, dims), 3, dense=True)
    return Subject(cfg, io, build(cfg, io, seed=0).network)


def test_shape_and_gradients_of_every_parameter(subject: Subject) -> None:
    network = copy.deepcopy(subject.network)
    answer = network(subject.images(2))
    assert first(answer).shape == (2, 3, *subject.io.size)
    heads = answer if isinstance(answer, list) else [answer]
    torch.stack([head.square().mean() for head in heads]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_any_grid_and_any_number_of_channels(subject: Subject) -> None:
    size = tuple(edge - 3 for edge in subject.io.size)
    for channels in (1, 2, 3):
        io = NetworkIO(channels, size, 1, dense=True)
        with torch.device("meta"):
            network = load_plugin("networks", subject.cfg.name).build(subject.cfg, io)
            assert first(network(torch.empty(2, channels, *size))).shape == (2, 1, *size)


def test_an_odd_grid_is_finite_and_the_same_again(subject: Subject) -> None:
    network, images = subject.evaluated(), subject.images(1, shrink=3)
    with torch.inference_mode():
        logits = network(images)
        assert logits.shape == (1, 3, *images.shape[2:])
        assert logits.isfinite().all()
        assert torch.equal(network(images), logits)


def test_a_case_does_not_depend_on_its_batch(subject: Subject) -> None:
    network, images = subject.evaluated(), subject.images(2)
    with torch.inference_mode():
        both, second = network(images), network(images[1:])
    torch.testing.assert_close(both[1:], second, rtol=1e-3, atol=1e-4 * float(both.abs().max()))
    assert not torch.allclose(both[0], both[1])


def test_bfloat16_runs_and_is_finite(subject: Subject) -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        logits = subject.evaluated()(subject.images(1))
    assert logits.isfinite().all()


def test_seed_decides_the_weights(subject: Subject) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    own = dict(subject.network.named_parameters())
    same = dict(build(subject.cfg, subject.io, seed=0).network.named_parameters())
    assert all(torch.equal(same[name], own[name]) for name in own)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = dict(build(subject.cfg, subject.io, seed=1).network.named_parameters())
    drawn = [name for name, parameter in own.items() if parameter.ndim > 2 and name.endswith("weight")]
    assert drawn
    assert not any(torch.equal(other[name], own[name]) for name in drawn)


def test_weights_come_back_from_safetensors(subject: Subject, tmp_path: Path) -> None:
    state = subject.network.state_dict()
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, tmp_path / "weights.safetensors")
    # No two names share a tensor: save_file would refuse them without the clones.
    save_file(state, tmp_path / "again.safetensors")
    again = build(subject.cfg.model_copy(update={"weights": tmp_path}), subject.io, seed=2)
    assert set(again.loaded) == set(state)
    assert (again.unfit, again.missing) == ((), ())
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.network.state_dict().items())
    again.network.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)


def test_dropout_is_where_the_setting_says_or_nowhere(subject: Subject) -> None:
    kinds = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)
    assert not [part for part in subject.network.modules() if isinstance(part, kinds) and part.p > 0]
    cfg = subject.cfg.model_copy(update={"dropout": 0.25})
    with torch.device("meta"):
        network = load_plugin("networks", cfg.name).build(cfg, subject.io)
    active = {part.p for part in network.modules() if isinstance(part, kinds) and part.p > 0}
    assert active == {0.25}
    assert set(network.state_dict()) == set(subject.network.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_task_per_case_is_refused_with_alternatives(family: str) -> None:
    match = rf"{family} answers per voxel, the task needs an answer per case; families: .*\bresnet\b"
    with pytest.raises(ConfigError, match=match) as caught:
        build(config(family), NetworkIO(1, grid(family, 2), 3), seed=0)
    assert set(str(caught.value).partition("families: ")[2].split(", ")) <= set(PER_CASE)


@pytest.mark.parametrize("family", ["deeplabv3", "fcn"])
def test_missing_version_is_refused_with_dense_alternatives(family: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{family}' has no 3D version; families that do: .*\bunet\b") as caught:
        build(config(family), NetworkIO(1, (16, 16, 16), 3, dense=True), seed=0)
    assert not {"resnet", "fcn"} & set(str(caught.value).partition("that do: ")[2].split(", "))


def test_too_small_a_window_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"swinunetr cannot take a grid of 32x32 .*take a larger window\.size"):
        build(config("swinunetr"), NetworkIO(1, (32, 32), 3, dense=True), seed=0)
