"""The service as a config of Ray Serve: what `serve deploy` and KubeRay's RayService take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from medray.sections.service import ServeSection
from medray.serving.app import NAME, application
from medray.serving.lineup import Wish, of_bundle, of_registry
from medray.serving.messages import Entry

HEAD = """# Ray Serve's config of medray, made by `medray serve --build`. Research use only. Not a medical device.
# serve deploy THIS    or, for KubeRay, below serveConfigV2 of a RayService.
# Versions are fixed here; write this file again, and deploy it again, to serve others.
"""


def config(wish: Wish, entries: Sequence[Entry], cfg: ServeSection, cpus: float, gpu: bool) -> dict[str, Any]:
    """The config; aliases are resolved now, so that all replicas have the same versions."""
    own = {str(folder.absolute()) for folder in wish.bundles}
    args: dict[str, Any] = {
        "settings": cfg.model_dump(mode="json", exclude_defaults=True),
        "models": [_told(entry, entry.folder in own) for entry in entries],
        "tracking": wish.tracking,
        "cpus": cpus,
        "gpu": gpu,
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": cfg.host, "port": cfg.port},
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
        "applications": [
            {"name": NAME, "route_prefix": "/", "import_path": "medray.serving.built:build", "args": args}
        ],
    }


def written(plain: Mapping[str, Any]) -> str:
    """The config as YAML."""
    return HEAD + yaml.safe_dump(dict(plain), sort_keys=False)


def _told(entry: Entry, is_bundle: bool) -> dict[str, Any]:
    place = {"bundle": entry.folder} if is_bundle else {"model": f"{entry.name}@{entry.version}", "alias": entry.alias}
    return {**place, "part": entry.part, "share": entry.share}


def build(args: Mapping[str, Any]) -> Any:
    """The application that a config describes; Serve calls it on the cluster."""
    cfg = ServeSection.model_validate(args["settings"])
    entries = [_entry(told, args["tracking"]) for told in args["models"]]
    return application(entries, cfg, args["cpus"], args["gpu"])


def _entry(told: Mapping[str, Any], tracking: str | None) -> Entry:
    part, share = told["part"], told["share"]
    if "bundle" in told:
        return replace(of_bundle(Path(told["bundle"])), part=part, share=share)
    found = of_registry(told["model"], tracking)
    return replace(found, alias=told["alias"], part=part, share=share)
