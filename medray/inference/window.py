"""Answers for a whole image from a network that sees a window: blended, mirrored, and never larger than need be.

Windows come row by row along one axis. What no later window touches is final and leaves, so that label maps and
regions hold no more probabilities than one row of windows is high. The result of `sliding_window` is its own
accumulator. The weights of all windows are one row's, shifted, so no volume of weights is added up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Literal

import torch
from torch import Tensor

from medray.config import ConfigError
from medray.inference.tiles import Index, Sums, Tile, Tiling, lay, window_weights

Answer = Literal["probabilities", "labels", "regions"]
Forward = Callable[[Tensor], Tensor]
"""(b, C, *W) -> (b, K, *W) probabilities."""
FLOAT_BYTES, INDEX_BYTES = 4, 8
MAX_LABELS = 256
"""What an unsigned byte tells apart."""


@dataclass(frozen=True, slots=True)
class Windowing:
    """How a window is moved over an image, and what becomes of its answers."""

    size: tuple[int, ...]
    """(*W), what the network takes: as many axes as the image, or two on a volume with `slice_axis`."""
    overlap: float = 0.5
    """Share of a window that it has in common with the next."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    batch: int = 1
    """Windows per forward pass, fewer where `max_bytes` says so."""
    flips: tuple[int, ...] = ()
    """Axes of the window to mirror: the mean over all 2 ** len combinations."""
    half: bool = False
    """Accumulate, and answer, in float16: half the memory; a probability may change by some 1e-3 (5e-3 was seen)."""
    max_bytes: int | None = None
    """Most that may be taken beside the image, the result and what the network itself needs."""
    background: float | None = None
    """Windows without a voxel above this are not computed; they belong to `background_class`."""
    background_class: int | None = 0
    """Its probability in skipped windows is 1; None: all are 0."""
    pad: float | None = None
    """What surrounds an image that is smaller than the window; by default its minimum."""
    slice_axis: int | None = None
    """A network of two axes on volumes reads slice by slice: the axis across which slices lie."""
    neighbours: int = 0
    """Slices on each side that the network sees too (2.5D): channel c of neighbour i is its channel
    c * (2 * neighbours + 1) + i, and the image's first and last slice are repeated."""

    def __post_init__(self) -> None:
        mistakes = [
            (min(self.size, default=0) < 1, f"size: {self.size} is no window; every axis needs a voxel"),
            (not 0 <= self.overlap < 1, f"overlap: {self.overlap} is not in [0, 1)"),
            (self.batch < 1, f"batch: {self.batch} is below 1"),
            (
                len(set(self.flips)) < len(self.flips) or not set(self.flips) <= set(range(len(self.size))),
                f"flips: {self.flips} must be different axes of the window, which has {len(self.size)}",
            ),
            (
                self.slice_axis is not None and not (0 <= self.slice_axis <= 2 and len(self.size) == 2),
                f"slice_axis: {self.slice_axis} must be 0, 1 or 2, with a window of two axes (it has {len(self.size)})",
            ),
            (
                self.neighbours < 0 or (self.neighbours > 0 and self.slice_axis is None),
                f"neighbours: {self.neighbours} must be 0 or more, and above 0 needs slice_axis",
            ),
        ]
        if found := [f"window.{text}" for wrong, text in mistakes if wrong]:
            raise ConfigError(found)

    @property
    def dtype(self) -> torch.dtype:
        """Of the sums and of the answer."""
        return torch.float16 if self.half else torch.float32

    def tiling(self, shape: Sequence[int]) -> Tiling:
        """The windows over an image (*S)."""
        window, flips, axis = self.size, self.flips, self.slice_axis
        if len(shape) != len(window) + (axis is not None):
            raise ValueError(f"an image of {len(shape)} axes does not fit a window of {len(window)}; see slice_axis")
        if axis is not None:
            window = (*window[:axis], 1, *window[axis:])
            flips = tuple(flip + (flip >= axis) for flip in flips)
        return lay(shape, window, self.overlap, flips, axis)


def sliding_window(forward: Forward, image: Tensor, cfg: Windowing, classes: int | None = None) -> Tensor:
    """(K, *S) probabilities of `image` (C, *S): the weighted mean of all windows that see a voxel.

    The same as MONAI's `sliding_window_inference` with sigma_scale=0.125. On the image's device; float32, or float16
    with `cfg.half`. Where `cfg.max_bytes` is set and `classes` (K) is not, the first pass has one window, which tells.

    Raises:
        ConfigError: one window at a time takes more than `cfg.max_bytes`.
    """
    scan = _Scan(forward, image, cfg, "probabilities", classes)
    for _ in scan.run():
        pass
    return scan.sums.total


