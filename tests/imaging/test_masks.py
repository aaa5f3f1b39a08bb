import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.imaging.masks import PLACE, narrow, voxels_of, write_mask_like, write_mask_png, write_probabilities_like
from medray.imaging.reader import read
from medray.types import InputError

SHAPE = (4, 5, 3)
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
OBLIQUE = np.eye(4)
OBLIQUE[:3] = np.column_stack([TURN * (0.7, 0.9, 2.5), (12.5, -30.25, 101.0)])
AFFINES = {
    "RAS": np.array([[0.7, 0, 0, -90], [0, 0.9, 0, -126], [0, 0, 2.5, -72], [0, 0, 0, 1]]),
    "LPS": np.array([[-0.7, 0, 0, 90], [0, -0.9, 0, 126], [0, 0, 2.5, -72], [0, 0, 0, 1]]),
    "oblique": OBLIQUE,
}
NUDGE = np.array([[1, 0, 0, 0.05], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
MASK = np.random.default_rng(0).integers(0, 3, SHAPE)


def source(
    affine: np.ndarray, version: int = 1, order: str = "<", codes: tuple[int, int] = (1, 1), axes: int = 3
) -> bytes:
    """A scaled int16 image with all that a mask must not take over, sform and qform by their codes, not quite equal."""
    kind, header_kind = (
        (nibabel.Nifti1Image, nibabel.Nifti1Header) if version == 1 else (nibabel.Nifti2Image, nibabel.Nifti2Header)
    )
    header = header_kind(endianness=order)
    header.set_data_dtype(np.dtype(np.int16).newbyteorder(order))
    header.set_xyzt_units("mm", "sec")
    for name in ("descrip", "aux_file", "intent_name"):
        header[name] = b"DOE^JANE"
    header["cal_max"], header["cal_min"], header["slice_end"], header["toffset"] = 900, -100, 2, 7
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    image = kind(np.arange(60, dtype=np.int16).reshape(SHAPE + (1,) * (axes - 3)), None, header)
    image.header.set_slope_inter(0.5, -3)
    image.header.set_sform(affine @ NUDGE if codes[0] else None, codes[0])
    image.header.set_qform(affine if codes[1] else None, codes[1])
    return image.to_bytes()


def raw_header(content: bytes) -> nibabel.Nifti1Header:
    kind = nibabel.Nifti1Header if content[344:348] == b"n+1\0" else nibabel.Nifti2Header
    size = kind.template_dtype.itemsize
    return kind(content[:size], endianness="<" if content[0] else ">", check=False)


@pytest.mark.parametrize("orientation", AFFINES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 3), (4, 1)])
def test_a_mask_lies_where_its_image_lies(
    tmp_path: Path, orientation: str, order: str, version: int, codes: tuple[int, int]
) -> None:
    (tmp_path / "image.nii").write_bytes(source(AFFINES[orientation], version, order, codes))
    image, target = tmp_path / "image.nii", tmp_path / "mask.nii.gz"
    write_mask_like(target, MASK, image)
    before, after = nibabel.load(image), nibabel.load(target)
    assert type(after) is type(before)
    for get in ("get_sform", "get_qform"):
        (old, old_code), (new, new_code) = (getattr(file, get)(coded=True) for file in (before, after))
        assert new_code == old_code
        np.testing.assert_array_equal(new, old)
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.header.get_zooms() == before.header.get_zooms()
    assert after.header.get_xyzt_units() == ("mm", "sec")
    assert (after.dataobj.slope, after.dataobj.inter, after.get_data_dtype()) == (1, 0, np.uint8)
    assert after.header.get_intent()[0] == "label"
    np.testing.assert_array_equal(np.asarray(after.dataobj), MASK)
    case, mask = read(image), read(target)
    np.testing.assert_array_equal(mask.image[0], MASK)
    np.testing.assert_array_equal(mask.affine, case.affine)
    assert mask.warnings == tuple(warning for warning in case.warnings if warning == "affine_difference")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_bits_of_the_place_are_kept_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, version: int, order: str, data: st.DataObject
) -> None:
    content = bytearray(source(OBLIQUE, version, order))
    fields = raw_header(bytes(content)).template_dtype.fields
    places = {name: slice(fields[name][1], fields[name][1] + fields[name][0].itemsize) for name in fields}
    for name in PLACE:
        size = places[name].stop - places[name].start
        drawn = data.draw(st.binary(min_size=size, max_size=size))
        # In NIfTI-2 the code of the qform is where NIfTI-1 has its magic word.
        content[places[name]] = drawn if drawn != b"n+1\0" else bytes(size)
    target = tmp_path_factory.mktemp("bits") / "mask.nii"
    write_mask_like(target, MASK, bytes(content))
    written = target.read_bytes()
    for name in PLACE:
        assert written[places[name]] == content[places[name]], name
    empty = raw_header(written)
    for name in ("descrip", "aux_file", "intent_name", "cal_max", "cal_min", "slice_end", "toffset"):
        assert not bytes(written[places[name]]).strip(b"\0"), name
    assert int(empty["vox_offset"]) == len(written) - MASK.size
    assert b"DOE" not in written


