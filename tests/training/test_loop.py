"""The loop in one plain process: it learns, stops when it should, resumes, and is the same on any number of workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_folder, tiny
from safetensors.torch import save_file
from test_going_on import hand_on
from torch import distributed, multiprocessing

from medray.config import ConfigError
from medray.pipeline.prepare import Prepared, prepare
from medray.training.learner import Learner, precision
from medray.training.loop import EpochDone, Finished, NonFiniteLoss, StepDone, evaluate, fit
from medray.training.world import World, joined_world

LEARNS = {"optimizer": {"name": "adamw", "lr": 0.01}, "train": {"epochs": 12, "batch_size": 8, "precision": "fp32"}}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def learner(folder: Path, stores: Path, **sections: Any) -> Learner:
    experiment = tiny(folder, **sections)
    return Learner(experiment, prepare(experiment, stores), World())


def run(one: Learner) -> tuple[list[float], list[EpochDone], Finished]:
    losses, epochs = [], []
    for event in fit(one):
        match event:
            case StepDone():
                losses.append(float(event.loss))
            case EpochDone():
                epochs.append(event)
            case Finished():
                return losses, epochs, event
    raise AssertionError("no end")


def test_it_learns_and_keeps_the_best_epoch(image_folder: Path, stores: Path) -> None:
    one = learner(image_folder, stores, **LEARNS)
    losses, epochs, finished = run(one)
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
    assert finished.metrics["test/accuracy"] == 1
    best = max(epochs, key=lambda event: event.metrics["val/auroc"])
    assert finished.metrics["val/auroc"] == pytest.approx(best.metrics["val/auroc"])
    assert finished.scores["val"].shape == (8, 2)
    assert finished.reason == "all epochs done"


def test_the_same_seed_gives_the_same_curve_and_another_another(image_folder: Path, stores: Path) -> None:
    curve = run(learner(image_folder, stores))[0]
    assert run(learner(image_folder, stores))[0] == curve
    assert run(learner(image_folder, stores, seed=1))[0] != curve


SWITCHES: list[dict[str, Any]] = [
    {"train": {"epochs": 1, "batch_size": 8, "precision": "bf16"}},
    {"train": {"epochs": 1, "batch_size": 8, "precision": "fp16"}},
    {"train": {"epochs": 1, "batch_size": 8, "clip_norm": 0.1}},
    {"train": {"epochs": 1, "batch_size": 8, "ema": 0.9}},
    {"train": {"epochs": 1, "batch_size": 8, "channels_last": False}},
    {"optimizer": {"name": "sgd", "lr": 0.01, "l1": 0.01}},
    {"schedule": {"name": "cosine", "warmup_epochs": 1}},
    {"augment": {"flip": {"p": 0.5, "axes": [0, 1]}, "noise": {"p": 1, "std": 0.1}, "mixup": {"p": 0.5, "alpha": 1}}},
    {"task": {"name": "classification", "class_weights": "balanced", "sampling": "balanced"}},
    {"task": {"name": "classification", "mode": "ordinal"}},
]


@pytest.mark.parametrize("sections", SWITCHES, ids=str)
def test_every_switch_trains_and_changes_something(image_folder: Path, stores: Path, sections: dict[str, Any]) -> None:
    plain = learner(image_folder, stores, train={"epochs": 1, "batch_size": 8, "precision": "fp32"})
    run(plain)
    one = learner(image_folder, stores, **sections)
    losses, _, finished = run(one)
    assert np.isfinite(losses).all()
    assert np.isfinite(finished.scores["test"]).all()
    if "channels_last" in str(sections):
        return
    mine, theirs = ({k: v.flatten() for k, v in o.best_weights.items()} for o in (one, plain))
    assert any(mine[name].shape != theirs[name].shape or not torch.equal(mine[name], theirs[name]) for name in mine)


def test_accumulation_changes_memory_and_not_the_curve(image_folder: Path, stores: Path) -> None:
    curves = [
        run(learner(image_folder, stores, train={"epochs": 2, "batch_size": 8, "precision": "fp32", "accumulate": n}))[
            0
        ]
        for n in (1, 3)
    ]
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)


@pytest.mark.slow
def test_compile_trains_to_the_same_curve(image_folder: Path, stores: Path) -> None:
    plain = run(learner(image_folder, stores))[0]
    compiled = run(
        learner(image_folder, stores, train={"epochs": 2, "batch_size": 8, "precision": "fp32", "compile": True})
    )
    np.testing.assert_allclose(compiled[0], plain, rtol=1e-3)


def test_patience_stops(image_folder: Path, stores: Path) -> None:
    frozen = {"name": "sgd", "lr": 1e-12}
    train = {"epochs": 9, "batch_size": 8, "precision": "fp32", "patience": 2}
    _, epochs, finished = run(learner(image_folder, stores, optimizer=frozen, train=train))
    assert len(epochs) == 3
    assert finished.reason == "no better val/auroc in 2 epochs"


def test_max_minutes_stops_at_the_end_of_an_epoch(image_folder: Path, stores: Path) -> None:
    train = {"epochs": 99, "batch_size": 8, "max_minutes": 1e-6}
    _, epochs, finished = run(learner(image_folder, stores, train=train))
    assert len(epochs) == 1
    assert "max_minutes" in finished.reason


def test_a_loss_that_is_not_finite_stops_with_its_step_and_no_nan_in_the_weights(
    image_folder: Path, stores: Path
) -> None:
    one = learner(image_folder, stores)
    one.feed.weights[one.rows["train"][5]] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"not finite at step \d+ \(epoch 1\)"):
        run(one)
    assert all(torch.isfinite(p).all() for p in one.network.parameters())


def test_monitor_and_mode(image_folder: Path, stores: Path) -> None:
    one = learner(image_folder, stores, train={"epochs": 1, "batch_size": 8, "monitor": "val/loss"})
    assert one.sign == -1
    with pytest.raises(ConfigError, match=r"'val/dice' is not measured; did you mean 'val/ece'"):
        run(learner(image_folder, stores, train={"epochs": 1, "batch_size": 8, "monitor": "val/dice"}))


@pytest.mark.parametrize(("mode", "best"), [(None, 2), ("max", 2), ("min", 3)])
def test_mode_says_which_epoch_is_the_best(image_folder: Path, stores: Path, mode: str | None, best: int) -> None:
    """Of a metric of which more is better, min keeps the epoch with the least."""
    one = learner(image_folder, stores, train={"epochs": 4, "batch_size": 8, "monitor": "val/auroc", "mode": mode})
    for epoch, value in enumerate((0.6, 0.9, 0.3, 0.5), 1):
        with torch.no_grad():
            one.head.fill_(epoch)
        one.close_epoch({"val/auroc": value})
    assert one.best_epoch == best
    one.restore_best()
    assert float(one.head.detach().mean()) == best


def weights_without_head(one: Learner, file: Path) -> set[str]:
    """Save what a network has but for its last layer; the names of what was saved."""
    state = one.network.state_dict()
    last = list(state)[-1].rpartition(".")[0]
    backbone = {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith(f"{last}.")}
    save_file(backbone, file)
    return set(backbone)


def moved(one: Learner) -> set[str]:
    """Names of the parameters that a training changes."""
    before = {name: tensor.clone() for name, tensor in one.network.state_dict().items()}
    run(one)
    return {name for name, tensor in one.network.state_dict().items() if not torch.equal(tensor, before[name])}


PLAIN = {"name": "plain", "widths": [8, 8], "norm": "none"}
STEPS = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_layers_come_through_a_training_unchanged(
    image_folder: Path, stores: Path, tmp_path: Path, freeze: bool
) -> None:
    donor = learner(image_folder, stores, seed=7)
    backbone = weights_without_head(donor, tmp_path / "backbone.safetensors")
    network = {**PLAIN, "weights": str(tmp_path / "backbone.safetensors"), "freeze": freeze}
    one = learner(image_folder, stores, network=network, optimizer={**STEPS, "l1": 0.01})
    found = one.network.state_dict()
    assert all(torch.equal(found[name], donor.network.state_dict()[name]) for name in backbone)
    head = set(found) - backbone
    assert head
    assert moved(one) == (head if freeze else head | backbone)


@pytest.mark.parametrize(("factor", "all_move"), [(0.0, False), (0.1, True)])
def test_backbone_factor_is_the_pace_of_loaded_layers(
    image_folder: Path, stores: Path, tmp_path: Path, factor: float, all_move: bool
) -> None:
    backbone = weights_without_head(learner(image_folder, stores, seed=7), tmp_path / "backbone.safetensors")
    network = {**PLAIN, "weights": str(tmp_path / "backbone.safetensors")}
    one = learner(image_folder, stores, network=network, optimizer={**STEPS, "backbone_factor": factor})
    head = set(one.network.state_dict()) - backbone
    assert moved(one) == (head | backbone if all_move else head)


def test_resume_from_a_checkpoint_ends_with_the_same_weights(image_folder: Path, stores: Path, tmp_path: Path) -> None:
    train = {"epochs": 4, "batch_size": 8, "precision": "fp32", "ema": 0.9}
    whole = learner(image_folder, stores, train=train)
    run(whole)
    first = learner(image_folder, stores, train=train)
    for event in fit(first):
        if isinstance(event, EpochDone) and event.epoch == 2:
            break
    second = learner(image_folder, stores, train=train)
    hand_on(first, second, tmp_path)
    _, epochs, _ = run(second)
    assert [event.epoch for event in epochs] == [3, 4]
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name


def test_an_undefined_metric_does_not_stay_the_best(image_folder: Path, stores: Path) -> None:
    one = learner(image_folder, stores)
    assert one.close_epoch({"val/auroc": float("nan")})
    assert one.close_epoch({"val/auroc": 0.4})
    assert not one.close_epoch({"val/auroc": float("nan")})
    assert one.best_epoch == 2


def test_infinite_fp16_gradients_are_skipped_and_counted(image_folder: Path, stores: Path) -> None:
    one = learner(image_folder, stores, train={"epochs": 1, "batch_size": 8, "precision": "fp16"})
    before = [p.clone() for p in one.network.parameters()]
    for parameter in one.network.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    one.scaler.scale(torch.zeros(()))
    one.update(None)
    assert one.skipped_steps == 1
    assert all(torch.equal(a, b) for a, b in zip(before, one.network.parameters(), strict=True))


def test_operating_points_that_cannot_be_are_refused_before_the_first_step(image_folder: Path, stores: Path) -> None:
    with pytest.raises(ConfigError, match=r"trust.operating_points: no class 'class7'"):
        learner(image_folder, stores, trust={"operating_points": [{"of": "class7", "sensitivity": 0.9}]})
    assert learner(image_folder, stores, trust={"operating_points": [{"of": "class1", "sensitivity": 0.9}]})


def test_sync_batchnorm_without_gpus_is_refused(image_folder: Path, stores: Path) -> None:
    with pytest.raises(ConfigError, match="sync_batchnorm: needs GPUs"):
        learner(image_folder, stores, scaling={"sync_batchnorm": True})


def test_precision_follows_the_hardware() -> None:
    assert precision("fp16", torch.device("cpu"), 2) == "fp16"
    assert precision("auto", torch.device("cpu"), 2) in ("bf16", "fp32")
    assert precision("auto", torch.device("cpu"), 3) == "fp32", "bf16 gradients of small 3D convolutions are not finite"


def _worker(rank: int, size: int, port: int, prepared: Prepared, experiment: Any, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=size)
    one = Learner(experiment, prepared, joined_world(torch.device("cpu")))
    before, _ = evaluate(one, "val")
    losses = []
    for event in fit(one):
        match event:
            case StepDone():
                losses.append(float(one.world.sum(event.loss)) / size)
            case Finished() if rank == 0:
                np.savez(folder / f"{size}.npz", losses=losses, before=list(before.values()), **event.scores)
    distributed.barrier()
    distributed.destroy_process_group()
    # Gloo's threads may outlive the interpreter's teardown and abort a process that has done its work.
    os._exit(0)


@pytest.mark.parametrize("sampling", ["natural", pytest.param("balanced", marks=pytest.mark.slow)])
def test_two_workers_give_the_metrics_and_the_curve_of_one(tmp_path: Path, sampling: str) -> None:
    """On labels sorted by class, where shards by stride would give each worker one class."""
    folder = draw_folder(tmp_path / "images", cases=49)
    experiment = tiny(
        folder,
        train={"epochs": 7, "batch_size": 8, "precision": "fp32"},
        optimizer={"name": "sgd", "lr": 0.05},
        task={"name": "classification", "class_weights": "balanced", "sampling": sampling},
        augment={"flip": {"p": 0.5, "axes": [0, 1]}, "mixup": {"p": 0.5, "alpha": 0.4}},
    )
    prepared = prepare(experiment, tmp_path / "stores")
    for size in (1, 2):
        port = 20_000 + os.getpid() % 20_000 + size
        multiprocessing.spawn(_worker, (size, port, prepared, experiment, tmp_path), nprocs=size)
    one, two = (np.load(tmp_path / f"{size}.npz") for size in (1, 2))
    assert len(one["losses"]) >= 20
    np.testing.assert_allclose(one["losses"][:20], two["losses"][:20], atol=1e-4)
    np.testing.assert_allclose(one["before"], two["before"], atol=1e-6)
    for split in ("val", "test"):
        np.testing.assert_allclose(one[split], two[split], atol=1e-4)
