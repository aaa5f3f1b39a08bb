"""Whether an explanation explains the network, or only draws the image again (Adebayo 2018, arXiv:1810.03292)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from medray.inference.attribution import METHODS, Method, Probe
from medray.inference.explain import check_method, heat_of, likeliest, probe_of
from medray.inference.predictor import Predictor
from medray.types import Array, Case, Source

STAGES = 6
"""How many networks, from the last layer learnt no more to none learnt any more."""
MOST_ALIKE = 0.7
"""Largest rank correlation with a network that learnt nothing: maps that depend on what was learnt lie below 0.5 in
Adebayo's figures 3 and 4, guided backpropagation and edge detectors above 0.8."""
SSIM_WIDTH = 7
"""Edge of the window (Wang 2004, 10.1109/TIP.2003.819861)."""


@dataclass(frozen=True, slots=True)
class SanityReport:
    """How alike the maps are before and after layers lose what they learnt, from the last to the first."""

    layers: tuple[int, ...]
    """How many layers of the network have lost it."""
    rank_correlation: tuple[float, ...]
    """Spearman's, the mean over cases: 1 for the same map, 0 for nothing in common."""
    ssim: tuple[float, ...]
    """Structural similarity, the mean over cases."""

    @property
    def passed(self) -> bool:
        """Whether the maps of a network that learnt nothing are others."""
        return self.rank_correlation[-1] <= MOST_ALIKE

    def __str__(self) -> str:
        word = "depends on" if self.passed else "HARDLY DEPENDS on"
        falls = " ".join(f"{value:.2f}" for value in self.rank_correlation)
        return f"the explanation {word} what the network learnt: rank correlation {falls} as layers lose it"


def randomisation_check(
    predictor: Predictor, cases: Sequence[Source | Case], method: str | Method = "gradcam", seed: int = 0
) -> SanityReport:
    """Explain the likeliest class of each case by networks whose layers, from the last on, have learnt nothing.

    A layer loses what it learnt when the values of each of its tensors change places: their distribution, and with
    it the size of activations, stays. The class stays the one that the whole network gave.

    Args:
        predictor: the model.
        cases: some images; two or three are enough.
        method: a name of attribution.METHODS, or a map to be judged.
        seed: of the places.

    Raises:
        ConfigError, InputError: as `explain`.
    """
    if not cases:
        raise ValueError("at least one case is needed")
    if isinstance(method, str):
        check_method(predictor, method)
    run = METHODS[method] if isinstance(method, str) else method
    images = [torch.from_numpy(predictor.prepare(case)[1])[None].to(predictor.device) for case in cases]
    probes = [probe_of(predictor, likeliest(predictor, image)) for image in images]
    whole = [_map(predictor, probe, run, image) for probe, image in zip(probes, images, strict=True)]
    network = deepcopy(predictor.network)
    parts = [part for part in network.modules() if list(part.parameters(recurse=False))][::-1]
    counts = sorted({max(1, round(number)) for number in np.linspace(0, len(parts), STAGES + 1)})
    draw = torch.Generator().manual_seed(seed)
    correlation, similarity, done = [], [], 0
    for count in counts:
        for part in parts[done:count]:
            _forget(part, draw)
        done = count
        forgetful = [replace(probe, network=network) for probe in probes]
        after = [_map(predictor, probe, run, image) for probe, image in zip(forgetful, images, strict=True)]
        correlation.append(float(np.mean([spearman(a, b) for a, b in zip(whole, after, strict=True)])))
        similarity.append(float(np.mean([ssim(a, b) for a, b in zip(whole, after, strict=True)])))
    return SanityReport(tuple(counts), tuple(correlation), tuple(similarity))


def _map(predictor: Predictor, probe: Probe, run: Method, image: torch.Tensor) -> Array:
    return np.asarray(heat_of(predictor, probe, run, image).detach().cpu().numpy(), np.float64)


def _forget(part: nn.Module, draw: torch.Generator) -> None:
    """Let the values of each of a layer's own tensors change places."""
    with torch.no_grad():
        for parameter in part.parameters(recurse=False):
            order = torch.randperm(parameter.numel(), generator=draw).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def spearman(first: Array, second: Array) -> float:
    """Rank correlation of two maps; 1 for the same, 0 where only one of them is the same everywhere."""
    from scipy.stats import rankdata

    if np.array_equal(first, second):
        return 1.0
    ranks = [rankdata(part, axis=None) for part in (first, second)]
    ranks = [rank - rank.mean() for rank in ranks]
    spread = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / spread) if spread else 0.0


def ssim(first: Array, second: Array) -> float:
    """Structural similarity of two maps, each divided by its largest value (Wang 2004, even weights in the window)."""
    from scipy.ndimage import uniform_filter

    def mean(values: Array) -> Any:
        return uniform_filter(values, SSIM_WIDTH, mode="nearest")

    a, b = (part / part.max() if part.max() > 0 else part for part in (first, second))
    mean_a, mean_b = mean(a), mean(b)
    both = mean(a * b) - mean_a * mean_b
    spread_a, spread_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((similar / ((mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2))).mean())
