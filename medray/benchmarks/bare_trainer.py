"""A TorchTrainer as Ray's tutorial has it, up to its first step: a small network, random tensors, CPU workers.

Command: python -m medray.benchmarks.bare_trainer WORKERS FILE; the time of the first step is written to FILE.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from medray.benchmarks import peers
from medray.config import load
from medray.networks.build import build
from medray.types import NetworkIO


def first_step(config: dict[str, Any]) -> None:
    """What each worker runs."""
    torch.set_num_threads(1)
    train = peers.load("ray.train")
    network = build(load("phantom").network, NetworkIO(1, (64, 64), 3), 0).network
    wrapped = peers.load("ray.train.torch").prepare_model(network)
    optimizer = torch.optim.AdamW(wrapped.parameters())
    loss = functional.cross_entropy(wrapped(torch.randn(16, 1, 64, 64)), torch.zeros(16, dtype=torch.int64))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if train.get_context().get_world_rank() == 0:
        Path(config["out"]).write_text(repr(time.time()), encoding="ascii")


def main() -> None:
    """Start a cluster and train one step."""
    workers, out = int(sys.argv[1]), str(Path(sys.argv[2]).absolute())
    train = peers.load("ray.train")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        trainer = peers.load("ray.train.torch").TorchTrainer(
            first_step,
            train_loop_config={"out": out},
            scaling_config=train.ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
            run_config=train.RunConfig(storage_path=folder),
        )
        trainer.fit()


if __name__ == "__main__":
    main()
