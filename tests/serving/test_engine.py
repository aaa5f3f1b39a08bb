"""The models in memory: each answer is of exactly one version, and nobody waits for what nobody wants any more."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import math
import shutil
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_phantom import classifier, segmenter

from medray.bundle import SUMS, BundleError, ModelBundle
from medray.inference.explain import explain
from medray.inference.predictor import Predictor
from medray.sections.service import ServeSection
from medray.serving.engine import SHARES, Engine, _chosen
from medray.serving.messages import Answered, Asked, Entry
from medray.serving.problems import Refused
from medray.types import Array, Case, InputError

WAIT_S = 20.0
EYE = np.eye(4)


def entry(bundle: ModelBundle, version: str = "1", name: str = "net", **more: Any) -> Entry:
    return Entry(name, version, bundle.digest, str(bundle.folder), **more)


def picture(seed: int = 0, size: tuple[int, ...] = (16, 16)) -> Case:
    image = np.random.default_rng(seed).integers(-1000, 3000, (1, *size)).astype(np.int16)
    return Case("upload", image, EYE, "mm" if len(size) == 3 else "px")


def probabilities(answered: Answered) -> Array:
    return np.array([each["probability"] for each in answered.body["predictions"]])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelBundle]:
    """Small models; do not change them."""
    folder = tmp_path_factory.mktemp("bundles")
    regions = {"regions": {"any": ["organ", "lesion"], "core": ["lesion"]}, "threshold": 0.999}
    return {
        "one": classifier(folder / "one", seed=1),
        "two": classifier(folder / "two", seed=2),
        "flat": segmenter(folder / "flat"),
        "volume": segmenter(folder / "volume", dims=3),
        "blind": segmenter(folder / "blind", task=regions),
    }


@pytest.fixture(scope="module")
def direct(bundles: dict[str, ModelBundle]) -> dict[str, Predictor]:
    """The same models without a service."""
    return {name: Predictor(bundle.folder) for name, bundle in bundles.items()}


@pytest.fixture
def make() -> Iterator[Callable[..., Engine]]:
    """Engines that are closed at the end."""
    made: list[Engine] = []

    def build(*lineup: Entry, **settings: Any) -> Engine:
        made.append(Engine(ServeSection.model_validate(settings)))
        made[-1].serve(lineup)
        return made[-1]

    yield build
    for engine in made:
        engine.close()


class Watch:
    """Counts the passes of a resident network, and holds them up until they may go on."""

    def __init__(self, engine: Engine, held: bool = False, place: int = 0) -> None:
        self.count = 0
        self.threads: set[str] = set()
        self.begun, self.go_on = threading.Event(), threading.Event()
        if not held:
            self.go_on.set()
        network = list(engine._residents.values())[place].predictor.network
        network.register_forward_pre_hook(lambda _, inputs: self._see(*inputs))

    def _see(self, images: torch.Tensor) -> None:
        if images.is_meta:  # shapes alone, which take no device
            return
        self.count += 1
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        assert self.go_on.wait(WAIT_S)

    async def until_begun(self) -> None:
        await asyncio.to_thread(self.begun.wait, WAIT_S)
        assert self.begun.is_set()


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)


# Answers


def test_an_answer_is_the_predictors_with_its_version_and_costs(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], direct: dict[str, Predictor]
) -> None:
    engine, case = make(entry(bundles["one"], "3")), picture()
    answered = asyncio.run(engine.predict(Asked("id"), case))
    expected = direct["one"].predict(case)
    assert answered.entry == entry(bundles["one"], "3")
    assert probabilities(answered).tolist() == expected.scores.tolist()
    assert answered.body["labels"] == list(expected.labels)
    assert answered.batch == 1
    assert set(answered.timings_ms) == {"preprocess", "queue", "forward", "postprocess"}
    assert all(spent >= 0 for spent in answered.timings_ms.values())
    assert answered.prediction is None, "nothing is kept of it unless it is asked for"
    assert asyncio.run(engine.predict(Asked("id", keep=True), case)).prediction is not None


@pytest.mark.parametrize(("name", "size"), [("flat", (40, 23)), ("volume", (20, 9, 13)), ("blind", (16, 16))])
@pytest.mark.parametrize("batching", [True, False])
def test_a_mask_is_the_predictors(
    make: Callable[..., Engine],
    bundles: dict[str, ModelBundle],
    direct: dict[str, Predictor],
    name: str,
    size: tuple[int, ...],
    batching: bool,
) -> None:
    engine, case = make(entry(bundles[name]), batching=batching), picture(1, size)
    answered = asyncio.run(engine.predict(Asked("id"), case))
    expected = direct[name].predict(case)
    assert answered.prediction is not None
    np.testing.assert_array_equal(answered.prediction.mask, expected.mask)
    assert {one["label"]: one["volume"] for one in answered.body["structures"]} == pytest.approx(
        dict.fromkeys(one["label"] for one in answered.body["structures"]) | dict(expected.volumes), rel=1e-5
    )
    assert asyncio.run(engine.predict(Asked("id", keep=False), case)).prediction is None


def test_concurrent_questions_share_passes_and_have_their_own_answers(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], direct: dict[str, Predictor]
) -> None:
    engine = make(entry(bundles["one"]))
    watch = Watch(engine, held=True)
    cases = [picture(seed) for seed in range(17)]

    async def ask() -> list[Answered]:
        first = asyncio.ensure_future(engine.predict(Asked("0"), cases[0]))
        await watch.until_begun()
        others = [asyncio.ensure_future(engine.predict(Asked(str(k)), case)) for k, case in enumerate(cases[1:], 1)]
        await until(lambda: engine.waiting == 16)
        watch.go_on.set()
        return list(await asyncio.gather(first, *others))

    found = asyncio.run(ask())
    assert [one.batch for one in found] == [1, *[16] * 16]
    assert watch.count == 2
    for case, answered in zip(cases, found, strict=True):
        np.testing.assert_allclose(probabilities(answered), direct["one"].predict(case).scores, atol=1e-5)


def test_one_image_overtakes_a_volume_of_another_model(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle]
) -> None:
    engine = make(entry(bundles["one"], name="small"), entry(bundles["volume"], name="large"))
    watch = Watch(engine, held=True, place=1)

    async def ask() -> int:
        volume = asyncio.ensure_future(engine.predict(Asked("a", "large"), picture(0, (40, 40, 40))))
        await watch.until_begun()
        small = asyncio.ensure_future(engine.predict(Asked("b", "small"), picture()))
        await until(lambda: engine.waiting > 0)
        watch.go_on.set()
        await small
        then = watch.count
        await volume
        return then

    passes = asyncio.run(ask())
    assert passes < watch.count / 10


def test_bad_images_are_refused_and_cost_the_others_nothing(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle]
) -> None:
    engine = make(entry(bundles["one"]))

    async def ask() -> list[Any]:
        cases = [picture(0), replace(picture(1), image=np.zeros((3, 16, 16))), picture(2), picture(3, (9, 9, 9))]
        asked = [engine.predict(Asked(str(k)), case) for k, case in enumerate(cases)]
        return await asyncio.gather(*asked, return_exceptions=True)

    good, colour, fine, volume = asyncio.run(ask())
    assert isinstance(good, Answered)
    assert isinstance(fine, Answered)
    assert isinstance(colour, InputError)
    assert colour.code == "wrong_channels"
    assert isinstance(volume, InputError)


def test_a_device_without_room_says_so_and_the_next_question_is_answered(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle]
) -> None:
    engine = make(entry(bundles["one"]))
    resident = next(iter(engine._residents.values()))

    def no_room(_module: object, _inputs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = resident.predictor.network.register_forward_pre_hook(no_room)
    with pytest.raises(Refused) as caught:
        asyncio.run(engine.predict(Asked("a"), picture()))
    assert (caught.value.status, caught.value.code) == (503, "out_of_memory")
    hook.remove()
    assert asyncio.run(engine.predict(Asked("b"), picture())).batch == 1


def test_an_image_that_needs_too_much_memory_is_refused(make: Callable[..., Engine], tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "small", dims=3)
    engine = make(entry(bundle))
    resident = next(iter(engine._residents.values()))
    resident.predictor.window = resident.predictor.window.model_copy(update={"memory_gb": 1e-6})
    with pytest.raises(Refused) as caught:
        asyncio.run(engine.predict(Asked("a"), picture(0, (30, 30, 30))))
    assert caught.value.status == 422
    assert "memory" in caught.value.detail


# Follow


async def heard(news: AsyncIterator[float | Answered]) -> tuple[list[float], list[Answered]]:
    shares: list[float] = []
    answers: list[Answered] = []
    async for one in news:
        if isinstance(one, Answered):
            answers.append(one)
        else:
            assert not answers, "the answer is the last"
            shares.append(one)
    return shares, answers


def test_follow_tells_how_far_it_is_and_ends_with_the_answer(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], direct: dict[str, Predictor]
) -> None:
    engine, case = make(entry(bundles["volume"])), picture(3, (24, 20, 18))
    shares, answers = asyncio.run(heard(engine.follow(Asked("id"), case)))
    assert len(shares) > 10
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.1
    assert shares[-1] <= 1
    (answered,) = answers
    assert answered.prediction is not None
    np.testing.assert_array_equal(answered.prediction.mask, direct["volume"].predict(case).mask)


def test_follow_raises_as_predict_does(make: Callable[..., Engine], bundles: dict[str, ModelBundle]) -> None:
    engine = make(entry(bundles["one"]))
    with pytest.raises(Refused, match="no_model"):
        asyncio.run(heard(engine.follow(Asked("id", "other"), picture())))
    with pytest.raises(InputError):
        asyncio.run(heard(engine.follow(Asked("id"), picture(0, (8, 8, 8)))))


# Tensors


@pytest.mark.parametrize("name", ["one", "flat", "volume", "blind"])
def test_tensors_get_the_scores_of_the_predictor(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], direct: dict[str, Predictor], name: str
) -> None:
    engine, io = make(entry(bundles[name], "7")), bundles[name].io
    images = np.random.default_rng(0).normal(size=(5, io.in_channels, *io.size)).astype(np.float32)
    said, scores = asyncio.run(engine.infer("net@7", images))
    assert said.version == "7"
    np.testing.assert_allclose(scores, direct[name].scores(images), atol=1e-6)
    with pytest.raises(Refused) as caught:
        asyncio.run(engine.infer("", images[..., :-1]))
    assert (caught.value.status, caught.value.code) == (422, "wrong_shape")
    assert str(["batch", io.in_channels, *io.size]) in caught.value.hint


def test_tensors_that_cannot_be_written_to_are_taken(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle]
) -> None:
    images = np.zeros((1, 1, 16, 16), np.float32)
    images.flags.writeable = False
    asyncio.run(make(entry(bundles["one"])).infer("", images))


def test_images_that_cannot_be_written_to_are_taken(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle]
) -> None:
    """Ray hands arrays over so."""
    for name, size in (("one", (16, 16)), ("flat", (20, 20)), ("volume", (9, 9, 9))):
        case = picture(0, size)
        case.image.flags.writeable = False
        floats = replace(case, image=case.image.astype(np.float32))
        floats.image.flags.writeable = False
        for raw in (case, floats):
            asyncio.run(make(entry(bundles[name])).predict(Asked("id", explain="gradcam"), raw))


# What is served


def test_models_and_cards_say_what_is_served(make: Callable[..., Engine], bundles: dict[str, ModelBundle]) -> None:
    lineup = [
        entry(bundles["one"], "1", alias="champion"),
        entry(bundles["two"], "2", part="canary", share=0.25),
        entry(bundles["flat"], "9", "masks"),
    ]
    engine = make(*lineup)
    said = asyncio.run(engine.models())
    assert [(one["name"], one["version"], one["role"], one["share"]) for one in said] == [
        ("net", "1", "serving", 1.0),
        ("net", "2", "canary", 0.25),
        ("masks", "9", "serving", 1.0),
    ]
    assert [one["default"] for one in said] == [True, False, False]
    assert [one["alias"] for one in said] == ["champion", None, None]
    assert said[2]["structures"] == ["organ", "lesion"]
    card = asyncio.run(engine.card("masks"))
    assert card["card"] == dict(bundles["flat"].card)
    with pytest.raises(Refused, match="no_model"):
        asyncio.run(engine.card("nothing"))


@pytest.mark.parametrize(
    ("asked", "version"),
    [("", "1"), ("net", "1"), ("net@1", "1"), ("net@champion", "1"), ("net@2", "2"), ("masks", "9"), ("@9", "9")],
)
def test_a_model_is_asked_by_name_version_or_alias(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], asked: str, version: str
) -> None:
    engine = make(
        entry(bundles["one"], "1", alias="champion"), entry(bundles["two"], "2"), entry(bundles["blind"], "9", "masks")
    )
    assert asyncio.run(engine.predict(Asked("id", asked), picture())).entry.version == version


@pytest.mark.parametrize("asked", ["nett", "net@3", "net@candidate", "masks@1", "net/1", "net@4"])
def test_what_is_not_served_is_a_404_that_names_what_is(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], asked: str
) -> None:
    """A shadow answers nobody, and is not named."""
    shadow = entry(bundles["one"], "4", part="shadow")
    engine = make(entry(bundles["one"], "1"), entry(bundles["flat"], "9", "masks"), shadow)
    with pytest.raises(Refused) as caught:
        asyncio.run(engine.predict(Asked("id", asked), picture()))
    assert (caught.value.status, caught.value.code) == (404, "no_model")
    assert caught.value.hint == "there are: net@1, masks@9"
    assert asked not in caught.value.detail + caught.value.hint, "what a client wrote is not repeated"


def test_before_anything_is_served_nothing_is() -> None:
    engine = Engine(ServeSection())
    assert asyncio.run(engine.models()) == []
    with pytest.raises(Refused) as caught:
        asyncio.run(engine.predict(Asked("id"), picture()))
    assert caught.value.hint == "there are: none"
    engine.close()


# Canary and shadow


def alike(share: float) -> list[Entry]:
    serving = Entry("net", "1", "a" * 64, "/a", part="serving")
    return [serving, Entry("net", "2", "b" * 64, "/b", part="canary", share=share)]


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0.0001, 1), salt=st.integers(0, 10**9))
def test_a_canary_answers_for_its_share_of_the_images(share: float, salt: int) -> None:
    lineup, count = alike(share), 2000
    found = sum(_chosen(lineup, f"{salt}/{k}").part == "canary" for k in range(count))
    deviation = math.sqrt(count * share * (1 - share))
    assert abs(found - count * share) <= 6 * deviation + 2


@settings(deadline=None)
@given(word=st.text(), shares=st.lists(st.floats(0.0001, 1), min_size=2, max_size=2))
def test_equal_words_are_answered_by_the_same_version_and_a_larger_share_takes_none_away(
    word: str, shares: list[float]
) -> None:
    small, large = (_chosen(alike(share), word).part for share in sorted(shares))
    assert small == _chosen(alike(min(shares)), word).part
    assert (small, large) != ("canary", "serving")


def test_a_canary_of_all_or_of_a_part_answers_over_the_engine(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], direct: dict[str, Predictor]
) -> None:
    engine = make(entry(bundles["one"], "1"), entry(bundles["two"], "2", part="canary", share=0.5))
    case = picture(5)
    expected = {"1": direct["one"].predict(case).scores, "2": direct["two"].predict(case).scores}

    async def ask() -> dict[str, str]:
        found: dict[str, str] = {}
        for _ in range(3):
            for word in map(str, range(20)):
                answered = await engine.predict(Asked("id", "", word), case)
                assert found.setdefault(word, answered.entry.version) == answered.entry.version
                assert probabilities(answered).tolist() == expected[answered.entry.version].tolist()
        assert (await engine.predict(Asked("id", "net@1", "0"), case)).entry.version == "1"
        assert (await engine.predict(Asked("id", "net@2", "0"), case)).entry.version == "2"
        return found

    assert set(asyncio.run(ask()).values()) == {"1", "2"}
    engine.serve([entry(bundles["one"], "1"), entry(bundles["two"], "2", part="canary", share=1.0)])
    assert {asyncio.run(engine.predict(Asked("id", "", str(k)), case)).entry.version for k in range(8)} == {"2"}


def test_a_canary_of_a_part_does_not_get_all_tensors_and_cards(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle]
) -> None:
    engine = make(entry(bundles["one"], "1"), entry(bundles["two"], "2", part="canary", share=0.5))

    async def ask() -> tuple[str, set[str]]:
        images = np.random.default_rng(0).normal(size=(30, 1, 1, 16, 16)).astype(np.float32)
        return (await engine.card("net"))["version"], {
            (await engine.infer("net", image))[0].version for image in images
        }

    card, versions = asyncio.run(ask())
    assert card == "1"
    assert versions != {"2"}


def test_a_shadow_is_named_to_who_serves_and_answers_only_as_a_shadow(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], direct: dict[str, Predictor]
) -> None:
    engine, case = make(entry(bundles["one"], "1"), entry(bundles["two"], "2", part="shadow")), picture()
    heard_one = asyncio.run(engine.predict(Asked("id"), case))
    assert heard_one.shadow == "net@2"
    assert heard_one.entry.version == "1"
    answered = asyncio.run(engine.predict(Asked("id", heard_one.shadow, shadow=True), case))
    assert answered.entry.version == "2"
    assert answered.shadow == "", "a shadow has none of its own"
    assert probabilities(answered).tolist() == direct["two"].predict(case).scores.tolist()


def test_a_shadow_is_refused_while_others_wait(make: Callable[..., Engine], bundles: dict[str, ModelBundle]) -> None:
    engine = make(entry(bundles["one"], "1"), entry(bundles["two"], "2", part="shadow"))
    watch = Watch(engine, held=True)

    async def ask() -> Refused:
        first = asyncio.ensure_future(engine.predict(Asked("a"), picture(0)))
        await watch.until_begun()
        second = asyncio.ensure_future(engine.predict(Asked("b"), picture(1)))
        await until(lambda: engine.waiting == 1)
        with pytest.raises(Refused) as caught:
            await engine.predict(Asked("c", "net@2", shadow=True), picture(2))
        watch.go_on.set()
        await asyncio.gather(first, second)
        await engine.predict(Asked("d", "net@2", shadow=True), picture(2))
        return caught.value

    refused = asyncio.run(ask())
    assert (refused.status, refused.code) == (503, "busy")


# Cancelled


@pytest.mark.parametrize("batching", [True, False])
def test_a_cancelled_volume_stops_at_its_next_window(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], batching: bool
) -> None:
    engine = make(entry(bundles["volume"]), batching=batching)
    watch = Watch(engine, held=True)

    async def ask() -> None:
        task = asyncio.ensure_future(engine.predict(Asked("a"), picture(0, (40, 40, 40))))
        await watch.until_begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        watch.go_on.set()
        began = time.perf_counter()
        await engine.predict(Asked("b"), picture(0, (8, 8, 8)))
        assert time.perf_counter() - began < 2, "the lane is free"

    asyncio.run(ask())
    assert watch.count == 2
    assert engine.waiting == 0


def test_a_question_that_is_cancelled_before_its_thread_begins_asks_nothing(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle]
) -> None:
    engine = make(entry(bundles["one"]), max_ongoing_requests=4)  # and so six threads
    watch = Watch(engine, held=True)

    async def ask() -> None:
        tasks = [asyncio.ensure_future(engine.predict(Asked("0"), picture()))]
        await watch.until_begun()
        tasks += [asyncio.ensure_future(engine.predict(Asked(str(k)), picture(k))) for k in range(1, 12)]
        await until(lambda: engine.waiting == 5)
        for task in tasks[6:]:
            task.cancel()
        await asyncio.wait(tasks[6:])
        watch.go_on.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(one, Answered) for one in found] == [True] * 6 + [False] * 6

    asyncio.run(ask())
    assert watch.count == 2


async def left(engine: Engine, watch: Watch, cancel: bool) -> list[str]:
    """Somebody follows a volume and leaves; what asyncio has to complain of."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, told: complaints.append(told["message"]))

    async def follow() -> None:
        async for _ in engine.follow(Asked("a"), picture(0, (40, 40, 40))):
            if not cancel:
                return

    task = asyncio.ensure_future(follow())
    await watch.until_begun()
    if cancel:
        task.cancel()
    watch.go_on.set()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    del task
    await until(lambda: engine.waiting == 0)
    await engine.predict(Asked("b"), picture(0, (8, 8, 8)))
    for _ in range(3):
        gc.collect()
        await asyncio.sleep(0.01)
    return complaints


