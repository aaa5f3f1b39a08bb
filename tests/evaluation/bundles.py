"""Bundles on a folder of images: facts alone, or with a small network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import tiny

from medray.bundle import ModelBundle, save
from medray.config import Experiment
from medray.datasets.scan import scan
from medray.evaluation.provenance import data_fingerprint, split_fingerprint
from medray.networks.build import build
from medray.pipeline.split import split
from medray.types import NetworkIO

SPLIT = {"method": "fraction", "val": 0.2, "test": 0.3}


def card_of(experiment: Experiment, **facts: Any) -> dict[str, Any]:
    """What a training on the experiment's data writes."""
    dataset = scan(experiment.dataset)
    indices = split(dataset, experiment.split)
    known = {
        "classes": list(dataset.classes),
        "multilabel": dataset.multilabel,
        "outputs": 1 if len(dataset.classes) == 2 else len(dataset.classes),
        "input": {"channels": 1, "size": [16, 16], "axes": 2, "dense": False},
        "decision": "the likeliest class",
        "cases": {name: len(getattr(indices, name)) for name in ("train", "val", "test")},
        "split": split_fingerprint(dataset, indices),
        "environment": {"python": "3.11", "revision": "abc"},
    }
    known["data"] = data_fingerprint(dataset, indices, ModelBundle(Path(), experiment, known))
    return {**known, **facts}


def described(images: Path, **facts: Any) -> ModelBundle:
    """A bundle without files, for what is asked before a network is needed."""
    experiment = tiny(images, split=SPLIT)
    return ModelBundle(images / "none", experiment, card_of(experiment, **facts))


def written(folder: Path, images: Path, seed: int = 1, **facts: Any) -> ModelBundle:
    """A bundle whose network has its initial weights."""
    experiment = tiny(images, split=SPLIT)
    card = card_of(experiment, **facts)
    network = build(experiment.network, NetworkIO(1, (16, 16), card["outputs"]), seed=seed).network
    return save(folder, experiment, network.state_dict(), card)
