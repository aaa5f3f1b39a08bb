"""The input contract: what is unlike the training is named, what is alike is not, and a bundle keeps all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from medray.bundle import SUMS, BundleError, load, save
from medray.inference.contract import (
    ARRAYS,
    FEWEST_CASES,
    POOR,
    WARNINGS,
    Contract,
    build,
    check,
    facts_of,
)
from medray.inference.predictor import DISTANCE, Predictor
from medray.inference.reference import fit_reference
from medray.networks.build import build as build_network
from medray.types import Array, Case, InputError, NetworkIO

SIZE = 64
CARD = {
    "classes": ["class0", "class1"],
    "multilabel": False,
    "outputs": 1,
    "input": {"channels": 1, "size": [SIZE, SIZE], "axes": 2, "dense": False},
}


def picture(seed: int) -> Array:
    """(64, 64) a bright ellipse with discs in it, a smooth background and noise: a body of no one."""
    draw = np.random.default_rng(seed)
    rows, columns = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2 - draw.normal(0, 2, (2, 1, 1))
    image = 200.0 + gaussian_filter(draw.normal(0, 400, (SIZE, SIZE)), 8)
    image += 500 * ((rows / draw.uniform(22, 28)) ** 2 + (columns / draw.uniform(18, 26)) ** 2 < 1)
    for _ in range(6):
        at = draw.uniform(-15, 15, 2)
        image += draw.uniform(100, 250) * ((rows - at[0]) ** 2 + (columns - at[1]) ** 2 < draw.uniform(3, 6) ** 2)
    return image + draw.normal(0, draw.uniform(8, 14), image.shape)


def case(seed: int, change: Callable[[Array], Array] = np.asarray, **more: object) -> Case:
    edge = 0.7 + 0.05 * (seed % 5)
    fields = {"affine": np.diag([edge, edge, 1.0, 1.0]), "unit": "mm", "modality": "MR"}
    return Case(f"case{seed}", change(picture(seed))[None].astype(np.float32), **{**fields, **more})  # type: ignore[arg-type]


def embedded(predictor: Predictor, cases: Sequence[Case]) -> Array:
    assert predictor.embedder is not None
    images = torch.from_numpy(np.stack([predictor.prepare(one)[1] for one in cases]))
    with torch.inference_mode():
        return predictor.embedder(images)[1].numpy()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """An untrained network, whose contract is of 120 pictures and 100 of validation."""
    folder = tmp_path_factory.mktemp("contract")
    experiment = tiny(
        folder, network={"name": "plain", "widths": [16, 32]}, preprocess={"intensity": {"method": "zscore"}}
    )
    weights = build_network(experiment.network, NetworkIO(1, (SIZE, SIZE), 1), seed=4).network.state_dict()
    train, val = [case(seed) for seed in range(120)], [case(seed) for seed in range(120, 220)]
    # Any reference makes the predictor keep an embedder.
    first = build([facts_of(one) for one in train], np.random.default_rng(0).normal(size=(120, 32)))
    plain = Predictor(
        save(folder / "plain", experiment, weights, {**CARD, "contract": first.as_dict()}, first.files()).folder
    )
    made = build([facts_of(one) for one in train], embedded(plain, train), embedded(plain, val))
    card = {**CARD, "contract": made.as_dict()}
    return Predictor(save(folder / "bundle", experiment, weights, card, made.files()).folder)


def test_new_cases_of_the_same_kind_are_not_flagged(predictor: Predictor) -> None:
    answers = predictor.predict_all([case(seed) for seed in range(1000, 1200)])  # type: ignore[misc]
    flagged = [answer for answer in answers if not isinstance(answer, InputError) and answer.warnings]
    assert len(flagged) <= 10, [answer.warnings for answer in flagged if not isinstance(answer, InputError)]


def stripes(image: Array) -> Array:
    """Another pattern with the values of the image."""
    ranks = np.argsort(np.argsort((np.sin(np.indices(image.shape)[1] * 1.2) + 1e-6 * image).ravel()))
    return np.sort(image.ravel())[ranks].reshape(image.shape)


def noisy(image: Array) -> Array:
    return image + np.random.default_rng(0).normal(0, 120, image.shape)


def padded(image: Array) -> Array:
    image = image.copy()
    image[:16], image[-16:] = image.min(), image.min()
    return image


def spiked(image: Array) -> Array:
    image = image.copy()
    image[30, 30] = 6000.0
    return image


@pytest.mark.parametrize(
    ("word", "odd"),
    [
        ("unseen_modality", case(7, modality="CT")),
        ("unseen_spacing", case(7, affine=np.diag([2.0, 2.0, 1.0, 1.0]))),
        ("unseen_spacing", case(7, unit="px")),
        ("unseen_extent", case(7, affine=np.diag([0.3, 0.3, 1.0, 1.0]))),
        ("unseen_intensity", case(7, lambda image: 4 * image)),
        ("unseen_intensity", case(7, lambda image: image - 1000)),
        ("unlike_training", case(7, stripes)),
        ("low_quality_noise", case(7, noisy)),
        ("low_quality_blur", case(7, lambda image: gaussian_filter(image, 3.0))),
        ("low_quality_blur", case(7, lambda image: gaussian_filter1d(image, 6.0, axis=0))),
        ("low_quality_contrast", case(7, spiked)),
        ("low_quality_clipping", case(7, lambda image: np.minimum(image, np.percentile(image, 75)))),
        ("low_quality_coverage", case(7, padded)),
    ],
)
def test_what_is_unlike_is_named(predictor: Predictor, word: str, odd: Case) -> None:
    answer = predictor.predict(odd)
    assert word in answer.warnings
    assert set(answer.warnings) <= set(WARNINGS)
    assert (answer.quality[DISTANCE] > 1) == ("unlike_training" in answer.warnings)
    assert not predictor.predict(case(7)).warnings


def test_a_batch_says_what_single_answers_say(predictor: Predictor) -> None:
    cases = [
        case(3),
        case(4, modality="CT"),
        replace(case(5), image=np.zeros((2, SIZE, SIZE), np.float32)),
        case(6, noisy),
    ]
    alone = [predictor.predict(one) for one in (cases[0], cases[1], cases[3])]
    answers = predictor.predict_all(cases)  # type: ignore[arg-type]
    assert isinstance(answers.pop(2), InputError)
    for one, other in zip(alone, answers, strict=True):
        assert not isinstance(other, InputError)
        assert one.warnings == other.warnings
        assert one.quality == pytest.approx(other.quality, rel=1e-4)


def test_scores_are_those_without_a_contract(predictor: Predictor, tmp_path: Path) -> None:
    bundle = predictor.bundle
    plain = Predictor(save(tmp_path / "plain", bundle.experiment, bundle.network().state_dict(), CARD).folder)
    assert plain.contract is None
    assert plain.embedder is None
    odd = plain.predict(case(7, noisy, modality="CT"))
    assert odd.warnings == ()
    assert set(POOR) <= set(odd.quality)
    np.testing.assert_array_equal(odd.scores, predictor.predict(case(7, noisy, modality="CT")).scores)


def test_it_comes_back_from_a_bundle(predictor: Predictor) -> None:
    made = build([facts_of(case(seed)) for seed in range(40)], embedded(predictor, [case(seed) for seed in range(40)]))
    folder = predictor.bundle.folder.parent / "again"
    card = {**CARD, "contract": made.as_dict()}
    kept = save(folder, predictor.bundle.experiment, predictor.bundle.network().state_dict(), card, made.files())
    found = Contract.of(load(kept.folder))
    assert found is not None
    assert found.as_dict() == made.as_dict()
    for seed in (200, 201):
        facts, embedding = facts_of(case(seed, noisy)), embedded(predictor, [case(seed)])[0]
        assert check(found, facts, embedding) == check(made, facts, embedding)


@pytest.mark.parametrize("name", [ARRAYS, SUMS])
def test_an_altered_contract_is_refused(predictor: Predictor, tmp_path: Path, name: str) -> None:
    bundle = predictor.bundle
    files = bundle.extras()
    copy = save(tmp_path / "copy", bundle.experiment, bundle.network().state_dict(), bundle.card, files).folder
    assert load(copy).extras() == files
    if name == ARRAYS:
        (copy / ARRAYS).write_bytes(files[ARRAYS][:-1] + b"x")
        with pytest.raises(BundleError, match=r"contract\.npz in .* was altered"):
            load(copy)
        (copy / ARRAYS).unlink()
        with pytest.raises(BundleError, match=r"contract\.npz is missing"):
            load(copy)
    else:
        (copy / SUMS).write_text((copy / SUMS).read_text() + f"{'0' * 64}  ../secret\n")
        with pytest.raises(BundleError, match=r"'\.\./secret'"):
            load(copy)


def test_a_contract_whose_arrays_are_not_there_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    bundle = predictor.bundle
    copy = save(tmp_path / "copy", bundle.experiment, bundle.network().state_dict(), bundle.card)
    with pytest.raises(BundleError, match=r"contract\.npz is missing"):
        Contract.of(copy)


@pytest.mark.parametrize("name", ["card.json", "../up", "a/b", "", "."])
def test_extra_files_have_names_of_their_own(predictor: Predictor, tmp_path: Path, name: str) -> None:
    bundle = predictor.bundle
    with pytest.raises(ValueError, match="names of their own"):
        save(tmp_path / "x", bundle.experiment, {}, CARD, {name: b""})
    assert not list(tmp_path.iterdir())


def test_of_few_cases_no_value_is_kept() -> None:
    facts = [facts_of(case(seed)) for seed in range(FEWEST_CASES - 1)]
    few = build(facts, np.random.default_rng(0).normal(size=(19, 8)))
    assert few.ranges == {}
    assert few.reference is None
    assert "fewer than 20" in few.as_dict()["note"]
    assert check(few, facts_of(case(1, noisy, affine=np.eye(4))))[0] == ()
    assert check(few, facts_of(case(1, modality="US")))[0] == ("unseen_modality",)


def test_nothing_tells_of_one_case() -> None:
    cases = [replace(case(seed), subject_id=f"subject-{seed}") for seed in range(30)]
    facts = [facts_of(one) for one in cases]
    text = json.dumps(build(facts).as_dict())
    assert "case" not in text.replace('"cases"', "").replace("training cases", "")
    assert "subject" not in text
    values = {f"{value:.6g}" for fact in facts for value in (*fact.levels, *fact.quality.values(), *fact.extent)}
    assert not values & set(text.replace(",", " ").replace("[", " ").replace("]", " ").split())


def test_a_file_that_names_no_modality_is_not_flagged_for_it() -> None:
    facts = [facts_of(case(seed)) for seed in range(20)]
    made = build(facts)
    assert "unseen_modality" not in check(made, replace(facts[0], modality="OT"))[0]
    assert "unseen_modality" in check(made, replace(facts[0], channels=3))[0]
    unnamed = build([replace(fact, modality="OT") for fact in facts])
    assert "unseen_modality" not in check(unnamed, replace(facts[0], modality="CT"))[0]


def test_distances_are_mahalanobis_of_the_whole_covariance() -> None:
    draw = np.random.default_rng(0)
    mixing = draw.normal(size=(6, 6))
    train, new = draw.normal(size=(4000, 6)) @ mixing, draw.normal(size=(50, 6)) @ mixing
    fitted = fit_reference(train, new)
    assert fitted is not None
    away = new - train.mean(0)
    expected = np.sqrt(np.einsum("nf,fg,ng->n", away, np.linalg.inv(np.cov(train.T)), away))
    np.testing.assert_allclose(fitted.distances(new), expected, rtol=0.05)


@pytest.mark.parametrize(("cases", "features", "val"), [(30, 512, 0), (60, 64, 30), (300, 16, 200), (25, 40, 5)])
def test_few_new_embeddings_are_far_and_others_are(cases: int, features: int, val: int) -> None:
    draw = np.random.default_rng(1)
    mixing = draw.normal(size=(8, features))

    def drawn(count: int, scale: float = 1.0) -> Array:
        return draw.normal(0, scale, (count, 8)) @ mixing + draw.normal(0, 0.3, (count, features))

    fitted = fit_reference(drawn(cases), drawn(val) if val else None)
    assert fitted is not None
    assert (fitted.distances(drawn(1000)) > fitted.threshold).mean() < 0.1
    assert (fitted.distances(drawn(100, 6.0)) > fitted.threshold).mean() > 0.5
    beside = drawn(100) + draw.normal(0, 3.0, (100, features))
    assert (fitted.distances(beside) > fitted.threshold).mean() > 0.9


def test_embeddings_without_a_spread_make_no_reference() -> None:
    assert fit_reference(np.ones((40, 8), np.float32)) is None
    assert fit_reference(np.full((40, 8), np.nan, np.float32)) is None
    dead = np.random.default_rng(0).normal(size=(40, 8)) * (np.arange(8) < 5)
    fitted = fit_reference(dead)
    assert fitted is not None
    assert np.isfinite(fitted.distances(dead)).all()
