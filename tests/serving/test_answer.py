"""A model's answer as JSON: what it says is what was answered, what there is not is not there, and it is plain JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from answer_phantom import CLASSES, classified, facts, segmented
from hypothesis import given
from hypothesis import strategies as st

from medray.imaging.overlay import COLOURS
from medray.inference.contract import WARNINGS
from medray.serving.answer import SPOKEN, body_of, meaning, structures, volume_unit
from medray.types import Array, Case, Prediction


def case(size: tuple[int, ...], unit: str = "mm") -> Case:
    return Case("upload", np.zeros((1, *size), np.int16), np.eye(4), unit)  # type: ignore[arg-type]


FLAT = case((4, 4))


@given(scores=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3))
def test_probabilities_are_those_of_the_answer_to_the_last_bit(scores: list[float]) -> None:
    answer = replace(classified(*scores), scores=np.array(scores, np.float32))
    body = json.loads(json.dumps(body_of(answer, facts(structures=(), axes=2), {}, FLAT), allow_nan=False))
    found = np.array([one["probability"] for one in body["predictions"]], np.float32)
    assert found.tolist() == answer.scores.tolist()
    assert [one["label"] for one in body["predictions"]] == list(CLASSES)


def test_a_classification_says_no_more_than_there_is() -> None:
    known = facts(structures=(), axes=2)
    plain = replace(classified(0.2, 0.5, 0.3), conformal_set=None, warnings=())
    body = body_of(plain, known, {}, FLAT)
    assert set(body) == {"task", "labels", "predictions", "warnings"}
    assert body["warnings"] == []
    assert set(body["predictions"][0]) == {"label", "probability"}


def test_thresholds_calibration_and_sets_are_said_where_there_are_some() -> None:
    known = facts(structures=(), axes=2)
    answer = replace(
        classified(0.25, 0.5, 0.25),
        uncalibrated=np.array([0.125, 0.75, 0.125], np.float32),
        conformal_set=(),
        quality={"noise": 0.123456, "extent_mm_0": 123456.0},
    )
    body = body_of(answer, known, {"organ": 0.4}, FLAT)
    assert body["predictions"] == [
        {"label": "background", "probability": 0.25, "uncalibrated": 0.125},
        {"label": "organ", "probability": 0.5, "uncalibrated": 0.75, "threshold": 0.4},
        {"label": "lesion", "probability": 0.25, "uncalibrated": 0.125},
    ]
    assert body["conformal_set"] == [], "an empty set is an answer"
    assert body["quality"] == {"noise": 0.1235, "extent_mm_0": 123500.0}


def test_numbers_have_their_intervals() -> None:
    known = facts(structures=(), axes=2, task="regression", classes=("age", "width"))
    answer = Prediction("x", ("age", "width"), np.array([51.5, 2.25]), (), intervals={"age": (40.0, 60.0)})
    body = body_of(answer, known, {}, FLAT)
    assert body["values"] == [
        {"name": "age", "value": 51.5, "interval": [40.0, 60.0]},
        {"name": "width", "value": 2.25},
    ]
    assert "predictions" not in body


def masks() -> list[Array]:
    values = np.zeros((5, 4, 3), np.uint8)
    values[:2] = 1
    return [values, np.stack([values > 0, np.zeros_like(values, bool)])]


@pytest.mark.parametrize("mask", masks(), ids=["classes", "regions"])
def test_every_structure_is_named_found_or_not(mask: Array) -> None:
    raw = case((5, 4, 3))
    body = body_of(segmented(raw, mask), facts(), {}, raw)
    assert body["structures"] == [
        {"label": "organ", "volume": 0.024, "unit": "mL", "value": 1, "colour": COLOURS[0]},
        {"label": "lesion", "volume": 0.0, "unit": "mL", "value": 2, "colour": COLOURS[1]},
    ]
    assert body["labels"] == ["organ"]
    assert "predictions" not in body


def test_more_structures_than_colours_begin_again() -> None:
    names = tuple(f"s{k}" for k in range(2 * len(COLOURS) + 1))
    found = structures(Prediction("x", names, np.zeros(0), ()), facts(structures=names), "mL")
    assert [one["value"] for one in found] == list(range(1, len(names) + 1))
    assert {one["colour"] for one in found} == set(COLOURS)
    assert found[len(COLOURS)]["colour"] == found[0]["colour"]


@pytest.mark.parametrize(
    ("size", "unit", "said"),
    [((4, 4), "mm", "mm2"), ((4, 4), "px", "voxels"), ((4, 4, 4), "mm", "mL"), ((4, 4, 4), "px", "voxels")],
)
def test_the_unit_of_sizes_is_that_of_the_image(size: tuple[int, ...], unit: str, said: str) -> None:
    assert volume_unit(case(size, unit)) == said


@pytest.mark.parametrize("word", [*WARNINGS, *SPOKEN, "never_heard_of"])
def test_every_warning_has_a_meaning_in_words(word: str) -> None:
    said = meaning(word)
    assert said
    assert "_" not in said


@pytest.mark.parametrize(
    "answer",
    [classified(0.1, 0.2, 0.7), segmented(case((5, 4, 3)), masks()[0])],
    ids=["scores", "mask"],
)
def test_it_is_plain_json(answer: Prediction) -> None:
    known = facts() if answer.mask is not None else facts(structures=(), axes=2)
    answer = replace(answer, quality={"noise": float(np.float32(0.1)), "coverage": 1.0})
    body: dict[str, Any] = body_of(answer, known, {"organ": 0.5}, case((5, 4, 3)))
    assert json.loads(json.dumps(body, allow_nan=False)) == body
