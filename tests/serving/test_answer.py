"""The body of an answer: what it states of the image, and of structures instead of scores."""

from __future__ import annotations

import json
import warnings
from types import ModuleType

import numpy as np
import pytest
from pydantic.warnings import PydanticDeprecatedSince20

from medray.types import Case, Prediction


@pytest.fixture(scope="module")
def app() -> ModuleType:
    """medray.serving.app; Ray Serve's own use of pydantic warns when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticDeprecatedSince20)
        from medray.serving import app as module
    return module


def test_quality_and_set_are_stated_where_there_are_any(app: ModuleType) -> None:
    scores = np.array([0.25, 0.75], np.float32)
    answer = Prediction("x", ("ill", "well"), scores, ("well",), conformal_set=("well",), quality={"noise": 0.0123456})
    body = app.as_json(answer, "chest/1", 0.1)
    assert body["quality"] == {"noise": 0.01235}
    assert body["conformal_set"] == ["well"]
    assert "structures" not in body
    json.dumps(body)


def test_a_segmentation_has_structures_and_no_scores(app: ModuleType) -> None:
    raw = Case("x", np.zeros((1, 4, 4, 4)), np.eye(4), unit="mm")
    mask, none = np.zeros((4, 4, 4), np.uint8), np.empty(0, np.float32)
    answer = Prediction("x", ("background", "organ"), none, ("organ",), mask=mask, volumes={"organ": 1.5})
    body = app.as_json(answer, "organ/1", 0.1, app.volume_unit(raw))
    assert body["predictions"] == []
    assert body["structures"] == [{"label": "organ", "volume": 1.5, "unit": "mL"}]
    json.dumps(body)
    flat = Case("x", np.zeros((1, 4, 4)), np.eye(4), unit="mm")
    assert (app.volume_unit(flat), app.volume_unit(Case("x", flat.image, np.eye(4)))) == ("mm2", "voxels")
