"""The benchmarks of reading run on small inputs and print what they should."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from medray.benchmarks import isolation, stores
from medray.imaging.preprocess import preprocess
from medray.imaging.reader import read


@pytest.mark.slow
def test_the_isolations_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    isolation.main(edges=(24, 24, 16), pairs=2)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["benchmark"].split(" against")[0] for line in lines] == [
        "isolation/0 MB .nii.gz",
        "isolation/0 MB .nii.gz, uploaded",
        "isolation/256x256 .png",
    ]
    assert all(line["ratio"] > 0 for line in lines)


@pytest.mark.slow
def test_the_stores_benchmark_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(stores, "phantoms", partial(stores.phantoms, count=4))
    monkeypatch.setattr(stores, "VOLUME", 100)
    stores.main(None, pairs=2, workers=1)
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["pairs"] for line in lines] == [2, 2]
    assert "patch of float32" in said.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:monai", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_both_sides_of_the_stores_benchmark_do_the_same_work(tmp_path: Path) -> None:
    """On the scan's own voxels they agree to a level; resampled, MONAI keeps the first centre and medray the box."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    file = stores.phantoms(tmp_path / "in", count=1)[0]
    for spacing_mm in stores.SPACINGS_MM:
        stores.save_by_monai(spacing_mm, tmp_path / "out", [file])
        other = np.load(tmp_path / "out" / f"{file.name}.npy")
        own = preprocess(read(file), stores.section(spacing_mm)).image
        assert other.shape == own.shape
        if spacing_mm is None:
            shifts = [np.roll(other, shift, (1, 2, 3)) for shift in np.ndindex(2, 2, 2)]
            assert min(np.abs(own - shifted).max() for shifted in shifts) < 0.01
