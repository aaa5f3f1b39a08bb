"""Schedules against torch's own and their formulas; optimisers; groups."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from medray.sections.training import OptimizerSection, ScheduleSection
from medray.training.optim import Schedule, build_optimizer, l1_penalty, set_rates

EPOCHS, STEPS = 20, 7


def factors(**settings: Any) -> list[float]:
    cfg = ScheduleSection.model_validate(settings)
    return [Schedule(cfg, STEPS, EPOCHS * STEPS).factor(step) for step in range(EPOCHS * STEPS)]


def test_onecycle_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=EPOCHS * STEPS, cycle_momentum=False, pct_start=0.3
    )
    # torch ends its rise at the step before rise * total, we at rise * (total - 1): they agree within a step.
    expected = []
    for _ in range(EPOCHS * STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < EPOCHS * STEPS:
            theirs.step()
    found = factors(name="onecycle")
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 0.03
    assert found[0] == pytest.approx(1 / 25)
    assert found[-1] == pytest.approx(1 / 250_000)
    assert max(found) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({"name": "constant"}, lambda _: 1.0),
        ({"name": "step", "step_epochs": 5, "gamma": 0.5}, lambda e: 0.5 ** math.floor(e / 5)),
        ({"name": "exponential", "gamma": 0.9}, lambda e: 0.9**e),
        ({"name": "inverse_time", "gamma": 0.3}, lambda e: 1 / (1 + 0.3 * e)),
        ({"name": "cosine", "floor": 0.1}, lambda e: 0.1 + 0.9 * (1 + math.cos(math.pi * e / EPOCHS)) / 2),
        ({"name": "polynomial", "power": 0.9}, lambda e: (1 - e / EPOCHS) ** 0.9),
        ({"name": "polynomial", "power": 2, "floor": 0.3}, lambda e: max(0.3, (1 - e / EPOCHS) ** 2)),
        ({"name": "warm_restarts", "step_epochs": 5}, lambda e: (1 + math.cos(math.pi * (e % 5) / 5)) / 2),
        (
            {"name": "warm_restarts", "step_epochs": 5, "floor": 0.2},
            lambda e: 0.2 + 0.8 * (1 + math.cos(math.pi * (e % 5) / 5)) / 2,
        ),
    ],
)
def test_formulas(settings: dict[str, Any], formula: Any) -> None:
    for step, factor in enumerate(factors(**settings)):
        assert factor == pytest.approx(formula(step / STEPS), abs=1e-9)


@pytest.mark.parametrize("rise", [0.1, 0.5, 0.9])
def test_onecycle_rises_over_the_share_that_is_asked_for(rise: float) -> None:
    found = factors(name="onecycle", rise=rise)
    assert found.index(max(found)) == pytest.approx(rise * (len(found) - 1), abs=1)


def test_growing_restarts() -> None:
    found = factors(name="warm_restarts", step_epochs=2, cycle_growth=2)
    starts = [step / STEPS for step, factor in enumerate(found) if factor == 1]
    assert starts == [0, 2, 6, 14]


@pytest.mark.parametrize("name", ["constant", "cosine", "polynomial", "step"])
def test_warm_up_rises_from_near_zero(name: str) -> None:
    found = factors(name=name, warmup_epochs=2)
    assert found[0] == pytest.approx(1 / 15)
    assert found[: 2 * STEPS] == sorted(found[: 2 * STEPS])
    assert found[2 * STEPS] == pytest.approx(1)


NETWORK = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"name": "sgd", "momentum": 0.0}, torch.optim.SGD),
        ({"name": "sgd", "momentum": 0.9, "nesterov": True}, torch.optim.SGD),
        ({"name": "adagrad"}, torch.optim.Adagrad),
        ({"name": "rmsprop", "momentum": 0.5}, torch.optim.RMSprop),
        ({"name": "adam"}, torch.optim.Adam),
        ({"name": "adamw", "betas": [0.8, 0.9]}, torch.optim.AdamW),
    ],
)
def test_optimisers(settings: dict[str, Any], kind: type) -> None:
    cfg = OptimizerSection.model_validate({**settings, "lr": 0.1, "weight_decay": 0.2})
    optimizer = build_optimizer(cfg, NETWORK, ())
    assert type(optimizer) is kind
    decays = {group["weight_decay"] for group in optimizer.param_groups for p in group["params"] if p.ndim > 1}
    assert decays == {0.2}
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups for p in group["params"] if p.ndim == 1)
    for name in ("momentum", "nesterov", "betas"):
        if name in settings:
            value = optimizer.param_groups[0][name]
            assert (list(value) if name == "betas" else value) == settings[name]


def test_backbone_learns_slower_at_every_step() -> None:
    cfg = OptimizerSection(name="sgd", lr=1.0, backbone_factor=0.1)
    optimizer = build_optimizer(cfg, NETWORK, {"0.weight"})
    for factor in (1.0, 0.5, 0.25):
        set_rates(optimizer, factor)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rates[id(NETWORK[0].weight)] == pytest.approx(0.1 * factor)
        assert rates[id(NETWORK[3].weight)] == pytest.approx(factor)


def test_l1_counts_weights_alone() -> None:
    expected = NETWORK[0].weight.abs().sum() + NETWORK[3].weight.abs().sum()
    torch.testing.assert_close(l1_penalty(NETWORK), expected)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rmsprop", "adam", "adamw"])
def test_one_pass_over_everything_is_the_same_as_many(name: str) -> None:
    """Weights and gradients in the memory order of images too, which a fused step must not mix up."""
    cfg = OptimizerSection.model_validate({"name": name, "lr": 0.05, "weight_decay": 0.01})
    networks = []
    for fused in (True, False):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
        optimizer = build_optimizer(cfg, network, ())
        if not fused:
            for group in optimizer.param_groups:
                group |= {"fused": False, "foreach": False}
        for step in range(5):
            image = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(step))
            network(image.contiguous(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        networks.append(network)
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
