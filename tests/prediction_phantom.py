"""Small models for tests of predictions: untrained, but their masks hold some of every class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from medray.bundle import ModelBundle, save
from medray.config import Experiment, parse
from medray.imaging.writer import write_png
from medray.networks.build import build
from medray.types import NetworkIO

CLASSES = ("background", "organ", "lesion")


def _experiment(**sections: Any) -> Experiment:
    plain = {
        "dataset": {"name": "folder", "path": "unused"},
        "preprocess": {"intensity": {"method": "range", "low": -1000, "high": 3000}},
        "split": {"method": "fraction", "val": 0.2, "test": 0.2},
    }
    return parse({**plain, **sections})


def segmenter(folder: Path, dims: int = 2, seed: int = 1, **sections: Any) -> ModelBundle:
    """A segmentation of CLASSES by a small U-Net with windows of 16 (2D) or 8 voxels."""
    window = (16, 16) if dims == 2 else (8, 8, 8)
    experiment = _experiment(
        name=sections.pop("name", folder.name),
        seed=seed,
        task={"name": "segmentation", **sections.pop("task", {})},
        network={"name": "unet", "channels": [4, 8], "residual_units": 0},
        window={"size": list(window)},
        **sections,
    )
    outputs = len(experiment.task.regions or CLASSES)  # type: ignore[attr-defined]
    network = build(experiment.network, NetworkIO(1, window, outputs, dense=True), seed).network
    with torch.no_grad():
        noise = torch.randn(1, 1, *window, generator=torch.Generator().manual_seed(0))
        middle = network.eval()(noise).transpose(0, 1).flatten(1).median(1).values
        bias = next(p for p in reversed(list(network.parameters())) if p.shape == (outputs,))
        bias -= middle
    entry = {"channels": 1, "size": list(window), "axes": dims, "dense": True}
    card = {"classes": list(CLASSES), "multilabel": False, "outputs": outputs, "input": entry}
    return save(folder, experiment, network.state_dict(), card)


def classifier(folder: Path, seed: int = 1, **facts: Any) -> ModelBundle:
    """A classification of 16x16 images as a or b."""
    network = {"name": "plain", "widths": [8, 8], "norm": "none"}
    experiment = _experiment(name=folder.name, seed=seed, task={"name": "classification"}, network=network)
    made = build(experiment.network, NetworkIO(1, (16, 16), 1), seed).network
    entry = {"channels": 1, "size": [16, 16], "axes": 2, "dense": False}
    card = {"classes": ["a", "b"], "multilabel": False, "outputs": 1, "input": entry, **facts}
    return save(folder, experiment, made.state_dict(), card)


def pictures(folder: Path, good: int, broken: int = 0, size: tuple[int, int] = (16, 16)) -> Path:
    """PNGs of noise in a new folder; the first of them are cut in the middle."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(good + broken):
        file = folder / f"case{number:03d}.png"
        write_png(file, draw.integers(0, 255, size).astype(np.uint8))
        if number < broken:
            file.write_bytes(file.read_bytes()[: 60 + number])
    return folder
