"""The embedding of a case that is read in windows: that of the window in its middle, which costs one pass, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from medray.inference.features import Embedding, of_windows
from medray.inference.window import Forward, Windowing


def with_embedding(
    run: Embedding, image: Tensor, cfg: Windowing, whole: Callable[[Forward], Tensor]
) -> tuple[Tensor, Tensor]:
    """What `whole` answers for an image (C, *S) when it asks `run` about windows, and the embedding (F,) of its middle.

    Where the image is one window, the pass that answers gives the embedding too.
    """
    kept: list[Tensor] = []

    def forward(windows: Tensor) -> Tensor:
        answer, found = run(windows)
        kept[:] = [found]
        return answer

    answer = whole(forward)
    if cfg.tiling(image.shape[1:]).count > 1 or not kept:
        return answer, embedding(run, image, cfg)
    return answer, kept[0][0]


def embedding(run: Embedding, image: Tensor, cfg: Windowing) -> Tensor:
    """(F,) features of the window in the middle of an image (C, *S); of a network of slices those in the middle."""
    edges = list(cfg.size)
    if cfg.slice_axis is not None:
        edges.insert(cfg.slice_axis, 1 + 2 * cfg.neighbours)
    starts = [max(0, (length - edge) // 2) for length, edge in zip(image.shape[1:], edges, strict=True)]
    crop = image[:, *[slice(start, start + edge) for start, edge in zip(starts, edges, strict=True)]]
    return of_windows(run, crop, replace(cfg, background=None))
