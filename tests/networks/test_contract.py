"""What every file in medray/networks that defines a Config keeps to."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call

from medray.config import ConfigError, load_plugin, plugins
from medray.networks.build import Built, build
from medray.networks.layers import Head
from medray.sections.base import NetworkSection
from medray.types import NetworkIO

ALL = plugins("networks")
FAMILIES = [family for family in ALL if not getattr(load_plugin("networks", family), "DENSE", False)]
"""Those that answer per case; test_dense_networks.py has the others."""
SMALLEST = {"resnet": {"depth": 10}, "vgg": {"depth": 11}}
SIZES = {2: (32, 32), 3: (16, 16, 32)}
LARGER = {("alexnet", 2): (64, 64), ("densenet", 3): (32, 32, 32)}
SLOW = {("alexnet", 2), ("vgg", 2), ("densenet", 3), ("efficientnet", 3), ("seresnet", 3)}
PAIRS = [(family, dims) for family in FAMILIES for dims in (2, 3)]
ABLE = [
    pytest.param((family, dims), marks=[pytest.mark.slow] if (family, dims) in SLOW else [], id=f"{family}-{dims}d")
    for family, dims in PAIRS
    if dims in load_plugin("networks", family).SPATIAL_DIMS
]
UNABLE = [pair for pair in PAIRS if pair[1] not in load_plugin("networks", pair[0]).SPATIAL_DIMS]


@dataclass(frozen=True)
class Subject:
    cfg: NetworkSection
    io: NetworkIO
    built: Built

    @property
    def network(self) -> nn.Module:
        return self.built.network

    def images(self, batch: int) -> torch.Tensor:
        return torch.randn(batch, self.io.in_channels, *self.io.size, generator=torch.Generator().manual_seed(0))


def grid(family: str, dims: int) -> tuple[int, ...]:
    return LARGER.get((family, dims), SIZES[dims])


def config(family: str, **options: object) -> NetworkSection:
    return load_plugin("networks", family).Config(**SMALLEST.get(family, {}), **options)


@pytest.fixture(scope="module", params=ABLE)
def subject(request: pytest.FixtureRequest) -> Subject:
    family, dims = request.param
    cfg, io = config(family, dropout=0.25), NetworkIO(1, grid(family, dims), 3)
    return Subject(cfg, io, build(cfg, io, seed=0))


def test_shape_and_finite_gradients(subject: Subject) -> None:
    logits = subject.network(subject.images(2))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    for name, parameter in subject.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_any_number_of_channels(subject: Subject) -> None:
    module = load_plugin("networks", subject.cfg.name)
    for channels in (2, 3):
        with torch.device("meta"):
            network = module.build(subject.cfg, NetworkIO(channels, subject.io.size, 1))
            assert network(torch.empty(2, channels, *subject.io.size)).shape == (2, 1)


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


def test_one_dropout_before_the_last_linear_layer(subject: Subject) -> None:
    head = [part for part in subject.network.modules() if isinstance(part, nn.Linear)][-1]
    assert isinstance(head, Head)
    active = [part for part in subject.network.modules() if isinstance(part, nn.Dropout) and part.p > 0]
    assert active == [head.dropout]
    assert head.dropout.p == 0.25


def test_weights_come_back_from_safetensors(subject: Subject, tmp_path: Path) -> None:
    state = subject.network.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    again = build(subject.cfg.model_copy(update={"weights": tmp_path}), subject.io, seed=2)
    assert set(again.loaded) == set(state)
    assert (again.unfit, again.missing) == ((), ())
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.network.state_dict().items())


def test_a_case_does_not_depend_on_its_batch(subject: Subject) -> None:
    # In float64, so that rounding does not hide behind the small logits of an untrained network.
    network, images = subject.network.double().eval(), subject.images(2).double()
    name, head = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Linear)][-1]
    weight = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        both, first, second = (
            functional_call(network, {f"{name}.weight": weight}, batch) for batch in (images, images[:1], images[1:])
        )
    network.float().train()
    torch.testing.assert_close(both, torch.cat([first, second]), rtol=1e-5, atol=1e-9)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("family", "dims"), UNABLE)
def test_missing_version_is_refused_with_alternatives(family: str, dims: int) -> None:
    with pytest.raises(ConfigError, match=rf"'{family}' has no {dims}D version; families that do: .*\bresnet\b"):
        load_plugin("networks", family).build(config(family), NetworkIO(1, grid(family, dims), 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_other_numbers_of_axes_are_refused(family: str) -> None:
    with pytest.raises(ConfigError, match="has no 1D version; families that do: none"):
        build(config(family), NetworkIO(1, (64,), 3), seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_task_is_refused_with_alternatives(family: str) -> None:
    match = rf"{family} answers per case, the task needs an answer per voxel; families: .*\bunet\b"
    with pytest.raises(ConfigError, match=match) as caught:
        build(config(family), NetworkIO(1, (32, 32), 3, dense=True), seed=0)
    assert not set(FAMILIES) & set(str(caught.value).partition("families: ")[2].split(", "))


@pytest.mark.parametrize("family", [family for family in FAMILIES if 2 in load_plugin("networks", family).SPATIAL_DIMS])
def test_2d_never_imports_monai(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {"monai", *(name for name in sys.modules if name.startswith("monai."))}:
        monkeypatch.setitem(sys.modules, name, None)
    with torch.device("meta"):
        load_plugin("networks", family).build(config(family), NetworkIO(1, grid(family, 2), 3))


def test_settings_are_read_without_torch() -> None:
    code = (
        "import sys; from medray.config import load_plugin, plugins\n"
        "for name in plugins('networks'): load_plugin('networks', name).Config()\n"
        "print(sorted({'numpy', 'torch', 'torchvision', 'monai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
