"""Zip and tar archives of one series or one image, unpacked in memory: nothing is ever written to a disk.

Sources: PKWARE APPNOTE 6.3 (end of the central directory), POSIX ustar. What is refused: members that would leave
the folder that they are unpacked to, that are no plain files, or that inflate to more than the limits.
"""

from __future__ import annotations

import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import PurePosixPath

from medray.imaging.dicom.headers import is_dicom, is_foreign
from medray.imaging.limits import Limits
from medray.types import Case, InputError

MAX_FILES = 10_000
MAX_DIRECTORY_BYTES = 512 * MAX_FILES
"""Of the list of members: names and comments of 466 bytes each."""
MAX_RATIO = 200
"""Scans deflate to a half or a third, and the emptiest label maps to a hundredth."""
RATIO_COUNTS_FROM = 64 << 20
"""Inflated bytes up to which any ratio is let pass: a small image of zeros is no bomb."""
ARCHIVE_SUFFIXES = ("", ".zip", ".tar")
"""Names of archives in archives; other zips are documents (.docx) and programs (.jar) that come with an export."""
BLOCK = 512
"""Of a tar."""

Member = tuple[str, bytes]


def read(content: bytes, case_id: str, limits: Limits, decode: Callable[[bytes], Case]) -> Case:
    """The one DICOM series in a zip or tar or, where it holds no DICOM, its one image, which `decode` then reads.

    Files that are foreign to a series are left out, as in `series.read_folder`. Raises unsafe_archive (names that
    lead elsewhere, links, devices, encryption, archives in archives), too_many_files, too_large_decompressed,
    truncated, corrupt, checksum, unsupported_type, and what `series.read` or `decode` raise.
    """
    packed = members(content, limits)
    if any(_is_archive(name, data) for name, data in packed):
        raise InputError("unsafe_archive", "the archive holds an archive", "unpack the inner one first")
    if dicom := slices(packed):
        from medray.imaging.dicom import series

        return replace(series.read(dicom, limits), case_id=case_id)
    images = [data for name, data in packed if not PurePosixPath(name).name.startswith(".") and "__MACOSX" not in name]
    if len(images) != 1:
        raise InputError(
            "unsupported_type",
            f"the archive holds {len(images)} files and none is DICOM",
            "give the files of one DICOM series, or one image",
        )
    return replace(decode(images[0]), case_id=case_id)


def members(content: bytes, limits: Limits) -> list[Member]:
    """The files in a zip or tar. Raises as `read`."""
    return list(_unzip(content, limits) if content.startswith(b"PK") else _untar(content, limits))


def slices(packed: Sequence[Member]) -> list[bytes]:
    """Those of an archive's files that are DICOM."""
    return [data for name, data in packed if not is_foreign(name, data)]


def _unzip(content: bytes, limits: Limits) -> Iterator[Member]:
    count, size = _directory(content)
    if count > MAX_FILES or size > MAX_DIRECTORY_BYTES:
        raise InputError("too_many_files", f"the archive holds {count} files, the limit is {MAX_FILES}")
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            infos = archive.infolist()
            for info in infos:
                _check_member(info)
            _check_total(len(infos), sum(info.file_size for info in infos), len(content), limits)
            for info in infos:
                if not info.is_dir():
                    yield info.filename, _inflate(archive, info)
    except zipfile.BadZipFile as error:
        code = "checksum" if "CRC" in str(error) else "corrupt"
        raise InputError(code, "the archive is damaged", "make or copy it again") from None
    except EOFError:
        raise InputError("truncated", "a member of the archive ends too early") from None
    except (zlib.error, NotImplementedError, UnicodeDecodeError, ValueError, RuntimeError):
        raise InputError("corrupt", "a member of the archive is damaged", "make or copy it again") from None


def _inflate(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's content, never more than one byte beyond what it announces; ZipFile.read would inflate all first."""
    with archive.open(info) as stream:
        content = stream.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise InputError("corrupt", "a member of the archive has another size than it announces")
    return content


def _directory(content: bytes) -> tuple[int, int]:
    """How many members the end of a zip announces, and the bytes of their list: before memory is taken for it."""
    end = content.rfind(b"PK\5\6", max(0, len(content) - (1 << 16) - 22))
    if end < 0 or end + 22 > len(content):
        raise InputError("truncated", "the archive ends before the list of its members", "make or copy it again")
    count, size = _number(content, end + 10, 2), _number(content, end + 12, 4)
    if content[max(0, end - 20) : end].startswith(b"PK\6\7"):
        # The 64-bit record counts, whatever the plain one says.
        record = content.rfind(b"PK\6\6", 0, end)
        count, size = _number(content, record + 32, 8), _number(content, record + 40, 8)
    return count, size


def _number(content: bytes, at: int, length: int) -> int:
    return int.from_bytes(content[at : at + length], "little")


def _check_member(info: zipfile.ZipInfo) -> None:
    _check_name(info.orig_filename)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError("unsafe_archive", "the archive holds a link or a device", "pack plain files only")
    if info.flag_bits & 0x2041:
        raise InputError("unsafe_archive", "the archive is encrypted", "pack it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError("unsupported_type", "the archive is packed by another method than deflate", "pack it as zip")


def _check_name(name: str) -> None:
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in parts or "\0" in name:
        raise InputError(
            "unsafe_archive", "a member's name leads out of the folder that it is unpacked to", "pack it by plain names"
        )


def _check_total(count: int, total: int, packed: int, limits: Limits) -> None:
    if count > MAX_FILES:
        raise InputError("too_many_files", f"the archive holds {count} files, the limit is {MAX_FILES}")
    limits.check_bytes(total)
    if total > max(MAX_RATIO * packed, RATIO_COUNTS_FROM):
        raise InputError("too_large_decompressed", f"{packed} bytes inflate to {total}, over {MAX_RATIO} times as many")


def _untar(content: bytes, limits: Limits) -> Iterator[Member]:
    end, count = 0, 0
    try:
        with tarfile.open(fileobj=BytesIO(content), mode="r:") as archive:
            for info in archive:
                count += 1
                _check_name(info.name)
                if info.issparse() or not (info.isdir() or info.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
                    raise InputError("unsafe_archive", "the archive holds a link or a device", "pack plain files only")
                _check_total(count, max(info.size, 0), len(content), limits)
                end = info.offset_data + -(-info.size // BLOCK) * BLOCK
                if info.size < 0 or info.offset_data + info.size > len(content):
                    break
                if not info.isdir():
                    yield info.name, content[info.offset_data : info.offset_data + info.size]
    except (tarfile.TarError, ValueError, OverflowError) as error:
        code = "truncated" if "end of data" in str(error) or "truncated" in str(error) else "corrupt"
        raise InputError(code, "the archive is damaged or ends too early", "make or copy it again") from None
    # A damaged header in the middle ends the loop as the end of the archive does.
    if end + BLOCK > len(content):
        raise InputError("truncated", "the archive ends too early", "make or copy it again")
    if any(content[end : end + BLOCK]):
        raise InputError("corrupt", "the archive is damaged", "make or copy it again")


def _is_archive(name: str, data: bytes) -> bool:
    packed = data.startswith((b"PK\3\4", b"PK\5\6")) or data[257:262] == b"ustar"
    return packed and PurePosixPath(name).suffix.lower() in ARCHIVE_SUFFIXES and not is_dicom(data)
