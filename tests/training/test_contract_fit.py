"""The contract that a training leaves: the embeddings that the predictor makes too, few cases, and no cost unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_discs, draw_folder, draw_volumes, tiny, tiny_dense

from medray.config import Experiment
from medray.inference import predictor as predictors
from medray.inference.contract import ARRAYS, Contract
from medray.inference.predictor import DISTANCE, Predictor
from medray.networks.build import build
from medray.pipeline.prepare import Prepared, prepare
from medray.training import contract
from medray.training.contract import contract_of
from medray.training.goal import task_of
from medray.training.record import save_bundle
from medray.training.worker import Outcome
from medray.types import Array, Prediction


def untrained(experiment: Experiment, prepared: Prepared) -> Outcome:
    """What a training without a step leaves."""
    io = prepared.network_io(task_of(experiment, prepared).outputs)
    weights = build(experiment.network, io, experiment.seed).network.state_dict()
    scores = {"val": np.full((len(prepared.rows("val")), len(prepared.dataset.classes)), 0.5, np.float32)}
    return Outcome("done", {}, {} if prepared.dense else scores, weights, [], ())


def experiment_of(kind: str, folder: Path) -> Experiment:
    if kind == "classes":
        return tiny(draw_folder(folder, 60))
    if kind in ("volumes", "slices"):
        window = {"size": [16, 16, 8]} if kind == "volumes" else {"size": [16, 16], "slice_axis": 2, "neighbours": 1}
        dataset = {"name": "decathlon", "path": str(draw_volumes(folder, 40))}
        return tiny_dense(folder, dataset=dataset, window=window)
    window = {"once": {"size": [32, 32]}, "windows": {"size": [16, 16]}, "flips": {"size": [32, 32], "flips": [0]}}[
        kind
    ]
    return tiny_dense(draw_discs(folder, 40), window=window)


@pytest.mark.parametrize("kind", ["classes", "once", "windows", "flips", "volumes", "slices"])
def test_training_and_predictor_embed_alike(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[Array] = []
    asked: list[Array] = []

    def spy_build(facts: Any, train: Array, val: Array) -> Contract:
        embedded.extend((train, val))
        return real_build(facts, train, val)

    def spy_check(made: Any, facts: Any, embedding: Array) -> Any:
        asked.append(embedding)
        return real_check(made, facts, embedding)

    real_build, real_check = contract.build, predictors.check
    monkeypatch.setattr(contract, "build", spy_build)
    monkeypatch.setattr(predictors, "check", spy_check)
    experiment = experiment_of(kind, tmp_path / "data")
    prepared = prepare(experiment, tmp_path / "stores")
    bundle = save_bundle(tmp_path / "bundle", experiment, prepared, untrained(experiment, prepared))
    predictor = Predictor(bundle.folder)
    for split, expected in zip(("train", "val"), embedded, strict=True):
        refs = [prepared.dataset.refs[row] for row in prepared.rows(split).tolist()]
        asked.clear()
        answers = predictor.predict_all([ref.source for ref in refs])
        np.testing.assert_allclose(np.stack(asked), expected, rtol=1e-3, atol=1e-5)
        assert all(isinstance(answer, Prediction) and answer.quality[DISTANCE] > 0 for answer in answers)
    made = predictor.contract
    assert made is not None
    assert made.reference is not None
    assert (made.cases, made.reference.validation_cases) == (len(prepared.rows("train")), len(prepared.rows("val")))


def test_few_cases_and_none_asked_for(tmp_path: Path) -> None:
    experiment = tiny(draw_folder(tmp_path / "data", 20))
    prepared = prepare(experiment, tmp_path / "stores")
    outcome = untrained(experiment, prepared)
    bundle = save_bundle(tmp_path / "few", experiment, prepared, outcome)
    assert (bundle.card["contract"]["ranges"], bundle.card["contract"]["embedding"]) == ({}, None)
    assert bundle.extras() == {}
    assert Predictor(bundle.folder).embedder is None
    unasked = tiny(tmp_path / "data", trust={"contract": False})
    assert contract_of(unasked, prepared, outcome.weights) is None
    bundle = save_bundle(tmp_path / "none", unasked, prepared, outcome)
    assert bundle.card["contract"] is None
    assert Predictor(bundle.folder).contract is None


def test_a_drawn_part_is_looked_at_and_a_file_that_has_gone_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "MOST_READ", 25)
    monkeypatch.setattr(contract, "MOST_EMBEDDED", {2: 22})
    experiment = tiny(draw_folder(tmp_path / "data", 60))
    prepared = prepare(experiment, tmp_path / "stores")
    outcome = untrained(experiment, prepared)
    first = contract_of(experiment, prepared, outcome.weights)
    assert first is not None
    assert first.reference is not None
    assert (first.cases, first.reference.cases, first.reference.validation_cases) == (25, 22, 12)
    again = contract_of(experiment, prepared, outcome.weights)
    assert again is not None
    assert again.as_dict() == first.as_dict()
    assert set(again.files()) == {ARRAYS}
    for row in contract._drawn(prepared.rows("train"), 25, experiment.seed)[:2]:
        source = prepared.dataset.refs[row].source
        assert isinstance(source, Path)
        source.unlink()
    fewer = contract_of(experiment, prepared, outcome.weights)
    assert fewer is not None
    assert fewer.cases == 23
