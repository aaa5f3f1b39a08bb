"""The monitor: counts of every request, an alarm while images are others, and nothing of a patient."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from medray.bundle import BundleError
from medray.inference.drift import build
from medray.sections.service import DriftSection
from medray.serving.monitor import MOST_MODELS, Monitor
from medray.serving.prometheus import MOST_WORDS, ROUTES, route_of

MODEL = "phantom/1"
FACTS = ("p01", "p50", "p99", "noise", "sharpness", "contrast", "clipping", "coverage")


def signals(draw: np.random.Generator, shift: float = 0.0) -> dict[str, Any]:
    score = 1 / (1 + np.exp(-draw.normal(shift, 2)))
    return {
        "scores": {"benign": 1 - score, "malignant": score},
        "labels": ["malignant"],
        "distance": float(draw.gamma(9, 0.08) * (1 + shift)),
        "facts": {name: draw.normal(50 + 10 * shift, 7) for name in FACTS},
        "warnings": ["unlike_training"] if draw.uniform() < shift else [],
    }


def event(said: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    timings = {"read": 1.5, "decode": 2.0, "preprocess": 3.0, "queue": 0.5, "forward": 9.0, "postprocess": 1.0}
    plain = {"route": "/v1/predict", "status": 200, "code": "", "outcome": "answered", "model": MODEL, "batch": 4}
    names = {"request": "d" * 32, "caller": "key-7", "input": "e" * 64, "digest": "f" * 64, "time": "2026-11-25T23:00Z"}
    return {**plain, **names, "timings_ms": {**timings, "total": 18.0}, "signals": said, **changes}


def card(seed: int = 0, cases: int = 200) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(cases):
        said = signals(draw)
        scores = {f"scores/{name}": value for name, value in said["scores"].items()}
        rows.append({**scores, "distance": said["distance"], **said["facts"]})
    made = build([(rows, cases)])
    return {"drift": None if made is None else made.as_dict()}


def watching(cfg: DriftSection | None = None, seed: int = 0) -> Monitor:
    monitor = Monitor(cfg or DriftSection())
    monitor.reference(MODEL, card(seed))
    return monitor


def entry(monitor: Monitor, model: str = MODEL) -> dict[str, Any]:
    (found,) = (one for one in monitor.drift() if one["model"] == model)
    return found


def samples(monitor: Monitor, extra: Mapping[str, float] | None = None) -> dict[tuple[str, tuple[str, ...]], float]:
    found = {}
    for family in text_string_to_metric_families(monitor.prometheus(extra)):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, tuple(value for _, value in sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def test_answers_as_in_training_do_not_alarm() -> None:
    """Of every check at every hundredth answer, with references of their own; they overlap, so chance comes in runs."""
    alarms, asked = 0, 0
    for seed in range(30):
        monitor, draw = watching(seed=seed), np.random.default_rng([seed, 1])
        for index in range(1, 1201):
            monitor.record(event(signals(draw)))
            if index % 100 == 0:
                found = entry(monitor)
                assert found["enough"]
                alarms += sum(check["drifted"] for check in found["checks"])
                asked += len(found["checks"])
    assert asked == 30 * 12 * 11
    assert alarms / asked < 0.01


def test_a_shift_alarms_within_the_window_and_the_alarm_goes() -> None:
    monitor, draw = watching(DriftSection(window=300)), np.random.default_rng(1)
    for shift, drifted in ((0.0, False), (1.0, True), (0.0, False)):
        for _ in range(330):
            monitor.record(event(signals(draw, shift)))
        found = entry(monitor)
        assert 300 <= found["answers"] <= 330
        assert found["drifted"] is drifted
        assert samples(monitor)["medray_drifted", (MODEL,)] == drifted
        assert (found["warnings"].get("unlike_training", 0) > 0.9) is drifted
    assert {check["name"] for check in found["checks"]} == {"scores/benign", "scores/malignant", "distance", *FACTS}


def test_half_a_window_of_other_images_is_enough_for_an_alarm() -> None:
    monitor, draw = watching(), np.random.default_rng(1)
    for _ in range(1000):
        monitor.record(event(signals(draw)))
    for _ in range(500):
        monitor.record(event(signals(draw, 1.0)))
    assert {"distance", "noise"} <= {check["name"] for check in entry(monitor)["checks"] if check["drifted"]}


def test_few_answers_say_nothing() -> None:
    monitor, draw = watching(DriftSection(window=1000, least=100)), np.random.default_rng(1)
    for _ in range(99):
        monitor.record(event(signals(draw, 3.0)))
    found = entry(monitor)
    assert (found["answers"], found["enough"], found["drifted"]) == (99, False, False)
    assert all(check["psi"] is None and not check["drifted"] for check in found["checks"])
    assert not [key for key in samples(monitor) if key[0] == "medray_drift_psi"]
    monitor.record(event(signals(draw, 3.0)))
    assert entry(monitor)["drifted"]


@pytest.mark.parametrize(("window", "least"), [(1, 1), (7, 100), (15, 15), (100, 100), (1000, 100)])
def test_the_newest_answers_count(window: int, least: int) -> None:
    monitor, draw = watching(DriftSection(window=window, least=least)), np.random.default_rng(1)
    for _ in range(2 * window + 3):
        monitor.record(event(signals(draw)))
    found = entry(monitor)
    assert window <= found["answers"] <= window * 1.1 + 1
    assert found["enough"]
    for check in found["checks"]:
        assert len(check["edges"]) + 1 == len(check["expected"]) == len(check["found"])
        assert sum(check["found"]) == pytest.approx(1, abs=1e-2)


def test_a_check_that_is_not_told_is_not_judged() -> None:
    monitor, draw = watching(), np.random.default_rng(1)
    for _ in range(200):
        monitor.record(event({**signals(draw), "distance": None}))
    distance = next(check for check in entry(monitor)["checks"] if check["name"] == "distance")
    assert (distance["psi"], distance["drifted"]) == (None, False)
    assert set(distance["found"]) == {0}


def test_only_answers_of_known_models_are_compared() -> None:
    monitor, draw = watching(), np.random.default_rng(1)
    monitor.reference("old/1", {})
    for changes in ({"outcome": "failed"}, {"outcome": "refused"}, {"model": "unknown/1"}, {"model": "old/1"}):
        monitor.record(event(signals(draw), **changes))
    assert entry(monitor)["answers"] == 0
    old = entry(monitor, "old/1")
    assert (old["answers"], old["checks"], old["drifted"]) == (1, [], False)
    assert samples(monitor)["medray_requests_total", ("", "other", "/v1/predict", "200")] == 1


def test_a_model_that_is_loaded_again_goes_on_and_another_of_its_name_begins() -> None:
    monitor, draw = watching(), np.random.default_rng(1)
    monitor.record(event(signals(draw)))
    monitor.reference(MODEL, card(0))
    assert entry(monitor)["answers"] == 1
    with pytest.raises(BundleError):
        monitor.reference(MODEL, {"drift": {}})
    assert entry(monitor)["answers"] == 1
    monitor.reference(MODEL, card(5))
    assert entry(monitor)["answers"] == 0


def test_the_model_that_was_not_asked_for_longest_goes() -> None:
    monitor, draw = watching(), np.random.default_rng(1)
    monitor.reference("idle/1", {})
    monitor.record(event(signals(draw), model="idle/1"))
    for number in range(MOST_MODELS - 1):
        monitor.record(event(signals(draw)))
        monitor.reference(f"next/{number}", {})
    names = {one["model"] for one in monitor.drift()}
    assert len(names) == MOST_MODELS
    assert MODEL in names
    assert "idle/1" not in names
    assert "idle/1" not in monitor.prometheus()


def test_metrics_say_what_was_asked() -> None:
    monitor, draw = watching(), np.random.default_rng(1)
    for _ in range(3):
        said = {**signals(draw), "distance": 1.2, "warnings": ["unseen_spacing", "unseen_spacing", "not a word"]}
        monitor.record(event(said))
    refused = {"status": 429, "code": "overloaded", "outcome": "refused", "model": "", "timings_ms": {"total": 2.0}}
    monitor.record({"route": "/v1/results/{id}/mask", **refused})
    found = samples(monitor, {"queue_requests": 7, "medray_queue_jobs": 2.5, "up": 0, "Bad name": 1, "nan": np.nan})
    assert found["medray_requests_total", ("", MODEL, "/v1/predict", "200")] == 3
    assert found["medray_requests_total", ("overloaded", "", "/v1/results", "429")] == 1
    assert found["medray_request_seconds_count", ("/v1/predict",)] == 3
    assert found["medray_request_seconds_sum", ("/v1/predict",)] == pytest.approx(0.054)
    assert found["medray_request_seconds_bucket", ("0.01", "/v1/predict")] == 0
    assert found["medray_request_seconds_bucket", ("0.025", "/v1/predict")] == 3
    assert found["medray_stage_seconds_sum", ("forward",)] == pytest.approx(0.027)
    assert found["medray_batch_images_bucket", ("2",)] == 0
    assert found["medray_batch_images_bucket", ("4",)] == found["medray_batch_images_bucket", ("+Inf",)] == 3
    assert found["medray_embedding_distance_bucket", ("1", MODEL)] == 0
    assert found["medray_embedding_distance_bucket", ("1.25", MODEL)] == 3
    assert found["medray_warnings_total", (MODEL, "unseen_spacing")] == 6
    assert found["medray_warnings_total", (MODEL, "other")] == 3
    assert entry(monitor)["warnings"] == {"unseen_spacing": 1.0, "other": 1.0}
    assert (found["medray_up", ()], found["medray_queue_requests", ()], found["medray_queue_jobs", ()]) == (1, 7, 2.5)
    assert not [name for name, _ in found if "bad" in name.lower() or "nan" in name]
    assert not [name for name, _ in found if name.startswith(("python", "process"))]


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/predict", "/v1/predict"),
        ("/v1/jobs/{id}", "/v1/jobs"),
        ("/v1/results/0123/slices", "/v1/results"),
        ("/v2/models/{name}/versions/{version}/infer", "/v2/infer"),
        ("/v2/models/{name}/ready", "/v2/models"),
        ("/v2", "/v2"),
        ("/ui/drift.html", "/ui"),
        ("/livez", "/livez"),
        *((path, "other") for path in ("/", "", "/wp-admin/x.php", "v1/predict", "/v1", "/v1/predict2", None, 7, [])),
    ],
)
def test_routes_are_bounded(path: Any, route: str) -> None:
    assert route_of(path) == route
    assert route in {*ROUTES, "other"}


def hostile() -> Iterator[Any]:
    draw = np.random.default_rng(0)
    wrong = [
        None,
        True,
        -1,
        0,
        10**400,
        float("nan"),
        float("inf"),
        "x",
        '\n{}"\\',
        b"",
        [],
        [[]],
        {},
        {"a": {}},
        object(),
    ]
    whole = event(signals(draw))
    yield from wrong
    for name in whole:
        yield {key: value for key, value in whole.items() if key != name}
        yield from ({**whole, name: value} for value in wrong)
    for part in ("timings_ms", "signals"):
        for name in whole[part]:
            yield from ({**whole, part: {**whole[part], name: value}} for value in wrong)
    for part in ("scores", "facts"):
        for name in whole["signals"][part]:
            for value in wrong:
                said = {**whole["signals"], part: {**whole["signals"][part], name: value}}
                yield {**whole, "signals": said}
    yield {**whole, "signals": {**whole["signals"], "warnings": wrong}}


def test_a_hostile_event_neither_raises_nor_breaks_the_counts() -> None:
    monitor, draw = watching(DriftSection(least=1)), np.random.default_rng(1)
    events = list(hostile())
    for one in events:
        monitor.record(one)
        monitor.record(event(signals(draw)))
    found = samples(monitor)
    assert sum(value for (name, _), value in found.items() if name == "medray_requests_total") == 2 * len(events)
    assert all(np.isfinite(value) and value >= 0 for value in found.values())
    assert len(entry(monitor)["checks"]) == 11
    assert all(check["psi"] is not None for check in entry(monitor)["checks"])


def test_labels_are_bounded() -> None:
    monitor, draw = watching(), np.random.default_rng(1)
    for index in range(500):
        said = {**signals(draw), "warnings": [f"word_{index}"]}
        changes = {"route": f"/{index}", "code": f"code_{index}", "status": index, "model": f"m/{index}"}
        monitor.record(event(said))
        monitor.record(event(said, **changes))
    keys = samples(monitor)
    for name in ("medray_requests_total", "medray_warnings_total"):
        assert len([key for key in keys if key[0] == name]) < 4 * MOST_WORDS
    assert sum(value for key, value in keys.items() if key[0] == "medray_requests_total") == 1000
    assert "m/7" not in monitor.prometheus()


def leaves(thing: Any, seen: set[int]) -> Iterator[Any]:
    """Every plain value that an object holds, however deep."""
    if isinstance(thing, str | int | float | bytes | None):
        yield thing
        return
    if id(thing) in seen or isinstance(thing, type):
        return
    seen.add(id(thing))
    parts: list[Any] = list(thing) if isinstance(thing, list | tuple | set | frozenset | deque) else []
    if isinstance(thing, Mapping):
        parts += [*thing.keys(), *thing.values()]
    slots = [name for kind in type(thing).__mro__ for name in kind.__dict__.get("__slots__", ())]
    for held in (getattr(thing, "__dict__", {}), {name: getattr(thing, name, None) for name in slots}):
        parts += held.values()
    for part in parts:
        yield from leaves(part, seen)


def test_nothing_of_an_event_is_kept() -> None:
    monitor, draw = watching(), np.random.default_rng(1)
    said = signals(draw)
    monitor.record(event({**said, "warnings": ["Doe^Jane"]}, code="Doe^Jane", route="/v1/results/doe-jane"))
    held = set(leaves(monitor, set()))
    assert MODEL in held
    assert len(held) > 100
    raw = [*said["scores"].values(), said["distance"], *said["facts"].values()]
    assert not held & {*raw, *(round(value, 4) for value in raw), *(float(f"{value:.4g}") for value in raw)}
    text = " ".join(str(one) for one in held) + monitor.prometheus() + str(monitor.drift())
    assert not [word for word in ("Jane", "jane", "key-7", "d" * 32, "e" * 64, "2026-11") if word in text]


def test_a_record_takes_microseconds() -> None:
    monitor, draw = watching(), np.random.default_rng(1)
    events = [event(signals(draw)) for _ in range(500)]
    took = []
    for _ in range(5):
        started = time.perf_counter()
        for one in events:
            monitor.record(one)
        took.append((time.perf_counter() - started) / len(events))
    assert min(took) < 50e-6
