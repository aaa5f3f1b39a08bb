"""What is kept of an answer for a while: enough to make every file of it. It travels between processes."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import IO, Any, cast

from medray.imaging.dicom.headers import is_foreign
from medray.inference.about import Facts
from medray.types import Array, Case, Prediction

HEAD_BYTES = 132
"""Of a file: enough to tell whether it is DICOM."""


@dataclass(frozen=True, eq=False)
class Kept:
    """One answer, the image that it is of, and the upload that this came from."""

    request_id: str
    model: str
    """name/version."""
    digest: str
    """sha256 that names the bytes of the model."""
    body: Mapping[str, Any]
    """The answer as JSON."""
    raw: Case
    """The image as it lies in its file."""
    source: bytes
    """The upload."""
    kind: str
    """Of the upload, see imaging/reader.py's sniff."""
    answer: Prediction
    facts: Facts
    heat: Array | None = None
    """(*S) float32 in [0, 1] on the patient's grid: what speaks for the class that was asked about."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        arrays = (self.raw.image, self.answer.mask, self.answer.probabilities, self.heat)
        return len(self.source) + sum(array.nbytes for array in arrays if array is not None)

    @cached_property
    def is_dicom(self) -> bool:
        """Whether the upload is DICOM, or an archive of it."""
        return self.kind == "dicom" or (
            self.kind == "archive" and not all(is_foreign(name, head) for name, head in _heads(self.source))
        )

    def available(self) -> tuple[str, ...]:
        """Which files there are, by the names that `render.render` takes; slices and report there always are."""
        masked, volume = self.answer.mask is not None, self.raw.spatial_dims == 3
        there = {
            "mask": masked,
            "overlay": masked,
            "explanation": self.heat is not None,
            "dicom_seg": masked and self.is_dicom,
            "report": True,
            "slices": True,
            "image_preview": volume,
            "mask_preview": volume and masked,
            "heat_preview": volume and self.heat is not None,
        }
        return tuple(name for name, found in there.items() if found)


def _heads(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and first bytes of each file in an archive that the reader has taken; no more is inflated."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(BytesIO(content)) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as stream:
                        yield info.filename, stream.read(HEAD_BYTES)
        return
    with tarfile.open(fileobj=BytesIO(content), mode="r:") as tar:
        for member in tar:
            if member.isfile():
                yield member.name, cast(IO[bytes], tar.extractfile(member)).read(HEAD_BYTES)
