"""The verbs that protect people: deid, erase, anonymity. They belong to medray/cli.py, which registers them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from medray.config import ConfigError
from medray.console import DATA, PARTIAL, Result

Columns = Annotated[str, Parameter(help="Columns, separated by commas.")]


def register(app: App) -> None:
    """Add the verbs to `app`."""
    for verb in (deid, erase, anonymity):
        app.command(verb)


def deid(
    source: Path,
    target: Path,
    *,
    key: Path | None = None,
    shift_dates: bool = False,
    allow_burned_in: bool = False,
) -> Result:
    """Take the person out of images: DICOM (PS3.15 basic profile), NIfTI, PNG, JPEG.

    Every file written is read again and searched for what was removed. The table of old and new names
    re-identifies; it is written beside the key, for its owner alone.

    Args:
        source: a file or a folder.
        target: a new or empty folder.
        key: the secret behind pseudonyms, UIDs and shifts; by default deid.key in medray's home, made if missing.
        shift_dates: move all dates of a patient by the same days, instead of removing them.
        allow_burned_in: take images that may show a name in their pixels, too.
    """
    from datetime import UTC, datetime

    from medray.cluster import home, parallel_map
    from medray.imaging.deid.keyed import load_key
    from medray.imaging.deid.tree import deidentify, write_names
    from medray.imaging.deid.types import Profile

    if key is not None and not key.is_file():
        raise ConfigError([f"--key: '{key}' does not exist; without --key medray makes one in {home()}"])
    secret = key.absolute() if key else home() / "deid.key"
    if secret.resolve().is_relative_to(target.resolve()):
        raise ConfigError(["--key: it lies in the target; whoever gets the images would get the key"])
    try:
        profile = Profile(load_key(secret), "shift" if shift_dates else "remove", allow_burned_in)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    report = deidentify(source, target, profile, parallel_map)
    names = secret.parent / f"deid-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.csv"
    write_names(names, report.files)
    outcome = Result(
        written=report.count("written"),
        refused=report.refused,
        left_out=report.count("left_out"),
        warnings=report.warnings,
        target=str(target),
        names=str(names),
    )
    refused, written = report.count("refused"), report.count("written")
    sys.stderr.write(
        f"{written} files written to {target}, {refused} refused {report.refused or ''}, "
        f"{report.count('left_out')} of other kinds left out; "
        f"which and why: {names} (keep it and the key apart from the images)\n"
    )
    if "face_visible" in report.warnings:
        sys.stderr.write(f"{report.warnings['face_visible']} files show a head: a face can be made of their voxels\n")
    outcome.exit_code = DATA if not written else PARTIAL if refused else 0
    return outcome


def erase(*, subject: str, also: tuple[Path, ...] = (), dry_run: bool = False, tracking: str | None = None) -> Result:
    """Remove a person from stores, runs and artifacts, and write a proof. The source data stay where they are.

    Args:
        subject: a subject id, a case id, or the pseudonym of either.
        also: a folder with reports or predictions outside medray's home; may be given several times.
        dry_run: only say what would be removed.
        tracking: the MLflow server; by default $MLFLOW_TRACKING_URI or the embedded one.
    """
    from medray.tracking.erase import erase as run

    outcome = Result(run(subject, tracking, also, dry_run))
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {item['what']}: {item['place']}" for item in outcome["removed"]]
    lines += [f"{item.get('model') or item['run']}: {item['fate']}" for item in outcome["models"]]
    lines += [f"left: {text}" for text in outcome["left"]]
    lines += [f"source data are untouched in {place}" for place in outcome["sources"]["datasets"]]
    lines += [f"proof: {outcome['proof']}"] if outcome["proof"] else []
    if not outcome["found"]:
        lines.insert(0, "medray keeps nothing of that subject")
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return outcome


def anonymity(table: Path, *, quasi: Columns, sensitive: str | None = None, k: int = 5) -> Result:
    """How well a CSV of metadata hides its people: k-anonymity, l-diversity.

    Args:
        table: a CSV with a header.
        quasi: columns that others may know, as in age_band,sex,site.
        sensitive: the column that nobody should learn, for l-diversity.
        k: the smallest group that is enough; smaller ones are listed by line.
    """
    import csv

    from medray.metrics.anonymity import k_anonymity, l_diversity, smallest_groups

    if not table.is_file():
        raise ConfigError([f"'{table}' does not exist"])
    with table.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
        known = list(reader.fieldnames or ())
    columns = [name.strip() for name in quasi.split(",")]
    missing = [name for name in (*columns, *([sensitive] if sensitive else [])) if name not in known]
    if missing or not rows:
        raise ConfigError(
            [f"'{table}' has no column {', '.join(missing)}; it has {', '.join(known)}"] if missing else ["no rows"]
        )
    small = smallest_groups(rows, columns, k)
    for group in small:
        lines = ", ".join(str(row + 2) for row in group.rows)
        sys.stderr.write(f"{len(group.rows)} alike: {' / '.join(group.values)} (line {lines})\n")
    outcome = Result(rows=len(rows), k=k_anonymity(rows, columns), groups_below=len(small))
    outcome["rows_at_risk"] = sum(len(group.rows) for group in small)
    outcome["l"] = l_diversity(rows, columns, sensitive) if sensitive else None
    outcome.exit_code = DATA if small else 0
    return outcome
