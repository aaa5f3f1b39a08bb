"""Cases per second of building a store against MONAI's LoadImaged and the same preprocessing, in pools of one size.

Both read NIfTI volumes, turn them to RAS, map their percentiles to [-1, 1], put them on one grid and write .npy; medray
also hashes the files and checks what it reads. Then random 96^3 patches are read from a store of 192^3 volumes, and
from MONAI's PersistentDataset, which reads a volume whole.
Command: uv run jobs/benchmark.py store [--quick] [--workers N] [FOLDER with .nii.gz]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medray.benchmarks import peers, report
from medray.benchmarks.monai_input import metadata
from medray.benchmarks.ratio import compare
from medray.benchmarks.report import Sheet, speeds
from medray.imaging.writer import write_nifti
from medray.pipeline.shelf import CHUNK_CASES
from medray.pipeline.store import build
from medray.sections.data import PreprocessSection
from medray.types import CaseRef

LOW, HIGH = 0.5, 99.5
SIZE = (48, 64, 48)
SPACINGS_MM = (None, 1.5)
"""On the scan's own voxels, and resampled."""
PATCH, VOLUMES, PATCHES = 96, 8, 40
Box = tuple[slice, ...]


def section(spacing_mm: float | None) -> PreprocessSection:
    """The preprocessing in medray's words."""
    spacing = None if spacing_mm is None else (spacing_mm,) * 3
    return PreprocessSection(spacing_mm=spacing, size=SIZE, fit="pad_crop")


@cache
def monai_steps(spacing_mm: float | None) -> Any:
    """The preprocessing in MONAI's words, in medray's order."""
    transforms = peers.load("monai.transforms")
    steps = [
        transforms.LoadImaged("image", reader="NibabelReader"),
        transforms.EnsureChannelFirstd("image"),
        transforms.Orientationd("image", axcodes="RAS", labels=None),
        transforms.ScaleIntensityRangePercentilesd("image", LOW, HIGH, -1, 1, clip=True),
    ]
    if spacing_mm is not None:
        steps.append(transforms.Spacingd("image", (spacing_mm,) * 3, mode="bilinear"))
    steps.append(transforms.ResizeWithPadOrCropd("image", SIZE, mode="constant", value=-1))
    return transforms.Compose(steps)


def save_by_monai(spacing_mm: float | None, folder: Path, files: Iterable[Path]) -> None:
    """One .npy for each of `files`."""
    for file in files:
        np.save(folder / f"{file.name}.npy", np.asarray(monai_steps(spacing_mm)({"image": file})["image"]))


def ours(pool: Executor, files: list[Path], spacing_mm: float | None) -> float:
    """Cases per second."""
    refs = [CaseRef(file.name, file) for file in files]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        store = build(refs, section(spacing_mm), Path(folder), pool.map)
        speed = len(files) / (time.perf_counter() - started)
        if store.refused:
            raise RuntimeError(f"the comparison is not fair: {store.refused[0]}")
    return speed


def theirs(pool: Executor, files: list[Path], spacing_mm: float | None) -> float:
    """Cases per second."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        work = partial(save_by_monai, spacing_mm, Path(folder))
        list(pool.map(work, [files[i : i + CHUNK_CASES] for i in range(0, len(files), CHUNK_CASES)]))
        return len(files) / (time.perf_counter() - started)


def patches(folder: Path, dtype: str, edge: int, count: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """Patches per second out of medray's store (.npy, memory-mapped), and of MONAI's PersistentDataset.

    From volumes of twice the patch's edge, which the page cache holds.
    """
    draw, size = np.random.default_rng(0), 2 * edge
    stored = np.lib.format.open_memmap(folder / f"{dtype}.npy", "w+", dtype, (VOLUMES, 1, size, size, size))
    stored[:] = np.arange(size)
    stored = np.load(folder / f"{dtype}.npy", mmap_mode="c", allow_pickle=False)
    files = [folder / f"{dtype}-{row}.npy" for row in range(VOLUMES)]
    for file, volume in zip(files, stored, strict=True):
        np.save(file, volume)
    cached = persistent(list(map(str, files)), folder / dtype)
    places = draw.integers(0, [VOLUMES, *[edge] * 3], (count, 4)).tolist()

    def rate(cut: Callable[[int, Box], object]) -> float:
        started = time.perf_counter()
        for row, *corner in places:
            cut(row, (slice(None), *(slice(at, at + edge) for at in corner)))
        return count / (time.perf_counter() - started)

    ours = partial(rate, lambda row, box: np.array(stored[row][box]))
    return ours, partial(rate, lambda row, box: cached[row][box].clone())


def persistent(files: list[str], cache: Path) -> Any:
    """Whole volumes as MONAI keeps them on the disk."""
    transforms = peers.load("monai.transforms")
    steps = transforms.Compose([transforms.Lambda(np.load), transforms.ToTensor(track_meta=False)])
    return peers.load("monai.data").PersistentDataset(files, steps, cache_dir=cache)


def phantoms(folder: Path, count: int) -> list[Path]:
    """Volumes of the hippocampus set's size, turned to LPS."""
    draw = np.random.default_rng(0)
    for index in range(count):
        write_nifti(
            folder / f"{index:03d}.nii.gz", draw.integers(0, 999, (36, 50, 35)).astype("i2"), np.diag([-1.0, -1, 1, 1])
        )
    return sorted(folder.iterdir())


def building(sheet: Sheet, files: list[Path], size: int, pairs: int) -> None:
    """Stores against MONAI's files, in a pool of `size` processes."""
    # One thread per process on both sides: the processes are what fills the CPUs.
    with ProcessPoolExecutor(size, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for spacing_mm in SPACINGS_MM:
            title = "on their own voxels" if spacing_mm is None else f"resampled to {spacing_mm:g} mm"
            found = compare(partial(ours, pool, files, spacing_mm), partial(theirs, pool, files, spacing_mm), pairs)
            sheet.add(speeds(f"{len(files)} volumes {title}, {size} processes, against MONAI", "cases/s", found))


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """Building, on the volumes of a folder or on phantoms; then reading patches."""
    edge, count = (16, 4) if cfg.quick else (PATCH, PATCHES)
    with tempfile.TemporaryDirectory() as name:
        files = sorted(cfg.folder.glob("*.nii.gz")) if cfg.folder else phantoms(Path(name), 4 if cfg.quick else 32)
        building(sheet, files, cfg.workers or os.cpu_count() or 1, cfg.pairs)
        for dtype in ("uint8", "int16", "float32"):
            with metadata(False):
                found = compare(*patches(Path(name), dtype, edge, count), cfg.pairs)
            what = f"a random {edge}^3 patch of {dtype} from a store, against PersistentDataset"
            sheet.add(speeds(what, "patches/s", found, f"{1e3 / found.ours:.2f} ms each"))


def options(parser: argparse.ArgumentParser) -> None:
    """Of what, by how many."""
    parser.add_argument("folder", type=Path, nargs="?", help="with .nii.gz files, by default phantoms")
    parser.add_argument("--workers", type=int, help="processes, by default one per core")


if __name__ == "__main__":
    report.run("store", __doc__ or "", measure, sys.argv[1:], options)
