"""What `medray serve` costs over the bare network, against plain FastAPI, LitServe and MLflow; how it stands stress.

A ResNet-18 on 8-bit PNGs of 224x224, all on the same cores, in interleaved rounds whose order is reversed from one to
the next. Plain FastAPI: plain_service.py, batches of 16, decoding in isolated workers, uvloop. LitServe: lit_service.py
has the same decoding, preprocessing and network, batches of 16 within 5 ms, its fast queue. `mlflow models serve` gets
a tensor, decoded and preprocessed already. Each is asked by as many clients as it answers the most for.
The services that are not asked wait meanwhile, and what Ray does in the background is not taken off.
Command: uv run jobs/benchmark.py serve [--quick] [--volumes] [--overload] [--slow] [KEY=VALUE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from medray.benchmarks import peers, report
from medray.benchmarks.plain_service import Bare
from medray.benchmarks.processes import Service
from medray.benchmarks.report import Cells, Sheet, speeds
from medray.benchmarks.services import (
    MEDRAY,
    MLFLOW,
    Ask,
    Plan,
    against,
    alternate,
    lit,
    lit_bodies,
    means,
    middle,
    mlflow,
    plain,
    sending,
)
from medray.bundle import ModelBundle
from medray.client import Client
from medray.imaging.writer import write_nifti

HANGING, GOAL_PER_S = 1000, 2000
BATCHES = (1, 2, 4, 8, 16, 32)
BARE = "bare forward"
LATENCIES = ("p50_ms", "p95_ms", "p99_ms")
Runs = list[Cells]


def speed(plan: Plan, sheet: Sheet) -> None:
    """Images per second where nothing waits for a client, and latency at half of that."""
    bare = Bare(flat := plan.bundle("flat"))
    batch = max(BATCHES, key=lambda size: float(bare.speed(size, plan.seconds / 6)["per_s"]))
    with ExitStack() as stack:
        asked = _services(plan, flat, stack, sheet)
        best = {name: _clients(plan, ask) for name, ask in asked.items()}
        ways = {name: partial(ask, clients=best[name]) for name, ask in asked.items()}
        runs = alternate(plan, {BARE: partial(bare.speed, batch, plan.seconds), **ways})
        rates = {name: middle(runs[name], "per_s")["per_s"] / 2 for name in asked if name != MLFLOW}
        half = alternate(plan, {name: partial(asked[name], rate=rate) for name, rate in rates.items()})
    for name in (name for name in runs if name != MEDRAY):
        note = f"{best[MEDRAY]} clients, against {best[name]}" if name in best else f"batches of {batch}"
        sheet.add(speeds(f"at saturation, against {name}", "images/s", against(runs[MEDRAY], runs[name]), note))
    _tell(sheet, runs, half, rates)
    batch = max(1, round(means(runs[MEDRAY], "stages").get("batch", 1)))
    network = bare.speed(batch, plan.seconds / 6, threads=1)["cpu_ms"]["network"]
    estimate = _estimate(means(runs[MEDRAY], "cpu_ms"), network)
    sheet.table(f"What {GOAL_PER_S} images/s on a GPU would take", estimate)


def _tell(sheet: Sheet, runs: Mapping[str, Runs], half: Mapping[str, Runs], rates: Mapping[str, float]) -> None:
    """The tables of what was measured."""
    saturated = []
    for name, found in runs.items():
        row = {"": name, **middle(found, "per_s", *LATENCIES)}
        saturated.append(row | {"CPU ms per image": sum(means(found, "cpu_ms").values())})
    sheet.table("Saturation", saturated)
    latency = [{"": name, "asked_per_s": rates[name], **middle(half[name], *LATENCIES)} for name in half]
    sheet.table("Open loop at half of it", latency)
    stages = {"at saturation": means(runs[MEDRAY], "stages"), "at half": means(half[MEDRAY], "stages")}
    names = stages["at saturation"]
    sheet.table(
        "Stages of an answer, ms",
        [{"": name, **{when: told.get(name) for when, told in stages.items()}} for name in names],
    )


def _clients(plan: Plan, ask: Ask) -> int:
    """At how many the most is answered."""
    return max(plan.clients, key=lambda clients: float(ask(clients=clients)["per_s"]))


def _services(plan: Plan, flat: ModelBundle, stack: ExitStack, sheet: Sheet) -> dict[str, Ask]:
    """What is compared, started; a peer that is not there, or does not start, is said."""
    files = plan.images()
    asked: dict[str, Ask] = {}
    for service in (plan.medray(flat), plain(plan.folder, flat)):
        asked[service.name] = partial(plan.measure, stack.enter_context(service), files)
    tensor_service, tensor = mlflow(plan.folder, flat)
    rivals: dict[Service, tuple[list[Path], str]] = {tensor_service: ([tensor], "/invocations")}
    if peers.missing("litserve"):
        sheet.add(peers.absent("litserve", "serve"))
    else:
        rivals = {lit(plan.folder, flat): (lit_bodies(files), ""), **rivals}
    for service, (bodies, path) in rivals.items():
        try:
            asked[service.name] = partial(plan.measure, stack.enter_context(service), bodies, path)
        except RuntimeError as error:
            sheet.add(report.Row(service.name, note=f"left out: {' '.join(str(error).split())[-300:]}"))
    return asked


def _estimate(cpu_ms: Mapping[str, float], network_ms: float) -> list[Cells]:
    """Cores by process; of the replicas without the network, which a GPU would run."""
    less = {name: network_ms for name in cpu_ms if name.endswith(":model")}
    rest = {name + ", without the network" * (name in less): used - less.get(name, 0) for name, used in cpu_ms.items()}
    return [{"": name, "CPU ms per image": used, "cores": GOAL_PER_S * used / 1e3} for name, used in rest.items()]


def volumes(plan: Plan, sheet: Sheet) -> None:
    """Latency of single images beside a large volume, at a tenth of what the network can answer."""
    flat, volume = plan.bundle("flat"), plan.bundle("volume")
    files, scan = plan.images(), plan.folder / "scan.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 2000, (plan.volume_edge,) * 3)
    write_nifti(scan, voxels.astype(np.int16), np.eye(4))
    windows_ms = 1e3 * median(Bare(volume).seconds(volume.experiment.window.batch, plan.rounds))
    rate = 0.1 / median(Bare(flat).seconds(1, plan.rounds))
    with plan.medray(flat, volume) as service:
        ask: Ask = partial(plan.measure, service, files, "/v1/predict?model=flat", rate=rate)

        def beside() -> Cells:
            with Client(service.url, timeout_s=600) as client:
                job = client.predict(scan, "volume", keep=False, wait=False)
                while job.status()["state"] == "pending":
                    time.sleep(0.1)
                found, status = ask(), job.cancel()
            return found | {"volume done": status["progress"] or 0.0}

        runs = alternate(plan, {"alone": ask, f"beside a volume of {plan.volume_edge}^3": beside})
    rows = [{"": name, **middle(found, "per_s", *LATENCIES, "volume done")} for name, found in runs.items()]
    sheet.table(f"Fairness; a batch of windows takes {windows_ms:.4g} ms", rows)


def overload(plan: Plan, sheet: Sheet) -> None:
    """Goodput and refusals at ten times the clients that saturate the service."""
    with plan.medray(plan.bundle("flat")) as service:
        ask: Ask = partial(plan.measure, service, plan.images())
        clients = _clients(plan, ask)
        ways: dict[str, Ask] = {f"{n} clients": partial(ask, clients=n) for n in (clients, 10 * clients)}
        ways[f"{10 * clients} that wait as told"] = partial(ask, clients=10 * clients, patient=True)
        runs = alternate(plan, ways)
    names, first = ("per_s", *LATENCIES, "refused_p99_ms", "refused_without_retry_after"), runs[next(iter(ways))]
    told = {name: means(runs[name], "statuses") | means(runs[name], "lost") for name in runs}
    for name in list(runs)[1:]:
        sheet.add(speeds(f"goodput of {name}, against {clients}", "images/s", against(runs[name], first)))
    sheet.table("Overload", [{"": name, **middle(runs[name], *names), **told[name]} for name in runs])


def slow(plan: Plan, sheet: Sheet) -> None:
    """Latency of whole requests beside HANGING uploads that stop in the middle."""
    files = plan.images()
    with plan.medray(plan.bundle("flat")) as service:
        ask: Ask = partial(plan.measure, service, files)
        rate = ask(clients=plan.clients[0])["per_s"] / 2

        def beside() -> Cells:
            with sending(service, files, "", {"hang": HANGING, "seconds": plan.seconds + 10}) as uploads:
                time.sleep(5)
                return ask(rate=rate) | {"uploads": json.loads(uploads.communicate()[0])}

        runs = alternate(plan, {"alone": partial(ask, rate=rate), f"beside {HANGING} slow uploads": beside})
    uploads = {name: found[-1].get("uploads", {}) for name, found in runs.items()}
    rows = [{"": name, **middle(runs[name], "per_s", *LATENCIES), **uploads[name]} for name in runs]
    sheet.table("Slow uploads", rows)


SECTIONS: Mapping[str, Callable[[Plan, Sheet], None]] = {"volumes": volumes, "overload": overload, "slow": slow}


def measure(cfg: argparse.Namespace, sheet: Sheet) -> None:
    """The sections that are asked for, or the speed."""
    for section in [SECTIONS[name] for name in SECTIONS if getattr(cfg, name)] or [speed]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            plan = Plan(Path(folder), tuple(cfg.settings), cfg.pairs)
            section(replace(plan, seconds=4.0, clients=(8,), volume_edge=192) if cfg.quick else plan, sheet)


def options(parser: argparse.ArgumentParser) -> None:
    """Stress instead of speed, and settings of the service."""
    for name, section in SECTIONS.items():
        parser.add_argument(f"--{name}", action="store_true", help=section.__doc__)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")


if __name__ == "__main__":
    report.run("serve", __doc__ or "", measure, sys.argv[1:], options)
