"""Answers that are kept: by their owner alone, no longer and no more than said, and gone from memory then."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from service_phantom import service
from test_ingress import Direct, bundles_of, plain_of, png

from medray.sections.service import ServeSection
from medray.serving import ingress, results
from medray.serving.problems import Refused
from medray.serving.results import Results

MIB = 2**20


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "Decoders", Direct)


@pytest.fixture
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_of(tmp_path_factory)


class Shelf:
    """Results, and the time."""

    def __init__(self, keep_s: float = 60.0, keep_mb: float = 10.0) -> None:
        self.now = 1000.0
        cfg = ServeSection.model_validate({"keep_s": keep_s, "keep_mb": keep_mb})
        self.results = Results(cfg, lambda: self.now)

    def keep(self, name: str, owner: str = "ann", size: int = MIB, box: Any = None) -> float:
        return self.results.keep(name, owner, size, name if box is None else box)

    def status(self, name: str, owner: str = "ann") -> int:
        try:
            assert self.results.get(name, owner) == name
        except Refused as refused:
            return refused.status
        return 200


def test_what_is_kept_is_there_until_its_time() -> None:
    shelf = Shelf()
    assert shelf.keep("a") == 1060.0
    shelf.now += 59.9
    assert shelf.status("a") == 200
    shelf.now += 0.2
    assert shelf.status("a") == 410
    assert shelf.results.size == 0


def test_looking_at_it_makes_it_last_no_longer() -> None:
    shelf = Shelf()
    shelf.keep("a")
    for _ in range(59):
        shelf.now += 1
        assert shelf.status("a") == 200
    shelf.now += 2
    assert shelf.status("a") == 410


def test_the_oldest_make_room_and_are_said_to_have_been_there() -> None:
    shelf = Shelf(keep_mb=3.0)
    for name in "abcde":
        shelf.keep(name)
    assert [shelf.status(name) for name in "abcdez"] == [410, 410, 200, 200, 200, 404]
    assert shelf.results.size == 3 * MIB
    shelf.keep("f", size=3 * MIB)
    assert [shelf.status(name) for name in "cdef"] == [410, 410, 410, 200]


def test_one_that_is_larger_than_all_room_is_kept_alone() -> None:
    """Its link was in the answer already."""
    shelf = Shelf(keep_mb=1.0)
    shelf.keep("a")
    shelf.keep("b", size=9 * MIB)
    assert [shelf.status(name) for name in "ab"] == [410, 200]
    shelf.keep("c")
    assert [shelf.status(name) for name in "bc"] == [410, 200]
    assert shelf.results.size == MIB


def test_nobody_else_learns_that_it_is_there_or_was() -> None:
    shelf = Shelf()
    shelf.keep("a")
    assert [shelf.status("a", owner) for owner in ("ann", "bob", "", "Ann")] == [200, 404, 200, 404]
    shelf.now += 61
    assert [shelf.status("a", owner) for owner in ("ann", "bob", "", "Ann")] == [410, 404, 410, 404]
    with pytest.raises(Refused) as strange:
        shelf.results.get("a", "bob")
    with pytest.raises(Refused) as unknown:
        shelf.results.get("b", "bob")
    assert vars(strange.value) == vars(unknown.value)


def test_the_same_answer_again_is_counted_once() -> None:
    shelf = Shelf()
    for _ in range(5):
        shelf.keep("a", size=4 * MIB)
    assert shelf.results.size == 4 * MIB
    shelf.now += 61
    assert shelf.status("a") == 410
    shelf.keep("a")
    assert shelf.status("a") == 200


def test_what_is_gone_is_gone_from_memory() -> None:
    shelf = Shelf(keep_mb=1.0)
    boxes = [np.zeros(4) for _ in range(3)]
    still = [weakref.ref(box) for box in boxes]
    for number in range(3):
        shelf.keep(str(number), box=boxes[number])
    boxes.clear()
    gc.collect()
    assert [reference() is None for reference in still] == [True, True, False]
    shelf.now += 61
    shelf.results.sweep()
    gc.collect()
    assert still[2]() is None


def test_what_was_there_is_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "REMEMBERED", 3)
    shelf = Shelf(keep_mb=1.0)
    for name in "abcdef":
        shelf.keep(name)
    assert [shelf.status(name) for name in "abcdef"] == [404, 404, 410, 410, 410, 200]
    assert len(shelf.results._gone) == 3


class Machine(RuleBasedStateMachine):
    """Against a plain list: whatever is kept when, sizes add up, and nothing outlives its time or its room."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf(keep_s=10.0, keep_mb=4.0)
        self.there: list[tuple[str, str, float, int]] = []

    def tidy(self) -> None:
        self.there = [one for one in self.there if one[2] > self.shelf.now]
        while len(self.there) > 1 and sum(one[3] for one in self.there) > 4 * MIB:
            del self.there[0]

    @rule(name=st.sampled_from("abcdef"), owner=st.sampled_from(["ann", "bob"]), size=st.integers(0, 5))
    def keep(self, name: str, owner: str, size: int) -> None:
        until = self.shelf.keep(name, owner, size * MIB)
        self.there = [one for one in self.there if one[0] != name] + [(name, owner, until, size * MIB)]
        self.tidy()

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        self.shelf.now += seconds

    @rule(name=st.sampled_from("abcdef"), owner=st.sampled_from(["ann", "bob", ""]))
    def get(self, name: str, owner: str) -> None:
        self.tidy()
        mine = any(one[0] == name and owner in ("", one[1]) for one in self.there)
        status = self.shelf.status(name, owner)
        assert (status == 200) == mine
        if any(one[0] == name for one in self.there) and not mine:
            assert status == 404

    @invariant()
    def sizes_add_up(self) -> None:
        self.shelf.results.sweep()
        self.tidy()
        assert self.shelf.results.size == sum(one[3] for one in self.there)


