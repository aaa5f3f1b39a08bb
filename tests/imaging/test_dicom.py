import contextlib
import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import UID

from medray.imaging.dicom import file as dicom
from medray.imaging.limits import DEFAULT_LIMITS, Limits
from medray.imaging.reader import case_id_of, read, sniff
from medray.types import Case, InputError

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
JPEG, JPEG_12, LOSSLESS, LOSSLESS_1 = (f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 57, 70))
JPEG_LS, JPEG_LS_NEAR, J2K, J2K_LOSSY = (f"1.2.840.10008.1.2.4.{end}" for end in (80, 81, 90, 91))
RLE, MPEG4 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.102"
DRAW = np.random.default_rng(0)
CT = DRAW.integers(0, 4096, (36, 34)).astype(np.uint16)
GREY = DRAW.integers(0, 256, (36, 34)).astype(np.uint8)
COLOUR = DRAW.integers(0, 256, (36, 34, 3)).astype(np.uint8)


def dataset(pixels: np.ndarray | None = CT, syntax: str = EXPLICIT, **elements: Any) -> FileDataset:
    """A CT slice of 12 stored bits in HU; an element set to None is left out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = UID(syntax), UID("1.2.3")
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality, data.PatientID, data.PatientName = "CT", "P1", "ANON"
    data.PixelSpacing, data.ImagePositionPatient = [0.5, 0.75], [1, 2, 3]
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    if pixels is not None:
        data.Rows, data.Columns = pixels.shape[:2]
        data.PixelData = (pixels.byteswap() if syntax == BIG_ENDIAN else pixels).tobytes()
        data["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    return data


def plain(pixels: np.ndarray, **elements: Any) -> FileDataset:
    """8 or 16 bits, grey or colour, of no quantity and no place."""
    bits, colour = 8 * pixels.dtype.itemsize, pixels.ndim == 3 and pixels.shape[-1] == 3
    form: dict[str, Any] = {"Modality": "OT", "RescaleSlope": None, "RescaleIntercept": None, "PixelSpacing": None}
    form |= {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    if pixels.dtype.kind == "i":
        form["PixelRepresentation"] = 1
    if colour:
        form |= {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    return dataset(pixels, **(form | elements))


def content(data: Dataset) -> bytes:
    stream = io.BytesIO()
    dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


def case_of(source: Dataset | bytes, limits: Limits = DEFAULT_LIMITS) -> Case:
    return dicom.read(source if isinstance(source, bytes) else content(source), "a", limits)


def refused(source: Dataset | bytes, limits: Limits = DEFAULT_LIMITS) -> str:
    with pytest.raises(InputError) as caught:
        case_of(source, limits)
    return caught.value.code


def compressed(data: FileDataset, syntax: str, **options: Any) -> FileDataset:
    data.compress(UID(syntax), generate_instance_uid=False, **options)
    return data


def coded(data: FileDataset, syntax: str, *frames: bytes) -> FileDataset:
    data.file_meta.TransferSyntaxUID = UID(syntax)
    data.PixelData = encapsulate(list(frames))
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    return data


def stream_of(data: FileDataset) -> bytes:
    return get_frame(data.PixelData, 0, number_of_frames=1)


def item(**elements: Any) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def test_a_ct_slice_is_read_in_hounsfield_units_with_its_spacing() -> None:
    case = case_of(dataset(PatientSex="F", PatientAge="067Y", Manufacturer="ACME", ManufacturerModelName="One"))
    assert (case.image.shape, case.image.dtype) == ((1, 36, 34), np.int16)
    np.testing.assert_array_equal(case.image[0], CT.astype(int) - 1024)
    assert (case.unit, case.modality, case.subject_id, case.warnings) == ("mm", "CT", "P1", ())
    np.testing.assert_array_equal(case.affine, np.diag([0.5, 0.75, 1, 1]))
    assert case.attributes == {"sex": "F", "age_band": "60-69", "scanner": "ACME One"}


@pytest.mark.parametrize("syntax", [IMPLICIT, DEFLATED, BIG_ENDIAN, RLE, J2K, JPEG_LS])
@pytest.mark.parametrize("signed", [False, True])
def test_every_lossless_syntax_reads_equal(syntax: str, signed: bool) -> None:
    pixels = (CT.astype(int) - 2048 * signed).astype(np.int16 if signed else np.uint16)
    form = {"PixelRepresentation": int(signed)}
    if syntax in (RLE, J2K, JPEG_LS):
        case = case_of(compressed(dataset(pixels, **form), syntax))
    else:
        case = case_of(dataset(pixels, syntax, **form))
    assert case.image.dtype.isnative
    np.testing.assert_array_equal(case.image, case_of(dataset(pixels, **form)).image)


@pytest.mark.parametrize("syntax", [LOSSLESS, LOSSLESS_1])
def test_lossless_jpeg_reads_equal(tmp_path: Path, syntax: str) -> None:
    import gdcm

    (tmp_path / "a").write_bytes(content(dataset()))
    reader, writer, change = gdcm.ImageReader(), gdcm.ImageWriter(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(tmp_path / "a"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "b"))
    assert writer.Write()
    np.testing.assert_array_equal(case_of((tmp_path / "b").read_bytes()).image, case_of(dataset()).image)


@pytest.mark.parametrize(("syntax", "options"), [(JPEG_LS_NEAR, {"jls_error": 2}), (J2K_LOSSY, {"j2k_psnr": [80]})])
def test_lossy_syntaxes_read_nearly_equal(syntax: str, options: dict[str, Any]) -> None:
    case = case_of(compressed(dataset(), syntax, **options))
    np.testing.assert_allclose(case.image, case_of(dataset()).image, atol=3)


def test_jpeg_in_colour_is_what_pillow_sees() -> None:
    smooth = np.indices((16, 24)).sum(0)[..., None] * np.array([2, 5, 1])
    stream = io.BytesIO()
    Image.fromarray((smooth % 256).astype(np.uint8)).save(stream, "JPEG", quality=90)
    data = plain(np.zeros((16, 24, 3), np.uint8), PhotometricInterpretation="YBR_FULL_422")
    seen = np.moveaxis(np.asarray(Image.open(stream)), -1, 0)
    np.testing.assert_array_equal(case_of(coded(data, JPEG, stream.getvalue())).image, seen)
    start = 4 + int.from_bytes(stream.getvalue()[4:6], "big")
    bare = b"\xff\xd8" + stream.getvalue()[start:]
    assert b"JFIF" not in bare
    np.testing.assert_array_equal(case_of(coded(data, JPEG, bare)).image, seen)
    data.PhotometricInterpretation = "RGB"
    untouched = case_of(coded(data, JPEG, bare)).image
    ycc = np.moveaxis(np.asarray(Image.open(stream).convert("YCbCr")), -1, 0)
    np.testing.assert_allclose(untouched.astype(int), ycc, atol=3)
    damaged = stream.getvalue()[:-60] + bytes(58) + b"\xff\xd9"
    assert refused(coded(data, JPEG, damaged)) == "corrupt"


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE, J2K, JPEG_LS])
def test_colour_keeps_its_channels_and_grey_colour_is_grey(syntax: str) -> None:
    for pixels in (COLOUR, np.repeat(GREY[..., None], 3, -1)):
        data = plain(pixels)
        case = case_of(data if syntax == EXPLICIT else compressed(data, syntax))
        expected = np.moveaxis(pixels, -1, 0) if pixels is COLOUR else GREY[None]
        np.testing.assert_array_equal(case.image, expected)


def test_planar_configuration_and_ybr() -> None:
    planes = plain(COLOUR, PlanarConfiguration=1, PixelData=np.moveaxis(COLOUR, -1, 0).tobytes())
    np.testing.assert_array_equal(case_of(planes).image, np.moveaxis(COLOUR, -1, 0))
    ybr = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    case = case_of(plain(ybr, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_allclose(case.image.astype(int), np.moveaxis(COLOUR, -1, 0), atol=3)
    halved = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], -1)
    case = case_of(plain(ybr, PhotometricInterpretation="YBR_FULL_422", PixelData=halved.tobytes()))
    seen = case_of(
        plain(
            np.concatenate([ybr[..., :1], np.repeat(ybr[:, ::2, 1:], 2, 1)], -1), PhotometricInterpretation="YBR_FULL"
        )
    )
    np.testing.assert_array_equal(case.image, seen.image)


def test_a_palette_is_applied() -> None:
    data = plain(GREY, PhotometricInterpretation="PALETTE COLOR")
    for colour, table in zip(("Red", "Green", "Blue"), np.arange(3 * 256, dtype=np.uint16).reshape(3, -1), strict=True):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(data, f"{colour}PaletteColorLookupTableData", table.tobytes())
    np.testing.assert_array_equal(case_of(data).image, np.stack([GREY + np.uint16(256 * step) for step in range(3)]))


def test_bits_that_are_not_stored_are_masked_and_signs_extended() -> None:
    np.testing.assert_array_equal(case_of(dataset(CT | 0xA000)).image, case_of(dataset()).image)
    case = case_of(dataset(CT, PixelRepresentation=1, Modality="MR", RescaleIntercept=0))
    np.testing.assert_array_equal(case.image[0], np.where(CT > 2047, CT.astype(int) - 4096, CT))


def test_monochrome1_equals_its_monochrome2_copy_but_quantities_keep_their_values() -> None:
    form = {"Modality": "DX", "RescaleIntercept": 0, "PhotometricInterpretation": "MONOCHROME1"}
    np.testing.assert_array_equal(case_of(dataset(4095 - CT, **form)).image[0], CT)
    signed = (CT.astype(int) - 2048).astype(np.int16)
    np.testing.assert_array_equal(case_of(dataset(~signed, **form, PixelRepresentation=1)).image[0], signed)
    case = case_of(dataset(PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(case.image, case_of(dataset()).image)


@pytest.mark.parametrize(
    ("slope", "intercept", "kind"), [(1, 0, "u2"), (1, -1024, "i2"), (1, 40_000, "i4"), (0.5, 0, "f4"), (1, 0.5, "f4")]
)
def test_a_rescale_keeps_integers_where_it_can(slope: float, intercept: float, kind: str) -> None:
    case = case_of(dataset(RescaleSlope=slope, RescaleIntercept=intercept))
    assert case.image.dtype == kind
    np.testing.assert_array_equal(case.image[0], CT.astype(float) * slope + intercept)


def test_a_rescale_is_asked_of_ct_and_pt_alone() -> None:
    for modality in ("CT", "PT"):
        assert refused(dataset(Modality=modality, RescaleSlope=None, RescaleIntercept=None)) == "missing_rescale"
    for modality in ("MR", "US", "DX"):
        case = case_of(dataset(Modality=modality, RescaleSlope=None, RescaleIntercept=None))
        np.testing.assert_array_equal(case.image[0], CT)
        assert refused(dataset(Modality=modality, RescaleSlope=None)) == "bad_rescale"
        assert refused(dataset(Modality=modality, RescaleSlope=2, RescaleIntercept=None)) == "bad_rescale"
    assert refused(dataset(RescaleSlope=0)) == "bad_rescale"
    assert refused(content(dataset(RescaleSlope="1.25")).replace(b"1.25", b"1e99")) == "non_finite_voxels"
    assert refused(content(dataset(RescaleSlope="1.25")).replace(b"1.25", b"nan ")) == "bad_rescale"


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("kind", ["US", "OW"])
def test_the_modality_lut_is_applied_and_clamped(syntax: str, kind: str) -> None:
    lut = item(LUTDescriptor=[256, 1000, 16], ModalityLUTType="HU")
    table = np.arange(256, dtype=np.uint16) * 3
    lut.add_new("LUTData", kind, table.tolist() if kind == "US" else table.tobytes())
    lut["LUTDescriptor"].VR = "US"
    data = dataset(CT, syntax, RescaleSlope=None, RescaleIntercept=None, ModalityLUTSequence=[lut])
    np.testing.assert_array_equal(case_of(data).image[0], table[np.clip(CT.astype(int) - 1000, 0, 255)])
    data.ModalityLUTSequence[0].LUTDescriptor = [300, 1000, 16]
    assert refused(data) == "bad_header"


def test_each_frame_has_its_own_rescale() -> None:
    stack = np.stack([CT, CT, CT])
    own = [item(PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=step)]) for step in (0, -5, -9)]
    data = dataset(None, Rows=36, Columns=34, NumberOfFrames=3, PixelData=stack.tobytes(), RescaleSlope=None)
    data["PixelData"].VR = "OW"
    data.PerFrameFunctionalGroupsSequence = own
    frames = dicom.frames(dicom.parse(content(data), DEFAULT_LIMITS), DEFAULT_LIMITS)
    assert frames.dtype.kind == "i"
    np.testing.assert_array_equal(frames, stack.astype(int) + np.array([0, -5, -9])[:, None, None])
    assert refused(data) == "multi_frame"
    del data.PerFrameFunctionalGroupsSequence
    assert refused(data) == "missing_rescale"
    data.SharedFunctionalGroupsSequence = own[1:2]
    frames = dicom.frames(dicom.parse(content(data), DEFAULT_LIMITS), DEFAULT_LIMITS)
    np.testing.assert_array_equal(frames, stack.astype(int) - 5)
    data.SharedFunctionalGroupsSequence = [
        item(PixelValueTransformationSequence=[item(RescaleSlope=0.5, RescaleIntercept=0)])
    ]
    assert dicom.frames(data, DEFAULT_LIMITS).dtype == np.float32


def test_compressed_frames_must_be_as_many_as_announced() -> None:
    streams = [stream_of(compressed(plain(np.roll(GREY, step)), J2K)) for step in range(3)]
    data = coded(plain(GREY, NumberOfFrames=3), J2K, *streams)
    frames = dicom.frames(dicom.parse(content(data), DEFAULT_LIMITS), DEFAULT_LIMITS)
    np.testing.assert_array_equal(frames, [np.roll(GREY, step) for step in range(3)])
    for announced, code in ((4, "truncated"), (2, "corrupt")):
        data.NumberOfFrames = announced
        assert refused(data) == code


def test_floating_pixels() -> None:
    for keyword, kind in (("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")):
        bits = 8 * np.dtype(kind).itemsize
        values = DRAW.normal(size=(36, 34)).astype(kind)
        data = plain(
            GREY, PixelData=None, BitsAllocated=bits, BitsStored=None, HighBit=None, **{keyword: values.tobytes()}
        )
        case = case_of(data)
        assert case.image.dtype == np.float32
        np.testing.assert_array_equal(case.image[0], values.astype(np.float32))
        values[3, 3] = np.nan
        setattr(data, keyword, values.tobytes())
        assert refused(data) == "non_finite_voxels"


def test_one_bit_and_32_bit_pixels() -> None:
    mask = GREY > 99
    data = plain(
        GREY, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=np.packbits(mask, bitorder="little").tobytes()
    )
    np.testing.assert_array_equal(case_of(data).image[0], mask)
    wide = CT.astype(np.uint32) * 1000
    np.testing.assert_array_equal(case_of(plain(wide)).image[0], wide)


def test_spacing_comes_from_where_the_modality_writes_it() -> None:
    region = {
        "PhysicalUnitsXDirection": 3,
        "PhysicalUnitsYDirection": 3,
        "PhysicalDeltaX": 0.02,
        "PhysicalDeltaY": -0.01,
    }
    regions = [item(**region), item(**region)]
    assert case_of(plain(GREY, ImagerPixelSpacing=[0.1, 0.2])).spacing == (0.1, 0.2)
    assert case_of(plain(GREY, ImagerPixelSpacing=[0.1, 0.2], PixelSpacing=[0.3, 0.4])).spacing == (0.3, 0.4)
    calibrated = case_of(plain(GREY, SequenceOfUltrasoundRegions=regions))
    assert (calibrated.unit, calibrated.spacing) == ("mm", (0.1, 0.2))
    shared = [item(PixelMeasuresSequence=[item(PixelSpacing=[2, 3])])]
    assert case_of(plain(GREY, SharedFunctionalGroupsSequence=shared)).spacing == (2, 3)
    regions[1].PhysicalDeltaX = 0.03
    for data in (plain(GREY), plain(GREY, SequenceOfUltrasoundRegions=regions)):
        assert (case_of(data).unit, case_of(data).spacing) == ("px", (1, 1))
    for modality in ("CT", "MR", "PT"):
        assert refused(dataset(Modality=modality, PixelSpacing=None)) == "missing_geometry"
        assert refused(dataset(Modality=modality, ImagePositionPatient=None)) == "missing_geometry"
    assert refused(dataset(PixelSpacing=[0, 1])) == "bad_header"


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        ({"Rows": None}, "bad_header"),
        ({"Rows": 0}, "empty_image"),
        ({"Rows": 37}, "truncated"),
        ({"Rows": 35}, "trailing_data"),
        ({"Columns": 5}, "trailing_data"),
        ({"Rows": 65535, "Columns": 65535}, "too_many_pixels"),
        ({"NumberOfFrames": 2_000_000_000}, "too_many_pixels"),
        ({"NumberOfFrames": 0}, "bad_header"),
        ({"NumberOfFrames": 2}, "truncated"),
        ({"SamplesPerPixel": 3}, "bad_header"),
        ({"PhotometricInterpretation": "RGB"}, "bad_header"),
        ({"PhotometricInterpretation": None}, "bad_header"),
        ({"PhotometricInterpretation": "CMYK"}, "unsupported_colour"),
        ({"BitsAllocated": 12}, "unsupported_dtype"),
        ({"BitsAllocated": 8}, "bad_header"),
        ({"BitsAllocated": None}, "bad_header"),
        ({"BitsStored": 17, "HighBit": 16}, "bad_header"),
        ({"BitsStored": 0}, "bad_header"),
        ({"HighBit": 15}, "bad_header"),
        ({"PixelRepresentation": 2}, "bad_header"),
        ({"PixelRepresentation": None}, "bad_header"),
        ({"PixelData": None}, "no_pixel_data"),
        ({"PixelSpacing": [1, 1, 1]}, "bad_header"),
        ({"ImagePositionPatient": [1, 1]}, "bad_header"),
        ({"ImageOrientationPatient": [1] * 5}, "bad_header"),
    ],
)
def test_a_header_that_cannot_be_is_refused(elements: dict[str, Any], code: str) -> None:
    assert refused(dataset(**elements)) == code


@pytest.mark.parametrize(
    ("good", "bad", "code"),
    [
        (b"0.5\\0.75", b"abc\\0.75", "bad_header"),
        (b"12.5", b"inf ", "bad_header"),
        (b"1.25", b"nan ", "bad_rescale"),
        (b"1.25", b"0x10", "bad_rescale"),
    ],
)
def test_what_is_no_number_is_refused_before_anyone_asks_for_it(good: bytes, bad: bytes, code: str) -> None:
    raw = content(dataset(SpacingBetweenSlices="12.5", RescaleSlope="1.25"))
    assert good in raw
    with pytest.raises(InputError) as caught:
        dicom.parse_header(raw.replace(good, bad), DEFAULT_LIMITS)
    assert caught.value.code == code


def test_zeros_may_fill_a_block_and_are_warned_of() -> None:
    data = dataset()
    data.PixelData += bytes(20)
    assert case_of(data).warnings == ("padded_pixels",)
    for extra in (b"\1" + bytes(19), bytes(70)):
        data.PixelData = CT.tobytes() + extra
        assert refused(data) == "trailing_data"


def test_sizes_are_checked_against_the_limits_before_memory_is_taken() -> None:
    assert refused(dataset(), Limits(max_pixels=100)) == "too_many_pixels"
    assert refused(dataset(), Limits(max_decompressed_bytes=100)) == "too_large_decompressed"
    assert refused(dataset(), Limits(max_file_bytes=100)) == "too_large"
    for data, size in ((dataset(), 4), (plain(COLOUR), 3), (plain(GREY, PhotometricInterpretation="PALETTE COLOR"), 6)):
        assert refused(data, Limits(max_decompressed_bytes=36 * 34 * size - 1)) == "too_large_decompressed"
    case_of(dataset(), Limits(max_decompressed_bytes=36 * 34 * 4))
    assert refused(b"") == "empty_file"


def test_every_truncation_is_seen() -> None:
    item_of_text = item(CodeValue="1", CodeMeaning="a")
    data = compressed(dataset(ProcedureCodeSequence=[item_of_text]), J2K)
    data["ProcedureCodeSequence"].is_undefined_length = True
    for raw in (content(data), content(dataset(syntax=DEFLATED))):
        codes = {refused(raw[:end]) for end in range(140, len(raw) - 1)}
        # A file may end between two elements: then what is missing is named instead.
        assert codes <= {"truncated", "bad_header", "no_pixel_data"}, codes
        assert "truncated" in codes


def test_a_code_stream_must_have_the_announced_size_and_its_end() -> None:
    data = compressed(dataset(), J2K)
    data.Rows = 18
    assert refused(data) == "corrupt"
    for syntax in (J2K, JPEG_LS):
        data = compressed(dataset(), syntax)
        stream = stream_of(data)
        assert refused(coded(data, syntax, stream[: len(stream) // 2])) == "truncated"
    data = compressed(dataset(), RLE)
    assert refused(coded(data, RLE, b"\1" + stream_of(data)[1:])) == "corrupt"
    assert refused(coded(data, RLE, stream_of(compressed(dataset(), RLE))[:90])) == "corrupt"
    assert refused(coded(data, JPEG, b"\xff\xd8\xff\xda" + bytes(20) + b"\xff\xd9")) == "corrupt"


def test_transfer_syntaxes_without_a_decoder_are_refused() -> None:
    assert refused(coded(dataset(), MPEG4, bytes(64))) == "unsupported_transfer_syntax"
    with pytest.raises(InputError, match="gpl-jpeg") as caught:
        case_of(coded(dataset(), JPEG_12, bytes(64)))
    assert caught.value.code == "unsupported_transfer_syntax"
    raw = content(dataset())
    assert refused(raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2\0\0")) == "unsupported_transfer_syntax"
    start = raw.index(b"\2\0\x10\0UI")
    assert refused(raw[:start] + raw[start + 28 :]) == "bad_header"


@pytest.mark.parametrize("start", [b"MZ", b"\x7fELF", b"#!/bin/sh", b"PK\3\4", b" <html>", b"%PDF"])
def test_a_preamble_of_another_format_is_refused(start: bytes) -> None:
    raw = content(dataset())
    assert refused(start + raw[len(start) :]) == "suspicious_preamble"


def test_a_preamble_of_tiff_is_legal() -> None:
    raw = content(dataset())
    assert case_of(b"II*\0" + raw[4:]).warnings == ()
    assert refused(raw[:128] + b"MCID" + raw[132:]) == "unsupported_type"


def nested(depth: int) -> bytes:
    raw = content(dataset())
    at = raw.rfind(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OW"))
    head = struct.pack("<HH2sHI", 0x40, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    tail = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return raw[:at] + head * depth + tail * depth + raw[at:]


def test_nested_sequences_are_read_or_refused_at_once() -> None:
    assert case_of(nested(20)).image.shape == (1, 36, 34)
    begin = time.perf_counter()
    assert refused(nested(20_000)) == "corrupt"
    assert time.perf_counter() - begin < 1
    assert refused(nested(3)[:-300].replace(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), bytes(0))) in (
        "truncated",
        "corrupt",
    )


def test_a_deflated_file_is_inflated_no_further_than_it_announces() -> None:
    raw = content(dataset(syntax=DEFLATED))
    start = 132 + 12 + struct.unpack_from("<I", raw, 140)[0]
    body = zlib.decompress(raw[start:], -15)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (
        packer.compress(body + struct.pack("<HH2sHI", 0xFFFD, 0x10, b"OB", 0, 4 << 20) + bytes(4 << 20))
        + packer.flush()
    )
    assert refused(raw[:start] + bomb) == "too_large_decompressed"
    assert refused(raw[:start] + b"\xff" * 99) == "corrupt"
    assert dicom.parse_header(raw[: start + len(raw[start:]) - 40], DEFAULT_LIMITS).Rows == 36


def test_the_header_alone_needs_no_pixels() -> None:
    raw = content(dataset())
    data = dicom.parse_header(raw[: -CT.nbytes + 10], DEFAULT_LIMITS)
    assert (data.Rows, "PixelData" in data, data.file_meta.TransferSyntaxUID) == (36, False, EXPLICIT)
    assert dicom.parse(content(dataset(None)), DEFAULT_LIMITS).Modality == "CT"


@pytest.mark.parametrize(
    ("elements", "told"),
    [
        ({}, False),
        ({"PatientName": "P1"}, False),
        ({"PatientName": "Anonymous^"}, False),
        ({"PatientName": "SUBJ-007"}, False),
        ({"PatientName": "DOE^JANE"}, True),
        ({"PatientName": "DOE^JANE2"}, True),
        ({"PatientName": "DOE^JANE", "PatientIdentityRemoved": "YES"}, False),
        ({"BurnedInAnnotation": "YES", "PatientIdentityRemoved": "YES"}, True),
        ({"PatientBirthDate": "19500102"}, True),
        ({"ReferringPhysicianName": "SMITH^BOB"}, True),
        ({"StudyDate": "20240102", "Manufacturer": "ACME", "StationName": "CT1"}, False),
    ],
)
def test_a_header_that_names_the_patient_is_warned_of(elements: dict[str, Any], told: bool) -> None:
    assert case_of(dataset(**elements)).warnings == ("phi_in_header",) * told


def test_age_is_a_decade() -> None:
    ages = {"005D": "0-9", "119M": "0-9", "099Y": "90+", "abc": "", "999Y": ""}
    for age, band in ages.items():
        raw = content(dataset(PatientAge="111Y")).replace(b"111Y", age.ljust(4).encode())
        assert case_of(raw).attributes.get("age_band", "") == band, age
    case = case_of(dataset(PatientBirthDate="19500302", StudyDate="20200301"))
    assert case.attributes == {"age_band": "60-69"}


def test_a_flipped_sign_is_warned_of_and_a_padded_circle_is_not() -> None:
    flipped = DRAW.integers(2048, 4096, (36, 34)).astype(np.uint16)
    assert case_of(dataset(flipped, PixelRepresentation=1)).warnings == ("implausible_intensity",)
    body = DRAW.integers(-1000, 900, (36, 34)).astype(np.int16)
    body[:4] = -2000
    form = {"PixelRepresentation": 1, "RescaleIntercept": 0, "BitsStored": 16, "HighBit": 15}
    assert case_of(dataset(body, **form)).warnings == ()
    assert case_of(dataset(body, **form, Modality="MR")).warnings == ()
    assert case_of(dataset(body, **(form | {"PixelRepresentation": 0}))).warnings == ("implausible_intensity",)
    assert case_of(dataset(CT * 0)).warnings == ("constant_image",)


def test_messages_hold_no_values_of_the_patient(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = content(dataset(PatientName="CANARY^JANE", PatientID="CANARY", StudyDescription="CANARY", Rows=37))
    said: list[str] = []
    for start in range(132, len(raw) - CT.nbytes, 7):
        broken = bytearray(raw)
        broken[start] ^= 0x20
        try:
            case_of(bytes(broken))
        except InputError as error:
            said.append(str(error))
    spoken = capsys.readouterr()
    assert "CANARY" not in "".join(said) + caplog.text + spoken.out + spoken.err


FUZZED = [content(dataset()), content(compressed(dataset(), J2K)), content(compressed(plain(COLOUR), RLE))]


@settings(deadline=1000, max_examples=400, derandomize=True)
@given(
    raw=st.sampled_from(FUZZED),
    bits=st.lists(st.integers(132 * 8, 900 * 8) | st.integers(132 * 8, 5000 * 8), max_size=3),
    keep=st.floats(0.02, 1),
    cut=st.booleans(),
)
def test_damage_raises_nothing_but_input_error(raw: bytes, bits: list[int], keep: float, cut: bool) -> None:
    damaged = bytearray(raw)
    for bit in bits:
        damaged[bit // 8 % len(raw)] ^= 1 << bit % 8
    with contextlib.suppress(InputError):
        case = case_of(bytes(damaged[: int(keep * len(raw))] if cut else damaged), Limits(max_voxels=10**6))
        assert case.image.shape[1:] == (36, 34)
        assert np.isfinite(case.image).all()


def test_the_reader_knows_dicom_by_its_word_and_leaves_uids_whole() -> None:
    assert sniff(content(dataset())[:352]) == "dicom"
    assert sniff(b"PK\3\4" + bytes(400)) == sniff(b"PK\5\6" + bytes(18)) == "archive"
    assert sniff(bytes(257) + b"ustar\0" + bytes(100)) == "archive"
    assert case_id_of(Path("1.2.840.5")) == "1.2.840.5"
    assert case_id_of(Path("IM1.dcm")) == case_id_of(Path("IM1")) == "IM1"


def test_any_name_is_a_name_for_dicom_but_that_of_another_format(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.fromarray(GREY).save(png, "PNG")
    np.savez(tmp_path / "a.npz", GREY)
    with pytest.raises(InputError, match="several arrays"):
        read(tmp_path / "a.npz")
    raw = content(dataset())
    for name, source, warned in (
        ("IM1", raw, ()),
        ("1.2.3", raw, ()),
        ("a.dcm", raw, ()),
        ("a.png", raw, ("extension_mismatch",)),
        ("b.dcm", png.getvalue(), ("extension_mismatch",)),
    ):
        (tmp_path / name).write_bytes(source)
        case = read(tmp_path / name)
        assert (case.case_id, case.warnings) == (name.removesuffix(".dcm").removesuffix(".png"), warned)
        assert case.image.shape == (1, 36, 34)


def test_bytes_in_big_endian_words_are_swapped() -> None:
    data = plain(GREY)
    data.file_meta.TransferSyntaxUID = UID(BIG_ENDIAN)
    for kind, stored in (("OB", GREY.tobytes()), ("OW", np.frombuffer(GREY.tobytes(), "<u2").astype(">u2").tobytes())):
        data.PixelData = stored
        data["PixelData"].VR = kind
        np.testing.assert_array_equal(case_of(data).image[0], GREY)


def test_real_files(shared_data: Path) -> None:
    folder = shared_data / "dicom" / "pydicom_test_files"
    expected = {
        "ExplVR_BigEndNoMeta": "unsupported_type",
        "no_meta": "unsupported_type",
        "rtstruct": "unsupported_type",
        "JPEG-lossy": "unsupported_transfer_syntax",
        "JPGExtended": "unsupported_transfer_syntax",
        "MR_truncated": "truncated",
        "badVR": "bad_header",
        "meta_missing_tsyntax": "bad_header",
        "nested_priv_SQ": "bad_header",
        "empty_charset_LEI": "no_pixel_data",
        "rtplan": "no_pixel_data",
        "rtdose": "multi_frame",
    }
    reference = case_of((folder / "MR_small.dcm").read_bytes()).image
    for file in sorted(folder.iterdir()):
        if file.stem in expected:
            assert refused(file.read_bytes()) == expected[file.stem], file.stem
            continue
        case = case_of(file.read_bytes())
        if file.stem.startswith("MR_small"):
            np.testing.assert_array_equal(case.image, reference)
