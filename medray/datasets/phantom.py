"""Images drawn by medray itself, so that everything can be tried without data: real files, made once and kept.

They lie in $MEDRAY_HOME/phantoms (by default ~/medray/phantoms), in layouts that other plug-ins read too: slices in
one folder per class, volumes as a Decathlon with label maps.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import Field, field_validator

from medray.cluster import home
from medray.datasets.files import require_files
from medray.sections.base import DatasetSection
from medray.types import Array, CaseRef, Dataset

Kind = Literal["none", "benign", "malignant"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GENERATOR = 2
"""Part of the cache key: raised whenever the same settings draw other images."""
SUBJECTS_AT_ONCE = 32
"""Bounds the memory of a drawing step; it is part of what a seed means."""


class Config(DatasetSection):
    """What is drawn."""

    name: Literal["phantom"] = "phantom"
    kind: Literal["chest2d", "volume3d"] = "chest2d"
    """chest2d: axial chest CT slices as PNG; volume3d: lung CT volumes with a label map each, as NIfTI."""
    cases: Annotated[int, Field(ge=6, le=100_000)] = 2000
    size: Annotated[int, Field(ge=32, le=512)] | None = None
    """Edge in the plane; by default 64 pixels or 32 voxels (with 3/4 as many slices)."""
    seed: Annotated[int, Field(ge=0)] = 0
    classes: tuple[Kind, ...] = KINDS
    """Nodules: none, smooth, or larger on average and spiculated."""

    @field_validator("classes")
    @classmethod
    def _differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise ValueError(f"needs two or three different ones of {', '.join(KINDS)}")
        return classes


def scan(cfg: Config) -> Dataset:
    """References to the phantom's files, which are drawn first where they are not yet.

    About half of the subjects own two images with the same anatomy, so a split that ignores subjects leaks.

    Raises:
        InputError: `missing_files` where somebody deleted a part of the cache.
    """
    subjects, owner = _deal(cfg)
    root = home() / "phantoms" / _key(cfg)
    refs = tuple(_references(cfg, root, subjects, owner))
    if not root.is_dir():
        _publish(cfg, root, subjects, owner, refs)
    made = [path for ref in refs for path in (ref.source, ref.label_map) if isinstance(path, Path)]
    require_files(made, root, "phantom files (delete the folder to draw it anew)")
    return Dataset(refs, cfg.classes, notes=(f"phantom: drawn, not measured; files in {root}",))


def _key(cfg: Config) -> str:
    """Folder name: readable, and different for all that changes the drawing."""
    said = json.dumps([GENERATOR, cfg.kind, cfg.cases, _size(cfg), cfg.seed, cfg.classes])
    return f"{cfg.kind}-{cfg.cases}x{_size(cfg)}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def _size(cfg: Config) -> int:
    """The edge in the plane."""
    return cfg.size or (64 if cfg.kind == "chest2d" else 32)


def _deal(cfg: Config) -> tuple[Array, Array]:
    """Class index of each subject, evenly dealt, and the subject of each case."""
    rng = np.random.default_rng([cfg.seed, 0])
    owner = np.repeat(np.arange(cfg.cases), rng.integers(1, 3, cfg.cases))[: cfg.cases]
    count = int(owner[-1]) + 1
    return rng.permutation(np.arange(count) % len(cfg.classes)), owner


def _references(cfg: Config, root: Path, subjects: Array, owner: Array) -> list[CaseRef]:
    """One reference per case, in the order of subjects."""
    refs, visit = [], 0
    for row, subject in enumerate(owner):
        visit = visit + 1 if row and owner[row - 1] == subject else 0
        name, person = f"s{subject:06d}_{visit}", f"s{subject:06d}"
        target = int(subjects[subject])
        if cfg.kind == "chest2d":
            refs.append(CaseRef(name, root / cfg.classes[target] / f"{name}.png", (target,), person))
        else:
            file = f"{name}.nii.gz"
            refs.append(CaseRef(name, root / "imagesTr" / file, (target,), person, label_map=root / "labelsTr" / file))
    return refs


def _publish(cfg: Config, root: Path, subjects: Array, owner: Array, refs: Sequence[CaseRef]) -> None:
    """Draw into a folder of our own, then rename it: others see all files or none."""
    root.parent.mkdir(parents=True, exist_ok=True)
    # The folder inside has the user's usual permissions; that of mkdtemp is closed to colleagues.
    closed = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    draft = closed / "draft"
    try:
        for folder in cfg.classes if cfg.kind == "chest2d" else ("imagesTr", "labelsTr"):
            (draft / folder).mkdir(parents=True)
        write = _write_slices if cfg.kind == "chest2d" else _write_volumes
        write(cfg, draft, root, subjects, owner, refs)
        try:
            draft.replace(root)
        except OSError:
            # Another process was quicker; both drew the same.
            if not root.is_dir():
                raise
    finally:
        shutil.rmtree(closed, ignore_errors=True)


def _write_slices(cfg: Config, draft: Path, root: Path, subjects: Array, owner: Array, refs: Sequence[CaseRef]) -> None:
    """One PNG per case, in the folder of its class."""
    from medray.datasets.phantom_chest import draw
    from medray.imaging.writer import write_png

    kind = np.array([KINDS.index(name) for name in cfg.classes])[subjects]
    for first in range(0, len(subjects), SUBJECTS_AT_ONCE):
        rows = np.flatnonzero((owner >= first) & (owner < first + SUBJECTS_AT_ONCE)).tolist()
        rng = np.random.default_rng([cfg.seed, 1, first])
        images = draw(rng, kind[first : first + SUBJECTS_AT_ONCE], owner[rows] - first, _size(cfg))
        for row, image in zip(rows, images, strict=True):
            write_png(_drafted(refs[row].source, draft, root), image)


def _write_volumes(
    cfg: Config, draft: Path, root: Path, subjects: Array, owner: Array, refs: Sequence[CaseRef]
) -> None:
    """An image and a label map per case, and the dataset.json of a segmentation of nodules."""
    from medray.datasets.phantom_volume import SPACING_MM, draw
    from medray.imaging.writer import write_nifti

    spacing = np.array(SPACING_MM) * 32 / _size(cfg)
    for subject, target in enumerate(subjects):
        rows = np.flatnonzero(owner == subject).tolist()
        rng = np.random.default_rng([cfg.seed, 2, subject])
        images, labels = draw(rng, KINDS.index(cfg.classes[target]), len(rows), _size(cfg))
        for row, image, label in zip(rows, images, labels, strict=True):
            affine = np.diag([*spacing, 1.0])
            affine[:3, 3] = rng.uniform(-80, 80, 3)
            # Every third subject is stored in DICOM's LPS order, as scanners export it.
            stored = (image, label)
            if subject % 3 == 2:
                affine[:2, 3] += affine[[0, 1], [0, 1]] * (np.array(image.shape[:2]) - 1)
                affine[:2, :2] *= -1
                stored = (image[::-1, ::-1], label[::-1, ::-1])
            write_nifti(_drafted(refs[row].source, draft, root), stored[0], affine)
            write_nifti(_drafted(refs[row].label_map, draft, root), stored[1], affine)
    training = [
        {
            "image": f"imagesTr/{ref.case_id}.nii.gz",
            "label": f"labelsTr/{ref.case_id}.nii.gz",
            "subject": ref.subject_id,
        }
        for ref in refs
    ]
    tree = {"name": root.name, "modality": {"0": "CT"}, "labels": {"0": "background", "1": "nodule"}}
    (draft / "dataset.json").write_text(json.dumps({**tree, "training": training, "test": []}, indent=1), "utf-8")


def _drafted(path: object, draft: Path, root: Path) -> Path:
    """Where a file lies before the folder is renamed."""
    return draft / Path(str(path)).relative_to(root)
