"""Losses by overlap and by voxel against MONAI's; what nobody labelled counts nowhere; no gradient is infinite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai import losses
from pydantic import ValidationError

from medray.tasks.overlap_loss import SMOOTH, Loss, case_losses

NAMES = ["dice_ce", "dice", "cross_entropy", "dice_focal", "tversky", "generalized_dice"]
MONAI = {"smooth_nr": SMOOTH, "smooth_dr": SMOOTH}
SIZES = [(12, 14), (6, 7, 8)]


def draw(exclusive: bool, size: tuple[int, ...] = (12, 14), cases: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of three classes or regions; each is in each case."""
    generator = torch.Generator().manual_seed(len(size))
    logits = 2 * torch.randn(cases, 3, *size, generator=generator)
    if not exclusive:
        return logits, (torch.rand(cases, 3, *size, generator=generator) > 0.7).float()
    label = torch.randint(0, 3, (cases, *size), generator=generator)
    return logits, torch.stack([label == value for value in range(3)], 1).float()


def found(name: str, logits: torch.Tensor, target: torch.Tensor, exclusive: bool, **settings: Any) -> torch.Tensor:
    valid = settings.pop("valid", torch.ones_like(target[:, :1]))
    return case_losses(Loss.model_validate({"name": name, **settings}), logits, target, valid, exclusive)


def how(exclusive: bool, background: bool) -> dict[str, Any]:
    """MONAI's settings."""
    return {"softmax": exclusive, "sigmoid": not exclusive, "include_background": background or not exclusive}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("exclusive", "background"), [(True, False), (True, True), (False, False)])
