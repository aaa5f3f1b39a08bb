"""The benchmarks of reading run on small inputs and compare equal work."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from medray.benchmarks import input as reading
from medray.benchmarks import isolation, store
from medray.benchmarks.monai_input import WAYS, flat_loader, metadata, patch_loader
from medray.benchmarks.report import Sheet
from medray.imaging.preprocess import preprocess
from medray.imaging.reader import read

QUICK = argparse.Namespace(quick=True, pairs=2, only=["2d", "3d"], patch=16, folder=None, workers=1)
NOISY = ["ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"]


@pytest.mark.slow
def test_the_isolations_benchmark_runs() -> None:
    sheet = Sheet("isolation")
    isolation.measure(QUICK, sheet)
    rows = sheet.report().rows
    assert [row.what.split(", against")[0] for row in rows] == [
        "the worker starts and reads a first PNG",
        "0 MB .nii.gz",
        "0 MB .nii.gz, uploaded",
        "256x256 .png",
    ]
    assert all((row.ratio or 0) > 0 for row in rows[1:])


@pytest.mark.slow
@pytest.mark.filterwarnings(*NOISY)
def test_the_inputs_benchmark_runs() -> None:
    sheet = Sheet("input")
    reading.measure(QUICK, sheet)
    rows = sheet.report().rows
    titles = [f"{kind}, against {way}" for kind in ("2D images of 64x64", "3D patches of 16^3") for way in WAYS]
    assert [row.what for row in rows] == titles
    assert all((row.ratio or 0) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.filterwarnings(*NOISY)
def test_both_sides_of_the_inputs_benchmark_give_the_same_kind_of_batch(tmp_path: Path) -> None:
    """Shapes, numbers of the network's range, and label maps that hold whole numbers."""
    flat, deep = reading.images(tmp_path / "store", True), reading.volumes(tmp_path / "store", True, 16)
    with metadata(False):
        image = next(iter(flat_loader(flat, tmp_path / "flat", WAYS[0], 8)))["image"]
        patch = next(iter(patch_loader(deep, tmp_path / "deep", WAYS[0], 2)))
    assert (image.shape, patch["image"].shape, patch["label"].shape) == ((8, 1, 64, 64), *[(2, 1, 16, 16, 16)] * 2)
    assert type(image) is torch.Tensor
    assert image.dtype == patch["image"].dtype == torch.float32
    assert float(image.min()) >= -2
    assert set(patch["label"].unique().tolist()) <= set(range(9))


@pytest.mark.slow
@pytest.mark.filterwarnings(*NOISY)
def test_the_stores_benchmark_runs() -> None:
    sheet = Sheet("store")
    store.measure(QUICK, sheet)
    rows = sheet.report().rows
    assert [row.pairs for row in rows] == [2] * 5
    assert rows[-1].what == "a random 16^3 patch of float32 from a store, against PersistentDataset"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:monai", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_both_sides_of_the_stores_benchmark_do_the_same_work(tmp_path: Path) -> None:
    """On the scan's own voxels they agree to a level; resampled, MONAI keeps the first centre and medray the box."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    file = store.phantoms(tmp_path / "in", count=1)[0]
    for spacing_mm in store.SPACINGS_MM:
        store.save_by_monai(spacing_mm, tmp_path / "out", [file])
        other = np.load(tmp_path / "out" / f"{file.name}.npy")
        own = preprocess(read(file), store.section(spacing_mm)).image
        assert other.shape == own.shape
        if spacing_mm is None:
            shifts = [np.roll(other, shift, (1, 2, 3)) for shift in np.ndindex(2, 2, 2)]
            assert min(np.abs(own - shifted).max() for shifted in shifts) < 0.01