def slices(forward: Forward, image: Tensor, cfg: Windowing, axis: int, neighbours: int = 0) -> Tensor:
    """(K, *S) probabilities of a volume from a network that sees slices across `axis`, see `Windowing.slice_axis`."""
    return sliding_window(forward, image, replace(cfg, slice_axis=axis, neighbours=neighbours))


def stream(
    forward: Forward, image: Tensor, cfg: Windowing, answer: Answer = "regions", classes: int | None = None
) -> Iterator[tuple[Index, Tensor]]:
    """The answer of `sliding_window` in slabs: where each lies in the image (*S), and its probabilities (K, ...).

    A slab is gone when the next one is asked for. `answer` is what becomes of it, for the forecast of memory.
    Raises as `sliding_window` does.
    """
    return _Scan(forward, image, cfg, answer, classes).run()


def labels(forward: Forward, image: Tensor, cfg: Windowing, classes: int | None = None) -> Tensor:
    """(*S) uint8, the likeliest class of each voxel (the first of equals); see `sliding_window`."""
    result = torch.empty(image.shape[1:], dtype=torch.uint8, device=image.device)
    for index, part in stream(forward, image, cfg, "labels", classes):
        if len(part) > MAX_LABELS:
            raise ValueError(f"{len(part)} classes do not fit a label map of unsigned bytes")
        # Across the first axis 20 times as fast as argmax, and it too takes the first of equals.
        result[index].copy_(part.max(0).indices)
    return result


def regions(
    forward: Forward,
    image: Tensor,
    cfg: Windowing,
    thresholds: float | Sequence[float] = 0.5,
    classes: int | None = None,
) -> Tensor:
    """(K, *S) bool, where each of K overlapping regions has its threshold or more; none in skipped windows."""
    parts = stream(forward, image, replace(cfg, background_class=None), "regions", classes)
    first = next(parts)
    outputs, dims = len(first[1]), image.ndim - 1
    result = torch.empty((outputs, *image.shape[1:]), dtype=torch.bool, device=image.device)
    least = torch.as_tensor(thresholds, dtype=first[1].dtype, device=image.device).expand(outputs)
    for index, part in chain([first], parts):
        torch.ge(part, least.reshape(-1, *[1] * dims), out=result[:, *index])
    return result


def estimate_bytes(cfg: Windowing, shape: Sequence[int], classes: int, answer: Answer = "probabilities") -> int:
    """Most that an image (C, *S) of float32 takes at once beside itself, the result and the network's own needs.

    For `sliding_window`, `labels`, or `regions` (and `stream`). The network's answers are taken to be float32.
    """
    tiling = cfg.tiling(shape[1:])
    size = 2 if cfg.half else FLOAT_BYTES
    window = prod(tiling.window)
    fixed = window * size + tiling.plane * tiling.window[tiling.axis] * FLOAT_BYTES
    height = tiling.length if answer == "probabilities" else tiling.height
    if answer != "probabilities":
        fixed += classes * tiling.plane * height * size
    batch = window * min(cfg.batch, tiling.count) * FLOAT_BYTES
    # A window turned on its way in; an answer in the sums' type, then turned back.
    gather = window * shape[0] * FLOAT_BYTES * bool(cfg.flips)
    add = window * classes * size * (bool(cfg.flips) + cfg.half)
    # Per voxel: the weights, with one class and themselves in float32 where sums are float16; or maxima and indices.
    divide = FLOAT_BYTES * (3 if cfg.half else 1)
    voxel = max(divide, size + INDEX_BYTES) if answer == "labels" else divide
    between, last = (tiling.plane * planes * voxel for planes in tiling.chunks(height))
    answers = max(batch * classes + max(add, between), last)
    return fixed + batch * shape[0] * (2 * cfg.neighbours + 1) + max(gather, answers)


def fit_batch(cfg: Windowing, shape: Sequence[int], classes: int, answer: Answer = "probabilities") -> int:
    """Windows per pass: `cfg.batch`, or as many as `cfg.max_bytes` has room for.

    Raises:
        ConfigError: not even one has room.
    """
    if cfg.max_bytes is None:
        return cfg.batch
    for batch in range(min(cfg.batch, cfg.tiling(shape[1:]).count), 0, -1):
        need = estimate_bytes(replace(cfg, batch=batch), shape, classes, answer)
        if need <= cfg.max_bytes:
            return batch
    grid, window = (" x ".join(map(str, sizes)) for sizes in (shape[1:], cfg.size))
    raise ConfigError(
        [
            f"window.memory_gb: an image of {grid} with {classes} classes needs {need / 1e9:.3g} GB for one window of "
            f"{window} at a time, has {cfg.max_bytes / 1e9:.3g} GB; raise it, or take window.half=true or a smaller "
            "window.size"
        ]
    )


