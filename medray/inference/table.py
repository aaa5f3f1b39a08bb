"""Predictions over files: which files, a table for a person, a CSV for the next program."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from medray.config import ConfigError
from medray.inference.predictor import Predictor
from medray.types import InputError, Prediction

Answers = Sequence[tuple[Path, Prediction | InputError]]


def image_files(places: Iterable[Path]) -> list[Path]:
    """The files that `places` name, folders searched through; hidden files are left out.

    Raises:
        ConfigError: naming what does not exist, or that nothing was found.
    """
    files: list[Path] = []
    for place in places:
        if not place.exists():
            raise ConfigError([f"'{place}' does not exist (looked in {Path.cwd()})"])
        inside = (file for file in sorted(place.rglob("*")) if file.is_file() and not file.name.startswith("."))
        files += inside if place.is_dir() else [place]
    if not files:
        raise ConfigError(
            [f"no files in {', '.join(str(place) for place in places) or 'nothing: name an image or a folder'}"]
        )
    return files


def predict_files(predictor: Predictor, files: Sequence[Path]) -> Answers:
    """The model's answer for each file."""
    return list(zip(files, predictor.predict_all(files), strict=True))


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
