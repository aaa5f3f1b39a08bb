"""Which labelled cases a bundle is evaluated on: the data that are meant, and the part of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medray.bundle import ModelBundle
from medray.config import ConfigError, Experiment, load, nearest, to_yaml
from medray.datasets.scan import scan
from medray.pipeline.examine import experiment_of
from medray.pipeline.prepare import kind_of
from medray.pipeline.split import SplitIndices
from medray.types import CaseRef, Dataset

SETTINGS = ("dataset", "split")
"""Sections of an experiment that say which cases there are."""
Part = Literal["test", "val", "train", "all"]


@dataclass(frozen=True, slots=True)
class Labelled:
    """The data of an evaluation, before any image is read."""

    experiment: Experiment
    """Its sections dataset and split count; preprocessing is the bundle's."""
    dataset: Dataset
    """Its classes are in the bundle's order, until one is looked for."""
    own: bool
    """Whether nothing else was asked for than the bundle's own data."""

    @property
    def path(self) -> Path | None:
        """Where the data lie, where the layout has such a place."""
        found = getattr(self.experiment.dataset, "path", None)
        return found if isinstance(found, Path) else None

    @property
    def name(self) -> str:
        """What to call the data in a report: the last part of the path, never the path itself."""
        return self.path.name if self.path else self.experiment.dataset.name


def open_data(data: str | None, settings: Sequence[str], bundle: ModelBundle) -> Labelled:
    """The dataset that is meant, checked against what the bundle answers.

    Args:
        data: a path, an experiment (.yaml or packaged name), or None for the bundle's own.
        settings: key=value changes.
        bundle: the model.

    Raises:
        ConfigError: no such data, wrong settings, other classes, or labels of another task.
        InputError: what the layout refuses.
    """
    foreign = [key for key in (word.partition("=")[0] for word in settings) if key.split(".")[0] not in SETTINGS]
    if foreign:
        taken = "an evaluation takes dataset.* and split.*, the rest is the model's"
        raise ConfigError([f"{', '.join(foreign)}: cannot be set here; {taken}"])
    experiment = experiment_of(data, settings) if data else _own(bundle, settings)
    dataset = scan(experiment.dataset)
    dataset = in_order(as_learnt(dataset, bundle), bundle.classes, bundle.card["multilabel"])
    return Labelled(experiment, dataset, data is None and not settings)


def looking_for(positive: str | None, labelled: Labelled, bundle: ModelBundle) -> Labelled:
    """The data with the class that is looked for last, of two that exclude each other; others as they are.

    Not before they are split: a split that is stratified goes by the order of classes.

    Args:
        positive: its name; by default that of the bundle's first operating point, else the second class.
        labelled: the data.
        bundle: the model.

    Raises:
        ConfigError: there is no such class, or there are not two.
    """
    classes = bundle.classes
    pair = bundle.experiment.task.name == "classification" and len(classes) == 2 and not bundle.card["multilabel"]
    if positive is not None and (not pair or positive not in classes):
        kind = f"the classes are {', '.join(classes)}{nearest(positive, classes)}" if pair else "it is for two classes"
        raise ConfigError([f"--positive {positive}: {kind}"])
    points = (bundle.card.get("trust") or {}).get("operating_points") or ()
    named = positive or next((point["of"] for point in points if point.get("of") in classes), classes[-1])
    if not pair or named == classes[-1]:
        return labelled
    return replace(labelled, dataset=in_order(labelled.dataset, (classes[1], classes[0]), multilabel=False))


def _own(bundle: ModelBundle, settings: Sequence[str]) -> Experiment:
    """The bundle's experiment with changes to it."""
    if not settings:
        return bundle.experiment
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "own.yaml"
        file.write_text(to_yaml(bundle.experiment), encoding="utf-8")
        return load(file, settings)


