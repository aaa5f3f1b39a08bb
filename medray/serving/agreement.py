"""How a shadow agrees with the model that is heard: sums of comparisons, none of which is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medray.serving.messages import Answered

SAME = 0.1
"""Numbers, and sizes of structures, that differ by less than this share are the same."""


def compare(heard: Answered, shadow: Answered) -> dict[str, Any]:
    """What two answers to one image have in common."""
    one, other = _numbers(heard), _numbers(shadow)
    names = sorted(set(one) | set(other))
    gaps = [abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in names]
    if heard.body["task"] != "classification":
        sizes = [max(abs(one.get(name, 0.0)), abs(other.get(name, 0.0))) for name in names]
        gaps = [gap / size if size else 0.0 for gap, size in zip(gaps, sizes, strict=True)]
    gap = max(gaps, default=0.0)
    same = set(heard.signals["labels"]) == set(shadow.signals["labels"])
    return {"same": same and (heard.body["task"] == "classification" or gap < SAME), "gap": gap}


def _numbers(answered: Answered) -> dict[str, float]:
    """Probabilities, numbers or sizes by their names."""
    body = answered.body
    found = {each["label"]: each["probability"] for each in body.get("predictions", ())}
    found |= {each["name"]: each["value"] for each in body.get("values", ())}
    return found | {each["label"]: each["volume"] for each in body.get("structures", ())}


@dataclass(slots=True)
class Agreement:
    """Of one shadow with one model."""

    heard: str
    shadow: str
    images: int = 0
    same: int = 0
    gaps: float = 0.0
    largest: float = 0.0

    def add(self, found: Mapping[str, Any]) -> None:
        """Count one comparison."""
        self.images += 1
        self.same += bool(found["same"])
        self.gaps += float(found["gap"])
        self.largest = max(self.largest, float(found["gap"]))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: gaps are differences of probabilities, or of numbers and volumes as a share of the larger."""
        count = self.images or 1
        return {
            "model": self.heard,
            "shadow": self.shadow,
            "images": self.images,
            "same_labels": round(self.same / count, 4),
            "mean_gap": round(self.gaps / count, 6),
            "largest_gap": round(self.largest, 6),
        }
