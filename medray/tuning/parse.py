"""The section `tune` read strictly: a space, or every mistake in it at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from medray.config import ConfigError, Experiment, override
from medray.tuning.space import Choice, Dimension, Range, Space

KINDS = ("uniform", "loguniform", "randint", "lograndint", "choice")
COMMON = ("name", "dataset", "split", "scaling", "tracking", "tune", "serve")
"""Sections that all trials of a search share: their scores could not be compared, or they are not the trial's."""


def parse(experiment: Experiment) -> Space:
    """The space of the experiment's section `tune`, each key and each end of each range tried on the experiment.

    Raises:
        ConfigError: with every mistake.
    """
    space: Space = {}
    mistakes = list(_unsearchable(experiment))
    keys = list(experiment.tune.space)
    for key, entry in experiment.tune.space.items():
        if outer := next((other for other in keys if key.startswith(f"{other}.")), None):
            mistakes.append(f"tune.space.{key}: {outer} is drawn whole; put {key} into its options")
            continue
        try:
            dimension = _dimension(f"tune.space.{key}", entry)
        except ConfigError as error:
            mistakes += error.mistakes
            continue
        space[key] = dimension
        found = [line for value in _corners(dimension) for line in _try(experiment, key, value)]
        mistakes += dict.fromkeys(found)
    if mistakes:
        raise ConfigError(mistakes)
    return space


def _unsearchable(experiment: Experiment) -> Iterator[str]:
    """Settings with which there is nothing to compare, or which a trial would not heed."""
    if experiment.split.join_val:
        yield "split.join_val: trials are compared on validation cases; tune.refit=true joins them in the end"
    if experiment.train.folds is not None:
        yield "train.folds: a trial is one training; cross-validate the best one: medray train best.yaml train.folds=5"


def _dimension(where: str, entry: Mapping[str, Any]) -> Dimension:
    """What `{kind: arguments}` means.

    Raises:
        ConfigError: with every mistake in it.
    """
    kind, arguments = next(iter(entry.items()), ("", None))
    if len(entry) != 1 or kind not in KINDS or not isinstance(arguments, list):
        raise ConfigError([f"{where}: expected one of {', '.join(KINDS)} with a list, got {dict(entry)}"])
    if kind != "choice":
        return _range(where, kind, arguments)
    if not arguments:
        raise ConfigError([f"{where}: choice has no options"])
    mistakes = [f"{where}: the option {_text(item)} stands there twice" for item in _twice(arguments)]
    options = tuple(_tree(f"{where}.choice", option, mistakes) for option in arguments)
    if mistakes:
        raise ConfigError(mistakes)
    return Choice(_labels(arguments), options)


def _twice(options: list[Any]) -> list[Any]:
    """Options that are there more than once, each once."""
    return [item for number, item in enumerate(options) if options.index(item) == number and options.count(item) > 1]


def _range(where: str, kind: str, arguments: list[Any]) -> Range:
    if len(arguments) != 2 or not all(isinstance(item, int | float) for item in arguments):
        raise ConfigError([f"{where}: {kind} takes two numbers, [low, high], got {arguments}"])
    low, high = arguments
    whole = kind.endswith("randint")
    if whole and not all(float(item).is_integer() for item in arguments):
        raise ConfigError([f"{where}: {kind} takes whole numbers, got {arguments}"])
    if low >= high:
        raise ConfigError([f"{where}: the range from {low:g} to {high:g} is empty"])
    if kind.startswith("log") and low <= 0:
        raise ConfigError([f"{where}: {kind} begins above 0, got {low:g}"])
    return Range(low, high - 1 if whole else high, whole, kind.startswith("log"))


def _tree(where: str, value: Any, mistakes: list[str]) -> Any:
    """An option with its entries turned into dimensions; what is wrong with them is added to `mistakes`."""
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1 and next(iter(value)) in KINDS:
        try:
            return _dimension(where, value)
        except ConfigError as error:
            mistakes += error.mistakes
            return value
    return {key: _tree(f"{where}.{key}", part, mistakes) for key, part in value.items()}


def _labels(options: list[Any]) -> tuple[str, ...]:
    """A short name for each option: its plug-in's, where those are all different, else its text."""
    names = [option.get("name") if isinstance(option, Mapping) else None for option in options]
    texts = [_text(option) for option in options]
    if None not in names and len(set(names)) == len(names):
        return tuple(map(str, names))
    return tuple(text if texts.count(text) == 1 else f"{text} ({position})" for position, text in enumerate(texts))


def _text(option: Any) -> str:
    if isinstance(option, Mapping):
        return " ".join(f"{key}={_text(value)}" for key, value in option.items())
    return f"{option:g}" if isinstance(option, float) else str(option)


def _corners(part: Any) -> Iterator[Any]:
    """Plain values at both ends of every range and with every option, one decision at a time."""
    match part:
        case Range():
            if part.whole:
                yield from (int(part.low), int(part.high))
            else:  # a setting of whole numbers takes the ends of a range of real ones, and nothing between
                yield from (part.low, part.high, part.low + (part.high - part.low) / math.pi)
        case Choice():
            for option in part.options:
                yield from _corners(option)
        case Mapping():
            first = {key: next(_corners(value)) for key, value in part.items()}
            yield first
            for key, value in part.items():
                yield from ({**first, key: corner} for corner in list(_corners(value))[1:])
        case _:
            yield part


def _try(experiment: Experiment, key: str, value: Any) -> list[str]:
    """What is wrong with the experiment when it has this value."""
    try:
        chosen = override(experiment, {key: value})
    except ConfigError as error:
        return [f"tune.space: {line}" for line in error.mistakes]
    return [f"tune.space.{key}: {reason}" for reason in _incomparable(experiment, chosen)]


def _incomparable(experiment: Experiment, chosen: Experiment) -> Iterator[str]:
    """Why a trial with these settings could not be compared with the others."""
    for section in COMMON:
        if getattr(chosen, section) != getattr(experiment, section):
            yield f"{section} is common to all trials; only what a training does with the same cases can be searched"
    for name in ("monitor", "mode", "folds"):
        if getattr(chosen.train, name) != getattr(experiment.train, name):
            yield f"train.{name} is common to all trials"
    if chosen.task.name != experiment.task.name:
        yield "the task is common to all trials"
    if chosen.train.epochs != experiment.train.epochs and experiment.tune.scheduler != "none":
        yield "a scheduler compares trials at the same epoch of equally long trainings; take tune.scheduler=none"
    by = {experiment.train.monitor, *experiment.tune.objectives} & {"val/loss", "train/loss"}
    other_loss = chosen.task != experiment.task or (
        "train/loss" in by and chosen.optimizer.l1 != experiment.optimizer.l1
    )
    if by and other_loss:
        yield f"{by.pop()} of two losses cannot be compared; take another train.monitor"