def test_who_leaves_a_job_frees_the_lane(make: Callable[..., Engine], bundles: dict[str, ModelBundle]) -> None:
    engine = make(entry(bundles["volume"]))
    watch = Watch(engine, held=True)
    asyncio.run(left(engine, watch, cancel=True))
    assert watch.count <= 3


def test_who_leaves_a_job_leaves_nothing_behind(make: Callable[..., Engine], bundles: dict[str, ModelBundle]) -> None:
    engine = make(entry(bundles["volume"]))
    assert asyncio.run(left(engine, Watch(engine, held=True), cancel=True)) == []


def test_a_cancelled_explanation_stops_at_its_next_window(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle]
) -> None:
    engine, case = make(entry(bundles["volume"])), picture(0, (24, 24, 24))
    watch = Watch(engine)

    async def ask() -> None:
        answer = (await engine.predict(Asked("a"), case)).body
        alone = watch.count
        assert answer["labels"]
        task = asyncio.ensure_future(engine.predict(Asked("b", explain="gradcam"), case))
        await until(lambda: watch.count > 2 * alone + 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        then = watch.count
        await asyncio.sleep(0.3)
        assert watch.count - then <= 2

    asyncio.run(ask())


# Explanations


@pytest.mark.parametrize(
    ("name", "size", "method", "target"),
    [
        ("one", (16, 16), "gradcam", ""),
        ("one", (16, 16), "gradcam", "a"),
        ("one", (16, 16), "gradcam++", "b"),
        ("one", (16, 16), "occlusion", "a"),
        ("one", (16, 16), "integrated_gradients", ""),
        ("one", (16, 16), "smoothgrad", "b"),
        ("flat", (30, 22), "gradcam", "lesion"),
        ("volume", (12, 10, 9), "gradcam++", "organ"),
        ("blind", (20, 20), "gradcam", "core"),
    ],
)
def test_heat_is_that_of_explain_and_on_the_patients_grid(
    make: Callable[..., Engine],
    bundles: dict[str, ModelBundle],
    direct: dict[str, Predictor],
    name: str,
    size: tuple[int, ...],
    method: str,
    target: str,
) -> None:
    engine, case = make(entry(bundles[name])), picture(2, size)
    answered = asyncio.run(engine.predict(Asked("id", explain=method, target=target), case))
    said = answered.body["explanation"]
    assert said["method"] == method
    assert said["target"] == (target or answered.body["labels"][0])
    expected = explain(direct[name], case, method, said["target"])
    assert answered.heat is not None
    assert answered.heat.shape == size
    np.testing.assert_allclose(answered.heat, expected.restored, atol=1e-6)


@pytest.mark.parametrize("name", ["one", "flat"])
@pytest.mark.parametrize(
    ("asked", "word"),
    [({"explain": "gradcamm"}, "gradcam"), ({"explain": "gradcam", "target": "Doe^Jane"}, "it has: ")],
)
def test_no_such_method_or_class_is_a_422_that_names_them(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], name: str, asked: dict[str, Any], word: str
) -> None:
    engine = make(entry(bundles[name]))
    with pytest.raises(Refused) as caught:
        asyncio.run(engine.predict(Asked("id", **asked), picture()))
    assert caught.value.status == 422
    assert word in caught.value.hint
    assert "Doe" not in str(caught.value)
    assert asyncio.run(engine.predict(Asked("id"), picture())).heat is None


