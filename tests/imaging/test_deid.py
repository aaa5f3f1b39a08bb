"""De-identification: nothing of the person comes through, nothing of the image is lost, and the pieces still fit."""

from __future__ import annotations

import csv
import io
import json
import logging
import stat
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from medray import cli
from medray.config import ConfigError
from medray.console import answer
from medray.imaging.deid import dicom as deid_dicom
from medray.imaging.deid import keyed
from medray.imaging.deid import plain as deid_plain
from medray.imaging.deid.canaries import Canaries
from medray.imaging.deid.keyed import load_key, new_uid, pseudonym, shift_days
from medray.imaging.deid.tree import DeidReport, deidentify
from medray.imaging.deid.types import Profile
from medray.imaging.limits import DEFAULT_LIMITS
from medray.types import InputError

KEY = bytes(range(32))
PROFILE = Profile(KEY)
SECRETS = [
    "DOE",
    "JANE",
    "Mayer",
    "MRN0012345",
    "19500102",
    "General Hospital",
    "SMITH",
    "ACC778899",
    "555-0100",
    "Elm",
]


def scan(**changes: Any) -> FileDataset:
    """A CT slice with a person all over it: standard, private, nested, in the meta header and in an overlay."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = changes.pop("syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3.4"
    meta.SourceApplicationEntityTitle = "MRN0012345"
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"MZ" + bytes(126))
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.9"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate = "MRN0012345", "DOE^JANE", "19500102"
    ds.StudyDate, ds.SeriesDate, ds.AcquisitionDate = "20240102", "20240102", "20240103"
    ds.AcquisitionDateTime, ds.StudyTime = "20240103101500.5", "101500"
    ds.InstitutionName, ds.ReferringPhysicianName = "General Hospital", "SMITH^BOB"
    ds.AccessionNumber, ds.PatientAddress = "ACC778899", "12 Elm Street"
    ds.StudyDescription, ds.Modality, ds.BodyPartExamined = "knee of Ms Mayer", "CT", "KNEE"
    ds.SegmentedPropertyTypeCodeSequence = Sequence([code("T-62000", "Liver")])
    inner = Dataset()
    inner.PatientName, inner.OperatorsName = "DOE^JANE", "SMITH^BOB"
    inner.ReferencedSOPInstanceUID, inner.ReferencedSOPClassUID = "1.2.3.5", CTImageStorage
    inner.private_block(0x0029, "ACME 1.0", create=True).add_new(0x10, "LO", "DOE JANE 555-0100")
    ds.ReferencedInstanceSequence = Sequence([inner])
    ds.private_block(0x0029, "ACME 1.0", create=True).add_new(0x10, "LO", "DOE JANE 555-0100")
    ds.add_new(0x60000022, "LO", "DOE JANE")
    ds.add_new(0x60003000, "OW", b"DOE^JANE")
    ds.add_new(0x00101013, "UN", b"DOE^JANE")
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 4, 6, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.PixelSpacing = [0.8, 0.8]
    ds.PixelData = np.arange(24, dtype=np.uint16).tobytes()
    ds["PixelData"].VR = "OW"
    with warnings.catch_warnings():
        # Some tests spell a value as the standard does not.
        warnings.simplefilter("ignore")
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    return ds


def code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SRT", meaning
    return item


def as_bytes(ds: FileDataset) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def nested(depth: int) -> bytes:
    """A file whose sequences lie in each other."""
    head = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    tail = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    before, mark, after = as_bytes(scan()).partition(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OW"))
    return before + head * depth + tail * depth + mark + after


def clean(profile: Profile = PROFILE, **changes: Any) -> tuple[bytes, Dataset]:
    """Bytes and data set of the cleaned slice."""
    cleaned = deid_dicom.deidentify(as_bytes(scan(**changes)), profile, DEFAULT_LIMITS)
    assert cleaned.verify(cleaned.content) == ""
    return cleaned.content, pydicom.dcmread(io.BytesIO(cleaned.content))


def run_tree(source: Path, target: Path, profile: Profile = PROFILE) -> DeidReport:
    return deidentify(source, target, profile)


def test_nothing_of_the_person_is_in_the_bytes() -> None:
    content, ds = clean()
    assert not [secret for secret in SECRETS if secret.lower().encode() in content.lower()]
    assert content[:128] == bytes(128)
    assert not [element.tag for element in ds.iterall() if element.tag.is_private or element.tag.group >> 8 == 0x60]
    assert "Mayer" not in str(ds)
    assert ds.PatientID == str(ds.PatientName) == pseudonym("MRN0012345", KEY)
    assert ds.PixelData == scan().PixelData
    assert ds.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver", "what a thing is stays"
    assert (ds.BodyPartExamined, ds.RescaleIntercept, list(ds.PixelSpacing)) == ("KNEE", -1024, [0.8, 0.8])


def test_it_says_what_was_done() -> None:
    _, ds = clean()
    assert (ds.PatientIdentityRemoved, ds.LongitudinalTemporalInformationModified) == ("YES", "REMOVED")
    assert [item.CodeValue for item in ds.DeidentificationMethodCodeSequence] == ["113100"]
    assert (ds.StudyDate, ds.AcquisitionDate, ds.PatientBirthDate) == ("", "", "")
    assert "SeriesDate" not in ds


def test_uids_are_keyed_and_fit_together() -> None:
    _, ds = clean()
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID == new_uid("1.2.3.4", KEY)
    assert ds.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == new_uid("1.2.3.5", KEY)
    assert ds.ReferencedInstanceSequence[0].ReferencedSOPClassUID == ds.SOPClassUID == CTImageStorage
    assert ds.SeriesInstanceUID == new_uid("1.2.3.1", KEY)
    assert ds.SeriesInstanceUID.startswith("2.25.")
    assert ds.SeriesInstanceUID.is_valid
    assert new_uid("1.2.3.1", bytes(32)) != ds.SeriesInstanceUID, "nobody without the key can try"


def test_dates_shift_together_and_the_shift_is_not_given_away() -> None:
    shifted = Profile(KEY, "shift")
    _, ds = clean(shifted, DateOfManufacture="20150101")
    moved = {"StudyDate": "20240102", "AcquisitionDate": "20240103", "AcquisitionDateTime": "20240103"}
    days = {_days(str(ds[keyword].value)[:8]) - _days(old) for keyword, old in moved.items()}
    assert days == {shift_days("MRN0012345", KEY)}
    assert -3650 <= days.pop() < 0
    assert str(ds.AcquisitionDateTime).endswith("101500.5")
    assert ds.StudyTime == "101500"
    assert ds.PatientBirthDate == ""
    assert "DateOfManufacture" not in ds, "a date that others know would tell the shift"
    assert ds.LongitudinalTemporalInformationModified == "MODIFIED"
    assert [item.CodeValue for item in ds.DeidentificationMethodCodeSequence] == ["113100", "113107"]
    assert shift_days("another", KEY) != shift_days("MRN0012345", KEY)


def _days(text: str) -> int:
    return (np.datetime64(f"{text[:4]}-{text[4:6]}-{text[6:]}") - np.datetime64("1970-01-01")).astype(int)


def test_a_structured_report_loses_its_words() -> None:
    item = Dataset()
    item.TextValue, item.ValueType, item.PersonName = "Ms Mayer has a cyst", "TEXT", "DOE^JANE"
    item.ConceptNameCodeSequence = Sequence([code("121071", "Finding of Mayer")])
    content, ds = clean(ContentSequence=Sequence([item]))
    assert b"Mayer" not in content
    assert b"cyst" not in content
    assert ds.ContentSequence[0].ValueType == "TEXT"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("ManufacturerModelName", "Scanner of DOE JANE"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "JANE"]),
        ("SeriesNumber", "19500102"),
        ("SoftwareVersions", "called ACC778899"),
    ],
)
def test_a_kept_attribute_that_repeats_the_person_is_emptied(keyword: str, value: Any) -> None:
    cleaned = deid_dicom.deidentify(as_bytes(scan(**{keyword: value})), PROFILE, DEFAULT_LIMITS)
    assert "text_emptied" in cleaned.warnings
    assert not pydicom.dcmread(io.BytesIO(cleaned.content))[keyword].value


@pytest.mark.parametrize(
    "changes",
    [
        {"BurnedInAnnotation": "YES"},
        {"Modality": "US"},
        {"Modality": "us"},
        {"Modality": ["CT", "US"]},
        {"BurnedInAnnotation": "yes"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"ConversionType": "DF"},
        {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
    ],
)
def test_pixels_that_may_show_a_name_are_refused_unless_allowed(changes: dict[str, Any]) -> None:
    content = as_bytes(scan(**changes))
    with pytest.raises(InputError) as caught:
        deid_dicom.deidentify(content, PROFILE, DEFAULT_LIMITS)
    assert caught.value.code == "burned_in"
    assert "burned_in" in deid_dicom.deidentify(content, Profile(KEY, allow_burned_in=True), DEFAULT_LIMITS).warnings


@pytest.mark.parametrize(
    ("changes", "face"),
    [
        ({"BodyPartExamined": "HEAD"}, True),
        ({"StudyDescription": "MRI brain", "Modality": "MR"}, True),
        ({"RecognizableVisualFeatures": "YES"}, True),
        ({"BodyPartExamined": "HEAD", "Modality": "DX"}, False),
        ({}, False),
    ],
)
def test_heads_are_warned_of(changes: dict[str, Any], face: bool) -> None:
    cleaned = deid_dicom.deidentify(as_bytes(scan(**changes)), PROFILE, DEFAULT_LIMITS)
    assert ("face_visible" in cleaned.warnings) is face


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (as_bytes(scan())[:-20], "truncated"),
        (as_bytes(scan(SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1")), "unsupported_type"),
        (as_bytes(scan(PixelData=bytes(10_000_000), syntax=DeflatedExplicitVRLittleEndian)), "too_large_decompressed"),
        (nested(3000), "corrupt"),
        (as_bytes(scan())[:200], "truncated"),
        (as_bytes(scan(HighBit=15)), "bad_header"),
    ],
)
def test_what_cannot_be_cleaned_is_refused(content: bytes, wanted: str) -> None:
    with pytest.raises(InputError) as caught:
        deid_dicom.deidentify(content, PROFILE, DEFAULT_LIMITS)
    assert caught.value.code == wanted


def test_a_bomb_is_found_where_the_meta_information_does_not_say_its_length() -> None:
    content = as_bytes(scan(PixelData=bytes(10_000_000), syntax=DeflatedExplicitVRLittleEndian))
    assert content[132:136] == b"\2\0\0\0"
    with pytest.raises(InputError) as caught:
        deid_dicom.deidentify(content[:132] + content[144:], PROFILE, DEFAULT_LIMITS)
    assert caught.value.code == "too_large_decompressed"


def test_pydicom_logs_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    content = as_bytes(scan())
    caplog.set_level(logging.DEBUG, "pydicom")
    caplog.clear()

    def speak(ds: Dataset, _: Any) -> None:
        logging.getLogger("pydicom").error("'%s' is no name", ds.PatientName)
        raise ValueError

    monkeypatch.setattr(deid_dicom, "clean", speak)
    with pytest.raises(InputError, match="damaged"):
        deid_dicom.deidentify(content, PROFILE, DEFAULT_LIMITS)
    assert not caplog.records


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("order", "<>")
def test_bits_above_the_stored_ones_are_cleared(order: str, sign: int) -> None:
    """An overlay in bits 12 to 15 goes; stored values, negative ones too, stay as their writers write them."""
    values = np.arange(24) - 12 * sign
    changes = {"PixelRepresentation": sign, "syntax": ExplicitVRBigEndian if order == ">" else ExplicitVRLittleEndian}
    words = values.astype(f"{order}i2")
    drawn = (words ^ (0x5000 * (np.arange(24) % 3 == 0)).astype(np.int16)).astype(f"{order}i2")
    assert not np.array_equal(words, drawn)
    _, ds = clean(PixelData=drawn.tobytes(), **changes)
    assert ds.PixelData == words.tobytes()


def test_a_mosaic_is_warned_of() -> None:
    content = as_bytes(scan(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))
    assert deid_dicom.deidentify(content, PROFILE, DEFAULT_LIMITS).warnings == ("private_geometry",)


def test_other_transfer_syntaxes_stay_what_they_are() -> None:
    big = scan(syntax=ExplicitVRBigEndian, PixelData=np.arange(24, dtype=">u2").tobytes())
    cleaned = deid_dicom.deidentify(as_bytes(big), PROFILE, DEFAULT_LIMITS)
    ds = pydicom.dcmread(io.BytesIO(cleaned.content))
    assert ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    np.testing.assert_array_equal(ds.pixel_array.ravel(), np.arange(24))
    _, deflated = clean(syntax=DeflatedExplicitVRLittleEndian)
    assert deflated.PixelData == scan().PixelData


def test_text_inside_compressed_pixels_is_found() -> None:
    frame = b"\xff\xd8\xff\xfe\x00\x0aDOE^JANE" + bytes(40) + b"\xff\xd9"
    ds = scan(syntax=pydicom.uid.JPEGBaseline8Bit, PixelData=pydicom.encaps.encapsulate([frame]))
    ds["PixelData"].VR = "OB"
    cleaned = deid_dicom.deidentify(as_bytes(ds), PROFILE, DEFAULT_LIMITS)
    assert "pixel data" in cleaned.verify(cleaned.content)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["PatientName", "OtherPatientNames", "NameOfPhysiciansReadingStudy", "PatientAddress", "StudyID"]),
    st.from_regex(r"[A-Z][a-z]{4,9}[0-9]{2,3}", fullmatch=True),
    st.integers(0, 3),
)
def test_no_name_survives_at_any_depth(keyword: str, name: str, depth: int) -> None:
    ds: Dataset = scan()
    place = ds
    for _ in range(depth):
        item = Dataset()
        place.ReferencedImageBoxSequence = Sequence([item])
        place = item
    setattr(place, keyword, name)
    content = deid_dicom.deidentify(as_bytes(ds), PROFILE, DEFAULT_LIMITS).content  # type: ignore[arg-type]
    assert name.lower().encode() not in content.lower()


def test_what_the_verification_would_say() -> None:
    cleaned = deid_dicom.deidentify(as_bytes(scan()), PROFILE, DEFAULT_LIMITS)

    def tampered(**changes: Any) -> str:
        ds = pydicom.dcmread(io.BytesIO(cleaned.content))
        for name, value in changes.items():
            setattr(ds, name, value)
        return cleaned.verify(as_bytes(ds))

    assert "ManufacturerModelName" in tampered(ManufacturerModelName="of Jane Doe")
    assert "ReferencedSOPInstanceUIDInFile" in tampered(ReferencedSOPInstanceUIDInFile="1.2.3.4")
    assert "pixels" in tampered(PixelData=bytes(48))
    assert "preamble" in cleaned.verify(b"MZ" + cleaned.content[2:])
    private = pydicom.dcmread(io.BytesIO(cleaned.content))
    private.private_block(0x0029, "ACME", create=True).add_new(0x10, "LO", "x")
    assert "private" in cleaned.verify(as_bytes(private))


def test_a_file_that_fails_its_verification_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(as_bytes(scan()))
    monkeypatch.setattr(deid_dicom, "_find_fault", lambda *_: "a fault")
    report = run_tree(tmp_path / "in", tmp_path / "out")
    assert report.refused == {"verification_failed": 1}
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_a_tree_keeps_its_series_and_loses_its_names(tmp_path: Path) -> None:
    source = tmp_path / "MRN0012345" / "DOE JANE"
    source.mkdir(parents=True)
    for number in range(3):
        series = "1.2.3.1" if number < 2 else "1.2.3.2"
        slice_ = scan(SOPInstanceUID=f"1.2.3.4.{number}", SeriesInstanceUID=series)
        slice_.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number}"
        (source / f"DOE{number}").write_bytes(as_bytes(slice_))
    (source / "notes.txt").write_text("DOE JANE")
    (source / "copy.zip").write_bytes(b"PK\3\4DOE")
    report = run_tree(tmp_path / "MRN0012345", tmp_path / "out")
    assert (report.count("written"), report.count("left_out"), report.count("refused")) == (3, 2, 0)
    files = [file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not [file for file in files if any(secret in str(file) for secret in ("DOE", "MRN", "notes"))]
    assert sorted(len(list(folder.iterdir())) for folder in (tmp_path / "out").glob("*/*/*")) == [1, 2]
    assert {file.parts[0] for file in files} == {pseudonym("MRN0012345", KEY)}
    again = run_tree(tmp_path / "MRN0012345", tmp_path / "again")
    assert [item.target for item in again.files] == [item.target for item in report.files]
    assert (tmp_path / "again" / files[0]).read_bytes() == (tmp_path / "out" / files[0]).read_bytes()


def test_places_that_would_mix_old_and_new(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    with pytest.raises(ConfigError, match="holds no file"):
        run_tree(source, tmp_path / "out")
    (source / "a.dcm").write_bytes(as_bytes(scan()))
    for target, message in (
        (source, "not an empty"),
        (source / "out", "lie in each other"),
        (tmp_path, "not an empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_tree(source, target)
    with pytest.raises(ConfigError, match="does not exist"):
        run_tree(tmp_path / "nowhere", tmp_path / "out")


def test_nifti_keeps_its_voxels_and_grid_alone(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 900, (6, 5, 4, 2)).astype(np.int16)
    affine = np.array([[1.5, 0, 0, -9], [0, 1, 0.2, 8], [0, 0, 2, 7], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(voxels, affine)
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = b"DOE^JANE"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"MRN 0012345 DOE^JANE"))
    (tmp_path / "in").mkdir()
    for name in ("DOE_JANE.nii.gz", "DOE_JANE.nii"):
        nibabel.save(image, tmp_path / "in" / name)
    big = nibabel.Nifti2Image(voxels, affine, nibabel.Nifti2Header(endianness=">"))
    big.header["descrip"] = b"DOE^JANE"
    nibabel.save(big, tmp_path / "in" / "big.nii")
    report = run_tree(tmp_path / "in", tmp_path / "out")
    assert report.count("written") == 3
    written = sorted((tmp_path / "out").iterdir())
    for file in written:
        content = file.read_bytes()
        assert content[:10] == b"\x1f\x8b\x08" + bytes(5) + content[8:10] or not file.name.endswith(".gz")
        read = nibabel.load(file)
        np.testing.assert_array_equal(np.asarray(read.dataobj), voxels)
        np.testing.assert_allclose(read.affine, affine)
        assert not read.header.extensions
        assert b"DOE" not in read.header.binaryblock
        assert b"DOE" not in content
    names = {file.name.split(".")[0] for file in written}
    assert len(names) == 2, "an image and its label map keep one name"


@pytest.mark.parametrize("turned", [None, 6])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_raster_keeps_pixels_and_orientation_alone(tmp_path: Path, kind: str, turned: int | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20), dtype=np.uint8)
    exif = Image.Exif()
    exif[0xA430] = exif[0x8298] = "DOE JANE"
    if turned:
        exif[0x0112] = turned
    text = PngInfo()
    text.add_text("Patient", "DOE JANE", zip=True)
    options: dict[str, Any] = {"pnginfo": text} if kind == "png" else {"comment": b"DOE JANE", "progressive": True}
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / f"DOE.{kind}"
    Image.fromarray(pixels).save(file, exif=exif, icc_profile=b"profile of DOE JANE", **options)
    if kind == "jpg":
        file.write_bytes(file.read_bytes() + b"trailer DOE JANE")
    report = run_tree(tmp_path / "in", tmp_path / "out")
    (item,) = report.files
    content = (tmp_path / "out" / item.target).read_bytes()
    assert b"DOE" not in content
    with Image.open(tmp_path / "out" / item.target) as written, Image.open(file) as source:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(source))
        assert written.getexif().get(0x0112) == turned
        assert not set(written.getexif()) - {0x0112}


def test_an_overlay_in_compressed_pixels_is_refused() -> None:
    ds = scan(syntax=pydicom.uid.RLELossless, PixelData=pydicom.encaps.encapsulate([bytes(64)]))
    ds["PixelData"].VR = "OB"
    ds.add_new(0x60020102, "US", 12)
    with pytest.raises(InputError) as caught:
        deid_dicom.deidentify(as_bytes(ds), PROFILE, DEFAULT_LIMITS)
    assert caught.value.code == "burned_in"


@pytest.mark.parametrize("marker", [0xE0, 0xE5, 0xEE, 0xFE])
@pytest.mark.parametrize("name", [b"DOE JANE, not Adobe", b"Adobe\0\x64\0\0\0\0\1 DOE JANE"])
def test_segments_of_a_jpeg_that_code_nothing_go(marker: int, name: bytes) -> None:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    content = stream.getvalue()
    segment = bytes([0xFF, marker]) + (len(name) + 2).to_bytes(2, "big") + name
    cleaned = deid_plain.deidentify_raster(content[:20] + segment + content[20:], DEFAULT_LIMITS)
    assert b"DOE" not in cleaned.content
    assert cleaned.verify(cleaned.content) == ""


def test_an_adobe_segment_stays_for_its_colours() -> None:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", keep_rgb=True)
    content = stream.getvalue()
    assert b"Adobe" in content
    cleaned = deid_plain.deidentify_raster(content, DEFAULT_LIMITS)
    assert b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0\xff" in cleaned.content
    assert cleaned.verify(cleaned.content) == ""


def test_a_file_that_cannot_be_read_is_refused_and_the_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.dcm", "b.dcm", "c.dcm"):
        (tmp_path / "in" / name).write_bytes(as_bytes(scan()))
    really_open, really_is_file = Path.open, Path.is_file

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "a.dcm":
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, *arguments, **options)

    def unknown(path: Path) -> bool:
        if path.name == "b.dcm":
            raise PermissionError(13, "Permission denied", str(path))
        return really_is_file(path)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "is_file", unknown)
    report = run_tree(tmp_path / "in", tmp_path / "out")
    assert [item.code for item in report.files] == ["not_readable", "", ""]
    assert "a.dcm" not in report.files[0].detail


def test_a_lost_slice_is_refused_and_a_foreign_file_left_out(tmp_path: Path) -> None:
    """Whoever counts on the exit code must not lose a slice without a word."""
    source = tmp_path / "in"
    source.mkdir()
    lost = {"cut.dcm": b"", "IM0007": b"", "bare": b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100", "a.png": b"nothing"}
    for name, content in {**lost, "notes.txt": b"hello", "report.pdf": b"%PDF-1.4"}.items():
        (source / name).write_bytes(content)
    files = deidentify(source, tmp_path / "out", PROFILE).files
    assert {item.source for item in files if item.status == "refused"} == set(lost)
    assert {item.source for item in files if item.status == "left_out"} == {"notes.txt", "report.pdf"}


def test_names_differ_where_suffixes_do(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.PNG", "a.jpeg", "a.jpg"):
        kind = "PNG" if name.lower().endswith("png") else "JPEG"
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "in" / name, kind)
    report = run_tree(tmp_path / "in", tmp_path / "out")
    assert len({item.target for item in report.files if item.status == "written"}) == 4


def test_canaries_know_words_from_numbers() -> None:
    canaries = Canaries()
    canaries.add("PN", "PatientName", "Young^Al")
    canaries.add("LO", "SeriesDescription", "axial brain of 55501007")
    canaries.add("LO", "InstitutionName", "Primary Care")
    assert canaries.leaks("CS", "YOUNG")
    assert canaries.leaks("LO", "call 55501007")
    assert canaries.leaks("LO", "the primary one")
    assert not canaries.leaks("CS", "PRIMARY"), "a defined term is no institution"
    assert not canaries.leaks("LO", "brain"), "a description's words are the field's"
    assert not canaries.in_bytes(struct.pack("<8H", *range(8)))


def test_the_key_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "new" / "deid.key"
    assert load_key(file) == load_key(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("short")
    with pytest.raises(ValueError, match="hexadecimal"):
        load_key(file)


def test_nobody_sees_half_a_key_and_the_first_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, first = tmp_path / "deid.key", "ab" * 32

    def another_process(_: int) -> str:
        assert not file.exists(), "the file comes whole"
        file.write_text(first)
        return "cd" * 32

    monkeypatch.setattr(keyed.secrets, "token_hex", another_process)
    assert load_key(file) == bytes.fromhex(first)
    assert list(tmp_path.iterdir()) == [file]


def test_the_verb(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "DOE.dcm").write_bytes(as_bytes(scan(BodyPartExamined="HEAD")))
    assert verb("deid", str(source), str(tmp_path / "one"))[0] == 0
    said = capsys.readouterr().err
    assert "DOE" not in said
    assert "a face can be made" in said
    (source / "us.dcm").write_bytes(as_bytes(scan(Modality="US")))
    code, result = verb("deid", str(source), str(tmp_path / "out"), "--shift-dates")
    assert (code, result["written"], result["refused"]) == (5, 1, {"burned_in": 1})
    assert result["warnings"] == {"face_visible": 1}
    names = Path(result["names"])
    assert names.parent == home
    assert stat.S_IMODE(names.stat().st_mode) == 0o600
    rows = {row["source"]: row for row in csv.DictReader(names.read_text().splitlines())}
    written = pydicom.dcmread(tmp_path / "out" / rows["DOE.dcm"]["target"])
    assert written.StudyDate not in ("", "20240102")
    assert rows["us.dcm"]["code"] == "burned_in"
    assert verb("deid", str(source), str(tmp_path / "all"), "--allow-burned-in")[1]["written"] == 2
    assert verb("deid", str(source / "us.dcm"), str(tmp_path / "none"))[0] == 3
    assert verb("deid", str(source), str(tmp_path / "x"), "--key", str(tmp_path / "no.key"))[0] == 2
    load_key(tmp_path / "y" / "k")
    (tmp_path / "k").write_text("no key")
    assert verb("deid", str(source), str(tmp_path / "x"), "--key", str(tmp_path / "k"))[0] == 2
    assert verb("deid", str(source), str(tmp_path / "y"), "--key", str(tmp_path / "y" / "k"))[0] == 2


def verb(*arguments: str) -> tuple[int, dict[str, Any]]:
    stdout = io.StringIO()
    code = answer(cli.app, list(arguments), stdout)
    lines = stdout.getvalue().splitlines()
    return code, json.loads(lines[-1]) if lines else {}


def test_real_series_stay_series(shared_data: Path, tmp_path: Path) -> None:
    """Every file is written or refused with a code, pixels are the same bytes, and files group as before."""
    report = run_tree(shared_data / "dicom", tmp_path / "out", Profile(KEY, "shift", allow_burned_in=True))
    assert report.count("written") > 200
    assert set(report.refused) <= {"bad_header", "corrupt", "truncated", "unsupported_type"}
    groups: dict[str, set[str]] = {}
    for item in report.files:
        if item.status == "written":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                old = pydicom.dcmread(shared_data / "dicom" / item.source)
                new = pydicom.dcmread(tmp_path / "out" / item.target)
            assert old.get("PixelData") == new.get("PixelData")
            groups.setdefault(str(old.SeriesInstanceUID), set()).add(str(new.SeriesInstanceUID))
    assert all(len(new) == 1 for new in groups.values())
    assert len(set.union(*groups.values())) == len(groups)
    nifti = run_tree(shared_data / "nifti_misc", tmp_path / "nifti")
    assert nifti.count("refused") == 0


def test_a_tree_of_pngs_does_not_pay_for_pydicom() -> None:
    imports = "from medray.imaging.deid import plain, tree"
    code = f"import sys; {imports}; print({{'pydicom', 'nibabel'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
