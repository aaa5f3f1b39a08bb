"""Files elsewhere, at a URL that fsspec knows (s3://, gs://, az://, memory://): mirrored to a local disk to be read.

A mirror lies in medray's home under the URL's own path, so that what belongs together stays together. Files that have
not changed are not fetched again, and what was mirrored whole serves without a network too. Safe to delete.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel

from medray import cluster
from medray.config import ConfigError
from medray.sections.base import is_remote, url_of

Settings = TypeVar("Settings", bound=BaseModel)

MIRRORS = "mirrors"
LISTINGS = ".listings"
LISTS = (".csv", ".tsv", ".json", ".sha256")
"""Files that name others, which lie beside them."""
BATCH = 64
TRIES = 3
GB = 1e9
DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


def here(settings: Settings) -> Settings:
    """The same settings with each remote path replaced by its mirror on this machine; a list of files with its folder.

    Raises:
        ConfigError: as `local` does.
    """
    return _with(settings, lambda path: local(path.parent) / path.name if path.suffix.lower() in LISTS else local(path))


def mirrored(settings: Settings) -> Settings:
    """The same settings with each remote path replaced by where its mirror is, if there is one; nothing is fetched."""
    return _with(settings, lambda path: cluster.home() / MIRRORS / path.parts[0].rstrip(":") / Path(*path.parts[1:]))


def _with(settings: Settings, place: Callable[[Path], Path]) -> Settings:
    found = {name: place(value) for name, value in settings if isinstance(value, Path) and is_remote(value)}
    return settings.model_copy(update=found) if found else settings


def local(path: Path) -> Path:
    """A local path as it is; of a remote one its mirror, brought up to date where it can be reached.

    Raises:
        ConfigError: nothing is there, it may not be read, it cannot be reached and was not mirrored before, or this
            disk has no room for it.
    """
    if not is_remote(path):
        return path
    url = url_of(path)
    fs, root = opened(url)
    if ".." in PurePosixPath(root).parts:
        raise ConfigError([f"{url}: '..' has no place in the path of a mirror"])
    mirror, root = cluster.home() / MIRRORS / url.partition(":")[0], root.strip("/")
    with _listing(mirror.parent / LISTINGS, url) as listing:
        known = _read(listing)
        try:
            found = _find(fs, root)
        except Exception as error:
            if isinstance(error, FileNotFoundError | PermissionError) or not known.get("whole"):
                raise ConfigError([f"{url}: cannot be read: {reason_of(error)}"]) from error
            _say(f"warning: {url} cannot be reached ({reason_of(error)}); read from its mirror of before in {mirror}")
            return mirror / root
        if not found:
            raise ConfigError([f"{url}: nothing is there"])
        _bring(fs, mirror, found, known.get("files", {}), listing, url)
    return mirror / root


def forget(file: Path) -> None:
    """Delete a file of a mirror, the folders that it leaves empty, and its name in what was mirrored."""
    root = cluster.home() / MIRRORS
    file.unlink(missing_ok=True)
    for folder in file.parents:
        if folder.parent == root or any(folder.iterdir()):
            break
        folder.rmdir()
    scheme, _, name = file.relative_to(root).as_posix().partition("/")
    for listing in (root / LISTINGS).glob("*.json"):
        known = _read(listing)
        if known.get("scheme") == scheme and known.get("files", {}).pop(name, None) is not None:
            _write(listing, scheme, known["files"], whole=bool(known.get("whole")))


def opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, without memory of what it has seen, and the path in it.

    Raises:
        ConfigError: no package is installed for such URLs.
    """
    import fsspec

    try:
        made = {"auto_mkdir": True} if "://" not in url or url.startswith("file:") else {}
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **made)
    except (ImportError, ValueError) as error:
        scheme = url.partition(":")[0]
        driver = DRIVERS.get(scheme)
        hint = f"install {driver} on every node, for example with 'medray[{scheme}]'" if driver else str(error)
        raise ConfigError([f"{url}: {scheme}:// cannot be read here; {hint}"]) from error
    return fs, str(root).rstrip("/")


def reason_of(error: BaseException) -> str:
    """Why a place cannot be read or written, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def marks(found: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Of each file of a listing its size and what changes when its content does; what stands for a folder is left out.

    Raises:
        PermissionError: a name would lead out of the folder that it is copied to.
    """
    wrong = next((name for name in found if ".." in PurePosixPath(name).parts), None)
    if wrong is not None:
        raise PermissionError(f"'{wrong}' would lie outside of its copy")
    keys = ("ETag", "etag", "md5Hash", "LastModified", "updated", "mtime", "created")
    return {
        name.strip("/"): [info.get("size"), next((str(info[key]) for key in keys if info.get(key)), "")]
        for name, info in found.items()
        if not name.endswith("/")
    }


def _find(fs: Any, root: str) -> dict[str, list[Any]]:
    return {name: mark for name, mark in marks(fs.find(root, detail=True)).items() if mark[0] is not None}


def _bring(
    fs: Any, mirror: Path, found: dict[str, list[Any]], known: dict[str, list[Any]], listing: Path, url: str
) -> None:
    """Fetch what is new or has changed, delete what is gone; broken off, it goes on where it was."""
    stale = [name for name, mark in found.items() if known.get(name) != mark or not (mirror / name).is_file()]
    size = sum(int(found[name][0]) for name in stale)
    mirror.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(mirror).free
    if size > free:
        needs = f"its {len(stale)} files take {size / GB:.1f} GB, {free / GB:.1f} GB are free"
        raise ConfigError([f"{url}: no room for its mirror in {mirror}: {needs}; set MEDRAY_HOME to a larger disk"])
    if stale:
        _say(f"fetching {url}: {len(stale)} of {len(found)} files, {size / GB:.2f} GB, to {mirror}")
    for name in known.keys() - found.keys():
        (mirror / name).unlink(missing_ok=True)
    have = {name: mark for name, mark in known.items() if name in found and name not in set(stale)}
    for start in range(0, len(stale), BATCH):
        batch = stale[start : start + BATCH]
        try:
            _fetch(fs, mirror, batch)
        except Exception as error:
            _write(listing, mirror.name, have, whole=False)
            raise ConfigError([f"{url}: broken off: {reason_of(error)}; the same command goes on"]) from error
        have |= {name: found[name] for name in batch}
        _write(listing, mirror.name, have, whole=len(have) == len(found))
    _write(listing, mirror.name, have, whole=True)


def _fetch(fs: Any, mirror: Path, names: list[str]) -> None:
    """Fetch some files, each there whole or as it was."""
    partial = [str(mirror / f"{name}.partial") for name in names]
    for file in partial:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(TRIES):
        try:
            fs.get(names, partial)
            break
        except Exception:
            if attempt == TRIES - 1:
                for file in partial:
                    Path(file).unlink(missing_ok=True)
                raise
    for name, file in zip(names, partial, strict=True):
        Path(file).replace(mirror / name)


@contextmanager
def _listing(folder: Path, url: str) -> Iterator[Path]:
    """The file that says what was mirrored from `url`, this process's alone while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.json"
    # One lock for all that lies in a bucket: a URL may lie within another.
    bucket = "-".join(part for part in Path(url).parts[:2] if part != "/").replace(":", "")
    with (folder / f"{bucket}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield file


def _read(file: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    return {}


def _write(file: Path, scheme: str, files: Mapping[str, list[Any]], whole: bool) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"scheme": scheme, "files": files, "whole": whole}), encoding="utf-8")
    partial.replace(file)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
