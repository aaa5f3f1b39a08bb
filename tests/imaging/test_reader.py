import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medray.imaging.limits import Limits
from medray.imaging.reader import case_id_of, read
from medray.imaging.writer import write_nifti, write_png
from medray.types import ArrayRef, Case, InputError


def refused(source: object, limits: Limits | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        read(source, limits or Limits())  # type: ignore[arg-type]
    return caught.value


def samples() -> list[bytes]:
    """One small valid file of each kind."""
    import tempfile

    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grey = draw.integers(0, 256, (9, 11), np.uint8)
        write_png(folder / "a", grey)
        Image.fromarray(np.stack([grey, 255 - grey, grey], -1)).save(folder / "b", "JPEG")
        for suffix in (".nii", ".nii.gz"):
            write_nifti(folder / f"c{suffix}", draw.integers(0, 99, (3, 4, 5)).astype("i2"), np.diag([2.0, 2, 3, 1]))
        np.save(folder / "d.npy", grey)
        return [file.read_bytes() for file in sorted(folder.iterdir())]


SAMPLES = samples()


def test_path_and_bytes_and_str_are_one_road(tmp_path: Path) -> None:
    file = tmp_path / "scan.v2.png"
    file.write_bytes(SAMPLES[0])
    cases = [read(file), read(str(file)), read(SAMPLES[0])]
    assert [case.case_id for case in cases] == ["scan.v2", "scan.v2", "upload"]
    for case in cases[1:]:
        np.testing.assert_array_equal(case.image, cases[0].image)


def test_case_id_has_no_suffix() -> None:
    names = ("a.nii.gz", "a.nii", "A.NII.GZ", "a.b.png", "a")
    assert [case_id_of(Path("x") / name) for name in names] == ["a", "a", "A", "a.b", "a"]


def test_what_is_no_readable_file_is_refused_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.png").write_bytes(SAMPLES[0])
    expected = {"gone.png": "not_found", "secret": "unsupported_type", "empty.png": "empty_file"}
    expected |= {"pipe.png": "unsupported_type", "a.png/b": "not_found", "a\0b": "not_found", "a.png": "too_large"}
    for name, code in expected.items():
        error = refused(tmp_path / name, Limits(max_file_bytes=10))
        assert error.code == code, name
        assert name not in str(error)
        assert str(tmp_path) not in str(error)
    assert refused(b"").code == "empty_file"
    assert refused(ArrayRef(tmp_path / "gone.npz", "x", 0)).code == "not_found"


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"GIF89a", "GIF"),
        (b"II*\0", "TIFF"),
        (b"ObjectType = Image", "Meta"),
        (b"  <svg xmlns=''>", "SVG"),
        (b"hello", "no known type"),
    ],
)
def test_other_formats_are_named(head: bytes, word: str) -> None:
    error = refused(head + b"\0" * 400)
    assert error.code == "unsupported_type"
    assert word in str(error)


def test_the_name_does_not_decide(tmp_path: Path) -> None:
    for name, content in (("a.jpg", SAMPLES[0]), ("a.png", SAMPLES[1]), ("a.nii", SAMPLES[3])):
        (tmp_path / name).write_bytes(content)
        assert "extension_mismatch" in read(tmp_path / name).warnings


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    content=st.sampled_from(SAMPLES),
    edits=st.lists(
        st.tuples(st.integers(0, 400) | st.integers(0, 10_000), st.sampled_from([0, 1, 127, 128, 255])), max_size=4
    ),
    keep=st.floats(0, 1),
    cut=st.booleans(),
)
def test_damaged_content_raises_nothing_but_input_error(
    content: bytes, edits: list[tuple[int, int]], keep: float, cut: bool
) -> None:
    damaged = bytearray(content)
    for place, value in edits:
        damaged[place % len(damaged)] = value
    with contextlib.suppress(InputError):
        case = read(bytes(damaged[: int(keep * len(damaged))] if cut else damaged), Limits(max_voxels=10**6))
        assert isinstance(case, Case)
        assert np.isfinite(case.image).all()


def test_a_png_needs_neither_nibabel_nor_scipy() -> None:
    code = (
        "import io, sys; import numpy as np; from medray.imaging.reader import read;"
        f"read({SAMPLES[0]!r}); heavy = [m for m in ('nibabel', 'scipy', 'torch', 'monai', 'ray') if m in sys.modules];"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_limits_are_the_callers() -> None:
    assert refused(SAMPLES[0], Limits(max_pixels=50)).code == "too_many_pixels"
    assert refused(SAMPLES[1], Limits(max_pixels=50)).code == "too_many_pixels"
    assert refused(SAMPLES[3], Limits(max_voxels=50)).code == "too_many_voxels"
    assert refused(SAMPLES[3], Limits(max_decompressed_bytes=100)).code == "too_large_decompressed"
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((30, 30)))
    assert refused(buffer.getvalue(), Limits(max_decompressed_bytes=100)).code == "too_large_decompressed"
