"""Predictor: the numbers of training's validation, one bad image costs only itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny, tiny_dense
from torch import nn

from medray.bundle import save
from medray.config import ConfigError
from medray.imaging.reader import read
from medray.imaging.writer import write_nifti, write_png
from medray.inference import table
from medray.inference.predictor import Predictor
from medray.metrics.overlap import overlap_counts
from medray.metrics.trust import apply_temperature
from medray.networks.build import build
from medray.pipeline.prepare import prepare
from medray.sections.inference import WindowSection
from medray.training.learner import Learner
from medray.training.loop import Finished, fit
from medray.training.record import save_bundle
from medray.training.worker import Outcome
from medray.training.world import World
from medray.types import InputError, NetworkIO, Prediction


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> tuple[Predictor, Any, Outcome]:
    """A predictor, the data it was trained on, and what the training said."""
    folder = tmp_path_factory.mktemp("trained")
    experiment = tiny(image_folder, network={"name": "plain", "widths": [8, 8], "norm": "batch"})
    prepared = prepare(experiment, folder / "stores")
    learner = Learner(experiment, prepared, World())
    *_, finished = fit(learner)
    assert isinstance(finished, Finished)
    outcome = Outcome(finished.reason, finished.metrics, finished.scores, learner.best_weights, [], ())
    return Predictor(save_bundle(folder / "bundle", experiment, prepared, outcome).folder), prepared, outcome


def test_file_to_answer_equals_validation(trained: tuple[Predictor, Any, Outcome]) -> None:
    predictor, prepared, outcome = trained
    for split in ("val", "test"):
        answers = predictor.predict_all([prepared.dataset.refs[row].source for row in prepared.rows(split).tolist()])
        scores = np.stack([answer.scores for answer in answers if isinstance(answer, Prediction)])
        np.testing.assert_allclose(scores, outcome.scores[split], atol=1e-6)


def test_bytes_and_path_and_case_give_the_same(trained: tuple[Predictor, Any, Outcome]) -> None:
    predictor, prepared, _ = trained
    path = prepared.dataset.refs[0].source
    answers = [predictor.predict(source) for source in (path, path.read_bytes(), read(path))]
    assert all((answer.scores == answers[0].scores).all() for answer in answers)
    assert answers[0].labels[0] in ("class0", "class1")


def test_one_bad_image_costs_only_itself(trained: tuple[Predictor, Any, Outcome], tmp_path: Path) -> None:
    predictor, prepared, _ = trained
    good = prepared.dataset.refs[0].source
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:50])
    wide = tmp_path / "wide.png"
    write_png(wide, np.zeros((16, 20), np.uint8))
    first, second, third, fourth = predictor.predict_all([good, bad, wide, good], batch_size=3)
    assert isinstance(first, Prediction)
    assert isinstance(fourth, Prediction)
    assert isinstance(second, InputError)
    assert isinstance(third, InputError)
    assert third.code == "wrong_shape"
    np.testing.assert_allclose(first.scores, fourth.scores, atol=1e-6)


def test_images_of_a_folder_by_name_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c.txt", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    assert [file.name for file in table.image_files([tmp_path])] == ["a.png", "b.png", "c.txt"]


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        table.image_files([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="no files in"):
        table.image_files([tmp_path])


def test_a_card_of_a_training_says_how_far_to_trust_it(trained: tuple[Predictor, Any, Outcome]) -> None:
    predictor, prepared, _ = trained
    said = predictor.bundle.card["trust"]
    assert said["temperature"] == 1, "eight validation cases do not say"
    assert said["conformal"]["thresholds"] == [None, None], "nor do they rule out a class"
    answer = predictor.predict(prepared.dataset.refs[0].source)
    assert answer.conformal_set == ("class0", "class1")


def test_what_a_card_says_is_done_with_every_answer(
    trained: tuple[Predictor, Any, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, prepared, outcome = trained
    monkeypatch.setattr("medray.inference.trust.FEWEST_CASES", 4)
    draw = np.random.default_rng(0)
    targets = prepared.targets[prepared.rows("val")]
    scores = np.clip(0.5 + 0.3 * (targets - 0.5) + draw.normal(0, 0.3, (len(targets), 1)) * [1, -1], 0.02, 0.98)
    unsure = Outcome("", outcome.metrics, {**outcome.scores, "val": scores.astype(np.float32)}, outcome.weights, [], ())
    rules = {"operating_points": [{"of": "class1", "sensitivity": 0.9}], "conformal_alpha": 0.3}
    experiment = tiny(
        Path(first.bundle.experiment.dataset.path), network=first.bundle.experiment.network.model_dump(), trust=rules
    )
    predictor = Predictor(save_bundle(tmp_path / "bundle", experiment, prepared, unsure).folder)
    trust = predictor.trust
    assert trust.temperature != 1
    assert trust.conformal is not None
    ((name, point),) = trust.points
    assert name == "class1"
    sources = [ref.source for ref in prepared.dataset.refs]
    for plain, answer in zip(first.predict_all(sources), predictor.predict_all(sources), strict=True):
        assert isinstance(plain, Prediction)
        assert isinstance(answer, Prediction)
        np.testing.assert_allclose(
            answer.scores, apply_temperature(plain.scores[None], trust.temperature)[0], atol=1e-6
        )
        assert answer.labels == (("class1",) if answer.scores[1] >= point.threshold else ("class0",))
        assert answer.conformal_set


def test_the_golden_answer_is_that_of_the_network_and_not_of_the_card(
    trained: tuple[Predictor, Any, Outcome],
) -> None:
    window, scores = trained[0].bundle.golden()
    np.testing.assert_allclose(trained[0].scores(window), scores, atol=1e-5)


class Brightness(nn.Module):
    """The classes of `draw_volumes` by the brightness of the middle channel: from -0.4 and from 0.4 on."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = image[:, image.shape[1] // 2 : image.shape[1] // 2 + 1]
        return torch.cat([torch.zeros_like(seen), 40 * (seen + 0.4), 80 * seen], 1)


