"""One model and one question: what it cost, how far it is, what is kept of it, and that it ends when nobody waits."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prediction_phantom import classifier, segmenter
from torch import Tensor

from medray.bundle import ModelBundle
from medray.inference.explain import explain
from medray.inference.predictor import Predictor
from medray.metrics.operating import OperatingPoint
from medray.serving.lane import Passed
from medray.serving.messages import Answered, Asked, Entry
from medray.serving.problems import Refused
from medray.serving.resident import Question, Resident
from medray.types import Case, InputError

TRUST: dict[str, Any] = {
    "temperature": 2.0,
    "conformal": None,
    "interval": None,
    "operating_points": [],
}


def entry(bundle: ModelBundle, **more: Any) -> Entry:
    return Entry("net", "3", bundle.digest, str(bundle.folder), **more)


def picture(size: tuple[int, ...] = (16, 16), seed: int = 0) -> Case:
    image = np.random.default_rng(seed).integers(-1000, 3000, (1, *size)).astype(np.int16)
    return Case("upload", image, np.eye(4), "mm" if len(size) == 3 else "px")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    bundle = classifier(tmp_path_factory.mktemp("a") / "small", trust=TRUST)
    return Resident(entry(bundle), Predictor(bundle.folder))


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    bundle = segmenter(tmp_path_factory.mktemp("b") / "volume", dims=3)
    return Resident(entry(bundle), Predictor(bundle.folder))


def here(function: Callable[[], Tensor]) -> Tensor:
    """The device is always free."""
    return function()


def run_of(resident: Resident, question: Question) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """As the engine has it, without a lane: each pass waits 10 ms and takes 1 ms."""

    def run(images: Tensor) -> tuple[Tensor, Tensor | None]:
        question.go_on()
        scores, embedded = resident.predictor.run(images)
        question.passed(Passed(scores, embedded, 0.01, 0.001, len(images)), len(images))
        return scores, embedded

    return run


def answer(resident: Resident, case: Case, tell: Callable[[float], None] | None = None, **asked: Any) -> Answered:
    question = Question(Asked("id", **asked), case, tell)
    return resident.answer(question, run_of(resident, question), here, "net@4")


# Questions


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    expected=st.integers(1, 60),
)
def test_progress_only_grows_and_is_never_more_than_all(counts: list[int], expected: int) -> None:
    """Passes beside the windows (of an embedding, say) do not lead past the end."""
    told: list[float] = []
    question = Question(Asked("id"), picture(), told.append)
    question.expected = expected
    for count in counts:
        question.passed(Passed(torch.zeros(1), None, 0.5, 0.25, count), count)
    assert told == sorted(told)
    assert 0 < told[0] <= told[-1] <= 1
    assert told[-1] == pytest.approx(min(1, sum(counts) / expected))
    assert question.queued_s == pytest.approx(0.5 * len(counts))
    assert question.forward_s == pytest.approx(0.25 * len(counts))
    assert question.batch == max(counts)


def test_who_does_not_wait_any_more_is_asked_for_nothing() -> None:
    question = Question(Asked("id"), picture())
    question.go_on()
    question.stop.set()
    with pytest.raises(Refused) as caught:
        question.go_on()
    assert (caught.value.status, caught.value.code) == (499, "cancelled")


def test_a_stop_between_two_windows_ends_the_volume(volume: Resident) -> None:
    stops = threading.Event()
    shares: list[float] = []

    def tell(share: float) -> None:
        shares.append(share)
        if len(shares) == 3:
            stops.set()
            question.stop.set()

    question = Question(Asked("id"), picture((20, 20, 20)), tell)
    with pytest.raises(Refused, match="cancelled"):
        volume.answer(question, run_of(volume, question), here, "")
    assert len(shares) == 3


# Answers


def test_progress_counts_the_windows_of_the_volume(volume: Resident) -> None:
    shares: list[float] = []
    answer(volume, picture((20, 14, 9)), shares.append)
    assert shares[-1] == 1
    assert np.diff(shares).max() < 0.2, "in even steps"
    assert len(shares) > 5


def test_times_are_told_apart_and_none_is_negative(volume: Resident) -> None:
    """Also where the passes waited, as it seems, longer than the whole answer took."""
    answered = answer(volume, picture((20, 20, 20)))
    spent = answered.timings_ms
    assert set(spent) == {"preprocess", "queue", "forward", "postprocess"}
    assert spent["queue"] == pytest.approx(10 * spent["forward"])
    assert min(spent.values()) >= 0
    assert answered.batch == volume.predictor.window.batch


@pytest.mark.parametrize("keep", [None, True, False])
def test_what_files_are_made_of_comes_by_wish_and_with_masks(
    small: Resident, volume: Resident, keep: bool | None
) -> None:
    for resident, size, default in ((small, (16, 16), False), (volume, (9, 9, 9), True)):
        answered = answer(resident, picture(size), keep=keep)
        wanted = default if keep is None else keep
        assert (answered.prediction is not None) is wanted
        assert (answered.facts is not None) is wanted
        assert answered.shadow == "net@4"


def test_an_answer_travels_between_processes(volume: Resident) -> None:
    answered = answer(volume, picture((9, 9, 9)), explain="gradcam", target="organ")
    again = pickle.loads(pickle.dumps(answered))  # noqa: S301  # our own
    assert again.entry == answered.entry
    assert again.body == answered.body
    np.testing.assert_array_equal(again.prediction.mask, answered.prediction.mask)  # type: ignore[union-attr]
    np.testing.assert_array_equal(again.heat, answered.heat)


def test_signals_are_plain_json_and_of_this_answer(small: Resident, volume: Resident) -> None:
    for resident, size in ((small, (16, 16)), (volume, (9, 9, 9))):
        answered = answer(resident, picture(size))
        assert json.loads(json.dumps(answered.signals, allow_nan=False)) == answered.signals
        assert answered.signals["labels"] == answered.body["labels"]
    scores = {each["label"]: each["probability"] for each in answer(small, picture()).body["predictions"]}
    assert answer(small, picture()).signals["scores"] == scores, "calibrated ones"


def test_probabilities_are_calibrated_as_the_predictors(small: Resident) -> None:
    expected = small.predictor.predict(picture())
    found = answer(small, picture()).body["predictions"]
    assert [each["probability"] for each in found] == expected.scores.tolist()
    assert expected.uncalibrated is not None
    assert [each["uncalibrated"] for each in found] == expected.uncalibrated.tolist()


@pytest.mark.parametrize("target", ["", "organ", "lesion"])
def test_heat_lies_on_the_patients_grid_and_is_of_who_is_named(volume: Resident, target: str) -> None:
    case = replace(picture((10, 11, 9)), affine=np.diag([-1.0, 1.0, -1.0, 1.0]))
    answered = answer(volume, case, explain="gradcam", target=target)
    said = answered.body["explanation"]["target"]
    assert said == (target or answered.body["labels"][0])
    assert answered.heat is not None
    np.testing.assert_allclose(answered.heat, explain(volume.predictor, case, "gradcam", said).restored, atol=1e-6)


def test_of_several_structures_the_largest_is_explained_as_on_the_command_line(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "masks")
    resident, case = Resident(entry(bundle), Predictor(bundle.folder)), picture((30, 30))
    bias = next(part for part in reversed(list(resident.predictor.network.parameters())) if part.shape == (3,))
    for _ in range(200):
        found = resident.predictor.predict(case)
        if found.volumes.get("lesion", 0) > found.volumes.get("organ", 0) > 0:
            break
        with torch.no_grad():
            bias += torch.tensor([0.0, 0.0, 0.01])
    assert found.labels == ("organ", "lesion")
    assert explain(resident.predictor, case, "gradcam").target == "lesion"
    assert answer(resident, case, explain="gradcam").body["explanation"]["target"] == "lesion"


def test_each_pass_of_an_explanation_has_its_turn(volume: Resident) -> None:
    turns: list[int] = []

    def turn(function: Callable[[], Tensor]) -> Tensor:
        turns.append(1)
        return function()

    question = Question(Asked("id", explain="gradcam", target="organ"), picture((16, 16, 16)))
    volume.answer(question, run_of(volume, question), turn, "")
    assert len(turns) > 8, "others are let in between windows"


@pytest.mark.parametrize("asked", [{"explain": "nothing"}, {"explain": "gradcam", "target": "nobody"}])
def test_what_cannot_be_explained_is_said(small: Resident, asked: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        answer(small, picture(), **asked)


def test_an_image_that_does_not_fit_is_refused(small: Resident) -> None:
    with pytest.raises(InputError):
        answer(small, picture((9, 9, 9)))


# What is known of it


def test_about_says_what_the_model_is(small: Resident, volume: Resident) -> None:
    said = small.about()
    assert json.loads(json.dumps(said)) == said
    assert (said["task"], said["axes"], said["channels"], said["classes"]) == ("classification", 2, 1, ["a", "b"])
    assert (said["structures"], said["input"], said["outputs"]) == ([], [-1, 1, 16, 16], ["a", "b"])
    assert (said["alias"], said["role"], said["share"]) == (None, "serving", 1.0)
    said = volume.about()
    assert (said["task"], said["axes"], said["structures"]) == ("segmentation", 3, ["organ", "lesion"])
    assert said["input"] == [-1, 1, 8, 8, 8]
    assert str(small.predictor.bundle.folder) not in json.dumps(small.about()), "no path of the server"


def test_the_threshold_is_the_first_operating_point_of_a_class(tmp_path: Path) -> None:
    figures = {name: 0.5 for name in OperatingPoint.__dataclass_fields__ if name != "rule"}
    points = [{"of": "b", "rule": "a test", **figures, "threshold": threshold} for threshold in (0.3, 0.6)]
    bundle = classifier(tmp_path / "points", trust={**TRUST, "operating_points": points})
    resident = Resident(entry(bundle), Predictor(bundle.folder))
    assert resident.thresholds == {"b": 0.3}
    body = answer(resident, picture()).body
    assert [each.get("threshold") for each in body["predictions"]] == [None, 0.3]
    assert body["labels"] == (["b"] if body["predictions"][1]["probability"] >= 0.3 else ["a"])


def test_warming_up_asks_the_network_nothing_and_takes_every_kind_of_model(small: Resident, volume: Resident) -> None:
    for resident in (small, volume):
        passes: list[int] = []
        hook = resident.predictor.network.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        resident.warm()
        hook.remove()
        assert not passes
