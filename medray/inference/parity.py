"""Whether an exported model answers as the model does: on its golden windows, and on real samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medray.bundle import BundleError
from medray.inference.predictor import Predictor
from medray.inference.whole import windowing
from medray.inference.window import sliding_window
from medray.types import Array

TOLERANCE = 1e-4
"""Largest difference of a probability, as for the golden answer of a bundle."""

Answer = Callable[[Array], Array]
"""Probabilities of network inputs (B, C, *S) float32."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an exported model is from the model: largest absolute differences of a probability."""

    golden: float
    """On the bundle's golden windows, together and each alone."""
    samples: tuple[float, ...] = ()
    """On each real sample, of a dense network over all windows that it is read by."""
    tolerance: float = TOLERANCE

    @property
    def largest(self) -> float:
        """Of all; NaN where one is."""
        return float(np.max([self.golden, *self.samples]))

    def as_dict(self) -> dict[str, Any]:
        """What the card keeps, as plain JSON."""
        return {**asdict(self), "samples": list(self.samples), "largest": self.largest}


def compare(predictor: Predictor, answer: Answer, samples: Sequence[Path] = ()) -> Parity:
    """The difference of `answer` from the model, on its golden windows and on real samples.

    Raises:
        BundleError: above `TOLERANCE`.
        InputError: a sample cannot be read, or is not what the model takes.
    """
    window = predictor.bundle.golden()[0]
    golden = float(
        np.max([gap(predictor.scores(part), answer(part)) for part in (window, *np.split(window, len(window)))])
    )
    found = tuple(_sample_gap(predictor, answer, predictor.prepare(sample)[1]) for sample in samples)
    parity = Parity(golden, found)
    if not parity.largest <= TOLERANCE:
        raise BundleError(
            f"the exported model differs by {parity.largest:.2g} from {predictor.bundle.folder}; at most {TOLERANCE:g} "
            "is allowed, so nothing was written"
        )
    return parity


def gap(expected: Array, found: Array) -> float:
    """The largest absolute difference; infinite where shapes differ, NaN where there is one."""
    return float(np.abs(expected - found).max()) if expected.shape == found.shape else float("inf")


def _sample_gap(predictor: Predictor, answer: Answer, image: Array) -> float:
    """For a network input (C, *S), of a dense network over the windows that a sliding window lays over it."""
    if not predictor.task.dense:
        return gap(predictor.scores(image[None]), answer(image[None]))
    gaps: list[float] = []

    def forward(batch: torch.Tensor) -> torch.Tensor:
        images = np.ascontiguousarray(batch.numpy())
        expected = predictor.scores(images)
        gaps.append(gap(expected, answer(images)))
        return torch.from_numpy(expected)

    size = predictor.bundle.io.size
    laid = replace(windowing(predictor.window, size, image.shape[1:]), size=size, flips=(), background=None)
    sliding_window(forward, torch.from_numpy(np.ascontiguousarray(image)), laid, predictor.task.outputs)
    return float(np.max(gaps))
