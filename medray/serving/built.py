"""The service as a config of Ray Serve: what `serve deploy` and KubeRay's RayService take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medray.sections.service import ServeSection
from medray.serving.app import NAME, application
from medray.serving.lineup import Wish, lineup
from medray.serving.messages import Entry

HEAD = """# Ray Serve's config of medray, made by `medray serve --build`. Research use only. Not a medical device.
# serve deploy THIS    or, for KubeRay, below serveConfigV2 of a RayService.
# Versions are fixed here; write this file again, and deploy it again, to serve others.
"""


def config(cfg: ServeSection, wish: Wish, entries: Sequence[Entry], cpus: float, gpu: bool) -> dict[str, Any]:
    """The config; aliases are resolved now, so that all replicas have the same versions."""
    settings = cfg.model_dump(mode="json", exclude_defaults=True)
    named = {part: [one for one in entries if one.part == part] for part in ("serving", "canary", "shadow")}
    own = {str(folder.absolute()) for folder in wish.bundles}
    args: dict[str, Any] = {
        "settings": settings,
        "models": [f"{one.name}@{one.version}" for one in named["serving"] if one.folder not in own],
        "bundles": sorted(own),
        "canary": "".join(f"{one.name}@{one.version}" for one in named["canary"]),
        "share": wish.share,
        "shadow": "".join(f"{one.name}@{one.version}" for one in named["shadow"]),
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


def build(args: Mapping[str, Any]) -> Any:
    """The application that a config describes; Serve calls it on the cluster."""
    wish = Wish(
        models=tuple(args["models"]),
        bundles=tuple(map(Path, args["bundles"])),
        canary=args["canary"],
        share=args["share"],
        shadow=args["shadow"],
        tracking=args["tracking"],
    )
    cfg = ServeSection.model_validate(args["settings"])
    return application(lineup(wish), cfg, args["cpus"], args["gpu"])
