"""Why a model says what it says of an image: a heat map on the patient's grid, and files to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from medray.config import ConfigError, nearest
from medray.imaging.geometry import restore
from medray.imaging.overlay import heat_overlay
from medray.imaging.writer import write_nifti, write_png
from medray.inference.attribution import LAYERED, METHODS, Method, Probe, in_unit
from medray.inference.predictor import Predictor
from medray.inference.whole import whole_probabilities, windowing
from medray.inference.window import sliding_window
from medray.types import Array, Case, Source

Turn = Callable[[Callable[[], Any]], Any]
"""Calls a function when the device is free, and gives what it gives."""
SMALLEST_CHANCE = 1e-6
"""Log odds are cut at this probability and at 1 less it."""


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Where in one image the reasons for one class lie."""

    method: str
    """A name of attribution.METHODS."""
    target: str
    """The class that is explained."""
    heat: Array
    """(*S) float32 in [0, 1] on the network's grid; all 0 where nothing speaks for the class."""
    case: Case
    """The case on the network's grid."""
    raw: Case
    """The case as it was read."""
    restored: Array
    """The heat on the patient's grid: (*S of `raw`) float32 in [0, 1], 0 where the network saw nothing."""


def explain(
    predictor: Predictor,
    source: Source | Case,
    method: str = "gradcam",
    target: str | int | None = None,
    turn: Turn | None = None,
) -> Explanation:
    """What of an image speaks for a class.

    The score is the network's logit of the class (the log odds of its probability where there is none); of a dense
    network the sum of its logits over the voxels that get the class (Vinogradova 2020, 10.1609/aaai.v34i10.7244), in
    each of its windows: of a class that is found nowhere the heat is 0.

    Args:
        predictor: the model.
        source: the image.
        method: a name of attribution.METHODS.
        target: a class, by name or index; by default the likeliest, of a dense network the largest structure.
        turn: where others use the device too, how each pass waits for it.

    Raises:
        InputError: the image cannot be read, or is not what this model takes.
        ConfigError: no such method or class, or the method does not go with the network.
    """
    check_method(predictor, method)
    raw = predictor.read(source)
    case, image = predictor.prepare(raw)
    batch = torch.from_numpy(np.ascontiguousarray(image))[None].to(predictor.device)
    wait = turn or (lambda function: function())
    chosen = wait(lambda: likeliest(predictor, batch)) if target is None else index_of(predictor, target)
    # In turn too: what finds the layer must not meet the hooks of another's pass.
    probe = wait(lambda: probe_of(predictor, chosen))
    heat = in_unit(heat_of(predictor, probe, _in_turn(METHODS[method], wait), batch)).cpu().numpy()
    restored = restore(heat[None], case.affine, raw, order=1)[0]
    return Explanation(method, targets(predictor)[chosen], heat, case, raw, np.clip(restored, 0, 1))


def _in_turn(run: Method, turn: Turn) -> Method:
    """The same method, each of whose images waits for its turn."""

    def wait(probe: Probe, image: Tensor) -> Tensor:
        heat: Tensor = turn(lambda: run(probe, image))
        return heat

    return wait


def check_method(predictor: Predictor, method: str) -> None:
    """Refuse a method that is not there or does not go with the model.

    Raises:
        ConfigError: naming those that do.
    """
    if method not in METHODS:
        near = nearest(method, METHODS)
        raise ConfigError([f"--method: there is no '{method}'{near}; there are: {', '.join(METHODS)}"])
    if "head" in predictor.bundle.card:
        kind = predictor.bundle.card["head"]["kind"]
        raise ConfigError([f"--bundle: the model answers by a {kind} on features; explain the network that it is on"])
    if predictor.bundle.io.dense and method not in LAYERED:
        raise ConfigError([f"--method: {method} is for models that answer per image; take {' or '.join(LAYERED)}"])


def targets(predictor: Predictor) -> tuple[str, ...]:
    """What can be explained: the classes; of a segmentation into regions those."""
    regions = getattr(predictor.bundle.experiment.task, "regions", None)
    return tuple(regions) if regions else predictor.bundle.classes


def index_of(predictor: Predictor, target: str | int) -> int:
    """The index of a class among `targets`.

    Raises:
        ConfigError: naming the classes.
    """
    names = targets(predictor)
    if isinstance(target, str) and target in names:
        return names.index(target)
    if isinstance(target, int) and 0 <= target < len(names):
        return target
    near = nearest(str(target), names)
    raise ConfigError([f"--target: the model has no class '{target}'{near}; it has {', '.join(names)}"])


def likeliest(predictor: Predictor, image: Tensor) -> int:
    """The class that the model gives an image (1, C, *S); of a dense model the one with most voxels after the first."""
    task, network, bundle = predictor.task, predictor.network, predictor.bundle
    with torch.inference_mode():
        if not bundle.io.dense:
            return int(task.predict(network, image)[1][0].argmax())
        scores = whole_probabilities(task, network, image[0], predictor.window, bundle.io.size)
        voxels = _masks(predictor, scores[None])[0].flatten(1).sum(1)
    # Of exclusive classes the first is the background, which explains nothing where something else was found.
    first = int(targets(predictor) == bundle.classes and bool(voxels[1:].any()))
    return first + int(voxels[first:].argmax())


def probe_of(predictor: Predictor, target: int) -> Probe:
    """The score of a class of a model, and the layer that it is read from."""
    score = _dense_score if predictor.bundle.io.dense else _case_score
    return Probe(predictor.network, partial(score, predictor, target), predictor.features)


def _case_score(predictor: Predictor, target: int, network: nn.Module, images: Tensor) -> Tensor:
    """(B,) the logit of a class."""
    output, scores = predictor.task.predict(network, images)
    if output.shape == scores.shape:
        return output[:, target]
    if output.shape[1] == 1:  # two classes, of which the network gives the second one's log odds
        return output[:, 0] if target == 1 else -output[:, 0]
    return torch.logit(scores[:, target], SMALLEST_CHANCE)


def _masks(predictor: Predictor, scores: Tensor) -> Tensor:
    """(B, K, *S) bool, which voxels get which class, from a dense model's scores."""
    masks: Tensor = cast(Any, predictor.task).masks(scores)
    return masks


def _dense_score(predictor: Predictor, target: int, network: nn.Module, images: Tensor) -> Tensor:
    """(B,) the sum of a class's logits over its voxels."""
    output, scores = predictor.task.predict(network, images)
    return (output[:, target] * _masks(predictor, scores)[:, target]).flatten(1).sum(1)


def heat_of(predictor: Predictor, probe: Probe, run: Method, image: Tensor) -> Tensor:
    """(*S) the map that `run` makes of an image (1, C, *S); a dense model looks at it through its window."""
    if not predictor.bundle.io.dense:
        return run(probe, image)
    cfg = windowing(predictor.window, predictor.bundle.io.size, tuple(image.shape[2:]))
    cfg = replace(cfg, batch=1, flips=(), half=False)
    return sliding_window(lambda part: run(probe, part)[None, None], image[0], cfg)[0]


def write(explanation: Explanation, folder: Path, name: str) -> list[Path]:
    """Write the picture of an explanation, and of a volume its heat on the patient's grid as NIfTI; what was written.

    Args:
        explanation: what to show.
        folder: where; it is made if need be.
        name: of the files, without a suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{name}.png"
    write_png(picture, heat_overlay(explanation.raw, explanation.restored, limit=1.0))
    if explanation.raw.spatial_dims == 2:
        return [picture]
    volume = folder / f"{name}.nii.gz"
    write_nifti(volume, explanation.restored, explanation.raw.affine)
    return [picture, volume]
