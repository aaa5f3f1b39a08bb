"""The verb that serves models over HTTP. It belongs to medray/cli.py, which registers it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from medray.config import ConfigError, load
from medray.console import Result, Terminated

if TYPE_CHECKING:
    from medray.config import Experiment
    from medray.sections.service import ServeSection
    from medray.serving.lineup import Wish
    from medray.serving.messages import Entry

LOOK_S = 5.0
"""How often a registry is asked for a new champion."""


def register(app: App) -> None:
    """Add the verb to `app`."""
    app.command(serve)


def serve(
    *settings: str,
    model: tuple[str, ...] = (),
    bundle: tuple[Path, ...] = (),
    canary: str = "",
    share: float = 0.1,
    shadow: str = "",
    follow: str = "",
    build: Path | None = None,
) -> Result:
    """Answer over HTTP until Ctrl-C: POST /v1/predict, and a page for people at /ui/.

    Args:
        settings: an experiment whose section `serve` counts, and changes to it.
        model: name@alias or name@version in the registry; by default the newest champion. Several are served together.
        bundle: folder of a model, instead of one in the registry.
        canary: name@alias of another version of a model, which answers for a share of its images.
        share: of the images that a canary answers for.
        shadow: name@alias of another version, which is asked too where it has time, and compared.
        follow: an alias such as champion: what it names is served, from when it is checked.
        build: a file to write a config for `serve deploy` and KubeRay into, instead of serving here.
    """
    source = settings[0] if settings and "=" not in settings[0] else None
    experiment = load(source, settings[1:] if source else settings)
    from medray.serving.lineup import Wish

    wish = Wish(model, bundle, canary, share, shadow, experiment.tracking.uri)
    _check(experiment, follow, bundle)
    if build is not None:
        return _build(experiment, wish, build)
    return _serve(experiment, wish, follow)


def _check(experiment: Experiment, follow: str, bundles: tuple[Path, ...]) -> None:
    """Refuse what cannot be before anything starts."""
    from medray.serving import access

    if follow and bundles:
        raise ConfigError(["--follow: a bundle has no alias that could be followed; name it by --model"])
    access.check_start(experiment.serve)
    for line in access.warnings(experiment.serve):
        _say(f"note: {line}")


def _serve(experiment: Experiment, wish: Wish, follow: str) -> Result:
    cfg = experiment.serve
    with ThreadPoolExecutor(2) as threads:
        # Ray's processes start while the registry is asked.
        url, lineup = threads.submit(_start, cfg), threads.submit(_lineup, wish)
        entries, address = lineup.result(), url.result()
    from medray.serving import app
    from medray.serving.follow import Follower, Service

    service = Service(entries, *_settled(cfg))
    service.deploy()
    names = ", ".join(entry.reference for entry in entries)
    _say(f"{names} at {address}   page: {address}/ui/   api: {address}/docs   (Ctrl-C ends it)")
    _say(f"try: curl -F file=@IMAGE {address}/v1/predict")
    look = Follower(service, follow, wish.tracking, _say).look if follow else None
    with contextlib.suppress(KeyboardInterrupt, Terminated):
        _wait(look)
    app.stop()
    return Result(model=entries[0].reference, models=[entry.reference for entry in service.lineup], url=address)


def _wait(look: Callable[[], None] | None) -> None:
    """For ever; looks at the registry now and then."""
    ended = threading.Event()
    while not ended.wait(LOOK_S if look else None):
        if look is not None:
            look()


def _start(cfg: Any) -> str:
    from medray import cluster

    cluster.connect()
    from medray.serving import app

    return app.start(cfg)


def _lineup(wish: Wish) -> tuple[Entry, ...]:
    from medray.serving.lineup import lineup

    return lineup(wish, _say)


def _settled(cfg: ServeSection) -> tuple[ServeSection, float, bool]:
    """The settings with the number of replicas, the CPUs of each, and whether each has a GPU."""
    from medray import cluster

    cpus, gpus = cluster.resources()
    nodes = cluster.nodes()
    gpu = gpus > 0 if cfg.device == "auto" else cfg.device.startswith("cuda")
    if gpu and not gpus:
        raise ConfigError([f"serve.device: {cfg.device} was asked for; the cluster has no GPU"])
    most = cfg.max_replicas or max(cfg.min_replicas, gpus if gpu else sum(node > 0 for node in nodes))
    each = cfg.cpus_per_replica or float(max(1, int(cpus / most)))
    each = each if cfg.cpus_per_replica else min(each, max(nodes, default=1.0))
    if each * cfg.min_replicas > cpus:
        fact = f"{cfg.min_replicas} replicas of {each:g} CPUs were asked for; the cluster has {cpus:g}"
        raise ConfigError([f"serve.min_replicas: {fact}"])
    return cfg.model_copy(update={"max_replicas": most}), each, gpu


def _build(experiment: Experiment, wish: Wish, file: Path) -> Result:
    from medray.serving.built import config, written

    entries = _lineup(wish)
    plain = config(wish, entries, *_settled(experiment.serve))
    file.write_text(written(plain), encoding="utf-8")
    _say(f"next:  serve deploy {file}   on a cluster, from a folder where medray is installed on all nodes")
    return Result(config=str(file), models=[entry.reference for entry in entries])


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
