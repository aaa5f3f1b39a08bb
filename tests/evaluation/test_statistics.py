"""Figures and intervals of a table of cases: those of metrics/, by patient, and honest at the ends."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import classified

from medray.evaluation.cases import Cases
from medray.evaluation.statistics import estimate
from medray.metrics.classification import macro_auroc, per_class, summarise
from medray.metrics.intervals import bootstrap


@pytest.mark.parametrize(("classes", "multilabel"), [(("a", "b"), False), (("a", "b", "c"), False), (("a", "b"), True)])
def test_figures_and_intervals_are_those_of_metrics(classes: tuple[str, ...], multilabel: bool) -> None:
    cases = classified(80, classes, each=2, multilabel=multilabel)
    found = estimate(cases, samples=60)
    whole = summarise(cases.scores, cases.targets, multilabel)
    for name in ("auroc", "accuracy", "mcc", "ece"):
        assert found[name].value == whole[name]
    if len(classes) > 2 or multilabel:
        rows = per_class(cases.scores, cases.targets, classes, multilabel)
        assert found["recall/a"].value == rows["a"]["recall"]
    low, high = bootstrap(
        lambda scores, targets: macro_auroc(scores, targets, multilabel),
        cases.scores,
        cases.targets,
        cases.subjects,
        samples=60,
    )
    assert (found["auroc"].low, found["auroc"].high) == (low, high)


def test_images_of_one_patient_do_not_narrow_an_interval() -> None:
    once = classified(40)
    again = once.take(np.repeat(np.arange(40), 4))
    alone = replace(again, subjects=tuple(map(str, range(160))))
    wide, same, narrow = (estimate(table, ("auroc",), samples=300)["auroc"] for table in (once, again, alone))
    assert (same.low, same.high) == pytest.approx((wide.low, wide.high), abs=0.03)
    assert narrow.high - narrow.low < 0.7 * (wide.high - wide.low)


def test_a_share_of_all_has_an_interval_with_a_width() -> None:
    perfect = classified(30, skill=50)
    found = estimate(perfect, samples=50)
    assert found["recall"].value == found["accuracy"].value == 1
    assert found["accuracy"].low == pytest.approx(0.8865, abs=1e-3)  # Wilson's of 30 of 30
    assert found["recall"].low < found["accuracy"].low, "fewer cases are behind it"
    assert found["recall"].n == int(perfect.targets[:, 1].sum())
    family = replace(perfect, subjects=("one",) * 30)
    assert estimate(family, samples=5)["accuracy"].low < 0.3, "30 images of one patient are one patient"


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 40), st.integers(0, 1000), st.sampled_from([1, 3]))
def test_the_value_lies_where_it_must_and_order_does_not_count(size: int, seed: int, each: int) -> None:
    cases = classified(size, seed=seed, each=each)
    turned = cases.take(np.random.default_rng(seed).permutation(size))
    found, other = estimate(cases, samples=20), estimate(turned, samples=20)
    for name, figure in found.items():
        assert math.isnan(figure.value) or figure.value == pytest.approx(other[name].value)
        assert math.isnan(figure.low) or figure.low <= figure.high


def test_taking_rows_takes_all_of_them() -> None:
    cases = classified(10).with_columns({"site": tuple("aabbccddee")})
    part = cases.take([4, 2, 2])
    assert part.ids == ("case004.png", "case002.png", "case002.png")
    assert part.columns["site"] == ("c", "b", "b")
    assert (part.scores[1] == cases.scores[2]).all()
    assert isinstance(part, Cases)
    assert len(part) == 3
    assert part.people == 2
