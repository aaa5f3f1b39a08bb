"""What the evaluated cases are to the bundle, proven: held out, validated on, trained on, or other data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medray.bundle import ModelBundle
from medray.cluster import home
from medray.config import ConfigError
from medray.datasets.scan import scan
from medray.evaluation.classification import targets_of
from medray.evaluation.result import Provenance
from medray.evaluation.source import as_learnt
from medray.pipeline.hashes import HASHES, MISSING, file_hashes, files_of
from medray.pipeline.integrity import dataset_files
from medray.pipeline.prepare import Prepared, kind_of
from medray.pipeline.split import SplitIndices, split
from medray.pipeline.store import store_key
from medray.types import ArrayRef, CaseRef, Dataset, InputError, SeriesRef

Readable = Callable[[CaseRef], bool]
"""Whether the bundle can read a case."""


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """The data of a bundle's training as they can be found again."""

    dataset: Dataset
    indices: SplitIndices
    proven: bool
    """Whether validation and test cases are, by the card's fingerprint, those of the training."""
    altered: bool = False
    """Whether images or labels are, by the card's fingerprint of the data, others than in the training."""

    def part(self, name: str) -> list[CaseRef]:
        """The cases of one part."""
        return [self.dataset.refs[row] for row in getattr(self.indices, name)]


def split_fingerprint(dataset: Dataset, indices: SplitIndices, without: Collection[str] = ()) -> str:
    """Hash of which cases validate and test, as the card has it (see pipeline/prepare.py)."""
    parts = [[dataset.refs[row].case_id for row in rows] for rows in (indices.val, indices.test)]
    kept = [sorted(name for name in names if name not in without) for names in parts]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:24]


