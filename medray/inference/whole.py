"""A dense network's answer for a whole case, put together from windows: the same road in validation and in serving."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor, nn

from medray.inference.window import Forward, Windowing, sliding_window
from medray.sections.inference import WindowSection
from medray.tasks.task import Task

STRETCH = 1.3
"""A case up to this much longer than the window along each axis is seen at once, in one pass instead of eight; the
network, being convolutional, answers as it does in its windows."""
MULTIPLE = 16
"""Of the edges of what is seen at once: pooling finds nothing to pad."""


def windowing(
    cfg: WindowSection, window: tuple[int, ...], shape: tuple[int, ...], background_class: int | None = 0
) -> Windowing:
    """How a case of `shape` (*S) is read by a network whose window is `window` (*W); skipped windows are of
    `background_class`, or of none."""
    flat = len(window) < len(shape)
    seen = tuple(n for axis, n in enumerate(shape) if not (flat and axis == cfg.slice_axis))
    size = window
    if all(n <= STRETCH * edge for n, edge in zip(seen, window, strict=True)):
        # A case that fits keeps the window that the network was trained with.
        size = tuple(edge if n <= edge else MULTIPLE * ceil(n / MULTIPLE) for n, edge in zip(seen, window, strict=True))
    return Windowing(
        size=size,
        overlap=cfg.overlap,
        blend=cfg.blend,
        batch=cfg.batch,
        flips=cfg.flips,
        half=cfg.half,
        max_bytes=int(cfg.memory_gb * 2**30),
        background=cfg.skip_below,
        background_class=background_class,
        slice_axis=cfg.slice_axis if flat else None,
        neighbours=cfg.neighbours if flat else 0,
    )


def whole_probabilities(
    task: Task,
    network: nn.Module,
    image: Tensor,
    cfg: WindowSection,
    window: tuple[int, ...],
    forward: Forward | None = None,
) -> Tensor:
    """(K, *S) probabilities of an image (C, *S) as the network sees it, on the image's device.

    `forward` asks the network about windows; by default here and now.

    Raises:
        ConfigError: one window at a time takes more than `cfg.memory_gb`.
    """

    def ask(batch: Tensor) -> Tensor:
        return task.predict(network, batch)[1]

    background = 0 if getattr(task, "exclusive", True) else None
    with torch.inference_mode():
        how = windowing(cfg, window, tuple(image.shape[1:]), background)
        return sliding_window(forward or ask, image, how, task.outputs)
