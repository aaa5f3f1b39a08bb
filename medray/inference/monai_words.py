"""What a MONAI bundle says of itself: metadata.json by MONAI's schema, and a README."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from medray.inference.parity import Parity
from medray.inference.predictor import Predictor
from medray.inference.whole import STRETCH

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
VERSION = "1.0.0"
LEAST = {"pytorch-ignite": "0.5.0"}
"""What only whoever runs the folder needs, so that it may be absent here."""
MAPPED = ("range", "window", "percentile")
"""Intensities that end in [-1, 1]."""
LICENSE = """No licence is stated for this model: ask whoever trained it for the terms of its use.
The licence of medray, which wrote this folder, is that of a program and says nothing of models.
"""
PREPARED = """This bundle takes arrays that medray has prepared, *.npy: {unsaid} cannot be said in MONAI's transforms.

    from medray.inference.predictor import Predictor
    numpy.save(FILE, Predictor(BUNDLE).prepare(IMAGE)[1])
"""
SLIDES = """MONAI moves the window over every image. medray sees an image of up to {stretch} times the window at once
and follows window.flips and window.skip_below, so the answers for a whole image may differ.
"""


def metadata(predictor: Predictor, channels: Sequence[str], unsaid: Sequence[str], target: str) -> dict[str, Any]:
    """configs/metadata.json, for a network of the class `target`."""
    bundle = predictor.bundle
    size, task = list(bundle.io.size), bundle.experiment.task.name
    named = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
    volumes = bundle.axes == 3
    needed = {
        "pytorch-ignite": True,
        "nibabel": predictor.task.dense or (volumes and not unsaid),
        "pillow": not volumes and not unsaid,
        "torchvision": target.startswith("torchvision"),
    }
    words = ", ".join(bundle.classes)
    prepared = f"arrays that medray prepared ({', '.join(unsaid)})" if unsaid else "image files"
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: f"exported from the medray bundle {bundle.digest}"},
        **{key: version(name) for key, name in named.items()},
        "required_packages_version": {
            name: LEAST.get(name) or version(name) for name, is_so in needed.items() if is_so
        },
        "name": bundle.experiment.name,
        "task": f"{task} of {bundle.axes}D images: {words}",
        "description": f"A {bundle.experiment.network.name} for the {task} of {bundle.axes}D images into {words}. "
        f"It takes {prepared} and gives logits.",
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": f"not stated; fingerprint {bundle.card.get('data', 'unknown')}",
        "data_type": "numpy" if unsaid else "nifti" if volumes else "png",
        "eval_metrics": dict(bundle.card.get("metrics", {})),
        "intended_use": bundle.card["intended_use"],
        "references": [],
        "network_data_format": {
            "inputs": {"image": _image(predictor)},
            "outputs": {
                "pred": {
                    "type": "image" if bundle.io.dense else "probabilities",
                    "format": "labels" if bundle.io.dense else "classes",
                    "num_channels": bundle.io.outputs,
                    "spatial_shape": size if bundle.io.dense else [1, bundle.io.outputs],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": bundle.io.dense,
                    "channel_def": {str(index): name for index, name in enumerate(channels)},
                }
            },
        },
    }


def _image(predictor: Predictor) -> dict[str, Any]:
    """What the network sees."""
    io, method = predictor.bundle.io, predictor.bundle.experiment.preprocess.intensity.method
    channels = ["image"] if io.in_channels == 1 else [f"channel {index}" for index in range(io.in_channels)]
    return {
        "type": "image",
        "format": "magnitude",
        "modality": "n/a",
        "num_channels": io.in_channels,
        "spatial_shape": list(io.size),
        "dtype": "float32",
        "value_range": [-1, 1] if method in MAPPED else [],
        "is_patch_data": io.dense,
        "channel_def": {str(index): name for index, name in enumerate(channels)},
    }


def readme(predictor: Predictor, unsaid: Sequence[str], parity: Parity, chain: Sequence[float]) -> str:
    """docs/README.md."""
    bundle = predictor.bundle
    dense = predictor.task.dense
    gives = "a label map per image (NIfTI)" if dense else "predictions.csv with a probability per channel"
    kind = "NIfTI" if bundle.axes == 3 else "PNG"
    reads = (
        PREPARED.format(unsaid=", ".join(unsaid)) if unsaid else f"It reads {kind} files; DICOM is medray's to read."
    )
    lines = [
        f"# {bundle.experiment.name}",
        f"{bundle.card['intended_use']}",
        f"Exported by medray from the bundle {bundle.digest}; classes: {', '.join(bundle.classes)}.",
        "Probabilities are not calibrated; medray's calibration and decision rule are in export.json.",
        "    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir IMAGES",
        f"This writes {gives} into eval. {reads}",
        f"On golden windows and real samples ({len(parity.samples)}) a probability of this network differs from "
        f"medray's by at most {parity.largest:.2g}.",
    ]
    if chain:
        lines.append(f"From file to answer, on real samples ({len(chain)}): at most {max(chain):.2g}.")
    elif not unsaid:
        lines.append("From file to answer: not measured, for want of samples.")
    return "\n\n".join([*lines, *([SLIDES.format(stretch=STRETCH)] if dense else [])]).rstrip() + "\n"
