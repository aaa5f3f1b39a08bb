"""Segmentation: classes and regions, what is counted of a case, deep supervision, decisions, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medray.config import ConfigError
from medray.metrics.overlap import overlap_counts, region_counts, summarise
from medray.tasks.overlap_loss import case_losses
from medray.tasks.segmentation import Config, Segmentation, build
from medray.types import IGNORED, Batch

CLASSES = ("background", "edema", "core")
REGIONS = {"whole": ["edema", "core"], "core": ["core"]}


def task(**settings: Any) -> Segmentation:
    return build(Config.model_validate(settings), CLASSES, False, np.zeros((0, 3), np.float32))


BOTH = [pytest.param({}, id="exclusive"), pytest.param({"regions": REGIONS}, id="regions")]


def labels(cases: int = 4, size: tuple[int, ...] = (9, 10), ignored: bool = True) -> torch.Tensor:
    """(B, 1, *S) uint8 with voxels that nobody labelled."""
    draw = np.random.default_rng(0)
    label = draw.integers(0, 3, (cases, 1, *size)).astype(np.uint8)
    if ignored:
        label[draw.random(label.shape) < 0.2] = IGNORED
    return torch.from_numpy(label)


def scores(one: Segmentation, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and probabilities (B, outputs, *S)."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(len(label), one.outputs, *label.shape[2:], generator=generator)
    return one.predict(nn.Identity(), logits)


def batch(image: torch.Tensor, label: torch.Tensor) -> Batch:
    weight = torch.linspace(0.1, 0.7, len(label))
    return Batch(image, label, weight, torch.arange(len(label)))


class Heads(nn.Module):
    """Gives what it got."""

    def __init__(self, heads: list[torch.Tensor]) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, _: torch.Tensor) -> list[torch.Tensor]:
        return self.heads


def test_names() -> None:
    exclusive, regions = task(), task(regions=REGIONS, threshold=0.4)
    assert (exclusive.structures, exclusive.outputs, exclusive.columns) == (("edema", "core"), 3, 7)
    assert (regions.structures, regions.outputs, regions.columns) == (("whole", "core"), 2, 7)
    assert exclusive.metrics == ("dice", "iou", "dice/edema", "dice/core", "loss")
    assert exclusive.decision == "the likeliest class"
    assert regions.decision == {"whole": 0.4, "core": 0.4}
    assert exclusive.dense


def test_one_structure_is_not_named_twice() -> None:
    binary = build(Config(), ("background", "lesion"), False, np.zeros((0, 2)))
    assert binary.metrics == ("dice", "iou", "loss")
    rows = binary.measure(*scores(binary, labels() % 2), labels(ignored=False) % 2).numpy()
    assert set(binary.summarise(rows[:, :-1], np.zeros((4, 2)))) == {"dice", "iou"}


def test_probabilities() -> None:
    _, exclusive = scores(task(), labels())
    torch.testing.assert_close(exclusive.sum(1), torch.ones(4, 9, 10))
    _, regions = scores(task(regions=REGIONS), labels())
    assert regions.shape == (4, 2, 9, 10)
    assert regions.min() >= 0
    assert regions.max() <= 1


def test_shares_of_regions_are_those_of_their_classes() -> None:
    label = torch.tensor([[[[0, 1, 2, IGNORED]]]], dtype=torch.uint8)
    share, valid = task(regions=REGIONS).shares(label)
    assert share[0, :, 0].tolist() == [[0, 1, 1, 0], [0, 0, 1, 0]]
    assert valid[0, 0, 0].tolist() == [1, 1, 1, 0]
    share, _ = task().shares(label)
    assert share[0, :, 0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("settings", BOTH)
def test_step_is_the_weighted_sum_of_case_losses(settings: dict[str, Any]) -> None:
    one, label = task(**settings), labels()
    logits, _ = scores(one, label)
    target, valid = one.shares(label)
    losses = case_losses(one.cfg.loss, logits, target, valid, one.exclusive)
    found = one.step(nn.Identity(), batch(logits, label))["loss"]
    torch.testing.assert_close(found, (losses * torch.linspace(0.1, 0.7, 4)).sum())
    half = one.step(nn.Identity(), batch(logits.bfloat16(), label))["loss"]
    assert half.dtype == torch.float32, "a loss is summed in float32"


@pytest.mark.parametrize("settings", BOTH)
@pytest.mark.parametrize("size", [(16, 8), (8, 8, 4)])
def test_deep_supervision_halves_the_weight_of_each_coarser_head(
    settings: dict[str, Any], size: tuple[int, ...]
) -> None:
    """On blocks of one class each a coarse head is held to the same label as a fine one."""
    one = task(**settings)
    coarse = labels(size=tuple(edge // 4 for edge in size), ignored=True)
    fine = coarse
    for axis in range(2, coarse.ndim):
        fine = fine.repeat_interleave(4, axis)
    heads = []
    for factor in (1, 2, 4):
        generator = torch.Generator().manual_seed(factor)
        heads.append(torch.randn(4, one.outputs, *(edge // factor for edge in size), generator=generator))
    parts = []
    for head, factor in zip(heads, (1, 2, 4), strict=True):
        grid = fine[(slice(None), slice(None), *[slice(None, None, factor)] * len(size))]
        parts.append(one.step(nn.Identity(), batch(head, grid))["loss"])
    found = one.step(Heads(heads), batch(heads[0], fine))["loss"]
    torch.testing.assert_close(found, (parts[0] + parts[1] / 2 + parts[2] / 4) / 1.75)


@pytest.mark.parametrize("settings", BOTH)
def test_unlabelled_voxels_do_not_change_what_a_coarse_head_is_held_to(settings: dict[str, Any]) -> None:
    """A coarse voxel of which a part was labelled is of the labelled part's class."""
    one, label = task(**settings), torch.full((4, 1, 4, 4), 2, dtype=torch.uint8)
    some = label.clone()
    some[..., ::2] = IGNORED
    heads = [torch.zeros(4, one.outputs, 4, 4), torch.randn(4, one.outputs, 2, 2)]
    cfg = one.cfg.loss.model_copy(update={"name": "cross_entropy"})
    one = Segmentation(one.cfg.model_copy(update={"loss": cfg}), CLASSES)
    whole, part = (one.step(Heads(heads), batch(heads[0], which))["loss"] for which in (label, some))
    torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("size", [(9, 10), (5, 6, 7)])
