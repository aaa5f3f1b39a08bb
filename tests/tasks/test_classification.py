"""Classification: losses against their formulas, probabilities that are probabilities, imbalance, decisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from medray.config import ConfigError
from medray.tasks.classification import Classification, Config, build
from medray.types import Batch

CLASSES = {"binary": 2, "multiclass": 4, "multilabel": 3, "ordinal": 4}


def task(mode: str, targets: np.ndarray | None = None, **settings: Any) -> Classification:
    count = CLASSES[mode]
    names = tuple(f"class{k}" for k in range(count))
    cfg = Config.model_validate({"mode": mode, **settings})
    return build(cfg, names, mode == "multilabel", np.eye(count, dtype=np.float32) if targets is None else targets)


def draw(mode: str, cases: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw output and targets."""
    generator = torch.Generator().manual_seed(0)
    count = CLASSES[mode]
    output = 2 * torch.randn(cases, task(mode).outputs, generator=generator)
    if mode == "multilabel":
        return output, (torch.rand(cases, count, generator=generator) > 0.6).float()
    return output, torch.eye(count)[torch.randint(0, count, (cases,), generator=generator)]


@pytest.mark.parametrize("mode", CLASSES)
def test_probabilities(mode: str) -> None:
    probabilities = task(mode).probabilities(draw(mode)[0])
    assert probabilities.shape == (32, CLASSES[mode])
    assert (probabilities >= 0).all()
    assert (probabilities <= 1).all()
    if mode != "multilabel":
        torch.testing.assert_close(probabilities.sum(1), torch.ones(32))


@pytest.mark.parametrize("mode", CLASSES)
@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "bce", "mse"])
def test_every_loss_falls_to_zero_at_the_truth(mode: str, loss: str) -> None:
    one = task(mode, loss={"name": loss})
    target = torch.eye(CLASSES[mode])
    if mode == "binary":
        sure = torch.tensor([[-40.0], [40.0]])
    elif mode == "ordinal":
        sure = torch.tril(torch.full((4, 3), 80.0), -1) - 40
    else:
        sure = 80 * target - 40
    assert one.case_losses(sure, target).max() < 1e-6
    assert one.case_losses(-sure, target).min() > 0.5


def test_cross_entropy_is_torchs_with_smoothing() -> None:
    output, target = draw("multiclass")
    found = task("multiclass", loss={"name": "cross_entropy", "label_smoothing": 0.1}).case_losses(output, target)
    expected = functional.cross_entropy(output, target.argmax(1), label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(found, expected)


def test_a_binary_network_has_one_output_and_the_loss_of_two_classes() -> None:
    output, target = draw("binary")
    found = task("binary").case_losses(output, target)
    torch.testing.assert_close(
        found, functional.binary_cross_entropy_with_logits(output[:, 0], target[:, 1], reduction="none")
    )


@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_focal_without_focus_is_cross_entropy(mode: str) -> None:
    output, target = draw(mode)
    focal = task(mode, loss={"name": "focal", "gamma": 0.0}).case_losses(output, target)
    torch.testing.assert_close(focal, task(mode).case_losses(output, target))
    easy = task(mode, loss={"name": "focal", "gamma": 2.0}).case_losses(output, target)
    assert (easy <= focal + 1e-6).all()


def test_ordinal_thresholds() -> None:
    output, target = draw("ordinal")
    cumulative = torch.stack([(target.argmax(1) > k).float() for k in range(3)], 1)
    expected = functional.binary_cross_entropy_with_logits(output, cumulative, reduction="none").sum(1)
    torch.testing.assert_close(task("ordinal").case_losses(output, target), expected)


def test_step_is_the_weighted_sum() -> None:
    output, target = draw("multiclass")
    weight = torch.linspace(0, 1, 32)
    batch = Batch(output, target, weight, torch.arange(32))
    one = task("multiclass")
    loss = one.step(torch.nn.Identity(), batch)["loss"]
    torch.testing.assert_close(loss, (one.case_losses(output, target) * weight).sum())


def test_balanced_weights_make_classes_count_the_same() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    targets = np.eye(2, dtype=np.float32)[labels]
    weights = task("binary", class_weights="balanced").case_weights(targets, np.ones(100, np.float32))
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())
    assert weights.mean() == pytest.approx(1)
    assert (task("binary").case_weights(targets, np.ones(100, np.float32)) == 1).all()


def test_balanced_weights_of_labels_weigh_positives() -> None:
    targets = np.zeros((100, 3), np.float32)
    targets[:20, 0] = targets[:50, 1] = targets[:1, 2] = 1
    one = task("multilabel", targets, class_weights="balanced")
    assert one.positive_weights == pytest.approx((4.0, 1.0, 99.0))
    output, target = draw("multilabel")
    expected = functional.binary_cross_entropy_with_logits(
        output, target, pos_weight=torch.tensor([4.0, 1.0, 99.0]), reduction="none"
    ).sum(1)
    torch.testing.assert_close(one.case_losses(output, target), expected)


def test_balanced_sampling_gives_each_class_the_same_chance() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    chances = task("binary", sampling="balanced").case_chances(np.eye(2, dtype=np.float32)[labels])
    assert chances is not None
    assert chances[labels == 0].sum() == pytest.approx(chances[labels == 1].sum())
    assert task("binary").case_chances(np.eye(2, dtype=np.float32)) is None
    targets = np.zeros((10, 3), np.float32)
    targets[0] = [1, 1, 0]
    targets[1:6, 0] = 1
    chances = task("multilabel", sampling="balanced").case_chances(targets)
    assert chances is not None
    assert chances.argmax() == 0, "a case counts by its rarest label"
    assert (chances > 0).all()


def test_decisions() -> None:
    assert task("multiclass").decode("a", np.array([0.1, 0.6, 0.2, 0.1])).labels == ("class1",)
    assert task("multilabel", threshold=0.3).decode("a", np.array([0.3, 0.2, 0.9])).labels == ("class0", "class2")
    assert task("multilabel").decode("a", np.zeros(3)).labels == ()


def test_modes_are_found_from_the_dataset_and_checked() -> None:
    def mode(count: int, multilabel: bool, asked: str = "auto") -> str:
        names = tuple(map(str, range(count)))
        return build(Config.model_validate({"mode": asked}), names, multilabel, np.zeros((0, count))).mode

    assert (mode(2, False), mode(3, False), mode(3, True)) == ("binary", "multiclass", "multilabel")
    with pytest.raises(ConfigError, match="may have several classes; use multilabel"):
        mode(3, True, "multiclass")
    with pytest.raises(ConfigError, match="has 3 classes; use multiclass"):
        mode(3, False, "binary")
    with pytest.raises(ValidationError, match="label_smoothing is not defined"):
        Config.model_validate({"mode": "ordinal", "loss": {"label_smoothing": 0.1}})


def test_summarise_uses_the_threshold() -> None:
    scores, targets = np.array([[0.4, 0.1, 0.1]]), np.array([[1.0, 0.0, 0.0]])
    assert task("multilabel", threshold=0.3).summarise(scores, targets)["accuracy"] == 1
    assert task("multilabel").summarise(scores, targets)["accuracy"] == pytest.approx(2 / 3)
    assert task("multilabel", threshold=0.3).per_class(scores, targets)["class0"]["recall"] == 1
    assert task("multilabel").per_class(scores, targets)["class0"]["recall"] == 0
    assert task("multilabel", threshold=0.3).decision == {"class0": 0.3, "class1": 0.3, "class2": 0.3}
