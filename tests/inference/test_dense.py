"""Back to the patient's grid: turned, cropped and resampled cases get their mask where the structure is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medray.imaging.geometry import grid_of, onto_label
from medray.imaging.preprocess import preprocess
from medray.inference.dense import measured, on_patient_grid
from medray.sections.data import PreprocessSection
from medray.sections.inference import WindowSection
from medray.tasks.segmentation import Config, Segmentation
from medray.types import Array, Case, Prediction

CLASSES = ("background", "ball", "core")
EXCLUSIVE = Segmentation(Config(), CLASSES)
REGIONS = Segmentation(Config.model_validate({"regions": {"whole": ["ball", "core"], "core": ["core"]}}), CLASSES)
ROADS = [
    {"spacing_mm": [2, 2, 2], "crop_foreground": True},
    {"spacing_mm": [1, 1, 1]},
    {"orientation": None, "size": [24, 24, 24], "fit": "stretch"},
    {"crop_foreground": True},
    {"size": [40, 16, 12], "fit": "pad_crop"},
]


def patient(shape: tuple[int, int, int] = (30, 26, 14)) -> tuple[Case, Array]:
    """A volume with axes to the left, back and up, nothing around the body, and the truth (*S)."""
    affine = np.diag([-1.2, -1.2, 2.4, 1.0])
    affine[:3, 3] = [20, 30, -40]
    centre = np.asarray(shape) / 2 + [1, -1, 0.5]
    away = np.linalg.norm((np.indices(shape).T - centre) * [1.2, 1.2, 2.4], axis=-1).T
    truth = (away < 9).astype(np.uint8) + (away < 5)
    image = np.where(away < 12, 100 + 50 * truth, 0)
    return Case("patient", image[None].astype(np.int16), affine, "mm", warnings=("odd",)), truth


def answer(
    task: Segmentation, road: dict[str, Any], restore: str, keep: bool = False
) -> tuple[Prediction, Case, Array, Case]:
    """What a perfect network says, the raw case, the truth, and the case on the network's grid."""
    raw, truth = patient()
    case = preprocess(raw, PreprocessSection.model_validate(road))
    label = Case("x", truth[None], raw.affine, "mm")
    share, _ = task.shares(torch.from_numpy(onto_label(label, grid_of(case)))[None, None])
    cfg = WindowSection.model_validate({"restore": restore})
    return on_patient_grid(task, share[0] * 0.9 + 0.05, case, raw, cfg, keep), raw, truth, case


def overlap(found: Array, true: Array) -> float:
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


@pytest.mark.parametrize("restore", ["probabilities", "labels"])
@pytest.mark.parametrize("road", ROADS, ids=str)
def test_the_mask_is_where_the_structure_is(road: dict[str, Any], restore: str) -> None:
    found, raw, truth, _ = answer(EXCLUSIVE, road, restore)
    assert found.mask is not None
    assert found.mask.dtype == np.uint8
    assert found.mask.shape == raw.image.shape[1:]
    assert overlap(found.mask > 0, truth > 0) > 0.9
    assert overlap(found.mask == 2, truth == 2) > 0.8
    assert set(np.unique(found.mask)) == {0, 1, 2}
    assert found.labels == ("ball", "core")
    assert found.warnings == ("odd",)
    edge = 1.2 * 1.2 * 2.4 / 1000
    assert found.volumes == pytest.approx(
        {"ball": (found.mask == 1).sum() * edge, "core": (found.mask == 2).sum() * edge}
    )
    assert found.probabilities is None


@pytest.mark.parametrize("restore", ["probabilities", "labels"])
@pytest.mark.parametrize("road", ROADS, ids=str)
def test_regions_too(road: dict[str, Any], restore: str) -> None:
    found, _, truth, _ = answer(REGIONS, road, restore)
    assert found.mask is not None
    assert found.mask.dtype == bool
    assert found.mask.shape == (2, *truth.shape)
    assert overlap(found.mask[0], truth > 0) > 0.9
    assert overlap(found.mask[1], truth == 2) > 0.8
    assert found.mask[0][found.mask[1]].all()
    assert found.volumes["whole"] > found.volumes["core"] > 0


@pytest.mark.parametrize("road", [{"crop_foreground": True}, {}])
def test_without_resampling_the_mask_is_exact(road: dict[str, Any]) -> None:
    for restore in ("probabilities", "labels"):
        found, _, truth, _ = answer(EXCLUSIVE, road, restore)
        np.testing.assert_array_equal(found.mask, truth)


@pytest.mark.parametrize("restore", ["probabilities", "labels"])
@pytest.mark.parametrize("road", [*ROADS, {}], ids=str)
@pytest.mark.parametrize("task", [EXCLUSIVE, REGIONS], ids=["exclusive", "regions"])
def test_probabilities_that_are_asked_for_lie_on_the_patients_grid(
    task: Segmentation, road: dict[str, Any], restore: str
) -> None:
    """Also where that grid has the shape of the network's but other directions, and the mask was decided before."""
    found, raw, truth, _ = answer(task, road, restore, keep=True)
    assert found.probabilities is not None
    assert found.probabilities.dtype == np.float32
    assert found.probabilities.shape == (task.outputs, *raw.image.shape[1:])
    core = found.probabilities[-1]
    assert core[truth == 2].mean() > core[truth != 2].mean() + 0.5
    if road == {}:
        np.testing.assert_allclose(core, np.where(truth == 2, 0.95, 0.05), atol=1e-6)


def test_what_the_network_did_not_see_is_background() -> None:
    found, _, _, case = answer(EXCLUSIVE, {"crop_foreground": True}, "probabilities", keep=True)
    assert found.probabilities is not None
    assert case.image[0].size < found.probabilities[0].size
    outside = found.probabilities.max(0) == 1
    assert outside.sum() == found.probabilities[0].size - case.image[0].size
    assert (found.probabilities[0][outside] == 1).all()
    regions = answer(REGIONS, {"crop_foreground": True}, "probabilities", keep=True)[0]
    assert regions.probabilities is not None
    assert (regions.probabilities[:, outside] == 0).all()


def test_a_picture_on_its_own_grid() -> None:
    raw = Case("x", np.zeros((1, 6, 7), np.uint8), np.diag([0.5, 2.0, 1.0, 1.0]), "mm")
    probabilities = torch.zeros(3, 6, 7)
    probabilities[0], probabilities[1, 2:4, 2:5] = 0.5, 0.9
    found = on_patient_grid(EXCLUSIVE, probabilities, raw, raw, WindowSection(), True)
    assert found.volumes == {"ball": 6.0, "core": 0.0}
    assert found.labels == ("ball",)
    np.testing.assert_array_equal(found.probabilities, probabilities.numpy())


def test_volumes_have_the_unit_of_the_image() -> None:
    cube = Case("x", np.zeros((1, 4, 4, 4), np.uint8), np.diag([2.0, 2.0, 5.0, 1.0]), "mm")
    assert measured({"a": 100}, cube) == {"a": pytest.approx(2.0)}
    assert measured({"a": 100}, Case("x", cube.image, cube.affine, "px")) == {"a": 100}
    sheared = cube.affine @ np.array([[1, 0.9, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert measured({"a": 100}, Case("x", cube.image, sheared, "mm")) == {"a": pytest.approx(2.0)}
    assert measured({"a": 3}, Case("x", np.zeros((1, 4, 4), np.uint8), np.eye(4), "px")) == {"a": 3}
