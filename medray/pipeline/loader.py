"""From the store to batches: which cases, in which order, on which worker.

The order is drawn once for the whole world from (seed, epoch); every worker then takes its share of each
batch. So the batches, and with them the loss curve, do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from medray.pipeline.augment import mixup_weights
from medray.sections.augment import Mixup
from medray.types import Array, Batch


class Feed(Protocol):
    """Everything that batches are cut from; row i is the same case in each."""

    @property
    def targets(self) -> torch.Tensor:
        """(N, K) float."""

    @property
    def weights(self) -> torch.Tensor:
        """(N,) float, the weight of each case in the loss."""

    @property
    def spatial_dims(self) -> int:
        """Axes of the network's grid, 2 or 3."""

    @property
    def eval_cases(self) -> int:
        """Most cases that one batch of `whole` holds."""

    def drawn(self, rows: Array, index: Array, seed: int, epoch: int) -> Batch:
        """What is trained on of the cases `rows`; `index` is the row plus N for each time it was drawn before."""

    def whole(self, rows: Array) -> Batch:
        """What is evaluated of the cases `rows`."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Whole images on one grid."""

    images: torch.Tensor
    """(N, C, *S) as stored, memory-mapped."""
    targets: torch.Tensor
    """(N, K) float."""
    weights: torch.Tensor
    """(N,) float, the weight of each case in the loss."""

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.images.ndim - 2

    @property
    def eval_cases(self) -> int:
        """As many as memory takes."""
        return len(self.images)

    def drawn(self, rows: Array, index: Array, seed: int, epoch: int) -> Batch:  # noqa: ARG002
        """The images as stored; `index` names their random augmentation."""
        return replace(self.whole(rows), index=torch.from_numpy(np.ascontiguousarray(index, dtype=np.int64)))

    def whole(self, rows: Array) -> Batch:
        """The images as stored."""
        index = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))
        return Batch(self.images[index], self.targets[index], self.weights[index], index)


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the work is this worker's."""

    rank: int = 0
    size: int = 1


NO_MIXUP = Mixup()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an epoch is drawn."""

    batch_size: int
    """Cases per step over all workers."""
    seed: int
    mixup: Mixup = NO_MIXUP
    chances: Array | None = None
    """(n,) relative chance of each training row; then an epoch draws with replacement."""
    steps_per_epoch: int | None = None
    """By default one pass over the cases."""

    def steps(self, count: int) -> int:
        """Optimiser steps in an epoch of `count` cases; a last incomplete batch waits for the next epoch's order."""
        return self.steps_per_epoch or max(1, count // self.batch_size)


def epoch_order(rows: Array, sampling: Sampling, epoch: int) -> Array:
    """(n,) the rows of one epoch in order, the same on every worker; drawn with replacement if there are chances.

    n is the number of rows, or what the steps of a longer epoch need: then every row comes again as the others do.
    """
    draw = np.random.default_rng((sampling.seed, epoch))
    needed = len(rows) if sampling.steps_per_epoch is None else sampling.steps_per_epoch * sampling.batch_size
    if sampling.chances is None:
        return np.concatenate([draw.permutation(rows) for _ in range(max(1, -(-needed // len(rows))))])
    return draw.choice(rows, size=max(needed, len(rows)), replace=True, p=sampling.chances / sampling.chances.sum())


def train_batches(
    feed: Feed, rows: Array, sampling: Sampling, epoch: int, share: Share, first: int = 0
) -> Iterator[Batch]:
    """This worker's share of each batch of one epoch, from step `first` on.

    `Batch.weight` sums to the number of workers over the whole world's batch, so that the mean over workers
    of the weighted sums is the weighted mean.
    """
    order = epoch_order(rows, sampling, epoch)
    draws = order + len(feed.targets) * _occurrences(order)
    for step in range(first, sampling.steps(len(rows))):
        part = slice(step * sampling.batch_size, (step + 1) * sampling.batch_size)
        whole, index = order[part], draws[part]
        weights = feed.weights[torch.from_numpy(whole)]
        # A batch of cases that all weigh nothing changes nothing.
        total = float(weights.sum()) or 1.0
        mine = slice(share.rank, None, share.size)
        batch = feed.drawn(whole[mine], index[mine], sampling.seed, epoch)
        if sampling.mixup.p > 0:
            partners = feed.drawn(np.roll(whole, 1)[mine], np.roll(index, 1)[mine], sampling.seed, epoch)
            batch = _mix(batch, partners, sampling, epoch)
        yield replace(batch, weight=batch.weight * (share.size / total))


def _occurrences(order: Array) -> Array:
    """(n,) how often each row came before in the order."""
    by_row = np.argsort(order, kind="stable")
    first = np.r_[True, np.diff(order[by_row]) > 0]
    starts = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    counts = np.empty(len(order), np.int64)
    counts[by_row] = np.arange(len(order)) - starts
    return counts


def eval_batches(feed: Feed, rows: Array, batch_size: int, share: Share) -> Iterator[Batch]:
    """This worker's rows in order, each case once: nothing is padded, so workers may differ by one case."""
    mine = rows[share.rank :: share.size]
    size = min(batch_size, feed.eval_cases)
    for start in range(0, len(mine), size):
        yield feed.whole(mine[start : start + size])


def _mix(batch: Batch, partner: Batch, sampling: Sampling, epoch: int) -> Batch:
    """Blend images, targets and weights; each case's share depends on (seed, epoch, case) alone."""
    drawn = mixup_weights(sampling.mixup, sampling.seed, epoch, batch.index.numpy())
    share = torch.from_numpy(np.asarray(drawn, dtype=np.float32))
    spatial = share.view(-1, *[1] * (batch.image.ndim - 1))
    return Batch(
        image=batch.image.float() * spatial + partner.image.float() * (1 - spatial),
        target=batch.target * share[:, None] + partner.target * (1 - share[:, None]),
        weight=batch.weight * share + partner.weight * (1 - share),
        index=batch.index,
    )


def look_ahead(batches: Iterator[Batch], pin: bool) -> Iterator[Batch]:
    """The same batches; for a GPU, each is gathered and pinned while the one before is worked on.

    On a CPU a second thread would take the cores that the step needs: steps took 1.14 times as long with it.
    """

    def fetch() -> Batch | None:
        batch = next(batches, None)
        return None if batch is None else _pinned(batch)

    if not pin:
        yield from batches
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
        coming = pool.submit(fetch)
        while (batch := coming.result()) is not None:
            coming = pool.submit(fetch)
            yield batch


def _pinned(batch: Batch) -> Batch:
    return Batch(
        batch.image.pin_memory(), batch.target.pin_memory(), batch.weight.pin_memory(), batch.index.pin_memory()
    )
