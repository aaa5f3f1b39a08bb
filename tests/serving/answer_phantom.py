"""Answers as the service keeps them, without the service: for tests of their files and of the page."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import numpy as np

from medray.imaging.reader import SNIFF_BYTES, read, sniff
from medray.inference.about import Facts
from medray.serving.answer import body_of
from medray.serving.kept import Kept
from medray.serving.respond import NOTICE, input_of
from medray.types import Array, Case, Prediction

MODEL = ("phantom", "3", "ab" * 32)
CLASSES = ("background", "organ", "lesion")


def facts(axes: int = 3, structures: tuple[str, ...] = CLASSES[1:], **changes: Any) -> Facts:
    dense = bool(structures)
    plain = {
        "name": MODEL[0],
        "digest": MODEL[2],
        "task": "segmentation" if dense else "classification",
        "dense": dense,
        "axes": axes,
        "channels": 1,
        "classes": CLASSES,
        "structures": structures,
        "outputs": CLASSES,
    }
    return Facts(**{**plain, **changes})


def segmented(raw: Case, mask: Array, structures: tuple[str, ...] = CLASSES[1:]) -> Prediction:
    unit = raw.voxel_size / (1000 if raw.spatial_dims == 3 and raw.unit == "mm" else 1)
    inside = mask if mask.dtype == np.bool_ else np.stack([mask == value for value in range(1, len(structures) + 1)])
    sizes = {name: float(part.sum()) * unit for name, part in zip(structures, inside, strict=True)}
    found = tuple(name for name, size in sizes.items() if size)
    return Prediction("upload", CLASSES, np.zeros(0), found, ("low_quality_noise",), mask=mask, volumes=sizes)


def classified(*scores: float) -> Prediction:
    classes = CLASSES[: len(scores)]
    best = classes[int(np.argmax(scores))]
    said = np.array(scores)
    return Prediction("upload", classes, said, (best,), ("unseen_intensity",), conformal_set=classes[:2])


def kept(source: bytes, answer: Prediction, known: Facts, heat: Array | None = None, raw: Case | None = None) -> Kept:
    """What is kept of an answer for an upload."""
    raw = read(source) if raw is None else raw
    kind, request_id = sniff(source[:SNIFF_BYTES]), uuid.uuid4().hex
    said = body(request_id, source, raw, kind, answer, known)
    if heat is not None:
        said["explanation"] = {"method": "gradcam", "target": (answer.labels or known.classes)[0]}
    return Kept(request_id, f"{MODEL[0]}/{MODEL[1]}", MODEL[2], said, raw, source, kind, answer, known, heat)


def body(request_id: str, source: bytes, raw: Case, kind: str, answer: Prediction, known: Facts) -> dict[str, Any]:
    thresholds = dict.fromkeys(answer.classes, 0.5) if len(answer.scores) else {}
    return {
        "request_id": request_id,
        "model": dict(zip(("name", "version", "digest"), MODEL, strict=True)),
        "input": input_of(raw, hashlib.sha256(source).hexdigest(), kind),
        **body_of(answer, known, thresholds, raw),
        "timings_ms": {"read": 0.4, "decode": 8.1, "preprocess": 2.2, "queue": 0.3, "forward": 14.9, "total": 27.4},
        "notice": NOTICE,
    }
