"""How speed is claimed: pairs in alternating order, the median of their ratios, an interval that holds it; reports."""

from __future__ import annotations

import argparse
import json
import signal
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from medray import cluster
from medray.benchmarks import loop, peers, report
from medray.benchmarks.ratio import Ratio, compare, ratio_of
from medray.benchmarks.report import Row, Sheet, speeds, tables_of, times

FOUND = Ratio(3.0, 2.0, 1.5, 1.4, 1.6, 12)


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


def test_what_starts_cold_is_not_warmed_up() -> None:
    calls: list[str] = []
    compare(lambda: len(calls.append("o") or calls), lambda: len(calls.append("t") or calls), pairs=1, warm=False)
    assert calls == ["t", "o"]


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
    speeds_ = cycle([4.0])
    found = compare(partial(next, speeds_), partial(next, speeds_))
    assert (found.ratio, found.low, found.high, found.pairs) == (1.0, 1.0, 1.0, 12)
    assert ratio_of([(4.0, 2.0)]) == Ratio(4.0, 2.0, 2.0, 2.0, 2.0, 1)


def test_of_times_the_ratio_stays_that_of_speeds() -> None:
    """Twice as fast is 2, and takes half of the seconds."""
    row = times("a start", ratio_of([(1 / 5, 1 / 10)] * 2))
    assert (row.unit, row.ours, row.peer, row.ratio) == ("s", 5.0, 10.0, 2.0)


def test_a_row_is_a_line_for_a_person() -> None:
    assert speeds("loop", "steps/s", FOUND, "quiet").line() == (
        "loop: 3 against 2 steps/s, ratio 1.500 [1.400, 1.600] over 12 pairs, quiet"
    )
    assert Row("a start", "s", 2.5).line() == "a start: 2.5 s"
    assert Row("lightning", note="not installed").line() == "lightning: not installed"


def test_tables_are_markdown_and_a_missing_cell_is_empty() -> None:
    assert tables_of({"T": [{"": "a", "x": 1.23456}, {"": "b", "y": 2}, {"": "c", "x": None}]}).splitlines() == [
        "### T",
        "",
        "|  | x | y |",
        "|---|---|---|",
        "| a | 1.235 |  |",
        "| b |  | 2 |",
        "| c |  |  |",
    ]


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    sheet.add(speeds("of speed", "steps/s", FOUND))
    sheet.add(peers.absent("lightning", "loop"))
    sheet.table("Else", [{"pairs": cfg.pairs, "quick": cfg.quick}])


def test_a_program_prints_a_table_and_a_last_line_of_json_and_writes_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    report.run("loop", "What it is.", measure, ["--quick", "--out", str(tmp_path / "bench")])
    assert signal.getsignal(signal.SIGTERM) is before
    said = capsys.readouterr()
    line = json.loads(said.out.splitlines()[-1])
    assert line == json.loads((tmp_path / "bench" / "bench-loop.json").read_text())
    assert line["command"] == f"uv run jobs/benchmark.py loop --quick --out {tmp_path / 'bench'}"
    assert {"CPU", "cores", "memory", "system"} <= line["machine"].keys()
    assert {"python", "torch", "ray", "monai", "mlflow", "medray"} <= line["versions"].keys()
    assert line["rows"][0] == {
        "what": "of speed",
        "unit": "steps/s",
        "ours": 3.0,
        "peer": 2.0,
        "ratio": 1.5,
        "low": 1.4,
        "high": 1.6,
        "pairs": 12,
        "note": "",
    }
    assert line["tables"] == {"Else": [{"pairs": report.QUICK_PAIRS, "quick": True}]}
    page = (tmp_path / "bench" / "bench-loop.md").read_text()
    assert "| of speed | steps/s | 3 | 2 | 1.5 | [1.400, 1.600] | 12 |  |" in page
    assert "| lightning |  |  |  |  |  |  | not installed; uv run --group peers jobs/benchmark.py loop |" in page
    assert page in said.err
    assert "loop/of speed: 3 against 2 steps/s" in said.err


def test_what_was_measured_before_an_error_is_written(tmp_path: Path) -> None:
    def broken(cfg: argparse.Namespace, sheet: Sheet) -> None:
        measure(cfg, sheet)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        report.run("loop", "What it is.", broken, ["--out", str(tmp_path)])
    found = json.loads((tmp_path / "bench-loop.json").read_text())
    assert [row["what"] for row in found["rows"]] == ["of speed", "lightning"]


def test_a_measurement_has_a_home_of_its_own(home: Path, tmp_path: Path) -> None:
    seen = []

    def look(cfg: argparse.Namespace, sheet: Sheet) -> None:  # noqa: ARG001
        seen.append(cluster.home())
        assert seen[0].is_dir()

    report.run("x", "What it is.", look, ["--out", str(tmp_path)])
    assert seen[0] != home == cluster.home()
    assert not seen[0].exists()


def test_pairs_are_those_of_the_benchmark_unless_one_says_otherwise(tmp_path: Path) -> None:
    asked = []

    def note(cfg: argparse.Namespace, sheet: Sheet) -> None:  # noqa: ARG001
        asked.append((cfg.pairs, cfg.size))

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--size", type=int, default=3)

    for words in ([], ["--quick"], ["--pairs", "7", "--quick", "--size=4"]):
        report.run("x", "What it is.", note, [*words, "--out", str(tmp_path)], options, pairs=5)
    assert asked == [(5, 3), (report.QUICK_PAIRS, 3), (7, 4)]
    assert not list(tmp_path.iterdir()), "nothing was measured"


def test_a_peer_is_looked_for_and_not_imported() -> None:
    assert peers.missing("json", "no_such_peer") == ["no_such_peer"]
    assert peers.absent("ignite", "loop").what == "pytorch-ignite"
    assert peers.load("json") is json


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_loops_benchmark_runs(tmp_path: Path) -> None:
    cfg = ["--quick", "--families", "plain", "--out", str(tmp_path)]
    found = report.run("loop", loop.__doc__ or "", loop.measure, cfg, loop.options)
    rows = {row.what: row for row in found.rows}
    whole = {"plain, loop alone, against a bare loop", "plain, end to end, against MONAI SupervisedTrainer"}
    assert whole <= rows.keys()
    if peers.missing("lightning"):
        assert "not installed" in rows["lightning"].note
    assert all((row.ratio or 0) > 0 for row in found.rows if row.what in whole)


def test_what_many_cases_cost_is_told_by_the_million(tmp_path: Path) -> None:
    from medray.benchmarks import many

    found = report.run("many", many.__doc__ or "", many.measure, ["--quick", "--out", str(tmp_path)], many.options)
    rows = {row.what: row for row in found.rows}
    assert all(row.ours is not None and row.ours > 0 for row in found.rows)
    size = rows["the list that a worker gets"].ours
    assert size is not None
    assert 20 < size < 5000, "some hundred bytes a case"