def fingerprint(refs: Sequence[CaseRef], classes: Sequence[str]) -> str:
    """Hash of the images, label maps and labels of cases in their order, by content: equal for equal data."""
    hashes = _hashes(refs)
    digest = hashlib.sha256()
    for ref in refs:
        label = hashes[ref.label_map] if ref.label_map else ""
        names = sorted(classes[target] for target in ref.target)
        digest.update(f"{_content(ref, hashes)} {label} {names} {ref.numbers}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


def data_fingerprint(dataset: Dataset, indices: SplitIndices, bundle: ModelBundle) -> str:
    """Hash of content, preprocessing, classes and labels of a whole dataset, as the card has it.

    Empty for label maps, whose part in it is known when they are prepared.
    """
    kind = kind_of(bundle.experiment)
    if kind == "dense":
        return ""
    numbers = np.array([ref.numbers for ref in dataset.refs], np.float32)
    targets = numbers if kind == "numeric" else targets_of(dataset.refs, len(dataset.classes)).astype(np.float32)
    root = home() / "stores"
    root.mkdir(parents=True, exist_ok=True)
    place = root / store_key(dataset.refs, bundle.experiment.preprocess, root)
    nothing = np.zeros(0, np.float32)
    return Prepared(dataset, indices, targets, nothing, place, (), (), {}).fingerprint


def retrace(dataset: Dataset, bundle: ModelBundle, readable: Readable = lambda _: True) -> Training | None:
    """`dataset` split as in the bundle's training; None where it cannot be split so.

    A training leaves out what it cannot read, so where the card counts fewer cases those are looked for with
    `readable` before the fingerprints are said to differ.
    """
    try:
        indices = split(dataset, bundle.experiment.split)
    except (ConfigError, InputError):
        return None
    wanted, counts = bundle.card.get("split", ""), bundle.card.get("cases", {})
    proven = split_fingerprint(dataset, indices) == wanted
    found = Training(dataset, indices, proven)
    missing = sum(len(getattr(indices, name)) - counts.get(name, 0) for name in ("val", "test"))
    if not proven and missing > 0:
        bad = {ref.case_id for name in ("val", "test") for ref in found.part(name) if not readable(ref)}
        found = Training(dataset, indices, split_fingerprint(dataset, indices, bad) == wanted)
    if not found.proven:
        return found
    data = data_fingerprint(dataset, indices, bundle)
    return replace(found, altered=bool(data) and data != bundle.card.get("data"))


def training_data(bundle: ModelBundle) -> Training | None:
    """The bundle's own dataset, where it is on this machine and as it was in the training; else None."""
    try:
        found = retrace(as_learnt(scan(bundle.experiment.dataset), bundle), bundle)
    except (ConfigError, InputError, OSError):
        return None
    return found if found and found.proven and not found.altered else None


def judge(refs: Sequence[CaseRef], part: str, training: Training | None, same: bool) -> Provenance:
    """What `refs` are to the bundle.

    Args:
        refs: the evaluated cases.
        part: their part: test, val, train or all.
        training: the data of the training as far as they are known.
        same: whether `refs` are cases of `training.dataset` itself; else images are compared by content.
    """
    if training is None:
        statement = "Other data than the model's; those are not on this machine, so no image could be compared."
        return Provenance("other", statement)
    if not same:
        return _other(refs, training)
    if not training.proven:
        statement = (
            f"The {part} part cannot be verified: by fingerprint, validation and test cases of these data are not "
            "those of the training. The model may have been trained on some of these cases."
        )
        return Provenance("unverified", statement)
    if training.altered:
        statement = (
            "The cases have the names of those in the model's training, but images or labels are others: the "
            "fingerprints of the data differ. So it cannot be verified that these were held out."
        )
        return Provenance("unverified", statement)
    return _own(_roles_by_id(refs, training))


def _own(roles: Counter[str]) -> Provenance:
    total = roles.total()
    if roles["train"]:
        statement = (
            f"{roles['train']} of {total} cases were in the model's training set. The figures say how well it "
            "remembers, not how well it works on new patients."
        )
        return Provenance("seen", statement)
    if roles["val"]:
        statement = (
            f"The best epoch was chosen on {roles['val']} of {total} cases, so the figures are somewhat too good."
        )
        return Provenance("val", statement)
    statement = "Held out in the model's training: by fingerprint these are the test cases of its own split."
    return Provenance("test", statement)


def _other(refs: Sequence[CaseRef], training: Training) -> Provenance:
    """Other data: whether images, or subjects' names, of the training are among them."""
    used = training.part("train") + training.part("val")
    doubles = _same_images(refs, used)
    if doubles:
        statement = (
            f"{doubles} of {len(refs)} images are byte for byte images that the model was trained or validated on. "
            "The figures are too good."
        )
        return Provenance("overlap", statement)
    known = {ref.subject_id for ref in used} - {""}
    shared = {ref.subject_id for ref in refs} & known
    statement = (
        f"Other data than the model's: none of the {len(refs)} images equals one of its {len(used)} training images."
    )
    if shared:
        statement += (
            f" {len(shared)} subject names occur in both; if they are the same people, the figures are too good."
        )
    return Provenance("other", statement)


def _roles_by_id(refs: Sequence[CaseRef], training: Training) -> Counter[str]:
    role = {ref.case_id: name for name in ("train", "val", "test") for ref in training.part(name)}
    return Counter(role.get(ref.case_id, "none") for ref in refs)


def _same_images(refs: Sequence[CaseRef], used: Sequence[CaseRef]) -> int:
    """How many of `refs` have the content of one of `used`; only files of equal size are read."""
    sizes = {size for ref in refs for file in files_of(ref) if (size := _size(file))}
    alike = [ref for ref in used if all(_size(file) in sizes for file in files_of(ref))]
    if not alike:
        return 0
    hashes = _hashes((*refs, *alike))
    known = {_content(ref, hashes) for ref in alike}
    return sum(MISSING not in content and content in known for content in (_content(ref, hashes) for ref in refs))


def _hashes(refs: Sequence[CaseRef]) -> dict[Path, str]:
    """sha256 of every file of the cases, remembered where trainings remember theirs."""
    cache = home() / "stores" / HASHES
    cache.parent.mkdir(parents=True, exist_ok=True)
    return file_hashes(dataset_files(refs), cache)


def _content(ref: CaseRef, hashes: dict[Path, str]) -> str:
    """What an image is, whatever it is called."""
    files = " ".join(sorted(hashes[file] for file in files_of(ref)))
    match ref.source:
        case ArrayRef(_, member, index):
            return f"{files} {member} {index}"
        case SeriesRef(_, time):
            return f"{files} time {time}"
    return files


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
