"""Counts and times of a service as Prometheus reads them.

The numbers lie here and become text when they are asked for, so that a request costs a few additions. Nothing of an
image is in them but counts: the histogram of distances has no sum, which after one request would be that request's.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

ROUTES = {
    *("/v1/predict", "/v1/jobs", "/v1/results", "/v1/models", "/v1/feedback", "/v1/drift", "/v1/health", "/v2"),
    *("/v2/models", "/v2/health", "/v2/infer", "/metrics", "/livez", "/readyz", "/ui", "/docs", "/openapi.json"),
}
"""What the label `route` may be: the first two parts of a path, and /v2/infer for those that end in it."""
STAGES = ("read", "decode", "preprocess", "queue", "forward", "postprocess")
OTHER: Final = "other"
STATUS = {status.value: str(status.value) for status in HTTPStatus} | {499: "499"}
WORD = re.compile(r"[a-z][a-z0-9_]{0,47}")
MOST_WORDS = 64
"""Codes, and words of warning: later ones are `other`."""
MOST_SERIES = 2000
"""Of requests, by route, status, code and model."""
MOST_EXTRA = 64
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)
DISTANCES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
LARGEST = 1e15


def number_of(value: object) -> float | None:
    """A finite number of an event; None for anything else."""
    if isinstance(value, float | int) and not isinstance(value, bool) and -LARGEST < value < LARGEST:
        return float(value)
    return None


def mapping_of(value: object) -> Mapping[Any, Any]:
    """A part of an event that has parts; empty for anything else."""
    return value if isinstance(value, Mapping) else {}


def route_of(path: object) -> str:
    """One of ROUTES for a path or a route's template."""
    if not isinstance(path, str):
        return OTHER
    if path.startswith("/v2/models/") and path.endswith("/infer"):
        return "/v2/infer"
    parts = path.split("/", 3)
    for known in ("/".join(parts[:3]), "/".join(parts[:2])):
        if known in ROUTES:
            return known
    return OTHER


class Words:
    """The first MOST_WORDS plain words that come; a label's values are bounded so."""

    def __init__(self, *known: str) -> None:
        self._known = set(known)

    def label(self, word: object) -> str:
        """The word itself, or `other`."""
        if not isinstance(word, str):
            return OTHER
        if word in self._known:
            return word
        if len(self._known) >= MOST_WORDS or not WORD.fullmatch(word):
            return OTHER
        self._known.add(word)
        return word


class Histogram:
    """Counts of numbers up to each bound."""

    def __init__(self, bounds: Sequence[float], summed: bool = True) -> None:
        self._bounds, self._counts = bounds, [0] * (len(bounds) + 1)
        self._sum: float | None = 0.0 if summed else None

    def observe(self, value: float) -> None:
        """Count a number."""
        self._counts[bisect_left(self._bounds, value)] += 1
        if self._sum is not None:
            self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str] = ()) -> None:
        """Put the counts into a family."""
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(names, accumulate(self._counts), strict=True)), self._sum)


