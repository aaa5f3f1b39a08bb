import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.imaging import reader
from medray.imaging.labels import checked, load, read_label, value_counts
from medray.imaging.writer import write_nifti, write_png
from medray.types import Case, InputError

SHAPE = (6, 5, 4)
OBLIQUE = np.array([[-0.8, 0.3, 0, 10], [0.3, 0.9, 0.2, 20], [0, -0.1, 2.5, -30], [0, 0, 0, 1]])
CLASSES = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
IMAGE = Case(
    "scan",
    np.zeros((1, *SHAPE), np.int16),
    OBLIQUE,
    unit="mm",
    modality="CT",
    subject_id="p1",
    attributes={"site": "A"},
    warnings=("extension_mismatch",),
)
FLAT = Case("photo", np.zeros((3, 6, 5), np.uint8), np.eye(4))


def nifti(tmp_path: Path, voxels: np.ndarray = CLASSES, affine: np.ndarray = OBLIQUE) -> Path:
    write_nifti(tmp_path / "label.nii.gz", voxels, affine)
    return tmp_path / "label.nii.gz"


def code_of(source: Path | bytes, image: Case = IMAGE, values: set[int] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_label(source, image, values or {0, 1, 2})
    return caught.value.code


def test_a_label_on_the_grid_is_the_images_case_with_classes_for_voxels(tmp_path: Path) -> None:
    for source in (nifti(tmp_path), nifti(tmp_path).read_bytes()):
        label = read_label(source, IMAGE, range(3))
        np.testing.assert_array_equal(label.image[0], CLASSES)
        assert (label.case_id, label.subject_id, label.attributes) == ("scan", "p1", {"site": "A"})
        assert (label.modality, label.unit, label.warnings) == ("SEG", "mm", ())
        np.testing.assert_array_equal(label.affine, OBLIQUE)


@pytest.mark.parametrize(
    ("values", "dtype"), [([0, 1, 2], np.uint8), ([0, 1, 2, 300], np.uint16), ([0, 1, 2, 70000], np.uint32)]
)
def test_the_dtype_is_that_of_the_legal_values_and_not_of_the_file(
    tmp_path: Path, values: list[int], dtype: type
) -> None:
    for stored in (np.uint8, np.int16, np.int64, np.float32, np.float64):
        label = read_label(nifti(tmp_path, CLASSES.astype(stored)), IMAGE, values)
        assert label.image.dtype == dtype
        np.testing.assert_array_equal(label.image[0], CLASSES)


def test_values_must_be_whole_and_legal(tmp_path: Path) -> None:
    for value, code in ((0.5, "non_integer_label"), (np.nan, "non_finite_voxels"), (2.0**25, "non_integer_label")):
        voxels = CLASSES.astype(np.float64)
        voxels[0, 0, 0] = value
        assert code_of(nifti(tmp_path, voxels)) == code
    for value in (-1, 7, 255, 40000):
        voxels = CLASSES.astype(np.int32)
        voxels[:2, 0, 0] = value
        with pytest.raises(InputError, match=rf"{value} \(2 voxels\)") as caught:
            read_label(nifti(tmp_path, voxels), IMAGE, {0, 1, 2})
        assert caught.value.code == "unknown_class"


def test_a_mask_of_0_and_255_is_told_how_to_be_read_and_is_read_where_255_is_legal(tmp_path: Path) -> None:
    source = nifti(tmp_path, (CLASSES > 0).astype(np.uint8) * 255)
    with pytest.raises(InputError, match="255 is class 1"):
        read_label(source, IMAGE, {0, 1})
    assert set(np.unique(read_label(source, IMAGE, {0, 255}).image)) == {0, 255}


def test_many_unknown_values_are_listed_in_part(tmp_path: Path) -> None:
    source = nifti(tmp_path, np.arange(120, dtype=np.int16).reshape(SHAPE))
    with pytest.raises(InputError, match=r"holds 3 \(1 voxels\), .*10 \(1 voxels\) and 109 others"):
        read_label(source, IMAGE, {0, 1, 2})


def test_background_alone_is_a_warning_and_one_class_alone_is_not(tmp_path: Path) -> None:
    assert read_label(nifti(tmp_path, CLASSES * 0), IMAGE, {0, 1}).warnings == ("empty_label",)
    assert read_label(nifti(tmp_path, CLASSES * 0 + 1), IMAGE, {0, 1}).warnings == ()


def test_the_readers_warnings_of_the_label_are_kept(tmp_path: Path) -> None:
    wrong_name = nifti(tmp_path).rename(tmp_path / "label.png")
    assert read_label(wrong_name, IMAGE, {0, 1, 2}).warnings == ("extension_mismatch",)


def test_a_label_is_read_once_and_then_judged(tmp_path: Path) -> None:
    label = load(nifti(tmp_path), IMAGE)
    found, counts = np.unique(CLASSES, return_counts=True)
    assert label.counts == dict(zip(found.tolist(), counts.tolist(), strict=True))
    assert label.names == {}
    with pytest.raises(InputError, match="unknown_class"):
        checked(label, {0, 1})
    assert checked(label, {0, 1, 2}).warnings == ()


@pytest.mark.parametrize("values", [[], [-1, 0]])
def test_legal_values_that_cannot_be_are_the_callers_mistake(tmp_path: Path, values: list[int]) -> None:
    with pytest.raises(ValueError, match="from 0 up"):
        read_label(nifti(tmp_path), IMAGE, values)


def turned(
    voxels: np.ndarray, affine: np.ndarray, axes: tuple[int, ...], signs: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels at the same places, with the file's axes in another order and direction."""
    voxels = voxels.transpose(axes)
    affine = affine[:, [*axes, 3]].copy()
    for axis, sign in enumerate(signs):
        if sign < 0:
            affine[:, 3] += affine[:, axis] * (voxels.shape[axis] - 1)
            affine[:, axis] *= -1
            voxels = np.flip(voxels, axis)
    return voxels, affine


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    axes=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([1, -1])] * 3),
    seed=st.integers(0, 99),
)
def test_another_order_or_direction_of_the_axes_is_turned_back(
    shape: tuple[int, int, int],
    axes: list[int],
    signs: tuple[int, int, int],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    classes = np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)
    image = replace(IMAGE, image=np.zeros((1, *shape), np.int16))
    file = tmp_path_factory.mktemp("turned") / "label.nii"
    write_nifti(file, *turned(classes, OBLIQUE, tuple(axes), signs))
    label = read_label(file, image, {0, 1, 2})
    np.testing.assert_array_equal(label.image[0], classes)
    assert label.image.flags.c_contiguous


