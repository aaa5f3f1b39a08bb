"""Which voxels speak for a score: Grad-CAM, Grad-CAM++, occlusion, integrated gradients, SmoothGrad; in 2D and 3D.

Own code and not monai.visualize: that one leaves its hooks on the network, changes its ReLUs, draws noise from the
global generator, turns maps upside down, and knows neither integrated gradients nor transformers. Its Grad-CAM is the
same map (tested), its Grad-CAM++ only before a global mean: it sums features times gradients, the paper features alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.config import ConfigError
from medray.networks.layers import Features, feature_map

VOXELS_AT_ONCE = 1 << 17
"""Of all images of one pass: what a network keeps of each, for the way back, takes some kilobytes."""
OCCLUSION_PARTS = {2: 8, 3: 4}
"""Boxes that cover each axis, of images and of volumes; the step is half a box."""
NOISE, SAMPLES = 0.15, 25
"""SmoothGrad's share of the range of values, and its draws (Smilkov 2017, section 3.1)."""
OUTLIERS = 0.99
"""Gradients above this quantile are cut to it, or single voxels hide all others (Smilkov 2017, section 3.1)."""
STEPS, MOST_STEPS = 32, 1024
COMPLETE = 0.01
"""Largest part of the score's change that integrated gradients may miss before their steps are doubled."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One score of a network, and the feature map that it is read from."""

    network: nn.Module
    score: Callable[[nn.Module, Tensor], Tensor]
    """The network and images (B, C, *S) -> (B,)."""
    features: Features | None
    """None where the network has no such map."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B,) the score of each image (B, C, *S)."""
        return self.score(self.network, images)


Method = Callable[[Probe, Tensor], Tensor]
"""A probe and one image (1, C, *S) -> (*S), 0 where nothing speaks for the score, else above."""


def grad_cam(probe: Probe, image: Tensor) -> Tensor:
    """Feature maps weighted by their mean gradient (Selvaraju 2017, 10.1109/ICCV.2017.74)."""
    features, gradients = _at_layer(probe, image)
    return _weighted(features, gradients.flatten(2).mean(2), image)


def grad_cam_pp(probe: Probe, image: Tensor) -> Tensor:
    """Grad-CAM++: several objects of one class count alike (Chattopadhay 2018, 10.1109/WACV.2018.00097).

    The weights of the paper for exp(score); that factor is the same everywhere and left out, since it overflows.
    """
    features, gradients = _at_layer(probe, image)
    space = tuple(range(2, features.ndim))
    square = gradients**2
    below = 2 * square + features.sum(space, keepdim=True) * gradients**3
    share = square / torch.where(below != 0, below, torch.ones_like(below))
    return _weighted(features, (share * gradients.relu()).sum(space), image)


