"""The loader: the same batches whatever the number of workers, every case validated once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray.pipeline.loader import Samples, Sampling, Share, epoch_order, eval_batches, look_ahead, train_batches
from medray.sections.augment import Mixup

COUNT = 53
SAMPLES = Samples(
    images=torch.arange(COUNT * 4, dtype=torch.uint8).reshape(COUNT, 1, 2, 2),
    targets=torch.eye(3)[torch.arange(COUNT) % 3],
    weights=torch.linspace(0.5, 2.0, COUNT),
)
ROWS = np.arange(3, COUNT)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_worlds_batches_do_not_depend_on_its_size(size: int) -> None:
    sampling = Sampling(batch_size=12, seed=3)
    alone = list(train_batches(SAMPLES, ROWS, sampling, 5, Share()))
    parts = [list(train_batches(SAMPLES, ROWS, sampling, 5, Share(rank, size))) for rank in range(size)]
    assert len(alone) == len(ROWS) // 12
    for step, whole in enumerate(alone):
        mine = [part[step] for part in parts]
        together = torch.cat([batch.index for batch in mine]).sort().values
        assert torch.equal(together, whole.index.sort().values)
        total = sum(float(batch.weight.sum()) for batch in mine)
        assert total == pytest.approx(size), "weights sum to the number of workers"


def test_an_epoch_sees_each_case_at_most_once_and_the_next_one_differs() -> None:
    sampling = Sampling(batch_size=10, seed=0)
    first = torch.cat([batch.index for batch in train_batches(SAMPLES, ROWS, sampling, 0, Share())])
    again = torch.cat([batch.index for batch in train_batches(SAMPLES, ROWS, sampling, 0, Share())])
    second = torch.cat([batch.index for batch in train_batches(SAMPLES, ROWS, sampling, 1, Share())])
    assert len(first.unique()) == len(first)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_fewer_cases_than_a_batch_are_one_batch() -> None:
    (batch,) = train_batches(SAMPLES, ROWS[:5], Sampling(batch_size=64, seed=0), 0, Share())
    assert sorted(batch.index.tolist()) == ROWS[:5].tolist()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_validation_takes_each_case_exactly_once(size: int) -> None:
    seen = [batch.index for rank in range(size) for batch in eval_batches(SAMPLES, ROWS, 7, Share(rank, size))]
    assert torch.cat(seen).sort().values.tolist() == ROWS.tolist()


def test_balanced_chances_draw_classes_equally_and_number_repetitions() -> None:
    chances = np.where(np.arange(len(ROWS)) < 5, 100.0, 1e-6)
    sampling = Sampling(batch_size=25, seed=0, chances=chances)
    batches = list(train_batches(SAMPLES, ROWS, sampling, 0, Share()))
    drawn = torch.cat([batch.index for batch in batches])
    assert set((drawn % COUNT).tolist()) <= set(ROWS[:5].tolist())
    assert len(drawn.unique()) == len(drawn), "each draw has an augmentation of its own"
    order = epoch_order(ROWS, sampling, 0)
    assert torch.equal(drawn % COUNT, torch.from_numpy(order[: len(drawn)]))


def test_mixup_blends_with_the_neighbour_in_the_worlds_batch() -> None:
    sampling = Sampling(batch_size=12, seed=3, mixup=Mixup(p=1.0, alpha=1.0))
    plain = next(train_batches(SAMPLES, ROWS, Sampling(batch_size=12, seed=3), 0, Share()))
    mixed = next(train_batches(SAMPLES, ROWS, sampling, 0, Share()))
    assert not torch.equal(mixed.image, plain.image.float())
    torch.testing.assert_close(mixed.target.sum(1), torch.ones(12))
    halves = [next(train_batches(SAMPLES, ROWS, sampling, 0, Share(rank, 2))) for rank in range(2)]
    for rank, half in enumerate(halves):
        torch.testing.assert_close(half.image, mixed.image[rank::2])
        torch.testing.assert_close(half.target, mixed.target[rank::2])


def test_look_ahead_keeps_order_and_passes_errors_on() -> None:
    batches = list(train_batches(SAMPLES, ROWS, Sampling(batch_size=12, seed=3), 0, Share()))
    for one, other in zip(batches, look_ahead(iter(batches), pin=False), strict=True):
        assert one is other

    def broken():
        yield batches[0]
        raise OSError("disk gone")

    ahead = look_ahead(broken(), pin=False)
    next(ahead)
    with pytest.raises(OSError, match="disk gone"):
        next(ahead)


@pytest.mark.parametrize("steps", [2, 9])
def test_steps_per_epoch_is_kept_and_cases_come_equally_often(steps: int) -> None:
    sampling = Sampling(batch_size=20, seed=1, steps_per_epoch=steps)
    batches = list(train_batches(SAMPLES, ROWS, sampling, 0, Share()))
    drawn = torch.cat([batch.index for batch in batches])
    assert len(batches) == steps
    assert len(drawn.unique()) == len(drawn) == 20 * steps, "each draw has an augmentation of its own"
    counts = torch.bincount(drawn % COUNT, minlength=COUNT)[torch.from_numpy(ROWS)]
    assert counts.max() - counts.min() <= 1
    for batch in batches:
        assert torch.equal(batch.image, SAMPLES.images[batch.index % COUNT])
        assert torch.equal(batch.target, SAMPLES.targets[batch.index % COUNT])


def test_evaluation_and_training_see_the_same_of_whole_images() -> None:
    rows = np.array([7, 3, 50])
    whole, drawn = SAMPLES.whole(rows), SAMPLES.drawn(rows, rows + COUNT, 0, 0)
    for name in ("image", "target", "weight"):
        assert torch.equal(getattr(whole, name), getattr(drawn, name))
    assert whole.index.tolist() == rows.tolist()
    assert drawn.index.tolist() == (rows + COUNT).tolist()
