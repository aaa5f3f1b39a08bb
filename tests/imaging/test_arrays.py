import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medray.imaging import arrays
from medray.imaging.limits import Limits
from medray.imaging.reader import read
from medray.types import ArrayRef, InputError

DRAW = np.random.default_rng(0)


def code_of(source: object, limits: Limits | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read(source, limits or Limits())  # type: ignore[arg-type]
    return caught.value.code


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 7), (1, 5, 7)), ((5, 7, 3), (3, 5, 7)), ((5, 7, 1), (1, 5, 7)), ((4, 5, 6), (1, 4, 5, 6))],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_npz(tmp_path: Path, save: object, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    images = DRAW.integers(0, 256, (3, *shape), np.uint8)
    save(tmp_path / "set.npz", train_images=images, other=np.zeros(3))  # type: ignore[operator]
    case = read(ArrayRef(tmp_path / "set.npz", "train_images", 2))
    assert case.image.shape == expected
    assert case.case_id == "set-train_images-000002"
    assert (case.unit, case.modality) == ("px", "OT")
    moved = np.moveaxis(images[2], -1, 0) if shape[-1] in (1, 3) else images[2][None]
    np.testing.assert_array_equal(case.image, moved)
    assert case.image.flags.c_contiguous
    assert case.image.flags.writeable


def test_rows_and_images_of_npy(tmp_path: Path) -> None:
    images = np.asfortranarray(DRAW.normal(size=(2, 5, 7))).astype(">f8")
    np.save(tmp_path / "set.npy", images)
    case = read(ArrayRef(tmp_path / "set.npy", "", 1))
    assert case.image.dtype == np.float32
    np.testing.assert_allclose(case.image[0], images[1], rtol=1e-6)
    np.save(tmp_path / "one.npy", images[0] > 0)
    assert read(tmp_path / "one.npy").image.dtype == np.uint8


def test_an_array_is_inflated_once_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, count = tmp_path / "set.npz", []
    inflate = arrays._read_member
    monkeypatch.setattr(arrays, "_read_member", lambda *args: count.append(1) or inflate(*args))
    np.savez_compressed(file, x=np.arange(32, dtype="u1").reshape(2, 4, 4))
    first = read(ArrayRef(file, "x", 0)).image
    first[:] = 0
    assert read(ArrayRef(file, "x", 0)).image.max() == 15
    assert len(count) == 1
    np.savez_compressed(file, x=np.arange(48, dtype="u1").reshape(3, 4, 4) + 1)
    assert read(ArrayRef(file, "x", 0)).image.max() == 16


def test_what_is_wrong_has_its_own_code(tmp_path: Path) -> None:
    file = tmp_path / "set.npz"
    np.savez_compressed(file, x=np.arange(32, dtype="u1").reshape(2, 4, 4), flat=np.zeros((2, 2)))
    assert code_of(ArrayRef(file, "y", 0)) == "missing_member"
    assert code_of(ArrayRef(file, "x", 2)) == "index_out_of_range"
    assert code_of(ArrayRef(file, "x", -1)) == "index_out_of_range"
    assert code_of(ArrayRef(file, "flat", 0)) == "wrong_rank"
    assert code_of(file) == "unsupported_type"
    assert code_of(ArrayRef(file, "x", 0), Limits(max_decompressed_bytes=16)) == "too_large_decompressed"
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        place = archive.getinfo("x.npy").header_offset + 60
    content[place] ^= 0xFF
    (tmp_path / "bad.npz").write_bytes(content)
    assert code_of(ArrayRef(tmp_path / "bad.npz", "x", 0)) in ("corrupt", "checksum", "bad_header", "truncated")
    (tmp_path / "short.npz").write_bytes(content[:100])
    assert code_of(ArrayRef(tmp_path / "short.npz", "x", 0)) == "corrupt"


def test_npy_is_strict() -> None:
    good = npy(DRAW.normal(size=(4, 5)))
    assert code_of(npy(np.array([None]))) == "unsafe_data"
    assert code_of(npy(np.zeros((4, 5), "c8"))) == "unsupported_dtype"
    assert code_of(good[:-1]) == "truncated"
    assert code_of(good + b"x") == "trailing_data"
    assert code_of(good[:20]) == "bad_header"
    assert code_of(npy(np.zeros((0, 5)))) == "empty_image"
    assert code_of(npy(np.zeros((2, 3, 4, 5)))) == "wrong_rank"
    assert code_of(npy(np.full((4, 5), np.nan))) == "non_finite_voxels"
    assert code_of(good.replace(b"(4, 5)", b"(9e9)"[:6].ljust(6))) == "bad_header"
    huge = npy(np.zeros((1, 1))).replace(b"(1, 1), }" + b" " * 20, b"(99999999, 99999999), }" + b" " * 6)
    assert code_of(huge) == "too_large_decompressed"