ROADS = {
    "resampled": {"spacing_mm": [2, 2, 2], "crop_foreground": True},
    "turned": {},
    "stretched": {"size": [20, 20, 20], "fit": "stretch"},
}


def volumetric(folder: Path, volumes: Path, window: dict[str, Any], **sections: Any) -> Predictor:
    """A predictor of `draw_volumes`; its network has its initial weights."""
    split = {"method": "fraction", "val": 0.2, "test": 0.2}
    road = {"intensity": {"method": "range", "low": 0, "high": 360}, **sections.pop("preprocess", {})}
    dataset = {"name": "decathlon", "path": str(volumes)}
    experiment = tiny_dense(volumes, dataset=dataset, split=split, window=window, preprocess=road, **sections)
    size = tuple(window["size"])
    channels = 1 if len(size) == 3 else 2 * window.get("neighbours", 0) + 1
    outputs = 2 if sections.get("task", {}).get("regions") else 3
    network = build(experiment.network, NetworkIO(channels, size, outputs, dense=True), seed=4).network
    entry = {"channels": channels, "size": list(size), "axes": 3, "dense": True}
    card = {"classes": ["background", "ball", "core"], "multilabel": False, "outputs": outputs, "input": entry}
    return Predictor(save(folder / "bundle", experiment, network.state_dict(), card).folder)


@pytest.mark.parametrize("restore", ["probabilities", "labels"])
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("window", [{"size": [16, 16, 8]}, {"size": [16, 16], "neighbours": 1}], ids=str)
def test_a_volume_is_answered_on_the_patients_grid(
    volumes: Path, tmp_path: Path, road: str, restore: str, window: dict[str, Any]
) -> None:
    predictor = volumetric(tmp_path, volumes, {**window, "restore": restore}, preprocess=ROADS[road])
    predictor.network = Brightness()
    for index in (0, 4):
        answer = predictor.predict(volumes / "images" / f"case{index}.nii.gz")
        truth = read(volumes / "labels" / f"case{index}.nii.gz").image[0].astype(np.uint8)
        assert answer.mask is not None
        assert answer.mask.shape == truth.shape
        counts = overlap_counts(answer.mask, truth, 3)
        dice = 2 * counts[:, 0] / counts[:, 1:].sum(1)
        assert (dice > (0.999 if road == "turned" else [0.97, 0.8, 0.75])).all(), dice
        assert answer.labels == ("ball", "core")
        assert answer.volumes["core"] == pytest.approx(np.count_nonzero(answer.mask == 2) * 6.75 / 1000)


