"""Patches: where (seed, epoch, case) says, on classes as often as asked, and as inference looks at a case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.inference.window import Windowing, sliding_window
from medray.pipeline.casestore import _draw_places
from medray.pipeline.loader import Sampling, Share, eval_batches, train_batches
from medray.pipeline.patches import Patches, Patching
from medray.types import IGNORED, Array, Batch


@dataclass
class Held:
    """What a CaseStore holds, in memory."""

    images: list[Array]
    labels: list[Array]
    classes: int

    @property
    def shapes(self) -> Array:
        return np.array([label.shape for label in self.labels])

    @property
    def counts(self) -> Array:
        return np.stack([np.bincount(one.ravel(), minlength=256)[: self.classes] for one in self.labels])

    @property
    def least(self) -> Array:
        return np.array([image.min() for image in self.images], np.float64)

    @property
    def channels(self) -> int:
        return len(self.images[0])

    @property
    def spatial_dims(self) -> int:
        return self.labels[0].ndim

    def image(self, row: int) -> Array:
        return self.images[row]

    def label(self, row: int) -> Array:
        return self.labels[row]

    def places(self, row: int) -> Array:
        return _draw_places(self.labels[row], self.classes, row)


def patches(store: Held, *size: int, **settings: object) -> Patches:
    count = len(store.labels)
    targets = torch.from_numpy((store.counts > 0).astype(np.float32))
    return Patches(store, Patching(size, **settings), targets, torch.ones(count))  # type: ignore[arg-type]


def numbered(*shapes: tuple[int, ...], channels: int = 1, classes: int = 2) -> Held:
    """Images whose every voxel is another number, and random labels."""
    draw = np.random.default_rng(0)
    images = [np.arange(channels * np.prod(shape), dtype=np.float32).reshape(channels, *shape) for shape in shapes]
    return Held(images, [draw.integers(0, classes, shape).astype(np.uint8) for shape in shapes], classes)


def drawn(feed: Patches, count: int, row: int = 0, seed: int = 0, epoch: int = 0) -> Batch:
    """So many patches of one case."""
    return feed.drawn(np.full(count, row), row + len(feed.targets) * np.arange(count), seed, epoch)


def test_a_patch_follows_seed_epoch_and_case_alone() -> None:
    feed = patches(numbered((20, 24), (30, 18), (16, 16)), 8, 10)
    rows = np.array([2, 0, 1])
    one = feed.drawn(rows, rows, 3, 5)
    for position, row in enumerate(rows.tolist()):
        alone = feed.drawn(np.array([row]), np.array([row]), 3, 5)
        assert torch.equal(alone.image[0], one.image[position])
        assert torch.equal(alone.target[0], one.target[position])
    assert not torch.equal(feed.drawn(rows, rows, 3, 6).image, one.image)
    assert not torch.equal(feed.drawn(rows, rows, 4, 5).image, one.image)
    assert not torch.equal(feed.drawn(rows, rows + 3, 3, 5).image, one.image), "the same case drawn again"


@pytest.mark.parametrize("size", [2, 3])
def test_the_worlds_patches_do_not_depend_on_its_size(size: int) -> None:
    feed = patches(numbered((20, 24), (30, 18), (16, 16), (12, 40)), 8, 10)
    sampling = Sampling(batch_size=6, seed=1, steps_per_epoch=3)
    alone = list(train_batches(feed, np.arange(4), sampling, 2, Share()))
    parts = [list(train_batches(feed, np.arange(4), sampling, 2, Share(rank, size))) for rank in range(size)]
    assert len(alone) == 3
    for step, whole in enumerate(alone):
        for rank, part in enumerate(parts):
            assert torch.equal(part[step].image, whole.image[rank::size])
            assert torch.equal(part[step].target, whole.target[rank::size])
        assert sum(float(part[step].weight.sum()) for part in parts) == pytest.approx(size)


shapes = st.lists(st.integers(1, 9), min_size=2, max_size=3)


@given(shapes, st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_patch_is_a_piece_of_its_case_and_the_rest_is_not_labelled(shape: list[int], data: st.DataObject) -> None:
    window = tuple(data.draw(st.integers(1, 9)) for _ in shape)
    store = numbered(tuple(shape))
    batch = drawn(patches(store, *window, foreground=data.draw(st.sampled_from([0.0, 1.0]))), 4)
    assert batch.image.shape == (4, 1, *window)
    for image, label in zip(batch.image[:, 0].numpy(), batch.target[:, 0].numpy(), strict=True):
        inside = label != IGNORED
        assert inside.sum() == np.prod(np.minimum(shape, window)), "as much of the case as fits"
        np.testing.assert_array_equal(store.labels[0].ravel()[image[inside].astype(int)], label[inside])
        assert (np.diff(image[inside]) > 0).all(), "in the order of the case"
        assert (image[~inside] == store.images[0].min()).all()


def test_the_surroundings_are_the_least_of_the_case_as_in_inference() -> None:
    store = numbered((4, 40))
    batch = drawn(patches(store, 8, 8), 20)
    assert (batch.image[batch.target == IGNORED] == 0).all(), "not the least of the patch"


@pytest.mark.parametrize("window", [(1, 1, 1), (2, 3, 4), (5, 1, 8), (9, 16, 3)])
def test_a_patch_holds_the_voxel_that_it_was_put_on_in_its_middle_half(window: tuple[int, ...]) -> None:
    label = np.zeros((30, 30, 30), np.uint8)
    label[13, 17, 14] = 1
    batch = drawn(patches(Held([label[None]], [label], 2), *window, foreground=1.0), 200)
    assert (batch.target.flatten(1).sum(1) == 1).all()
    places = np.argwhere(batch.target[:, 0].numpy())[:, 1:]
    low, high = (np.asarray(window) - 1) / 2 - np.asarray(window) / 4, (np.asarray(window) - 1) / 2
    assert (places >= low - 0.5).all()
    assert (places <= 2 * high - low + 0.5).all()
    assert (np.ptp(places, axis=0) >= np.asarray(window) // 2 - 1).all(), "not always in the same spot"


@pytest.mark.parametrize("place", [(0, 0), (29, 29), (0, 15)])
def test_a_voxel_at_the_edge_is_in_its_patch_too(place: tuple[int, int]) -> None:
    label = np.zeros((30, 30), np.uint8)
    label[place] = 1
    batch = drawn(patches(Held([label[None]], [label], 2), 8, 8, foreground=1.0), 50)
    assert (batch.target == 1).flatten(1).any(1).all()
    assert (batch.target != IGNORED).all(), "a case larger than the window is not padded"


def test_the_foreground_is_as_frequent_as_asked_and_balanced_over_classes() -> None:
    """Class 1 has 400 times as many voxels as class 2, but patches are put on both equally often."""
    label = np.zeros((96, 96), np.uint8)
    label[4:24, 4:24] = 1
    label[80, 80] = 2
    label[50:55, 50:55] = IGNORED
    store = Held([label[None]], [label], 3)
    everything = drawn(patches(store, 8, 8, foreground=1.0), 4000).target.flatten(1)
    first, second = ((everything == value).any(1) for value in (1, 2))
    assert (first ^ second).all()
    assert abs(float(first.float().mean()) - 0.5) < 0.03
    nowhere = drawn(patches(store, 8, 8, foreground=0.0), 4000).target.flatten(1)
    chance = float(((nowhere == 1) | (nowhere == 2)).any(1).float().mean())
    third = drawn(patches(store, 8, 8, foreground=1 / 3), 4000).target.flatten(1)
    share = float(((third == 1) | (third == 2)).any(1).float().mean())
    assert abs(share - (1 / 3 + 2 / 3 * chance)) < 0.04


def test_without_foreground_patches_lie_everywhere_equally_often() -> None:
    feed = patches(Held([np.arange(11, dtype=np.float32).reshape(1, 11, 1)], [np.zeros((11, 1), np.uint8)], 2), 3, 1)
    starts = drawn(feed, 9000).image[:, 0, 0, 0].long()
    counts = torch.bincount(starts)
    assert len(counts) == 9
    assert (counts / 1000 - 1).abs().max() < 0.12


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("neighbours", [0, 1, 2])
def test_slices_are_seen_as_inference_sees_them(axis: int, neighbours: int) -> None:
    """The same channels in the same order, the first and the last slice repeated."""
    draw = np.random.default_rng(1)
    shape = (6, 7, 8)
    image = draw.normal(size=(2, *shape)).astype(np.float32)
    depth = shape[axis]
    label = np.broadcast_to(np.arange(depth).reshape([-1 if a == axis else 1 for a in range(3)]), shape)
    plane = tuple(edge for other, edge in enumerate(shape) if other != axis)
    seen = []

    def forward(batch: torch.Tensor) -> torch.Tensor:
        seen.extend(batch.clone())
        return batch[:, :1]

    sliding_window(forward, torch.from_numpy(image), Windowing(plane, slice_axis=axis, neighbours=neighbours))
    assert len(seen) == depth
    store = Held([image], [np.ascontiguousarray(label.astype(np.uint8))], depth)
    batch = drawn(patches(store, *plane, slice_axis=axis, neighbours=neighbours), 60)
    slices = batch.target[:, 0, 0, 0].long()
    assert set(slices.tolist()) == set(range(depth))
    for patch, at in zip(batch.image, slices.tolist(), strict=True):
        assert torch.equal(patch, seen[at])


def test_a_slice_is_one_that_holds_the_class() -> None:
    label = np.zeros((16, 16, 40), np.uint8)
    label[8, 8, 23] = 1
    batch = drawn(patches(Held([label[None]], [label], 2), 8, 8, foreground=1.0, neighbours=1), 100)
    assert (batch.target.flatten(1).sum(1) == 1).all()
    assert torch.equal(batch.image[:, 1:2], batch.target), "the middle channel is the slice that is labelled"


def test_a_volume_of_one_slice() -> None:
    store = numbered((10, 12, 1), channels=2)
    batch = drawn(patches(store, 8, 8, neighbours=1), 3)
    assert batch.image.shape == (3, 6, 8, 8)
    assert torch.equal(batch.image[:, 0], batch.image[:, 2])
    whole = drawn(patches(store, 8, 8, 4), 3)
    assert ((whole.target != IGNORED).flatten(1).sum(1) == 64).all()


def test_images_of_different_integers_share_a_batch() -> None:
    store = numbered((9, 9), (9, 9))
    store.images = [store.images[0].astype(np.uint8), 60_000 + store.images[1].astype(np.uint16)]
    batch = patches(store, 4, 4).drawn(np.arange(2), np.arange(2), 0, 0)
    assert batch.image.float()[1].min() >= 60_000


def test_evaluation_takes_whole_cases_one_by_one() -> None:
    store = numbered((9, 9), (5, 12))
    batches = list(eval_batches(patches(store, 4, 4), np.array([1, 0]), 8, Share()))
    assert [batch.index.tolist() for batch in batches] == [[1], [0]]
    np.testing.assert_array_equal(batches[0].image[0], store.images[1])
    np.testing.assert_array_equal(batches[0].target[0, 0], store.labels[1])
