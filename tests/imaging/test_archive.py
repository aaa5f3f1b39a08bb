"""Zip and tar archives: a series or an image in them is read, and all that is no plain file in it refused."""

from __future__ import annotations

import io
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from series_phantom import noise, series

from medray.imaging import archive
from medray.imaging.limits import DEFAULT_LIMITS, Limits
from medray.imaging.reader import read
from medray.types import Case, InputError


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as packed:
        for name, data in members.items():
            packed.writestr(zipfile.ZipInfo(name), data, method)
    return file.getvalue()


def tarred(members: dict[str, bytes], kind: bytes = tarfile.REGTYPE, form: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as packed:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.linkname = len(data), "x"
            info.type = tarfile.DIRTYPE if name.endswith("/") else kind
            packed.addfile(info, io.BytesIO(data))
    return file.getvalue()


def refused(content: bytes, limits: Limits = DEFAULT_LIMITS) -> str:
    with pytest.raises(InputError) as caught:
        archive.read(content, "case", limits, read)
    return caught.value.code


SLICES = {f"exam/IM{k}": file for k, file in enumerate(series(noise(4)))}
PACKERS: list[Callable[[dict[str, bytes]], bytes]] = [
    zipped,
    lambda members: zipped(members, zipfile.ZIP_STORED),
    tarred,
    lambda members: tarred(members, form=tarfile.PAX_FORMAT),
]


@pytest.mark.parametrize("pack", PACKERS)
def test_a_series_is_read_without_what_is_foreign(
    pack: Callable[[dict[str, bytes]], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    foreign = {"DICOMDIR": b"x", "notes.txt": b"hi", "__MACOSX/exam/._IM0": b"x", "viewer.jar": zipped({"a": b"b"})}
    case = archive.read(pack({**foreign, "exam/": b"", **SLICES}), "case", DEFAULT_LIMITS, read)
    np.testing.assert_array_equal(case.image[0], noise(4).transpose(2, 1, 0))
    assert (case.case_id, case.warnings) == ("case", ())
    assert not any(tmp_path.iterdir())


def test_one_image_is_decoded_by_whoever_knows_it() -> None:
    def decode(content: bytes) -> Case:
        return Case(content.decode(), np.zeros((1, 2, 2)), np.eye(4))

    packed = zipped({"scan.xyz": b"scan", ".DS_Store": b"x", "__MACOSX/._scan.xyz": b"x"})
    assert archive.read(packed, "case", DEFAULT_LIMITS, decode).case_id == "case"
    with pytest.raises(InputError, match="holds 2 files"):
        archive.read(zipped({"a.xyz": b"a", "b.xyz": b"b"}), "case", DEFAULT_LIMITS, decode)
    assert archive.read(zipped({"1": SLICES["exam/IM0"]}), "case", DEFAULT_LIMITS, read).image.shape == (1, 6, 5)


def test_a_member_is_not_inflated_beyond_what_it_announces() -> None:
    packed = bytearray(zipped({"scan.xyz": bytes(64 << 20)}))
    for signature, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        place = packed.index(signature) + at
        packed[place : place + 4] = (100).to_bytes(4, "little")
    tracemalloc.start()
    assert refused(bytes(packed), Limits(max_decompressed_bytes=1 << 20)) in ("corrupt", "checksum")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_damaged_slice_is_not_taken_for_a_foreign_file() -> None:
    assert refused(zipped({**SLICES, "exam/IM4": b""})) == "empty_file"
    assert refused(zipped({**SLICES, "exam/IM4.dcm": b"rubbish"})) == "unsupported_type"


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/a", "C:\\a", "c:a", "\\\\host\\a", "a\\..\\b"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_names_that_lead_elsewhere_are_refused(name: str, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    assert refused(pack({**SLICES, name: b"x"})) == "unsafe_archive"


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"9"]
)
def test_links_and_devices_of_a_tar_are_refused(kind: bytes) -> None:
    assert refused(tarred({"a": b""}, kind)) in ("unsafe_archive", "corrupt")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_of_a_zip_are_refused(mode: int) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        info = zipfile.ZipInfo("a")
        info.external_attr = (mode | 0o777) << 16
        packed.writestr(info, "/etc/passwd")
    assert refused(file.getvalue()) == "unsafe_archive"


def test_encrypted_nested_and_oddly_packed_archives_are_refused() -> None:
    plain = zipped({"a": b"x" * 50})
    # Bit 0 of the flags, in the list of members.
    flag = plain.index(b"PK\1\2") + 8
    assert refused(plain[:flag] + b"\1" + plain[flag + 1 :]) == "unsafe_archive"
    for inner in (zipped(SLICES), tarred(SLICES)):
        for name in ("inner.zip", "inner.tar", "inner"):
            assert refused(zipped({name: inner, **SLICES})) == "unsafe_archive"
    assert refused(zipped({"a": b"x" * 50}, zipfile.ZIP_BZIP2)) == "unsupported_type"


def test_what_it_inflates_to_is_bounded_before_it_is_inflated() -> None:
    assert refused(zipped(SLICES), Limits(max_decompressed_bytes=500)) == "too_large_decompressed"
    zeros = zipped({"a.nii": bytes(1 << 20)})
    assert refused(zeros) == "unsupported_type"
    packed = bytearray(zeros)
    at = zeros.index(b"PK\1\2") + 24
    packed[at : at + 4] = (100 << 20).to_bytes(4, "little")
    assert refused(bytes(packed)) == "too_large_decompressed"
    packed[at : at + 4] = (1000).to_bytes(4, "little")
    # It says 1000 bytes and inflates to a million: no more than 1000 are taken, and their checksum is another.
    assert refused(bytes(packed)) == "checksum"


def test_the_number_of_members_is_bounded() -> None:
    many = {str(k): b"" for k in range(archive.MAX_FILES + 1)}
    assert refused(tarred(many)) == "too_many_files"
    content = zipped(many)
    assert refused(content) == "too_many_files"
    end = content.rindex(b"PK\5\6")
    lying = content[: end + 8] + b"\1\0\1\0" + content[end + 12 :]
    assert refused(lying) == "too_many_files"


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_every_cut_is_seen(pack: Callable[[dict[str, bytes]], bytes]) -> None:
    content = pack(SLICES)
    whole = len(content) if pack is zipped else len(content.rstrip(b"\0")) + 512
    for end in range(1, whole, 97):
        assert refused(content[:end]) in ("truncated", "corrupt")


def test_one_flipped_byte_is_seen_or_read_as_before() -> None:
    content = zipped(SLICES)
    draw = np.random.default_rng(0)
    expected = archive.read(content, "case", DEFAULT_LIMITS, read).image
    for at in draw.integers(4, len(content), 300):
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(draw.integers(8))
        try:
            np.testing.assert_array_equal(archive.read(bytes(damaged), "case", DEFAULT_LIMITS, read).image, expected)
        except InputError:
            continue
