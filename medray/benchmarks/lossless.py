"""What `medray serve` loses while champions change and replicas are killed: jobs/benchmark.py lossless.

Clients ask without a pause; meanwhile another version is promoted again and again, which the service follows, and model
replicas are killed with SIGKILL. Lost is what has no answer or one above 499; mixed is what names two versions.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from medray.benchmarks import report
from medray.benchmarks.commands import job
from medray.benchmarks.load import Run, Target, closed_loop, summarise
from medray.benchmarks.processes import Service
from medray.benchmarks.report import Row, Sheet
from medray.bundle import save
from medray.config import parse
from medray.imaging.writer import png_bytes
from medray.networks.build import build
from medray.tracking import registry
from medray.tracking.run import client, start
from medray.types import NetworkIO

NAME, EDGE = "net", 32
REPLICA = "ServeReplica:medray:model"
PATIENCE_S = 180.0


def bundle(folder: Path, seed: int) -> Path:
    """A small classifier with weights of its own."""
    plain = {
        "name": NAME,
        "seed": seed,
        "dataset": {"name": "folder", "path": "unused"},
        "preprocess": {"size": [EDGE, EDGE], "intensity": {"method": "range", "low": 0, "high": 255}},
        "task": {"name": "classification"},
        "network": {"name": "plain", "widths": [16, 32]},
    }
    experiment = parse(plain)
    network = build(experiment.network, NetworkIO(1, (EDGE, EDGE), 1), seed).network
    entry = {"channels": 1, "size": [EDGE, EDGE], "axes": 2, "dense": False}
    card = {"classes": ["a", "b"], "multilabel": False, "outputs": 1, "input": entry}
    return save(folder, experiment, network.state_dict(), card).folder


def registered(folder: Path) -> Any:
    """A registry with two versions, of which the first is the champion."""
    mlflow = client(None)
    standing = registry.Standing("val/auroc", 0.9, 1, "data", "split")
    for seed in (1, 2):
        registry.register(start(mlflow, NAME, "run"), NAME, bundle(folder / f"bundle{seed}", seed), standing)
    registry.promote(mlflow, NAME, "1", "the first")
    return mlflow


class Trouble:
    """Makes updates and kills, one after the other and evenly over the requests."""

    def __init__(self, service: Service, mlflow: Any, run: Run, updates: int, kills: int) -> None:
        self._service, self._mlflow, self._run = service, mlflow, run
        self.updates = self.kills = 0
        self._wanted = [updates, kills]
        self.seconds: list[float] = []
        """From each promotion to the first answer of the new version."""

    def make(self) -> None:
        """All of it."""
        while self.updates < self._wanted[0] or self.kills < self._wanted[1]:
            if self.updates < self._wanted[0]:
                self._update()
            if self.kills < self._wanted[1]:
                self._kill()

    def _update(self) -> None:
        version = str(2 - self.updates % 2)
        began, seen = time.monotonic(), len(self._run.records)
        registry.promote(self._mlflow, NAME, version, "a test")
        self._until(lambda: any(one.model == f"{NAME}/{version}" for one in self._run.records[seen:]))
        self.seconds.append(time.monotonic() - began)
        self.updates += 1

    def _kill(self) -> None:
        replicas = [pid for pid, one in self._service.cpu().items() if one.name == REPLICA]
        os.kill(replicas[0], signal.SIGKILL)
        self.kills += 1
        seen = len(self._run.records)
        self._until(lambda: len(self._run.records) > seen + 100)

    @staticmethod
    def _until(truth: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not truth():
            if time.monotonic() > deadline:
                raise TimeoutError("the service does not come back")
            time.sleep(0.1)


def lost(requests: int, updates: int, kills: int, clients: int, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of one run; it goes on until there were so many requests, updates and kills."""
    with TemporaryDirectory() as root:
        folder = Path(root)
        os.environ["MEDRAY_HOME"] = str(folder / "home")
        mlflow = registered(folder)
        image = np.random.default_rng(0).integers(0, 255, (EDGE, EDGE)).astype(np.uint8)
        command = job("serve", "--follow", "champion", "serve.port={port}", *settings)
        with Service("medray serve", command, folder) as service:
            run = Run(Target(service.url), [(png_bytes(image), "image/png")])
            trouble = Trouble(service, mlflow, run, updates, kills)
            making = threading.Thread(target=trouble.make, daemon=True)
            making.start()
            while making.is_alive() or len(run.records) < requests:
                asyncio.run(closed_loop(run, clients, run.now() + 2.0))
            found = summarise(run.records, run.now())
    errors = sum(count for status, count in found["statuses"].items() if int(status) >= 500)
    return {
        "requests": len(run.records),
        "lost": sum(found["lost"].values()) + errors,
        "mixed": found["mixed"],
        "statuses": found["statuses"],
        "models": found["models"],
        "updates": trouble.updates,
        "kills": trouble.kills,
        "update_s": [round(seconds, 1) for seconds in trouble.seconds],
        **{name: round(found[name], 1) for name in ("p50_ms", "p99_ms", "per_s")},
        "slowest_s": round(max(record.seconds for record in run.records), 2),
    }


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """One run, until all was asked, updated and killed."""
    requests, updates, kills, clients = (
        (300, 2, 1, 4) if cfg.quick else (cfg.requests, cfg.updates, cfg.kills, cfg.clients)
    )
    found = lost(requests, updates, kills, clients, cfg.settings)
    told = f"of {found['requests']} over {found['updates']} updates and {found['kills']} killed replicas"
    sheet.add(Row("requests lost", "", float(found["lost"]), note=told))
    sheet.add(Row("answers of two versions at once", "", float(found["mixed"]), note=told))
    sheet.add(Row("promoted to answering", "s", median(found["update_s"]), note=f"{sorted(found['update_s'])}"))
    sheet.table("Of the run", [{name: str(said) for name, said in found.items()}])


def options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    for name, default in (("requests", 10_000), ("updates", 10), ("kills", 10), ("clients", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as medray serve takes them")


if __name__ == "__main__":
    report.run("lossless", __doc__ or "", measure, sys.argv[1:], options)
