"""Going on from a state: where a training of one's own ended, or, in a population, from another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny

from medray.config import Experiment, override
from medray.pipeline.prepare import prepare
from medray.training import checkpoint
from medray.training.alone import FolderReporter
from medray.training.learner import Learner
from medray.training.loop import EpochDone, fit
from medray.training.worker import collect, work
from medray.training.world import World


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def learner(experiment: Experiment, stores: Path) -> Learner:
    return Learner(experiment, prepare(experiment, stores), World())


def train_to(found: Learner, epoch: int) -> None:
    for event in fit(found):
        if isinstance(event, EpochDone) and event.epoch == epoch:
            return


def test_a_population_inherits_weights_and_optimiser_state_but_not_settings(image_folder: Path, stores: Path) -> None:
    strong = tiny(image_folder, train={"epochs": 4, "batch_size": 8, "precision": "fp32"})
    weak = override(strong, {"optimizer.lr": 1e-5, "optimizer.weight_decay": 0.3, "optimizer.betas": [0.8, 0.99]})
    donor, heir = learner(strong, stores), learner(weak, stores)
    train_to(donor, 2)
    train_to(heir, 1)
    state = donor.state()
    heir = learner(weak, stores)
    heir.load_state(state)
    for name, tensor in donor.network.state_dict().items():
        assert torch.equal(heir.network.state_dict()[name], tensor), name
    ours, theirs = heir.optimizer.state_dict()["state"], donor.optimizer.state_dict()["state"]
    assert theirs
    for number, moments in theirs.items():
        assert all(torch.equal(ours[number][name], moments[name]) for name in moments), "Adam's moments and steps"
    assert (heir.epoch, heir.step, heir.best_epoch) == (donor.epoch, donor.step, donor.best_epoch)
    for group in heir.optimizer.param_groups:
        assert group["betas"] == (0.8, 0.99)
        assert group["lr"] == 1e-5
    assert {group["weight_decay"] for group in heir.optimizer.param_groups} == {0.0, 0.3}

    before = [parameter.detach().clone() for parameter in heir.network.parameters()]
    train_to(heir, 3)
    after = [parameter.detach() for parameter in heir.network.parameters()]
    moved = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    assert moved < 1e-3, "steps are as long as the heir's own rate says"
    rates = {group["lr"] for group in heir.optimizer.param_groups}
    assert all(0 < rate <= 1e-5 for rate in rates)


def test_a_resumed_training_ends_where_an_unbroken_one_does(image_folder: Path, stores: Path) -> None:
    experiment = tiny(image_folder, train={"epochs": 4, "batch_size": 8, "precision": "fp32"})
    whole, first, second = (learner(experiment, stores) for _ in range(3))
    train_to(whole, 4)
    train_to(first, 2)
    second.load_state(first.state())
    train_to(second, 4)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], tensor), name


@dataclass
class Listener:
    """Counts what a worker reports."""

    checkpoint_every_s: float
    rows: list[int] = field(default_factory=list)
    places: list[dict[str, Any]] = field(default_factory=list)
    finished: list[Mapping[str, float]] = field(default_factory=list)

    def report(self, row: Mapping[str, float | None], place: Path | None) -> None:
        self.rows.append(int(row["epoch"] or 0))
        if place is not None:
            self.places.append(checkpoint.load(place))

    def finish(self, metrics: Mapping[str, float], place: Path | None) -> None:
        assert place is not None
        self.finished.append(metrics)
        self.places.append(checkpoint.load(place))

    def step(self, done: int, epoch: int) -> None:
        """Nothing."""


@pytest.mark.parametrize(("every_s", "places"), [(0.0, 4), (60.0, 1)])
def test_checkpoints_come_as_often_as_the_reporter_wants(
    image_folder: Path, stores: Path, every_s: float, places: int
) -> None:
    experiment = tiny(image_folder, train={"epochs": 3, "batch_size": 8, "precision": "fp32"})
    listener = Listener(every_s)
    work(experiment, prepare(experiment, stores), World(), listener, None)
    assert listener.rows == [1, 2, 3]
    assert len(listener.places) == places
    assert "finished" in listener.places[-1]
    assert listener.finished[0]["best_epoch"] in (1.0, 2.0, 3.0)


def test_a_finished_training_that_is_started_again_finishes_at_once(
    image_folder: Path, stores: Path, tmp_path: Path
) -> None:
    experiment = tiny(image_folder, train={"epochs": 2, "batch_size": 8, "precision": "fp32"})
    prepared = prepare(experiment, stores)
    keeper = FolderReporter(tmp_path)
    work(experiment, prepared, World(), keeper, keeper.last())
    first = collect(tmp_path / "checkpoint")
    listener = Listener(60.0)
    work(experiment, prepared, World(), listener, keeper.last())
    assert listener.rows == []
    assert listener.finished == [first.metrics]


def test_without_validation_cases_the_last_epoch_is_kept(image_folder: Path, stores: Path, tmp_path: Path) -> None:
    experiment = tiny(image_folder, train={"epochs": 3, "batch_size": 8, "precision": "fp32"})
    joined = override(experiment, {"split.join_val": True})
    prepared, before = prepare(joined, stores), prepare(experiment, stores)
    assert prepared.split.train == tuple(sorted(before.split.train + before.split.val))
    assert (prepared.split.val, prepared.split.test) == ((), before.split.test)
    keeper = FolderReporter(tmp_path)
    work(joined, prepared, World(), keeper, None)
    outcome = collect(tmp_path / "checkpoint")
    assert outcome.metrics["best_epoch"] == 3
    assert not any(name.startswith("val/") for name in outcome.metrics)
    assert np.isfinite(outcome.metrics["test/loss"])
    state = checkpoint.load(tmp_path / "checkpoint")
    assert all(torch.equal(outcome.weights[name], tensor) for name, tensor in state["network"].items())
