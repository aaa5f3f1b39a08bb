import contextlib
import gzip
import tracemalloc
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import nrrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.imaging.limits import Limits
from medray.imaging.nrrd import TYPES, read
from medray.types import Case, InputError

VOXELS = np.random.default_rng(0).integers(-500, 500, (6, 5, 4)).astype(np.int16)
DIRECTIONS = np.array([[0.0, 1.5, 0], [-2.0, 0, 0.0], [0, 0, 3.0]])
"""A row per axis, in the file's own space."""
ORIGIN = np.array([10.0, -20.0, 30.0])
FIELDS = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "6 5 4",
    "space directions": "(0,1.5,0) (-2,0,0) (0,0,3)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,-20,30)",
}
RAW = VOXELS.tobytes(order="F")


def content(
    changes: Mapping[str, str | None] | None = None, raw: bytes = RAW, magic: str = "NRRD0004", tail: str = "\n"
) -> bytes:
    """A file by hand; a change of None leaves the field out."""
    fields = {**FIELDS, **(changes or {})}
    lines = [magic, *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return "\n".join(lines).encode() + tail.encode() + b"\n" + raw


def load(source: bytes, limits: Limits | None = None) -> Case:
    return read(source, "case", limits or Limits())


def code_of(source: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load(source, limits)
    return caught.value.code


def written(voxels: np.ndarray, encoding: str, **header: object) -> bytes:
    file = BytesIO()
    fields = {"space": "LPS", "space directions": DIRECTIONS, "space origin": ORIGIN, "encoding": encoding}
    nrrd.write(file, voxels, {**fields, **header}, compression_level=1)
    return file.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    dtype=st.sampled_from(sorted({f"{order}{code}" for code in TYPES.values() for order in "<>"})),
    encoding=st.sampled_from(["raw", "gzip"]),
    numbers=st.lists(st.floats(-400, 400), min_size=12, max_size=12),
    seed=st.integers(0, 99),
)
def test_what_pynrrd_writes_is_read_equal(
    shape: tuple[int, int, int], dtype: str, encoding: str, numbers: list[float], seed: int
) -> None:
    voxels = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    # Steps of 1 to 9 mm about a slanted diagonal: never singular.
    directions = np.array(numbers[:9]).reshape(3, 3) / 401 + np.diag([4.0, 5.0, 6.0])
    header = {"space directions": directions, "space origin": np.array(numbers[9:])}
    case = load(written(voxels, encoding, **header))
    np.testing.assert_array_equal(case.image[0], voxels)
    assert case.image.dtype == (np.float32 if voxels.dtype.kind == "f" else voxels.dtype.newbyteorder("="))
    assert case.image.flags.c_contiguous
    lps = np.array([-1.0, -1.0, 1.0])
    np.testing.assert_allclose(case.affine[:3, :3], directions.T * lps[:, None], rtol=1e-9)
    np.testing.assert_allclose(case.affine[:3, 3], lps * numbers[9:], rtol=1e-9)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("LAS", (-1, 1, 1)),
        ("left-posterior-superior", (-1, -1, 1)),
        ("lps", (-1, -1, 1)),
    ],
)
def test_every_space_of_a_patient_becomes_ras(space: str, signs: tuple[int, int, int]) -> None:
    case = load(content({"space": space}))
    np.testing.assert_array_equal(case.affine[:3, :3], DIRECTIONS.T * np.array(signs)[:, None])
    np.testing.assert_array_equal(case.affine[:3, 3], ORIGIN * signs)
    np.testing.assert_array_equal(case.image[0], VOXELS)
    assert (case.unit, case.warnings) == ("mm", ())


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1), ("cm", 10), ("um", 0.001), ("m", 1000)])
def test_space_units_are_converted_to_mm(unit: str, scale: float) -> None:
    steps = {"space directions": f"({1.5 / scale},0,0) (0,{2 / scale},0) (0,0,{3 / scale})"}
    case = load(content({"space units": f'"{unit}" "{unit}" "{unit}"', **steps}))
    assert case.spacing == pytest.approx((1.5, 2.0, 3.0))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"data file": "/etc/passwd"}, "missing_pair"),
        ({"datafile": "other.raw"}, "missing_pair"),
        ({"Data File": "LIST"}, "missing_pair"),
        ({"type": None}, "bad_header"),
        ({"encoding": None}, "bad_header"),
        ({"sizes": None}, "bad_header"),
        ({"sizes": "6 5 4.7"}, "bad_header"),
        ({"sizes": "6 5 -4"}, "bad_header"),
        ({"sizes": "6 5 " + "4" * 400}, "bad_header"),
        ({"sizes": "6 5 0"}, "empty_image"),
        ({"sizes": "6 20"}, "bad_header"),
        ({"sizes": "6 20", "dimension": "2"}, "wrong_rank"),
        ({"sizes": "3 2 5 4", "dimension": "4"}, "wrong_rank"),
        ({"kinds": "RGB-color domain domain"}, "wrong_rank"),
        ({"space directions": "none (0,1,0) (0,0,1)"}, "wrong_rank"),
        ({"type": "block"}, "unsupported_dtype"),
        ({"type": "quaternion"}, "bad_header"),
        ({"endian": None}, "bad_header"),
        ({"endian": "middle"}, "bad_header"),
        ({"encoding": "bzip2"}, "unsupported_encoding"),
        ({"encoding": "ascii"}, "unsupported_encoding"),
        ({"encoding": "hex"}, "unsupported_encoding"),
        ({"byte skip": "-1"}, "bad_header"),
        ({"line skip": "2"}, "bad_header"),
        ({"space": None}, "missing_affine"),
        ({"space": "scanner-xyz"}, "missing_affine"),
        ({"space directions": None}, "missing_affine"),
        ({"space origin": None}, "missing_affine"),
        ({"space origin": "(1,2)"}, "bad_header"),
        ({"space origin": "(1,2,nan)"}, "bad_affine"),
        ({"space directions": "(1,0,0) (0,1,0) (1,1,0)"}, "bad_affine"),
        ({"space directions": "(1e300,0,0) (0,1e300,0) (0,0,1e300)"}, "bad_affine"),
        ({"space directions": "(1,0,0) (0,1,0) (0,0,99)"}, "implausible_spacing"),
        ({"space directions": "(1,0,0) (0,1,0)"}, "bad_header"),
        ({"space units": '"mm" "mm" "inch"'}, "bad_header"),
        ({"space units": '"mm" "mm" "cm"'}, "bad_header"),
        ({"dimension": "three"}, "bad_header"),
        ({"space origin": "(1\u00e9,2,3)"}, "bad_header"),
        # A digit to Python, but of another script.
        ({"space origin": "(\u0661,2,3)"}, "bad_header"),
    ],
)
def test_what_is_wrong_has_its_own_code(changes: dict[str, str | None], code: str) -> None:
    assert code_of(content(changes)) == code


