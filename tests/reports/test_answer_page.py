"""The report of one answer: everything that was said, as text, in one file."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from medray.imaging.writer import png_bytes
from medray.reports.answer import BAR_PX, render, sheet

NOTICE = "Research use only. Not a medical device."


def body(**parts: Any) -> dict[str, Any]:
    return {
        "request_id": "ab" * 16,
        "model": {"name": "phantom", "version": "3", "digest": "cd" * 32},
        "task": "classification",
        "input": {
            "sha256": "ef" * 32,
            "kind": "gzip",
            "shape": [34, 52, 35],
            "channels": 1,
            "spacing": [1.0, 1.0, 1.25],
            "unit": "mm",
            "modality": "OT",
        },
        "labels": ["malignant"],
        "warnings": [],
        "timings_ms": {"total": 27.42, "forward": 14.9, "other": 1},
        "notice": NOTICE,
        **parts,
    }


def test_probabilities_are_bars_with_their_thresholds() -> None:
    predictions = [
        {"label": "malignant", "probability": 0.75, "threshold": 0.5},
        {"label": "benign", "probability": 0.25},
    ]
    first, second = sheet(body(predictions=predictions, conformal_set=["malignant"])).bars
    assert (first.text, first.width, first.tick) == ("75.0 %", 0.75 * BAR_PX, 0.5 * BAR_PX)
    assert (first.picked, first.possible) == (True, True)
    assert (second.tick, second.picked, second.possible) == (None, False, False)


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ({}, "malignant"),
        ({"labels": []}, "none of the classes"),
        ({"labels": [], "task": "segmentation"}, "nothing found"),
        ({"labels": [], "values": [{"name": "age", "value": 61.234}]}, "age 61.23"),
    ],
)
def test_the_verdict_is_what_the_model_says(parts: dict[str, Any], verdict: str) -> None:
    assert sheet(body(**parts)).verdict == verdict


def test_all_that_was_said_is_there() -> None:
    structures = [
        {"label": "organ", "volume": 12.345, "unit": "mL", "value": 1, "colour": "#E69F00"},
        {"label": "lesion", "volume": 0.0, "unit": "mL", "value": 2, "colour": "#56B4E9"},
    ]
    text = render(
        body(
            structures=structures,
            values=[{"name": "age", "value": 61.0, "interval": [55.0, 70.0]}],
            warnings=[{"word": "low_quality_noise", "meaning": "noisier than the training images"}],
            quality={"noise": 0.01234},
            explanation={"method": "gradcam", "target": "organ"},
        ),
        [("The image", png_bytes(np.zeros((2, 3), np.uint8)))],
    )
    for said in (
        NOTICE,
        "phantom/3",
        "cd" * 32,
        "low quality noise",
        "noisier than the training images",
        "12.3 mL",
        "not found",
        "#E69F00",
        "55 to 70",
        "34 x 52 x 35, 1 channel, NIfTI",
        "gradcam of organ",
        "0.0123",
        "27.4 ms",
        "data:image/png;base64,",
    ):
        assert said in text, said
    assert "1.0 ms" not in text


def test_no_text_becomes_markup_and_nothing_is_loaded() -> None:
    evil = '"><img src=x onerror=alert(1)>'
    text = render(
        body(
            labels=[evil],
            predictions=[{"label": evil, "probability": 0.5}],
            warnings=[{"word": evil, "meaning": evil}],
            structures=[{"label": evil, "volume": 1.0, "unit": evil, "value": 1, "colour": evil}],
        ),
        [(evil, png_bytes(np.zeros((2, 3), np.uint8)))],
    )
    assert "<img src=x" not in text
    assert "<script" not in text
    assert "default-src 'none'" in text
    plain = render(body(), [("The image", png_bytes(np.zeros((2, 3), np.uint8)))])
    assert re.findall(r"""(?:src|href)=["']?(.{5})""", plain) == ["data:"]
