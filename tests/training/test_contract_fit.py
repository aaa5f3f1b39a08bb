"""The contract that a training leaves: the embeddings that the predictor makes too, few cases, and no cost unasked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_discs, draw_folder, draw_volumes, tiny, tiny_dense

from medray.config import Experiment
from medray.inference import predictor as predictors
from medray.inference.contract import ARRAYS, Contract, facts_of
from medray.inference.drift import DriftReference, numbers_of
from medray.inference.predictor import DISTANCE, Predictor
from medray.inference.trust import Trust
from medray.networks.build import build
from medray.pipeline.prepare import Prepared, prepare
from medray.training import contract
from medray.training.contract import seen_of
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


def contract_of(experiment: Experiment, prepared: Prepared, outcome: Outcome) -> Contract:
    seen = seen_of(experiment, prepared, outcome.weights)
    assert seen is not None
    return seen.contract


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
    assert seen_of(unasked, prepared, outcome.weights) is None
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
    first = contract_of(experiment, prepared, outcome)
    assert first.reference is not None
    assert (first.cases, first.reference.cases, first.reference.validation_cases) == (25, 22, 12)
    again = contract_of(experiment, prepared, outcome)
    assert again.as_dict() == first.as_dict()
    assert set(again.files()) == {ARRAYS}
    for row in contract._drawn(prepared.rows("train"), 25, experiment.seed)[:2]:
        source = prepared.dataset.refs[row].source
        assert isinstance(source, Path)
        source.unlink()
    assert contract_of(experiment, prepared, outcome).cases == 23


def shares_of(reference: DriftReference, name: str, values: list[float]) -> Array:
    check = reference.checks[name]
    found = np.bincount(np.searchsorted(check.edges, values, "right"), minlength=len(check.shares))
    return found / len(values)


def test_the_card_says_how_answers_and_images_are_spread(tmp_path: Path) -> None:
    experiment = tiny(draw_folder(tmp_path / "data", 120))
    prepared = prepare(experiment, tmp_path / "stores")
    rows = {name: prepared.rows(name).tolist() for name in ("train", "val")}
    plain = untrained(experiment, prepared)
    odds = np.random.default_rng(0).normal(3 * prepared.targets[rows["val"], 1] - 1, 1)
    raw = np.stack([1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))], 1).astype(np.float32)
    outcome = replace(plain, scores={"val": raw})
    bundle = save_bundle(tmp_path / "bundle", experiment, prepared, outcome)
    reference = DriftReference.of(bundle.card)
    assert reference is not None
    assert {check.subjects for name, check in reference.checks.items() if name.startswith("scores/")} == {24}
    assert reference.checks["noise"].subjects == len(rows["train"]) == 72
    assert not [name for name in reference.checks if name.startswith(("spacing", "extent"))]  # alike in all
    trust = Trust.of(bundle.card)
    assert trust.temperature != 1
    for column, name in enumerate(trust.classes):
        values = trust.calibrated(raw)[:, column].tolist()
        np.testing.assert_allclose(
            shares_of(reference, f"scores/{name}", values), reference.checks[f"scores/{name}"].shares, atol=1e-4
        )
    predictor = Predictor(bundle.folder)
    sources = {name: [prepared.dataset.refs[row].source for row in found] for name, found in rows.items()}
    far = [
        answer.quality[DISTANCE] for answer in predictor.predict_all(sources["val"]) if isinstance(answer, Prediction)
    ]
    np.testing.assert_allclose(shares_of(reference, "distance", far), reference.checks["distance"].shares, atol=1e-4)
    facts = [numbers_of(facts_of(predictor.read(source)), "px") for source in sources["train"]]
    for name in ("noise", "p50"):
        values = [fact[name] for fact in facts]
        np.testing.assert_allclose(shares_of(reference, name, values), reference.checks[name].shares, atol=1e-4)


def test_without_validation_cases_only_images_are_compared(tmp_path: Path) -> None:
    sections = {"split": {"method": "fraction", "val": 0.2, "test": 0.2, "join_val": True}}
    experiment = tiny(draw_folder(tmp_path / "data", 60), **sections)
    prepared = prepare(experiment, tmp_path / "stores")
    bundle = save_bundle(tmp_path / "bundle", experiment, prepared, untrained(experiment, prepared))
    reference = DriftReference.of(bundle.card)
    assert reference is not None
    assert "noise" in reference.checks
    assert not [name for name in reference.checks if name == "distance" or name.startswith("scores/")]


def test_of_a_segmentation_images_and_distances_are_compared(tmp_path: Path) -> None:
    experiment = tiny_dense(draw_discs(tmp_path / "data", 110))
    prepared = prepare(experiment, tmp_path / "stores")
    bundle = save_bundle(tmp_path / "bundle", experiment, prepared, untrained(experiment, prepared))
    reference = DriftReference.of(bundle.card)
    assert reference is not None
    assert {"distance", "noise", "p99"} <= set(reference.checks)
    assert not [name for name in reference.checks if name.startswith("scores/")]


def test_without_a_contract_scores_alone_are_compared(tmp_path: Path) -> None:
    experiment = tiny(draw_folder(tmp_path / "data", 120), trust={"contract": False})
    prepared = prepare(experiment, tmp_path / "stores")
    plain = untrained(experiment, prepared)
    spread = np.random.default_rng(0).uniform(size=(24, 1)).astype(np.float32)
    outcome = replace(plain, scores={"val": np.hstack([spread, 1 - spread])})
    bundle = save_bundle(tmp_path / "bundle", experiment, prepared, outcome)
    reference = DriftReference.of(bundle.card)
    assert reference is not None
    assert set(reference.checks) == {"scores/class0", "scores/class1"}


def test_of_a_regression_the_median_is_compared(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", 110)
    files = sorted(data.rglob("*.png"))
    lines = [f"{file.relative_to(data)},{row % 7 + 40}" for row, file in enumerate(files)]
    (data / "ages.csv").write_text("\n".join(["image,age", *lines]), encoding="utf-8")
    dataset = {"name": "table", "path": str(data / "ages.csv"), "numbers": ["age"]}
    experiment = tiny(data, dataset=dataset, task={"name": "regression", "loss": {"name": "quantile"}})
    prepared = prepare(experiment, tmp_path / "stores")
    raw = np.random.default_rng(0).normal(43, 2, (len(prepared.rows("val")), 3)).astype(np.float32)
    outcome = replace(untrained(experiment, prepared), scores={"val": raw})
    bundle = save_bundle(tmp_path / "bundle", experiment, prepared, outcome)
    reference = DriftReference.of(bundle.card)
    assert reference is not None
    expected = reference.checks["scores/age"].shares
    np.testing.assert_allclose(shares_of(reference, "scores/age", np.median(raw, 1).tolist()), expected, atol=1e-4)
