"""Going on from a state: where a training of one's own ended, or, in a population, from another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny

from medray.config import Experiment, override
from medray.pipeline.prepare import prepare
from medray.tracking import journal
from medray.training import checkpoint, state
from medray.training.checkpoint import State
from medray.training.keeper import Keeper
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


def hand_on(donor: Learner, heir: Learner, folder: Path) -> None:
    """Through a checkpoint on the disk."""
    shared, own = state.take(donor)
    (partial := folder / "checkpoint.partial").mkdir()
    sums = checkpoint.write(partial, shared, checkpoint.VALUES)
    sums |= checkpoint.write(partial, State({f"rank-0000/{k}": v for k, v in own.tensors.items()}), "rank-0000")
    checkpoint.commit(partial, folder / "step-00000001", sums)
    assert not checkpoint.problem_of(folder / "step-00000001")
    state.give(heir, checkpoint.load(folder / "step-00000001"))


def test_a_population_inherits_weights_and_optimiser_state_but_not_settings(
    image_folder: Path, stores: Path, tmp_path: Path
) -> None:
    strong = tiny(image_folder, train={"epochs": 4, "batch_size": 8, "precision": "fp32"})
    weak = override(strong, {"optimizer.lr": 1e-5, "optimizer.weight_decay": 0.3, "optimizer.betas": [0.8, 0.99]})
    donor, heir = learner(strong, stores), learner(weak, stores)
    train_to(donor, 2)
    train_to(heir, 1)
    heir = learner(weak, stores)
    hand_on(donor, heir, tmp_path)
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


def test_a_resumed_training_ends_where_an_unbroken_one_does(image_folder: Path, stores: Path, tmp_path: Path) -> None:
    experiment = tiny(image_folder, train={"epochs": 4, "batch_size": 8, "precision": "fp32"})
    whole, first, second = (learner(experiment, stores) for _ in range(3))
    train_to(whole, 4)
    train_to(first, 2)
    hand_on(first, second, tmp_path)
    train_to(second, 4)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], tensor), name


@dataclass
class Listener:
    """Counts what a worker tells, and breaks off after as many steps as it is told."""

    steps: int = -1
    wanted: bool = False
    rows: list[int] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    finished_with: list[Mapping[str, float]] = field(default_factory=list)

    def step(self, done: int, epoch: int) -> None:
        assert 1 <= done <= epoch
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt

    def wants(self, epoch: int) -> bool:  # noqa: ARG002
        return self.wanted

    def epoch(self, row: Mapping[str, float | None], place: Path | None) -> None:
        self.rows.append(int(row["epoch"] or 0))
        if place is not None:
            assert not checkpoint.problem_of(place)
            self.places.append(place.name)

    def finished(self, metrics: Mapping[str, float]) -> None:
        self.finished_with.append(metrics)


def run(experiment: Experiment, stores: Path, folder: Path, listener: Listener | None = None) -> Listener:
    listener = listener or Listener()
    folder.mkdir(exist_ok=True)
    work(experiment, prepare(experiment, stores), World(), folder, listener)
    return listener


def wait_for_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint that is due is taken, as on a disk that is quicker than the steps."""
    monkeypatch.setattr(Keeper, "busy", property(lambda keeper: keeper.wait() is None and False))


def three_epochs(images: Path, **train: object) -> Experiment:
    """4 steps an epoch, with dropout, momentum, a moving average and batch norm: all that a state must hold."""
    settings = {"epochs": 3, "batch_size": 6, "precision": "fp32", "ema": 0.9, **train}
    network = {"name": "plain", "widths": [4, 8], "norm": "batch", "dropout": 0.3}
    return tiny(images, train=settings, network=network)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint: the weights, the best ones, the optimiser's, the buffers."""
    saved = checkpoint.load(folder / "checkpoints" / "finished")
    return saved.shared.tensors | {f"own/{name}": tensor for name, tensor in saved.own[0].tensors.items()}