class _Scan:
    """One image under the window: reads it into one buffer, has the network answer, and sums up."""

    def __init__(self, forward: Forward, image: Tensor, cfg: Windowing, answer: Answer, classes: int | None) -> None:
        self.forward, self.image, self.cfg, self.answer = forward, image, cfg, answer
        self.tiling = cfg.tiling(image.shape[1:])
        self._batch = 1 if cfg.max_bytes is not None else cfg.batch
        if classes is not None:  # refused before memory is taken
            self._batch = fit_batch(cfg, image.shape, classes, answer)
        weights = window_weights(self.tiling.window, cfg.blend, image.device).to(cfg.dtype)
        self.sums = Sums(self.tiling, weights, whole=answer == "probabilities")
        self._buffer = image.new_empty(0)
        self._pad = cfg.pad
        if classes is not None:
            self.sums.open(classes, cfg.background_class)

    @torch.inference_mode()
    def run(self) -> Iterator[tuple[Index, Tensor]]:
        """Move the window over the image; yield what is final."""
        queue = deque((tile, self._is_live(tile)) for tile in self.tiling.tiles())
        if not self.sums.total.numel() and not any(live for _, live in queue):
            self._ask([queue[0][0]])  # for the number of classes
        while queue:
            group = list(_take(queue, self._batch))
            answers = self._ask([tile for tile, live in group if live])
            for tile, live in group:
                yield from self.sums.finish(max(tile.starts[self.tiling.axis], 0))
                self.sums.add(tile, next(answers) if live else None)
            # Otherwise they would lie beside the next ones.
            del answers
        yield from self.sums.finish(self.tiling.length)

    def _is_live(self, tile: Tile) -> bool:
        """Whether a window holds more than background."""
        return self.cfg.background is None or bool(self.image[:, *tile.source].amax() > self.cfg.background)

    def _ask(self, tiles: Sequence[Tile]) -> Iterator[Tensor]:
        """The network's answer (K, *W) to each of some windows."""
        if not tiles:
            return iter(())
        window, axis = self.tiling.window, self.cfg.slice_axis
        if len(self._buffer) < len(tiles):
            self._buffer = self.image.new_empty(0)
            channels = len(self.image) * (2 * self.cfg.neighbours + 1)
            self._buffer = self.image.new_empty((len(tiles), channels, *window))
        batch = self._buffer[: len(tiles)]
        for target, tile in zip(batch, tiles, strict=True):
            self._read(tile, target)
        answers = self.forward(batch if axis is None else batch.squeeze(axis + 2))
        if axis is not None:
            answers = answers.unsqueeze(axis + 2)
        if (len(answers), *answers.shape[2:]) != (len(tiles), *window):
            raise ValueError(f"the network answers {tuple(answers.shape)} to windows {tuple(batch.shape)}")
        if not self.sums.total.numel():
            self._batch = fit_batch(self.cfg, self.image.shape, answers.shape[1], self.answer)
            self.sums.open(answers.shape[1], self.cfg.background_class)
        return iter(answers)

    def _read(self, tile: Tile, target: Tensor) -> None:
        """Copy one window into `target` (C, *W), mirrored as the tile says."""
        if any(part != slice(0, size) for part, size in zip(tile.seen, self.tiling.window, strict=True)):
            if self._pad is None:
                self._pad = float(self.image.min())
            target.fill_(self._pad)
        reach, axis = self.cfg.neighbours, self.cfg.slice_axis
        rows = target.view(len(self.image), 2 * reach + 1, *self.tiling.window)
        source, flips = [*tile.source], [flip + 1 for flip in tile.flips]
        for place, offset in enumerate(range(-reach, reach + 1)):
            if axis is not None:
                at = min(max(tile.starts[axis] + offset, 0), self.tiling.length - 1)
                source[axis] = slice(at, at + 1)
            part = self.image[:, *source]
            seen: Index = (slice(None), slice(place, place + 1), *tile.seen)
            rows[seen].copy_((part.flip(flips) if flips else part).unsqueeze(1))


def _take(queue: deque[tuple[Tile, bool]], size: int) -> Iterator[tuple[Tile, bool]]:
    """The next windows, `size` of which are to be computed."""
    while queue and size:
        tile, live = queue.popleft()
        size -= live
        yield tile, live