def test_dice_tversky_and_generalized_dice_are_monais(size: tuple[int, ...], exclusive: bool, background: bool) -> None:
    logits, target = draw(exclusive, size)
    target[0, 0], target[0, 2] = target[0, 0] + exclusive * target[0, 2], 0  # one is not there
    settings = {**how(exclusive, background), "reduction": "none"}
    for name, theirs in (
        ("dice", losses.DiceLoss(**settings, **MONAI)),
        ("tversky", losses.TverskyLoss(**settings, **MONAI, alpha=0.2, beta=0.8)),
        ("generalized_dice", losses.GeneralizedDiceLoss(**settings, **MONAI)),
    ):
        mine = found(name, logits, target, exclusive, background=background, alpha=0.2)
        torch.testing.assert_close(mine, theirs(logits, target).flatten(1).mean(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("exclusive", [True, False])
def test_dice_with_cross_entropy_is_monais(size: tuple[int, ...], exclusive: bool) -> None:
    logits, target = draw(exclusive, size)
    mine = found("dice_ce", logits, target, exclusive).mean()
    if exclusive:
        theirs = losses.DiceCELoss(**how(True, False), **MONAI)(logits, target)
    else:  # MONAI's cross-entropy of several channels is always that of a softmax.
        voxel = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        theirs = losses.DiceLoss(**how(False, False), **MONAI)(logits, target) + voxel
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("exclusive", [True, False])
def test_dice_with_focal_is_monais(size: tuple[int, ...], gamma: float, exclusive: bool) -> None:
    """MONAI adds the focal loss of sigmoids to the Dice of a softmax; that of a softmax it averages over classes."""
    logits, target = draw(exclusive, size)
    if exclusive:
        dice, focal = losses.DiceLoss(**how(True, True), **MONAI), losses.FocalLoss(gamma=gamma, use_softmax=True)
        theirs = dice(logits, target) + 3 * focal(logits, target)
    else:
        theirs = losses.DiceFocalLoss(**how(False, True), **MONAI, gamma=gamma)(logits, target)
    mine = found("dice_focal", logits, target, exclusive, background=True, gamma=gamma).mean()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_a_batch_counts_as_one_case_where_asked() -> None:
    logits, target = draw(True)
    theirs = losses.DiceLoss(**how(True, False), **MONAI, batch=True)(logits, target)
    for name in ("dice", "tversky", "generalized_dice"):
        mine = found(name, logits, target, True, batch=True)
        together = found(name, *(torch.cat(list(part), 1)[None] for part in (logits, target)), True)
        assert mine.shape == (5,)
        torch.testing.assert_close(mine, together.expand(5), msg=name)
    torch.testing.assert_close(found("dice", logits, target, True, batch=True).mean(), theirs, rtol=0, atol=1e-5)
    rare = target.clone()
    rare[1:, 2], rare[1:, 1] = 0, target[1:, 1:].sum(1)
    assert found("dice", logits, rare, True, batch=True)[0] < found("dice", logits, rare, True).mean()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exclusive", [True, False])
def test_a_case_does_not_see_its_batch(name: str, exclusive: bool) -> None:
    logits, target = draw(exclusive)
    together = found(name, logits, target, exclusive)
    for case in range(5):
        part = slice(case, case + 1)
        torch.testing.assert_close(found(name, logits[part], target[part], exclusive), together[part])


@pytest.mark.parametrize("settings", [*({"name": name} for name in NAMES), {"name": "dice_ce", "boundary": 3}], ids=str)
@pytest.mark.parametrize("exclusive", [True, False])
def test_what_nobody_labelled_counts_nowhere(settings: dict[str, Any], exclusive: bool) -> None:
    """The loss of the left half of an image is that of the left half alone."""
    logits, target = draw(exclusive)
    logits.requires_grad_()
    valid = torch.ones_like(target[:, :1])
    valid[..., 7:] = 0
    whole = found(logits=logits, target=target * valid, exclusive=exclusive, valid=valid, **settings)
    half = found(logits=logits[..., :7], target=target[..., :7], exclusive=exclusive, **settings)
    torch.testing.assert_close(whole, half)
    (gradient,) = torch.autograd.grad(whole.sum(), logits)
    assert (gradient[..., 7:] == 0).all()
    assert (gradient[..., :7] != 0).any()


@pytest.mark.parametrize(
    "settings", [*({"name": name} for name in NAMES), {"name": "dice_focal", "gamma": 0.5}], ids=str
)
@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_gradients_are_finite_without_a_structure_and_where_the_network_is_sure(
    settings: dict[str, Any], exclusive: bool, scale: float
) -> None:
    target = torch.zeros(3, 3, 6, 6)
    target[:2, 0] = 1 if exclusive else 0  # the first two hold nothing, the third is not labelled at all
    valid = torch.ones(3, 1, 6, 6)
    valid[2] = 0
    for sign in (1, -1):
        logits = (sign * scale * (2 * target - 1)).requires_grad_()
        loss = found(logits=logits, target=target, exclusive=exclusive, valid=valid, **settings)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exclusive", [True, False])
def test_the_truth_costs_nothing_and_its_opposite_much(name: str, exclusive: bool) -> None:
    _, target = draw(exclusive)
    assert found(name, 60 * (2 * target - 1), target, exclusive).max() < 1e-4
    assert found(name, -60 * (2 * target - 1), target, exclusive).min() > 0.6


def test_nothing_there_and_nothing_found_is_right() -> None:
    target = torch.zeros(1, 3, 6, 6)
    target[:, 0] = 1
    for name in ("dice", "tversky", "generalized_dice"):
        assert float(found(name, 60 * (2 * target - 1), target, True)) < 1e-4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["dice_ce", "cross_entropy", "dice_focal"])
def test_boundary_weighs_voxels_beside_another_class(name: str, size: tuple[int, ...]) -> None:
    logits = torch.zeros(1, 2, *size)
    target = torch.zeros(1, 2, *size)
    target[:, 0], target[:, 1, ..., 4:] = 1, 1
    target[:, 0, ..., 4:] = 0
    border = torch.zeros(size, dtype=torch.bool)
    border[..., 3:5] = True
    wrong_there, wrong_inside = logits.clone(), logits.clone()
    wrong_there[:, 0, border], wrong_inside[:, 0, ~border] = 3, 3
    for wrong, rises in ((wrong_there, True), (wrong_inside, False)):
        plain, weighed = (float(found(name, wrong, target, True, boundary=weight)) for weight in (0.0, 4.0))
        assert (weighed > plain) == rises
        assert weighed != plain
    alone = torch.zeros_like(target)
    alone[:, 0] = 1
    assert found(name, logits, alone, True, boundary=4.0) == found(name, logits, alone, True), "without a border"


def test_tversky_of_equal_weights_is_dice_and_alpha_is_that_of_false_positives() -> None:
    logits, target = draw(True)
    torch.testing.assert_close(found("tversky", logits, target, True, alpha=0.5), found("dice", logits, target, True))
    everywhere = torch.zeros(1, 2, 8, 8)
    everywhere[:, 1] = 20
    some = torch.zeros(1, 2, 8, 8)
    some[:, 0, :4], some[:, 1, 4:] = 1, 1
    strict, lenient = (float(found("tversky", everywhere, some, True, alpha=alpha)) for alpha in (0.9, 0.1))
    assert strict > lenient + 0.2


def test_boundary_belongs_to_a_voxel_loss() -> None:
    with pytest.raises(ValidationError, match="boundary weighs the voxel loss, which dice does not have"):
        Loss.model_validate({"name": "dice", "boundary": 1})