def test_a_method_that_does_not_go_with_masks_is_a_422(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle]
) -> None:
    with pytest.raises(Refused) as caught:
        asyncio.run(make(entry(bundles["flat"])).predict(Asked("id", explain="occlusion"), picture()))
    assert caught.value.status == 422
    assert "gradcam" in caught.value.detail


def test_what_cannot_be_explained_is_refused_before_the_network_is_asked(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle]
) -> None:
    engine = make(entry(bundles["volume"]))
    watch = Watch(engine)
    with pytest.raises(Refused):
        asyncio.run(engine.predict(Asked("id", explain="occlusion"), picture(0, (20, 20, 20))))
    assert watch.count == 0


@pytest.mark.parametrize(
    ("name", "size", "explained"),
    [
        ("one", (16, 16), "gradcam"),
        ("one", (16, 16), "occlusion"),
        ("flat", (30, 30), "gradcam"),
        ("volume", (12, 12, 12), "gradcam"),
        ("blind", (30, 30), "gradcam"),
    ],
)
def test_every_pass_is_in_the_lane(
    make: Callable[..., Engine],
    bundles: dict[str, ModelBundle],
    name: str,
    size: tuple[int, ...],
    explained: str,
) -> None:
    """Else two threads are on the device at once, and Grad-CAM's hook keeps another's features."""
    engine = make(entry(bundles[name]))
    watch = Watch(engine)
    asyncio.run(engine.predict(Asked("id", explain=explained), picture(4, size)))
    assert watch.count
    assert watch.threads == {"lane"}


