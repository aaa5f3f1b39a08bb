"""Predictions over files: which files, a table for a person, a CSV for the next program."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from medray.config import ConfigError
from medray.datasets.files import is_junk
from medray.imaging.dicom.series import find
from medray.inference.predictor import Predictor
from medray.types import InputError, Prediction, SeriesRef, Source

Answers = Sequence[tuple[Path, Prediction | InputError]]


def image_files(places: Iterable[Path]) -> list[Path]:
    """The files that `places` name, folders searched through; what is hidden or a system's own is left out.

    Raises:
        ConfigError: naming what does not exist, or that nothing was found.
    """
    files: list[Path] = []
    for place in places:
        if not place.exists():
            raise ConfigError([f"'{place}' does not exist (looked in {Path.cwd()})"])
        inside = (file for file in sorted(place.rglob("*")) if file.is_file() and not is_junk(file.name))
        files += inside if place.is_dir() else [place]
    if not files:
        raise ConfigError(
            [f"no files in {', '.join(str(place) for place in places) or 'nothing: name an image or a folder'}"]
        )
    return files


def predict_files(predictor: Predictor, files: Sequence[Path]) -> Answers:
    """The model's answer for each image in `files`; a model of volumes takes the files of a DICOM series as one."""
    volumes = len(predictor.bundle.io.size) == 3
    named = dict(_volumes(files)) if volumes else {file: file for file in files}
    return list(zip(named, predictor.predict_all(list(named.values())), strict=True))


def _volumes(files: Sequence[Path]) -> Iterator[tuple[Path, Source]]:
    """(what to call it, the image): each DICOM series once, by the folder of its files, and every other file."""
    found = [info for info in find(files) if info.is_image]
    folders = [Path(os.path.commonpath([file.parent for file in info.files])) for info in found]
    for info, folder in zip(found, folders, strict=True):
        alone = info.files[0] if len(info.files) == 1 else folder
        place = alone if len(info.files) == 1 or folders.count(folder) == 1 else folder / info.uid
        if info.times == 1:
            yield place, SeriesRef(info.files)
        else:
            yield from ((place / f"t{time}", SeriesRef(info.files, time)) for time in range(info.times))
    of_series = {file for info in found for file in info.files}
    yield from ((file, file) for file in files if file not in of_series)


def as_text(answers: Answers) -> str:
    """A table for a person."""
    width = max(len(str(file)) for file, _ in answers)
    lines = []
    for file, answer in answers:
        if isinstance(answer, InputError):
            said = f"refused: {answer}"
        else:
            ranked = sorted(zip(answer.scores.tolist(), answer.classes, strict=True), reverse=True)[:3]
            said = f"{'|'.join(answer.labels) or 'none':20} " + "  ".join(f"{name} {p:.3f}" for p, name in ranked)
        lines.append(f"{file!s:{width}}  {said}")
    return "\n".join(lines)


def write_csv(file: Path, answers: Answers, classes: Sequence[str]) -> None:
    """One row per file: labels, one probability per class, or the code of its refusal."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "labels", *classes, "error"])
        for path, answer in answers:
            if isinstance(answer, InputError):
                writer.writerow([path, "", *[""] * len(classes), answer.code])
            else:
                writer.writerow([path, "|".join(answer.labels), *answer.scores.tolist(), ""])
