"""The services that `serve` and `start` compare: how each is made, asked and measured, always with the same model.

A ResNet-18 of one channel at 224x224, four classes, untrained: the time of its answers does not depend on it.
"""

from __future__ import annotations

import base64
import json
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from subprocess import PIPE, Popen
from typing import Any

import numpy as np

from medray.benchmarks.commands import job, module
from medray.benchmarks.plain_service import write_mlflow_model
from medray.benchmarks.processes import Service, spent
from medray.benchmarks.ratio import PAIRS, Ratio, ratio_of
from medray.benchmarks.report import Cells
from medray.bundle import ModelBundle, save
from medray.config import parse
from medray.imaging.writer import write_png
from medray.networks.build import build
from medray.types import NetworkIO

EDGE, WINDOW = 224, 64
MEDRAY, PLAIN, LIT, MLFLOW = "medray serve", "plain FastAPI", "LitServe", "mlflow models serve"
Ask = Callable[..., Cells]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, and with which settings of the service."""

    folder: Path
    settings: tuple[str, ...] = ()
    rounds: int = PAIRS
    seconds: float = 12.0
    """Of one window; the first quarter is warm-up."""
    clients: tuple[int, ...] = (8, 16, 32)
    volume_edge: int = 256

    def images(self) -> list[Path]:
        """Eight PNGs."""
        rows, columns = np.indices((EDGE, EDGE))
        files = [self.folder / f"image{number}.png" for number in range(8)]
        for number, file in enumerate(files):
            noise = np.random.default_rng(number).normal(120, 6, (EDGE, EDGE))
            image = noise + 60 * np.sin(rows / 20 + number) * np.cos(columns / 31)
            write_png(file, image.clip(0, 255).astype(np.uint8))
        return files

    def bundle(self, name: str) -> ModelBundle:
        """`flat`: a ResNet-18 of one channel and four classes; `volume`: a small 3D U-Net with windows of WINDOW^3."""
        flat = name == "flat"
        size, classes = ((EDGE, EDGE), "abcd") if flat else ((WINDOW,) * 3, "abc")
        seen: Cells = {"size": size} if flat else {}
        sections: Cells = {
            "name": name,
            "dataset": {"name": "folder", "path": "unused"},
            "preprocess": {"intensity": {"method": "range", "low": 0, "high": 255 if flat else 4000}, **seen},
            "task": {"name": "classification" if flat else "segmentation"},
            "network": {"name": "resnet"} if flat else {"name": "unet", "channels": [16, 32, 64, 128]},
        }
        experiment = parse(sections if flat else {**sections, "window": {"size": size}})
        network = build(experiment.network, NetworkIO(1, size, len(classes), dense=not flat), 0).network
        entry = {"channels": 1, "size": list(size), "axes": len(size), "dense": not flat}
        card = {"classes": list(classes), "multilabel": False, "outputs": len(classes), "input": entry}
        return save(self.folder / name, experiment, network.state_dict(), card)

    def medray(self, *bundles: ModelBundle) -> Service:
        """`medray serve` by its own command line."""
        served = chain.from_iterable(("--bundle", str(bundle.folder)) for bundle in bundles)
        return Service(MEDRAY, job("serve", *served, "serve.port={port}", *self.settings), self.folder)

    def measure(self, service: Service, files: Sequence[Path], path: str = "", **options: Any) -> Cells:
        """What the load generator says, and cpu_ms: those of each process (the generator's too) per request."""
        options = {"seconds": self.seconds, "warm": options.get("seconds", self.seconds) / 4, **options}
        before, own = service.cpu(), _children_s()
        found: Cells = json.loads(sending(service, files, path, options).communicate()[0])
        used = spent(before, service.cpu()) | {"(load generator)": _children_s() - own}
        found["cpu_ms"] = {name: 1e3 * seconds / max(1, found["sent"]) for name, seconds in used.items()}
        return found


def sending(service: Service, files: Sequence[Path], path: str, options: Mapping[str, Any]) -> Popen[bytes]:
    """The load generator, at work."""
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    command = [*module("load", service.url + path, *map(str, files), *words)]
    return Popen(command, stdout=PIPE)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def plain(folder: Path, bundle: ModelBundle) -> Service:
    """A well-made plain service around the same network."""
    return Service(PLAIN, module("plain_service", str(bundle.folder), "{port}"), folder)


def lit(folder: Path, bundle: ModelBundle) -> Service:
    """LitServe around the same network; asked with `lit_bodies`."""
    return Service(LIT, module("lit_service", str(bundle.folder), "{port}"), folder, "/health")


def lit_bodies(files: Sequence[Path]) -> list[Path]:
    """The same images as LitServe's tutorials send them: base64 in JSON."""
    found = []
    for file in files:
        body = json.dumps({"image": base64.b64encode(file.read_bytes()).decode("ascii")})
        found.append(file.with_suffix(".json"))
        found[-1].write_text(body, encoding="ascii")
    return found


def mlflow(folder: Path, bundle: ModelBundle) -> tuple[Service, Path]:
    """`mlflow models serve` around the same network, and what it is asked: a tensor, decoded and preprocessed."""
    tensor = folder / "tensor.json"
    tensor.write_text(json.dumps({"inputs": bundle.golden()[0][:1].round(4).tolist()}), encoding="utf-8")
    write_mlflow_model(folder / "mlflow", bundle.folder)
    options = ["--model-uri", str(folder / "mlflow"), "--port", "{port}", "--env-manager", "local"]
    words = [sys.executable, "-m", "mlflow", "models", "serve", *options]
    return Service(MLFLOW, words, folder, "/ping"), tensor


def alternate(plan: Plan, ways: Mapping[str, Ask]) -> dict[str, list[Cells]]:
    """What each way gives in each round; every second round runs backwards."""
    found: dict[str, list[Cells]] = {name: [] for name in ways}
    for number in range(plan.rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            found[name].append(ways[name]())
            sys.stderr.write(f"round {number + 1} of {plan.rounds}, {name}: {found[name][-1]['per_s']:.1f}/s\n")
    return found


def middle(runs: Sequence[Cells], *names: str) -> Cells:
    """The medians of those figures that there are."""
    return {name: median(run[name] for run in runs) for name in names if name in runs[0]}


def means(runs: Sequence[Cells], what: str) -> dict[str, float]:
    """Of each of the figures in a field of all runs."""
    names = dict.fromkeys(chain.from_iterable(run[what] for run in runs))
    return {name: fmean(run[what].get(name, 0.0) for run in runs) for name in names}


def against(ours: Sequence[Cells], theirs: Sequence[Cells]) -> Ratio:
    """The ratio of two speeds, round by round."""
    return ratio_of([(one["per_s"], other["per_s"]) for one, other in zip(ours, theirs, strict=True)])