@pytest.mark.parametrize(("name", "size"), [("one", (16, 16)), ("flat", (16, 16)), ("volume", (8, 8, 8))])
def test_who_asks_while_an_explanation_looks_for_its_layer_is_answered(
    make: Callable[..., Engine],
    bundles: dict[str, ModelBundle],
    direct: dict[str, Predictor],
    name: str,
    size: tuple[int, ...],
) -> None:
    engine, case = make(entry(bundles[name])), picture(1, size)
    network = next(iter(engine._residents.values())).predictor.network
    found: list[Any] = []

    def neighbour() -> None:
        found.append(asyncio.run(engine.predict(Asked("b", keep=True), case)))

    def ask_too(_module: object, inputs: tuple[torch.Tensor]) -> None:
        if inputs[0].is_meta and threading.current_thread().name != "lane":
            worker = threading.Thread(target=neighbour)
            worker.start()
            worker.join(WAIT_S)

    network.register_forward_pre_hook(ask_too)
    asyncio.run(engine.predict(Asked("a", explain="gradcam", target=direct[name].bundle.classes[-1]), case))
    neighbour()
    for answered in found:
        assert answered.prediction is not None
        assert answered.prediction.labels == direct[name].predict(case).labels


def test_explanations_at_once_leave_the_weights_in_the_network(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], direct: dict[str, Predictor]
) -> None:
    engine, case = make(entry(bundles["one"])), picture()
    predictor = next(iter(engine._residents.values())).predictor
    network = predictor.network
    second, first_is_done = threading.Event(), threading.Event()

    def explained() -> None:
        # What becomes of the questions themselves is the affair of the test above.
        with contextlib.suppress(Exception):
            explain(predictor, case, "gradcam", "b", engine._lane.turn)

    other = threading.Thread(target=explained)

    def overlap(_module: object, inputs: tuple[torch.Tensor]) -> None:
        """The second begins while the first looks, and looks on when the first is done."""
        if not inputs[0].is_meta or threading.current_thread().name == "lane":
            return
        if not other.ident:
            other.start()
            second.wait(2)
        else:
            second.set()
            assert first_is_done.wait(WAIT_S)

    network.register_forward_pre_hook(overlap)
    explained()
    first_is_done.set()
    if other.ident:
        other.join(WAIT_S)
    assert not any(weight.is_meta for weight in network.parameters())
    answered = asyncio.run(engine.predict(Asked("id"), case))
    assert probabilities(answered).tolist() == direct["one"].predict(case).scores.tolist()


