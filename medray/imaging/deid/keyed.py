"""The secret behind pseudonyms, and what is derived from it: pseudonyms, UIDs and the shift of dates.

The same key gives the same answers in every process and every run, so that files which are de-identified apart
still fit together; nobody without the key can go back or guess by trying (HMAC-SHA256, RFC 2104).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import tempfile
import uuid
from pathlib import Path

KEY_BYTES = 32
CHARACTERS = 16
MAX_SHIFT_DAYS = 3650


def load_key(file: Path) -> bytes:
    """The key in `file`, made with mode 0600 if there is no file; no process ever sees half a key.

    Raises ValueError where the file holds anything but 64 hexadecimal digits.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".key-", encoding="ascii") as stream:
            stream.write(secrets.token_hex(KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
            # A link appears whole or not at all, and the first of several processes wins.
            with contextlib.suppress(FileExistsError):
                os.link(stream.name, file)
    text = file.read_text(encoding="ascii", errors="replace").strip()
    if not re.fullmatch(rf"[0-9a-fA-F]{{{2 * KEY_BYTES}}}", text):
        raise ValueError(f"'{file}' holds no key: {2 * KEY_BYTES} hexadecimal digits are expected")
    return bytes.fromhex(text)


def pseudonym(value: str, key: bytes, kind: str = "patient") -> str:
    """What stands for `value`; `kind` keeps a patient's id apart from a folder of the same name."""
    return _digest(f"{kind}:{value}", key).hex()[:CHARACTERS]


def new_uid(value: str, key: bytes) -> str:
    """What stands for a DICOM UID: '2.25.' and a UUID as a number (PS3.5 annex B.2)."""
    return f"2.25.{uuid.UUID(bytes=_digest(value, key)[:16], version=5).int}"


def shift_days(patient: str, key: bytes) -> int:
    """By how many days all dates of a patient move: 1 to 3650, into the past."""
    return -1 - int.from_bytes(_digest(f"shift:{patient}", key)[:8], "big") % MAX_SHIFT_DAYS


def _digest(text: str, key: bytes) -> bytes:
    return hmac.new(key, text.encode(errors="surrogateescape"), hashlib.sha256).digest()
