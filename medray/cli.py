"""`medray <verb>`, and what every jobs/*.py calls: parse, call one function, hand on its result."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from medray import (
    cli_access,
    cli_bench,
    cli_data,
    cli_evaluate,
    cli_export,
    cli_inference,
    cli_plan,
    cli_predict,
    cli_serve,
    cli_sync,
    console,
)
from medray.config import DEFAULT_EXPERIMENT, ConfigError, load, plugins, to_yaml
from medray.config import Experiment as ExperimentSchema
from medray.console import DATA, PARTIAL, Result

app = App(
    name="medray",
    suppress_keyboard_interrupt=False,
    help="Deep learning on 2D and 3D medical images on Ray. Research use only, not a medical device.",
)
config_app = App(name="config", help="Look at experiments.")
app.command(config_app)
for verbs in (
    cli_data,
    cli_plan,
    cli_predict,
    cli_evaluate,
    cli_inference,
    cli_export,
    cli_serve,
    cli_access,
    cli_sync,
    cli_bench,
):
    verbs.register(app)

Settings = Annotated[
    str,
    Parameter(
        help=f"An experiment (a .yaml file or a packaged name; default {DEFAULT_EXPERIMENT}), then key=value settings."
    ),
]


def main(*verb: str) -> None:
    """Run the command line, with `verb` put in front of it; ends the process."""
    console.run(app, [*verb, *sys.argv[1:]])


def _split_settings(settings: tuple[str, ...]) -> ExperimentSchema:
    """The experiment of a command line: an optional name or file, then key=value."""
    source = settings[0] if settings and "=" not in settings[0] else None
    return load(source, settings[1:] if source else settings)


@app.command
def train(*settings: Settings, resume: str | None = None, new: bool = False) -> Result:
    """Train, record and register a model.

    The same command again goes on with a run that was interrupted.

    Sections of an experiment: name, seed, dataset, split, preprocess, window, augment, task, network, optimizer,
    schedule, train, trust, scaling, tracking, tune, serve. Look inside with: medray config show

    Args:
        settings: the experiment and changes to it.
        resume: name of an interrupted run to go on with.
        new: begin another run, even if one with these settings was interrupted.
    """
    began = _process_start()
    if resume is None:
        experiment = _split_settings(settings)
        from medray.training.train import train as run

        outcome = Result(run(experiment, began, new))
    else:
        if settings or new:
            extra = " ".join([*settings, *(["--new"] if new else [])])
            raise ConfigError([f"--resume goes on with the run's own experiment; leave out: {extra}"])
        from medray.training.train import resume as go_on

        outcome = Result(go_on(resume, began))
    outcome.exit_code = PARTIAL if outcome["refused"] else 0
    sys.stderr.write(_next_commands(outcome))
    return outcome


def _next_commands(outcome: dict[str, Any]) -> str:
    """What one does after a training, with the model that is there: the champion, a version, or only a bundle."""
    from medray.tracking.run import tracking_uri

    if "bundles" in outcome:
        models = " ".join(f"--bundle {bundle}" for bundle in outcome["bundles"])
        return f"next:  medray predict IMAGE ... {models}   what the folds say together\n"
    uri = outcome["tracking_uri"]
    if not outcome.get("tracked", True):
        lines = [f"medray sync {outcome['run']}   brings MLflow the run and its model, when it answers again"]
        lines += [f"medray predict IMAGE ... --bundle {outcome['bundle']}   what this model says"]
        return "next:  " + "       ".join(f"{line}\n" for line in lines)
    there = "" if uri == tracking_uri(None) else f" --tracking {uri}"
    if outcome["champion"]:
        using = [f"medray predict IMAGE ...{there}   what the newest champion says"]
        using += [
            f"medray serve{there.replace(' --tracking ', ' tracking.uri=')}   the champion at http://127.0.0.1:8000"
        ]
    elif outcome["model"]:
        model = outcome["model"].replace("/", "@")
        using = [f"medray predict IMAGE ... --model {model}{there}   what this model says"]
        using += [f"medray promote {model} --reason WHY{there}   makes it the champion"]
    else:
        using = [f"medray predict IMAGE ... --bundle {outcome['bundle']}   what this model says"]
    runs = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else uri
    using += [f"{runs}   all runs (this one: {outcome['run']})"]
    return "next:  " + "       ".join(f"{line}\n" for line in using)


@app.command
def tune(*settings: Settings, resume: str | None = None, new: bool = False) -> Result:
    """Search settings, register the best model.

    The section `tune` of the experiment holds the space; every key in it is a setting of the experiment. The same
    command again goes on with a search that was interrupted.

    Args:
        settings: the experiment and changes to it.
        resume: name of an interrupted search to go on with.
        new: begin another search, even if one with these settings was interrupted.
    """
    if resume is None:
        experiment = _split_settings(settings)
        from medray.tuning.study import search

        outcome = Result(search(experiment, new))
    else:
        if settings or new:
            raise ConfigError(["--resume goes on with the search's own experiment; give it alone"])
        from medray.tuning.study import resume as go_on

        outcome = Result(go_on(resume))
    outcome.exit_code = PARTIAL if outcome["refused"] else 0
    best = Path(outcome["bundle"]).with_name("best.yaml")
    sys.stderr.write(_next_commands(outcome) + f"       medray train {best}   the best trial again\n")
    return outcome


@app.command
def check(data: str, *settings: Settings, out: Path | None = None, manifest: Path | None = None) -> Result:
    """Find in a dataset what would spoil a training: a table of all cases, and a page to look at.

    Exit code 3 where something would.

    Args:
        data: a path to a dataset, or an experiment (a .yaml file or a packaged name).
        settings: changes to the experiment, such as dataset.name=folder or split.method=given.
        out: folder of check.csv and check.html; by default check-NAME here, never inside the data.
        manifest: a file to write the sha256 of every file into; dataset.manifest=FILE then holds a training to it.
    """
    from medray import cluster
    from medray.imaging.isolation.decoder import read_isolated
    from medray.pipeline.examine import examine

    outcome = Result(examine(data, settings, out, manifest, cluster.parallel_map, read_isolated))
    outcome.exit_code = 0 if outcome["ready"] else DATA
    return outcome


@app.command
def promote(model: str, *, reason: str, tracking: str | None = None) -> Result:
    """Make a registered model the champion, and write down why.

    Args:
        model: name@alias or name@version, for example phantom@candidate.
        reason: kept with the version.
        tracking: the registry's server; by default $MLFLOW_TRACKING_URI or the embedded one.
    """
    from medray.tracking import registry
    from medray.tracking.run import client

    name, _, alias = model.rpartition("@")
    mlflow = client(tracking)
    version = registry.find(mlflow, name, alias)
    if version is None:
        raise registry.RegistryError(f"the registry has no '{model}'")
    registry.promote(mlflow, name, str(version.version), reason)
    return Result(model=f"{name}/{version.version}", alias=registry.CHAMPION, reason=reason)


@app.command
def rollback(model: str, *, reason: str, tracking: str | None = None) -> Result:
    """Make the champion before this one the champion again; a service that follows it answers with it at once.

    Args:
        model: its name in the registry.
        reason: kept with the version that goes.
        tracking: the registry's server; by default $MLFLOW_TRACKING_URI or the embedded one.
    """
    from medray.tracking import registry
    from medray.tracking.run import client

    name = model.removesuffix(f"@{registry.CHAMPION}")
    back, gone = registry.rollback(client(tracking), name, reason)
    return Result(model=f"{name}/{back}", alias=registry.CHAMPION, instead_of=f"{name}/{gone}", reason=reason)


@config_app.command
def show(*settings: Settings) -> str:
    """Print an experiment, defaults included, as YAML."""
    return to_yaml(_split_settings(settings))


@config_app.command
def schema(*settings: Settings) -> str:
    """Print the JSON schema of an experiment with its plug-ins, for editors."""
    experiment = _split_settings(settings)
    tree = ExperimentSchema.model_json_schema()
    for section in ("dataset", "task", "network"):
        plugin = type(getattr(experiment, section)).model_json_schema()
        tree["$defs"] |= plugin.pop("$defs", {})  # references are from the root
        tree["properties"][section] = plugin
    return json.dumps(tree, indent=2)


@config_app.command(name="list")
def list_plugins() -> str:
    """Print the names that dataset, network and task can take."""
    return "\n".join(f"{folder}: {', '.join(plugins(folder))}" for folder in ("datasets", "networks", "tasks"))


def _process_start() -> float:
    """time.time() at which this process began; imports before this line count too."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))