def test_measure_then_summarise_are_the_metrics_of_the_label_maps(size: tuple[int, ...]) -> None:
    one, label = task(), labels(size=size)
    _, probabilities = scores(one, label)
    rows = one.measure(probabilities, probabilities, label).numpy()
    truth = label[:, 0].numpy()
    masks = [one.decode("x", case.numpy()).mask for case in probabilities]
    expected = [overlap_counts(mask, real, 3, IGNORED)[1:] for mask, real in zip(masks, truth, strict=True)]
    np.testing.assert_array_equal(rows[:, :-1].reshape(-1, 2, 3), expected)
    figures = summarise(np.stack(expected), one.structures, background=None)
    found = one.summarise(rows[:, :-1], np.zeros((4, 3)))
    assert found == {name: figures[name] for name in ("dice", "iou", "dice/edema", "dice/core")}
    assert one.headline(rows[:, :-1], np.zeros((4, 3))) == pytest.approx(found["dice"])
    assert one.per_class(rows[:, :-1], np.zeros((4, 3)))["core"]["dice"] == pytest.approx(found["dice/core"])
    target, valid = one.shares(label)
    losses = case_losses(one.cfg.loss, probabilities.log(), target, valid, True)
    np.testing.assert_allclose(rows[:, -1], losses, rtol=1e-4)


def test_regions_are_counted_by_themselves() -> None:
    one, label = task(regions=REGIONS, threshold=0.3), labels()
    _, probabilities = scores(one, label)
    rows = one.measure(probabilities, probabilities, label).numpy()
    for row, case, truth in zip(rows, probabilities.numpy(), label[:, 0].numpy(), strict=True):
        mask = one.decode("x", case).mask
        assert mask is not None
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, case >= np.float32(0.3))
        true = np.stack([(truth == 1) | (truth == 2), truth == 2])
        np.testing.assert_array_equal(row[:-1].reshape(2, 3), region_counts(mask, true, truth != IGNORED))


def test_what_is_nowhere_is_left_out_of_means() -> None:
    """The second structure is in no case and found in none: no warning, and no figure for it."""
    one = task()
    rows = np.array([[4, 5, 6, 0, 0, 0], [0, 0, 0, 0, 0, 0], [2, 4, 4, 0, 0, 0]], np.float64)
    found = one.summarise(rows, np.zeros((3, 3)))
    assert found["dice"] == pytest.approx((8 / 11 + 0.5) / 2)
    assert np.isnan(found["dice/core"])
    assert one.headline(rows, np.zeros((3, 3))) == pytest.approx(found["dice"])
    table = one.per_class(rows, np.zeros((3, 3)))
    assert (table["edema"]["support"], table["core"]["support"]) == (2, 0)
    assert np.isnan(table["core"]["dice"])
    assert np.isnan(one.headline(rows[1:2], np.zeros((1, 3))))
    assert np.isnan(one.case_dice(rows)[1]).all()


def test_decisions_and_volumes() -> None:
    probabilities = np.zeros((3, 2, 3), np.float32)
    probabilities[0], probabilities[2, 0, :2] = 0.4, 0.6
    answer = task().decode("case", probabilities, ("odd",))
    assert answer.mask is not None
    assert answer.mask.dtype == np.uint8
    assert answer.mask.tolist() == [[2, 2, 0], [0, 0, 0]]
    assert (answer.labels, answer.warnings, answer.classes) == (("core",), ("odd",), CLASSES)
    assert task().voxels(answer.mask) == {"edema": 0, "core": 2}
    regions = task(regions=REGIONS)
    mask = np.zeros((2, 2, 3), bool)
    mask[0, 0] = True
    assert regions.voxels(mask) == {"whole": 3, "core": 0}
    assert regions.answer("case", mask).labels == ("whole",)


def test_a_threshold_counts_from_itself_on() -> None:
    one = task(regions=REGIONS, threshold=0.5)
    scores = torch.full((1, 2, 1, 2), 0.5)
    assert one.masks(scores).all()
    assert one.decode("x", scores[0].numpy()).mask.all()


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="needs 2 to 255 classes, background first; there are 1"):
        build(Config(), ("background",), False, np.zeros((0, 1)))
    with pytest.raises(ConfigError, match="there are 256"):
        build(Config(), tuple(map(str, range(256))), False, np.zeros((0, 256)))
    with pytest.raises(ConfigError, match=r"task.regions.whole: no class 'oedema'; did you mean 'edema'"):
        task(regions={"whole": ["oedema", "core"]})
