"""Groups: every case is in one, small ones are marked, and hidden where that is asked for."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import classified

from medray.evaluation.groups import UNKNOWN, groups
from medray.evaluation.statistics import estimate


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["A", "B", "C", ""]), min_size=30, max_size=30), st.integers(1, 3))
def test_every_case_is_in_one_group(cells: list[str], each: int) -> None:
    cases = classified(30, each=each)
    found = groups(cases, {"site": tuple(cells)}, samples=3)
    assert sum(group.cases for group in found) == 30
    assert {group.value for group in found} == {cell or UNKNOWN for cell in cells}
    assert all(group.few == (group.subjects < 10) for group in found)


def test_a_group_has_the_figures_of_its_cases() -> None:
    cases = classified(60)
    site = tuple("AB"[row % 2] for row in range(60))
    found = {group.value: group for group in groups(cases, {"site": site}, samples=20)}
    alone = estimate(cases.take(np.arange(1, 60, 2)), tuple(found["B"].figures), 20)
    assert found["B"].figures == alone
    assert list(found["B"].figures) == ["auroc", "balanced_accuracy", "recall", "specificity"]


def test_small_groups_are_pooled_or_hidden_where_privacy_is_asked_for() -> None:
    cases = classified(40)
    cells = ("A",) * 30 + ("B",) * 3 + ("C",) * 4 + ("D",) * 3
    assert [group.value for group in groups(cases, {"site": cells}, samples=2)] == ["A", "C", "B", "D"]
    pooled = groups(cases, {"site": cells}, private=True, samples=2)
    assert [(group.value, group.subjects) for group in pooled] == [("A", 30), ("3 small groups together", 10)]
    one = groups(cases, {"site": ("A",) * 37 + ("B",) * 3}, private=True, samples=2)
    assert [group.value for group in one] == ["A"], "a pool of three is as small as before"


def test_patients_are_counted_not_images() -> None:
    (group,) = groups(classified(40, each=10), {"site": ("A",) * 40}, samples=2)
    assert (group.cases, group.subjects, group.few) == (40, 4, True)
