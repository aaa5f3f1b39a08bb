"""Several models answer as the mean of their probabilities, on either grid; models of other tasks are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prediction_phantom import classifier, segmenter

from medray.bundle import load
from medray.config import ConfigError
from medray.inference.ensemble import Ensemble, facts_of, window_of
from medray.inference.predictor import Predictor
from medray.types import Case, InputError, Prediction

OTHER_ROAD = {"preprocess": {"intensity": {"method": "range", "low": -1000, "high": 3000}, "spacing_mm": [1.5, 1, 1]}}


def volume(seed: int = 0) -> Case:
    image = np.random.default_rng(seed).normal(0, 800, (1, 12, 10, 9)).astype(np.float32)
    return Case("x", image, np.diag([-1.0, 1.2, 2.0, 1.0]), "mm", "CT", warnings=("odd",))


@pytest.mark.parametrize("second", [{}, OTHER_ROAD])
def test_masks_come_from_the_mean_on_either_grid(tmp_path: Path, second: dict[str, Any]) -> None:
    folders = [segmenter(tmp_path / "one", 3, 1).folder, segmenter(tmp_path / "two", 3, 2, **second).folder]
    alone = [Predictor(folder).predict(volume(), probabilities=True) for folder in folders]
    both = Ensemble.load(folders).predict(volume(), probabilities=True)
    first, other = (answer.probabilities for answer in alone)
    assert first is not None
    assert other is not None
    mean = (first + other) / 2
    assert abs(first - other).max() > 1e-2, "two models that differ"
    assert both.probabilities is not None
    np.testing.assert_allclose(both.probabilities, mean, atol=1e-5)
    assert both.mask is not None
    clear = np.diff(np.sort(mean, axis=0)[-2:], axis=0)[0] > 1e-4
    assert (both.mask == mean.argmax(0))[clear].all()
    assert both.volumes["organ"] == pytest.approx(np.count_nonzero(both.mask == 1) * 2.4e-3)
    assert "odd" in both.warnings
    quiet = Ensemble.load(folders).predict(volume())
    assert quiet.probabilities is None
    np.testing.assert_array_equal(quiet.mask, both.mask)


def test_scores_are_averaged_after_each_models_calibration(tmp_path: Path) -> None:
    cold = {"trust": {"temperature": 0.25, "operating_points": []}}
    folders = [classifier(tmp_path / "one", 1).folder, classifier(tmp_path / "two", 2, **cold).folder]
    draw = np.random.default_rng(0)
    cases = [Case(f"{n}", draw.integers(0, 255, (1, 16, 16)).astype(np.uint8), np.eye(4)) for n in range(3)]
    wrong = Case("wrong", np.zeros((1, 16, 20), np.uint8), np.eye(4))
    said = Ensemble.load(folders).predict_all([cases[0], wrong, *cases[1:]])
    assert isinstance(said[1], InputError)
    answers = [answer for answer in said if isinstance(answer, Prediction)]
    alone = [[Predictor(folder).predict(case).scores for folder in folders] for case in cases]
    for answer, scores in zip(answers, alone, strict=True):
        np.testing.assert_allclose(answer.scores, np.mean(scores, axis=0), atol=1e-6)
        assert answer.labels == (answer.classes[int(answer.scores.argmax())],)


@pytest.mark.parametrize("make", [segmenter, classifier])
def test_of_one_it_is_the_predictor(tmp_path: Path, make: Any) -> None:
    folder = make(tmp_path / "one").folder
    case = Case("x", np.random.default_rng(0).integers(0, 255, (1, 16, 16)).astype(np.uint8), np.eye(4))
    one, plain = Ensemble.load([folder]).predict(case), Predictor(folder).predict(case)
    np.testing.assert_array_equal(one.scores, plain.scores)
    np.testing.assert_array_equal(one.mask if one.mask is not None else 0, plain.mask if plain.mask is not None else 0)
    assert (one.labels, one.volumes) == (plain.labels, plain.volumes)


def test_models_of_other_tasks_are_named_and_refused(tmp_path: Path) -> None:
    flat, deep, labels = segmenter(tmp_path / "flat", 2), segmenter(tmp_path / "deep", 3), classifier(tmp_path / "ab")
    for other in (deep, labels):
        with pytest.raises(ConfigError, match=rf"only models of one task.*'flat' is .*'{other.experiment.name}' is "):
            facts_of([flat, other])
    two = segmenter(tmp_path / "two", 2, seed=2)
    assert facts_of([flat, two]).digest == facts_of([two, flat]).digest != facts_of([flat]).digest


def test_changes_to_the_window_are_checked(tmp_path: Path) -> None:
    flat, labels = segmenter(tmp_path / "flat", 2), load(classifier(tmp_path / "ab").folder)
    assert window_of(flat, {"overlap": 0.25, "flips": (0, 1)}).overlap == 0.25
    assert window_of(flat, {"overlap": 0.25}).size == (16, 16)
    for changes, said in (({"overlap": 1.5}, "--overlap: 1.5"), ({"flips": (2,)}, "--flips: axis 2")):
        with pytest.raises(ConfigError, match=said):
            window_of(flat, changes)
    with pytest.raises(ConfigError, match="--overlap: 'ab' answers per image"):
        window_of(labels, {"overlap": 0.5})
