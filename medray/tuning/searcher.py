"""Who proposes settings: chance, a grid, or TPE."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from medray.config import ConfigError, Experiment, override
from medray.tuning.space import MAX_GRID, Chance, Drawn, Space, draw, grid, locate
from medray.tuning.tpe import Memory
from medray.tuning.trials import Trial, measured_of, save

TRIES = 200
"""Draws without anything new after which a space counts as searched through."""


def planned(experiment: Experiment, space: Space) -> list[Drawn] | None:
    """All points of a search that need no results to choose them; None for TPE, or if only time ends the search.

    Raises:
        ConfigError: a grid that is not countable or larger than tune.trials, or settings that do not go together.
    """
    cfg = experiment.tune
    if cfg.searcher == "grid":
        points = []
        for point in grid(space):
            points.append(point)
            if len(points) > (cfg.trials or MAX_GRID):
                way = "tune.searcher=random draws from it" if cfg.trials else "give fewer options"
                raise ConfigError([f"tune.trials: the grid has more than {cfg.trials or MAX_GRID} points; {way}"])
    elif cfg.searcher == "random" and (count := cfg.count) is not None:
        points = []
        while len(points) < count and (found := point_of(experiment, space, points)) is not None:
            points.append(found)
    else:
        return None
    mistakes = []
    for index, point in enumerate(points):
        try:
            override(experiment, point.settings)
        except ConfigError as error:
            mistakes += [f"tune.space: trial {index} would be {point.settings}: {line}" for line in error.mistakes]
    if mistakes:
        raise ConfigError(mistakes[:10])
    return points


def point_of(experiment: Experiment, space: Space, earlier: Sequence[Drawn | Trial]) -> Drawn | None:
    """The point after `earlier` of a random search: none twice, since it would give the same again.

    The first one is the experiment as it is, if that is wanted; None if the space seems to have no other points.
    """
    if not earlier and experiment.tune.baseline and (first := baseline(experiment, space)) is not None:
        return first
    known = [other.choices for other in earlier]
    chance = Chance(experiment.tune.seed, len(earlier))
    drawn = (draw(space, chance) for _ in range(TRIES))
    return next((point for point in drawn if point.choices not in known), None)


def baseline(experiment: Experiment, space: Space) -> Drawn | None:
    """The experiment as it is; its decisions are known where it lies in the space.

    In a population, where all settings must have values to be changed, None where it does not.
    """
    found = locate(space, experiment)
    if experiment.tune.scheduler == "pbt":
        return found
    return Drawn({}, {} if found is None else found.choices)


@dataclass(slots=True)
class Proposals:
    """The trials of a study that are still to be run: those that a restart found unfinished, then new ones."""

    experiment: Experiment
    space: Space
    folder: Path
    trials: dict[int, Trial]
    """All trials of the study by number; new ones are added."""
    seconds: float | None = None
    """How long new ones may be started."""
    memory: Memory | None = None
    """TPE's."""
    points: list[Drawn] | None = None
    """All of them, where they are known before."""
    waiting: list[int] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    exhausted: bool = False
    """Whether the space has no points left that were not tried."""

    def count(self) -> int | None:
        """How many trials there will be in all, if that is known."""
        return self.experiment.tune.count if self.points is None else len(self.points)

    def over(self) -> bool:
        """Whether no trial is left to be run."""
        count, started = self.count(), len(self.trials)
        late = self.seconds is not None and time.monotonic() - self.began > self.seconds
        full = self.exhausted or (count is not None and started >= count)
        return not self.waiting and (full or (late and started > 0))

    def next(self) -> Trial | None:
        """A trial to run, or None when there are no more."""
        if self.waiting:
            return self.trials[self.waiting.pop(0)]
        if self.over():
            return None
        index = len(self.trials)
        point = self._point(index)
        if point is None:
            self.exhausted = True
            return None
        trial = Trial(index, point.settings, point.choices)
        self.trials[index] = trial
        save(self.folder, trial)
        return trial

    def _point(self, index: int) -> Drawn | None:
        if self.points is not None:
            return self.points[index]
        if self.memory is None:
            return point_of(self.experiment, self.space, list(self.trials.values()))
        if index > 0 or not self.experiment.tune.baseline:
            return self.memory.ask(index)
        first = baseline(self.experiment, self.space)
        if first is not None and first.choices:
            self.memory.ask(index, first.choices)
        return first


class StudySearcher(Searcher):  # type: ignore[misc]
    """`Proposals` as Ray Tune asks for them: `{"index": i, "settings": {...}}`, until there are no more."""

    def __init__(self, proposals: Proposals) -> None:
        super().__init__()
        self._proposals = proposals
        self._indices: dict[str, int] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:  # noqa: ARG002
        """Nothing to set: results are read by the names of the objectives."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial, or FINISHED."""
        trial = self._proposals.next()
        if trial is None:
            return Searcher.FINISHED
        self._indices[trial_id] = trial.index
        return {"index": trial.index, "settings": trial.settings}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """TPE learns from the epochs of trials that are stopped early."""
        if self._proposals.memory and measured_of(result) is None:
            self._proposals.memory.epoch(self._indices[trial_id], int(result["epoch"]), result["score"])

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """TPE learns how it ended."""
        if self._proposals.memory:
            self._proposals.memory.tell(self._indices[trial_id], measured_of(result or {}), error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a restart goes by the study's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a copy that nobody reads."""
        return {}