def test_a_repeated_field_and_a_later_version_are_refused() -> None:
    assert code_of(content(tail="\ntype: float\n")) == "bad_header"
    assert code_of(content(magic="NRRD0009")) == "bad_header"


def test_the_header_ends_in_a_blank_line() -> None:
    whole = content()
    assert code_of(whole[:40]) == "truncated"
    assert code_of(content(tail="", raw=b"")) == "truncated"
    assert code_of(content(tail="\n# " + "x" * 2000), Limits(max_text_bytes=1000)) == "bad_header"
    np.testing.assert_array_equal(load(whole.replace(b"\n", b"\r\n", len(FIELDS) + 2)).image[0], VOXELS)


def test_voxels_are_as_many_as_announced() -> None:
    assert code_of(content(raw=RAW[:-1])) == "truncated"
    assert code_of(content(raw=RAW + b"x")) == "trailing_data"
    for encoding in ("gzip", "gz"):
        field = {"encoding": encoding}
        packed = gzip.compress(RAW, mtime=0)
        np.testing.assert_array_equal(load(content(field, packed)).image[0], VOXELS)
        assert code_of(content(field, packed[:-3])) == "truncated"
        assert code_of(content(field, b"")) == "truncated"
        assert code_of(content(field, RAW)) == "corrupt"
        assert code_of(content(field, packed[:-1] + b"\7")) == "checksum"
        assert code_of(content(field, packed + b"JUNK" * 4)) == "trailing_data"
        assert code_of(content(field, gzip.compress(RAW + b"x"))) == "trailing_data"
        assert code_of(content(field, packed[:12] + b"\xff" * 4 + packed[16:])) == "corrupt"