def test_explanations_and_answers_at_once_do_not_mix(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], direct: dict[str, Predictor]
) -> None:
    engine = make(entry(bundles["one"]))
    cases = [picture(seed) for seed in range(24)]

    async def ask() -> list[Answered]:
        methods = ["gradcam", "", "gradcam++"] * 8
        asked = [engine.predict(Asked("id", explain=m, target="b"), c) for m, c in zip(methods, cases, strict=True)]
        return list(await asyncio.gather(*asked))

    for _ in range(3):
        for case, answered in zip(cases, asyncio.run(ask()), strict=True):
            np.testing.assert_allclose(probabilities(answered), direct["one"].predict(case).scores, atol=1e-5)
            if answered.heat is not None:
                expected = explain(direct["one"], case, answered.body["explanation"]["method"], "b").restored
                np.testing.assert_allclose(answered.heat, expected, atol=1e-5)


# Swaps


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders whose predictors are made from now on."""
    made: list[str] = []

    def predictor(folder: Path, device: str) -> Predictor:
        made.append(folder.name)
        return Predictor(folder, device)

    monkeypatch.setattr("medray.serving.engine.Predictor", predictor)
    return made


def altered(bundle: ModelBundle, folder: Path) -> Path:
    """A bundle whose sums are right, and whose golden answer is another's."""
    shutil.copytree(bundle.folder, folder)
    with np.load(folder / "golden.npz") as golden:
        window, scores = golden["window"], golden["scores"]
    np.savez_compressed(folder / "golden.npz", window=window, scores=1 - scores)
    digest = hashlib.sha256((folder / "golden.npz").read_bytes()).hexdigest()
    lines = [line.partition("  ") for line in (folder / SUMS).read_text().splitlines()]
    sums = "".join(f"{digest if name == 'golden.npz' else old}  {name}\n" for old, _, name in lines)
    (folder / SUMS).write_text(sums)
    return folder