def untimed(folder: Path) -> list[dict[str, float]]:
    """The epochs' figures without those of the clock."""
    timed = ("at/worker", "at/network", "at/first_step", journal.END, "epoch_s", "samples_per_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in journal.epochs(folder / journal.JOURNAL)]


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = weights_of(one), weights_of(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    untimed = [
        [
            {k: v for k, v in row.items() if not k.startswith("at/") and k not in ("epoch_s", "samples_per_s")}
            for row in rows
        ]
        for rows in (journal.epochs(one / journal.JOURNAL), journal.epochs(other / journal.JOURNAL))
    ]
    assert untimed[0] == untimed[1]


@pytest.fixture(scope="module")
def unbroken(image_folder: Path, stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run(three_epochs(image_folder, checkpoint_every="never"), stores, folder)
    return folder


@pytest.mark.parametrize("every", ["1 steps", "3 steps", "1 epoch", "never"])
@pytest.mark.parametrize("kill", [1, 4, 6, 9, 11])
def test_broken_off_after_any_step_the_weights_are_the_same_to_the_last_bit(
    image_folder: Path, stores: Path, tmp_path: Path, unbroken: Path, every: str, kill: int
) -> None:
    experiment = three_epochs(image_folder, checkpoint_every=every)
    with pytest.raises(KeyboardInterrupt):
        run(experiment, stores, tmp_path, Listener(kill))
    run(experiment, stores, tmp_path)
    assert_same(tmp_path, unbroken)


def test_broken_off_again_and_again_it_comes_to_the_same_end(
    image_folder: Path, stores: Path, tmp_path: Path, unbroken: Path
) -> None:
    experiment = three_epochs(image_folder, checkpoint_every="1 steps")
    starts = 1
    while True:
        try:
            run(experiment, stores, tmp_path, Listener(2))
            break
        except KeyboardInterrupt:
            starts += 1
            assert starts < 30
    assert starts >= 6
    assert_same(tmp_path, unbroken)


def test_asked_to_stop_before_it_starts_it_does_not(image_folder: Path, stores: Path, tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    experiment = three_epochs(image_folder)
    assert not work(experiment, prepare(experiment, stores), World(), tmp_path, Listener(1))
    assert checkpoint.whole(tmp_path) == []


@pytest.mark.parametrize("at", [2, 4, 5, 12])
def test_asked_to_stop_it_saves_where_it_stands(
    image_folder: Path, stores: Path, tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """12 is the last step: then the best weights are being measured."""
    monkeypatch.setattr("medray.training.watch.LOOK_S", 0.0)
    experiment = three_epochs(image_folder, checkpoint_every="never")

    class Asking(Listener):
        def step(self, done: int, epoch: int) -> None:  # noqa: ARG002
            self.steps += 1
            if self.steps == at:
                (tmp_path / "stop").touch()

    assert not work(experiment, prepare(experiment, stores), World(), tmp_path, Asking(0))
    (tmp_path / "stop").unlink()
    (place,) = checkpoint.whole(tmp_path)
    assert at <= checkpoint.step_of(place) <= at + 1
    run(experiment, stores, tmp_path)
    assert_same(tmp_path, unbroken)


@pytest.mark.parametrize(
    ("every", "saved"),
    [("1 epoch", [4, 8, 12]), ("2 epochs", [8]), ("5 steps", [5, 10]), ("0.000001 s", None), ("never", [])],
)
def test_checkpoints_come_as_often_as_the_experiment_says(
    image_folder: Path,
    stores: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: str,
    saved: list[int] | None,
) -> None:
    """Unless the one before is still being written, which here is waited for."""
    monkeypatch.setattr(checkpoint, "prune", lambda _folder: None)
    wait_for_disk(monkeypatch)
    listener = run(three_epochs(image_folder, checkpoint_every=every), stores, tmp_path)
    assert listener.rows == [1, 2, 3]
    *steps, last = sorted(checkpoint.step_of(place) for place in checkpoint.whole(tmp_path))
    assert last == float("inf")
    assert steps == saved if saved is not None else len(steps) >= 2
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


def test_a_listener_gets_the_checkpoints_that_it_wants(image_folder: Path, stores: Path, tmp_path: Path) -> None:
    listener = run(three_epochs(image_folder), stores, tmp_path, Listener(wanted=True))
    assert listener.places == ["step-00000004", "step-00000008", "step-00000012"]
    assert [place.name for place in checkpoint.whole(tmp_path)] == ["finished", "step-00000012"]


@pytest.mark.parametrize("harm", ["cut", "zeroed", "flipped", "gone", "no sums"])
def test_from_a_broken_checkpoint_it_goes_back_to_the_one_before(
    image_folder: Path,
    stores: Path,
    tmp_path: Path,
    unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: str,
) -> None:
    wait_for_disk(monkeypatch)
    experiment = three_epochs(image_folder, checkpoint_every="2 steps")
    with pytest.raises(KeyboardInterrupt):
        run(experiment, stores, tmp_path, Listener(7))
    newest, before = checkpoint.whole(tmp_path)
    file = newest / "network.safetensors"
    content = bytearray(file.read_bytes())
    match harm:
        case "cut":
            file.write_bytes(content[:-10])
        case "zeroed":
            file.write_bytes(bytes(len(content)))
        case "flipped":
            content[-5] ^= 1
            file.write_bytes(content)
        case "gone":
            file.unlink()
        case "no sums":
            (newest / "SHA256SUMS").write_text("")
    said: list[str] = []
    assert checkpoint.newest(tmp_path, said.append) == before
    assert "is broken" in said[0]
    assert (tmp_path / "checkpoints" / f"{newest.name}.corrupt").is_dir()
    run(experiment, stores, tmp_path)
    assert_same(tmp_path, unbroken)


def test_a_finished_training_that_is_started_again_finishes_at_once(
    image_folder: Path, stores: Path, tmp_path: Path
) -> None:
    experiment = three_epochs(image_folder)
    run(experiment, stores, tmp_path)
    again = run(experiment, stores, tmp_path)
    assert again.rows == []
    assert again.finished_with == [collect(tmp_path).metrics]


def test_a_patience_that_was_used_up_is_used_up_after_a_restart(
    image_folder: Path, stores: Path, tmp_path: Path
) -> None:
    """Broken off between the last epoch and the end, it does not train another one."""
    experiment = three_epochs(image_folder, epochs=9, patience=1, checkpoint_every="1 epoch")

    class Breaking(Listener):
        def finished(self, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(experiment, stores, tmp_path, Breaking())
    done = journal.epochs(tmp_path / journal.JOURNAL)[-1]["epoch"]
    checkpoint.forget(tmp_path, 1e9)
    run(experiment, stores, tmp_path)
    assert journal.epochs(tmp_path / journal.JOURNAL)[-1]["epoch"] == done


def test_without_validation_cases_the_last_epoch_is_kept(image_folder: Path, stores: Path, tmp_path: Path) -> None:
    experiment = tiny(image_folder, train={"epochs": 3, "batch_size": 8, "precision": "fp32"})
    joined = override(experiment, {"split.join_val": True})
    prepared, before = prepare(joined, stores), prepare(experiment, stores)
    assert prepared.split.train == tuple(sorted(before.split.train + before.split.val))
    assert (prepared.split.val, prepared.split.test) == ((), before.split.test)
    run(joined, stores, tmp_path)
    outcome = collect(tmp_path)
    assert outcome.metrics["best_epoch"] == 3
    assert not any(name.startswith("val/") for name in outcome.metrics)
    assert np.isfinite(outcome.metrics["test/loss"])
    last = weights_of(tmp_path)
    assert all(torch.equal(outcome.weights[name], last[f"network/{name}"]) for name in outcome.weights)
