"""What a decoder's worker and its parent say to each other: JSON in frames, and bulk in memory that both have mapped.

A frame is its length (4 bytes, big-endian) and so many bytes of JSON. What the worker sends may be made by an attacker:
all that is not as it must be is a ConnectionError.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medray.types import Array, ArrayRef, Case, InputError, SeriesRef, Source

MAX_MESSAGE_BYTES = 16 << 20
"""A question may name each file of a long series."""
MAX_ANSWER_BYTES = 1 << 20
KEPT_BYTES = 128 << 20
"""Shared memory that is kept for the next file: fresh memory costs as much time as inflating into it."""
VOXELS = {np.dtype(f"{kind}{size}").name for kind in "iu" for size in (1, 2, 4, 8)} | {"bool", "float32", "float64"}
UNITS: dict[str, Literal["mm", "px"]] = {"mm": "mm", "px": "px"}


class Bulk:
    """A memory file (memfd_create(2)): it has no name, and is gone when nobody has it open or mapped.

    It can grow and not shrink: to shorten it under the parent's eyes would kill the parent. What is in it is copied
    at either end, which costs less than new memory for each file, and an image is its reader's own.
    """

    def __init__(self, file: int | None = None) -> None:
        if file is None:
            file = os.memfd_create("medray", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        self.file = file
        self._memory: mmap.mmap | None = None

    def put(self, array: Array) -> None:
        """Copy `array` to the start, in C order."""
        if array.nbytes > os.fstat(self.file).st_size:
            os.truncate(self.file, array.nbytes)
        self._first(array.shape, array.dtype)[...] = array

    def get(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A copy of what is at the start. Raises ValueError where the file is shorter."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if size > os.fstat(self.file).st_size:
            raise ValueError("the file is shorter")
        return self._first(shape, kind).copy()

    def shrink(self) -> None:
        """Give memory beyond KEPT_BYTES back."""
        if self._memory is not None and len(self._memory) > KEPT_BYTES:
            self._memory.madvise(mmap.MADV_REMOVE, KEPT_BYTES)

    def _first(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        count = math.prod(shape)
        if self._memory is None or len(self._memory) < count * dtype.itemsize:
            self._memory = mmap.mmap(self.file, count * dtype.itemsize)
        return np.frombuffer(self._memory, dtype, count).reshape(shape)

    def close(self) -> None:
        """Let go of it; again is as once."""
        self._memory = None
        if self.file >= 0:
            os.close(self.file)
        self.file = -1


def send(link: socket.socket, message: Mapping[str, Any]) -> None:
    """Send one frame."""
    body = json.dumps(message).encode()
    link.sendall(struct.pack("!I", len(body)) + body)


def receive(link: socket.socket, most: int, until: float = math.inf) -> dict[str, Any]:
    """One frame of up to `most` bytes.

    Raises ConnectionError where the other end is gone or sends no frame, TimeoutError at `until` (time.monotonic()).
    """
    size = struct.unpack("!I", _exactly(link, 4, until))[0]
    if size > most:
        raise ConnectionError("the frame is too long")
    try:
        message = json.loads(_exactly(link, size, until))
    except (ValueError, RecursionError):
        raise ConnectionError("the message is not JSON") from None
    if not isinstance(message, dict):
        raise ConnectionError("the message is no object")
    return message


def _exactly(link: socket.socket, size: int, until: float) -> bytes:
    body = bytearray()
    while len(body) < size:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        link.settimeout(None if math.isinf(left) else left)
        part = link.recv(min(size - len(body), 1 << 16))
        if not part:
            raise ConnectionError("the other end is gone")
        body += part
    return bytes(body)


def question(source: Source | str, bulk: Bulk) -> dict[str, Any]:
    """`source` in words; where it is bytes, these go to `bulk`."""
    match source:
        case bytes():
            bulk.put(np.frombuffer(source, np.uint8))
            return {"size": len(source)}
        case ArrayRef(path, member, index):
            return {"path": str(path.absolute()), "member": member, "index": index}
        case SeriesRef(files, series_time):
            return {"files": [str(file.absolute()) for file in files], "time": series_time}
    # The worker keeps the working folder that its parent had when it began.
    return {"path": str(Path(source).absolute())}


def source_of(words: Mapping[str, Any], bulk: Bulk) -> Source:
    """The inverse of `question`."""
    if "size" in words:
        return bulk.get((words["size"],), "uint8").tobytes()
    if "member" in words:
        return ArrayRef(Path(words["path"]), words["member"], words["index"])
    if "files" in words:
        return SeriesRef(tuple(map(Path, words["files"])), words["time"])
    return Path(words["path"])


def answer(case: Case, bulk: Bulk) -> dict[str, Any]:
    """`case` in words; its voxels go to `bulk`."""
    bulk.put(case.image)
    return {
        "shape": case.image.shape,
        "dtype": case.image.dtype.name,
        "affine": case.affine.tolist(),
        "words": [case.case_id, case.unit, case.modality, case.subject_id],
        "attributes": dict(case.attributes),
        "warnings": case.warnings,
    }


def refusal(error: InputError) -> dict[str, Any]:
    """`error` in words."""
    return {"refused": [error.code, error.detail, error.hint]}


def case_of(words: Mapping[str, Any], bulk: Bulk, most: int) -> Case:
    """The inverse of `answer`, for voxels of up to `most` bytes; raises the inverse of `refusal`.

    Raises ConnectionError for what is neither.
    """
    try:
        if "refused" in words:
            raise InputError(*_texts(words["refused"], 3))
        case_id, unit, modality, subject_id = _texts(words["words"], 4)
        attributes = dict(words["attributes"])
        _texts(list(attributes.values()))
        affine = np.array(words["affine"], np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError("no affine")
        return Case(
            case_id=case_id,
            image=_image(words["shape"], words["dtype"], bulk, most),
            affine=affine,
            unit=UNITS[unit],
            modality=modality,
            subject_id=subject_id,
            attributes=attributes,
            warnings=tuple(_texts(words["warnings"])),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ConnectionError("the answer is not a case") from None


def _image(shape: Any, dtype: str, bulk: Bulk, most: int) -> Array:
    lengths = [length for length in shape if type(length) is int and length > 0]
    if dtype not in VOXELS or len(lengths) != len(shape) or not 3 <= len(shape) <= 4:
        raise ValueError("no image")
    if math.prod(lengths) * np.dtype(dtype).itemsize > most:
        raise ValueError("more than the worker may take itself")
    return bulk.get(tuple(lengths), dtype)


def _texts(found: object, count: int | None = None) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError("no list of texts")
    if count is not None and len(found) != count:
        raise ValueError("another number of texts")
    return found
