"""What decoding in a worker costs: files per second against decoding in this process, of a 20 MB .nii.gz and of a PNG.

Command: uv run jobs/benchmark.py isolation [--quick]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from medray.benchmarks import report
from medray.benchmarks.ratio import PAIRS, compare
from medray.benchmarks.report import Row, Sheet, speeds
from medray.imaging.isolation.decoder import Decoder
from medray.imaging.reader import read
from medray.imaging.writer import write_nifti, write_png
from medray.types import Array, Case, Source

EDGES, FEW = (384, 384, 256), (24, 24, 16)
"""As int16 with the noise of a scanner: 75 MB of voxels, about 20 MB compressed."""


def scan(shape: tuple[int, ...], draw: np.random.Generator) -> Array:
    """Broad structures, air around them and noise of some grey levels."""
    axes = np.ogrid[tuple(slice(-1, 1, length * 1j) for length in shape)]
    body = sum(axis**2 for axis in axes) < 0.8
    waves = sum(np.sin(5 * axis + phase) for phase, axis in enumerate(axes))
    return np.where(body, 300 * waves + draw.normal(1000, 5, shape), 0).astype(np.int16)


def speed(decode: Callable[[Source], Case], source: Source, files: int) -> float:
    """Files per second; every image is looked at, so that memory that is only promised counts too."""
    started = time.perf_counter()
    for _ in range(files):
        decode(source).image.max()
    return files / (time.perf_counter() - started)


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """A file and uploaded bytes, large and small, and the worker's start."""
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        large, small = Path(name) / "large.nii.gz", Path(name) / "small.png"
        write_nifti(large, scan(FEW if cfg.quick else EDGES, draw), np.diag([0.8, 0.8, 1.0, 1.0]))
        write_png(small, draw.integers(0, 256, (256, 256), np.uint8))
        sources: dict[str, tuple[Source, int]] = {
            f"{large.stat().st_size / 1e6:.0f} MB .nii.gz": (large, 1),
            f"{large.stat().st_size / 1e6:.0f} MB .nii.gz, uploaded": (large.read_bytes(), 1),
            "256x256 .png": (small, 50),
        }
        started = time.perf_counter()
        with Decoder() as decoder:
            decoder.read(small)
            sheet.add(Row("the worker starts and reads a first PNG", "s", time.perf_counter() - started))
            for title, (source, files) in sources.items():
                inside, outside = (partial(speed, decode, source, files) for decode in (read, decoder.read))
                found = compare(outside, inside, cfg.pairs)
                sheet.add(speeds(f"{title}, against decoding in process", "files/s", found))


if __name__ == "__main__":
    report.run("isolation", __doc__ or "", measure, sys.argv[1:], pairs=2 * PAIRS)
