"""Erasure of one person from what medray keeps: stores, hashes, runs, artifacts, reports; with a proof.

Weights cannot be unlearned: the models that saw the person are named, for a person to retrain or withdraw.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow.tracking import MlflowClient

from medray.cluster import home
from medray.config import ConfigError
from medray.pipeline.hashes import HASHES
from medray.remote import LISTINGS, LISTS, MIRRORS, forget
from medray.tracking import pseudonyms
from medray.tracking.run import client
from medray.tracking.subject import (
    Subject,
    cached_hashes,
    find_subject,
    forget_hashes,
    read_csv,
    source_hashes,
    split_of,
)

KEPT_WHOLE = frozenset({"bundle", "checkpoints", "train", "tune"})
"""Folders of weights inside a run; their models are named in the proof."""
NOT_RECORDS = frozenset({"runs", "stores", "models", "erasures", "artifacts", "phantoms", MIRRORS})
SHOWS_PATIENTS = frozenset({"augmented.png", "worst.png"})
ID_COLUMNS = re.compile(r"case|subject|patient|file|path|image|source|target|label_map|twin|other", re.IGNORECASE)
FATES = {
    "train": "trained on the subject: retrain or withdraw",
    "val": "chosen with the subject's help: retrain or withdraw",
    "test": "tested on the subject: evaluate again",
}
NOT_SEARCHED = (
    "the source data, which are never touched; from a bucket they come back with the next training",
    "copies of runs in $MEDRAY_STORAGE",
    "predictions and reports that were written outside medray's home, unless named with --also",
    "Ray's logs in the temporary folder, backups, and other machines",
)


@dataclass(slots=True)
class Erasure:
    """What is being removed; with `dry_run` only listed."""

    subject: Subject
    dry_run: bool
    removed: list[dict[str, Any]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def remove(self, what: str, place: str, content: Path | None, act: Callable[[], None], **more: Any) -> None:
        """Do `act`, unless this is a dry run, and note it with the sha256 of what was there."""
        sha256 = _sha256(content) if content else ""
        self.removed.append({"what": what, "place": place, "sha256_before": sha256, **more})
        if not self.dry_run:
            act()


def erase(
    subject: str, tracking: str | None = None, also: tuple[Path, ...] = (), dry_run: bool = False
) -> dict[str, Any]:
    """Remove a person and write a proof to medray's home, erasures/.

    Args:
        subject: a subject id, a case id, or the pseudonym of either.
        tracking: the MLflow server; by default $MLFLOW_TRACKING_URI or the embedded one.
        also: folders with reports or predictions outside medray's home.
        dry_run: only say what would be removed.

    Raises:
        ConfigError: no subject is named, or a folder of `also` does not exist.

    Returns:
        found, removed, models, left, sources, not_searched, proof: ids in it are pseudonyms.
    """
    if not subject.strip():
        raise ConfigError(["--subject: name the subject, a case, or the pseudonym of either"])
    if lost := [str(folder) for folder in also if not folder.exists()]:
        raise ConfigError([f"--also: {', '.join(lost)} does not exist"])
    secret = pseudonyms.key()
    mlflow = client(tracking)
    artifacts, remote = _artifacts(mlflow)
    runs = [folder for folder in sorted((home() / "runs").glob("*")) if folder.is_dir()]
    others = [folder for folder in sorted(home().glob("*")) if folder.is_dir() and folder.name not in NOT_RECORDS]
    others += [folder.absolute() for folder in also]
    person = find_subject(subject, [*runs, *artifacts.values()], secret)
    job = Erasure(person, dry_run)
    models = _models(mlflow, job, runs, artifacts)
    for folder in dict.fromkeys([*runs, *artifacts.values(), *others]):
        _clean_record(folder, job)
    for table in sorted(home().glob("deid-*.csv")):
        _clean_table(table, job, frozenset())
    for root in (home() / "stores", Path(tempfile.gettempdir()) / "medray-stores"):
        _clean_stores(root, job)
    for file in sorted(person.files):
        if file.is_relative_to(home() / MIRRORS) and file.is_file():
            job.remove("mirror", _shown(file), file, partial(forget, file))
    job.left += [
        f"{_shown(table)}: a table of data elsewhere that names them; mend it at its source"
        for table in sorted((home() / MIRRORS).rglob("*"))
        if table.suffix.lower() in LISTS and LISTINGS not in table.parts and _mentions(table, person.people)
    ]
    job.left += remote + list(person.unread)
    proof = {
        "subject": pseudonyms.pseudonym(subject, secret),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "medray": version("medray"),
        "dry_run": dry_run,
        "found": bool(person.found or job.removed),
        "removed": job.removed,
        "models": models,
        "left": job.left,
        "sources": {"datasets": list(person.roots), "files": len(person.files)},
        "not_searched": list(NOT_SEARCHED),
    }
    return {**proof, "proof": None if dry_run else str(_write_proof(proof))}


def _artifacts(mlflow: MlflowClient) -> tuple[dict[str, Path], list[str]]:
    """MLflow run id -> its artifacts on this machine, and what to say of those that are elsewhere."""
    found: dict[str, Path] = {}
    elsewhere = set[str]()
    for experiment in mlflow.search_experiments():
        for run in _pages(mlflow, experiment.experiment_id):
            place = urlparse(run.info.artifact_uri)
            if place.scheme in ("", "file"):
                folder = Path(unquote(place.path))
                found |= {run.info.run_id: folder} if folder.is_dir() else {}
            else:
                elsewhere.add(f"{place.scheme}://{place.netloc}")
    where = [f"artifacts in {place}: not on this machine, look at split.csv and figures there" for place in elsewhere]
    return found, sorted(where)


def _pages(mlflow: MlflowClient, experiment: str) -> Iterator[Any]:
    token = None
    while True:
        page = mlflow.search_runs([experiment], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _models(mlflow: MlflowClient, job: Erasure, runs: list[Path], artifacts: dict[str, Path]) -> list[dict[str, Any]]:
    """The models that saw the person, registered or not, and how."""
    found = []
    for entry in mlflow.search_model_versions():
        place = artifacts.get(entry.run_id)
        if place and (fate := _fate(place, job.subject)):
            copies = sorted((home() / "models" / entry.name).glob(f"{entry.version}-*"))
            found.append({"model": f"{entry.name}/{entry.version}", "fate": fate, "copies": len(copies)})
    for folder in runs:
        if fate := _fate(folder, job.subject):
            found.append({"run": folder.name, "fate": fate})
        elif not split_of(folder).is_file() and job.subject.cases.get(folder) and _has_weights(folder):
            found.append(
                {"run": folder.name, "fate": "did not finish; its checkpoints may know the subject: delete it"}
            )
    return found


def _has_weights(folder: Path) -> bool:
    return any((folder / name).exists() for name in KEPT_WHOLE)


def _fate(record: Path, subject: Subject) -> str:
    codes = subject.codes_in(record)
    parts = {row["split"] for row in read_csv(split_of(record)) if codes & {row["case"], row["subject"]}}
    return next((fate for part, fate in FATES.items() if part in parts), "")


def _clean_record(folder: Path, job: Erasure) -> None:
    """Rows of tables, then the pages and pictures that may show the person, if there was any row."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not KEPT_WHOLE & set(file.relative_to(folder).parts[:-1])
    ]
    codes = job.subject.codes_in(folder)
    # All, not any: every table is to be cleaned.
    hit = bool(job.subject.cases.get(folder)) + sum(_clean_table(f, job, codes) for f in files if f.suffix == ".csv")
    if not hit:
        return
    for file in files:
        report = not (folder / "experiment.yaml").is_file()
        if file.suffix == ".html" or file.name in SHOWS_PATIENTS or (report and file.suffix in (".png", ".jpg")):
            job.remove("picture", _shown(file), file, file.unlink)
        elif file.suffix in (".json", ".jsonl", ".yaml", ".txt", ".md") and _mentions(file, codes):
            job.left.append(f"{_shown(file)} mentions the subject; it is not a table, look at it")


