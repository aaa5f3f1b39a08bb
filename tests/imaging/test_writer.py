import contextlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medray.imaging.reader import read
from medray.imaging.writer import png_bytes, replacing, write_nifti, write_png

OBLIQUE = np.array([[-0.9, 0.1, 0, 10], [0.1, 0.9, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
SHEARED = np.array([[1.0, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", ">i2"])
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_nifti_comes_back_as_it_went(tmp_path: Path, name: str, dtype: str) -> None:
    image = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(dtype)
    write_nifti(tmp_path / name, image, OBLIQUE)
    case = read(tmp_path / name)
    assert case.image.dtype == np.dtype(dtype).newbyteorder("=")
    assert case.image.shape == (1, 2, 3, 4)
    assert case.image.flags.c_contiguous
    np.testing.assert_array_equal(case.image[0], image)
    np.testing.assert_allclose(case.affine, OBLIQUE, atol=1e-5)
    assert (case.unit, case.case_id, case.warnings) == ("mm", "x", ())


@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED])
def test_nibabel_reads_what_was_written(tmp_path: Path, affine: np.ndarray) -> None:
    image = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    write_nifti(tmp_path / "x.nii.gz", image, affine)
    other = nibabel.load(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(np.asarray(other.dataobj), image)
    np.testing.assert_allclose(other.affine, affine, atol=1e-5)
    assert other.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(other.header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-5)


def test_nifti_bytes_depend_on_the_image_alone(tmp_path: Path) -> None:
    image = np.ones((2, 3, 4), bool)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, image, np.eye(4))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("name", "image", "affine"),
    [
        ("x.img", np.zeros((2, 2, 2), "i2"), np.eye(4)),
        ("x.nii", np.zeros((2, 2), "i2"), np.eye(4)),
        ("x.nii", np.zeros((2, 2, 2), "c8"), np.eye(4)),
        ("x.nii", np.zeros((2, 2, 2), "i2"), np.zeros((4, 4))),
    ],
)
def test_nifti_refuses_what_it_cannot_say(tmp_path: Path, name: str, image: np.ndarray, affine: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must|is a real"):
        write_nifti(tmp_path / name, image, affine)


@pytest.mark.parametrize(("dtype", "shape"), [("u1", (5, 7)), ("u2", (5, 7)), ("u1", (5, 7, 3))])
def test_png_comes_back_as_it_went(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    write_png(tmp_path / "x.png", image)
    case = read(tmp_path / "x.png")
    assert case.image.dtype == image.dtype
    np.testing.assert_array_equal(case.image, image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0))
    assert (case.unit, case.spatial_dims, case.warnings) == ("px", 2, ())


@pytest.mark.parametrize("image", [np.zeros((2, 2)), np.zeros((2, 2, 3), "u2"), np.zeros((0, 2), "u1")])
def test_png_refuses_what_it_cannot_hold(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a PNG holds"):
        write_png(tmp_path / "x.png", image)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"before")
    with contextlib.suppress(OSError), replacing(path) as file:
        file.write(b"half")
        assert path.read_bytes() == b"before"
        raise OSError("disk full")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x.png", b"before")]
    with replacing(path) as file:
        file.write(b"after")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x.png", b"after")]


def test_a_png_is_the_same_in_memory_and_in_a_file(tmp_path: Path) -> None:
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    write_png(tmp_path / "x.png", image)
    assert png_bytes(image) == (tmp_path / "x.png").read_bytes()
