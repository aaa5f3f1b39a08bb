"""Predictor: the numbers of training's validation, one bad image costs only itself."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny

from medray.config import ConfigError
from medray.imaging.reader import read
from medray.imaging.writer import write_png
from medray.inference import table
from medray.inference.predictor import Predictor
from medray.pipeline.prepare import prepare
from medray.training.learner import Learner
from medray.training.loop import Finished, fit
from medray.training.record import save_bundle
from medray.training.worker import Outcome
from medray.training.world import World
from medray.types import InputError, Prediction


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> tuple[Predictor, Any, Outcome]:
    """A predictor, the data it was trained on, and what the training said."""
    folder = tmp_path_factory.mktemp("trained")
    experiment = tiny(image_folder, network={"name": "plain", "widths": [8, 8], "norm": "batch"})
    prepared = prepare(experiment, folder / "stores")
    learner = Learner(experiment, prepared, World())
    *_, finished = fit(learner)
    assert isinstance(finished, Finished)
    outcome = Outcome(finished.reason, finished.metrics, finished.scores, learner.best_weights, [], ())
    return Predictor(save_bundle(folder / "bundle", experiment, prepared, outcome).folder), prepared, outcome


def test_file_to_answer_equals_validation(trained: tuple[Predictor, Any, Outcome]) -> None:
    predictor, prepared, outcome = trained
    for split in ("val", "test"):
        answers = predictor.predict_all([prepared.dataset.refs[row].source for row in prepared.rows(split).tolist()])
        scores = np.stack([answer.scores for answer in answers if isinstance(answer, Prediction)])
        np.testing.assert_allclose(scores, outcome.scores[split], atol=1e-6)


def test_bytes_and_path_and_case_give_the_same(trained: tuple[Predictor, Any, Outcome]) -> None:
    predictor, prepared, _ = trained
    path = prepared.dataset.refs[0].source
    answers = [predictor.predict(source) for source in (path, path.read_bytes(), read(path))]
    assert all((answer.scores == answers[0].scores).all() for answer in answers)
    assert answers[0].labels[0] in ("class0", "class1")


def test_one_bad_image_costs_only_itself(trained: tuple[Predictor, Any, Outcome], tmp_path: Path) -> None:
    predictor, prepared, _ = trained
    good = prepared.dataset.refs[0].source
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:50])
    wide = tmp_path / "wide.png"
    write_png(wide, np.zeros((16, 20), np.uint8))
    first, second, third, fourth = predictor.predict_all([good, bad, wide, good], batch_size=3)
    assert isinstance(first, Prediction)
    assert isinstance(fourth, Prediction)
    assert isinstance(second, InputError)
    assert isinstance(third, InputError)
    assert third.code == "wrong_shape"
    np.testing.assert_allclose(first.scores, fourth.scores, atol=1e-6)


def test_table_and_csv(trained: tuple[Predictor, Any, Outcome], tmp_path: Path) -> None:
    predictor, prepared, _ = trained
    (tmp_path / "in").mkdir()
    for name in ("b.png", "a.png"):
        (tmp_path / "in" / name).write_bytes(prepared.dataset.refs[0].source.read_bytes())
    (tmp_path / "in" / "c.txt").write_text("no image")
    (tmp_path / "in" / ".hidden").write_text("")
    files = table.image_files([tmp_path / "in"])
    assert [file.name for file in files] == ["a.png", "b.png", "c.txt"]
    answers = table.predict_files(predictor, files)
    assert "refused" in table.as_text(answers).splitlines()[2]
    table.write_csv(tmp_path / "out.csv", answers, predictor.bundle.classes)
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [bool(row["error"]) for row in rows] == [False, False, True]
    assert float(rows[0]["class0"]) + float(rows[0]["class1"]) == pytest.approx(1)


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        table.image_files([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="no files in"):
        table.image_files([tmp_path])
