"""Damaged and strange files: nothing but InputError, soon and in bounded memory; and valid ones come back as written.

Damaged bytes are read in a worker (`isolation.Decoder`), so that a crash, a hang or an exception of another kind is a
refusal with a code of its own and not the end of the tests.
"""

from __future__ import annotations

import gzip
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.spatialimages import HeaderDataError
from PIL import Image

from medray.imaging.isolation.decoder import Decoder
from medray.imaging.limits import Limits
from medray.imaging.reader import read
from medray.types import Case, InputError

LIMITS = Limits(max_decompressed_bytes=16 << 20, max_pixels=4_000_000, max_file_bytes=16 << 20)
MEMORY_BYTES = 192 << 20
"""Of address space: Pillow's and the codecs' own buffers, and a few of the images that LIMITS allow."""
LONGEST_S = 1.0
SHAPE = (6, 5, 4)
VOXELS = np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16)
OBLIQUE = nibabel.affines.from_matvec(
    np.array([[0.9, -0.1, 0.2], [0.1, 0.9, 0.3], [-0.2, -0.3, 0.9]]) @ np.diag([1.1, 1.3, 2.5]), [10, -20, 30]
)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(MEMORY_BYTES, cpu_s=5, deadline_s=20, limits=LIMITS) as one:
        for sample in SAMPLES.values():
            outcome(one, sample)
        yield one


def outcome(decoder: Decoder, content: bytes) -> Case | str:
    """The case, or the code of the refusal; a failure of the decoder is the test's."""
    try:
        case = decoder.read(content)
    except InputError as error:
        if error.code in ("decoder_crashed", "decoder_timeout") or "of memory" in error.detail:
            raise AssertionError(str(error)) from error
        return error.code
    assert np.isfinite(case.affine).all()
    assert case.image.dtype.kind != "f" or np.isfinite(case.image).all()
    return case


def nifti(two: bool = False, order: str = "<", affine: np.ndarray | None = None, codes: int = 1) -> bytes:
    """A small volume whose sform and qform are the same: the nearest affine that a qform can say."""
    family, header = (nibabel.Nifti2Image, nibabel.Nifti2Header) if two else (nibabel.Nifti1Image, nibabel.Nifti1Header)
    affine = OBLIQUE if affine is None else affine
    image = family(VOXELS, affine, header(endianness=order))
    image.set_data_dtype(np.int16)
    image.set_qform(affine, codes, strip_shears=True)
    image.set_sform(image.get_qform(), codes)
    image.header.set_xyzt_units("mm", "sec")
    return image.to_bytes()


def disagreement(header_bytes: bytes, two: bool, order: str) -> float:
    """How far sform and qform place a corner apart, in voxels of the sform; 0 where not both speak."""
    header = (nibabel.Nifti2Header if two else nibabel.Nifti1Header)(header_bytes, endianness=order, check=False)
    if int(header["sform_code"]) == 0 or int(header["qform_code"]) == 0:
        return 0.0
    with np.errstate(all="ignore"):
        try:
            sform, qform = header.get_sform(), header.get_qform()
            corner = np.array([SHAPE[0] - 1, SHAPE[1] - 1, SHAPE[2] - 1, 1])
            return max(
                float(np.abs(np.linalg.solve(sform, qform @ index) - index).max())
                for index in (corner, corner * [0, 0, 0, 1], corner * [1, 0, 0, 1], corner * [0, 1, 0, 1])
            )
        except (HeaderDataError, ValueError, np.linalg.LinAlgError):
            return np.inf


