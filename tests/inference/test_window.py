"""A whole image from a network that sees a window: MONAI's answer, in any batch, mirrored, in slabs, in few bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from medray.config import ConfigError
from medray.inference import window
from medray.inference.tiles import lay
from medray.inference.window import (
    Answer,
    Forward,
    Windowing,
    estimate_bytes,
    fit_batch,
    labels,
    regions,
    slices,
    sliding_window,
    stream,
)

CUBE = Windowing((16, 14, 12))


def network(dims: int, channels: int = 1, classes: int = 3) -> Forward:
    """A small convolution whose answer also depends on the place in the window, so that windows disagree."""
    torch.manual_seed(0)
    convolution = (nn.Conv2d if dims == 2 else nn.Conv3d)(channels, classes, 3, padding=1).requires_grad_(False)
    slope = torch.linspace(-2, 2, classes).reshape(-1, *[1] * dims)

    def forward(windows: Tensor) -> Tensor:
        place = torch.linspace(-1, 2, windows.shape[-1]) + torch.linspace(-2, 1, windows.shape[2]).reshape(
            -1, *[1] * (dims - 1)
        )
        return torch.softmax(3 * convolution(windows) + slope * place, dim=1)

    return forward


def image(*shape: int, channels: int = 1) -> Tensor:
    return torch.randn((channels, *shape), generator=torch.Generator().manual_seed(1))


def constant(values: tuple[float, ...]) -> Forward:
    def forward(windows: Tensor) -> Tensor:
        shape = (len(windows), len(values), *windows.shape[2:])
        return torch.tensor(values).reshape(-1, *[1] * (windows.ndim - 2)).expand(shape)

    return forward


def monai(forward: Forward, whole: Tensor, cfg: Windowing) -> Tensor:
    options: dict[str, Any] = {"overlap": cfg.overlap, "mode": cfg.blend, "cval": float(whole.min())}
    found: Tensor = sliding_window_inference(whole[None], cfg.size, cfg.batch, forward, **options)[0]
    return found


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize(
    ("shape", "size", "overlap"),
    [
        ((40, 33, 37), (16, 14, 12), 0.5),
        ((20, 24, 41), (16, 14, 12), 0.25),
        ((48, 28, 24), (16, 14, 12), 0.0),
        ((17, 15, 13), (16, 14, 12), 0.9),
        ((16, 14, 12), (16, 14, 12), 0.5),
        ((9, 30, 7), (16, 14, 12), 0.5),
        ((5, 6, 7), (16, 14, 12), 0.5),
        ((70, 45), (32, 24), 0.6),
        ((20, 100), (32, 24), 0.5),
    ],
)
def test_the_answer_is_monais(shape: tuple[int, ...], size: tuple[int, ...], overlap: float, blend: Any) -> None:
    cfg = Windowing(size, overlap, blend, batch=3)
    forward, whole = network(len(shape), channels=2), image(*shape, channels=2)
    found = sliding_window(forward, whole, cfg)
    assert found.shape == (3, *shape)
    torch.testing.assert_close(found, monai(forward, whole, cfg), atol=2e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 16)), min_size=2, max_size=3),
    st.floats(0, 0.8),
    st.data(),
)
def test_windows_cover_the_image_and_their_weights_are_one_rows_shifted(
    axes: list[tuple[int, int]], overlap: float, data: st.DataObject
) -> None:
    shape, size = zip(*axes, strict=True)
    flips = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    tiling = lay(shape, size, overlap, tuple(flips))
    weights = torch.rand(size) + 0.1
    total = torch.zeros(shape)
    rows = []
    for tile in tiling.tiles():
        total[tile.source] += weights[tile.inner]
        rows.append(tile.starts[tiling.axis])
    assert rows == sorted(rows), "a row of windows is never gone back to"
    assert total.min() > 0
    found = tiling.weights_between(tiling.row_weights(weights), 0, tiling.length)
    torch.testing.assert_close(found, total, atol=0, rtol=1e-4)


@pytest.mark.parametrize("flips", [(), (0,), (0, 2), (0, 1, 2)])
def test_a_constant_answer_stays_what_it_is(flips: tuple[int, ...]) -> None:
    values = (0.1, 0.2, 0.7)
    found = sliding_window(constant(values), image(41, 23, 9), replace(CUBE, flips=flips, batch=5))
    assert float((found - torch.tensor(values).reshape(3, 1, 1, 1)).abs().max()) < 1e-6


@pytest.mark.parametrize("flips", [(), (1, 2)])
def test_the_batch_changes_nothing(flips: tuple[int, ...]) -> None:
    forward, whole, cfg = network(3), image(40, 23, 25), replace(CUBE, flips=flips)
    one = sliding_window(forward, whole, cfg)
    torch.testing.assert_close(sliding_window(forward, whole, replace(cfg, batch=7)), one, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(41, 30, 19), (11, 9, 12), (16, 14, 12)])
@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_a_mirrored_image_has_the_mirrored_answer(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """Though the grid of windows is not symmetric, nor what surrounds a small image."""
    forward, whole, cfg = network(3), image(*shape), replace(CUBE, flips=axes, batch=4)
    dims = [axis + 1 for axis in axes]
    straight, mirrored = sliding_window(forward, whole, cfg), sliding_window(forward, whole.flip(dims), cfg).flip(dims)
    torch.testing.assert_close(straight, mirrored, atol=1e-6, rtol=0)
    assert not torch.allclose(straight, sliding_window(forward, whole, replace(cfg, flips=())), atol=1e-2)


def test_flips_are_the_mean_over_mirrored_images() -> None:
    """Of equal weight where one window spans the image along each mirrored axis."""
    forward, whole = network(3), image(16, 30, 12)
    mirrored = [sliding_window(forward, whole.flip(dims), CUBE).flip(dims) for dims in ([], [1], [3], [1, 3])]
    found = sliding_window(forward, whole, replace(CUBE, flips=(0, 2)))
    torch.testing.assert_close(found, torch.stack(mirrored).mean(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_half_takes_half_and_differs_little(blend: Any) -> None:
    forward, whole, cfg = network(3), image(41, 30, 19), replace(CUBE, blend=blend)
    found = sliding_window(forward, whole, replace(cfg, half=True))
    assert found.dtype == torch.float16
    assert float((found.float() - sliding_window(forward, whole, cfg)).abs().max()) < 5e-3
    assert float((found.float().sum(0) - 1).abs().max()) < 5e-3


@pytest.mark.parametrize("shape", [(41, 30, 19), (20, 30, 50), (9, 8, 7)])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("batch", [1, 5])
def test_labels_and_regions_are_those_of_the_probabilities(shape: tuple[int, ...], half: bool, batch: int) -> None:
    forward, whole = network(3), image(*shape)
    cfg = replace(CUBE, half=half, batch=batch, flips=(1,))
    probabilities = sliding_window(forward, whole, cfg)
    found = labels(forward, whole, cfg)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), probabilities.argmax(0))
    thresholds = (0.2, 0.5, 0.6)
    expected = probabilities >= torch.tensor(thresholds, dtype=probabilities.dtype).reshape(3, 1, 1, 1)
    assert torch.equal(regions(forward, whole, cfg, thresholds), expected)
    assert torch.equal(regions(forward, whole, cfg, 0.3), probabilities >= 0.3)


def test_one_region_has_a_threshold_of_its_own() -> None:
    whole = image(20, 30, 19)

    def forward(windows: Tensor) -> Tensor:
        return torch.sigmoid(4 * windows)

    found = regions(forward, whole, CUBE, thresholds=0.5)
    assert torch.equal(found, whole >= 0)


@pytest.mark.parametrize("overlap", [0.5, 0.7])
def test_slabs_tell_where_they_lie_and_meet_without_a_gap(overlap: float) -> None:
    forward, whole, cfg = network(3), image(53, 20, 19), replace(CUBE, overlap=overlap)
    found = torch.full((3, 53, 20, 19), math.nan)
    for index, part in stream(forward, whole, cfg):
        assert found[:, *index].isnan().all()
        found[:, *index] = part
    assert torch.equal(found, sliding_window(forward, whole, cfg))


def test_windows_of_background_are_not_computed() -> None:
    whole = torch.zeros(1, 64, 20, 20)
    whole[:, 40:50, 5:15, 5:15] = 1
    seen: list[float] = []
    forward = network(3)

    def counted(windows: Tensor) -> Tensor:
        seen.extend(windows.amax((1, 2, 3, 4)).tolist())
        return forward(windows)

    cfg = replace(CUBE, background=0.0, batch=3, flips=(2,))
    found = sliding_window(counted, whole, cfg)
    assert min(seen) == 1
    assert len(seen) < cfg.tiling(whole.shape[1:]).count
    background = torch.tensor([1.0, 0, 0]).reshape(3, 1, 1, 1).expand(3, 16, 20, 20)
    torch.testing.assert_close(found[:, :16], background, atol=1e-6, rtol=0)
    plain = sliding_window(forward, whole, replace(cfg, background=None))
    torch.testing.assert_close(found[:, 42:48, 7:13, 7:13], plain[:, 42:48, 7:13, 7:13], atol=5e-2, rtol=0)
    assert not regions(constant((1.0, 1.0)), whole, cfg)[:, :16].any(), "regions have no background class"


@pytest.mark.parametrize("classes", [None, 3])
def test_an_image_of_background_is_background(classes: int | None) -> None:
    whole = torch.zeros(1, 40, 20, 20)
    found = sliding_window(network(3), whole, replace(CUBE, background=0.0), classes)
    assert torch.equal(found.argmax(0), torch.zeros(40, 20, 20, dtype=torch.long))
    assert float((found[0] - 1).abs().max()) < 1e-6
    assert not labels(network(3), whole, replace(CUBE, background=0.0), classes).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("size", "flips"), [((14, 12), ()), ((40, 32), (1,)), ((24, 18), (0, 1))])
def test_a_volume_is_read_slice_by_slice(axis: int, size: tuple[int, int], flips: tuple[int, ...]) -> None:
    forward, whole = network(2), image(20, 21, 22)
    cfg = Windowing(size, flips=flips, batch=7, pad=-2.0)
    found = slices(forward, whole, cfg, axis)
    for index in range(whole.shape[axis + 1]):
        alone = sliding_window(forward, whole.select(axis + 1, index), cfg)
        torch.testing.assert_close(found.select(axis + 1, index), alone, atol=1e-4, rtol=0)
    by_slice = replace(cfg, slice_axis=axis)
    assert torch.equal(labels(forward, whole, by_slice).long(), found.argmax(0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbours_are_channels_and_the_outermost_are_repeated(axis: int) -> None:
    whole = image(9, 10, 11, channels=2)
    seen: list[Tensor] = []

    def forward(windows: Tensor) -> Tensor:
        seen.extend(windows.clone())
        return windows.sigmoid()

    shape = tuple(length for other, length in enumerate(whole.shape[1:]) if other != axis)
    found = slices(forward, whole, Windowing(shape, batch=4), axis, neighbours=2)
    length = whole.shape[axis + 1]
    for index, window_seen in enumerate(seen):
        places = torch.arange(index - 2, index + 3).clamp(0, length - 1)
        expected = whole.index_select(axis + 1, places).movedim(axis + 1, 1).reshape(10, *shape)
        assert torch.equal(window_seen, expected)
        torch.testing.assert_close(found.select(axis + 1, index), expected.sigmoid(), atol=1e-6, rtol=0)
    assert len(seen) == length


def peak_bytes(run: Callable[[], Tensor]) -> int:
    """Most memory that torch holds during a call beside what it returns."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        result = run()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: int(event.start_ns())):
        held += event.nbytes()
        most = max(most, held)
    return most - result.numel() * result.element_size()


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("answer", get_args(Answer))
@pytest.mark.parametrize(
    "cfg",
    [
        Windowing((32, 32, 32)),
        Windowing((32, 32, 32), batch=5, flips=(0,)),
        Windowing((32, 32, 32), batch=2, half=True),
        Windowing((32, 32, 32), half=True, flips=(1, 2)),
        Windowing((32, 24), slice_axis=2, neighbours=1, batch=8),
    ],
)
def test_memory_is_what_was_forecast(cfg: Windowing, answer: Answer) -> None:
    def forward(windows: Tensor) -> Tensor:
        return torch.full((len(windows), 3, *windows.shape[2:]), 0.3)

    whole = image(70, 60, 50, channels=2)
    runs: dict[str, Callable[[Forward, Tensor, Windowing], Tensor]] = {
        "probabilities": sliding_window,
        "labels": labels,
        "regions": regions,
    }
    run = runs[answer]
    forecast = estimate_bytes(cfg, whole.shape, 3, answer)
    assert peak_bytes(lambda: run(forward, whole, cfg)) == pytest.approx(forecast, rel=0.01, abs=4096)


