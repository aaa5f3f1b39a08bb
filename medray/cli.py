"""`medray <verb>`, and what every jobs/*.py calls: parse, run, print the result, exit with its code.

Exit codes: 0 well, 1 the run failed, 2 usage or config, 3 the data check refused, 4 a gate was not met,
5 finished with some cases refused, 75 interrupted and resumable, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

import cyclopts
from cyclopts import App, Parameter

from medray.cluster import prepare_environment
from medray.config import DEFAULT_EXPERIMENT, ConfigError, load, plugins, to_yaml
from medray.config import Experiment as ExperimentSchema

FAILED, USAGE, DATA, PARTIAL, RESUMABLE, INTERRUPTED = 1, 2, 3, 5, 75, 130

app = App(
    name="medray",
    help="Deep learning on 2D and 3D medical images on Ray. Research use only, not a medical device.",
)
config_app = App(name="config", help="Look at experiments.")
app.command(config_app)

Settings = Annotated[
    str,
    Parameter(
        help=f"An experiment (a .yaml file or a packaged name; default {DEFAULT_EXPERIMENT}), then key=value settings."
    ),
]


class Result(dict[str, Any]):
    """What a verb returns: the last line of stdout. `exit_code` is the process's."""

    exit_code = 0


class Terminated(BaseException):
    """SIGTERM: what is running is closed in good order, as with Ctrl-C."""


def _terminate(*_: object) -> None:
    raise Terminated


def main(*verb: str) -> None:
    """Run the command line, with `verb` put in front of it; ends the process."""
    prepare_environment()
    signal.signal(signal.SIGTERM, _terminate)
    with _clean_stdout() as stdout:
        code = _run([*verb, *sys.argv[1:]], stdout)
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    # Threads that libraries leave behind could hold the process for seconds; all is written and closed by now.
    sys.stderr.flush()
    os._exit(code)


def _run(arguments: list[str], stdout: TextIO) -> int:
    """Run one verb; a mistake of the user's is a line on stderr and a code, never a traceback."""
    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (ConfigError, cyclopts.CycloptsError) as error:
        return _complain(str(error), USAGE)
    except KeyboardInterrupt:
        return _complain("interrupted; a run goes on with: medray train --resume RUN", INTERRUPTED)
    except Terminated:
        return _complain("terminated; a run goes on with: medray train --resume RUN", RESUMABLE)
    except Exception as error:
        code = _codes().get(type(error).__name__)
        if code is None:
            raise
        return _complain(str(error), code)
    if isinstance(result, Result):
        stdout.write(json.dumps(result) + "\n")
        stdout.flush()
        return result.exit_code
    if isinstance(result, str):
        stdout.write(result if result.endswith("\n") else result + "\n")
        stdout.flush()
    return 0


def _codes() -> Mapping[str, int]:
    """Exit codes of the errors that say all a user needs; anything else is a fault of medray's, with its traceback.

    By name, since importing the classes would import the libraries of their rooms.
    """
    return {
        "DataRefused": DATA,
        "InputError": DATA,
        "StoreError": FAILED,
        "TrainingFailed": FAILED,
        "NonFiniteLoss": FAILED,
        "BundleError": FAILED,
        "RegistryError": USAGE,
        "RunNotFound": USAGE,
        "ValueError": USAGE,
        "FileNotFoundError": USAGE,
    }


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"medray: {message}\n")
    return code


