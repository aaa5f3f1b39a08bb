"""One model, or several bundles or folds whose probabilities are averaged: what answers over folders asks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import ValidationError

from medray.bundle import ModelBundle
from medray.bundle import load as load_bundle
from medray.config import ConfigError
from medray.inference.about import Facts
from medray.inference.dense import measured, on_patient_grid
from medray.sections.inference import WindowSection
from medray.types import Array, Case, InputError, Prediction

if TYPE_CHECKING:
    from medray.inference.predictor import Predictor
    from medray.tasks.segmentation import Segmentation


def facts_of(bundles: Sequence[ModelBundle]) -> Facts:
    """What several bundles are together.

    Raises:
        ConfigError: they do not answer the same question, so a mean of their answers says nothing.
    """
    known = [_facts(bundle) for bundle in bundles]
    first = known[0]
    for other in known[1:]:
        if _question(other) != _question(first):
            said = f"'{first.name}' is {first}, '{other.name}' is {other}"
            raise ConfigError([f"--bundle: only models of one task can be averaged; {said}"])
    if len(known) == 1:
        return first
    digests = "\n".join(sorted(each.digest for each in known))
    return replace(first, digest=hashlib.sha256(digests.encode()).hexdigest(), members=len(known))


def _facts(bundle: ModelBundle) -> Facts:
    task = bundle.task()
    structures: tuple[str, ...] = ()
    outputs = bundle.classes
    if task.dense:
        segmentation = cast("Segmentation", task)
        structures = segmentation.structures
        outputs = bundle.classes if segmentation.exclusive else structures
    return Facts(
        name=bundle.experiment.name,
        digest=bundle.digest,
        task=bundle.experiment.task.name,
        dense=task.dense,
        axes=bundle.axes,
        channels=bundle.channels,
        classes=bundle.classes,
        structures=structures,
        outputs=outputs,
    )


def _question(facts: Facts) -> tuple[object, ...]:
    return facts.task, facts.dense, facts.axes, facts.channels, facts.classes, facts.outputs


def window_of(bundle: ModelBundle, changes: Mapping[str, Any]) -> WindowSection:
    """The bundle's way to read whole images, with `changes` to it.

    Raises:
        ConfigError: it has none, or a value cannot be.
    """
    cfg = bundle.experiment.window
    if not changes:
        return cfg
    if not bundle.task().dense:
        options = ", ".join(f"--{name}" for name in changes)
        raise ConfigError([f"{options}: '{bundle.experiment.name}' answers per image, not per voxel: leave it out"])
    axes = len(bundle.io.size)
    if wrong := [axis for axis in changes.get("flips", ()) if axis >= axes]:
        raise ConfigError([f"--flips: axis {wrong[0]} of a window that has {axes}, counted from 0"])
    try:
        return WindowSection.model_validate({**cfg.model_dump(), **changes})
    except ValidationError as error:
        lines = [f"--{'.'.join(map(str, item['loc']))}: {item['input']}: {item['msg']}" for item in error.errors()]
        raise ConfigError(lines) from None


class Ensemble:
    """Resident predictors that answer together; of one it gives the answers as they are."""

    def __init__(self, members: Sequence[Predictor]) -> None:
        """Raises ConfigError as `facts_of`."""
        self.members = tuple(members)
        self.facts = facts_of([member.bundle for member in members])
        self._one_road = len({_road(member) for member in members}) == 1

    @staticmethod
    def load(folders: Sequence[Path], device: str = "cpu", changes: Mapping[str, Any] | None = None) -> Ensemble:
        """The bundles in `folders`, resident on `device`; `changes` are to their window.

        Raises BundleError and ConfigError as `Predictor`, `facts_of` and `window_of`.
        """
        from medray.inference.predictor import Predictor

        windows = [window_of(load_bundle(folder), changes or {}) for folder in folders]
        return Ensemble(
            [Predictor(folder, device, window=window) for folder, window in zip(folders, windows, strict=True)]
        )

    def predict(self, raw: Case, probabilities: bool = False) -> Prediction:
        """The answer for one image; `probabilities` asks for those of each voxel too.

        Raises InputError and ConfigError as `Predictor.predict`.
        """
        if self.facts.dense:
            return self._segmented(raw, probabilities)
        (answer,) = self.predict_all([raw])
        if isinstance(answer, InputError):
            raise answer
        return answer

    def predict_all(self, cases: Sequence[Case], probabilities: bool = False) -> list[Prediction | InputError]:
        """Answers in the order of `cases`, per-case tasks in one pass; a bad image costs only its own.

        Raises ConfigError as `Predictor.predict`.
        """
        if not self.facts.dense:
            return self._decided(cases)
        answers: list[Prediction | InputError] = []
        for raw in cases:
            try:
                answers.append(self._segmented(raw, probabilities))
            except InputError as error:
                answers.append(error)
        return answers

    def _segmented(self, raw: Case, keep: bool) -> Prediction:
        """The mean of probabilities where they meet first: on the network's grid, or else on the patient's."""
        first = self.members[0]
        if len(self.members) == 1:
            return first.predict(raw, keep)
        import torch

        task = cast("Segmentation", first.task)
        if self._one_road:
            case, image = first.prepare(raw)
            with torch.inference_mode():
                total = first.whole(image).float()
                for member in self.members[1:]:
                    total += member.whole(image)
                total /= len(self.members)
            return on_patient_grid(task, total, case, raw, first.window, keep)
        answers = (member.predict(raw, True) for member in self.members)
        answer = next(answers)
        mean = cast(Array, answer.probabilities)
        for other in answers:
            mean += cast(Array, other.probabilities)
        mean /= len(self.members)
        decided = task.decode(answer.case_id, mean, answer.warnings)
        volumes = {} if decided.mask is None else measured(task.voxels(decided.mask), raw)
        return replace(decided, volumes=volumes, probabilities=mean if keep else None)

    def _decided(self, cases: Sequence[Case]) -> list[Prediction | InputError]:
        """Per-case answers: what a member refuses is refused."""
        refused: dict[int, InputError] = {}
        seen: dict[int, Case] = {}
        scores: dict[int, list[Array]] = {place: [] for place in range(len(cases))}
        for member in self.members:
            images: dict[int, Array] = {}
            for place in scores.keys() - refused.keys():
                try:
                    seen[place], images[place] = member.prepare(cases[place])
                except InputError as error:
                    refused[place] = error
            if images:
                for place, row in zip(images, member.scores(np.stack(list(images.values()))), strict=True):
                    scores[place].append(row)
        return [
            refused[place] if place in refused else self._decision(seen[place], scores[place])
            for place in range(len(cases))
        ]

    def _decision(self, case: Case, scores: Sequence[Array]) -> Prediction:
        """The answer for one case from the raw scores (K,) of each member.

        Of several the calibrated ones are averaged. Operating points and conformal sets were fitted on the scores of
        one member and say nothing of a mean: the task's own rule decides.
        """
        first = self.members[0]
        if len(scores) == 1:
            return first.trust.applied(first.task, case.case_id, scores[0], case.warnings)
        honest = [member.trust.calibrated(row[None])[0] for member, row in zip(self.members, scores, strict=True)]
        return first.task.decode(case.case_id, np.mean(honest, axis=0), case.warnings)


def _road(member: Predictor) -> str:
    """What the grid of a member's probabilities depends on."""
    return member.bundle.experiment.preprocess.model_dump_json()
