"""Evaluation of a segmentation: from masks and label maps to figures of cases and of all."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medray.evaluation.cases import Answered, Cases, Refused
from medray.evaluation.segmentation import tabulate, voxel_size
from medray.evaluation.statistics import estimate
from medray.imaging.writer import write_nifti
from medray.metrics import lesions, overlap, surface
from medray.tasks.segmentation import Config, Segmentation
from medray.types import IGNORED, Array, Case, CaseRef, Dataset, Prediction

CLASSES = ("background", "liver", "lesion")
VALUES = (0, 5, 9)
AFFINE = np.diag([2.0, 1.0, 3.0, 1.0])


def volume(seed: int) -> Array:
    """A label map of class indices: a box with two spots in it."""
    draw = np.random.default_rng(seed)
    label = np.zeros((16, 14, 12), np.uint8)
    label[3:12, 2:11, 2:9] = 1
    for corner in draw.integers(3, 8, (2, 3)):
        label[tuple(slice(start, start + 2) for start in corner)] = 2
    return label


def answered(folder: Path, truths: list[Array], masks: list[Array], named: tuple[str, ...] = CLASSES) -> list[Answered]:
    items = []
    values = np.array([*VALUES, *[0] * (IGNORED - len(VALUES)), 7], np.uint8)
    for row, (truth, mask) in enumerate(zip(truths, masks, strict=True)):
        file = folder / f"label{row}.nii.gz"
        write_nifti(file, values[truth], AFFINE)
        ref = CaseRef(f"case{row}", file, subject_id=f"p{row}", label_map=file)
        raw = Case(ref.case_id, np.zeros((1, *truth.shape), np.float32), AFFINE, "mm")
        prediction = Prediction(ref.case_id, named, np.zeros(0), (), mask=mask)
        items.append(Answered(ref, prediction, {"site": "X"}, raw))
    return items


DATASET = Dataset((), CLASSES, label_values=VALUES, ignored_value=7)
TASK = Segmentation(Config(), CLASSES)


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., Cases]:
    def run(truths: list[Array], masks: list[Array], task: Segmentation = TASK) -> Cases:
        return tabulate(iter(answered(tmp_path, truths, masks)), DATASET, task, [])

    return run


def test_figures_of_a_case_are_those_of_metrics(measured: Callable[..., Cases]) -> None:
    truth, mask = volume(1), np.roll(volume(2), 1, 0)
    cases = measured([truth], [mask])
    counts = overlap.overlap_counts(mask, truth, 3)
    distances = surface.surface_metrics(mask, truth, 3, (2, 1, 3), 1.0)
    for place, name in enumerate(CLASSES[1:], start=1):
        assert cases.figures[f"dice/{name}"] == overlap.dice(counts)[place]
        assert cases.figures[f"hd95/{name}"] == distances[place].hd95
        assert cases.figures[f"nsd/{name}"] == distances[place].nsd
        assert cases.figures[f"volume_bias/{name}"] == pytest.approx((counts[place, 1] - counts[place, 2]) * 6 / 1000)
    assert cases.classes == ("liver", "lesion")
    assert cases.truths[0].startswith("liver ")
    assert cases.truths[0].endswith(" mL")
    assert cases.columns == {"site": ("X",)}


def test_figures_of_all_cases_are_means_and_lesions_are_counted_together(measured: Callable[..., Cases]) -> None:
    truths = [volume(seed) for seed in range(6)]
    masks = [np.roll(truth, shift, 1) for shift, truth in enumerate(truths)]
    cases = measured(truths, masks)
    found = estimate(cases, samples=50)
    counts = np.stack([overlap.overlap_counts(m, t, 3) for m, t in zip(masks, truths, strict=True)])
    expected = overlap.summarise(counts, CLASSES)
    for name in ("dice", "iou", "dice/lesion", "recall/liver"):
        assert found[name].value == pytest.approx(expected[name])
        assert found[name].low <= found[name].value <= found[name].high
    table = np.stack([lesions.label_lesion_counts(m, t, 3) for m, t in zip(masks, truths, strict=True)])
    pooled = lesions.summarise(table, CLASSES)
    assert found["lesion_f1/lesion"].value == pytest.approx(pooled["lesion_f1_pooled/lesion"])
    assert found["lesion_fp_per_case/lesion"].value == pytest.approx(pooled["lesion_fp_per_case/lesion"])
    assert cases.badness.argsort()[::-1].tolist() == sorted(range(6), key=lambda row: -row), "the further, the worse"


def test_what_is_neither_there_nor_found_counts_nowhere(measured: Callable[..., Cases]) -> None:
    plain = np.where(volume(1) == 2, 1, volume(1)).astype(np.uint8)
    missed = measured([plain, volume(1)], [plain, plain])
    assert math.isnan(missed.figures["dice/lesion"][0])
    assert missed.figures["dice/lesion"][1] == 0
    assert missed.figures["hd95/lesion"][1] == pytest.approx(surface.diagonal_mm(plain.shape, (2, 1, 3)))
    assert estimate(missed, samples=5)["dice/lesion"].value == 0


def test_voxels_that_nobody_labelled_count_nowhere(measured: Callable[..., Cases]) -> None:
    truth = volume(1)
    mask = truth.copy()
    mask[:3] = 1
    unknown = truth.copy()
    unknown[:3] = IGNORED
    assert measured([truth], [mask]).figures["dice/liver"] < 1
    assert measured([unknown], [mask]).figures["dice/liver"] == 1


def test_regions_that_overlap(measured: Callable[..., Cases]) -> None:
    task = Segmentation(Config(regions={"organ": ("liver", "lesion"), "lesion": ("lesion",)}), CLASSES)
    truth = volume(3)
    cases = measured([truth], [np.stack([truth > 0, truth == 1])], task)
    assert cases.classes == ("organ", "lesion")
    assert cases.figures["dice/organ"] == 1
    assert cases.figures["dice/lesion"] == 0
    assert cases.figures["nsd/organ"] == 1


def test_classes_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    turned = ("background", "lesion", "liver")
    truth = volume(4)
    mask = np.array([0, 2, 1], np.uint8)[truth]
    found = tabulate(iter(answered(tmp_path, [truth], [mask], turned)), DATASET, Segmentation(Config(), turned), [])
    assert found.figures["dice/liver"] == found.figures["dice/lesion"] == 1


def test_a_label_that_cannot_be_read_is_refused_and_does_not_stop(tmp_path: Path) -> None:
    items = answered(tmp_path, [volume(1), volume(2)], [volume(1), volume(2)])
    Path(str(items[0].ref.label_map)).write_bytes(b"nothing")
    refused: list[Refused] = []
    cases = tabulate(iter(items), DATASET, TASK, refused)
    assert cases.ids == ("case1",)
    assert [item.case_id for item in refused] == ["case0"]


def test_a_voxel_has_the_unit_of_its_image() -> None:
    image = np.zeros((1, 4, 4, 4))
    assert voxel_size(Case("a", image, AFFINE, "mm")) == (0.006, "mL")
    assert voxel_size(Case("a", image[..., 0], AFFINE, "mm")) == (2.0, "mm2")
    assert voxel_size(Case("a", image, AFFINE, "px")) == (1.0, "voxels")
