"""What a service knows of its own requests: how many, how long, and whether answers have drifted from the training's.

Of an event only counts stay: in which bin each of its numbers fell. The newest answers of a model are counted in PARTS
windows behind each other, of which the oldest goes when a new one begins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from medray.inference.drift import DISTANCE, SCORES, Check, DriftReference, psi
from medray.sections.service import DriftSection
from medray.serving.prometheus import OTHER, Metrics, mapping_of, number_of

PARTS = 10
MOST_MODELS = 16
"""The one that was not asked for longest makes place for another."""


class Monitor:
    """Takes every request's event; not for several threads."""

    def __init__(self, cfg: DriftSection) -> None:
        self._cfg = cfg
        self._models: dict[str, _Window] = {}
        self._metrics = Metrics()

    def reference(self, model: str, card: Mapping[str, Any]) -> None:
        """Hear that a model is loaded, as name/version; a window goes on if the card's reference is the same.

        Raises:
            BundleError: the card's drift reference cannot be used; nothing has changed then.
        """
        reference = DriftReference.of(card)
        held = self._models.pop(model, None)
        if held is None or held.reference != reference:
            held = _Window(reference, self._cfg)
        while len(self._models) >= MOST_MODELS:
            oldest = next(iter(self._models))
            del self._models[oldest]
            self._metrics.forget(oldest)
        self._models[model] = held

    def record(self, event: Mapping[str, Any]) -> None:
        """Count a request. Parts that are missing or are not what they should be do not count."""
        event = mapping_of(event)
        model = event.get("model", "")
        window = self._models.get(model) if isinstance(model, str) else None
        label = model if window is not None or model == "" else OTHER
        self._metrics.count(event, label)
        signals = mapping_of(event.get("signals"))
        if event.get("outcome") != "answered" or not signals:
            return
        words = signals.get("warnings")
        distance = number_of(signals.get("distance"))
        labels = self._metrics.answered(distance, words if isinstance(words, list | tuple) else (), label)
        if window is not None:
            window.add(signals, labels)
            self._models[model] = self._models.pop(model)

    def drift(self) -> list[dict[str, Any]]:
        """What /v1/drift says of each model."""
        return [{"model": name, **window.as_dict()} for name, window in sorted(self._models.items())]

    def prometheus(self, extra: Mapping[str, float] | None = None) -> str:
        """The metrics as text; `extra` are gauges by name, such as queue_requests."""
        return self._metrics.text(self.drift(), extra or {})


class _Place(NamedTuple):
    """Where a check finds its number in the signals, and its counts in a part."""

    check: Check
    name: str
    part: str
    key: str
    first: int


class _Part:
    """Counts of some answers that came one after the other."""

    __slots__ = ("answers", "counts", "words")

    def __init__(self, bins: int) -> None:
        self.answers, self.counts, self.words = 0, [0] * bins, Counter[str]()


class _Window:
    """Counts of a model's newest answers: at least cfg.window of them once there are so many, a tenth more at most."""

    def __init__(self, reference: DriftReference | None, cfg: DriftSection) -> None:
        self.reference: Final = reference
        self._cfg = cfg
        self._least = min(cfg.least, cfg.window)
        self._part_size = -(-cfg.window // PARTS)
        self._plan: list[_Place] = []
        self._bins = 0
        for name, check in reference.checks.items() if reference else ():
            part = "scores" if name.startswith(SCORES) else "facts"
            self._plan.append(_Place(check, name, part, name.removeprefix(SCORES), self._bins))
            self._bins += len(check.shares)
        self._parts = deque([_Part(self._bins)], maxlen=-(-cfg.window // self._part_size) + 1)

    def add(self, signals: Mapping[str, Any], words: list[str]) -> None:
        """Count an answer."""
        part = self._parts[-1]
        if part.answers >= self._part_size:
            part = _Part(self._bins)
            self._parts.append(part)
        part.answers += 1
        part.words.update(set(words))
        values = {name: mapping_of(signals.get(name)) for name in ("scores", "facts")}
        for check, name, kind, key, first in self._plan:
            value = number_of(signals.get(DISTANCE) if name == DISTANCE else values[kind].get(key))
            if value is not None:
                part.counts[first + bisect_right(check.edges, value)] += 1

    def as_dict(self) -> dict[str, Any]:
        """What /v1/drift says of the model."""
        answers = sum(part.answers for part in self._parts)
        totals = [sum(counts) for counts in zip(*(part.counts for part in self._parts), strict=True)]
        words: Counter[str] = sum((part.words for part in self._parts), Counter())
        checks = [self._compared(place, totals) for place in self._plan]
        return {
            "answers": answers,
            "window": self._cfg.window,
            "enough": answers >= self._least,
            "drifted": any(check["drifted"] for check in checks),
            "checks": checks,
            "warnings": {word: round(count / answers, 4) for word, count in words.most_common()},
        }

    def _compared(self, place: _Place, totals: list[int]) -> dict[str, Any]:
        check = place.check
        counts = totals[place.first : place.first + len(check.shares)]
        found = sum(counts)
        threshold = check.threshold(max(found, self._least), self._cfg.psi)
        index = psi(check.shares, counts, check.subjects) if found >= self._least else None
        return {
            "name": place.name,
            "psi": None if index is None else round(index, 4),
            "threshold": round(threshold, 4),
            "drifted": index is not None and index > threshold,
            "expected": list(check.shares),
            "found": [round(count / max(found, 1), 4) for count in counts],
            "edges": list(check.edges),
        }
