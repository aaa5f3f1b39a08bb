"""How often a caller may ask: bursts, the pace after them, and what is remembered of whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medray.serving import rates
from medray.serving.rates import Rates


def test_a_burst_and_then_the_pace() -> None:
    limit = Rates(60, 3, clock=lambda: 0.0)
    assert [limit.take("a", 0.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(1.0)]
    assert limit.take("b", 0.0) == 0.0, "others are not held up"
    assert limit.take("a", 0.5) == pytest.approx(0.5)
    assert limit.take("a", 1.0) == 0.0
    assert limit.take("a", 1.0) == pytest.approx(1.0)
    assert [limit.take("a", 1000.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(1.0)], "idle saves no more"


@given(st.integers(1, 1000), st.integers(1, 50), st.floats(0, 1e7))
def test_who_waits_as_told_is_admitted(per_minute: int, burst: int, begin: float) -> None:
    limit = Rates(per_minute, burst, clock=lambda: begin)
    assert [limit.take("a") for _ in range(burst)] == [0.0] * burst
    wait = limit.take("a")
    assert 0 < wait <= 60 / per_minute * (1 + 1e-6) + 1e-6
    assert limit.take("a", begin + wait / 2) > 0
    assert limit.take("a", begin + wait) == 0.0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200))
def test_no_more_than_burst_and_pace_in_any_time(gaps: list[float]) -> None:
    limit, now, admitted = Rates(30, 5, clock=lambda: 0.0), 0.0, []
    for gap in gaps:
        now += gap
        if limit.take("a", now) == 0.0:
            admitted.append(now)
    for first, begin in enumerate(admitted):
        for last, end in enumerate(admitted[first:], first):
            assert last - first + 1 <= 5 + (end - begin) / 2 + 1e-3


def test_a_clock_that_goes_back_locks_nobody_out() -> None:
    limit = Rates(60, 2, clock=lambda: 0.0)
    assert limit.take("a", 1e6) == 0.0
    assert limit.take("a", 0.0) <= 2


def test_idle_callers_are_forgotten() -> None:
    limit = Rates(60, 2, clock=lambda: 0.0)
    for number in range(1000):
        limit.take(f"caller{number}", 0.0)
    assert len(limit) == 1000
    limit.take("late", 100.0)
    assert len(limit) == 1


def test_a_flood_of_callers_is_bounded_and_busy_ones_stay_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MOST", 100)
    limit = Rates(1, 5, clock=lambda: 0.0)
    for _ in range(5):
        limit.take("greedy", 0.0)
    for number in range(10_000):
        limit.take(f"caller{number}", 0.0)
    assert len(limit) <= 100
    assert limit.take("greedy", 0.0) > 0, "those whose buckets are fullest are forgotten first"
