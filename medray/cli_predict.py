"""The verb that answers for images: predict. It belongs to medray/cli.py, which registers it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from medray.config import ConfigError
from medray.console import DATA, PARTIAL, Result, Terminated

if TYPE_CHECKING:
    from medray.inference.predict import Request, Summary

Axes = Annotated[str, Parameter(help="Axes, counted from 0 and separated by commas, as in 0,1.")]


def register(app: App) -> None:
    """Add the verb to `app`."""
    app.command(predict)


def predict(
    *images: Path,
    model: tuple[str, ...] = (),
    bundle: tuple[Path, ...] = (),
    out: Path | None = None,
    csv: Path | None = None,
    device: str = "cpu",
    workers: int | None = None,
    overlay: bool = True,
    probabilities: bool = False,
    overlap: float | None = None,
    flips: Axes = "",
    restore: Literal["labels", "probabilities"] | None = None,
    retry: bool = False,
    again: bool = False,
    tracking: str | None = None,
) -> Result:
    """What a model says of images; of a segmentation a mask, a picture and volumes for each.

    The same command again goes on where the last one ended. Exit code 5 where some images were refused, 3 where all
    were.

    Args:
        images: files, folders of files, or archives (.zip, .tar); the files of a DICOM series are one image to a model
            of volumes.
        model: name@alias or name@version in the registry; by default the newest champion. Several are averaged.
        bundle: folder of a model, instead of one in the registry. Several are averaged.
        out: folder of the results; by default predictions here. For one file and a classification only if asked for.
        csv: where to write the table; by default predictions.csv in that folder.
        device: cpu, or cuda.
        workers: models that work at the same time, on Ray; by default one, on a cluster one per GPU.
        overlay: also draw each mask on its image.
        probabilities: also keep those of every voxel.
        overlap: share of a window that it has in common with the next, instead of the model's own.
        flips: axes to mirror images along, for the mean of the answers, instead of the model's own.
        restore: what is brought back to the image's own grid, instead of the model's own.
        retry: also try again what was refused.
        again: also compute again what is done.
        tracking: the registry's server; by default $MLFLOW_TRACKING_URI or the embedded one.
    """
    from medray.inference.outputs import Wanted
    from medray.inference.predict import Request
    from medray.inference.table import image_files

    image_files(images)  # before a registry is asked for a model
    named = _models(model, bundle, tracking)
    request = Request(
        places=images,
        bundles=tuple(folder for folder, _ in named),
        device=device,
        window=_changes(overlap, flips, restore),
        wanted=Wanted(overlay, probabilities),
        out=out,
        csv=csv,
        workers=workers,
        retry=retry,
        again=again,
    )
    return _told(_run(request), [name for _, name in named])


def _run(request: Request) -> Summary:
    from medray.inference.predict import run

    try:
        return run(request, lambda line: _say(f"{line}\n"))
    except (KeyboardInterrupt, Terminated):
        _say("what is finished stays; the same command goes on from there\n")
        raise


def _say(text: str) -> None:
    # A file may have a name that the terminal cannot show.
    sys.stderr.write(text.encode(errors="replace").decode())
    sys.stderr.flush()


def _told(summary: Summary, names: list[str]) -> Result:
    """The table and the summary for a person, and the result for a program."""
    from medray.inference import table
    from medray.inference.predict import clock

    rows, refused = summary.rows, summary.refused
    text = table.as_text(rows)
    answered = len(rows) - refused
    count = f"{answered} answered, {refused} refused" if refused else f"{answered} answered"
    place = f", in {summary.out}" if summary.out else ""
    _say(f"{text}\n" if text else "")
    _say(f"{count} ({summary.already} of them before) in {clock(summary.seconds)}{place}\n")
    outcome = Result(
        model=" + ".join(names),
        images=len(rows),
        refused=refused,
        already=summary.already,
        seconds=round(summary.seconds, 3),
        out=str(summary.out) if summary.out else None,
        csv=str(summary.csv) if summary.csv else None,
    )
    if len(rows) == 1 and not (only := rows[0][1]).error:
        outcome["labels"] = list(only.labels)
        if only.scores:
            outcome["scores"] = dict(only.scores)
        if only.unit:
            outcome["volumes"] = {f"{name}_{only.unit}": amount for name, amount in only.volumes.items()}
    outcome.exit_code = DATA if refused == len(rows) else PARTIAL if refused else 0
    return outcome


def _changes(overlap: float | None, flips: str, restore: str | None) -> dict[str, Any]:
    """To the model's own way to read whole images."""
    axes = [part.strip() for part in flips.split(",")] if flips else []
    if wrong := [part for part in axes if not part.isdecimal()]:
        raise ConfigError([f"--flips: '{wrong[0]}' is no axis; write their numbers, as in 0,1"])
    asked = {"overlap": overlap, "flips": tuple(map(int, axes)) or None, "restore": restore}
    return {name: value for name, value in asked.items() if value is not None}


def _models(models: tuple[str, ...], bundles: tuple[Path, ...], uri: str | None) -> list[tuple[Path, str]]:
    """The bundles that are meant, on this machine, and what to call them."""
    named = [(folder, str(folder)) for folder in bundles]
    if bundles and not models:
        return named
    from medray.tracking import registry
    from medray.tracking.run import client

    mlflow = client(uri)
    named += [registry.fetch(mlflow, reference) for reference in models or (registry.newest_champion(mlflow),)]
    return named
