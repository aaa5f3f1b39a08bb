"""Sliding windows of medray against MONAI's inferer at equal settings: time, memory, and what each switch gains.

The network is an untrained 3D U-Net of 16 to 64 filters. Its answers are close to ties, so the share of labels that a
switch changes is an upper bound. Peak memory is that of a process of its own, with a network that takes none and an
allocator that keeps nothing.
Command: uv run jobs/benchmark.py window [--quick] [--length VOXELS]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from medray.benchmarks import report
from medray.benchmarks.ratio import compare
from medray.benchmarks.report import Row, Sheet, speeds
from medray.inference.window import Forward, Windowing, estimate_bytes, labels, sliding_window

WIDTHS = (16, 32, 64)
CLASSES = 3
BATCH = 4
AIR = -1.0
Run = Callable[[Forward, Tensor, Windowing], Tensor]


class UNet(nn.Module):
    """Two convolutions with instance normalisation per level, strided on the way down, transposed on the way up."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(pairwise(WIDTHS))
        self.first = _convolutions(1, WIDTHS[0], 1)
        self.down = nn.ModuleList(_convolutions(low, high, 2) for low, high in pairs)
        self.rise = nn.ModuleList(nn.ConvTranspose3d(high, low, 2, 2) for low, high in reversed(pairs))
        self.up = nn.ModuleList(_convolutions(2 * low, low, 1) for low, _ in reversed(pairs))
        self.last = nn.Conv3d(WIDTHS[0], CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, *W) -> (B, K, *W) probabilities."""
        levels = [self.first(image)]
        for down in self.down:
            levels.append(down(levels[-1]))
        found = levels.pop()
        for rise, up in zip(self.rise, self.up, strict=True):
            found = up(torch.cat([rise(found), levels.pop()], dim=1))
        return torch.softmax(self.last(found).float(), dim=1)


def _convolutions(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Two of them, the first with that stride."""
    layers = [
        layer
        for channels, step in ((inputs, stride), (outputs, 1))
        for layer in (nn.Conv3d(channels, outputs, 3, step, 1), nn.InstanceNorm3d(outputs), nn.LeakyReLU(0.01, True))
    ]
    return nn.Sequential(*layers)


def theirs(forward: Forward, image: Tensor, cfg: Windowing) -> Tensor:
    """MONAI's answer (K, *S)."""
    with torch.inference_mode():
        options = {"overlap": cfg.overlap, "mode": cfg.blend, "cval": AIR}
        found: Tensor = sliding_window_inference(image[None], cfg.size, cfg.batch, forward, **options)[0]
    return found


def volume(shape: tuple[int, ...]) -> Tensor:
    """(1, *S): noise in a ball that touches the faces, air around it."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, length) for length in shape), indexing="ij")
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).clamp_(min=AIR)
    return torch.where(torch.stack(axes).norm(dim=0) < 1, noise, torch.tensor(AIR))[None]


class Clock:
    """Seconds inside of a network."""

    def __init__(self, forward: Forward) -> None:
        self.forward, self.inside = forward, 0.0

    def __call__(self, windows: Tensor) -> Tensor:
        """The network's answer."""
        started = time.perf_counter()
        found = self.forward(windows)
        self.inside += time.perf_counter() - started
        return found


def speed(run: Run, forward: Forward, image: Tensor, cfg: Windowing) -> float:
    """Volumes per second."""
    started = time.perf_counter()
    run(forward, image, cfg)
    return 1 / (time.perf_counter() - started)


def outside(run: Run, forward: Forward, image: Tensor, cfg: Windowing) -> tuple[float, float]:
    """Seconds outside of the network, and their share of all."""
    clock, started = Clock(forward), time.perf_counter()
    run(clock, image, cfg)
    total = time.perf_counter() - started
    return total - clock.inside, 1 - clock.inside / total


def even(windows: Tensor) -> Tensor:
    """A network that takes no time and no memory but its answer."""
    return torch.full((len(windows), CLASSES, *windows.shape[2:]), 1 / CLASSES)