@pytest.mark.parametrize("fault", ["golden", "bytes", "absent"])
def test_a_broken_model_changes_nothing(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], tmp_path: Path, fault: str
) -> None:
    engine, case = make(entry(bundles["one"])), picture()
    before = asyncio.run(engine.predict(Asked("a"), case))
    models = asyncio.run(engine.models())
    folder = altered(bundles["two"], tmp_path / "broken")
    if fault == "bytes":
        (folder / "card.json").write_bytes((folder / "card.json").read_bytes() + b" ")
    if fault == "absent":
        shutil.rmtree(folder)
    broken = Entry("net", "2", "0" * 64, str(folder))
    for lineup in ([broken], [entry(bundles["one"]), broken], [broken, entry(bundles["one"])]):
        with pytest.raises(BundleError):
            engine.serve(lineup)
        assert asyncio.run(engine.models()) == models
        after = asyncio.run(engine.predict(Asked("b"), case))
        assert after.entry == before.entry
        assert after.body == before.body
    engine.serve([entry(bundles["two"], "2")])
    assert asyncio.run(engine.predict(Asked("c"), case)).entry.version == "2"


def test_a_broken_model_leaves_no_other_new_one_in_memory(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], tmp_path: Path
) -> None:
    engine = make(entry(bundles["one"]))
    broken = Entry("other", "2", "0" * 64, str(altered(bundles["two"], tmp_path / "broken")))
    with pytest.raises(BundleError):
        engine.serve([entry(bundles["flat"], "1", "masks"), broken])
    assert set(engine._residents) == {entry(bundles["one"])}


