"""One process of `torchrun`: DistributedDataParallel as PyTorch's tutorial has it, or medray's loop without Ray.

Command: torchrun --nproc-per-node=N -m medray.benchmarks.scaling_worker [--medray] --out FILE [EXPERIMENT] [KEY=VALUE]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from medray.benchmarks.loop import BATCH, whole_images
from medray.benchmarks.loop_peers import wait
from medray.benchmarks.monai_input import labels_of
from medray.cluster import home
from medray.config import load
from medray.pipeline.loader import epoch_order
from medray.pipeline.prepare import prepare
from medray.training.learner import Learner
from medray.training.loop import _train_epoch
from medray.training.optim import set_rates
from medray.training.world import World, joined_world


def plain_epoch(one: Learner, world: World) -> Callable[[int], None]:
    """An epoch of the loop by hand: this rank's cases out of memory, the network in DDP, the step."""
    rank, size, device = world.rank, world.size, world.device
    images, labels = whole_images(one).float() / 127.5 - 1, labels_of(one)
    # One process alone needs no wrapper, as torchrun's users leave it away too.
    stepped = DistributedDataParallel(one.network, gradient_as_bucket_view=True) if size > 1 else one.network

    def epoch(number: int) -> None:
        stepped.train()
        order = torch.from_numpy(epoch_order(one.rows["train"], one.sampling, number))
        for step in range(one.steps_per_epoch):
            rows = order[step * BATCH * size : (step + 1) * BATCH * size][rank::size]
            set_rates(one.optimizer, one.schedule.factor(number * one.steps_per_epoch + step))
            image = one.ordered(images[rows].to(device))
            with one.autocast():
                loss = functional.cross_entropy(stepped(image).float(), labels[rows].to(device))
            loss.backward()  # type: ignore[no-untyped-call]
            one.optimizer.step()
            one.optimizer.zero_grad(set_to_none=True)

    return epoch


def medray_epoch(one: Learner, world: World) -> Callable[[int], None]:
    """An epoch of medray's loop."""
    assert one.world is world  # noqa: S101

    def epoch(number: int) -> None:
        one.epoch, one.step = number, number * one.steps_per_epoch
        for _ in _train_epoch(one):
            pass

    return epoch


def main() -> None:
    """Train so many epochs; rank 0 writes images per second of each."""
    parser = argparse.ArgumentParser(prog="python -m medray.benchmarks.scaling_worker", description=__doc__)
    parser.add_argument("--medray", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("settings", nargs="+")
    cfg = parser.parse_args()
    torch.set_num_threads(cfg.threads)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    distributed.init_process_group("nccl" if gpu else "gloo")
    world = joined_world(device)
    # The plain loop's learner knows of no others: its network is wrapped by hand.
    one = made(cfg.settings, world, world if cfg.medray else World(device=device))
    epoch, rates = (medray_epoch if cfg.medray else plain_epoch)(one, world), []
    for number in range(cfg.epochs):
        distributed.barrier()
        started = time.perf_counter()
        epoch(number)
        wait(one)
        rates.append(one.steps_per_epoch * BATCH * world.size / (time.perf_counter() - started))
    if world.rank == 0:
        cfg.out.write_text(json.dumps({"samples_per_s": rates}), encoding="utf-8")
    distributed.destroy_process_group()


def made(settings: list[str], world: World, place: World) -> Learner:
    """The learner of an experiment, at its `place`; rank 0 of the `world` prepares the data first."""
    experiment = load(settings[0], settings[1:])
    if world.rank == 0:
        prepare(experiment, home() / "stores")
    world.any(False)  # all wait for it
    return Learner(experiment, prepare(experiment, home() / "stores"), place)


if __name__ == "__main__":
    main()
    # All is written: a thread that gloo left behind could abort the process at its end.
    os._exit(0)
