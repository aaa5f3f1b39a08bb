"""One loop for every task: a generator of events that knows neither Ray nor MLflow.

    for event in fit(Training(...)): ...

A step per batch, an epoch at a time, the best epoch's weights at the end. Whoever listens decides what
to print, report and save.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from medray.imaging.preprocess import normalise
from medray.networks.build import train_mode
from medray.pipeline.augment import augment_pair
from medray.pipeline.loader import eval_batches, look_ahead, train_batches
from medray.training.learner import Learner
from medray.training.optim import l1_penalty, set_rates
from medray.types import Array, Batch


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is NaN or infinite; no weights were changed by that step."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """After every optimiser step."""

    step: int
    """Counted from 0 over the whole run."""
    loss: torch.Tensor
    """This worker's part of the loss, on the device; the mean over workers is the batch's loss."""
    save: bool
    """Whether a checkpoint is to be taken here; the same on every worker, as the learner's counters are."""


@dataclass(frozen=True, slots=True)
class EpochDone:
    """After every epoch and its validation; the same on every worker."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    best: bool
    """Whether this is the best epoch so far."""


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """After the last epoch, with the best epoch's weights in place."""

    reason: str
    metrics: dict[str, float]
    """best_epoch, and val/... and test/... of the best epoch's weights."""
    scores: dict[str, Array]
    """(n, K) probabilities of each of val and test, in the order of the split's rows; of a dense task the counts that
    its metrics are made of."""


@dataclass(frozen=True, slots=True)
class Trained:
    """After the last epoch, before the best one's weights are put in place and measured."""

    reason: str


Event = StepDone | EpochDone | Trained | Finished


@dataclass(frozen=True, slots=True)
class Wish:
    """What a worker wants of all, after a step or a batch of an evaluation."""

    stop: bool = False
    """Leave off where the training stands: it will go on from there."""
    save: bool = False
    """Take a checkpoint."""
    busy: bool = False
    """Take none: the one before is still being written."""


def _none() -> Wish:
    return Wish()


class Stopped(Exception):
    """A worker wished to stop, and all of them have; the learner stands where a checkpoint can be taken."""


def fit(learner: Learner, wish: Callable[[], Wish] = _none) -> Iterator[Event]:
    """Train to the end of the experiment, from wherever `learner` stands.

    Args:
        learner: this worker's.
        wish: asked after every step, and often within evaluations; all workers then agree on what any wants.

    Raises:
        NonFiniteLoss: naming epoch and step; on all workers at the same step.
        Stopped: on all workers at the same step.
    """
    train = learner.experiment.train
    if learner.world.size > 2:
        _settle(learner)
    while not (reason := _over(learner)):
        started, before = time.monotonic(), learner.steps_into_epoch
        loss = yield from _train_epoch(learner, wish)
        trained = time.monotonic() - started
        metrics = {"epoch": learner.epoch + 1.0, "lr": learner.optimizer.param_groups[0]["lr"], "train/loss": loss}
        learner.synchronise_buffers()
        val, _ = evaluate(learner, "val", wish)
        metrics |= val
        metrics["samples_per_s"] = (learner.steps_per_epoch - before) * train.batch_size / trained
        metrics["epoch_s"] = time.monotonic() - started
        if learner.scaler.is_enabled() or learner.skipped_steps:
            metrics["skipped_steps"] = float(learner.skipped_steps)
        best = learner.close_epoch(metrics)
        yield EpochDone(learner.epoch, metrics, best)
    yield Trained(reason)
    yield _finish(learner, reason, wish)


def _settle(learner: Learner) -> None:
    """Have DistributedDataParallel order its buckets now, by a backward pass of which nothing stays.

    It does so after its first one. A sum over more than two workers depends on a gradient's place in the buckets, and
    a training that goes on would differ from an unbroken one in the last bits.
    """
    buffers = [(buffer, buffer.clone()) for buffer in learner.network.buffers()]
    devices = [learner.world.device] if learner.world.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        train_mode(learner.network)
        batches = train_batches(learner.feed, learner.rows["train"], learner.sampling, 0, learner.world.share)
        _backward(learner, to_network(learner, next(batches)))
    learner.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


def _over(learner: Learner) -> str:
    """Why no other epoch follows; empty while one does."""
    train = learner.experiment.train
    if learner.epoch >= train.epochs:
        return "all epochs done"
    if train.patience is not None and learner.epoch and learner.epochs_since_best >= train.patience:
        return f"no better {learner.monitor} in {train.patience} epochs"
    late = train.max_minutes is not None and learner.seconds > 60 * train.max_minutes
    # An epoch that was begun is trained to its end.
    if learner.epoch and learner.steps_into_epoch == 0 and learner.world.any(late):
        return f"train.max_minutes={train.max_minutes:g} reached"
    return ""


