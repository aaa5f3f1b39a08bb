"""How speed is claimed: pairs in alternating order, the median of their ratios, an interval that holds it."""

from __future__ import annotations

import json
from functools import partial
from itertools import cycle

import numpy as np
import pytest

from medray.benchmarks.ratio import Ratio, compare, show


def test_the_order_of_each_pair_is_reversed_from_the_last() -> None:
    calls: list[str] = []

    def speed(name: str, value: float) -> float:
        calls.append(name)
        return value

    found = compare(lambda: speed("ours", 3.0), lambda: speed("theirs", 2.0), pairs=4)
    warm_up, pairs = (
        "".join(name[0] for name in calls[:2]),
        ["".join(n[0] for n in calls[i : i + 2]) for i in (2, 4, 6, 8)],
    )
    assert warm_up == "ot"
    assert pairs == ["to", "ot", "to", "ot"]
    assert (found.ours, found.theirs, found.ratio) == (3.0, 2.0, 1.5), "no speed is taken for the other's"


def test_the_ratio_is_the_median_over_pairs_and_not_the_ratio_of_medians() -> None:
    """A machine that is slow in every other pair changes the speeds and not the ratio."""
    machine = (1.0, 10.0, 10.0, 1.0, 1.0)
    ours = iter([0.0, *(2 * speed for speed in machine[:4]), 30.0])
    theirs = iter([0.0, *machine])
    found = compare(partial(next, ours), partial(next, theirs), pairs=5)
    assert (found.ours, found.theirs, found.ratio, found.pairs) == (20.0, 1.0, 2.0, 5)


def test_the_interval_holds_the_true_ratio_19_times_of_20_and_shrinks_with_pairs() -> None:
    draw = np.random.default_rng(0)
    found = [compare(lambda: 1.2 * draw.lognormal(0, 0.1), lambda: 1.0, pairs=12) for _ in range(200)]
    assert all(one.low < one.ratio < one.high for one in found)
    assert sum(one.low < 1.2 < one.high for one in found) == pytest.approx(190, abs=9)
    many = compare(lambda: 1.2 * draw.lognormal(0, 0.1), lambda: 1.0, pairs=300)
    assert many.high - many.low < np.median([one.high - one.low for one in found]) / 2


def test_equal_speeds_give_one_and_an_interval_without_width() -> None:
    speeds = cycle([4.0])
    found = compare(partial(next, speeds), partial(next, speeds))
    assert (found.ratio, found.low, found.high, found.pairs) == (1.0, 1.0, 1.0, 12)


def test_a_person_and_a_program_read_the_same_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    show("loop/plain", "steps/s", Ratio(3.0, 2.0, 1.5, 1.4, 1.6, 12))
    said = capsys.readouterr()
    assert "loop/plain: 3 against 2 steps/s, ratio 1.500 [1.400, 1.600] over 12 pairs" in said.err
    line = json.loads(said.out)
    assert (line["benchmark"], line["ratio"], line["low"], line["high"]) == ("loop/plain", 1.5, 1.4, 1.6)


@pytest.mark.slow
def test_the_loops_benchmark_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from medray.benchmarks import loop

    monkeypatch.setattr(loop, "compare", partial(compare, pairs=2))
    loop.main("plain", steps=2)
    line = json.loads(capsys.readouterr().out)
    assert (line["benchmark"], line["pairs"]) == ("loop/plain", 2)
    assert line["ratio"] > 0