def test_after_standby_serve_loads_nothing(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = counting(monkeypatch)
    one, two = entry(bundles["one"], "1"), entry(bundles["two"], "2")
    engine = make(one)
    engine.serve([one], standby=[two])
    asyncio.run(until(lambda: len(engine._residents) == 2))
    assert [model["version"] for model in asyncio.run(engine.models())] == ["1"], "stood by, and not served"
    with pytest.raises(Refused):
        asyncio.run(engine.predict(Asked("id", "net@2"), picture()))
    began = time.perf_counter()
    engine.serve([two])
    assert time.perf_counter() - began < 0.05
    assert loaded == ["one", "two"]
    assert set(engine._residents) == {two}


def test_standby_and_serve_at_once_load_a_model_once(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = counting(monkeypatch)
    one, two = entry(bundles["one"], "1"), entry(bundles["two"], "2")
    engine = make(one)
    engine.serve([one], standby=[two])
    engine.serve([two])
    for thread in [thread for thread in threading.enumerate() if thread.name == "standby"]:
        thread.join(WAIT_S)
    assert loaded == ["one", "two"]
    assert set(engine._residents) == {two}


def test_a_change_of_part_share_or_alias_loads_nothing(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = counting(monkeypatch)
    one, two = entry(bundles["one"], "1"), entry(bundles["two"], "2", part="canary", share=0.1)
    engine = make(one, two)
    for lineup in (
        [one, replace(two, share=0.5)],
        [one, replace(two, part="shadow", share=1.0)],
        [replace(two, part="serving", share=1.0, alias="champion")],
    ):
        engine.serve(lineup)
        assert [model["share"] for model in asyncio.run(engine.models())] == [each.share for each in lineup]
    assert loaded == ["one", "two"]
    assert asyncio.run(engine.predict(Asked("id", "net@champion"), picture())).entry.version == "2"


def test_a_standby_that_was_taken_back_is_not_kept(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle]
) -> None:
    one, two = entry(bundles["one"], "1"), entry(bundles["two"], "2")
    engine = make(one)
    late = engine._stand_by
    begun, go_on = threading.Event(), threading.Event()

    def slow(entries: Any) -> None:
        begun.set()
        go_on.wait(WAIT_S)
        late(entries)

    engine._stand_by = slow  # type: ignore[method-assign]
    engine.serve([one], standby=[two])
    assert begun.wait(WAIT_S)
    engine.serve([one])
    threads = [thread for thread in threading.enumerate() if thread.name == "standby"]
    go_on.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert set(engine._residents) == {one}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broken_standby_keeps_no_other_from_standing_by(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], tmp_path: Path
) -> None:
    one, two = entry(bundles["one"], "1"), entry(bundles["two"], "2")
    broken = Entry("net", "3", "0" * 64, str(altered(bundles["two"], tmp_path / "broken")))
    engine = make(one)
    engine.serve([one], standby=[broken, two])
    for thread in [thread for thread in threading.enumerate() if thread.name == "standby"]:
        thread.join(WAIT_S)
    assert two in engine._residents


def freed(gone: weakref.ref[torch.nn.Module]) -> bool:
    gc.collect()
    return gone() is None


def test_a_model_that_is_served_no_more_is_freed(make: Callable[..., Engine], bundles: dict[str, ModelBundle]) -> None:
    engine = make(entry(bundles["one"], "1"))
    asyncio.run(engine.predict(Asked("id"), picture()))
    gone = weakref.ref(next(iter(engine._residents.values())).predictor.network)
    engine.serve([entry(bundles["two"], "2")])
    asyncio.run(engine.predict(Asked("id"), picture()))
    assert freed(gone)


def test_a_model_that_is_served_no_more_is_freed_before_anybody_asks_again(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle]
) -> None:
    engine = make(entry(bundles["one"], "1"))
    asyncio.run(engine.predict(Asked("id"), picture()))
    gone = weakref.ref(next(iter(engine._residents.values())).predictor.network)
    engine.serve([entry(bundles["two"], "2")])
    assert freed(gone)