@pytest.mark.parametrize("window", [{"size": [16, 16, 8]}, {"size": [16, 16], "neighbours": 1}], ids=str)
@pytest.mark.parametrize("shape", [(5, 6, 3), (30, 30, 1), (1, 40, 9)])
def test_small_and_flat_volumes_are_answered(
    volumes: Path, tmp_path: Path, window: dict[str, Any], shape: tuple[int, ...]
) -> None:
    predictor = volumetric(tmp_path, volumes, window)
    image = np.random.default_rng(0).integers(0, 300, shape).astype(np.int16)
    write_nifti(tmp_path / "small.nii", image, np.diag([1.0, 1.0, 3.0, 1.0]))
    answer = predictor.predict(tmp_path / "small.nii", probabilities=True)
    assert answer.mask is not None
    assert answer.probabilities is not None
    assert answer.mask.shape == shape
    np.testing.assert_allclose(answer.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(answer.probabilities.argmax(0), answer.mask)


def test_regions_are_answered_each_by_itself(volumes: Path, tmp_path: Path) -> None:
    task = {"name": "segmentation", "regions": {"whole": ["ball", "core"], "core": ["core"]}}
    predictor = volumetric(tmp_path, volumes, {"size": [16, 16, 8]}, task=task)
    answer = predictor.predict(volumes / "images" / "case0.nii.gz")
    assert answer.mask is not None
    assert answer.mask.dtype == bool
    assert answer.mask.shape == (2, 20, 18, 9)
    assert set(answer.volumes) == {"whole", "core"}


def test_images_of_another_kind_are_refused_and_cost_only_themselves(volumes: Path, tmp_path: Path) -> None:
    predictor = volumetric(tmp_path, volumes, {"size": [16, 16, 8]})
    write_png(tmp_path / "flat.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
    write_png(tmp_path / "colour.png", np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8))
    good = volumes / "images" / "case0.nii.gz"
    answers = predictor.predict_all([tmp_path / "flat.png", good, tmp_path / "colour.png"])
    assert [answer.code for answer in answers if isinstance(answer, InputError)] == ["wrong_shape", "wrong_channels"]
    assert isinstance(answers[1], Prediction)
    spaced = volumetric(tmp_path / "spaced", volumes, {"size": [16, 16, 8]}, preprocess={"spacing_mm": [2, 2, 2]})
    with pytest.raises(InputError) as caught:
        spaced.predict(tmp_path / "flat.png")
    assert caught.value.code == "wrong_rank"


def test_the_way_to_read_whole_images_can_be_another_than_the_bundles(volumes: Path, tmp_path: Path) -> None:
    predictor = volumetric(tmp_path, volumes, {"size": [16, 16, 8]})
    tight = Predictor(predictor.bundle.folder, window=WindowSection(memory_gb=1e-6))
    with pytest.raises(ConfigError, match=r"window.memory_gb: an image of 20 x 18 x 9 with 3 classes"):
        tight.predict(volumes / "images" / "case0.nii.gz")
    flipped = Predictor(predictor.bundle.folder, window=WindowSection(flips=(0,)))
    image = predictor.prepare(volumes / "images" / "case0.nii.gz")[1]
    there, back = flipped.whole(image), flipped.whole(np.ascontiguousarray(image[:, ::-1]))
    torch.testing.assert_close(there, back.flip(1), atol=1e-5, rtol=0)


def test_a_mask_from_a_file_is_that_of_validation(discs: Path, tmp_path: Path) -> None:
    experiment = tiny_dense(discs, network={"name": "unet", "channels": [8, 16], "norm": "batch"})
    prepared = prepare(experiment, tmp_path / "stores")
    learner = Learner(experiment, prepared, World())
    *_, finished = fit(learner)
    assert isinstance(finished, Finished)
    outcome = Outcome(finished.reason, finished.metrics, finished.scores, learner.best_weights, [], ())
    predictor = Predictor(save_bundle(tmp_path / "bundle", experiment, prepared, outcome).folder)
    for split in ("val", "test"):
        for row, counts in zip(prepared.rows(split).tolist(), outcome.scores[split], strict=True):
            ref = prepared.dataset.refs[row]
            truth = (read(ref.label_map).image[0] == 255).astype(np.uint8)
            np.testing.assert_array_equal(overlap_counts(predictor.predict(ref.source).mask, truth, 2)[1], counts)
