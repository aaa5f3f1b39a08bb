"""TPE, by Optuna: its memory is a journal file in the study's folder, which survives anything that the study does."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from medray.tuning.space import Drawn, Range, Space, dimensions, draw
from medray.tuning.trials import WORST

LOG = "optuna.log"
INDEX = "index"


class Memory:
    """What TPE knows of a study's trials, by their numbers.

    Args:
        folder: of the study.
        space: where to look.
        signs: objective -> 1 where more is better, -1 where less is.
        seed: of the search.
        known: numbers of the trials that the study's folder has; what was asked for beside them is forgotten.
    """

    def __init__(self, folder: Path, space: Space, signs: Mapping[str, int], seed: int, known: set[int]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._signs = dict(signs)
        self._seed = seed
        self._study = optuna.create_study(
            study_name="medray",
            storage=JournalStorage(JournalFileBackend(str(folder / LOG))),
            directions=["maximize" if sign > 0 else "minimize" for sign in signs.values()],
            load_if_exists=True,
        )
        self._open: dict[int, optuna.Trial] = {}
        while self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._study.tell(self._study.ask(), state=TrialState.FAIL)
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            index = trial.user_attrs.get(INDEX)
            if index in known:
                self._open[index] = optuna.Trial(self._study, trial._trial_id)
            else:
                self._study.tell(trial.number, state=TrialState.FAIL)

    def ask(self, index: int, choices: Mapping[str, float | str] | None = None) -> Drawn:
        """The point of trial `index`, or the one with `choices`; a restart goes on as if there had been none."""
        # Chance is that of the index: a sampler that is made again would repeat its first draws.
        seed = int(np.random.SeedSequence([self._seed % 2**32, index]).generate_state(1)[0])
        with warnings.catch_warnings():
            # Its newer arguments may still change; the tested version is a constraint of ours.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, constant_liar=True
            )
        if choices:
            self._study.enqueue_trial(dict(choices), user_attrs={INDEX: index})
        trial = self._study.ask()
        trial.set_user_attr(INDEX, index)
        found = draw(self._space, _Suggestions(trial))
        self._open[index] = trial
        return found

    def epoch(self, index: int, epoch: int, score: float) -> None:
        """The score of a running trial, more being better."""
        if index not in self._open or len(self._signs) > 1 or score <= WORST:
            return
        told = self._study.get_trials(deepcopy=False)[self._open[index].number].intermediate_values
        if epoch not in told:
            self._open[index].report(next(iter(self._signs.values())) * score, epoch)

    def tell(self, index: int, measured: Mapping[str, float | None] | None, failed: bool) -> None:
        """How a trial ended: its metrics, or None where it was stopped before its end."""
        trial = self._open.pop(index, None)
        if trial is None:
            return
        values = [(measured or {}).get(name) for name in self._signs]
        known = [value for value in values if value is not None]
        if failed or (measured is not None and len(known) < len(values)):
            self._study.tell(trial, state=TrialState.FAIL)
        elif measured is None:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, known)


class _Suggestions:
    """Optuna takes the decisions."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def number(self, name: str, dimension: Range) -> float:
        if dimension.whole:
            return float(self._trial.suggest_int(name, int(dimension.low), int(dimension.high), log=dimension.log))
        return float(self._trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log))

    def option(self, name: str, labels: tuple[str, ...]) -> int:
        return labels.index(self._trial.suggest_categorical(name, labels))


def importances(space: Space, points: Sequence[tuple[Mapping[str, float | str], float]], sign: int) -> dict[str, float]:
    """Share of each decision in the differences of the scores (functional ANOVA, Hutter 2014).

    Args:
        space: of the search.
        points: decisions and finite score of each trial.
        sign: 1 where a greater score is better, -1 where a smaller is.

    Returns:
        decision -> share of 1, largest first; only those that every trial took. Empty where too few trials tell.
    """
    forms = {name: _distribution(part) for name, part in dimensions(space).items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if sign > 0 else "minimize")
    for choices, value in points:
        taken = {name: forms[name] for name in choices}
        study.add_trial(create_trial(params=dict(choices), distributions=taken, value=value))
    common = [name for name in forms if all(name in choices for choices, _ in points)]
    if len(points) < 4 or not common or len({value for _, value in points}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator, params=common))


def _distribution(dimension: Range | tuple[str, ...]) -> BaseDistribution:
    """A decision as Optuna describes it."""
    if isinstance(dimension, tuple):
        return CategoricalDistribution(dimension)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
