"""Bundles: whole or absent, checked, self-contained, and giving their golden answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny, tiny_dense

from medray.bundle import FILES, SUMS, BundleError, ModelBundle, answer, load, save
from medray.config import override
from medray.inference.predictor import Predictor
from medray.networks.build import build
from medray.types import NetworkIO

INPUT = {"channels": 1, "size": [16, 16], "axes": 2, "dense": False}
CARD = {"classes": ["a", "b"], "multilabel": False, "outputs": 1, "input": INPUT}


def make(folder: Path, images: Path) -> ModelBundle:
    experiment = tiny(images, network={"name": "plain", "widths": [8, 8], "norm": "batch"})
    network = build(experiment.network, NetworkIO(1, (16, 16), 1), seed=4).network
    network.train()(torch.randn(8, 1, 16, 16))  # running statistics that are not their initial values
    return save(folder, experiment, network.state_dict(), CARD)


@pytest.fixture
def bundle(tmp_path: Path, image_folder: Path) -> ModelBundle:
    return make(tmp_path / "bundle", image_folder)


def test_it_gives_its_golden_answer_after_loading(bundle: ModelBundle) -> None:
    window, scores = bundle.golden()
    assert window.shape == (2, 1, 16, 16)
    np.testing.assert_allclose(answer(load(bundle.folder), window), scores, atol=1e-6)
    assert not np.allclose(scores[0], scores[1]), "the golden answer depends on its input"


@pytest.mark.parametrize("size", [(32, 30), (18, 17, 16)])
@pytest.mark.parametrize("regions", [False, True])
def test_a_dense_bundle_keeps_a_thinned_golden_answer(tmp_path: Path, size: tuple[int, ...], regions: bool) -> None:
    task = {"name": "segmentation", "regions": {"any": ["x", "y"], "core": ["y"]} if regions else {}}
    experiment = tiny_dense(tmp_path, task=task, window={"size": list(size)})
    outputs = 2 if regions else 3
    network = build(experiment.network, NetworkIO(1, size, outputs, dense=True), seed=4).network
    entry = {"channels": 1, "size": list(size), "axes": len(size), "dense": True}
    card = {"classes": ["back", "x", "y"], "multilabel": False, "outputs": outputs, "input": entry}
    bundle = save(tmp_path / "bundle", experiment, network.state_dict(), card)
    window, scores = bundle.golden()
    assert window.shape == (2, 1, *size)
    assert scores.shape == (2, outputs, *(-(-edge // 4) for edge in size))
    np.testing.assert_allclose(bundle.thinned(answer(load(bundle.folder), window)), scores, atol=1e-6)
    assert np.abs(scores[0] - scores[1]).max() > 1e-3, "the golden answer depends on its input"
    assert Predictor(bundle.folder).task.dense


@pytest.mark.parametrize(("neighbours", "channels"), [(0, 2), (2, 10)])
def test_channels_of_an_image_and_of_what_the_network_sees(tmp_path: Path, neighbours: int, channels: int) -> None:
    experiment = tiny_dense(tmp_path, window={"size": [16, 16], "neighbours": neighbours})
    entry = {"channels": channels, "size": [16, 16], "axes": 3, "dense": True}
    bundle = ModelBundle(tmp_path, experiment, {"input": entry, "outputs": 2})
    assert (bundle.channels, bundle.axes, bundle.io.in_channels) == (2, 3, channels)


def test_it_holds_exactly_its_files_and_says_what_it_is_for(bundle: ModelBundle) -> None:
    assert {file.name for file in bundle.folder.iterdir()} == {*FILES, SUMS}
    assert "Not a medical device" in bundle.card["intended_use"]


@pytest.mark.parametrize("name", FILES)
def test_an_altered_or_missing_file_is_named(bundle: ModelBundle, name: str) -> None:
    content = bytearray((bundle.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle.folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} in .* was altered"):
        load(bundle.folder)
    (bundle.folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load(bundle.folder)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a model bundle"):
        load(tmp_path)


def test_weights_that_do_not_answer_as_when_made_are_not_used(bundle: ModelBundle) -> None:
    from medray import bundle as bundles

    window, scores = bundle.golden()
    np.savez_compressed(bundle.folder / "golden.npz", window=window, scores=scores + 1e-3)
    sums = "".join(f"{bundles._sha256(bundle.folder / name)}  {name}\n" for name in FILES)
    (bundle.folder / SUMS).write_text(sums)
    with pytest.raises(BundleError, match=r"golden input with a difference of 0\.001"):
        Predictor(bundle.folder)


def test_it_does_not_need_the_weights_that_training_began_with(tmp_path: Path, image_folder: Path) -> None:
    first = make(tmp_path / "first", image_folder)
    experiment = override(first.experiment, {"network.weights": str(first.folder)})
    weights = first.network().state_dict()
    second = save(tmp_path / "second", experiment, weights, CARD)
    (first.folder / "weights.safetensors").unlink()
    window, scores = second.golden()
    np.testing.assert_allclose(answer(load(second.folder), window), scores, atol=1e-6)


def test_an_interrupted_save_leaves_no_bundle(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medray import bundle as bundles

    monkeypatch.setattr(bundles, "answer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "bundle", image_folder)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_another_format_is_refused(bundle: ModelBundle) -> None:
    from medray import bundle as bundles

    card = json.loads((bundle.folder / "card.json").read_text())
    (bundle.folder / "card.json").write_text(json.dumps({**card, "format": 99}))
    sums = "".join(f"{bundles._sha256(bundle.folder / name)}  {name}\n" for name in FILES)
    (bundle.folder / SUMS).write_text(sums)
    with pytest.raises(BundleError, match="format 99; this medray reads format 2"):
        load(bundle.folder)


def test_the_digest_names_the_bytes(tmp_path: Path, image_folder: Path) -> None:
    one = make(tmp_path / "one", image_folder)
    assert one.digest == load(one.folder).digest
