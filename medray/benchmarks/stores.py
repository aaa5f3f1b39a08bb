"""Cases per second of building a store against MONAI's LoadImaged and the same preprocessing, in pools of one size.

Both read NIfTI volumes, turn them to RAS, map their percentiles to [-1, 1], put them on one grid and write .npy; medray
also hashes the files and checks what it reads. Then a random 96^3 patch is read from a store.
Command: uv run python -m medray.benchmarks.stores [folder with .nii.gz]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medray.benchmarks.ratio import PAIRS, compare, show
from medray.imaging.writer import write_nifti
from medray.pipeline.shelf import CHUNK_CASES
from medray.pipeline.store import build
from medray.sections.data import PreprocessSection
from medray.types import CaseRef

LOW, HIGH = 0.5, 99.5
SIZE = (48, 64, 48)
SPACINGS_MM = (None, 1.5)
"""On the scan's own voxels, and resampled."""
PATCH, VOLUME, VOLUMES, PATCHES = 96, 192, 8, 400


def section(spacing_mm: float | None) -> PreprocessSection:
    """The preprocessing in medray's words."""
    spacing = None if spacing_mm is None else (spacing_mm,) * 3
    return PreprocessSection(spacing_mm=spacing, size=SIZE, fit="pad_crop")


@cache
def monai_steps(spacing_mm: float | None) -> Any:
    """The preprocessing in MONAI's words, in medray's order."""
    from monai import transforms

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


def patch_ms(folder: Path, dtype: str) -> float:
    """Median time of copying a random patch out of a store's .npy (in the page cache)."""
    draw = np.random.default_rng(0)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", dtype, (VOLUMES, 1, VOLUME, VOLUME, VOLUME))
    images[:] = np.arange(VOLUME)
    images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
    times = []
    for row, *corner in draw.integers(0, [VOLUMES, *[VOLUME - PATCH] * 3], (PATCHES, 4)).tolist():
        started = time.perf_counter()
        np.array(images[row, :, *[slice(at, at + PATCH) for at in corner]])
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))


def phantoms(folder: Path, count: int = 32) -> list[Path]:
    """Volumes of the hippocampus set's size, turned to LPS."""
    draw = np.random.default_rng(0)
    for index in range(count):
        write_nifti(
            folder / f"{index:03d}.nii.gz", draw.integers(0, 999, (36, 50, 35)).astype("i2"), np.diag([-1.0, -1, 1, 1])
        )
    return sorted(folder.iterdir())


def main(source: Path | None = None, pairs: int = PAIRS, workers: int | None = None) -> None:
    """Compare on the volumes in `source`, or on phantoms without it, and print the ratios."""
    with tempfile.TemporaryDirectory() as name:
        files = sorted(source.glob("*.nii.gz")) if source else phantoms(Path(name))
        size = workers or os.cpu_count() or 1
        # One thread per process on both sides: the processes are what fills the CPUs.
        with ProcessPoolExecutor(size, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            for spacing_mm in SPACINGS_MM:
                title = "own voxels" if spacing_mm is None else f"resampled to {spacing_mm:g} mm"
                found = compare(partial(ours, pool, files, spacing_mm), partial(theirs, pool, files, spacing_mm), pairs)
                show(f"store/{len(files)} volumes, {title}, {size} processes, against MONAI", "cases/s", found)
        for dtype in ("uint8", "int16", "float32"):
            found_ms = patch_ms(Path(name), dtype)
            sys.stderr.write(f"a random {PATCH}^3 patch of {dtype} from a store: {found_ms:.2f} ms\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
