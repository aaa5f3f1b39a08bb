"""The lane: nobody waits longer than the pass in flight, answers go to whom they belong, faults stay where they are."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from medray.serving.lane import Lane, Passed

WAIT_S = 20.0
"""Longer than anything here takes: what waits so long hangs."""
Answers = tuple[Tensor, Tensor | None]


def tagged(*values: float) -> Tensor:
    """(b, 1, 2, 2) images that are told apart by their value."""
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def pure(images: Tensor) -> Answers:
    """Of each image by itself, and to the last bit whatever stands beside it."""
    flat = images.flatten(1).double()
    return torch.stack([flat.sum(1), (3 * flat[:, 0] + 1)], 1), flat[:, :1] * 2


class Device:
    """A run that says which images each pass had, and stands still until it is let go on."""

    def __init__(self, run: Callable[[Tensor], Answers] = pure) -> None:
        self.passes: list[tuple[str, list[float]]] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self._run = run

    def named(self, name: str) -> Callable[[Tensor], Answers]:
        def run(images: Tensor) -> Answers:
            self.passes.append((name, [float(image.flatten()[0]) for image in images]))
            self.begun.set()
            assert self.go_on.wait(WAIT_S)
            return self._run(images)

        return run

    def held(self, lane: Lane) -> Future[Passed]:
        """A pass in flight, behind which others stand."""
        first = lane.ask("first", self.named("first"), tagged(-1), 1)
        assert self.begun.wait(WAIT_S)
        return first


@pytest.fixture(params=[True, False], ids=["shared", "apart"])
def any_lane(request: pytest.FixtureRequest) -> Iterator[Lane]:
    made = Lane(request.param)
    yield made
    made.close()


@pytest.fixture
def lane() -> Iterator[Lane]:
    made = Lane()
    yield made
    made.close()


@pytest.fixture
def device() -> Iterator[Device]:
    """Lets go on at the end, so that a test that fails does not hang."""
    made = Device()
    yield made
    made.go_on.set()


def result(asked: Future[Passed]) -> Passed:
    return asked.result(WAIT_S)


def settle(lane: Lane) -> None:
    """Returns when the lane has done all that was asked before."""
    lane.turn(lambda: torch.zeros(1))


# Fairness


def test_one_image_for_another_network_comes_right_after_the_pass_in_flight(lane: Lane, device: Device) -> None:
    volume = lane.ask("volume", device.named("volume"), tagged(*range(100)), 4)
    assert device.begun.wait(WAIT_S)
    one = lane.ask("other", device.named("other"), tagged(7), 16)
    device.go_on.set()
    assert result(one).scores.shape == (1, 2)
    result(volume)
    names = [name for name, _ in device.passes]
    assert names.index("other") == 1
    assert names.count("volume") == 25, "the volume goes on in full batches"


def test_one_image_for_another_network_waits_for_no_more_than_two_passes(lane: Lane, device: Device) -> None:
    volume = lane.ask("volume", device.named("volume"), tagged(*range(100)), 4)
    assert device.begun.wait(WAIT_S)
    one = lane.ask("other", device.named("other"), tagged(7), 16)
    device.go_on.set()
    result(one)
    assert [name for name, _ in device.passes].index("other") <= 2
    result(volume)


def test_one_image_for_the_same_network_is_in_the_very_next_pass(lane: Lane, device: Device) -> None:
    volume = lane.ask("net", device.named("net"), tagged(*range(100)), 4)
    assert device.begun.wait(WAIT_S)
    one = lane.ask("net", device.named("net"), tagged(1000), 4)
    device.go_on.set()
    passed = result(one)
    assert 1000.0 in device.passes[1][1]
    assert passed.batch == 4
    torch.testing.assert_close(result(volume).scores, pure(tagged(*range(100)))[0], rtol=0, atol=0)


def test_volumes_of_one_network_advance_side_by_side(lane: Lane, device: Device) -> None:
    device.held(lane)
    asked = [lane.ask("net", device.named("net"), tagged(*range(k, k + 20)), 4) for k in (0, 100, 200)]
    device.go_on.set()
    wait(asked, WAIT_S)
    done = dict.fromkeys((0, 1, 2), 0)
    for _, values in device.passes[1:]:
        for value in values:
            done[int(value) // 100] += 1
        assert max(done.values()) - min(done.values()) <= 2, "no volume is left behind"
    assert len(device.passes) == 1 + 15


def test_of_many_networks_each_has_its_turn_before_any_has_a_second(lane: Lane, device: Device) -> None:
    device.held(lane)
    names = [f"net{k}" for k in range(7)]
    asked = [lane.ask(name, device.named(name), tagged(*range(6)), 2) for name in names]
    device.go_on.set()
    wait(asked, WAIT_S)
    order = [name for name, _ in device.passes[1:]]
    assert order == names * 3


def test_who_asks_again_and_again_does_not_keep_others_from_their_turn(lane: Lane, device: Device) -> None:
    device.held(lane)
    again: list[Future[Passed]] = []
    last = lane.ask("patient", device.named("patient"), tagged(1), 1)

    def ask_again(_done: Future[Passed] | None = None) -> None:
        if len(again) < 20:
            again.append(lane.ask("greedy", device.named("greedy"), tagged(0), 1))
            again[-1].add_done_callback(ask_again)

    ask_again()
    ask_again()
    device.go_on.set()
    result(last)
    wait(again, WAIT_S)
    assert [name for name, _ in device.passes].index("patient") <= 2


def test_images_of_other_shapes_or_types_share_no_pass(lane: Lane, device: Device) -> None:
    device.held(lane)
    run = device.named("net")
    asked = [
        lane.ask("net", run, tagged(1), 8),
        lane.ask("net", run, torch.ones(1, 1, 3, 3), 8),
        lane.ask("net", run, tagged(1).double(), 8),
        lane.ask("net", run, tagged(2), 8),
    ]
    device.go_on.set()
    wait(asked, WAIT_S)
    assert [len(values) for _, values in device.passes[1:]] == [2, 1, 1]


def test_an_image_alone_waits_for_nobody_to_fill_its_batch(lane: Lane) -> None:
    began = time.perf_counter()
    assert result(lane.ask("net", pure, tagged(1), 64)).batch == 1
    assert time.perf_counter() - began < 1


# Batches


def test_waiting_images_of_different_asks_share_one_pass(lane: Lane, device: Device) -> None:
    device.held(lane)
    asked = [lane.ask("net", device.named("net"), tagged(k), 16) for k in range(10)]
    assert lane.waiting == 10
    device.go_on.set()
    assert [result(one).batch for one in asked] == [10] * 10
    assert len(device.passes) == 2
    assert lane.waiting == 0


def test_without_sharing_each_ask_is_a_pass_of_its_own(device: Device) -> None:
    lane = Lane(share=False)
    device.held(lane)
    sizes = (1, 5, 2)
    asked = [lane.ask("net", device.named("net"), tagged(*range(size)), 8) for size in sizes]
    device.go_on.set()
    assert [result(one).batch for one in asked] == list(sizes)
    assert [len(values) for _, values in device.passes[1:]] == list(sizes)
    lane.close()


def test_alone_the_images_are_passed_as_they_lie(any_lane: Lane) -> None:
    seen: list[int] = []

    def run(images: Tensor) -> Answers:
        seen.append(images.data_ptr())
        return pure(images)

    images = tagged(1, 2, 3)
    result(any_lane.ask("net", run, images, 3))
    assert seen == [images.data_ptr()], "no copy, and so no other bits"


asks = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 9), st.booleans()), min_size=1, max_size=12
)  # network, images, larger shape


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=asks, most=st.integers(1, 6), share=st.booleans(), bad=st.sets(st.integers(0, 11), max_size=3))
def test_answers_belong_to_who_asked_however_they_were_shared(
    asked: list[tuple[int, int, bool]], most: int, share: bool, bad: set[int]
) -> None:
    """Every ask gets what its network says of its images alone, or its own fault; batches are never too large."""
    lane, device = Lane(share), Device()
    sizes: list[int] = []

    def network(number: int) -> Callable[[Tensor], Answers]:
        def run(images: Tensor) -> Answers:
            sizes.append(len(images))
            if (images < 0).any():
                raise ValueError("a bad image")
            scores, embedded = pure(images)
            return scores * (number + 1), embedded if number else None

        return run

    try:
        device.held(lane)
        made = []
        for place, (number, count, larger) in enumerate(asked):
            images = torch.rand(count, 1, *([3, 3] if larger else [2, 2])) + place
            if place in bad:
                images[count // 2] = -1
            made.append((number, images, lane.ask(number, network(number), images, most)))
        device.go_on.set()
        for place, (number, images, future) in enumerate(made):
            if place in bad:
                with pytest.raises(ValueError, match="a bad image"):
                    result(future)
                continue
            passed = result(future)
            scores, embedded = pure(images)
            assert torch.equal(passed.scores, scores * (number + 1))
            assert (passed.embedded is None) == (number == 0)
            assert embedded is not None
            assert passed.embedded is None or torch.equal(passed.embedded, embedded)
            assert 1 <= passed.batch <= (most if share else len(images))
            assert passed.queued_s >= 0
            assert passed.forward_s >= 0
        assert not share or max(sizes) <= most
        assert lane.waiting == 0
    finally:
        device.go_on.set()
        lane.close()


def test_asks_of_many_threads_all_have_their_own_answer(any_lane: Lane) -> None:
    wrong: list[int] = []

    def client(number: int) -> None:
        draw = torch.Generator().manual_seed(number)
        for _ in range(40):
            images = torch.rand(int(torch.randint(1, 6, (), generator=draw)), 1, 2, 2, generator=draw)
            found = result(any_lane.ask(number % 3, pure, images, 4))
            if not torch.equal(found.scores, pure(images)[0]):
                wrong.append(number)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert any_lane.waiting == 0


def test_a_small_limit_holds_beside_a_large_one(lane: Lane, device: Device) -> None:
    device.held(lane)
    small = lane.ask("net", device.named("net"), tagged(1, 2), 2)
    large = lane.ask("net", device.named("net"), tagged(*range(10, 20)), 16)
    device.go_on.set()
    wait([small, large], WAIT_S)
    assert all(len(values) <= 2 for _, values in device.passes if values[0] in (1.0, 2.0))


# Faults


class Ended(BaseException):
    """Not an Exception: what ends a program."""


@pytest.mark.parametrize(
    "kind", [ValueError, torch.OutOfMemoryError, MemoryError, SystemExit, KeyboardInterrupt, Ended]
)
def test_a_fault_is_raised_to_who_asked_and_the_lane_lives_on(any_lane: Lane, kind: type[BaseException]) -> None:
    def run(_: Tensor) -> Answers:
        raise kind("no")

    with pytest.raises(kind):
        result(any_lane.ask("net", run, tagged(1, 2, 3), 2))
    assert any_lane.waiting == 0, "its other images are not passed"
    assert torch.equal(result(any_lane.ask("net", pure, tagged(5), 2)).scores, pure(tagged(5))[0])


def test_a_bad_image_costs_its_neighbours_nothing(lane: Lane, device: Device) -> None:
    def run(images: Tensor) -> Answers:
        if (images == 13).any():
            raise torch.OutOfMemoryError("of this one")
        return pure(images)

    device.held(lane)
    asked = {value: lane.ask("net", run, tagged(value), 8) for value in (1, 13, 2, 3)}
    many = lane.ask("net", run, tagged(*range(20, 40)), 8)
    device.go_on.set()
    with pytest.raises(torch.OutOfMemoryError):
        result(asked.pop(13))
    for value, future in asked.items():
        assert torch.equal(result(future).scores, pure(tagged(value))[0])
    assert torch.equal(result(many).scores, pure(tagged(*range(20, 40)))[0])


def test_a_batch_too_large_for_the_device_is_passed_in_parts(lane: Lane, device: Device) -> None:
    def run(images: Tensor) -> Answers:
        if len(images) > 1:
            raise torch.OutOfMemoryError("no room for so many")
        return pure(images)

    device.held(lane)
    asked = [lane.ask("net", run, tagged(value), 8) for value in range(4)]
    device.go_on.set()
    assert [result(one).batch for one in asked] == [1] * 4


def test_a_network_that_answers_too_little_is_a_fault_and_not_a_wait_for_ever(any_lane: Lane) -> None:
    asked = any_lane.ask("net", lambda images: (pure(images)[0][:1], None), tagged(1, 2, 3), 4)
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is its own affair
        asked.result(1)
    assert not isinstance(caught.value, TimeoutError)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_memory_left_to_join_the_answers_does_not_end_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane()

    def no_room(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("no room to join them")

    monkeypatch.setattr("medray.serving.lane.torch.cat", no_room)
    asked = lane.ask("net", pure, tagged(1, 2), 1)
    with pytest.raises(torch.OutOfMemoryError):
        asked.result(1)
    monkeypatch.undo()
    assert lane.ask("net", pure, tagged(1), 1).result(1).batch == 1
    lane.close()


# Cancelled


def test_what_is_cancelled_before_its_turn_is_not_passed(any_lane: Lane, device: Device) -> None:
    device.held(any_lane)
    asked = [any_lane.ask("net", device.named("net"), tagged(value), 8) for value in range(4)]
    others = any_lane.ask("alone", device.named("alone"), tagged(9), 8)
    assert asked[1].cancel()
    assert others.cancel()
    device.go_on.set()
    for place in (0, 2, 3):
        assert torch.equal(result(asked[place]).scores, pure(tagged(place))[0])
    settle(any_lane)
    passed = {value for name, values in device.passes if name != "first" for value in values}
    assert passed == {0.0, 2.0, 3.0}
    assert any_lane.waiting == 0


def test_what_is_in_a_pass_cannot_be_cancelled_and_is_answered(any_lane: Lane, device: Device) -> None:
    first = device.held(any_lane)
    assert not first.cancel()
    device.go_on.set()
    assert torch.equal(result(first).scores, pure(tagged(-1))[0])


# The end


def test_close_waits_for_the_pass_in_flight_and_cancels_what_waits(any_lane: Lane, device: Device) -> None:
    first = device.held(any_lane)
    waits = [any_lane.ask(name, device.named(name), tagged(1, 2), 1) for name in ("a", "b")]
    closing = threading.Thread(target=any_lane.close)
    closing.start()
    time.sleep(0.02)
    assert closing.is_alive()
    device.go_on.set()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert result(first).batch == 1
    for one in waits:
        with pytest.raises(CancelledError):
            one.result(1)
    assert [name for name, _ in device.passes] == ["first"]


def test_close_ends_an_ask_that_is_half_done(device: Device) -> None:
    lane = Lane()
    half = lane.ask("net", device.named("net"), tagged(1, 2, 3), 1)
    assert device.begun.wait(WAIT_S)
    closing = threading.Thread(target=lane.close)
    closing.start()
    time.sleep(0.02)
    device.go_on.set()
    closing.join(WAIT_S)
    with pytest.raises((CancelledError, RuntimeError)):
        half.result(1)


def test_a_closed_lane_takes_nothing_has_no_thread_and_closes_twice() -> None:
    before = set(threading.enumerate())
    lane = Lane()
    result(lane.ask("net", pure, tagged(1), 1))
    (thread,) = set(threading.enumerate()) - before
    lane.close()
    lane.close()
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        lane.ask("net", pure, tagged(1), 1)


def test_what_is_answered_is_let_go(any_lane: Lane) -> None:
    """An idle device holds neither the last image nor, by its `run`, a model that is served no more."""

    class Model:
        def run(self, images: Tensor) -> Answers:
            return pure(images)

    model, images = Model(), tagged(1, 2)
    gone = [weakref.ref(model), weakref.ref(images)]
    asked = any_lane.ask("net", model.run, images, 4)
    result(asked)
    del model, images, asked
    time.sleep(0.05)
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_what_was_answered_before_the_last_is_let_go(any_lane: Lane) -> None:
    images = tagged(1, 2)
    gone = weakref.ref(images)
    result(any_lane.ask("net", pure, images, 1))
    del images
    settle(any_lane)
    gc.collect()
    assert gone() is None


# Turns


def test_a_turn_has_the_device_to_itself(any_lane: Lane, device: Device) -> None:
    device.held(any_lane)
    others = [any_lane.ask("net", device.named("net"), tagged(value), 8) for value in range(3)]
    busy = threading.Event()
    threads: list[str] = []

    def function() -> Tensor:
        threads.append(threading.current_thread().name)
        assert not busy.is_set()
        return torch.arange(5.0)

    found: list[Tensor] = []
    asker = threading.Thread(target=lambda: found.append(any_lane.turn(function)))
    asker.start()
    while any_lane.waiting < 4:
        time.sleep(0.001)
    assert not found
    device.go_on.set()
    asker.join(WAIT_S)
    wait(others, WAIT_S)
    assert threads == ["lane"]
    assert torch.equal(found[0], torch.arange(5.0)), "what it gives, whatever its shape"


@pytest.mark.parametrize("shape", [(1,), (4, 4), (3, 4, 5), (1, 2, 3, 4)])
def test_a_turn_gives_what_its_function_gives(any_lane: Lane, shape: tuple[int, ...]) -> None:
    said = torch.rand(shape)
    assert any_lane.turn(lambda: said) is said


def test_a_turn_that_fails_raises_here(any_lane: Lane) -> None:
    def function() -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        any_lane.turn(function)
    settle(any_lane)


def test_the_time_in_the_queue_and_in_the_pass_are_told_apart(any_lane: Lane, device: Device) -> None:
    def slow(images: Tensor) -> Answers:
        time.sleep(0.03)
        return pure(images)

    device.held(any_lane)
    later = any_lane.ask("net", slow, tagged(1, 2), 2)
    time.sleep(0.05)
    device.go_on.set()
    passed = result(later)
    assert passed.queued_s >= 0.05
    assert 0.03 <= passed.forward_s < passed.queued_s + 5
