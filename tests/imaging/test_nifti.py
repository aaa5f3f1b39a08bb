import gzip
import struct
import tracemalloc
from collections.abc import Callable
from io import BytesIO

import nibabel
import numpy as np
import pytest

from medray.imaging.limits import Limits
from medray.imaging.reader import read
from medray.types import InputError

AFFINE = np.array([[-1.0, 0, 0, 10], [0, -1.0, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(-500, 500, (6, 5, 4)).astype(np.int16)
Edit = Callable[[bytearray], None]


def content(voxels: np.ndarray = VOXELS, order: str = "<", two: bool = False, edit: Edit | None = None) -> bytes:
    family, header = (nibabel.Nifti2Image, nibabel.Nifti2Header) if two else (nibabel.Nifti1Image, nibabel.Nifti1Header)
    image = family(voxels, AFFINE, header(endianness=order))
    image.set_data_dtype(voxels.dtype)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    raw = bytearray(image.to_bytes())
    if edit:
        edit(raw)
    return bytes(raw)


def put(form: str, offset: int, *values: float) -> Edit:
    return lambda raw: struct.pack_into("<" + form, raw, offset, *values)


def code_of(source: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read(source, limits or Limits())
    return caught.value.code


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_versions_in_both_byte_orders(order: str, two: bool) -> None:
    for packed in (False, True):
        raw = content(order=order, two=two)
        case = read(gzip.compress(raw) if packed else raw)
        assert case.image.dtype == np.int16
        assert case.image.dtype.isnative
        assert case.image.flags.writeable
        np.testing.assert_array_equal(case.image[0], VOXELS)
        np.testing.assert_allclose(case.affine, AFFINE)
        assert case.spacing == (1.0, 1.0, 2.5)


def test_scaling_is_applied_in_float64_and_kept_as_float32() -> None:
    case = read(content(edit=put("2f", 112, 0.5, 3.0)))
    assert case.image.dtype == np.float32
    np.testing.assert_array_equal(case.image[0], VOXELS * 0.5 + 3)
    assert read(content(edit=put("2f", 112, 0.0, 0.0))).image.dtype == np.int16


def test_scaling_that_cannot_be_is_ignored_with_a_warning() -> None:
    for slope, offset, warnings in (
        (np.nan, 5, ("scaling_ignored",)),
        (np.nan, np.nan, ()),
        (1, np.inf, ("scaling_ignored",)),
    ):
        case = read(content(edit=put("2f", 112, slope, offset)))
        assert (case.image.dtype, case.warnings) == (np.dtype(np.int16), warnings)


def test_float_voxels_are_float32_and_finite() -> None:
    assert read(content(VOXELS.astype(np.float64))).image.dtype == np.float32
    for value in (np.nan, np.inf, 1e300):
        voxels = VOXELS.astype(np.float64)
        voxels[1, 2, 3] = value
        with pytest.raises(InputError, match="1 of 120 voxels") as caught:
            read(content(voxels))
        assert caught.value.code == "non_finite_voxels"


def test_gzip_is_read_to_its_trailer() -> None:
    packed = gzip.compress(content(), mtime=0)
    assert code_of(packed[: len(packed) // 2]) == "truncated"
    assert code_of(packed[:-3]) == "truncated"
    assert code_of(packed[:40]) == "truncated"
    assert code_of(packed[:-8] + bytes([packed[-8] ^ 255]) + packed[-7:]) == "checksum"
    assert code_of(packed[:-1] + b"\7") == "checksum"
    assert code_of(packed + b"JUNK" * 4) == "trailing_data"
    assert code_of(gzip.compress(content() + b"xx")) == "trailing_data"
    assert code_of(content() + b"xx") == "trailing_data"
    assert code_of(content()[:-1]) == "truncated"
    # Several members are one file (bgzip), and zeros may follow (RFC 1952, tape blocks).
    whole = content()
    np.testing.assert_array_equal(read(gzip.compress(whole[:400]) + gzip.compress(whole[400:])).image[0], VOXELS)
    assert read(packed + bytes(100)).warnings == ()


def test_bombs_take_neither_time_nor_memory() -> None:
    bomb = gzip.compress(bytes(1 << 20)) * 200
    announced = content(edit=put("8h", 40, 3, 2048, 2048, 1280, 1, 1, 1, 1))[:352]
    tracemalloc.start()
    assert code_of(gzip.compress(content()) + bomb) == "too_large_decompressed"
    assert code_of(gzip.compress(announced) + bomb) == "too_large_decompressed"
    assert code_of(announced) == "too_large_decompressed"
    wide = content(two=True, edit=put("8q", 16, 3, 2**40, 2**40, 2**40, 1, 1, 1, 1))
    assert code_of(wide) == "too_large_decompressed"
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (put("h", 42, -6), "bad_header"),
        (put("h", 40, 9), "bad_header"),
        (put("h", 44, 0), "empty_image"),
        (put("h", 40, 2), "wrong_rank"),
        (put("h", 70, 9999), "bad_header"),
        (put("2h", 70, 32, 64), "unsupported_dtype"),
        (put("2h", 70, 128, 24), "unsupported_dtype"),
        (put("h", 72, 8), "bad_header"),
        (put("f", 108, 336), "bad_header"),
        (put("f", 108, float("nan")), "bad_header"),
        (put("4f", 312, 0, 0, 0, 0), "bad_affine"),
        (put("f", 280, float("nan")), "bad_affine"),
        (put("3f", 256, 9, 9, 9), "bad_affine"),
        (put("2h", 252, 0, 0), "missing_affine"),
        (put("h", 252, -1), "bad_header"),
        (put("h", 254, -32767), "bad_header"),
        (put("f", 280, 1.0), "ambiguous_affine"),
        (put("f", 292, 12.0), "ambiguous_affine"),
        (put("B", 123, 1), "implausible_spacing"),
        (put("B", 123, 5), "bad_header"),
        (put("4s", 344, b"ni1\0"), "missing_pair"),  # type: ignore[arg-type]
        (put("i", 0, 0), "bad_header"),
    ],
)
def test_what_is_wrong_has_its_own_code(edit: Edit, code: str) -> None:
    assert code_of(content(edit=edit)) == code


def test_a_last_axis_of_one_is_dropped_and_two_are_refused() -> None:
    np.testing.assert_array_equal(read(content(VOXELS[..., None])).image[0], VOXELS)
    assert code_of(content(np.stack([VOXELS, VOXELS], -1))) == "wrong_rank"


def test_a_small_difference_of_the_affines_is_a_warning() -> None:
    case = read(content(edit=put("f", 292, 10.4)))
    assert case.warnings == ("affine_difference",)
    assert case.affine[0, 3] == pytest.approx(10.4)


def test_the_qform_speaks_where_the_sform_is_silent() -> None:
    case = read(content(edit=put("h", 254, 0)))
    np.testing.assert_allclose(case.affine, AFFINE)


def test_microns_become_millimetres() -> None:
    def edit(raw: bytearray) -> None:
        put("B", 123, 3)(raw)
        put("h", 252, 0)(raw)
        put("12f", 280, *(AFFINE[:3] * 1000).ravel())(raw)

    np.testing.assert_allclose(read(content(edit=edit)).affine, AFFINE, rtol=1e-5)


def test_a_constant_image_and_text_in_the_header_are_warned_of() -> None:
    assert read(content(np.full((2, 3, 4), 7, np.int16))).warnings == ("constant_image",)
    image = nibabel.Nifti1Image(VOXELS, AFFINE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"DOE^JANE"))
    assert read(image.to_bytes()).warnings == ("phi_in_header",)


def test_voxels_equal_nibabels(shared_data: object) -> None:
    for file in sorted((shared_data / "hippocampus" / "imagesTr").glob("*.nii.gz"))[:3]:  # type: ignore[operator]
        other = nibabel.Nifti1Image.from_stream(BytesIO(gzip.decompress(file.read_bytes())))
        case = read(file)
        np.testing.assert_array_equal(case.image[0], np.asarray(other.dataobj))
        np.testing.assert_array_equal(case.affine, other.affine)