def _train_epoch(learner: Learner, wish: Callable[[], Wish] = _none) -> Generator[StepDone, None, float]:
    """One pass over the training cases, or what is left of it; returns the mean loss over the world."""
    train, world = learner.experiment.train, learner.world
    learner.begin_epoch()
    rows, first = learner.rows["train"], learner.steps_into_epoch
    # Where only the validation is left of the epoch, its last rate is told.
    set_rates(learner.optimizer, learner.schedule.factor(max(0, learner.step - 1)))
    batches = train_batches(learner.feed, rows, learner.sampling, learner.epoch, world.share, first)
    learner.mark("wait")
    for batch in look_ahead(batches, pin=world.device.type == "cuda"):
        learner.mark("prepare")
        set_rates(learner.optimizer, learner.schedule.factor(learner.step))
        ready = to_network(learner, batch)
        loss = _backward(learner, ready)
        learner.mark("rest")
        wanted = wish()
        # One message for all that the workers must agree on, before the weights change.
        spoilt, stop, save, busy = world.agree(not _finite(learner, loss), wanted.stop, wanted.save, wanted.busy)
        if spoilt:
            raise NonFiniteLoss(
                f"the loss is not finite at step {learner.step} (epoch {learner.epoch + 1}); "
                "lower optimizer.lr, set train.clip_norm=1, or train.precision=fp32"
            )
        learner.mark("optimise")
        learner.update(train.clip_norm)
        learner.mark("rest")
        learner.loss_sum += loss
        learner.step += 1
        yield StepDone(learner.step - 1, loss, save and not busy)
        if stop:
            raise Stopped
        learner.mark("wait")
    return float(world.sum(learner.loss_sum)) / world.size / learner.steps_per_epoch


def to_network(learner: Learner, batch: Batch) -> Batch:
    """A stored batch on the device, as numbers around zero, augmented, in the network's memory order."""
    experiment = learner.experiment
    moved = batch.to(learner.world.device)
    image = normalise(moved.image.float(), experiment.preprocess)
    label = moved.target if learner.task.dense else None
    image, label = augment_pair(image, label, experiment.augment, experiment.seed, learner.epoch, batch.index.numpy())
    return Batch(learner.ordered(image), moved.target if label is None else label, moved.weight, moved.index)


def _backward(learner: Learner, batch: Batch) -> torch.Tensor:
    """Add the batch's gradients, in as many parts as the experiment says; returns this worker's loss."""
    # From the world's batch: all workers go through the network equally often.
    count = min(learner.experiment.train.accumulate, max(1, learner.smallest_share))
    l1 = learner.experiment.optimizer.l1
    total = torch.zeros((), device=learner.world.device)
    for part in range(count):
        piece = batch if count == 1 else Batch(*(getattr(batch, name)[part::count] for name in Batch.__slots__))
        with learner.gradient_sync(last=part == count - 1):
            learner.mark("forward")
            with learner.autocast():
                loss = learner.task.step(learner.parallel, piece)["loss"]
            if l1 and part == count - 1:
                loss = loss + l1 * l1_penalty(learner.network)
            learner.mark("backward")
            learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _finite(learner: Learner, loss: torch.Tensor) -> bool:
    """Whether this worker's loss is a number, and the head's gradient too.

    Infinite fp16 gradients are the scaler's to skip and count.
    """
    gradient = None if learner.scaler.is_enabled() else learner.head.grad
    return bool(torch.isfinite(loss if gradient is None else gradient.sum() + loss))


@torch.no_grad()
def evaluate(learner: Learner, split: str, wish: Callable[[], Wish] = _none) -> tuple[dict[str, float], Array]:
    """Metrics of one split and its cases' rows (n, columns - 1), exact over the workers: every case counts once.

    Raises:
        Stopped: a worker wished to; on all of them.
    """
    rows, world, task = learner.rows[split], learner.world, learner.task
    if len(rows) == 0:
        return {}, np.zeros((0, task.columns - 1), np.float32)
    network = learner.averaged or learner.network
    network.eval()
    found, stop = [], False
    for batch in look_ahead(eval_batches(learner.feed, rows, learner.eval_batch, world.share), pin=False):
        moved = batch.to(world.device)
        image = normalise(moved.image.float(), learner.experiment.preprocess)
        with learner.autocast():
            output, scores = learner.answer(network, image)
        found.append(task.measure(output, scores, moved.target))
        # Workers have unequally many batches: each leaves off by itself, and all agree on it afterwards.
        if stop := wish().stop:
            break
    if world.any(stop):
        raise Stopped
    dtype = torch.float64 if task.dense else torch.float32
    mine = torch.cat(found) if found else torch.zeros((0, task.columns), device=world.device, dtype=dtype)
    table = world.interleave(mine, len(rows)).cpu().numpy()
    scores_all = table[:, :-1]
    targets = learner.feed.targets[torch.from_numpy(rows)].numpy()
    metrics = task.summarise(scores_all, targets)
    metrics["loss"] = float(table[:, -1].mean())
    return {f"{split}/{name}": value for name, value in metrics.items()}, scores_all


def _finish(learner: Learner, reason: str, wish: Callable[[], Wish]) -> Finished:
    """Put the best epoch's weights in place and measure them."""
    learner.restore_best()
    # The figures of the card are those of the saved weights as they will be served: in float32.
    learner.precision, learner.reading = "fp32", learner.experiment.window
    metrics: dict[str, float] = {"best_epoch": float(learner.best_epoch)}
    scores = {}
    for split in ("val", "test"):
        found, scores[split] = evaluate(learner, split, wish)
        metrics |= found
    return Finished(reason, metrics, scores)