def peak_bytes(run: Run, shape: tuple[int, ...], cfg: Windowing) -> int:
    """Most memory that one run adds to this process (Linux), the result included."""
    torch.set_num_threads(1)
    image = volume(shape)
    # A small run first, so that what libraries load at their first use does not count.
    run(even, image[:, : cfg.size[0], : cfg.size[1], : cfg.size[2]], cfg)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    run(even, image, cfg)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Bytes that /proc says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def compare_memory(sheet: Sheet, shape: tuple[int, ...], cfg: Windowing) -> None:
    """The peak of each way, and the forecast."""
    runs: dict[str, Run] = {"MONAI": theirs, "medray": sliding_window, "medray, labels": labels}
    # Read by glibc when a process starts: large memory goes back at once, so that the peak tells what was asked for and
    # not what the heap kept of earlier sizes.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "1000000")
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        peaks = {name: pool.submit(peak_bytes, run, shape, cfg).result() for name, run in runs.items()}
    voxels = shape[0] * shape[1] * shape[2]
    forecast = {
        "medray": 4 * CLASSES * voxels + estimate_bytes(cfg, (1, *shape), CLASSES),
        "medray, labels": voxels + estimate_bytes(cfg, (1, *shape), CLASSES, "labels"),
    }
    said = {name: peak / 1e6 for name, peak in peaks.items()}
    rows = [{"": name, "peak": peak, "forecast": forecast.get(name, 0) / 1e6 or None} for name, peak in said.items()]
    sheet.table("Peak memory, MB", rows)


def compare_switches(sheet: Sheet, forward: Forward, image: Tensor, cfg: Windowing, pairs: int) -> None:
    """What each switch gains over `cfg`, and what it changes."""

    def autocast(windows: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(windows)

    plain = sliding_window(forward, image, cfg)
    switches: dict[str, tuple[Forward, Windowing]] = {
        "skipping air": (forward, replace(cfg, background=AIR)),
        "bfloat16": (autocast, cfg),
        "1 window per pass": (forward, replace(cfg, batch=1)),
        "float16 sums": (forward, replace(cfg, half=True)),
        "overlap 0.25": (forward, replace(cfg, overlap=0.25)),
    }
    for name, (network, other) in switches.items():
        found = sliding_window(network, image, other).float()
        # Skipped air is background by order, whatever an untrained network says of it.
        inside = image[0] > AIR
        change = float((found - plain)[:, inside].abs().max())
        moved = float((found.argmax(0) != plain.argmax(0))[inside].float().mean())
        ours = partial(speed, sliding_window, network, image, other)
        gained = compare(ours, partial(speed, sliding_window, forward, image, cfg), pairs)
        note = f"probabilities to {change:.2g}, {moved:.2%} of labels"
        sheet.add(speeds(f"{name}, against none of the switches", "volumes/s", gained, note))


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """A volume of length x length x 3/4 length under windows of 3/8: speed, memory, switches."""
    length, pairs = 32 if cfg.quick else cfg.length, cfg.pairs
    shape, edge = (length, length, 3 * length // 4), 3 * length // 8
    windows = Windowing((edge, edge, edge), batch=BATCH)
    torch.manual_seed(0)
    network, image = UNet().eval(), volume(shape)
    title = f"{'x'.join(map(str, shape))} under {edge}^3"
    change = float((sliding_window(network, image, windows) - theirs(network, image, windows)).abs().max())
    ours, other = (partial(speed, run, network, image, windows) for run in (sliding_window, theirs))
    note = f"probabilities agree to {change:.2g}"
    sheet.add(speeds(f"{title}, against MONAI", "volumes/s", compare(ours, other, pairs), note))
    ways: dict[str, Run] = {"medray": sliding_window, "medray, labels": labels, "MONAI": theirs}
    for name, run in ways.items():
        seconds, share = outside(run, network, image, windows)
        sheet.add(Row(f"{title}, {name}, outside of the network", "s", seconds, note=f"{share:.2%} of the time"))
    ours, other = (partial(speed, run, even, image, windows) for run in (sliding_window, theirs))
    sheet.add(speeds(f"{title} without a network, against MONAI", "volumes/s", compare(ours, other, pairs)))
    compare_memory(sheet, shape, windows)
    compare_switches(sheet, network, image, windows, pairs)


def options(parser: argparse.ArgumentParser) -> None:
    """How large."""
    parser.add_argument("--length", type=int, default=256, help="of the volume's longest axis")


if __name__ == "__main__":
    report.run("window", __doc__ or "", measure, sys.argv[1:], options)