def _clean_table(file: Path, job: Erasure, codes: frozenset[str]) -> bool:
    """Whether the table had rows of the person, which are gone now."""
    text = file.read_bytes().decode("utf-8", errors="surrogateescape")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if not rows:
        return False
    named = [bool(ID_COLUMNS.search(column)) for column in rows[0]]

    def theirs(row: list[str]) -> bool:
        ids = (cell for cell, is_id in zip(row, named, strict=False) if is_id and cell)
        return not codes.isdisjoint(row) or any(job.subject.names_path(cell) for cell in ids)

    kept = [rows[0], *(row for row in rows[1:] if not theirs(row))]
    if len(kept) == len(rows):
        return False
    job.remove("rows", _shown(file), file, lambda: _rewrite(file, kept), rows=len(rows) - len(kept))
    return True


def _rewrite(file: Path, rows: list[list[str]]) -> None:
    """Whole or not at all, and as private as before."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".erase-")
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)
    shutil.copymode(file, name)
    Path(name).replace(file)


def _mentions(file: Path, codes: frozenset[str]) -> bool:
    text = file.read_text(encoding="utf-8", errors="replace")
    return any(code in text for code in codes)


def _clean_stores(root: Path, job: Erasure) -> None:
    """A store is one array of many people: it goes whole, and is built again from what is left when it is needed."""
    cache = root / HASHES
    known = cached_hashes(cache, job.subject)
    indices = sorted(root.glob("*/index.json"))
    theirs = {*known.values(), *(source_hashes(job.subject) if indices else ())}
    for index in indices:
        sources = json.loads(index.read_text(encoding="utf-8")).get("sources")
        # One that was built before stores said what they hold may hold anybody.
        if not theirs.isdisjoint(sources or ()) or (sources is None and job.subject.found):
            folder = index.parent
            job.remove("store", _shown(folder), folder / "images.npy", lambda folder=folder: shutil.rmtree(folder))  # type: ignore[misc]
    if known:
        job.remove("hashes", _shown(cache), cache, lambda: forget_hashes(cache, known), rows=len(known))


def _shown(file: Path) -> str:
    """A path as the proof shows it: below medray's home where it is there."""
    return file.relative_to(home()).as_posix() if file.is_relative_to(home()) else str(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_proof(proof: dict[str, Any]) -> Path:
    folder = home() / "erasures"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    file = folder / f"{stamp}-{proof['subject']}.json"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        json.dump(proof, stream, indent=2)
    return file
