"""What a step of a planned training costs here: its memory forecast, its arithmetic counted, its seconds measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medray.config import load_plugin
from medray.networks.build import build
from medray.networks.memory import Memory, forecast
from medray.pipeline.augment import augment_pair
from medray.sections.augment import AugmentSection
from medray.sections.base import NetworkSection, TaskSection
from medray.tasks import task as tasks
from medray.types import Batch, NetworkIO

Precision = Literal["fp32", "bf16", "fp16"]

MEASURED_STEPS, MEASURED_S = 4, 3.0
"""Steps that are timed, fewer where they take that long."""
FEW_CASES = 2


@dataclass(frozen=True, slots=True)
class Budget:
    """What a training may take."""

    device: str
    """'cpu' or 'cuda'"""
    precision: Callable[[int], Precision]
    """Axes of the network's grid -> the arithmetic that a training takes on `device`."""
    memory_bytes: int
    minutes: float


@dataclass(frozen=True, slots=True)
class Job:
    """A training step, as the loop makes it."""

    network: NetworkSection
    task: TaskSection
    augment: AugmentSection
    io: NetworkIO
    batch: int
    optimizer: str
    classes: tuple[str, ...]
    multilabel: bool = False


def task_for(cfg: TaskSection, classes: tuple[str, ...], multilabel: bool = False) -> tasks.Task:
    """The task on classes that are equally common."""
    return tasks.build(cfg, classes, multilabel, np.eye(len(classes), dtype=np.float32))


def memory_of(job: Job, budget: Budget) -> Memory:
    """What a step takes; no weight is made."""
    with torch.device("meta"):
        network: nn.Module = load_plugin("networks", job.network.name).build(job.network, job.io)
    precision = budget.precision(job.io.spatial_dims)
    return forecast(network, job.io, job.batch, precision, job.optimizer, budget.device)


def flops_of(job: Job) -> float:
    """Multiplications and additions of a step: the way back takes twice the way there."""
    with torch.device("meta"):
        network: nn.Module = load_plugin("networks", job.network.name).build(job.network, job.io)
        image = torch.empty(job.batch, job.io.in_channels, *job.io.size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return 3.0 * float(counter.get_total_flops())


def seconds_per_step(job: Job, budget: Budget) -> float:
    """Time of an optimiser step on random data: augmentation, network, loss, way back, update.

    The least of a few: whatever else a machine does for a moment only slows them, and the first warm up. On CPUs the
    time of this process, shared by its threads, where that is less: other work on the machine must not make a smaller
    network of it. A step that would take long is timed on fewer cases, and multiplied.
    """
    step = _stepper(job, budget)
    # Two cases: batch normalisation of a single voxel needs them.
    few = min(job.batch, FEW_CASES)
    step(few)
    cases = max(few, min(job.batch, int(few * MEASURED_S / MEASURED_STEPS / step(few))))
    began, times = time.perf_counter(), [step(cases)]
    while len(times) < MEASURED_STEPS and time.perf_counter() - began < MEASURED_S:
        times.append(step(cases))
    return min(times) * job.batch / cases


def _stepper(job: Job, budget: Budget) -> Callable[[int], float]:
    """Makes a step of so many cases, and says how many seconds it took."""
    device = torch.device(budget.device)
    dims = job.io.spatial_dims
    order = torch.channels_last if dims == 2 else torch.channels_last_3d
    network = cast(nn.Module, cast(Any, build(job.network, job.io, 0).network.to(device)).to(memory_format=order))
    task = task_for(job.task, job.classes, job.multilabel)
    # The rule of an update costs little beside the network: the other optimisers take about as long.
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
    precision = budget.precision(dims)
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    data = _random_batch(job).to(device)
    epochs = count()

    def step(cases: int) -> float:
        began, busy = time.perf_counter(), time.process_time()
        image, target = data.image[:cases], data.target[:cases]
        label = target if job.io.dense else None
        # Another epoch each time, so that other cases are changed.
        image, moved = augment_pair(image, label, job.augment, 0, next(epochs), data.index[:cases].numpy())
        ready = image.contiguous(memory_format=order)
        batch = Batch(ready, target if moved is None else moved, data.weight[:cases], data.index[:cases])
        with torch.autocast(device.type, kind, enabled=precision != "fp32"):
            loss = task.step(network, batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # Reading the loss waits for the device.
        float(loss.detach())
        wall, busy = time.perf_counter() - began, time.process_time() - busy
        return wall if device.type != "cpu" else min(wall, busy / torch.get_num_threads())

    return step


def _random_batch(job: Job) -> Batch:
    """Noise with random targets."""
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(job.batch, job.io.in_channels, *job.io.size, generator=draw)
    kinds = len(job.classes)
    if job.io.dense:
        target = torch.randint(kinds, (job.batch, 1, *job.io.size), generator=draw).to(torch.uint8)
    else:
        target = torch.eye(kinds)[torch.randint(kinds, (job.batch,), generator=draw)]
    return Batch(image, target, torch.full((job.batch,), 1 / job.batch), torch.arange(job.batch))