def occlusion(probe: Probe, image: Tensor) -> Tensor:
    """Mean fall of the score over all boxes of grey that hide a voxel (Zeiler 2014, 10.1007/978-3-319-10590-1_53)."""
    size = image.shape[2:]
    box = [ceil(edge / OCCLUSION_PARTS[len(size)]) for edge in size]
    starts = [
        [*range(0, edge - length, max(1, length // 2)), edge - length] for edge, length in zip(size, box, strict=True)
    ]
    places = [
        tuple(slice(low, low + length) for low, length in zip(lows, box, strict=True)) for lows in product(*starts)
    ]
    grey = image.mean(tuple(range(2, image.ndim)), keepdim=True)
    fall, count = image.new_zeros(size), image.new_zeros(size)
    batch = _batch(image)
    with torch.no_grad():
        whole = probe(image)
        for first in range(0, len(places), batch):
            hidden = image.repeat(len(part := places[first : first + batch]), *[1] * (image.ndim - 1))
            for copy, place in zip(hidden, part, strict=True):
                copy[:, *place] = grey[0]
            for change, place in zip(whole - probe(hidden), part, strict=True):
                fall[place] += change
                count[place] += 1
    return (fall / count).relu()


def integrated_gradients(probe: Probe, image: Tensor) -> Tensor:
    """Size of each voxel's part of the score, summed over channels; see `integrate`."""
    parts, _ = integrate(probe, image)
    return _without_outliers(parts.sum(1)[0].abs())


def integrate(probe: Probe, image: Tensor, baseline: Tensor | None = None) -> tuple[Tensor, float]:
    """Integrated gradients (Sundararajan 2017, arXiv:1703.01365) of one image (1, C, *S).

    The parts sum to score(image) - score(baseline) but for a rest, which doubling the steps (of the midpoint rule)
    brings under COMPLETE of that difference or, where the score jumps, as far as MOST_STEPS go.

    Args:
        probe: the score.
        image: (1, C, *S).
        baseline: the same shape; by default the least value of each channel, what surrounds an image.

    Returns:
        (1, C, *S) signed parts, and the rest as a share of the difference.
    """
    if baseline is None:
        baseline = image.amin(tuple(range(2, image.ndim)), keepdim=True).expand_as(image)
    with torch.no_grad():
        difference = (probe(image) - probe(baseline)).double().item()
    steps = STEPS
    while True:
        total = torch.zeros_like(image)
        places = (torch.arange(steps, device=image.device) + 0.5) / steps
        for part in torch.split(places, _batch(image)):
            at = part.reshape(-1, *[1] * (image.ndim - 1))
            total += _gradient(probe, baseline + at * (image - baseline)).sum(0, keepdim=True)
        parts = (image - baseline) * total / steps
        rest = abs(parts.double().sum().item() - difference) / max(abs(difference), 1e-6)
        if rest <= COMPLETE or steps >= MOST_STEPS:
            return parts, rest
        steps *= 2


def smooth_grad(probe: Probe, image: Tensor) -> Tensor:
    """Size of the mean gradient around the image (Smilkov 2017, arXiv:1706.03825); its noise is always the same."""
    deviation = NOISE * float(image.max() - image.min())
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn((SAMPLES, *image.shape[1:]), generator=draw).to(image)
    total = torch.zeros_like(image)
    for part in torch.split(noise, _batch(image)):
        total += _gradient(probe, image + deviation * part).sum(0, keepdim=True)
    return _without_outliers(total.abs().sum(1)[0] / SAMPLES)


METHODS: dict[str, Method] = {
    "gradcam": grad_cam,
    "gradcam++": grad_cam_pp,
    "occlusion": occlusion,
    "integrated_gradients": integrated_gradients,
    "smoothgrad": smooth_grad,
}
LAYERED = ("gradcam", "gradcam++")
"""Those that need a feature map."""
OTHERS = ", ".join(name for name in METHODS if name not in LAYERED)


def in_unit(heat: Tensor) -> Tensor:
    """The heat divided by its largest value; where that is 0 nothing speaks for the score, and all is 0."""
    most = heat.max()
    return heat / most if most > 0 else torch.zeros_like(heat)


@contextmanager
def _differentiable() -> Iterator[None]:
    """Gradients are recorded, whatever surrounds this."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _gradient(probe: Probe, images: Tensor) -> Tensor:
    """(B, C, *S) the gradient of each image's score in its voxels; the network's parameters collect none."""
    with _differentiable():
        images = images.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(probe(images).sum(), images)
    return gradient


def _at_layer(probe: Probe, image: Tensor) -> tuple[Tensor, Tensor]:
    """The feature map (1, F, *s) of an image and the score's gradient in it."""
    if probe.features is None:
        raise ConfigError([f"--method: the network has no feature map for Grad-CAM; take {OTHERS}"])
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        kept.append(output)

    handle = probe.network.get_submodule(probe.features.layer).register_forward_hook(keep)
    try:
        with _differentiable():
            # A leaf that asks for gradients, or frozen weights would leave nothing to go back through.
            score = probe(image.detach().clone().requires_grad_())
            (gradient,) = torch.autograd.grad(score.sum(), kept[-1])
    finally:
        handle.remove()
    features = feature_map(kept[-1].detach(), probe.features)
    if max(features.shape[2:]) == 1:
        raise ConfigError([f"--method: the network's last feature map is one voxel for such a grid; take {OTHERS}"])
    return features, feature_map(gradient, probe.features)


def _weighted(features: Tensor, weights: Tensor, image: Tensor) -> Tensor:
    """(*S) the positive part of the weighted sum of feature maps (1, F, *s), interpolated to the image's grid."""
    heat = torch.einsum("bf...,bf->b...", features, weights).relu()[None]
    mode = "trilinear" if heat.ndim == 5 else "bilinear"
    return functional.interpolate(heat, size=image.shape[2:], mode=mode, align_corners=False)[0, 0]


def _without_outliers(heat: Tensor) -> Tensor:
    """Values above the quantile OUTLIERS cut to it, unless that is 0."""
    rank = max(1, round(OUTLIERS * heat.numel()))
    limit = heat.flatten().kthvalue(rank).values
    return heat.clamp(max=limit.item()) if limit > 0 else heat


def _batch(image: Tensor) -> int:
    """Images of one pass."""
    return max(1, VOXELS_AT_ONCE // prod(image.shape))
