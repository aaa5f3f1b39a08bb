"""One model in memory, and how it answers one question."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from medray.inference.attribution import METHODS
from medray.inference.drift import signals_of
from medray.inference.ensemble import facts_of
from medray.inference.explain import Turn, check_method, explain, targets
from medray.inference.predictor import DISTANCE, Predictor, Run
from medray.inference.whole import windowing
from medray.serving.answer import body_of
from medray.serving.lane import Passed
from medray.serving.messages import Answered, Asked, Entry
from medray.serving.problems import Refused
from medray.types import Array, Case, InputError, Prediction

WARM_EDGE = 32


class Question:
    """One image that is asked about: whether it still is, how far it has come, and what it cost."""

    def __init__(self, asked: Asked, raw: Case, tell: Callable[[float], None] | None = None) -> None:
        self.asked, self.raw = asked, raw
        self.stop = threading.Event()
        self.expected = 1
        """Windows of the whole answer."""
        self.queued_s = self.forward_s = 0.0
        self.batch = self._done = 0
        self._tell = tell

    def go_on(self) -> None:
        """Raises Refused where nobody waits any more."""
        if self.stop.is_set():
            raise Refused(499, "cancelled", "nobody waits for the answer any more")

    def passed(self, passed: Passed, count: int) -> None:
        """Count what a pass cost, and say how far this is."""
        self.queued_s += passed.queued_s
        self.forward_s += passed.forward_s
        self.batch = max(self.batch, passed.batch)
        self._done += count
        if self._tell is not None:
            self._tell(min(self._done / self.expected, 1.0))


class Resident:
    """A model in memory, with what is known of it."""

    def __init__(self, entry: Entry, predictor: Predictor) -> None:
        self.entry, self.predictor = entry, predictor
        self.key = (entry.name, entry.version, entry.digest)
        self.facts = facts_of([predictor.bundle])
        self.thresholds = _thresholds(predictor)

    def warm(self) -> None:
        """Take an empty image down the road of all images: what the first one would wait for is imported now."""
        edges = (WARM_EDGE,) * self.facts.axes
        image = np.zeros((self.facts.channels, *edges), np.int16)
        image[:, 0] = 1
        with contextlib.suppress(InputError):
            self.predictor.ready(Case("warm", image, np.eye(4)))

    def about(self) -> dict[str, Any]:
        """What /v1/models says."""
        entry, facts, io = self.entry, self.facts, self.predictor.bundle.io
        return {
            "name": entry.name,
            "version": entry.version,
            "digest": entry.digest,
            "alias": entry.alias or None,
            "role": entry.part,
            "share": entry.share,
            "task": facts.task,
            "axes": facts.axes,
            "channels": facts.channels,
            "classes": list(facts.classes),
            "structures": list(facts.structures),
            "explained": list(targets(self.predictor)),
            "input": [-1, io.in_channels, *io.size],
            "outputs": list(facts.outputs),
        }

    def answer(self, question: Question, run: Run, turn: Turn, shadow: str) -> Answered:
        """The answer to a question; `run` asks the network, `turn` waits for the device.

        Raises:
            InputError: the image is not what the model takes.
            ConfigError: there is no such method or class to explain, or the image needs more memory than it may.
        """
        asked, raw = question.asked, question.raw
        started = time.perf_counter()
        if asked.explain:
            self._check(asked)
        ready = self.predictor.ready(raw)
        prepared = time.perf_counter()
        if self.facts.dense:
            cfg = windowing(self.predictor.window, self.predictor.bundle.io.size, ready.image.shape[1:])
            question.expected = cfg.tiling(ready.image.shape[1:]).count
        keep = self.facts.dense if asked.keep is None else asked.keep
        prediction = self.predictor.answer(raw, ready, run)
        heat, explained = self._heat(question, prediction, turn) if asked.explain else (None, None)
        body = body_of(prediction, self.facts, self.thresholds, raw)
        if explained:
            body["explanation"] = {"method": asked.explain, "target": explained}
        contract = self.predictor.contract
        signals = signals_of(
            prediction, prediction.quality.get(DISTANCE), ready.facts, contract.unit if contract else ""
        )
        done = time.perf_counter()
        rest = done - prepared - question.queued_s - question.forward_s
        seconds = {
            "preprocess": prepared - started,
            "queue": question.queued_s,
            "forward": question.forward_s,
            "postprocess": max(rest, 0.0),
        }
        return Answered(
            entry=self.entry,
            body=body,
            timings_ms={name: round(1000 * spent, 3) for name, spent in seconds.items()},
            batch=question.batch,
            signals=signals,
            shadow=shadow,
            prediction=prediction if keep else None,
            facts=self.facts if keep else None,
            heat=heat,
        )

    def _check(self, asked: Asked) -> None:
        """Refuse what cannot be explained before anything is computed; what was asked for is not repeated."""
        if asked.explain not in METHODS:
            raise Refused(422, "no_such_method", "explain: there is no such method", f"there are: {', '.join(METHODS)}")
        known = targets(self.predictor)
        if asked.target and asked.target not in known:
            raise Refused(422, "no_such_class", "target: the model has no such class", f"it has: {', '.join(known)}")
        check_method(self.predictor, asked.explain)

    def _heat(self, question: Question, answer: Prediction, turn: Turn) -> tuple[Array, str]:
        """What speaks for the class that was asked about, or for the one that is answered: the largest structure."""

        def wait(function: Callable[[], Any]) -> Any:
            question.go_on()
            return turn(function)

        named = [name for name in answer.labels if name in targets(self.predictor)]
        largest = max(named, key=lambda name: answer.volumes.get(name, 0.0), default=None)
        explanation = explain(
            self.predictor, question.raw, question.asked.explain, question.asked.target or largest, wait
        )
        return explanation.restored, explanation.target


def _thresholds(predictor: Predictor) -> dict[str, float]:
    """Class -> the probability from which on it is called; empty where the likeliest is."""
    found: dict[str, float] = {}
    for name, point in predictor.trust.points:
        found.setdefault(name, point.threshold)
    decision = predictor.task.decision
    if not found and isinstance(decision, dict) and not predictor.task.dense:
        found = dict(decision)
    return found