@pytest.mark.parametrize("packed", [False, True], ids=["nii", "nii.gz"])
@pytest.mark.parametrize(("two", "order"), [(False, "<"), (False, ">"), (True, "<")])
def test_every_one_bit_flip_of_a_header_is_refused_or_harmless(
    decoder: Decoder, two: bool, order: str, packed: bool
) -> None:
    """All 2,816 (NIfTI-2: 4,352) of each: 16,000 in all."""
    whole = nifti(two, order)
    size = 540 if two else 348
    found = Counter[str]()
    for bit in range(8 * (size + 4)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        started = time.perf_counter()
        case = outcome(decoder, gzip.compress(flipped, 1) if packed else bytes(flipped))
        assert time.perf_counter() - started < LONGEST_S, f"bit {bit}"
        if isinstance(case, str):
            found[case] += 1
            continue
        if case.image.dtype != np.int16:
            # A legal header of another image: one that was scaled.
            assert bit // 8 in (range(176, 192) if two else range(112, 120))
            assert (case.image.shape, case.image.dtype) == ((1, *SHAPE), np.dtype(np.float32))
            continue
        np.testing.assert_array_equal(case.image, VOXELS[None], f"bit {bit}")
        if disagreement(bytes(flipped[:size]), two, order) > 0.02:
            assert "affine_difference" in case.warnings, f"bit {bit}"
        found["read"] += 1
    assert {"bad_header", "truncated", "trailing_data", "ambiguous_affine", "bad_affine", "read"} <= set(found)


def test_flips_of_the_compressed_bytes_meet_the_checksum(decoder: Decoder) -> None:
    packed, harmless = gzip.compress(nifti(), mtime=0), 0
    for bit in range(8 * 10, 8 * len(packed)):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        case = outcome(decoder, bytes(flipped))
        # Some bits mean nothing: lengths of codes that are never used, and what fills the last byte.
        if not isinstance(case, str):
            np.testing.assert_array_equal(case.image, VOXELS[None], f"bit {bit}")
            harmless += 1
    assert harmless < 64


def affines() -> st.SearchStrategy[np.ndarray]:
    """Any rotation, mirror and voxel size, anywhere within metres."""

    def build(quaternion: list[float], zooms: list[float], mirror: bool, shift: list[float]) -> np.ndarray:
        turn = nibabel.quaternions.quat2mat(quaternion)
        return nibabel.affines.from_matvec(turn @ np.diag([*zooms[:2], -zooms[2] if mirror else zooms[2]]), shift)

    component = st.floats(-1, 1).map(lambda value: round(value, 3))
    quaternions = st.lists(component, min_size=4, max_size=4).filter(lambda q: sum(v * v for v in q) > 0.1)
    zooms = st.lists(st.floats(0.05, 20), min_size=3, max_size=3)
    return st.builds(build, quaternions, zooms, st.booleans(), st.lists(st.floats(-2000, 2000), min_size=3, max_size=3))


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]),
    order=st.sampled_from("<>"),
    two=st.booleans(),
    packed=st.booleans(),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    affine=affines(),
    spoken=st.sampled_from(["both", "sform", "qform"]),
    seed=st.integers(0, 99),
)
def test_what_nibabel_writes_is_read_as_it_was(
    dtype: str,
    order: str,
    two: bool,
    packed: bool,
    shape: tuple[int, ...],
    affine: np.ndarray,
    spoken: str,
    seed: int,
) -> None:
    voxels = (np.random.default_rng(seed).normal(0, 1, shape) * 100).astype((dtype[0] == "u" and "i2") or dtype)
    voxels = np.abs(voxels).astype(dtype) if dtype[0] == "u" else voxels
    family, header = (nibabel.Nifti2Image, nibabel.Nifti2Header) if two else (nibabel.Nifti1Image, nibabel.Nifti1Header)
    image = family(voxels, affine, header(endianness=order), dtype=voxels.dtype)
    image.set_sform(affine, 1 if spoken != "qform" else 0)
    image.set_qform(affine, 1 if spoken != "sform" else 0)
    content = image.to_bytes()
    case = read(gzip.compress(content, 1) if packed else content)
    assert case.image.dtype == (voxels.dtype if dtype[0] in "iu" else np.float32)
    np.testing.assert_array_equal(case.image[0], voxels.astype(case.image.dtype))
    # A qform keeps a rotation in float32, and a little rotation moves what is far from the origin.
    np.testing.assert_allclose(case.affine, affine, rtol=1e-4, atol=1e-3 * np.abs(affine[:3, :3]).max())
    assert set(case.warnings) <= {"constant_image"}
    np.testing.assert_allclose(case.spacing, np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-4)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(affine=affines(), moved=affines(), share=st.sampled_from([0.0, 1e-4, 1e-2, 0.1, 1.0]))
def test_two_affines_agree_or_are_told_apart(affine: np.ndarray, moved: np.ndarray, share: float) -> None:
    """sform and qform from the same file: at most 0.02 voxels apart, or with a warning, or refused."""
    other = affine.copy()
    other[:3, 3] += share * moved[:3, 3] / 100
    image = nibabel.Nifti1Image(VOXELS, affine)
    image.set_sform(other, 1)
    image.set_qform(affine, 1)
    content = image.to_bytes()
    apart = disagreement(content[:348], two=False, order="<")
    if apart > 1.02:
        with pytest.raises(InputError, match="ambiguous_affine"):
            read(content)
    if apart > 0.98:
        return
    warned = "affine_difference" in read(content).warnings
    assert warned or apart < 0.02
    assert not warned or apart > 0.005


def raster(mode: str, form: str, **options: object) -> bytes:
    draw = np.random.default_rng(0)
    shape = {"RGB": (24, 20, 3), "RGBA": (24, 20, 4), "LA": (24, 20, 2)}.get(mode, (24, 20))
    pixels = draw.integers(0, 65535 if mode == "I;16" else 255, shape).astype("u2" if mode == "I;16" else "u1")
    picture = Image.fromarray(pixels)
    stream = BytesIO()
    (picture.quantize(16) if mode == "P" else picture).save(stream, form, **options)
    return stream.getvalue()


