"""From an experiment to everything that a training needs: dataset -> split -> store -> targets."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medray.cluster import Mapper
from medray.config import ConfigError, Experiment, load_plugin
from medray.datasets.scan import scan
from medray.pipeline import casestore
from medray.pipeline.casestore import CaseStore
from medray.pipeline.hashes import HASHES
from medray.pipeline.integrity import dataset_files, verify
from medray.pipeline.shelf import Refusal, StoreError
from medray.pipeline.split import SplitIndices, split
from medray.pipeline.store import Store, build, on_this_node
from medray.remote import mirrored
from medray.types import IGNORED, Array, Dataset, NetworkIO

Kind = Literal["classes", "numeric", "dense"]


class DataRefused(RuntimeError):
    """Too much of the data cannot be used; the message lists what and why."""

    def __init__(self, message: str, refused: Sequence[Refusal]) -> None:
        super().__init__(message)
        self.refused = tuple(refused)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A dataset ready to train on; picklable, so that workers on other nodes can open it."""

    dataset: Dataset
    split: SplitIndices
    """Rows of the store, refused cases left out."""
    targets: Array
    """(N, K) float32, one-hot or multi-hot; of a dense task 1 where the class occurs."""
    weights: Array
    """(N,) float32, the dataset's own."""
    store_folder: Path
    shape: tuple[int, ...]
    """(C, *S) of the network's grid, of a dense task its window."""
    refused: tuple[Refusal, ...]
    warnings: dict[str, int]
    dense: bool = False
    """Whether cases are answered per voxel: they lie in a CaseStore, each on a grid of its own."""

    def rows(self, name: str) -> Array:
        """Rows of the split `name`."""
        return np.asarray(getattr(self.split, name), dtype=np.int64)

    def network_io(self, outputs: int) -> NetworkIO:
        """What the network takes and gives."""
        return NetworkIO(self.shape[0], self.shape[1:], outputs, self.dense)

    @property
    def fingerprint(self) -> str:
        """Hash of content, preprocessing, classes and labels: equal for equal data."""
        digest = hashlib.sha256(f"{self.store_folder.name} {self.dataset.classes}".encode())
        digest.update(self.targets.tobytes())
        return digest.hexdigest()[:24]

    @property
    def split_fingerprint(self) -> str:
        """Hash of which cases validate and test."""
        ids = [[self.dataset.refs[row].case_id for row in rows] for rows in (self.split.val, self.split.test)]
        return hashlib.sha256(json.dumps([sorted(part) for part in ids]).encode()).hexdigest()[:24]

    def open(self, experiment: Experiment) -> Store:
        """The store on this node's disk.

        Raises:
            StoreError: this node reads other cases than the one that prepared the training.
        """
        store = on_this_node(self.store_folder, self.dataset.refs, experiment.preprocess)
        if (store.key, store.refused) != (self.store_folder.name, self.refused):
            raise _other_files()
        return store

    def open_cases(self, experiment: Experiment) -> CaseStore:
        """The store of a dense task on this node's disk.

        Raises:
            StoreError: this node reads other cases than the one that prepared the training.
        """
        recipe = casestore.recipe_of(self.dataset, experiment.preprocess)
        store = casestore.on_this_node(self.store_folder, self.dataset.refs, recipe)
        if (store.key, store.refused) != (self.store_folder.name, self.refused):
            raise _other_files()
        return store


def _other_files() -> StoreError:
    return StoreError(f"the dataset's files on {platform.node()} are not those that the run was prepared with")


def prepare(experiment: Experiment, root: Path, mapper: Mapper[Any, Any] = map) -> Prepared:
    """Scan, split, read and preprocess.

    Args:
        experiment: the run.
        root: folder for stores, on a local disk.
        mapper: `map`, or `cluster.parallel_map`.

    Raises:
        ConfigError: the dataset's settings do not fit what is there.
        DataRefused: files differ from dataset.manifest, or more cases than dataset.max_bad_fraction are unreadable.
        StoreError: the store cannot be built.
    """
    dataset = scan(experiment.dataset)
    kind = kind_of(experiment)
    dense = kind == "dense"
    _check_targets(dataset, kind)
    if kind == "numeric":
        # From here on the columns of the targets are these.
        dataset = replace(dataset, classes=dataset.quantities)
    indices = split(dataset, experiment.split)
    root.mkdir(parents=True, exist_ok=True)
    _check_integrity(dataset, mirrored(experiment.dataset).manifest, root / HASHES)
    store: Store | CaseStore
    if dense:
        store = casestore.build(dataset.refs, casestore.recipe_of(dataset, experiment.preprocess), root, mapper)
    else:
        store = build(dataset.refs, experiment.preprocess, root, mapper)
    _check_refusals(store, experiment.dataset.max_bad_fraction, len(dataset.refs))
    indices = _without({refusal.row for refusal in store.refused}, indices)
    if experiment.split.join_val:
        joined = tuple(sorted(indices.train + indices.val))
        indices = replace(indices, train=joined, val=(), method=f"{indices.method}; val trains too")
    for name in ("train",) if experiment.split.join_val else ("train", "val"):
        if not getattr(indices, name):
            raise DataRefused(f"no case is left in {name} ({indices.method})", store.refused)
    return Prepared(
        dataset=dataset,
        split=indices,
        targets=(store.counts > 0).astype(np.float32) if isinstance(store, CaseStore) else _targets(dataset, kind),
        weights=np.array([ref.weight for ref in dataset.refs], np.float32),
        store_folder=store.folder,
        shape=_window_shape(experiment, store) if isinstance(store, CaseStore) else store.images.shape[1:],
        refused=store.refused,
        warnings=store.warnings,
        dense=dense,
    )


