"""API keys: a file that holds what each may do and the sha256 of it, never the key.

A key is 32 random bytes, so a plain hash keeps it: there is nothing to guess (NIST SP 800-63B, 5.1.2.2, asks for salt
and slow hashes of what people choose).
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from medray import cluster
from medray.config import ConfigError
from medray.serving.watched import Watched

Role = Literal["viewer", "user", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""

PREFIX = "mk_"
KEY_BYTES = 32
KEY = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOCAL = "local"
"""Who asks where no key is needed; no key has this name."""
FORMAT = 1
MOST_DAYS = 36_500


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of the file."""

    id: str
    """Whose it is; audit and limits go by it."""
    role: Role
    sha256: str
    created: datetime
    expires: datetime | None

    def expired(self, now: datetime | None = None) -> bool:
        """Whether its time is over."""
        return self.expires is not None and (now or datetime.now(UTC)) >= self.expires

    def as_dict(self) -> dict[str, Any]:
        """What the file says of it."""
        ends = None if self.expires is None else _stamp(self.expires)
        return {
            "id": self.id,
            "role": self.role,
            "sha256": self.sha256,
            "created": _stamp(self.created),
            "expires": ends,
        }


class KeyFile:
    """The keys that a service lets in; may be asked from several threads."""

    def __init__(self, path: Path, must_exist: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file; no file is no keys, unless it must exist.

        Raises:
            ConfigError: it cannot be used.
        """
        self._watched: Watched[tuple[Entry, ...]] = Watched(path, _parse, (), must_exist, clock)

    @property
    def trouble(self) -> str:
        """Why the file cannot be used now; empty if it can."""
        return self._watched.trouble

    def entries(self) -> tuple[Entry, ...]:
        """All keys that there are now."""
        return self._watched.get()

    def find(self, key: str) -> Entry | None:
        """The entry of `key`, which may have expired; as fast for a wrong key as for a right one."""
        entries = self.entries()
        if not KEY.fullmatch(key):
            return None
        digest, found = _sha256(key), None
        for entry in entries:
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return found


def default_path() -> Path:
    """The key file of who names none."""
    return cluster.home() / "keys.json"


def entries(path: Path) -> tuple[Entry, ...]:
    """All keys in a file; none where there is no file.

    Raises:
        ConfigError: it cannot be used.
    """
    return KeyFile(path).entries()


def add(path: Path, name: str, role: Role = "user", days: int | None = None) -> str:
    """Make a key, good for `days` or until it is removed, and return it: it is nowhere else.

    Raises:
        ConfigError: the name is taken or unfit, or the file cannot be used.
    """
    mistakes = []
    if not NAME.fullmatch(name) or name == LOCAL:
        rule = "1 to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit"
        mistakes.append(f"'{name}' cannot be the name of a key: {rule}, and not '{LOCAL}'")
    if role not in ROLES:
        mistakes.append(f"there is no role '{role}'; roles are {', '.join(ROLES)}")
    if days is not None and not 1 <= days <= MOST_DAYS:
        mistakes.append(f"days: {days} is not between 1 and {MOST_DAYS}")
    if mistakes:
        raise ConfigError(mistakes)
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    now = datetime.now(UTC).replace(microsecond=0)
    entry = Entry(name, role, _sha256(key), now, None if days is None else now + timedelta(days=days))
    with _alone(path) as file:
        there = entries(file)
        if any(other.id == name for other in there):
            raise ConfigError([f"there is a key '{name}' already; remove it first: medray key remove {name}"])
        _write(file, (*there, entry))
    return key


def remove(path: Path, name: str) -> None:
    """Take a key out of the file; a running service lets it in for a second or so longer.

    Raises:
        ConfigError: there is none of that name, or the file cannot be used.
    """
    with _alone(path) as file:
        there = entries(file)
        left = tuple(entry for entry in there if entry.id != name)
        if len(left) == len(there):
            names = ", ".join(entry.id for entry in there) or "none"
            raise ConfigError([f"'{path}' has no key '{name}'; there are: {names}"])
        _write(file, left)


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """The file behind `path`, which no other command changes meanwhile."""
    try:
        # A link stays one: what it leads to is replaced.
        file = path.resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_name(f".{file.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield file
    except OSError as error:
        raise ConfigError([f"'{path}' cannot be written: {error.strerror}"]) from None


def _write(file: Path, there: Sequence[Entry]) -> None:
    """Replace the file by one that only its owner can read, whole and on the disk."""
    text = json.dumps({"format": FORMAT, "keys": [entry.as_dict() for entry in there]}, indent=1)
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(file)


def _parse(content: bytes) -> tuple[Entry, ...]:
    """The keys that a file's bytes say; ValueError says what is wrong, without what is secret."""
    try:
        tree = json.loads(content)
    except ValueError:
        raise ValueError("it is no JSON; make keys with: medray key add NAME") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or not isinstance(tree.get("keys"), list):
        raise ValueError(f'it is no file of keys: {{"format": {FORMAT}, "keys": [...]}} is expected')
    there = tuple(_entry(number, item) for number, item in enumerate(tree["keys"], 1))
    if len({entry.id for entry in there}) < len(there):
        raise ValueError("two keys have the same id")
    return there


def _entry(number: int, item: object) -> Entry:
    try:
        if not isinstance(item, dict) or set(item) != {"id", "role", "sha256", "created", "expires"}:
            raise ValueError
        created, expires = (None if item[name] is None else _moment(item[name]) for name in ("created", "expires"))
        good = NAME.fullmatch(item["id"]) and item["id"] != LOCAL and re.fullmatch("[0-9a-f]{64}", item["sha256"])
        if not good or item["role"] not in ROLES or created is None:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"its key number {number} has not id, role, sha256, created and expires as they are") from None
    return Entry(item["id"], item["role"], item["sha256"], created, expires)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError
    return moment.astimezone(UTC)


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
