"""Steps per second of medray's loop against a bare PyTorch loop over the same tensors, network and optimiser.

Command: uv run python -m medray.benchmarks.loop [resnet|plain] [STEPS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional

from medray.benchmarks.ratio import compare, show
from medray.config import load
from medray.pipeline.loader import Samples, epoch_order
from medray.pipeline.prepare import prepare
from medray.training.learner import Learner
from medray.training.loop import _train_epoch
from medray.training.optim import set_rates
from medray.training.world import World

BATCH = 64
SETTINGS = ("dataset.cases=960", "split.test=0", "split.val=0.2", "augment.flip.p=0", f"train.batch_size={BATCH}")
FAMILIES = {"resnet": ("network.name=resnet",), "plain": ()}


def learner(family: str, root: Path) -> Learner:
    """ResNet-18 with its usual stem, or the default's small CNN, on 64x64 phantoms."""
    experiment = load("phantom", [*FAMILIES[family], *SETTINGS])
    return Learner(experiment, prepare(experiment, root), World())


def ours(one: Learner, steps: int) -> float:
    """Steps per second of medray's training loop."""
    done, started = 0, time.perf_counter()
    while done < steps:
        one.step = one.epoch * one.steps_per_epoch  # the epoch again, however far it came
        for _ in _train_epoch(one):
            done += 1
            if done == steps:
                break
    return steps / (time.perf_counter() - started)


def bare(one: Learner, images: torch.Tensor, labels: torch.Tensor, steps: int) -> float:
    """Steps per second of the loop that one would write by hand: tensors in memory, nothing checked or logged."""
    network, optimizer = one.network, one.optimizer
    network.train()
    order = torch.from_numpy(epoch_order(one.rows["train"], one.sampling, 0))
    started = time.perf_counter()
    for step in range(steps):
        rows = order[(step * BATCH) % (len(order) - BATCH) :][:BATCH]
        set_rates(optimizer, one.schedule.factor(step))
        image = images[rows].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=one.precision == "bf16"):
            loss = functional.cross_entropy(network(image).float(), labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return steps / (time.perf_counter() - started)


def whole_images(learner: Learner) -> torch.Tensor:
    """(N, C, *S) the store of a task that is answered per case."""
    assert isinstance(learner.feed, Samples)  # noqa: S101
    return learner.feed.images


def main(family: str = "resnet", steps: int = 12) -> None:
    """Compare, and print the ratio."""
    with tempfile.TemporaryDirectory() as root:
        one, other = learner(family, Path(root)), learner(family, Path(root))
        images = whole_images(other).float() / 127.5 - 1
        labels = other.feed.targets.argmax(1)
        show(f"loop/{family}", "steps/s", compare(lambda: ours(one, steps), lambda: bare(other, images, labels, steps)))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "resnet", int(sys.argv[2]) if len(sys.argv) > 2 else 12)