def dicom(syntax: str = "ExplicitVRLittleEndian", frames: int = 1) -> bytes:
    """A small MR slice, or a cine of some frames, in a transfer syntax."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage if frames == 1 else pydicom.uid.EnhancedMRImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.1"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3.1"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.PatientID = "1.2.3", "1.2.3.4", "p"
    data.Modality = "MR"
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness = [1.5, 1.5], 3
    data.Rows, data.Columns, data.SamplesPerPixel = 40, 36, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    deep = syntax != "JPEGBaseline8Bit"
    data.BitsAllocated, data.BitsStored, data.HighBit = (16, 12, 11) if deep else (8, 8, 7)
    data.PixelRepresentation = 0
    if frames > 1:
        data.NumberOfFrames = frames
    pixels = np.random.default_rng(0).integers(0, 4095 if deep else 255, (frames, 40, 36))
    data.PixelData = pixels.astype("<u2" if deep else "u1").tobytes()
    data.add(pydicom.DataElement(0x00081140, "SQ", [pydicom.Dataset()]))
    target = getattr(pydicom.uid, syntax)
    if not deep:
        stream = BytesIO()
        Image.fromarray(pixels[0].astype(np.uint8)).save(stream, "JPEG")
        data.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
        data["PixelData"].is_undefined_length = True
        meta.TransferSyntaxUID = target
    elif target.is_compressed:
        data.compress(target)
    stream = BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def nrrd() -> bytes:
    head = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\n"
        "space directions: (1,0,0) (0,1,0) (0,0,2.5)\nkinds: domain domain domain\nendian: little\n"
        "encoding: {}\nspace origin: (1,2,3)\n\n"
    )
    return head.format("raw").encode() + VOXELS.tobytes(order="F")


SAMPLES = {
    "png": raster("L", "PNG"),
    "png16": raster("I;16", "PNG"),
    "png_colour": raster("RGB", "PNG"),
    "png_palette": raster("P", "PNG"),
    "jpeg": raster("L", "JPEG"),
    "jpeg_progressive": raster("RGB", "JPEG", progressive=True),
    "nii": nifti(),
    "nii2": nifti(two=True, order=">"),
    "nii.gz": gzip.compress(nifti(), mtime=0),
    "npy": npy(VOXELS),
    "npy_float": npy(np.linspace(0, 1, 120).reshape(10, 12)),
    "dicom": dicom(),
    "dicom_frames": dicom(frames=3),
    "dicom_rle": dicom("RLELossless"),
    "dicom_jpeg": dicom("JPEGBaseline8Bit"),
    "dicom_jpeg_ls": dicom("JPEGLSLossless"),
    "dicom_jpeg_2000": dicom("JPEG2000Lossless"),
    "nrrd": nrrd(),
}


def flip(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def flip_in_front(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 1, 2, 8])):
        content[draw.randrange(min(len(content), 400))] ^= 1 << draw.randrange(8)


def overwrite(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 2, 4])):
        at = draw.randrange(len(content))
        word = draw.choice(
            [b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80"]
        )
        content[at : at + len(word)] = word


def truncate(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def splice(content: bytearray, draw: random.Random) -> None:
    other = draw.choice(list(SAMPLES.values()))
    at, begin = draw.randrange(len(content)), draw.randrange(len(other))
    content[at : at + draw.choice([0, 8, 10_000])] = other[begin : begin + draw.choice([4, 64, 10_000])]


def repeat(content: bytearray, draw: random.Random) -> None:
    begin = draw.randrange(len(content))
    content[begin:begin] = content[begin : begin + draw.choice([1, 16, 200])] * draw.choice([1, 3, 1000])


def scramble(content: bytearray, draw: random.Random) -> None:
    begin = draw.randrange(min(len(content), 400))
    content[begin:] = draw.randbytes(draw.choice([0, 10, 400, 5000]))


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    flip,
    flip_in_front,
    overwrite,
    truncate,
    splice,
    repeat,
    scramble,
]


def resident_peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")


def fuzz(decoder: Decoder, seconds: float, seed: int) -> Counter[str]:
    """How often each sample was read or refused with each code."""
    draw = random.Random(seed)
    found = Counter[str]()
    before, pid = resident_peak(decoder.worker_pid), decoder.worker_pid
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        name = draw.choice(list(SAMPLES))
        content = bytearray(SAMPLES[name])
        for mutate in draw.choices(MUTATIONS, k=draw.choice([1, 1, 1, 2, 3])):
            if content:
                mutate(content, draw)
        started = time.perf_counter()
        try:
            case = outcome(decoder, bytes(content))
        except AssertionError as error:
            Path("/tmp/medray-fuzz-found").write_bytes(content)  # noqa: S108
            raise AssertionError(f"{error} of {name}, kept in /tmp/medray-fuzz-found") from None
        assert time.perf_counter() - started < LONGEST_S, f"{name} {bytes(content)!r}"
        found[f"{name} {case}" if isinstance(case, str) else name] += 1
    assert decoder.worker_pid == pid
    assert resident_peak(pid) - before < 2 * LIMITS.max_decompressed_bytes
    return found


def test_two_seconds_of_fuzz(decoder: Decoder) -> None:
    assert fuzz(decoder, 2, seed=0).total() > 100


@pytest.mark.slow
def test_a_minute_of_fuzz(decoder: Decoder) -> None:
    found = fuzz(decoder, 60, seed=int(os.environ.get("MEDRAY_FUZZ_SEED", "1")))
    assert found.total() > 3000
    assert len({key.split(" ")[-1] for key in found}) > 12, "mutations reach many checks"
