"""A model's answer as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medray.imaging.overlay import COLOURS
from medray.inference.about import Facts
from medray.inference.contract import WARNINGS
from medray.types import Case, Prediction

SPOKEN: Mapping[str, str] = {
    "constant_image": "every voxel has the same value",
    "implausible_intensity": "values look like negative ones that were read as unsigned",
    "extension_mismatch": "the file's name says another format than its content",
    "phi_in_header": "the header holds a name or a date of a person",
    "clipped": "values beyond what the model reads were cut off",
    "affine_difference": "two places of the image in its header differ a little",
    "scaling_ignored": "a scaling in the header was not applied",
}
"""Warnings of the reader, in words."""


def body_of(answer: Prediction, facts: Facts, thresholds: Mapping[str, float], raw: Case) -> dict[str, Any]:
    """The model's part of an answer: what there is not is left out.

    Args:
        answer: the model's.
        facts: of the model.
        thresholds: class -> probability from which on it is called, where one decides.
        raw: the image, whose unit is that of volumes.
    """
    body: dict[str, Any] = {"task": facts.task, "labels": list(answer.labels)}
    if facts.dense:
        body["structures"] = structures(answer, facts, volume_unit(raw))
    elif facts.task == "regression":
        body["values"] = [_value(answer, name, score) for name, score in _scores(answer)]
    else:
        plain = None if answer.uncalibrated is None else answer.uncalibrated.tolist()
        body["predictions"] = [
            {
                "label": name,
                "probability": score,
                **({} if plain is None else {"uncalibrated": plain[place]}),
                **({"threshold": thresholds[name]} if name in thresholds else {}),
            }
            for place, (name, score) in enumerate(_scores(answer))
        ]
    if answer.conformal_set is not None:
        body["conformal_set"] = list(answer.conformal_set)
    if answer.quality:
        body["quality"] = {name: float(f"{value:.4g}") for name, value in answer.quality.items()}
    body["warnings"] = [{"word": word, "meaning": meaning(word)} for word in answer.warnings]
    return body


def structures(answer: Prediction, facts: Facts, unit: str) -> list[dict[str, Any]]:
    """What a mask can hold, found or not: its size, and its value and colour in mask and pictures."""
    return [
        {
            "label": name,
            "volume": float(f"{answer.volumes.get(name, 0.0):.6g}"),
            "unit": unit,
            "value": value,
            "colour": COLOURS[(value - 1) % len(COLOURS)],
        }
        for value, name in enumerate(facts.structures, start=1)
    ]


def _scores(answer: Prediction) -> Sequence[tuple[str, float]]:
    return list(zip(answer.classes, answer.scores.tolist(), strict=True)) if len(answer.scores) else []


def _value(answer: Prediction, name: str, value: float) -> dict[str, Any]:
    interval = answer.intervals.get(name)
    return {"name": name, "value": value, **({} if interval is None else {"interval": list(interval)})}


def meaning(word: str) -> str:
    """What a warning means, in words."""
    return WARNINGS.get(word) or SPOKEN.get(word) or word.replace("_", " ")


def volume_unit(case: Case) -> str:
    """The unit of Prediction.volumes for a raw case."""
    if case.unit != "mm":
        return "voxels"
    return "mL" if case.spatial_dims == 3 else "mm2"
