"""The report of one answer as one HTML page: no script, nothing from elsewhere, no name of a file or patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medray.imaging.sheet import short
from medray.reports.page import Picture, environment

BAR_PX = 320
"""Width of a probability of 1."""
UNITS = {"mm2": "mm²"}
KINDS = {"gzip": "NIfTI", "nifti": "NIfTI", "dicom": "DICOM", "png": "PNG", "jpeg": "JPEG", "nrrd": "NRRD"}
STEPS = ("read", "decode", "preprocess", "queue", "forward", "postprocess", "total")
"""Of the timings, in the order in which they happen."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A probability as it is drawn."""

    label: str
    text: str
    width: float
    tick: float | None
    """Where the threshold is, in pixels."""
    picked: bool
    """Whether the model answers with it."""
    possible: bool
    """Whether it is in the conformal set."""


@dataclass(frozen=True, slots=True)
class Row:
    """A number with its name."""

    label: str
    text: str
    note: str = ""
    colour: str = ""
    """#RRGGBB of a structure."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """What the page says, from top to bottom."""

    verdict: str
    notice: str
    warnings: tuple[tuple[str, str], ...]
    """(word, meaning)."""
    bars: tuple[Bar, ...]
    numbers: tuple[Row, ...]
    structures: tuple[Row, ...]
    conformal: str
    """The classes that cannot be ruled out; empty where the model does not say."""
    pictures: tuple[Picture, ...]
    facts: tuple[tuple[str, str], ...]
    quality: tuple[Row, ...]
    timings: tuple[Row, ...]


def render(body: Mapping[str, Any], pictures: Sequence[tuple[str, bytes]] = ()) -> str:
    """The page as HTML.

    Args:
        body: the answer as /v1/predict gives it.
        pictures: (caption, PNG).
    """
    return environment().get_template("answer.html.j2").render(sheet=sheet(body, pictures), bar_px=BAR_PX)


def sheet(body: Mapping[str, Any], pictures: Sequence[tuple[str, bytes]] = ()) -> Sheet:
    """What the page says of an answer; see `render`."""
    possible = body.get("conformal_set")
    timings = body.get("timings_ms", {})
    return Sheet(
        verdict=_verdict(body),
        notice=body["notice"],
        warnings=tuple((item["word"].replace("_", " "), item["meaning"]) for item in body["warnings"]),
        bars=tuple(_bars(body, possible or ())),
        numbers=tuple(_number(item) for item in body.get("values", ())),
        structures=tuple(_structure(item) for item in body.get("structures", ())),
        conformal=", ".join(possible) or "none" if possible is not None else "",
        pictures=tuple(Picture(png, caption) for caption, png in pictures),
        facts=tuple(_facts(body)),
        quality=tuple(Row(name.replace("_", " "), f"{value:.3g}") for name, value in body.get("quality", {}).items()),
        timings=tuple(Row(name, f"{timings[name]:.1f} ms") for name in STEPS if name in timings),
    )


def _verdict(body: Mapping[str, Any]) -> str:
    if values := body.get("values"):
        return ", ".join(f"{item['name']} {item['value']:.4g}" for item in values)
    if body["labels"]:
        return ", ".join(body["labels"])
    return "nothing found" if body["task"] == "segmentation" else "none of the classes"


def _bars(body: Mapping[str, Any], possible: Sequence[str]) -> list[Bar]:
    return [
        Bar(
            label=item["label"],
            text=f"{100 * item['probability']:.1f} %",
            width=round(BAR_PX * item["probability"], 1),
            tick=round(BAR_PX * item["threshold"], 1) if item.get("threshold") is not None else None,
            picked=item["label"] in body["labels"],
            possible=item["label"] in possible,
        )
        for item in body.get("predictions", ())
    ]


def _number(item: Mapping[str, Any]) -> Row:
    interval = item.get("interval")
    return Row(item["name"], f"{item['value']:.4g}", f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else "")


def _structure(item: Mapping[str, Any]) -> Row:
    size = f"{short(item['volume'])} {UNITS.get(item['unit'], item['unit'])}" if item["volume"] else "not found"
    return Row(item["label"], size, colour=item["colour"])


def _facts(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, image = body["model"], body["input"]
    shape = " x ".join(map(str, image["shape"]))
    spacing = " x ".join(f"{edge:.3g}" for edge in image["spacing"])
    kind = KINDS.get(image["kind"], image["kind"])
    found = [
        ("Model", f"{model['name']}/{model['version']}"),
        ("Digest of the model", model["digest"]),
        ("Task", body["task"]),
        ("Image", f"{shape}, {image['channels']} channel{'s' if image['channels'] != 1 else ''}, {kind}"),
        ("Voxel edges", f"{spacing} {image['unit']}"),
        ("Modality", "not said" if image["modality"] == "OT" else image["modality"]),
        ("SHA-256 of the upload", image["sha256"]),
        ("Request", body["request_id"]),
    ]
    if explained := body.get("explanation"):
        found.append(("Explanation", f"{explained['method']} of {explained['target']}"))
    return found
