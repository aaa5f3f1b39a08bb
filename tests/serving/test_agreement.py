"""How a shadow agrees: the sums are those of all comparisons, and nothing of an image is in them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medray.serving.agreement import SAME, Agreement, compare
from medray.serving.messages import Answered, Entry

ENTRY = Entry("net", "1", "a" * 64, "/bundle")


def answered(task: str, labels: tuple[str, ...] = (), **numbers: float) -> Answered:
    body: dict[str, Any] = {"task": task}
    if task == "classification":
        body["predictions"] = [{"label": name, "probability": value} for name, value in numbers.items()]
    elif task == "regression":
        body["values"] = [{"name": name, "value": value} for name, value in numbers.items()]
    else:
        body["structures"] = [{"label": name, "volume": value, "unit": "mL"} for name, value in numbers.items()]
    return Answered(ENTRY, body, {}, 1, {"labels": list(labels)})


TASKS = ("classification", "regression", "segmentation")
number = st.floats(0, 1)
pairs = st.tuples(st.sampled_from(TASKS), st.tuples(number, number), st.tuples(number, number))


@given(pair=pairs)
def test_comparing_has_no_side_and_an_answer_agrees_with_itself(
    pair: tuple[str, tuple[float, float], tuple[float, float]],
) -> None:
    task, one, other = pair
    first, second = (answered(task, ("a",), a=a, b=b) for a, b in (one, other))
    assert compare(first, second) == compare(second, first)
    assert compare(first, first) == {"same": True, "gap": 0.0}
    assert 0 <= compare(first, second)["gap"] <= 1


def test_of_a_classification_the_largest_difference_of_a_probability_counts() -> None:
    found = compare(
        answered("classification", ("a",), a=0.75, b=0.25), answered("classification", ("b",), a=0.5, b=0.5)
    )
    assert found == {"same": False, "gap": 0.25}


def test_labels_in_another_order_are_the_same() -> None:
    one, other = (answered("segmentation", names, a=1, b=2) for names in (("a", "b"), ("b", "a")))
    assert compare(one, other)["same"]


def test_numbers_and_sizes_differ_by_their_share_of_the_larger() -> None:
    assert compare(answered("segmentation", a=10.0, b=0.0), answered("segmentation", a=8.0, b=0.0))["gap"] == 0.2
    assert compare(answered("regression", a=-10.0), answered("regression", a=-8.0))["gap"] == pytest.approx(0.2)
    assert compare(answered("segmentation", a=1e-9), answered("segmentation", a=0.0))["gap"] == 1


@pytest.mark.parametrize(("value", "same"), [(100.0, True), (90.5, True), (89.0, False), (-100.0, False)])
def test_numbers_are_the_same_up_to_a_tenth(value: float, same: bool) -> None:
    assert compare(answered("regression", a=100.0), answered("regression", a=value))["same"] is same


def test_sizes_of_a_structure_are_the_same_up_to_a_tenth() -> None:
    one, other = (answered("segmentation", ("a",), a=size) for size in (100.0, 100.0 * (1 - 2 * SAME)))
    assert not compare(one, other)["same"]


def test_classes_that_one_does_not_know_count_as_nothing() -> None:
    found = compare(answered("classification", ("a",), a=1.0), answered("classification", ("b",), b=0.75, a=0.25))
    assert found == {"same": False, "gap": 0.75}


@given(found=st.lists(st.tuples(st.booleans(), number), max_size=30))
def test_sums_are_those_of_all_comparisons(found: list[tuple[bool, float]]) -> None:
    agreement = Agreement("net/1", "net/2")
    for same, gap in found:
        agreement.add({"same": same, "gap": gap})
    plain = agreement.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (plain["model"], plain["shadow"], plain["images"]) == ("net/1", "net/2", len(found))
    gaps = [gap for _, gap in found]
    count = len(found) or 1
    assert math.isclose(plain["same_labels"], sum(same for same, _ in found) / count, abs_tol=1e-4)
    assert math.isclose(plain["mean_gap"], sum(gaps) / count, abs_tol=1e-6)
    assert math.isclose(plain["largest_gap"], max(gaps, default=0.0), abs_tol=1e-6)