@settings(max_examples=60, deadline=None)
@given(axes=st.permutations(range(3)), signs=st.tuples(*[st.sampled_from([1, -1])] * 3))
def test_voxels_turned_without_their_affine_are_refused(
    axes: list[int], signs: tuple[int, int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same shape, in a world where left is right: no label passes but the one that is in place."""
    cube = np.random.default_rng(0).integers(0, 3, (4, 4, 4)).astype(np.uint8)
    image = replace(IMAGE, image=np.zeros((1, 4, 4, 4), np.int16))
    _, affine = turned(cube, OBLIQUE, tuple(axes), signs)
    affine[:, 3] = OBLIQUE[:, 3]
    file = tmp_path_factory.mktemp("flipped") / "label.nii"
    write_nifti(file, cube, affine)
    if signs == (1, 1, 1):
        np.testing.assert_array_equal(read_label(file, image, {0, 1, 2}).image[0], cube.transpose(np.argsort(axes)))
    else:
        assert code_of(file, image) == "affine_mismatch"


def test_other_grids_are_refused(tmp_path: Path) -> None:
    assert code_of(nifti(tmp_path, CLASSES[..., :3])) == "shape_mismatch"
    assert code_of(nifti(tmp_path, CLASSES.transpose(2, 1, 0))) == "shape_mismatch"
    for column, change in itertools.product(range(4), (0.01, -0.01)):
        affine = OBLIQUE.copy()
        affine[:3, column] *= 1 + change
        assert code_of(nifti(tmp_path, affine=affine)) == "affine_mismatch"
    doubled = OBLIQUE @ np.diag([2, 2, 2, 1])
    assert code_of(nifti(tmp_path, affine=doubled)) == "affine_mismatch"


def test_a_shift_of_a_thousandth_of_a_voxel_is_let_pass_and_two_are_not(tmp_path: Path) -> None:
    for share, passes in ((0.0008, True), (0.002, False)):
        affine = OBLIQUE.copy()
        affine[:3, 3] += OBLIQUE[:3, 2] * share
        source = nifti(tmp_path, affine=affine)
        if passes:
            np.testing.assert_array_equal(read_label(source, IMAGE, {0, 1, 2}).affine, OBLIQUE)
        else:
            assert code_of(source) == "affine_mismatch"


def test_a_single_slice_is_not_mistaken_for_another_one(tmp_path: Path) -> None:
    """With one slice a wrong thickness moves no voxel centre, but it is still another grid."""
    cube = CLASSES[:5, :5, :1]
    image = replace(IMAGE, image=np.zeros((1, 5, 5, 1), np.int16))
    swapped = OBLIQUE[:, [1, 0, 2, 3]] @ np.diag([1, 1, 2, 1])
    assert code_of(nifti(tmp_path, cube, swapped), image) == "affine_mismatch"


def test_a_flat_image_takes_a_mask_of_its_shape(tmp_path: Path) -> None:
    mask = CLASSES[..., 0]
    write_png(tmp_path / "mask.png", mask)
    np.testing.assert_array_equal(read_label(tmp_path / "mask.png", FLAT, {0, 1, 2}).image[0], mask)
    # Pixel spacing of the image says nothing of a PNG.
    measured = replace(FLAT, unit="mm", affine=np.diag([0.2, 0.2, 1, 1]))
    np.testing.assert_array_equal(read_label(tmp_path / "mask.png", measured, {0, 1, 2}).image[0], mask)
    write_png(tmp_path / "mask.png", mask.T)
    assert code_of(tmp_path / "mask.png", FLAT) == "shape_mismatch"


def test_colours_one_hot_and_another_number_of_axes_are_the_wrong_rank(tmp_path: Path) -> None:
    write_png(tmp_path / "mask.png", np.random.default_rng(0).integers(0, 3, (6, 5, 3)).astype(np.uint8))
    assert code_of(tmp_path / "mask.png", FLAT) == "wrong_rank"
    write_png(tmp_path / "mask.png", CLASSES[..., 0])
    assert code_of(tmp_path / "mask.png", IMAGE) == "wrong_rank"
    assert code_of(nifti(tmp_path), FLAT) == "wrong_rank"


def test_a_volume_without_a_place_fits_only_another_without(tmp_path: Path) -> None:
    np.save(tmp_path / "label.npy", CLASSES)
    nowhere = replace(IMAGE, affine=np.eye(4), unit="px")
    np.testing.assert_array_equal(read_label(tmp_path / "label.npy", nowhere, {0, 1, 2}).image[0], CLASSES)
    assert code_of(tmp_path / "label.npy", IMAGE) == "missing_affine"
    assert code_of(nifti(tmp_path), nowhere) == "missing_affine"


def test_a_file_that_is_not_there_and_one_that_is_no_label(tmp_path: Path) -> None:
    assert code_of(tmp_path / "none.nii.gz") == "not_found"
    (tmp_path / "label.txt").write_text("1 2 3")
    assert code_of(tmp_path / "label.txt") == "unsupported_type"
    assert code_of(b"") == "empty_file"


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.integers(-300, 300) | st.integers(-(2**40), 2**40), min_size=1, max_size=30),
    dtype=st.sampled_from([np.int64, np.int16, np.uint8, np.uint64]),
)
def test_values_are_counted_as_unique_does(values: list[int], dtype: type) -> None:
    array = np.array(values).astype(dtype).reshape(1, 1, -1)
    found, counts = np.unique(array, return_counts=True)
    assert value_counts(array) == dict(zip(found.tolist(), counts.tolist(), strict=True))


def test_values_are_counted_over_all_parts() -> None:
    assert value_counts(np.arange(300_000).reshape(1, 300, 1000) % 3) == {0: 100_000, 1: 100_000, 2: 100_000}


def test_reading_a_label_that_is_no_dicom_does_not_pay_for_pydicom(tmp_path: Path) -> None:
    write_png(tmp_path / "mask.png", CLASSES[..., 0])
    script = (
        "import sys, numpy; from pathlib import Path; from medray.types import Case; from medray.imaging import labels;"
        "image = Case('x', numpy.zeros((1, 6, 5), 'u1'), numpy.eye(4));"
        "labels.read_label(Path(sys.argv[1]), image, range(3));"
        "assert not {'pydicom', 'nrrd', 'nibabel'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "mask.png"], check=True, cwd=Path(__file__).parents[2])


def test_a_real_label_lies_on_its_image(shared_data: Path) -> None:
    image = reader.read(shared_data / "nrrd" / "brain1_image.nrrd")
    label = load(shared_data / "nrrd" / "brain1_label.nrrd", image)
    assert label.counts == {0: 1634263, 1: 4137}
    assert checked(label, {0, 1}).image.dtype == np.uint8
