"""Training of a dense task in one plain process: it learns a phantom, resumes, and is the same on two workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_discs, tiny_dense
from test_going_on import hand_on
from torch import distributed, multiprocessing

from medray.config import ConfigError
from medray.metrics.overlap import overlap_counts
from medray.pipeline.prepare import DataRefused, Prepared, prepare
from medray.training.illustrate_dense import illustrate
from medray.training.learner import Learner
from medray.training.loop import EpochDone, Finished, StepDone, evaluate, fit, to_network
from medray.training.record import describe_input, save_bundle, trust_of
from medray.training.worker import Outcome
from medray.training.world import World, joined_world
from medray.types import Batch

LEARNS: dict[str, Any] = {
    "optimizer": {"name": "adamw", "lr": 0.02},
    "train": {"epochs": 20, "batch_size": 4, "precision": "fp32"},
    "augment": {"flip": {"p": 0.5, "axes": [0, 1]}},
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def learner(folder: Path, stores: Path, **sections: Any) -> Learner:
    experiment = tiny_dense(folder, **sections)
    return Learner(experiment, prepare(experiment, stores), World())


def volumetric(folder: Path, **sections: Any) -> dict[str, Any]:
    """Sections for `draw_volumes`."""
    window = {"size": [16, 16, 8]}
    split = {"method": "fraction", "val": 0.2, "test": 0.2}
    return {"dataset": {"name": "decathlon", "path": str(folder)}, "window": window, "split": split, **sections}


def run(one: Learner) -> tuple[list[float], Finished]:
    losses = []
    for event in fit(one):
        match event:
            case StepDone():
                losses.append(float(event.loss))
            case Finished():
                return losses, event
    raise AssertionError("no end")


@pytest.mark.parametrize("regions", [False, True])
def test_it_learns_a_phantom(discs: Path, stores: Path, regions: bool) -> None:
    task = {"name": "segmentation", "regions": {"disc": ["foreground"]} if regions else {}}
    losses, finished = run(learner(discs, stores, task=task, **LEARNS))
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
    assert finished.metrics["test/dice"] > 0.9
    assert finished.metrics["val/dice"] > 0.9
    assert finished.scores["val"].shape == (len(finished.scores["val"]), 3)


def test_metrics_are_those_of_whole_cases(discs: Path, stores: Path) -> None:
    one = learner(discs, stores)
    metrics, rows = evaluate(one, "val")
    for row, counts in zip(one.rows["val"].tolist(), rows, strict=True):
        batch = one.feed.whole(np.array([row]))
        image = batch.image.float() * 2 / 255 - 1
        one.network.eval()
        with torch.no_grad():
            mask = one.network(image)[0].argmax(0).numpy()
        np.testing.assert_array_equal(overlap_counts(mask, batch.target[0, 0].numpy(), 2)[1], counts)
    assert set(metrics) == {"val/dice", "val/iou", "val/loss"}


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"epochs": 1, "batch_size": 4, "precision": "bf16"}},
        {"train": {"epochs": 1, "batch_size": 4, "precision": "fp32", "accumulate": 2, "ema": 0.5, "clip_norm": 1}},
        {"network": {"name": "dynunet", "filters": [8, 8, 8], "strides": [[1], [2], [2]], "deep_supervision": 1}},
        {"task": {"name": "segmentation", "foreground": 1, "loss": {"name": "dice_focal", "batch": True}}},
        {"window": {"size": [16, 16], "flips": [0], "overlap": 0.25}},
    ],
    ids=str,
)
def test_every_switch_trains(discs: Path, stores: Path, sections: dict[str, Any]) -> None:
    one = learner(discs, stores, **sections)
    losses, finished = run(one)
    assert np.isfinite(losses).all()
    assert np.isfinite(finished.metrics["test/loss"])


def test_patches_are_augmented_with_their_labels(discs: Path, stores: Path) -> None:
    """A disc is bright: after any motion what is bright is labelled."""
    motion = {"rotate": {"p": 1, "degrees": 90}, "flip": {"p": 0.5, "axes": [0, 1]}, "scale": {"p": 1, "fraction": 0.2}}
    one = learner(discs, stores, augment=motion)
    rows = one.rows["train"]
    plain = one.feed.drawn(rows, rows, 0, 0)
    moved = to_network(one, plain)
    assert moved.image.dtype == torch.float32
    assert moved.target.dtype == torch.uint8
    assert not torch.equal(moved.target, plain.target)
    bright = moved.image > -0.1
    label = moved.target == 1
    assert 2 * (bright & label).sum() / (bright.sum() + label.sum()) > 0.9


def test_steps_per_epoch_is_the_length_of_an_epoch(discs: Path, stores: Path) -> None:
    train = {"epochs": 2, "batch_size": 4, "precision": "fp32", "steps_per_epoch": 3}
    one = learner(discs, stores, train=train)
    losses, _ = run(one)
    assert len(losses) == 6
    assert one.steps_per_epoch == 3


def test_resume_ends_with_the_same_weights(discs: Path, stores: Path, tmp_path: Path) -> None:
    sections = {**LEARNS, "train": {"epochs": 3, "batch_size": 4, "precision": "fp32"}}
    whole = learner(discs, stores, **sections)
    run(whole)
    first = learner(discs, stores, **sections)
    for event in fit(first):
        if isinstance(event, EpochDone) and event.epoch == 1:
            break
    second = learner(discs, stores, **sections)
    hand_on(first, second, tmp_path)
    run(second)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name


def test_what_cannot_be_trained_is_refused(discs: Path, image_folder: Path, stores: Path) -> None:
    with pytest.raises(ConfigError, match=r"augment.mixup: blends whole cases; it is not for label maps"):
        learner(discs, stores, augment={"mixup": {"p": 0.5}})
    with pytest.raises(ConfigError, match="'val/auroc' is not measured"):
        learner(discs, stores, train={"epochs": 1, "batch_size": 4, "monitor": "val/auroc"})
    with pytest.raises(ConfigError, match=r"window.size: is missing"):
        learner(discs, stores, window={})
    with pytest.raises(ConfigError, match=r"window.size: has 3 axes, the images have 2"):
        learner(discs, stores, window={"size": [8, 8, 8]})
    with pytest.raises(ConfigError, match=r"network.name: plain answers per case"):
        learner(discs, stores, network={"name": "plain"})
    with pytest.raises(DataRefused, match="40 of 40 cases have no label map; segmentation needs one each"):
        learner(image_folder, stores, dataset={"name": "folder", "path": str(image_folder)})
    with pytest.raises(DataRefused, match="24 of 24 cases have no class"):
        learner(discs, stores, task={"name": "classification"}, network={"name": "plain"})
    with pytest.raises(ConfigError, match=r"window.memory_gb"):
        run(learner(discs, stores, window={"size": [16, 16], "memory_gb": 1e-6}))


@pytest.mark.parametrize(
    ("window", "shape"),
    [({"size": [16, 16, 8]}, (1, 16, 16, 8)), ({"size": [16, 16], "neighbours": 1, "slice_axis": 2}, (3, 16, 16))],
)
def test_volumes_train_in_space_and_slice_by_slice(
    volumes: Path, stores: Path, tmp_path: Path, window: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """From the first step to the bundle and its figures."""
    experiment = tiny_dense(volumes, **volumetric(volumes, window=window, train={"epochs": 1, "batch_size": 2}))
    prepared = prepare(experiment, stores)
    one = Learner(experiment, prepared, World())
    assert prepared.shape == shape
    losses, finished = run(one)
    assert np.isfinite(losses).all()
    assert set(finished.metrics) >= {"val/dice", "val/dice/ball", "val/dice/core", "test/loss"}
    assert describe_input(experiment, prepared)["axes"] == 3
    outcome = Outcome(finished.reason, finished.metrics, finished.scores, one.best_weights, [], ())
    assert trust_of(experiment, prepared, outcome) is None
    bundle = save_bundle(tmp_path / "bundle", experiment, prepared, outcome)
    assert (bundle.channels, bundle.axes, bundle.io.size) == (1, 3, shape[1:])
    rows = [{"epoch": 1.0, "train/loss": 1.0, "val/loss": 1.0, "val/dice": 0.5}]
    outcome = Outcome(finished.reason, finished.metrics, finished.scores, one.best_weights, rows, ())
    illustrate(tmp_path / "figures", experiment, prepared, outcome, lambda name: f"p{name[-1]}", bundle.folder)
    names = sorted(file.stem for file in (tmp_path / "figures").iterdir())
    assert {"curves", "dice", "patch_1"} <= set(names)
    assert any(name.startswith("worst_p") for name in names)


def measured(one: Learner) -> dict[str, Any]:
    """The curve of a training, and what it measures before and after."""
    before, rows = evaluate(one, "val")
    losses = []
    for event in fit(one):
        match event:
            case StepDone():
                losses.append(float(one.world.sum(event.loss)) / one.world.size)
            case Finished():
                return {
                    "losses": losses,
                    "before": [*before.values()],
                    "rows": rows,
                    "after": [*event.metrics.values()],
                }
    raise AssertionError("no end")


def _worker(rank: int, port: int, prepared: Prepared, experiment: Any, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = measured(Learner(experiment, prepared, joined_world(torch.device("cpu"))))
    if rank == 0:
        np.savez(folder / "two.npz", **found)
    distributed.barrier()
    distributed.destroy_process_group()
    # Gloo's threads may outlive the interpreter's teardown and abort a process that has done its work.
    os._exit(0)


@pytest.mark.slow
def test_two_workers_give_the_metrics_and_the_curve_of_one(tmp_path: Path) -> None:
    """With windows smaller than the images, so that patches are drawn, and a validation set of odd size."""
    folder = draw_discs(tmp_path / "discs", cases=23)
    experiment = tiny_dense(
        folder,
        window={"size": [24, 16]},
        train={"epochs": 2, "batch_size": 4, "precision": "fp32"},
        optimizer={"name": "sgd", "lr": 0.05},
        augment={"flip": {"p": 0.5, "axes": [0, 1]}, "rotate": {"p": 0.5}},
    )
    prepared = prepare(experiment, tmp_path / "stores")
    assert len(prepared.rows("val")) % 2 == 1
    port = 20_000 + (os.getpid() + 7919) % 20_000
    multiprocessing.spawn(_worker, (port, prepared, experiment, tmp_path), nprocs=2)
    one, two = measured(Learner(experiment, prepared, World())), np.load(tmp_path / "two.npz")
    assert len(one["losses"]) >= 6
    np.testing.assert_allclose(one["losses"], two["losses"], atol=1e-4)
    np.testing.assert_array_equal(one["rows"], two["rows"])
    np.testing.assert_allclose(one["before"], two["before"], atol=1e-6)
    np.testing.assert_allclose(one["after"], two["after"], atol=2e-3)


def test_a_batch_on_its_way_keeps_what_names_its_augmentation(discs: Path, stores: Path) -> None:
    one = learner(discs, stores)
    rows = one.rows["train"][:3]
    batch = one.feed.drawn(rows, rows, 0, 0)
    moved = to_network(one, batch)
    assert isinstance(moved, Batch)
    assert torch.equal(moved.index, batch.index)
    torch.testing.assert_close(moved.image, batch.image.float() * 2 / 255 - 1)
    assert torch.equal(moved.target, batch.target)
