import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.metrics.lesions import f1, label_lesion_counts, lesion_counts, precision, recall, summarise

quick = settings(max_examples=30, deadline=None)
shapes = st.one_of(st.tuples(*[st.integers(1, 10)] * 2), st.tuples(*[st.integers(1, 6)] * 3))
options = {
    "seed": st.integers(0, 10**6),
    "shape": shapes,
    "share": st.sampled_from([0, 0.1, 0.3]),
    "reach": st.integers(1, 2),
    "smallest": st.integers(1, 4),
    "overlap": st.sampled_from([0, 0.25, 0.5, 1]),
}


def flood(mask: np.ndarray, reach: int) -> list[set[tuple[int, ...]]]:
    """Connected components, voxel by voxel."""
    left = {tuple(int(i) for i in voxel) for voxel in np.argwhere(mask)}
    steps = [step - 1 for step in np.argwhere(np.ones([3] * mask.ndim)) if 0 < np.abs(step - 1).sum() <= reach]
    found = []
    while left:
        lesion, edge = set(), [left.pop()]
        while edge:
            voxel = edge.pop()
            lesion.add(voxel)
            for step in steps:
                other = tuple(int(i) for i in voxel + step)
                if other in left:
                    left.remove(other)
                    edge.append(other)
        found.append(lesion)
    return found


def pair(seed: int, shape: tuple[int, ...], share: float) -> tuple[np.ndarray, np.ndarray]:
    predicted, truth = np.random.default_rng(seed).random((2, *shape)) < share
    return predicted, truth


@given(**options)
@quick
def test_counts_are_those_of_the_definition(
    seed: int, shape: tuple[int, ...], share: float, reach: int, smallest: int, overlap: float
) -> None:
    predicted, truth = pair(seed, shape, share)
    mine = [lesion for lesion in flood(predicted, reach) if len(lesion) >= smallest]
    real = flood(truth, reach)
    covered = set().union(*mine)
    asked = [lesion for lesion in real if len(lesion) >= smallest]
    found = sum(bool(lesion & covered) and len(lesion & covered) >= overlap * len(lesion) for lesion in asked)
    invented = sum(not lesion & set().union(*real) for lesion in mine)
    counts = lesion_counts(predicted, truth, reach, smallest, overlap)
    assert counts == (found, invented, len(asked) - found)


@given(**options)
@quick
def test_flips_turns_and_margins_do_not_matter(
    seed: int, shape: tuple[int, ...], share: float, reach: int, smallest: int, overlap: float
) -> None:
    predicted, truth = pair(seed, shape, share)
    counts = lesion_counts(predicted, truth, reach, smallest, overlap)
    for change in (lambda mask: np.flip(mask, 0), np.transpose, lambda mask: np.pad(mask, (2, 1)), np.asfortranarray):
        assert lesion_counts(change(predicted), change(truth), reach, smallest, overlap) == counts


def test_corners_join_unless_told() -> None:
    diagonal = np.eye(3, dtype=bool)
    assert lesion_counts(diagonal, diagonal) == (1, 0, 0)
    assert lesion_counts(diagonal, diagonal, connectivity=1) == (3, 0, 0)


def test_one_prediction_may_find_two_and_half_a_lesion_is_a_matter_of_overlap() -> None:
    truth = np.array([[1, 1, 1, 1, 0, 1, 0, 0, 0]], bool)
    predicted = np.array([[0, 0, 0, 1, 1, 1, 0, 0, 1]], bool)
    assert lesion_counts(predicted, truth) == (2, 1, 0)
    assert lesion_counts(predicted, truth, overlap=0.5) == (1, 1, 1)
    # Of what is too small the true is not asked for, and the predicted is gone; touching the former is no error.
    assert lesion_counts(predicted, truth, min_voxels=2) == (1, 0, 0)
    assert lesion_counts(predicted, truth, min_voxels=4) == (0, 0, 1)


def test_label_maps_are_masks_of_each_class() -> None:
    predicted, truth = np.random.default_rng(0).integers(4, size=(2, 12, 12, 6), dtype=np.uint8)
    truth[:3] = 255
    known = truth != 255
    found = label_lesion_counts(predicted, truth, 4, ignore=255, connectivity=1)
    assert found[0].tolist() == [0, 0, 0]
    for k in (1, 2, 3):
        assert tuple(found[k]) == lesion_counts((predicted == k) & known, truth == k, connectivity=1)


def test_policies_of_the_empty() -> None:
    nothing, invented, missed = [0, 0, 0], [0, 2, 0], [0, 0, 2]
    for figure in (precision, recall, f1):
        assert np.isnan(figure(nothing))
        assert figure(nothing, "one") == 1
        assert figure(missed) == figure(missed, "one") == 0
    assert precision(invented) == f1(invented) == 0
    assert np.isnan(recall(invented))
    assert (precision([3, 1, 2]), recall([3, 1, 2]), f1([3, 1, 2])) == (0.75, 0.6, 6 / 9)


def test_summary_by_hand() -> None:
    table = np.array([[[0, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [2, 0, 2]]])
    found = summarise(table, ("background", "lesion"))
    assert found["lesion_recall"] == found["lesion_recall/lesion"] == 0.75
    assert found["lesion_recall_pooled"] == 0.6
    assert found["lesion_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert found["lesion_f1_pooled"] == pytest.approx(6 / 9)
    assert found["lesion_fp_per_case"] == pytest.approx(1 / 3)
    assert (found["lesion_tp"], found["lesion_fp"], found["lesion_fn"]) == (3, 1, 2)
    assert summarise(table, ("background", "lesion"), empty="one")["lesion_f1"] == pytest.approx(
        (2 / 3 + 1 + 2 / 3) / 3
    )
    alone = summarise(table[:, 1:], ("lesion",), background=None)
    np.testing.assert_equal({name: found[name] for name in alone}, alone)


def test_split_shares_add_up_to_the_whole() -> None:
    table = np.random.default_rng(0).integers(0, 4, (30, 3, 3))
    names = ("background", "lacune", "stroke")
    order = np.concatenate([np.arange(30)[worker::4] for worker in range(4)])
    np.testing.assert_equal(summarise(table[order], names), summarise(table, names))
    parts = [summarise(table[part], names) for part in (slice(11), slice(11, None))]
    assert sum(part["lesion_tp"] for part in parts) == summarise(table, names)["lesion_tp"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 2)), np.ones((2, 2), bool)), "must be bool"),
        ((np.ones((2, 2), bool), np.ones((2, 3), bool)), "one shape"),
        ((np.ones((2, 2), bool), np.ones((2, 2), bool), 3), "connectivity must be 1 to 2"),
        ((np.ones((2, 2), bool), np.ones((2, 2), bool), 1, 1, 1.5), "overlap 0 to 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lesion_counts(*arguments)