Machine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)
TestMachine = Machine.TestCase


# Over HTTP


def test_results_expire_over_http(plain: Path) -> None:
    async def go() -> None:
        async with service([plain], keep_s=0.2) as running:
            body = (await running.client.post("/v1/predict?keep=true", content=png())).json()
            assert (await running.client.get(body["links"]["self"])).status_code == 200
            await asyncio.sleep(0.25)
            for place in body["links"].values():
                answer = await running.client.get(place)
                assert (answer.status_code, answer.json()["code"]) == (410, "expired")
                assert answer.json()["hint"]
            said = {"request_id": body["request_id"], "correct": True}
            assert (await running.client.post("/v1/feedback", json=said)).status_code == 410

    asyncio.run(go())


def test_the_oldest_results_make_room_over_http(plain: Path) -> None:
    async def go() -> None:
        async with service([plain], keep_mb=3 * len(png()) / MIB) as running:
            places = []
            for seed in range(6):
                body = (await running.client.post("/v1/predict?keep=true", content=png(seed))).json()
                places.append(body["links"]["self"])
            statuses = [(await running.client.get(place)).status_code for place in places]
            assert statuses[0] == 410
            assert statuses[-1] == 200
            assert statuses == sorted(statuses, reverse=True)
            assert running.desk._results.size <= 3 * len(png())

    asyncio.run(go())


def test_kept_answers_count_their_bytes_in_the_metrics(tmp_path_factory: pytest.TempPathFactory) -> None:
    flat = bundles_of(tmp_path_factory).flat

    async def go() -> None:
        async with service([flat], keep_s=0.3) as running:
            await running.client.post("/v1/predict", content=png())
            size = running.desk._results.size
            assert size >= len(png()) + 2 * 16 * 16, "the upload, the image and the mask"
            assert f"medray_results_bytes {float(size)}" in (await running.client.get("/metrics")).text
            await asyncio.sleep(0.35)
            assert "medray_results_bytes 0.0" in (await running.client.get("/metrics")).text

    asyncio.run(go())


def test_what_nobody_asks_for_any_more_leaves_memory_all_the_same(plain: Path) -> None:
    """A patient's image is kept for keep_s, and the last one of a day must not stay overnight."""

    async def go() -> None:
        async with service([plain], keep_s=0.1) as running:
            await running.client.post("/v1/predict?keep=true", content=png())
            await asyncio.sleep(1.5)
            assert running.desk._results.size == 0

    asyncio.run(go())
