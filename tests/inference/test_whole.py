"""A whole case from windows: seen at once where it nearly fits, and then as in its windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medray.config import ConfigError
from medray.inference.whole import whole_probabilities, windowing
from medray.sections.inference import WindowSection
from medray.tasks.segmentation import Config, Segmentation

TASK = Segmentation(Config(), ("back", "fore"))


@pytest.mark.parametrize(
    ("shape", "window", "size"),
    [
        ((20, 20), (20, 20), (20, 20)),  # as in training, not padded to a multiple of 16
        ((9, 20), (20, 20), (20, 20)),
        ((25, 20), (20, 20), (32, 20)),
        ((40, 20), (20, 20), (20, 20)),
        ((70, 60, 33), (64, 64, 32), (80, 64, 48)),
        ((90, 60, 32), (64, 64, 32), (64, 64, 32)),
    ],
)
def test_a_case_that_is_little_longer_than_the_window_is_seen_at_once(
    shape: tuple[int, ...], window: tuple[int, ...], size: tuple[int, ...]
) -> None:
    assert windowing(WindowSection(), window, shape).size == size


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_window_of_two_axes_reads_slices(axis: int) -> None:
    cfg = WindowSection(slice_axis=axis, neighbours=2)
    found = windowing(cfg, (24, 24), tuple(np.insert([30, 24], axis, 500).tolist()))
    assert (found.size, found.slice_axis, found.neighbours) == ((32, 24), axis, 2)
    flat = windowing(cfg, (24, 24), (30, 24))
    assert (flat.slice_axis, flat.neighbours) == (None, 0)


def test_settings_are_passed_on() -> None:
    cfg = WindowSection.model_validate(
        {"overlap": 0.25, "blend": "constant", "batch": 3, "flips": [0], "half": True, "skip_below": -1, "memory_gb": 2}
    )
    found = windowing(cfg, (8, 8), (30, 40))
    assert (found.overlap, found.blend, found.batch, found.flips, found.half) == (0.25, "constant", 3, (0,), True)
    assert (found.background, found.max_bytes) == (-1, 2 << 30)


class Pointwise(nn.Module):
    """Answers each voxel by its own value: then windows change nothing."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([-image[:, :1], image[:, :1]], 1)


@pytest.mark.parametrize("shape", [(9, 7), (8, 10), (33, 21), (5, 6, 7), (24, 9, 11)])
def test_the_answer_is_that_of_the_network_on_the_whole(shape: tuple[int, ...]) -> None:
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    window = (8,) * len(shape)
    found = whole_probabilities(TASK, Pointwise(), image, WindowSection(batch=2), window)
    torch.testing.assert_close(found, torch.cat([-image, image]).softmax(0))


def test_slices_are_put_together() -> None:
    image = torch.randn(1, 12, 9, 5, generator=torch.Generator().manual_seed(0))
    found = whole_probabilities(TASK, Pointwise(), image, WindowSection(slice_axis=1), (8, 4))
    torch.testing.assert_close(found, torch.cat([-image, image]).softmax(0))


def test_too_little_memory_is_a_mistake_of_the_configuration() -> None:
    cfg = WindowSection(memory_gb=1e-6)
    with pytest.raises(ConfigError, match=r"window.memory_gb: an image of 64 x 64 x 64"):
        whole_probabilities(TASK, Pointwise(), torch.zeros(1, 64, 64, 64), cfg, (32, 32, 32))
