"""Comparison of two bundles, case by case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tables import MODEL, classified

from medray.evaluation.comparison import compare
from medray.metrics.comparison import delong, mcnemar


def test_a_model_does_not_differ_from_itself() -> None:
    cases = classified(40)
    found = compare(cases, cases, MODEL, samples=20)
    assert (found.cases, found.subjects, found.left_out) == (40, 40, 0)
    assert all(contrast.test.difference == 0 for contrast in found.contrasts)
    assert all(not contrast.test.p < 1 for contrast in found.contrasts)


def test_the_tests_are_those_of_metrics() -> None:
    ours, theirs = classified(60, skill=2), classified(60, skill=0.3)
    theirs = replace(theirs, targets=ours.targets)
    found = {contrast.name: contrast for contrast in compare(ours, theirs, MODEL, samples=30).contrasts}
    assert found["auroc"].test == delong(ours.scores[:, 1], theirs.scores[:, 1], ours.targets[:, 1])
    right = [(cases.picked == (cases.targets > 0)).all(1) for cases in (ours, theirs)]
    assert found["accuracy"].test == mcnemar(*right)
    assert found["auroc"].ours - found["auroc"].theirs == pytest.approx(found["auroc"].test.difference)
    assert found["mcc"].test.test == "paired bootstrap"
    assert {"recall", "specificity", "brier"} <= found.keys()


def test_several_images_of_a_patient_are_not_independent_tests() -> None:
    ours, theirs = classified(60, skill=2, each=3), classified(60, skill=0.3, each=3)
    found = compare(ours, replace(theirs, targets=ours.targets), MODEL, samples=20)
    assert {contrast.test.test for contrast in found.contrasts} == {"paired bootstrap"}


def test_cases_that_one_refuses_are_left_out_and_order_does_not_count() -> None:
    cases = classified(50)
    turned = cases.take(np.arange(49, 4, -1))
    found = compare(cases, turned, MODEL, samples=5)
    assert (found.cases, found.left_out) == (45, 5)
    assert all(contrast.test.difference == 0 for contrast in found.contrasts)
    nothing = compare(cases, cases.take([]), MODEL, samples=5)
    assert (nothing.cases, nothing.left_out, nothing.contrasts) == (0, 50, ())


def test_several_classes_are_tested_each_by_itself() -> None:
    cases = classified(60, ("a", "b", "c"))
    found = {contrast.name: contrast.test.test for contrast in compare(cases, cases, MODEL, samples=5).contrasts}
    assert found["auroc/b"] == "DeLong"
    assert found["auroc"] == "paired bootstrap"
