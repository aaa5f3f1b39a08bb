"""Predictions over files: which files, a table for a person, a CSV for the next program."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medray.config import ConfigError
from medray.datasets.files import is_junk
from medray.imaging.dicom.series import find
from medray.imaging.writer import replacing
from medray.inference.records import Record
from medray.types import SeriesRef, Source

if TYPE_CHECKING:
    from medray.inference.predictor import Predictor

Rows = Sequence[tuple[Path, Record]]
"""What a case is called, and what is known of it."""
SHOWN = 30
"""Cases that a person is told one by one."""


def image_files(places: Iterable[Path], leave_out: Path | None = None) -> list[Path]:
    """The files that `places` name, folders searched through; what is hidden or a system's own is left out.

    So is what lies in `leave_out`, where results of an earlier command are.

    Raises:
        ConfigError: naming what does not exist, or that nothing was found.
    """
    files: list[Path] = []
    own = leave_out.absolute() if leave_out else None
    for place in places:
        if not place.exists():
            raise ConfigError([f"'{place}' does not exist (looked in {Path.cwd()})"])
        inside = (file for file in sorted(place.rglob("*")) if file.is_file() and not is_junk(file.name))
        files += inside if place.is_dir() else [place]
    files = [file for file in files if own is None or not file.absolute().is_relative_to(own)]
    if not files:
        raise ConfigError(
            [f"no files in {', '.join(str(place) for place in places) or 'nothing: name an image or a folder'}"]
        )
    return files


def named_sources(predictor: Predictor, files: Sequence[Path]) -> dict[Path, Source]:
    """What to call each image in `files`, and the image; a model of volumes takes the files of a series as one."""
    return dict(sources(files, predictor.bundle.axes))


def sources(
    files: Sequence[Path], axes: int, shown: Mapping[Path, Path] | None = None
) -> Iterator[tuple[Path, Path | SeriesRef]]:
    """(what to call it, the image) of `files`, for a model of images of `axes`.

    For volumes each DICOM series comes once, by the folder of its files. `shown` is what to call the files, where
    that is not where they are.
    """
    called = shown or {}
    found = [info for info in find(files) if info.is_image] if axes == 3 else []
    folders = [Path(os.path.commonpath([called.get(file, file).parent for file in info.files])) for info in found]
    for info, folder in zip(found, folders, strict=True):
        first = called.get(info.files[0], info.files[0])
        alone = folders.count(folder) == 1
        place = first if len(info.files) == 1 else folder if alone else folder / info.uid
        if info.times == 1:
            yield place, SeriesRef(info.files)
        else:
            yield from ((place / f"t{time}", SeriesRef(info.files, time)) for time in range(info.times))
    of_series = {file for info in found for file in info.files}
    yield from ((called.get(file, file), file) for file in files if file not in of_series)


def as_text(rows: Rows) -> str:
    """A table for a person: the answers or, where these are many, only what was refused."""
    few = len(rows) <= SHOWN
    told = [(_shown(place), _said(record)) for place, record in rows if few or record.error]
    width = max((len(place) for place, _ in told[:SHOWN]), default=0)
    lines = [f"{place:{width}}  {said}" for place, said in told[:SHOWN]]
    return "\n".join([*lines, *([f"and {len(told) - SHOWN} more refused"] if len(told) > SHOWN else [])])


def _shown(place: Path) -> str:
    here = Path.cwd()
    return str(place.relative_to(here) if place.is_relative_to(here) else place)


def _said(record: Record) -> str:
    if record.error:
        code, detail, hint = record.error
        return f"refused: {code}: {detail}" + (f" ({hint})" if hint else "")
    labels = f"{'|'.join(record.labels) or 'none':20} "
    if record.scores:
        ranked = sorted(record.scores.items(), key=lambda item: item[1], reverse=True)[:3]
        return labels + "  ".join(f"{name} {share:.3f}" for name, share in ranked)
    unit = {"ml": "mL", "mm2": "mm2"}.get(record.unit, record.unit)
    return labels + "  ".join(f"{name} {amount:.4g} {unit}" for name, amount in record.volumes.items())


def write_csv(file: Path, rows: Rows) -> None:
    """One row per case: labels, a probability per class or an amount per structure, or the code of its refusal.

    The unit of an amount is in the column's name, as in liver_ml. Raises ConfigError where it cannot be written.
    """
    scores = dict.fromkeys(name for _, record in rows for name in record.scores)
    amounts = dict.fromkeys((name, record.unit) for _, record in rows for name in record.volumes)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    head = [*scores, *(f"{name}_{unit}" for name, unit in amounts)]
    writer.writerow(["file", "folder", "labels", *head, "conformal_set", "warnings", "error"])
    for place, record in rows:
        figures = [record.scores.get(name, "") for name in scores]
        figures += [record.volumes.get(name, "") if unit == record.unit else "" for name, unit in amounts]
        held = "" if record.conformal_set is None else "{" + "|".join(record.conformal_set) + "}"
        said = [held, "|".join(record.warnings), record.error[0] if record.error else ""]
        folder = record.name if record.files else ""
        writer.writerow([place, folder, "|".join(record.labels), *figures, *said])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            stream.write(text.getvalue().encode(errors="surrogateescape"))
    except OSError as error:
        raise ConfigError([f"'{file}' cannot be written: {error.strerror}"]) from None
