"""What `medray serve` costs over the bare network, against a plain FastAPI service and MLflow's; how it stands stress.

A ResNet-18 on 8-bit PNGs of 224x224, all on the same cores, in interleaved rounds whose order is reversed from one to
the next. The services that are not asked wait meanwhile, and what Ray does in the background is not taken off. The
networks are untrained: the time of their answers does not depend on it.
Command: uv run python -m medray.benchmarks.serve [--quick] [--volumes] [--overload] [--slow] [--out FILE] [KEY=VALUE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from subprocess import PIPE, Popen
from typing import Any

import numpy as np

from medray.benchmarks.plain_service import Bare, Service, spent, write_mlflow_model
from medray.benchmarks.ratio import PAIRS, compare
from medray.bundle import ModelBundle, save
from medray.client import Client
from medray.config import parse
from medray.imaging.writer import write_nifti, write_png
from medray.networks.build import build
from medray.types import NetworkIO

EDGE, WINDOW, HANGING, GOAL_PER_S = 224, 64, 1000, 2000
BATCHES = (1, 2, 4, 8, 16, 32)
MEDRAY, PLAIN, MLFLOW, BARE = "medray serve", "plain FastAPI", "mlflow models serve", "bare forward"
LATENCIES = ("p50_ms", "p95_ms", "p99_ms")
Row = dict[str, Any]
Tables = dict[str, list[Row]]
Ask = Callable[..., Row]


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
        seen: Row = {"size": size} if flat else {}
        sections: Row = {
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
        job = str(Path(__file__).parents[2] / "jobs" / "serve.py")
        served = chain.from_iterable(("--bundle", str(bundle.folder)) for bundle in bundles)
        return Service(MEDRAY, [sys.executable, job, *served, "serve.port={port}", *self.settings], self.folder)

    def measure(self, service: Service, files: Sequence[Path], path: str = "", **options: Any) -> Row:
        """What the load generator says, and cpu_ms: those of each process (the generator's too) per request."""
        options = {"seconds": self.seconds, "warm": options.get("seconds", self.seconds) / 4, **options}
        before, own = service.cpu(), _children_s()
        found: Row = json.loads(_load(service, files, path, options).communicate()[0])
        used = spent(before, service.cpu()) | {"(load generator)": _children_s() - own}
        found["cpu_ms"] = {name: 1e3 * seconds / max(1, found["sent"]) for name, seconds in used.items()}
        return found


def _load(service: Service, files: Sequence[Path], path: str, options: Mapping[str, Any]) -> Popen[bytes]:
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "medray.benchmarks.load", service.url + path, *map(str, files), *words]
    return Popen(command, stdout=PIPE)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def alternate(plan: Plan, ways: Mapping[str, Ask]) -> dict[str, list[Row]]:
    """What each way gives in each round; every second round runs backwards."""
    found: dict[str, list[Row]] = {name: [] for name in ways}
    for number in range(plan.rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            found[name].append(ways[name]())
            sys.stderr.write(f"round {number + 1} of {plan.rounds}, {name}: {found[name][-1]['per_s']:.1f}/s\n")
    return found


def middle(runs: Sequence[Row], *names: str) -> Row:
    """The medians of those figures that there are."""
    return {name: median(run[name] for run in runs) for name in names if name in runs[0]}


def means(runs: Sequence[Row], what: str) -> dict[str, float]:
    """Of each of the figures in a field of all runs."""
    names = dict.fromkeys(chain.from_iterable(run[what] for run in runs))
    return {name: fmean(run[what].get(name, 0.0) for run in runs) for name in names}


def against(ours: Sequence[Row], theirs: Sequence[Row]) -> Row:
    """The ratio of two speeds, and its 95 % interval."""
    # The first of each is what `compare` takes for a warm-up.
    one, other = (iter([0.0, *(run["per_s"] for run in runs)]) for runs in (ours, theirs))
    found = compare(partial(next, one), partial(next, other), len(ours))
    return {"ratio": found.ratio, "low": found.low, "high": found.high}


def speed(plan: Plan) -> Tables:
    """Images per second where nothing waits for a client, and latency at half of that."""
    bare = Bare(flat := plan.bundle("flat"))
    batch = max(BATCHES, key=lambda size: float(bare.speed(size, plan.seconds / 6)["per_s"]))
    with ExitStack() as stack:
        asked = _services(plan, flat, stack)
        best = {name: _clients(plan, ask) for name, ask in asked.items()}
        ways = {name: partial(ask, clients=best[name]) for name, ask in asked.items()}
        runs = alternate(plan, {BARE: partial(bare.speed, batch, plan.seconds), **ways})
        rates = {name: middle(runs[name], "per_s")["per_s"] / 2 for name in (MEDRAY, PLAIN)}
        half = alternate(plan, {name: partial(asked[name], rate=rate) for name, rate in rates.items()})
    saturated = []
    for name, found in runs.items():
        row = {"": name, "at once": best.get(name, batch), **middle(found, "per_s", *LATENCIES)}
        row["CPU ms per image"] = sum(means(found, "cpu_ms").values())
        saturated.append(row | {f"{MEDRAY} / this, {word}": n for word, n in against(runs[MEDRAY], found).items()})
    stages = {"at saturation": means(runs[MEDRAY], "stages"), "at half": means(half[MEDRAY], "stages")}
    rows = [{"": name, **{when: told.get(name) for when, told in stages.items()}} for name in stages["at saturation"]]
    latency = [{"": name, "asked_per_s": rates[name], **middle(half[name], *LATENCIES)} for name in half]
    batch, single_ms = max(1, round(stages["at saturation"].get("batch", 1))), 1e3 * median(bare.seconds(1, 50))
    network = bare.speed(batch, plan.seconds / 6, threads=1)["cpu_ms"]["network"]
    return {
        "Saturation": saturated,
        f"Open loop at half of it; one forward takes {single_ms:.4g} ms": latency,
        "Stages of an answer, ms": rows,
        f"What {GOAL_PER_S} images/s on a GPU would take": _estimate(means(runs[MEDRAY], "cpu_ms"), network),
    }


def _clients(plan: Plan, ask: Ask) -> int:
    """At how many the most is answered."""
    return max(plan.clients, key=lambda clients: float(ask(clients=clients)["per_s"]))


def _services(plan: Plan, flat: ModelBundle, stack: ExitStack) -> dict[str, Ask]:
    """What is compared, started."""
    files, tensor = plan.images(), plan.folder / "tensor.json"
    tensor.write_text(json.dumps({"inputs": flat.golden()[0][:1].round(4).tolist()}), encoding="utf-8")
    write_mlflow_model(plan.folder / "mlflow", flat.folder)
    plain = [sys.executable, "-m", "medray.benchmarks.plain_service", str(flat.folder), "{port}"]
    options = ["--model-uri", str(plan.folder / "mlflow"), "--port", "{port}", "--env-manager", "local"]
    theirs = Service(MLFLOW, [sys.executable, "-m", "mlflow", "models", "serve", *options], plan.folder, "/ping")
    ours = [stack.enter_context(one) for one in (plan.medray(flat), Service(PLAIN, plain, plan.folder))]
    asked: dict[str, Ask] = {service.name: partial(plan.measure, service, files) for service in ours}
    try:
        asked[MLFLOW] = partial(plan.measure, stack.enter_context(theirs), [tensor], "/invocations")
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n{MLFLOW} is left out\n")
    return asked


def _estimate(cpu_ms: Mapping[str, float], network_ms: float) -> list[Row]:
    """Cores by process; of the replicas without the network, which a GPU would run."""
    less = {name: network_ms for name in cpu_ms if name.endswith(":model")}
    rest = {name + ", without the network" * (name in less): used - less.get(name, 0) for name, used in cpu_ms.items()}
    return [{"": name, "CPU ms per image": used, "cores": GOAL_PER_S * used / 1e3} for name, used in rest.items()]


def volumes(plan: Plan) -> Tables:
    """Latency of single images beside a large volume, at a tenth of what the network can answer."""
    flat, volume = plan.bundle("flat"), plan.bundle("volume")
    files, scan = plan.images(), plan.folder / "scan.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 2000, (plan.volume_edge,) * 3)
    write_nifti(scan, voxels.astype(np.int16), np.eye(4))
    windows_ms = 1e3 * median(Bare(volume).seconds(volume.experiment.window.batch, plan.rounds))
    rate = 0.1 / median(Bare(flat).seconds(1, plan.rounds))
    with plan.medray(flat, volume) as service:
        ask: Ask = partial(plan.measure, service, files, "/v1/predict?model=flat", rate=rate)

        def beside() -> Row:
            with Client(service.url, timeout_s=600) as client:
                job = client.predict(scan, "volume", keep=False, wait=False)
                while job.status()["state"] == "pending":
                    time.sleep(0.1)
                found, status = ask(), job.cancel()
            return found | {"volume done": status["progress"] or 0.0}

        runs = alternate(plan, {"alone": ask, f"beside a volume of {plan.volume_edge}^3": beside})
    rows = [{"": name, **middle(found, "per_s", *LATENCIES, "volume done")} for name, found in runs.items()]
    return {f"Fairness; a batch of windows takes {windows_ms:.4g} ms": rows}


def overload(plan: Plan) -> Tables:
    """Goodput and refusals at ten times the clients that saturate the service."""
    with plan.medray(plan.bundle("flat")) as service:
        ask: Ask = partial(plan.measure, service, plan.images())
        clients = _clients(plan, ask)
        ways: dict[str, Ask] = {f"{n} clients": partial(ask, clients=n) for n in (clients, 10 * clients)}
        ways[f"{10 * clients} that wait as told"] = partial(ask, clients=10 * clients, patient=True)
        runs = alternate(plan, ways)
    names, first = ("per_s", *LATENCIES, "refused_p99_ms", "refused_without_retry_after"), runs[next(iter(ways))]
    told = {
        name: means(runs[name], "statuses") | means(runs[name], "lost") | against(runs[name], first) for name in runs
    }
    return {"Overload": [{"": name, **middle(runs[name], *names), **told[name]} for name in runs]}


def slow(plan: Plan) -> Tables:
    """Latency of whole requests beside HANGING uploads that stop in the middle."""
    files = plan.images()
    with plan.medray(plan.bundle("flat")) as service:
        ask: Ask = partial(plan.measure, service, files)
        rate = ask(clients=plan.clients[0])["per_s"] / 2

        def beside() -> Row:
            with _load(service, files, "", {"hang": HANGING, "seconds": plan.seconds + 10}) as uploads:
                time.sleep(5)
                return ask(rate=rate) | {"uploads": json.loads(uploads.communicate()[0])}

        runs = alternate(plan, {"alone": partial(ask, rate=rate), f"beside {HANGING} slow uploads": beside})
    uploads = {name: found[-1].get("uploads", {}) for name, found in runs.items()}
    return {"Slow uploads": [{"": name, **middle(runs[name], "per_s", *LATENCIES), **uploads[name]} for name in runs]}


def markdown(tables: Tables) -> str:
    """The tables for a person."""
    lines = []
    for title, rows in tables.items():
        heads = list(dict.fromkeys(chain.from_iterable(rows)))
        lines += [f"### {title}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in rows:
            cells = [row.get(head) for head in heads]
            words = [f"{cell:.4g}" if isinstance(cell, float) else str("" if cell is None else cell) for cell in cells]
            lines.append(f"| {' | '.join(words)} |")
        lines.append("")
    return "\n".join(lines)


SECTIONS: Mapping[str, Callable[[Plan], Tables]] = {"volumes": volumes, "overload": overload, "slow": slow}


def main(arguments: Sequence[str]) -> None:
    """Measure, print tables, and write them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m medray.benchmarks.serve", description=__doc__)
    for name in ("quick", *SECTIONS):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    cfg = parser.parse_args(arguments)
    tables: Tables = {}
    for section in [SECTIONS[name] for name in SECTIONS if getattr(cfg, name)] or [speed]:
        with tempfile.TemporaryDirectory() as folder:
            plan = Plan(Path(folder), tuple(cfg.settings))
            tables |= section(
                replace(plan, rounds=2, seconds=4.0, clients=(8,), volume_edge=192) if cfg.quick else plan
            )
    versions = [f"{name} {version(name)}" for name in ("torch", "ray", "fastapi", "mlflow")]
    about = ", ".join([f"{os.cpu_count()} CPUs", f"Python {platform.python_version()}", *versions, *arguments])
    sys.stdout.write(f"{about}\n\n{markdown(tables)}")
    if cfg.out:
        cfg.out.write_text(json.dumps({"about": about, "tables": tables}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