def test_labels_take_a_row_of_windows_however_long_the_image() -> None:
    short, long = ((1, length, 60, 50) for length in (104, 1000))
    assert estimate_bytes(CUBE, long, 3, "labels") == estimate_bytes(CUBE, short, 3, "labels")


def test_batches_shrink_to_the_memory_and_one_too_many_is_refused() -> None:
    whole, forward = image(40, 30, 25), network(3)
    need = [estimate_bytes(replace(CUBE, batch=batch), whole.shape, 3) for batch in (1, 3, 4)]
    assert need == sorted(need)
    for limit, expected in ((need[0], 1), (need[2] - 1, 3), (need[2], 4)):
        cfg = replace(CUBE, batch=8, max_bytes=limit)
        assert fit_batch(cfg, whole.shape, 3) == expected
        sizes: list[int] = []

        def counted(windows: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(len(windows))
            return forward(windows)

        plain = sliding_window(forward, whole, CUBE)
        torch.testing.assert_close(sliding_window(counted, whole, cfg), plain, atol=1e-6, rtol=0)
        assert (sizes[0], max(sizes)) == (1, expected), "the first pass tells the number of classes"
        sizes.clear()
        sliding_window(counted, whole, cfg, classes=3)
        assert sizes[0] == expected
    tight = replace(CUBE, max_bytes=need[0] - 1)
    for classes in (None, 3):
        with pytest.raises(ConfigError, match=r"window.memory_gb: an image of 40 x 30 x 25 with 3 classes needs .* GB"):
            sliding_window(forward, whole, tight, classes)


def test_the_result_may_be_changed_and_the_image_is_not() -> None:
    whole = image(20, 30, 19)
    before = whole.clone()
    found = sliding_window(network(3), whole, replace(CUBE, flips=(0,)))
    found *= 2
    assert torch.equal(whole, before)
    assert not torch.is_inference_mode_enabled()


def test_every_mistake_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        Windowing((0, 4), overlap=1.0, batch=0, flips=(2,), neighbours=1)
    assert [line.split(":")[0] for line in caught.value.mistakes] == [
        f"window.{name}" for name in ("size", "overlap", "batch", "flips", "neighbours")
    ]
    with pytest.raises(ConfigError, match="different axes"):
        Windowing((4, 4), flips=(1, 1))
    with pytest.raises(ConfigError, match="slice_axis"):
        Windowing((4, 4, 4), slice_axis=1)
    with pytest.raises(ValueError, match="see slice_axis"):
        sliding_window(network(2), image(20, 20, 20), Windowing((8, 8)))
    with pytest.raises(ValueError, match="the network answers"):
        sliding_window(lambda windows: windows[..., ::2], image(20, 20), Windowing((8, 8)))
    with pytest.raises(ValueError, match="257 classes"):
        labels(constant((0.0,) * (window.MAX_LABELS + 1)), image(9, 9), Windowing((8, 8)))