def as_learnt(dataset: Dataset, bundle: ModelBundle) -> Dataset:
    """The dataset as the bundle's task sees it: of a regression the classes are the names of the numbers.

    Raises:
        ConfigError: its labels are those of another task.
    """
    task, kind = bundle.experiment.task.name, kind_of(bundle.experiment)
    holds = {
        "classes": ("classes per case", dataset.multilabel or any(ref.target for ref in dataset.refs)),
        "dense": ("label maps", any(ref.label_map for ref in dataset.refs)),
        "numeric": ("numbers", bool(dataset.quantities)),
    }
    needed, there = holds[kind]
    if not there:
        found = ", ".join(words for words, some in holds.values() if some)
        found = found or ("boxes" if any(ref.boxes for ref in dataset.refs) else "no labels")
        raise ConfigError(
            [f"the bundle is a {task}, which is judged by {needed}; the data hold {found}: name other data or model"]
        )
    return replace(dataset, classes=dataset.quantities) if kind == "numeric" else dataset


def in_order(dataset: Dataset, classes: tuple[str, ...], multilabel: bool) -> Dataset:
    """The dataset with its classes in the order of `classes`.

    Raises:
        ConfigError: other names, or classes that exclude each other in one of the two only.
    """
    if set(dataset.classes) != set(classes) or len(dataset.classes) != len(classes):
        near = next(filter(None, (nearest(name, classes) for name in dataset.classes if name not in classes)), "")
        raise ConfigError(
            [
                f"the data have the classes {', '.join(dataset.classes) or 'none'}; "
                f"the bundle answers {', '.join(classes)}{near}; "
                f"if they mean the same, in this order: dataset.classes=[{','.join(classes)}]"
            ]
        )
    if dataset.multilabel != multilabel:
        words = {True: "may come together", False: "exclude each other"}
        raise ConfigError(
            [
                f"classes of the data {words[dataset.multilabel]}, those of the bundle {words[multilabel]}; "
                f"if the labels are meant so: dataset.multilabel={str(multilabel).lower()}"
            ]
        )
    place = {name: index for index, name in enumerate(classes)}
    moved = [place[name] for name in dataset.classes]
    if moved == list(range(len(moved))):
        return dataset
    back = [dataset.classes.index(name) for name in classes]
    if dataset.classes == dataset.quantities:
        refs = tuple(replace(ref, numbers=tuple(ref.numbers[k] for k in back)) for ref in dataset.refs)
        return replace(dataset, refs=refs, classes=classes, quantities=classes)
    refs = tuple(replace(ref, target=tuple(sorted(moved[k] for k in ref.target))) for ref in dataset.refs)
    values = dataset.label_values or tuple(range(len(classes)))
    return replace(dataset, refs=refs, classes=classes, label_values=tuple(values[k] for k in back))


def default_part(labelled: Labelled, same_data: bool) -> Part:
    """What is evaluated where nobody says: the test cases where there are such, else all."""
    named = any(ref.split == "test" for ref in labelled.dataset.refs)
    return "test" if labelled.own or same_data or named else "all"


def pick_cases(
    labelled: Labelled, part: Part, indices: SplitIndices | None, limit: int | None
) -> tuple[tuple[CaseRef, ...], int, str]:
    """(cases, how many the part has, how it came about).

    Args:
        labelled: the data.
        part: which of them.
        indices: the split, not needed for all.
        limit: at most so many, drawn by chance with a fixed seed.

    Raises:
        ConfigError: the part is empty.
    """
    refs = labelled.dataset.refs
    if part == "all" or indices is None:
        rows, method = list(range(len(refs))), "all cases"
    else:
        rows, method = list(getattr(indices, part)), indices.method
    if not rows:
        sizes = ", ".join(f"{name} {len(getattr(indices, name))}" for name in ("train", "val", "test"))
        raise ConfigError([f"--split {part}: no case is in it ({sizes}); take another part or --split all"])
    asked = len(rows)
    if limit is not None and limit < asked:
        rows = sorted(np.random.default_rng(0).permutation(rows)[:limit].tolist())
    return tuple(refs[row] for row in rows), asked, method