class Metrics:
    """What is counted of requests; not for several threads."""

    def __init__(self) -> None:
        self._codes, self._words = Words(""), Words()
        self._requests: dict[tuple[str, str, str, str], int] = {}
        self._seconds: dict[str, Histogram] = {}
        self._stages = {stage: Histogram(SECONDS) for stage in STAGES}
        self._batch = Histogram(IMAGES)
        self._distances: dict[str, Histogram] = {}
        self._warnings: dict[tuple[str, str], int] = {}

    def count(self, event: Mapping[str, Any], model: str) -> None:
        """Count a request; `model` is its label."""
        route, status = route_of(event.get("route")), event.get("status")
        known = STATUS.get(status, OTHER) if isinstance(status, int) else OTHER
        key = (route, known, self._codes.label(event.get("code", "")), model)
        if key not in self._requests and len(self._requests) >= MOST_SERIES:
            key = (OTHER, OTHER, OTHER, OTHER)
        self._requests[key] = self._requests.get(key, 0) + 1
        timings = mapping_of(event.get("timings_ms"))
        if (total := _duration(timings.get("total"))) is not None:
            if route not in self._seconds:
                self._seconds[route] = Histogram(SECONDS)
            self._seconds[route].observe(total)
        for stage, histogram in self._stages.items():
            if (seconds := _duration(timings.get(stage))) is not None:
                histogram.observe(seconds)
        if (images := number_of(event.get("batch"))) is not None and images > 0:
            self._batch.observe(images)

    def answered(self, distance: float | None, words: Sequence[object], model: str) -> list[str]:
        """Count what was said of an image; returns the labels of its words."""
        if distance is not None:
            if model not in self._distances:
                self._distances[model] = Histogram(DISTANCES, summed=False)
            self._distances[model].observe(distance)
        labels = [self._words.label(word) for word in words[:MOST_WORDS]]
        for word in labels:
            self._warnings[model, word] = self._warnings.get((model, word), 0) + 1
        return labels

    def forget(self, model: str) -> None:
        """Leave out what was counted of a model."""
        self._requests = {key: count for key, count in self._requests.items() if key[3] != model}
        self._warnings = {key: count for key, count in self._warnings.items() if key[0] != model}
        self._distances.pop(model, None)

    def text(self, drift: Sequence[Mapping[str, Any]], extra: Mapping[str, float]) -> str:
        """All of it in Prometheus' text format; `extra` are gauges by name."""
        registry = CollectorRegistry()
        registry.register(_Families([*self._families(), *_drift(drift), *_gauges(extra)]))
        return generate_latest(registry).decode()

    def _families(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("medray_up", "The service answers.", 1)
        requests = CounterMetricFamily("medray_requests", "Requests.", labels=("route", "status", "code", "model"))
        for key, count in self._requests.items():
            requests.add_metric(key, count)
        seconds = HistogramMetricFamily("medray_request_seconds", "Time of a request.", labels=("route",))
        for route, histogram in self._seconds.items():
            histogram.add_to(seconds, (route,))
        stages = HistogramMetricFamily("medray_stage_seconds", "Time of a part of a request.", labels=("stage",))
        for stage, histogram in self._stages.items():
            histogram.add_to(stages, (stage,))
        batch = HistogramMetricFamily("medray_batch_images", "Images in an answer's forward pass.")
        self._batch.add_to(batch)
        meaning = "Distance of images to the training's; from 1 on they are unlike."
        distances = HistogramMetricFamily("medray_embedding_distance", meaning, labels=("model",))
        for model, histogram in self._distances.items():
            histogram.add_to(distances, (model,))
        warnings = CounterMetricFamily("medray_warnings", "Warnings of images.", labels=("model", "word"))
        for pair, count in self._warnings.items():
            warnings.add_metric(pair, count)
        yield from (requests, seconds, stages, batch, distances, warnings)


class _Families:
    """What a registry collects: families that are made already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._made = families

    def collect(self) -> Sequence[Metric]:
        return self._made


def _duration(milliseconds: object) -> float | None:
    value = number_of(milliseconds)
    return None if value is None or value < 0 else value / 1000


def _drift(models: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    index = GaugeMetricFamily("medray_drift_psi", "Population stability index.", labels=("model", "check"))
    drifted = GaugeMetricFamily("medray_drifted", "1 if any check has drifted.", labels=("model",))
    for entry in models:
        drifted.add_metric((entry["model"],), float(entry["drifted"]))
        for check in entry["checks"]:
            if check["psi"] is not None:
                index.add_metric((entry["model"], check["name"]), check["psi"])
    yield from (index, drifted)


def _gauges(extra: Mapping[str, float]) -> Iterator[Metric]:
    """One gauge for each name; what is no name or no number, or is a name of another metric, is left out."""
    taken = {"medray_up", "medray_drifted", "medray_drift_psi"}
    for name, given in list(extra.items())[:MOST_EXTRA]:
        full, value = name if name.startswith("medray_") else f"medray_{name}", number_of(given)
        if WORD.fullmatch(full) and full not in taken and value is not None:
            taken.add(full)
            yield GaugeMetricFamily(full, "Told by the service.", value)
