"""Tables of cases drawn by chance, for statistics without a network."""

from __future__ import annotations

import numpy as np

from medray.evaluation.cases import Answered, Cases
from medray.evaluation.classification import tabulate
from medray.evaluation.result import Model
from medray.types import CaseRef, Prediction

CARD = {"classes": ["ill", "well"], "multilabel": False, "decision": "the likeliest class"}
MODEL = Model("chest/1", "a" * 64, CARD, "chest", "plain", "classification")


def classified(
    cases: int = 60,
    classes: tuple[str, ...] = ("well", "ill"),
    skill: float = 1.0,
    seed: int = 0,
    each: int = 1,
    multilabel: bool = False,
) -> Cases:
    """Cases of `classes`, `each` of them of one subject, told apart with some `skill`."""
    draw = np.random.default_rng(seed)
    target = draw.integers(len(classes), size=cases)
    logits = draw.normal(size=(cases, len(classes)))
    logits[np.arange(cases), target] += skill
    scores = 1 / (1 + np.exp(-logits)) if multilabel else np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    answered = []
    for row in range(cases):
        held = scores[row] >= 0.5 if multilabel else np.arange(len(classes)) == scores[row].argmax()
        labels = tuple(name for name, one in zip(classes, held, strict=True) if one)
        ref = CaseRef(f"case{row:03d}.png", b"", (int(target[row]),), f"p{row // each}")  # type: ignore[arg-type]
        answered.append(Answered(ref, Prediction(ref.case_id, classes, scores[row], labels)))
    return tabulate(answered, classes, multilabel)