def test_who_was_asked_before_a_swap_answers_and_is_then_freed(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], direct: dict[str, Predictor]
) -> None:
    engine, case = make(entry(bundles["one"], "1")), picture()
    watch = Watch(engine, held=True)

    async def ask() -> Answered:
        task = asyncio.ensure_future(engine.predict(Asked("id"), case))
        await watch.until_begun()
        await asyncio.to_thread(engine.serve, [entry(bundles["two"], "2")])
        assert engine._residents.keys() == {entry(bundles["two"], "2")}
        watch.go_on.set()
        return await task

    answered = asyncio.run(ask())
    assert answered.entry.version == "1"
    assert probabilities(answered).tolist() == direct["one"].predict(case).scores.tolist()


class Moved(tuple[Entry, ...]):
    """A lineup that is swapped for another right after somebody has taken it up."""

    __slots__ = ()
    swap: Callable[[], None]

    def __iter__(self) -> Iterator[Entry]:
        worker = threading.Thread(target=type(self).swap)
        worker.start()
        worker.join(WAIT_S)
        return super().__iter__()


@pytest.mark.parametrize("ask", ["predict", "models"])
def test_a_swap_between_looking_and_asking_loses_nobody(
    make: Callable[..., Engine], bundles: dict[str, ModelBundle], ask: str
) -> None:
    one, two = entry(bundles["one"], "1"), entry(bundles["two"], "2")
    engine = make(one)
    Moved.swap = staticmethod(lambda: engine.serve([two]))  # type: ignore[assignment]
    engine._lineup = Moved([one])
    if ask == "models":
        assert len(asyncio.run(engine.models())) == 1
    else:
        assert asyncio.run(engine.predict(Asked("id"), picture())).entry in (one, two)


@settings(max_examples=6, deadline=None)
@given(swaps=st.lists(st.sampled_from(["1", "2", "both"]), min_size=4, max_size=8), batching=st.booleans())
def test_under_swaps_every_answer_is_of_exactly_one_version_and_none_is_lost(
    bundles: dict[str, ModelBundle], direct: dict[str, Predictor], swaps: list[str], batching: bool
) -> None:
    lineups = {
        "1": [entry(bundles["one"], "1")],
        "2": [entry(bundles["two"], "2")],
        "both": [entry(bundles["one"], "1"), entry(bundles["two"], "2", part="canary", share=0.5)],
    }
    cases = [picture(seed) for seed in range(8)]
    expected = {
        bundles[name].digest: np.stack([direct[name].predict(case).scores for case in cases]) for name in ("one", "two")
    }
    first, second = expected.values()
    assert np.abs(first - second).min() > 1e-3, "the versions are told apart by their scores"
    engine = Engine(ServeSection(batching=batching))
    engine.serve(lineups[swaps[0]])

    async def client(place: int, over: asyncio.Event) -> int:
        count = 0
        while not over.is_set() or count < 5:
            answered = await engine.predict(Asked("id", "", f"{place}/{count}"), cases[place])
            np.testing.assert_allclose(
                probabilities(answered), expected[answered.entry.digest][place], atol=1e-5, err_msg="of another version"
            )
            count += 1
        return count

    async def load() -> list[int]:
        over = asyncio.Event()
        clients = [asyncio.ensure_future(client(place, over)) for place in range(8)]
        for name in swaps[1:]:
            await asyncio.to_thread(engine.serve, lineups[name])
            await asyncio.sleep(0.02)
        over.set()
        return list(await asyncio.gather(*clients))

    try:
        assert min(asyncio.run(load())) >= 5
        assert {one.version for one in engine._residents} <= {"1", "2"}
    finally:
        engine.close()


# The end


def test_no_thread_is_left(bundles: dict[str, ModelBundle]) -> None:
    before = set(threading.enumerate())
    engine = Engine(ServeSection())
    engine.serve([entry(bundles["one"])], standby=[entry(bundles["two"], "2")])

    async def ask() -> None:
        await asyncio.gather(*[engine.predict(Asked("id"), picture(k)) for k in range(8)])

    asyncio.run(ask())
    engine.close()
    end = time.monotonic() + WAIT_S
    while (left_over := set(threading.enumerate()) - before) and time.monotonic() < end:
        time.sleep(0.01)
    assert not left_over


def test_shares_are_counted_finely_enough_for_a_thousandth() -> None:
    assert SHARES >= 1000
