"""Initial weights, weights from files, freezing, and the optimiser's groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medray.config import ConfigError, load_plugin
from medray.networks.build import Built, build, parameter_groups, train_mode
from medray.sections.base import NetworkSection
from medray.types import InputError, NetworkIO

IO = NetworkIO(1, (8, 8), 2)


def plain(**options: object) -> NetworkSection:
    return load_plugin("networks", "plain").Config(**{"widths": (4, 8), **options})


@pytest.fixture
def donor() -> Built:
    """A trained network with three classes, so that its head does not fit."""
    built = build(plain(), NetworkIO(1, (8, 8), 3), seed=5)
    built.network(torch.randn(4, 1, 8, 8))
    return built


@pytest.fixture
def file(donor: Built, tmp_path: Path) -> Path:
    path = tmp_path / "donor.safetensors"
    save_file(donor.network.state_dict(), path)
    return path


@pytest.mark.parametrize("size", [(8, 8), (8, 8, 8)])
@pytest.mark.parametrize("init", ["xavier", "he"])
def test_init_statistics(init: str, size: tuple[int, ...]) -> None:
    io = NetworkIO(1, size, 2)
    network = build(plain(widths=(64, 64), norm="none", init=init), io, seed=0).network
    conv = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)][-1]
    fan = 64 * 3 ** len(size)
    expected = (2 / (fan + fan)) ** 0.5 if init == "xavier" else (2 / fan) ** 0.5
    assert float(conv.weight.detach().std()) == pytest.approx(expected, rel=0.02)
    bound = 3**0.5 * expected if init == "xavier" else torch.inf
    assert float(conv.weight.detach().abs().max()) <= bound
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d | nn.Linear) and part.bias is not None:
            assert not part.bias.any()


def test_default_init_is_the_familys_own() -> None:
    conv = build(plain(widths=(64, 64)), IO, seed=0).network.get_parameter("4.weight")
    assert float(conv.detach().std()) == pytest.approx((1 / (3 * 64 * 9)) ** 0.5, rel=0.02)


def test_weights_fill_by_name_and_shape(donor: Built, file: Path) -> None:
    built = build(plain(weights=file), IO, seed=0)
    state, given = built.network.state_dict(), donor.network.state_dict()
    assert set(built.unfit) == {"10.weight: file (3, 8), network (2, 8)", "10.bias: file (3,), network (2,)"}
    assert set(built.loaded) == set(given) - {"10.weight", "10.bias"}
    assert built.missing == ()
    assert all(torch.equal(state[name], given[name]) for name in built.loaded)
    fresh = build(plain(), IO, seed=0).network.state_dict()
    assert torch.equal(state["10.weight"], fresh["10.weight"])


def test_weights_of_ddp_and_strange_tensors(donor: Built, tmp_path: Path) -> None:
    given = {f"module.{name}": tensor for name, tensor in donor.network.state_dict().items()}
    given["module.extra"] = torch.zeros(2)
    given["module.0.weight"] = torch.zeros(4, 1, 3, 3, dtype=torch.int64)
    del given["module.1.weight"]
    path = tmp_path / "ddp.safetensors"
    save_file(given, path)
    built = build(plain(weights=path), NetworkIO(1, (8, 8), 3), seed=0)
    assert set(built.unfit) == {
        "extra: file (2,), network has no such tensor",
        "0.weight: file torch.int64, network torch.float32",
    }
    assert built.missing == ("1.weight",)
    assert "4.weight" in built.loaded


def test_bundle_folder_is_a_source_of_weights(donor: Built, tmp_path: Path) -> None:
    save_file(donor.network.state_dict(), tmp_path / "weights.safetensors")
    assert "0.weight" in build(plain(weights=tmp_path), IO, seed=0).loaded


def test_gray_network_leaves_out_the_colour_convolution(tmp_path: Path) -> None:
    cfg = load_plugin("networks", "resnet").Config(depth=10)
    colour = build(cfg, NetworkIO(3, (16, 16), 2), seed=0).network
    save_file(colour.state_dict(), tmp_path / "weights.safetensors")
    built = build(cfg.model_copy(update={"weights": tmp_path}), NetworkIO(1, (16, 16), 2), seed=0)
    assert built.unfit == ("conv1.weight: file (64, 3, 7, 7), network (64, 1, 7, 7)",)


def test_weights_that_cannot_be_used_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.safetensors' does not exist"):
        build(plain(weights=tmp_path / "nowhere.safetensors"), IO, seed=0)
    with pytest.raises(ConfigError, match=r"weights\.safetensors' does not exist"):
        build(plain(weights=tmp_path), IO, seed=0)
    pickled = tmp_path / "weights.pt"
    torch.save({"0.weight": torch.zeros(1)}, pickled)
    with pytest.raises(InputError, match=r"unsafe_model: network.weights is a pickle.*save_file"):
        build(plain(weights=pickled), IO, seed=0)
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"corrupt_model: network.weights is not a safetensors file"):
        build(plain(weights=tmp_path / "cut.safetensors"), IO, seed=0)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}")
    with pytest.raises(InputError, match=r"unsafe_model: network\.weights is an MLflow model"):
        build(plain(weights=tmp_path / "model"), IO, seed=0)
    with pytest.raises(ConfigError, match=r"nothing .* fits .*0\.weight: file \(4, 1, 3, 3\).* more"):
        build(plain(weights=file, widths=(5, 7)), IO, seed=0)


def test_freeze_needs_weights_and_something_left_to_train(file: Path) -> None:
    with pytest.raises(ConfigError, match="freeze: needs "):
        build(plain(freeze=True), IO, seed=0)
    with pytest.raises(ConfigError, match="nothing would be left to train"):
        build(plain(freeze=True, weights=file), NetworkIO(1, (8, 8), 3), seed=0)


def test_frozen_layers_do_not_move(file: Path) -> None:
    built = build(plain(weights=file, freeze=True), IO, seed=0)
    network = built.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    train_mode(network)
    groups = parameter_groups(network, built.loaded, lr=0.1, weight_decay=0.1, backbone_factor=1.0)
    optimizer = torch.optim.SGD(groups)
    network(torch.randn(4, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"10.weight", "10.bias"}
    assert [group["name"] for group in groups] == ["new", "new_no_decay"]


def test_train_mode_without_freezing_is_train() -> None:
    network = build(plain(), IO, seed=0).network.eval()
    train_mode(network)
    assert all(part.training for part in network.modules())


def test_parameter_groups(file: Path) -> None:
    built = build(plain(weights=file), IO, seed=0)
    groups = parameter_groups(built.network, built.loaded, lr=1e-2, weight_decay=0.05, backbone_factor=0.1)
    names = {id(parameter): name for name, parameter in built.network.named_parameters()}
    found = {group["name"]: [names[id(parameter)] for parameter in group["params"]] for group in groups}
    assert found == {
        "loaded": ["0.weight", "4.weight"],
        "loaded_no_decay": ["1.weight", "1.bias", "5.weight", "5.bias"],
        "new": ["10.weight"],
        "new_no_decay": ["10.bias"],
    }
    settings = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert settings["loaded"] == (pytest.approx(1e-3), 0.05)
    assert settings["loaded_no_decay"] == (pytest.approx(1e-3), 0.0)
    assert settings["new"] == (1e-2, 0.05)
    assert settings["new_no_decay"] == (1e-2, 0.0)
    torch.optim.AdamW(groups)


def test_no_group_is_empty() -> None:
    network = build(plain(), IO, seed=0).network
    groups = parameter_groups(network, (), lr=1e-2, weight_decay=0.05, backbone_factor=0.1)
    assert [group["name"] for group in groups] == ["new", "new_no_decay"]