def test_bombs_take_neither_time_nor_memory() -> None:
    packed = gzip.compress(RAW) + gzip.compress(bytes(1 << 20)) * 200
    bomb, wide = content({"encoding": "gzip"}, packed), content({"sizes": f"{2**40} {2**40} {2**40}"})
    tracemalloc.start()
    assert code_of(bomb) == "too_large_decompressed"
    assert code_of(wide) == "too_large_decompressed"
    assert code_of(content({"sizes": "2048 2048 1280"})) == "too_large_decompressed"
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert code_of(content(), Limits(max_voxels=100)) == "too_many_voxels"


def test_a_detached_file_is_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr("builtins.open", forbidden)
    monkeypatch.setattr(Path, "open", forbidden)
    assert code_of(content({"data file": "/etc/passwd"}, raw=b"")) == "missing_pair"


def test_values_that_are_no_numbers_are_refused_and_odd_ones_warned_of() -> None:
    for value in (np.nan, np.inf, 1e300):
        voxels = VOXELS.astype(np.float64)
        voxels[1, 2, 3] = value
        assert code_of(written(voxels, "gzip")) == "non_finite_voxels"
    assert load(written(np.full((2, 3, 4), 7, np.int16), "raw")).warnings == ("constant_image",)
    for name in ("old min", "oldmin", "old max", "oldmax"):
        assert load(content({name: "-3"})).warnings == ("scaling_ignored",)


def test_free_text_in_the_header_is_warned_of() -> None:
    assert load(content({"content": "a liver"})).warnings == ("phi_in_header",)
    assert load(content(tail="\n# DOE^JANE\n")).warnings == ("phi_in_header",)
    assert load(content(tail="\nnote:=J\u00e9r\u00f4me\n")).warnings == ("phi_in_header",)
    # A key is no field, whatever it is called.
    assert load(content(tail="\ndata file:=/etc/passwd\n")).warnings == ("phi_in_header",)


@settings(max_examples=400, deadline=None)
@given(at=st.integers(0, 8 * content().index(b"\n\n") - 1))
def test_a_flipped_bit_of_the_header_is_refused_or_another_legal_header(at: int) -> None:
    flipped = bytearray(content())
    flipped[at // 8] ^= 1 << at % 8
    with contextlib.suppress(InputError):
        case = load(bytes(flipped))
        assert case.image.nbytes == VOXELS.nbytes
        assert np.isfinite(case.affine).all()
        assert abs(np.linalg.det(case.affine)) > 0


def test_real_files_equal_pynrrd(shared_data: Path) -> None:
    for name in ("nrrd/brain1_image.nrrd", "nrrd/brain1_label.nrrd", "dicom/ct_3slice_with_seg/liver_seg.nrrd"):
        voxels, header = nrrd.read(str(shared_data / name))
        case = load((shared_data / name).read_bytes())
        np.testing.assert_array_equal(case.image[0], voxels)
        assert case.image.dtype == voxels.dtype
        corner = np.array(voxels.shape) - 1
        world = header["space origin"] + corner @ header["space directions"]
        np.testing.assert_allclose((case.affine @ [*corner, 1])[:3], world * (-1, -1, 1), atol=1e-9)
