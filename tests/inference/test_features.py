"""Pooled features: the input of the last layer, from the pass that predicts, and the same bits each time."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from conftest import tiny

from medray.bundle import ModelBundle, save
from medray.inference.classical import Head, scores
from medray.inference.features import Embedder, embed, features, head_answer
from medray.inference.predictor import Predictor
from medray.networks.build import build
from medray.networks.layers import bottleneck
from medray.sections.inference import WindowSection
from medray.types import NetworkIO

SMALL = {
    "plain": {"widths": [8, 12]},
    "lenet": {},
    "resnet": {"depth": 10, "stem": "small"},
    "vit": {"patch": 8},
}


CARD = {
    "classes": ["class0", "class1"],
    "multilabel": False,
    "outputs": 1,
    "input": {"channels": 1, "size": [16, 16], "axes": 2, "dense": False},
}


def bundle_of(folder: Path, images: Path, network: torch.nn.Module | None = None) -> ModelBundle:
    """A bundle of a small network, an untrained one by default."""
    experiment = tiny(images, network={"name": "plain", "widths": [8, 8], "norm": "batch"})
    network = network or build(experiment.network, NetworkIO(1, (16, 16), 1), seed=4).network
    return save(folder, experiment, network.state_dict(), CARD)


@pytest.fixture
def predictor(tmp_path: Path, image_folder: Path) -> Predictor:
    return Predictor(bundle_of(tmp_path / "bundle", image_folder).folder)


def network_of(family: str, io: NetworkIO, **more: object) -> torch.nn.Module:
    cfg = tiny(Path("x"), network={"name": family, **more}).network
    return build(cfg, io, seed=0).network.eval()


@pytest.mark.parametrize("size", [(16, 24), (16, 16, 16)])
@pytest.mark.parametrize("family", SMALL)
def test_the_last_layer_makes_the_answer_of_the_features(family: str, size: tuple[int, ...]) -> None:
    """So they are all that the answer depends on, whatever the family; and one pass gives both."""
    io = NetworkIO(2, size, 3)
    network = network_of(family, io, **SMALL[family])
    images = torch.randn(4, 2, *size, generator=torch.Generator().manual_seed(0))
    embedder = Embedder(network, io)
    passes: list[int] = []
    network.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        output, found = embedder(images)
        last = [part for part in network.modules() if isinstance(part, torch.nn.Linear)][-1]
        assert passes == [1]
        assert found.shape == (4, last.in_features)
        torch.testing.assert_close(output, last(found))
        torch.testing.assert_close(output, network(images))


def test_a_dense_network_gives_the_mean_of_its_bottleneck() -> None:
    io = NetworkIO(1, (32, 32), 3, dense=True)
    network = network_of("unet", io)
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    name = bottleneck(network, io)
    assert name is not None
    with torch.no_grad():
        output, found = Embedder(network, io)(images)
        network.get_submodule(name).register_forward_hook(lambda _m, _i, out: seen.append(out))
        network(images)
    assert output.shape == (2, 3, 32, 32)
    torch.testing.assert_close(found, seen[0].mean((2, 3)))


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (70, 30)])
def test_a_dense_image_gives_the_mean_over_windows_side_by_side(size: tuple[int, ...]) -> None:
    io = NetworkIO(1, (32, 32), 3, dense=True)
    network = network_of("unet", io)
    predictor = SimpleNamespace(
        bundle=SimpleNamespace(io=io), network=network, window=WindowSection(), device=torch.device("cpu")
    )
    image = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    found = embed(cast(Predictor, predictor), [image, image])
    assert found.shape == (2, Embedder(network, io)(torch.zeros(1, 1, 32, 32))[1].shape[1])
    np.testing.assert_array_equal(found[0], found[1])
    if size != (70, 30):
        halves = torch.from_numpy(image).split(32, dim=1)
        with torch.no_grad():
            mean = Embedder(network, io)(torch.stack(halves))[1].mean(0)
        np.testing.assert_allclose(found[0], mean, atol=1e-5)


def test_nothing_stays_on_the_network() -> None:
    io = NetworkIO(1, (16, 16), 2)
    network = network_of("plain", io)
    embedder = Embedder(network, io)
    embedder(torch.zeros(1, 1, 16, 16))

    def fails(_network: torch.nn.Module, _images: torch.Tensor) -> None:
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        embedder(torch.zeros(1, 1, 16, 16), fails)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    copy.deepcopy(embedder)
    with pytest.raises(ValueError, match="one pass"):
        embedder(torch.zeros(1, 1, 16, 16), lambda network, images: (network(images), network(images)))


def test_passes_of_other_threads_do_not_mix() -> None:
    io = NetworkIO(1, (16, 16), 2)
    network = network_of("plain", io)
    other = torch.full((1, 1, 16, 16), 5.0)

    def with_a_stranger(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        thread = threading.Thread(target=network, args=(other,))
        thread.start()
        thread.join()
        result: torch.Tensor = network(images)
        return result

    images = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        Embedder(network, io)(images, with_a_stranger)[1], Embedder(network, io)(images)[1], rtol=0, atol=0
    )


def test_images_give_the_same_bits_each_time(predictor: Predictor, image_folder: Path) -> None:
    files = sorted(image_folder.rglob("*.png"))
    first, second = features(predictor, files), features(predictor, files)
    assert first.shape == (40, 8)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(features(predictor, files[3:4]), first[3:4], atol=1e-5)
    inputs = [predictor.prepare(file)[1] for file in files]
    np.testing.assert_array_equal(embed(predictor, inputs), first)
    with pytest.raises(ValueError, match="no images"):
        features(predictor, [])


def test_a_head_answers_from_the_features(predictor: Predictor) -> None:
    draw = np.random.default_rng(0)
    part = {"mean": np.zeros(8), "scale": np.ones(8), "coef": draw.normal(size=(8, 3)), "intercept": np.zeros(3)}
    head = Head("softmax", 8, 3, (part,))
    window, _ = predictor.bundle.golden()
    found = head_answer(head, predictor.bundle, window)
    np.testing.assert_allclose(found, scores(head, embed(predictor, window)), atol=1e-6)
    assert found.dtype == np.float32
