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

MAX_GRID = 1000


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
            if dimension.whole and not float(value).is_integer():
                raise LookupError(name)
            return float(value)

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


def choices_of(space: Space, settings: Mapping[str, Any]) -> dict[str, float | str]:
    """The decisions behind settings of a space without conditional entries."""
    found: dict[str, float | str] = {}
    for key, part in space.items():
        if isinstance(part, Range):
            found[key] = settings[key]
        else:
            found[key] = part.labels[part.options.index(settings[key])]
    return found


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