@contextlib.contextmanager
def _clean_stdout() -> Iterator[TextIO]:
    """The real stdout for the result; whatever else writes to stdout, in any thread or library, lands on stderr."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout:
        os.dup2(2, 1)
        try:
            yield stdout
        finally:
            sys.stdout.flush()


def _split_settings(settings: tuple[str, ...]) -> ExperimentSchema:
    """The experiment of a command line: an optional name or file, then key=value."""
    source = settings[0] if settings and "=" not in settings[0] else None
    return load(source, settings[1:] if source else settings)


@app.command
def train(*settings: Settings, resume: str | None = None) -> Result:
    """Train, record and register a model.

    Sections of an experiment: name, seed, dataset, split, preprocess, augment, task, network, optimizer,
    schedule, train, scaling, tracking, tune, serve. Look inside with: medray config show

    Args:
        settings: the experiment and changes to it.
        resume: name of an interrupted run to go on with.
    """
    began = _process_start()
    experiment = _split_settings(settings)
    from medray.training.train import train as run

    outcome = Result(run(experiment, resume, began))
    outcome.exit_code = PARTIAL if outcome["refused"] else 0
    sys.stderr.write(
        "next:  medray predict IMAGE ...   what the newest champion says\n"
        "       medray serve               the champion at http://127.0.0.1:8000\n"
        f"       medray ui                  all runs in MLflow (this one: {outcome['run']})\n"
    )
    return outcome


@app.command
def tune(*settings: Settings) -> Result:
    """Search settings, register the best model.

    The section `tune` of the experiment holds the space; every key in it is a setting of the experiment.

    Args:
        settings: the experiment and changes to it.
    """
    experiment = _split_settings(settings)
    from medray.training.search import search

    return Result(search(experiment))


@app.command
def predict(
    *images: Path, model: str | None = None, bundle: Path | None = None, csv: Path | None = None, device: str = "cpu"
) -> Result:
    """What a model says of images.

    Args:
        images: files, or folders of files.
        model: name@alias or name@version in the registry; by default the newest champion.
        bundle: folder of a model, instead of one in the registry.
        csv: where to write the answers; by default predictions.csv here, if there are several.
        device: cpu, or cuda.
    """
    from medray.inference import table
    from medray.inference.predictor import Predictor
    from medray.types import InputError

    files = table.image_files(images)
    folder, name = (bundle, str(bundle)) if bundle else _model(model)
    predictor = Predictor(folder, device)
    answers = table.predict_files(predictor, files)
    sys.stderr.write(table.as_text(answers) + "\n")
    target = csv or (Path("predictions.csv") if len(files) > 1 else None)
    if target:
        table.write_csv(target, answers, predictor.bundle.classes)
    refused = sum(isinstance(answer, InputError) for _, answer in answers)
    outcome = Result(model=name, images=len(files), refused=refused, csv=str(target) if target else None)
    if len(files) == 1 and not isinstance(only := answers[0][1], InputError):
        outcome["labels"] = list(only.labels)
        outcome["scores"] = dict(zip(only.classes, only.scores.tolist(), strict=True))
    outcome.exit_code = DATA if refused == len(files) else PARTIAL if refused else 0
    return outcome


@app.command
def serve(*settings: Settings, model: str | None = None, bundle: Path | None = None) -> Result:
    """Answer over HTTP until Ctrl-C: POST /v1/predict.

    Args:
        settings: an experiment whose section `serve` counts, and changes to it.
        model: name@alias or name@version in the registry; by default the newest champion.
        bundle: folder of a model, instead of one in the registry.
    """
    experiment = _split_settings(settings)
    folder, name = (bundle.absolute(), bundle.name) if bundle else _model(model)
    from medray import cluster
    from medray.serving.app import run

    cluster.connect()
    url = run(folder, name, experiment.serve)
    sys.stderr.write(f"{name} at {url}; try: curl -F file=@IMAGE {url}/v1/predict   (Ctrl-C ends it)\n")
    with contextlib.suppress(KeyboardInterrupt, Terminated):
        threading.Event().wait()
    return Result(model=name, url=url)


@app.command
def promote(model: str, *, reason: str) -> Result:
    """Make a registered model the champion, and write down why.

    Args:
        model: name@alias or name@version, for example phantom@candidate.
        reason: kept with the version.
    """
    from medray.tracking import registry
    from medray.tracking.run import client

    name, _, alias = model.rpartition("@")
    mlflow = client(None)
    version = registry.find(mlflow, name, alias)
    if version is None:
        raise registry.RegistryError(f"the registry has no '{model}'")
    registry.promote(mlflow, name, str(version.version), reason)
    return Result(model=f"{name}/{version.version}", alias=registry.CHAMPION, reason=reason)


def _model(reference: str | None) -> tuple[Path, str]:
    """The bundle of a registered model on this machine, and name/version."""
    from medray.tracking import registry
    from medray.tracking.run import client

    mlflow = client(None)
    return registry.fetch(mlflow, reference or registry.newest_champion(mlflow))


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
        tree["properties"][section] = type(getattr(experiment, section)).model_json_schema()
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
