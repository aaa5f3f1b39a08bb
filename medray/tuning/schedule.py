"""Who stops weak trials: Ray Tune's schedulers, which go by the epoch and the best score so far."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from medray.config import ConfigError, Experiment
from medray.tuning.space import Choice, Dimension, Range, Space, is_plain
from medray.tuning.trials import WORST, Curve, measured_of

EPOCH, SCORE = "epoch", "score"
BY_SCORE = {"time_attr": EPOCH, "metric": SCORE, "mode": "max"}
PAUSING = ("hyperband", "pbt")
"""These stop trials to go on with them later, from the checkpoint of that epoch."""
MUTABLE = ("optimizer.", "augment.", "train.clip_norm")
"""What can change in the middle of a training."""


@dataclass(frozen=True, slots=True)
class Past:
    """A trial that ended before a restart, as a scheduler sees it."""

    trial_id: str


def scheduler_of(experiment: Experiment, space: Space, past: Iterable[Curve], monitor: str, sign: int) -> Any:
    """The experiment's scheduler; asha and median know the trials that ended before a restart."""
    cfg, epochs, grace = experiment.tune, experiment.train.epochs, grace_of(experiment)
    match cfg.scheduler:
        case "asha":
            kept = {"grace_period": grace, "reduction_factor": cfg.reduction}
            asha = Asha(epochs, max_t=epochs, stop_last_trials=False, **kept)
            for trial, results in _replay(past, monitor, sign):
                asha.on_trial_add(None, trial)
                for result in results:
                    asha.on_trial_result(None, trial, result)
            return asha
        case "median":
            # Its pauses between trials would need a checkpoint of each epoch.
            median = Median(epochs, grace_period=grace, min_time_slice=float("inf"))
            for trial, results in _replay(past, monitor, sign):
                for result in results:
                    median.on_trial_complete(None, trial, result)
            return median
        case "hyperband":
            return HyperBand(**BY_SCORE, max_t=epochs, reduction_factor=cfg.reduction, stop_last_trials=False)
        case "pbt":
            return Population(
                epochs,
                grace,
                hyperparam_mutations={"settings": {key: _mutation(part) for key, part in space.items()}},
                custom_explore_fn=_within(space),
                quantile_fraction=0.5 if (cfg.count or 0) < 4 else 0.25,
                log_config=False,
            )
    return FIFOScheduler()


def grace_of(experiment: Experiment) -> int:
    """Epochs before a trial can be stopped, and between two looks of a population at itself."""
    epochs = experiment.train.epochs
    return min(experiment.tune.grace_epochs or max(1, epochs // 10), epochs)


def _replay(past: Iterable[Curve], monitor: str, sign: int) -> Iterable[tuple[Past, list[dict[str, float]]]]:
    """The trials that ended, with their results as they were reported."""
    for number, epochs in enumerate(past):
        best, results = WORST, []
        for row in epochs.rows:
            value = sign * row.get(monitor, math.nan)
            best = max(best, value) if math.isfinite(value) else best
            results.append({EPOCH: int(row["epoch"]), SCORE: best})
        if results:
            yield Past(f"past-{number}"), results


class _EndsByItself:
    """A trial that has done its last epoch is neither stopped nor given another's weights: it ends."""

    def __init__(self, last_epoch: int, **settings: Any) -> None:
        super().__init__(**BY_SCORE, **settings)
        self._last_epoch = last_epoch

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What becomes of the trial after this epoch."""
        if result[EPOCH] >= self._last_epoch or measured_of(result):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))  # type: ignore[misc]


class HyperBand(HyperBandScheduler):  # type: ignore[misc]
    """Ray's, whose brackets can be looked at again when their last running trial fails."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What becomes of the trial after this epoch."""
        if measured_of(result):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> Any:
        try:
            return super()._process_bracket(tune_controller, bracket)
        finally:
            # Ray 2.60 leaves it set, and trials that wait in the bracket would wait for ever.
            bracket.is_being_processed = False


class Asha(_EndsByItself, ASHAScheduler):  # type: ignore[misc]
    """Asynchronous successive halving."""


class Median(_EndsByItself, MedianStoppingRule):  # type: ignore[misc]
    """The median rule."""


class Population(_EndsByItself, PopulationBasedTraining):  # type: ignore[misc]
    """PBT that looks every `interval` epochs, for which there are checkpoints."""

    def __init__(self, last_epoch: int, interval: int, **settings: Any) -> None:
        super().__init__(last_epoch, perturbation_interval=1, **settings)
        self._interval = interval

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What becomes of the trial after this epoch."""
        if result[EPOCH] % self._interval:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))


def check_population(space: Space) -> None:
    """Raise ConfigError where PBT would have to change what is fixed when a training begins."""
    mistakes = []
    for key, part in space.items():
        if not key.startswith(MUTABLE) or key == "optimizer.name":
            known = "optimizer.* (not its name), augment.* and train.clip_norm"
            mistakes.append(f"tune.space.{key}: scheduler pbt changes settings of a running training: {known}")
        elif isinstance(part, Choice) and not all(is_plain(option) for option in part.options):
            mistakes.append(f"tune.space.{key}: scheduler pbt takes options without entries of their own")
    if mistakes:
        raise ConfigError(mistakes)


def _mutation(part: Dimension) -> Any:
    """How PBT draws a setting anew; otherwise it takes the next option, or 0.8 or 1.2 times the number."""
    if isinstance(part, Choice):
        return list(part.options)
    if part.whole:
        draw = tune.lograndint if part.log else tune.randint
        return draw(int(part.low), int(part.high) + 1)
    return (tune.loguniform if part.log else tune.uniform)(part.low, part.high)


def _within(space: Space) -> Any:
    """PBT multiplies without looking at the ends of a range."""

    def clip(config: dict[str, Any]) -> dict[str, Any]:
        settings = dict(config["settings"])
        for key, part in space.items():
            if isinstance(part, Range):
                value = min(max(settings[key], part.low), part.high)
                settings[key] = round(value) if part.whole else value
        return {**config, "settings": settings}

    return clip