def test_values_over_255_take_two_bytes_in_the_order_of_the_source(tmp_path: Path) -> None:
    mask = MASK * 400
    for order in "<>":
        write_mask_like(tmp_path / "mask.nii", mask, source(OBLIQUE, order=order))
        after = nibabel.load(tmp_path / "mask.nii")
        assert after.get_data_dtype() == np.dtype(f"{order}u2")
        np.testing.assert_array_equal(np.asarray(after.dataobj), mask)
        np.testing.assert_array_equal(read(tmp_path / "mask.nii").image[0], mask)


def test_a_fourth_axis_goes_or_holds_regions_or_classes(tmp_path: Path) -> None:
    target = tmp_path / "mask.nii.gz"
    write_mask_like(target, MASK == 1, source(OBLIQUE, axes=5))
    assert nibabel.load(target).shape == SHAPE
    regions = np.stack([MASK > 0, MASK > 1])
    write_mask_like(target, regions, source(OBLIQUE))
    np.testing.assert_array_equal(np.asarray(nibabel.load(target).dataobj), np.moveaxis(regions, 0, -1))
    scores = np.random.default_rng(0).random((3, *SHAPE))
    write_probabilities_like(target, scores, source(OBLIQUE, order=">"))
    after = nibabel.load(target)
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.moveaxis(scores, 0, -1).astype(np.float32))
    assert after.header.get_zooms()[3] == 1
    np.testing.assert_array_equal(after.affine, nibabel.Nifti1Image.from_bytes(source(OBLIQUE, order=">")).affine)


def test_a_large_packed_source_is_read_no_further_than_its_header(tmp_path: Path) -> None:
    shape = (64, 64, 64)
    noise = np.random.default_rng(0).integers(0, 1 << 15, shape).astype(np.int16)
    packed = gzip.compress(nibabel.Nifti1Image(noise, OBLIQUE).to_bytes(), 1)
    assert len(packed) > 1 << 17
    (tmp_path / "image.nii.gz").write_bytes(packed[: 1 << 17])
    write_mask_like(tmp_path / "mask.nii.gz", noise > 9, tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "mask.nii.gz").image[0], noise > 9)


def test_the_bytes_depend_on_mask_and_source_alone(tmp_path: Path) -> None:
    for name in "ab":
        write_mask_like(tmp_path / f"{name}.nii.gz", MASK, source(OBLIQUE))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize("mask", [MASK[1:], MASK * 0.5, MASK - 1, MASK * 40_000, MASK[0]])
def test_what_is_no_mask_of_the_source_is_refused(tmp_path: Path, mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"the source is 4 x 5 x 3|a mask holds"):
        write_mask_like(tmp_path / "mask.nii", mask, source(OBLIQUE))
    with pytest.raises(ValueError, match=r"must end in \.nii"):
        write_mask_like(tmp_path / "mask.img", MASK, source(OBLIQUE))
    with pytest.raises(ValueError, match="probabilities are"):
        write_probabilities_like(tmp_path / "mask.nii", MASK, source(OBLIQUE))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (source(OBLIQUE)[:100], "truncated"),
        (gzip.compress(source(OBLIQUE), mtime=0)[:60], "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "unsupported_type"),
    ],
)
def test_a_source_that_is_no_nifti_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    with pytest.raises(InputError) as caught:
        write_mask_like(tmp_path / "mask.nii", MASK, content)
    assert caught.value.code == code
    with pytest.raises(InputError) as caught:
        write_mask_like(tmp_path / "mask.nii", MASK, tmp_path / "none.nii")
    assert caught.value.code == "not_readable"


@pytest.mark.parametrize("top", [1, 255, 256, 65535])
def test_a_flat_mask_comes_back_from_png(tmp_path: Path, top: int) -> None:
    mask = np.random.default_rng(0).integers(0, top, (6, 7), endpoint=True)
    mask[0, 0] = top
    write_mask_png(tmp_path / "mask.png", mask)
    back = read(tmp_path / "mask.png").image[0]
    np.testing.assert_array_equal(back, mask)
    assert back.dtype == narrow(mask).dtype == (np.uint8 if top < 256 else np.uint16)


def test_voxels_are_counted_of_values_and_of_regions() -> None:
    found = voxels_of(MASK[None])
    assert found == {n: int((n == MASK).sum()) for n in (1, 2)}
    assert voxels_of(np.stack([MASK > 0, MASK > 1])) == {1: found[1] + found[2], 2: found[2]}
    assert voxels_of((MASK == 1)[None]) == {1: found[1]}
