"""Several workers that are broken off, stopped, spoilt and short of disk together, and come to the same end."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_going_on import Listener, assert_same, three_epochs, untimed
from torch import distributed, multiprocessing

from medray.config import ConfigError, Experiment, override
from medray.pipeline.prepare import Prepared, prepare
from medray.training import checkpoint, loop, watch
from medray.training.keeper import Keeper
from medray.training.learner import Learner
from medray.training.loop import NonFiniteLoss
from medray.training.worker import work
from medray.training.world import World, joined_world
from medray.types import Batch

Case = Callable[[Experiment, Prepared, World, Path], None]


def unbroken(experiment: Experiment, prepared: Prepared, world: World, folder: Path) -> None:
    quiet = override(experiment, {"train.checkpoint_every": "never"})
    assert work(quiet, prepared, world, folder / "unbroken", Listener())


def broken(experiment: Experiment, prepared: Prepared, world: World, folder: Path) -> None:
    for _ in range(20):
        try:
            assert work(experiment, prepared, world, folder / "broken", Listener(3))
            return
        except KeyboardInterrupt:
            distributed.barrier()
    raise AssertionError("it never ends")


def stopped(experiment: Experiment, prepared: Prepared, world: World, folder: Path) -> None:
    """Only the last worker looks often enough to see the file before the others."""
    watch.LOOK_S = 0.0 if world.rank == world.size - 1 else 1e9
    quiet = override(experiment, {"train.checkpoint_every": "never"})

    class Asking(Listener):
        def step(self, done: int, epoch: int) -> None:  # noqa: ARG002
            self.steps += 1
            if self.steps == 5 and world.rank == 0:
                (folder / "stopped" / watch.STOP).touch()

    assert not work(quiet, prepared, world, folder / "stopped", Asking(0))
    distributed.barrier()
    (folder / "stopped" / watch.STOP).unlink(missing_ok=True)
    watch.LOOK_S = 0.2
    assert work(quiet, prepared, world, folder / "stopped", Listener())


def spoilt(experiment: Experiment, prepared: Prepared, world: World, folder: Path) -> None:
    """The loss of the last worker alone is NaN at its fifth step, with finite gradients."""
    whole, steps = loop._backward, []

    def backward(learner: Learner, batch: Batch) -> torch.Tensor:
        loss = whole(learner, batch)
        steps.append(learner.step)
        return loss * math.nan if world.rank == world.size - 1 and learner.step == 4 else loss

    loop._backward = backward
    try:
        with pytest.raises(NonFiniteLoss, match="not finite at step 4 "):
            work(experiment, prepared, world, folder / "spoilt", Listener())
    finally:
        loop._backward = whole
    assert steps[-5:] == [0, 1, 2, 3, 4]


def short(experiment: Experiment, prepared: Prepared, world: World, folder: Path) -> None:
    """The last worker's disk is full for two checkpoints."""
    write, failures = checkpoint.write, []

    def full(place: Path, state: Any, values: str) -> dict[str, str]:
        if world.rank == world.size - 1 and len(failures) < 2:
            failures.append(place)
            raise OSError(errno.ENOSPC, "No space left on device", str(place))
        return write(place, state, values)

    checkpoint.write = full
    busy = Keeper.busy
    Keeper.busy = property(lambda keeper: keeper.wait() is None and False)
    try:
        assert work(experiment, prepared, world, folder / "short", Listener())
    finally:
        checkpoint.write, Keeper.busy = write, busy


def shrunk(experiment: Experiment, prepared: Prepared, world: World, folder: Path) -> None:
    """Broken off in the middle of an epoch; another number of workers will go on."""
    with pytest.raises(KeyboardInterrupt):
        work(steady(experiment), prepared, world, folder / "shrunk", Listener(6))


def unshared(experiment: Experiment, prepared: Prepared, world: World, folder: Path) -> None:
    """Each worker has a disk of its own."""
    with pytest.raises(ConfigError, match="MEDRAY_HOME must lie on a disk that they share"):
        work(experiment, prepared, world, folder / "unshared" / str(world.rank), Listener())


def steady(experiment: Experiment) -> Experiment:
    """Nothing in it depends on how a batch is shared."""
    return override(experiment, {"network.dropout": 0.0, "network.norm": "none", "train.checkpoint_every": "5 steps"})


CASES: tuple[Case, ...] = (unbroken, broken, stopped, spoilt, short, shrunk, unshared)


def _worker(rank: int, size: int, port: int, experiment: Experiment, prepared: Prepared, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=size)
    for case in CASES:
        case(experiment, prepared, joined_world(torch.device("cpu")), folder)
        distributed.barrier()
    distributed.destroy_process_group()
    # Gloo's threads may outlive the interpreter's teardown and abort a process that has done its work.
    os._exit(0)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def done(request: pytest.FixtureRequest, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases by that many workers, once."""
    folder = tmp_path_factory.mktemp("together")
    experiment = three_epochs(image_folder, checkpoint_every="1 steps")
    prepared = prepare(experiment, folder / "stores")
    for case in CASES:
        (folder / case.__name__).mkdir()
    port = 20_000 + (os.getpid() + 104_729 + request.param) % 20_000
    multiprocessing.spawn(_worker, (request.param, port, experiment, prepared, folder), nprocs=request.param)
    (folder / "size").write_text(str(request.param))
    return folder


@pytest.mark.parametrize("name", ["broken", "stopped", "short"])
def test_together_they_come_to_the_same_end_to_the_last_bit(done: Path, name: str) -> None:
    assert_same(done / name, done / "unbroken")
    assert not list((done / name / "checkpoints").glob("*.partial"))


def test_every_worker_keeps_what_is_its_own(done: Path) -> None:
    size = int((done / "size").read_text())
    own = checkpoint.load(done / "unbroken" / "checkpoints" / "finished").own
    assert len(own) == size
    assert all(part.values == {"workers": size} for part in own)
    assert not torch.equal(own[0].tensors["random/cpu"], own[1].tensors["random/cpu"])


def test_a_nan_of_one_worker_stops_all_at_that_step_and_no_checkpoint_holds_it(done: Path) -> None:
    places = checkpoint.whole(done / "spoilt")
    assert {checkpoint.step_of(place) for place in places} <= {1, 2, 3, 4}
    for place in places:
        assert not checkpoint.problem_of(place)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in checkpoint.load(place).shared.tensors.values())


def test_the_disk_that_was_full_is_told_of(done: Path) -> None:
    said = (done / "short" / "notes.txt").read_text()
    assert "No space left on device" in said
    assert "MiB are free" in said


def test_fewer_workers_go_on_where_more_have_left_off(done: Path, image_folder: Path) -> None:
    """From the middle of an epoch: the same cases in the same order, so the same curve."""
    experiment = steady(three_epochs(image_folder))
    prepared = prepare(experiment, done / "stores")
    assert [place.name for place in checkpoint.whole(done / "shrunk")] == ["step-00000005"]
    for name in ("shrunk", "alone"):
        (done / name).mkdir(exist_ok=True)
        assert work(experiment, prepared, World(), done / name, Listener())
    ours, theirs = untimed(done / "shrunk"), untimed(done / "alone")
    assert [row["epoch"] for row in ours] == [1, 2, 3]
    for figure in ("train/loss", "val/loss", "lr"):
        np.testing.assert_allclose([row[figure] for row in ours], [row[figure] for row in theirs], atol=1e-4)