def kind_of(experiment: Experiment) -> Kind:
    """What the experiment's task learns from: label maps, numbers, or classes of whole images."""
    task = load_plugin("tasks", experiment.task.name)
    return "dense" if getattr(task, "DENSE", False) else "numeric" if getattr(task, "NUMERIC", False) else "classes"


def _check_targets(dataset: Dataset, kind: Kind) -> None:
    """Refuse a dataset that does not hold what the task learns from."""
    if kind == "numeric":
        unlabelled = sum(not ref.numbers for ref in dataset.refs)
        what, hint = "numbers", "a regression needs them: name their columns, dataset.numbers=[age] with a table"
    elif kind == "dense":
        unlabelled = sum(ref.label_map is None for ref in dataset.refs)
        what, hint = "label map", "segmentation needs one each (classes of whole images are for classification)"
        if len(dataset.classes) > IGNORED:
            raise DataRefused(
                f"a stored label tells {IGNORED} classes apart, the dataset has {len(dataset.classes)}", ()
            )
        if not unlabelled and any(ref.target for ref in dataset.refs):
            fact = f"the classes {', '.join(dataset.classes[:3])} are those of whole images, not of label maps"
            raise DataRefused(f"{fact}; take a layout that names these: decathlon, nnunet, pairs", ())
    else:
        unlabelled = 0 if dataset.multilabel else sum(not ref.target for ref in dataset.refs)
        what, hint = "class", "classification needs one each (label maps are for segmentation)"
    if unlabelled:
        raise DataRefused(f"{unlabelled} of {len(dataset.refs)} cases have no {what}; {hint}", ())


def _window_shape(experiment: Experiment, store: CaseStore) -> tuple[int, ...]:
    """(C, *W) of what the network sees at once."""
    if experiment.preprocess.slice is not None:
        raise ConfigError(["preprocess.slice: is for answers per case; a window.size of two axes reads all slices"])
    size = experiment.window.size or experiment.preprocess.size
    if size is None:
        raise ConfigError(["window.size: is missing; give one edge per axis, or let `medray plan` choose it"])
    if not store.spatial_dims - 1 <= len(size) <= store.spatial_dims:
        raise ConfigError([f"window.size: has {len(size)} axes, the images have {store.spatial_dims}"])
    slices = 1 if len(size) == store.spatial_dims else 2 * experiment.window.neighbours + 1
    return (store.channels * slices, *size)


def _check_integrity(dataset: Dataset, manifest: Path | None, cache: Path) -> None:
    """Refuse files that are not those of the manifest, each by name."""
    problems = verify(dataset_files(dataset.refs), manifest, cache) if manifest else ()
    if manifest and problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:10])
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DataRefused(f"{len(problems)} files are not as {manifest.name} lists them:\n{shown}{more}", ())


def _check_refusals(store: Store | CaseStore, limit: float, count: int) -> None:
    """Refuse to train when too many cases are left out."""
    if len(store.refused) / count > limit:
        shown = "\n".join(f"  {refusal}" for refusal in store.refused[:10])
        more = f"\n  ... and {len(store.refused) - 10} more" if len(store.refused) > 10 else ""
        raise DataRefused(
            f"{len(store.refused)} of {count} cases cannot be used, more than "
            f"dataset.max_bad_fraction={limit:g} allows:\n{shown}{more}",
            store.refused,
        )


def _without(bad: set[int], indices: SplitIndices) -> SplitIndices:
    """The split without refused rows."""
    parts = {name: tuple(row for row in getattr(indices, name) if row not in bad) for name in ("train", "val", "test")}
    return SplitIndices(**parts, method=indices.method)


def _targets(dataset: Dataset, kind: Kind) -> Array:
    """(N, K) one-hot or multi-hot, or numbers."""
    if kind == "numeric":
        return np.array([ref.numbers for ref in dataset.refs], np.float32)
    targets = np.zeros((len(dataset.refs), len(dataset.classes)), np.float32)
    for row, ref in enumerate(dataset.refs):
        targets[row, list(ref.target)] = 1.0
    return targets
