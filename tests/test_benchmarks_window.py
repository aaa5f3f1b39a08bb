"""The benchmark of sliding windows runs on a small volume and says what it should."""

from __future__ import annotations

import argparse

import pytest

from medray.benchmarks import window
from medray.benchmarks.report import Sheet


@pytest.mark.slow
def test_the_windows_benchmark_runs() -> None:
    sheet = Sheet("window")
    window.measure(argparse.Namespace(quick=True, pairs=2), sheet)
    found = sheet.report()
    rows = {row.what: row for row in found.rows}
    switches = ("skipping air", "bfloat16", "1 window per pass", "float16 sums", "overlap 0.25")
    compared = ["32x32x24 under 12^3, against MONAI", "32x32x24 under 12^3 without a network, against MONAI"]
    compared += [f"{name}, against none of the switches" for name in switches]
    assert all((rows[what].ratio or 0) > 0 for what in compared)
    assert float(rows[compared[0]].note.rsplit(maxsplit=1)[1]) < 1e-5
    assert sum("outside of the network" in what for what in rows) == 3
    assert [row[""] for row in found.tables["Peak memory, MB"]] == ["MONAI", "medray", "medray, labels"]
