"""The space of a search: dotted settings of the experiment, each with where its values come from.

Who draws is a `Chooser`: chance, a grid, or Optuna. All of them walk the same tree, conditional entries included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medray.config import ConfigError, Experiment, override

NUMBERS = ("uniform", "loguniform", "randint", "lograndint")
KINDS = (*NUMBERS, "choice")
MAX_GRID = 10_000
COMMON = ("name", "dataset", "split", "scaling", "tracking", "tune", "serve")
"""Sections that all trials of a search share: their scores could not be compared, or they are not the trial's."""


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    whole: bool = False
    log: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `options`; a mapping among them may hold dimensions again."""

    labels: tuple[str, ...]
    options: tuple[Any, ...]


Dimension = Range | Choice
Space = dict[str, Dimension]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One point of a space."""

    settings: dict[str, Any]
    """Dotted keys and plain values, as `override` takes them."""
    choices: dict[str, float | str]
    """Every decision behind it under a name of its own; an option by its label."""


class Chooser(Protocol):
    """Takes the decisions of one point."""

    def number(self, name: str, dimension: Range) -> float:
        """A number of the range."""

    def option(self, name: str, labels: tuple[str, ...]) -> int:
        """Position of an option."""


def draw(space: Space, chooser: Chooser) -> Drawn:
    """One point of the space."""
    choices: dict[str, float | str] = {}
    return Drawn({key: _draw(key, dimension, chooser, choices) for key, dimension in space.items()}, choices)


def _draw(name: str, part: Any, chooser: Chooser, choices: dict[str, float | str]) -> Any:
    """A plain value for a dimension, or for a tree with dimensions in it; notes the decisions in `choices`."""
    match part:
        case Range():
            value = chooser.number(name, part)
            choices[name] = value = int(value) if part.whole else float(value)
            return value
        case Choice():
            label = part.labels[position := chooser.option(name, part.labels)]
            choices[name] = label
            return _draw(f"{name}[{label}]", part.options[position], chooser, choices)
        case Mapping():
            return {key: _draw(f"{name}.{key}", value, chooser, choices) for key, value in part.items()}
    return part


def dimensions(space: Space) -> dict[str, Range | tuple[str, ...]]:
    """Every decision that a point can need, conditional ones included: a range, or the labels of the options."""
    found: dict[str, Range | tuple[str, ...]] = {}

    def walk(name: str, part: Any) -> None:
        match part:
            case Range():
                found[name] = part
            case Choice():
                found[name] = part.labels
                for label, option in zip(part.labels, part.options, strict=True):
                    walk(f"{name}[{label}]", option)
            case Mapping():
                for key, value in part.items():
                    walk(f"{name}.{key}", value)

    for key, dimension in space.items():
        walk(key, dimension)
    return found


class Chance:
    """Point `index` of the stream of `seed`: the same whoever came before it, and after any restart."""

    def __init__(self, seed: int, index: int) -> None:
        self._random = np.random.default_rng([seed % 2**32, index])

    def number(self, name: str, dimension: Range) -> float:  # noqa: ARG002
        """Even over the range, or over its logarithm."""
        low, high = dimension.low, dimension.high
        if dimension.whole and not dimension.log:
            return float(self._random.integers(int(low), int(high), endpoint=True))
        if not dimension.log:
            return float(self._random.uniform(low, high))
        # Whole numbers share the logarithm in cells around them.
        margin = 0.5 if dimension.whole else 0.0
        value = math.exp(self._random.uniform(math.log(low - margin), math.log(high + margin)))
        return float(min(max(round(value) if dimension.whole else value, low), high))

    def option(self, name: str, labels: tuple[str, ...]) -> int:  # noqa: ARG002
        """Each equally often."""
        return int(self._random.integers(len(labels)))


class _Odometer:
    """Takes the decisions that `path` names, then the first of each; remembers how many there were."""

    def __init__(self, path: tuple[int, ...]) -> None:
        self.path = list(path)
        self.counts: list[int] = []

    def _next(self, count: int) -> int:
        self.counts.append(count)
        if len(self.counts) > len(self.path):
            self.path.append(0)
        return self.path[len(self.counts) - 1]

    def number(self, name: str, dimension: Range) -> float:
        if not dimension.whole:
            raise ConfigError([f"tune.space.{name}: a grid has no end there; give its values with choice"])
        return dimension.low + self._next(int(dimension.high - dimension.low) + 1)

    def option(self, name: str, labels: tuple[str, ...]) -> int:  # noqa: ARG002
        return self._next(len(labels))


def grid(space: Space) -> Iterator[Drawn]:
    """Every point of the space.

    Raises:
        ConfigError: a dimension is not countable.
    """
    path: tuple[int, ...] | None = ()
    while path is not None:
        odometer = _Odometer(path)
        yield draw(space, odometer)
        path = None
        for position in reversed(range(len(odometer.counts))):
            if odometer.path[position] + 1 < odometer.counts[position]:
                path = (*odometer.path[:position], odometer.path[position] + 1)
                break


def locate(space: Space, experiment: Experiment) -> Drawn | None:
    """The experiment's own settings as a point of the space; None where they lie outside of it."""

    class _Present:
        def number(self, name: str, dimension: Range) -> float:
            value = _value(experiment, name)
            if not isinstance(value, int | float) or not dimension.low <= value <= dimension.high:
                raise LookupError(name)
            return value

        def option(self, name: str, labels: tuple[str, ...]) -> int:  # noqa: ARG002
            options = space[name].options  # type: ignore[union-attr]
            same = (override(experiment, {name: option}) == experiment for option in options if is_plain(option))
            return next(position for position, found in enumerate(same) if found)

    if not all(is_plain(option) for part in space.values() if isinstance(part, Choice) for option in part.options):
        return None
    try:
        return draw(space, _Present())
    except (LookupError, StopIteration):
        return None


def is_plain(part: Any) -> bool:
    """Whether nothing in an option is drawn."""
    if isinstance(part, Mapping):
        return all(is_plain(value) for value in part.values())
    return not isinstance(part, Range | Choice)


def _value(experiment: Experiment, key: str) -> Any:
    """The experiment's value at a dotted key."""
    value: Any = experiment
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def parse(experiment: Experiment) -> Space:
    """The space of the experiment's section `tune`, each key and each end of each range tried on the experiment.

    Raises:
        ConfigError: with every mistake.
    """
    space: Space = {}
    mistakes: list[str] = []
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


def _dimension(where: str, entry: Mapping[str, Any]) -> Dimension:
    """What `{kind: arguments}` means."""
    kind, arguments = next(iter(entry.items()), ("", None))
    if len(entry) != 1 or kind not in KINDS or not isinstance(arguments, list):
        raise ConfigError([f"{where}: expected one of {', '.join(KINDS)} with a list, got {dict(entry)}"])
    if kind == "choice":
        if not arguments:
            raise ConfigError([f"{where}: choice has no options"])
        options = tuple(_tree(f"{where}.choice", option) for option in arguments)
        return Choice(_labels(arguments), options)
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


def _tree(where: str, value: Any) -> Any:
    """An option with its entries turned into dimensions."""
    if isinstance(value, Mapping):
        if len(value) == 1 and next(iter(value)) in KINDS:
            return _dimension(where, value)
        return {key: _tree(f"{where}.{key}", part) for key, part in value.items()}
    return value


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
            yield from (int(end) if part.whole else end for end in (part.low, part.high))
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
    if chosen.task != experiment.task and "val/loss" in (experiment.train.monitor, *experiment.tune.objectives):
        yield "val/loss of two losses cannot be compared; take another train.monitor"
