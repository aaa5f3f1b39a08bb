"""A dataset's files against a manifest of their sha256, as `sha256sum` writes and `sha256sum -c` reads it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medray.pipeline.hashes import MISSING, file_hashes, files_of
from medray.types import CaseRef, InputError

LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
"""A backslash in front says that the name's own backslashes and line ends are escaped."""
ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is not as its manifest says."""

    kind: Literal["changed", "missing", "not listed"]
    path: str
    """Relative to the manifest's folder."""

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}"


def dataset_files(refs: Iterable[CaseRef]) -> tuple[Path, ...]:
    """Every file that the images and label maps of a dataset are read from, once, in order."""
    files = (file for ref in refs for file in (*files_of(ref), *([ref.label_map] if ref.label_map else [])))
    return tuple(dict.fromkeys(files))


def write_manifest(files: Iterable[Path], root: Path, target: Path, cache: Path) -> None:
    """Write the sha256 of each file, sorted by name.

    Args:
        files: absolute paths.
        root: what the names are relative to: the folder in which `target` is to be verified.
        target: the file to write, replaced when whole.
        cache: the SQLite file of known hashes.

    Raises:
        InputError: `missing_files` where one cannot be read.
    """
    hashes = file_hashes(files, cache)
    lost = sorted(os.path.relpath(file, root) for file, sha256 in hashes.items() if sha256 == MISSING)
    if lost:
        detail = f"{len(lost)} of {len(hashes)} files cannot be read, the first is '{lost[0]}'"
        raise InputError("missing_files", detail, "a manifest lists whole files")
    lines = sorted((_relative(file, root), sha256) for file, sha256 in hashes.items())
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", dir=target.parent, delete=False) as stream:
        stream.writelines(_line(name, sha256) for name, sha256 in lines)
    Path(stream.name).chmod(0o644)
    Path(stream.name).replace(target)


def verify(files: Iterable[Path], manifest: Path, cache: Path) -> tuple[Problem, ...]:
    """What is not as the manifest says, sorted by path: nothing where all is well.

    Every file that the manifest lists is verified, tables of labels and annotations too, and each of `files` must
    be listed. A file counts as unchanged without reading it again while its size and modification time are those
    in the cache.

    Args:
        files: absolute paths of what the dataset uses.
        manifest: lines '<sha256>  <path>', paths relative to its folder.
        cache: the SQLite file of known hashes.

    Raises:
        InputError: `broken_manifest` for a file that is no such list, `escaping_path` for a path that leads out.
    """
    root = manifest.parent
    listed = _read(manifest)
    names = {_relative(file, root): file for file in files}
    hashes = file_hashes([names.get(name, root / name) for name in listed], cache)
    problems = [Problem("not listed", name) for name in names if name not in listed]
    for name, sha256 in listed.items():
        found = hashes[names.get(name, root / name)]
        if found != sha256:
            problems.append(Problem("missing" if found == MISSING else "changed", name))
    return tuple(sorted(problems, key=lambda problem: problem.path))


def _relative(file: Path, root: Path) -> str:
    """The path as a manifest in `root` names it; links stay."""
    return Path(os.path.relpath(file, root)).as_posix()


def _line(name: str, sha256: str) -> str:
    escaped = "".join(ESCAPES.get(character, character) for character in name)
    return f"{'' if escaped == name else chr(92)}{sha256}  {escaped}\n"


def _read(manifest: Path) -> dict[str, str]:
    """Path -> sha256 in lower case."""
    try:
        lines = manifest.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise InputError("broken_manifest", f"the manifest cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError("broken_manifest", f"the manifest is not UTF-8 (byte {error.start})") from None
    listed: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.rstrip("\r"))
        if match is None:
            hint = "write it with `sha256sum` in the dataset's folder"
            raise InputError("broken_manifest", f"line {number} is not '<sha256>  <path>'", hint)
        name = os.path.normpath(_unescaped(match[3]) if match[1] else match[3])
        if Path(name).is_absolute() or name.split("/")[0] == "..":
            raise InputError(
                "escaping_path", f"line {number} leads out of the manifest's folder", "move the manifest up"
            )
        if listed.setdefault(name, match[2].lower()) != match[2].lower():
            raise InputError("broken_manifest", f"line {number} gives a second sha256 for a file", "keep one")
    return listed


def _unescaped(name: str) -> str:
    return re.sub(r"\\([\\nr])", lambda match: {"\\": "\\", "n": "\n", "r": "\r"}[match[1]], name)
