import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from medray.metrics import overlap
from medray.metrics.overlap import (
    dice,
    iou,
    overlap_counts,
    precision,
    recall,
    region_counts,
    relative_volume_error,
    summarise,
    volume_error,
)

quick = settings(max_examples=25, deadline=None)
shapes = st.one_of(
    st.tuples(*[st.integers(1, 9)] * 2),
    st.tuples(*[st.integers(1, 6)] * 3),
)
maps = {"seed": st.integers(0, 10**6), "shape": shapes, "classes": st.sampled_from([2, 3, 5, 12])}


def pair(seed: int, shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Two label maps that agree in most voxels and lack some of the classes."""
    rng = np.random.default_rng(seed)
    values = rng.choice(classes, rng.integers(1, classes + 1), replace=False).astype(np.uint8)
    truth = rng.choice(values, shape)
    predicted = np.where(rng.random(shape) < 0.6, truth, rng.integers(classes, size=shape)).astype(np.uint8)
    return predicted, truth


def masks(labels: np.ndarray, classes: int) -> np.ndarray:
    return labels == np.arange(classes).reshape(-1, *[1] * labels.ndim)


@given(**maps)
@quick
def test_figures_are_scikit_learns(seed: int, shape: tuple[int, ...], classes: int) -> None:
    predicted, truth = pair(seed, shape, classes)
    counts = overlap_counts(predicted, truth, classes)
    for k in range(classes):
        ours, theirs = predicted.ravel() == k, truth.ravel() == k
        if not (ours.any() or theirs.any()):
            assert all(np.isnan(figure(counts[k])) for figure in (dice, iou, precision, recall))
            assert all(figure(counts[k], "one") == 1 for figure in (dice, iou, precision, recall))
            continue
        assert dice(counts)[k] == pytest.approx(sk.f1_score(theirs, ours), abs=1e-12)
        assert iou(counts)[k] == pytest.approx(sk.jaccard_score(theirs, ours), abs=1e-12)
        assert precision(counts)[k] == pytest.approx(sk.precision_score(theirs, ours, zero_division=0), abs=1e-12)
        wanted = sk.recall_score(theirs, ours, zero_division=np.nan)
        assert recall(counts)[k] == pytest.approx(wanted, abs=1e-12, nan_ok=True)


@pytest.mark.slow
@given(**maps)
@quick
def test_figures_are_monais_and_torchmetrics(seed: int, shape: tuple[int, ...], classes: int) -> None:
    import torch
    from monai.metrics import compute_dice, compute_iou
    from torchmetrics.functional.segmentation import dice_score, mean_iou

    predicted, truth = pair(seed, shape, classes)
    counts = overlap_counts(predicted, truth, classes)
    ours, theirs = (torch.from_numpy(masks(labels, classes))[None].float() for labels in (predicted, truth))
    occurs = counts[:, 2] > 0
    # MONAI leaves out what does not occur, unless told that it then asks for an empty prediction.
    for figure, found in (
        (dice, compute_dice(ours, theirs, ignore_empty=False)),
        (iou, compute_iou(ours, theirs, ignore_empty=False)),
    ):
        np.testing.assert_allclose(figure(counts, "one"), found[0].numpy(), atol=1e-6)
    for figure, found in ((dice, compute_dice(ours, theirs)), (iou, compute_iou(ours, theirs))):
        np.testing.assert_allclose(np.where(occurs, figure(counts), np.nan), found[0].numpy(), atol=1e-6)
    with warnings.catch_warnings():
        # torchmetrics announces changes of its defaults.
        warnings.simplefilter("ignore")
        score = dice_score(ours.int(), theirs.int(), classes, average="none")[0].numpy()
        index = mean_iou(ours.int(), theirs.int(), classes, per_class=True)[0].numpy()
    np.testing.assert_allclose(dice(counts)[occurs], score[occurs], atol=1e-6)
    np.testing.assert_allclose(iou(counts)[occurs], index[occurs], atol=1e-6)


@given(**maps)
@quick
def test_counts_do_not_ask_how_the_voxels_lie(seed: int, shape: tuple[int, ...], classes: int) -> None:
    predicted, truth = pair(seed, shape, classes)
    counts = overlap_counts(predicted, truth, classes)
    assert counts[:, 1].sum() == counts[:, 2].sum() == truth.size
    axes = np.random.default_rng(seed).permutation(len(shape))
    turned = [np.flip(labels, 0).transpose(axes) for labels in (predicted, truth)]
    np.testing.assert_array_equal(overlap_counts(*turned, classes), counts)
    fortran = np.asfortranarray(truth)
    np.testing.assert_array_equal(overlap_counts(np.asfortranarray(predicted), fortran, classes), counts)
    np.testing.assert_array_equal(overlap_counts(predicted, fortran.astype(np.int32), classes), counts)
    np.testing.assert_array_equal(overlap_counts(fortran, predicted, classes), counts[:, [0, 2, 1]])
    np.testing.assert_array_equal(region_counts(masks(predicted, classes), masks(truth, classes)), counts)
    np.testing.assert_array_equal(overlap_counts(truth, predicted, classes), counts[:, [0, 2, 1]])
    half = shape[0] // 2
    parts = [overlap_counts(predicted[part], truth[part], classes) for part in (slice(half), slice(half, None))]
    np.testing.assert_array_equal(sum(parts), counts)


@given(**maps, ignore=st.sampled_from([255, 1, -1]))
@quick
def test_ignored_voxels_count_nowhere(seed: int, shape: tuple[int, ...], classes: int, ignore: int) -> None:
    predicted, truth = pair(seed, shape, classes)
    unknown = np.random.default_rng(seed + 1).random(shape) < 0.3
    marked = np.where(unknown, ignore, truth.astype(np.int16))
    known = marked != ignore
    wanted = overlap_counts(predicted[known], truth[known], classes)
    np.testing.assert_array_equal(overlap_counts(predicted, marked, classes, ignore), wanted)
    found = region_counts(masks(predicted, classes), masks(truth, classes), known)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("classes", [3, overlap.FEW + 2])
def test_large_maps_are_counted_in_parts(classes: int) -> None:
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(classes, size=(2, overlap.PART * 2 + 5), dtype=np.uint8)
    wanted = np.array([[((predicted == k) & (truth == k)).sum(), (predicted == k).sum(), (truth == k).sum()]
                       for k in range(classes)])  # fmt: skip
    np.testing.assert_array_equal(overlap_counts(predicted, truth, classes), wanted)


def test_volume_errors_by_hand() -> None:
    counts = np.array([[[0, 90, 90], [8, 12, 10]], [[0, 95, 100], [0, 5, 0]]])
    assert volume_error(counts, [0.5, 2.0]).tolist() == [[0, 1], [-10, 10]]
    found = relative_volume_error(counts)
    assert found[0].tolist() == [0, 0.2]
    assert found[1, 0] == pytest.approx(-0.05)
    assert np.isnan(found[1, 1])


CLASSES = ("background", "liver", "tumour")
TABLE = np.array(
    [
        [[90, 95, 92], [4, 5, 5], [0, 0, 3]],  # the tumour is missed
        [[90, 90, 90], [10, 10, 10], [0, 0, 0]],  # there is none
        [[80, 85, 88], [0, 5, 0], [3, 10, 12]],  # a liver that is not there
    ]
)


def test_summary_by_hand() -> None:
    found = summarise(TABLE, CLASSES, [0.1, 0.1, 0.2])
    liver, tumour = np.mean([0.8, 1, 0]), np.mean([0, 6 / 22])
    assert found["dice/liver"] == pytest.approx(liver)
    assert found["dice/tumour"] == pytest.approx(tumour)
    assert found["dice"] == pytest.approx((liver + tumour) / 2)
    assert found["recall/liver"] == pytest.approx(np.mean([0.8, 1]))
    assert found["precision/liver"] == pytest.approx(np.mean([0.8, 1, 0]))
    assert found["precision/tumour"] == pytest.approx(np.mean([0, 3 / 10]))
    assert found["iou/liver"] == pytest.approx(np.mean([4 / 6, 1, 0]))
    assert found["volume_error/tumour"] == pytest.approx(np.mean([0.3, 0, 0.4]))
    assert found["volume_bias/tumour"] == pytest.approx(-np.mean([0.3, 0, 0.4]))
    assert found["volume_bias/liver"] == pytest.approx(1 / 3)
    assert found["relative_volume_error/tumour"] == pytest.approx(np.mean([1, 2 / 12]))
    assert {name: found[name] for name in ("empty", "missed", "spurious")} == {"empty": 1, "missed": 1, "spurious": 1}
    assert (found["empty/tumour"], found["missed/tumour"], found["spurious/liver"]) == (1, 1, 1)
    assert "volume_error" not in summarise(TABLE, CLASSES)


def test_policies_differ_in_the_empty_alone() -> None:
    skip, one = summarise(TABLE, CLASSES), summarise(TABLE, CLASSES, empty="one")
    assert one["dice/tumour"] == pytest.approx(np.mean([0, 1, 6 / 22]))
    assert one["dice/liver"] == skip["dice/liver"]
    assert one["empty"] == skip["empty"] == 1


def test_background_is_averaged_only_for_regions() -> None:
    found = summarise(TABLE, CLASSES, background=None)
    assert found["dice"] == pytest.approx(np.mean([found[f"dice/{name}"] for name in CLASSES]))
    assert summarise(TABLE, CLASSES)["dice/background"] == found["dice/background"]


@given(st.integers(0, 10**6), st.integers(1, 40))
@quick
def test_summary_of_all_workers_is_that_of_one(seed: int, cases: int) -> None:
    rng = np.random.default_rng(seed)
    real, mine = rng.integers(0, 50, (2, cases, 3)) * (rng.random((2, cases, 3)) < 0.8)
    counts = np.stack([rng.integers(0, np.minimum(real, mine) + 1), mine, real], axis=-1)
    volumes = rng.random(cases)
    order = np.concatenate([np.arange(cases)[worker::3] for worker in range(3)])
    whole, shared = summarise(counts, CLASSES, volumes), summarise(counts[order], CLASSES, volumes[order])
    assert whole.keys() == shared.keys()
    for name, value in whole.items():
        assert value == shared[name] or (np.isnan(value) and np.isnan(shared[name]))


def test_no_cases_are_nan_and_none() -> None:
    found = summarise(np.zeros((0, 3, 3), int), CLASSES, np.zeros(0))
    assert np.isnan(found["dice"])
    assert np.isnan(found["volume_error/liver"])
    assert found["empty"] == 0


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        (np.zeros((3, 3), int), np.zeros((3, 4), int), "one shape"),
        (np.zeros((3, 3)), np.zeros((3, 3), int), "integers, got float64"),
        (np.full((3, 3), 4), np.zeros((3, 3), int), "predicted holds values 4 to 4; classes are 0 to 2"),
        (np.zeros((3, 3), int), np.full((3, 3), 255), "truth holds values 255"),
        (np.full((3, 3), -1), np.zeros((3, 3), int), "predicted holds values -1"),
    ],
)
def test_wrong_maps_are_refused(predicted: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlap_counts(predicted, truth, 3)


def test_wrong_masks_are_refused() -> None:
    mask = np.zeros((2, 3, 3), bool)
    with pytest.raises(ValueError, match="must be bool"):
        region_counts(mask.astype(int), mask)
    with pytest.raises(ValueError, match=r"valid \(\*S\)"):
        region_counts(mask, mask, mask)
