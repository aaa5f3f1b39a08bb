"""What figures hang on: the machine, and the versions of all that was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from medray.config import PACKAGE

PACKAGES = ("torch", "ray", "monai", "mlflow", "medray")
PEERS = ("pytorch-ignite", "lightning", "litserve", "fastapi")
"""Named where they are installed."""
NONE = "none"


def machine() -> dict[str, str]:
    """What the figures hang on: CPU, cores, memory, GPUs, system, and how busy others keep it."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "CPU": _cpu(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "memory": f"{memory:.0f} GiB",
        **({"GPU": ", ".join(gpus)} if gpus else {}),
        "system": platform.platform(),
        "load before": f"{os.getloadavg()[0]:.1f}",
        # It holds some sides back and not others, whose threads are set by what they were given.
        **{name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ},
    }


def _cpu() -> str:
    """The model as Linux names it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def versions() -> dict[str, str]:
    """Of Python and the packages that matter, and the revision of a checkout."""
    found = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    found |= {name: number for name in PEERS if (number := _version(name)) != NONE}
    if (PACKAGE.parent / ".git").exists():
        ask = ["git", "-C", str(PACKAGE.parent), "rev-parse", "--short", "HEAD"]
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
        found |= {"revision": answer.stdout.strip()} if answer.returncode == 0 else {}
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return NONE
