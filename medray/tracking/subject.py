"""Who is meant by an id: the names, pseudonyms and files of one person in all that medray knows."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from medray.config import ConfigError, load
from medray.datasets.scan import scan
from medray.pipeline.hashes import files_of
from medray.remote import mirrored
from medray.sections.base import url_of
from medray.tracking.pseudonyms import pseudonym
from medray.types import CaseRef, InputError

Rows = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Subject:
    """One person, as datasets and runs call them."""

    names: frozenset[str]
    """Ids in clear: what was asked for, the subject, the cases."""
    people: frozenset[str]
    """Those of them that name the person: a folder of that name is theirs, while many have a file 'scan.nii.gz'."""
    codes: frozenset[str]
    """Pseudonyms of what was asked for and of the subject."""
    cases: Mapping[Path, frozenset[str]]
    """Pseudonyms of their cases in each record; another record may give the same name to another person's case."""
    files: frozenset[Path]
    """Images and label maps of theirs, which stay where they are."""
    roots: tuple[str, ...]
    """Datasets that hold them."""
    unread: tuple[str, ...]
    """Records whose dataset could not be looked at, and why."""

    @property
    def found(self) -> bool:
        """Whether any run or dataset knows them."""
        return bool(self.files) or any(self.cases.values())

    def codes_in(self, record: Path) -> frozenset[str]:
        """What stands for them in the tables of a record."""
        return self.codes | self.cases.get(record, frozenset())

    def names_path(self, text: str) -> bool:
        """Whether a cell or path is one of their ids or files, or has the person's name as a folder or a stem."""
        path = PurePath(text)
        parts = {*path.parts, path.stem, path.name.removesuffix(".nii.gz")}
        ends = any("/" in name and text.endswith(f"/{name}") for name in self.names)
        return ends or text in self.names or Path(text) in self.files or not self.people.isdisjoint(parts)


def find_subject(asked: str, records: Sequence[Path], secret: bytes) -> Subject:
    """The person whom a subject id, a case id or the pseudonym of either names.

    Args:
        asked: the id.
        records: folders of runs (or their artifacts) with experiment.yaml, split.csv and cases.csv, as far as they got.
        secret: the key of the pseudonyms.
    """
    scans: dict[str, Scan] = {}
    seen = {record: _scan(record, scans) for record in records}
    links = {record: _links(record, seen[record], secret) for record in records}
    start = {asked, pseudonym(asked, secret)}
    subjects = {group for rows in links.values() for case, group in rows if start & {case, group}}
    cases = {
        record: frozenset(case for case, group in rows if group in subjects or case in start)
        for record, rows in links.items()
    }
    clear = {row["pseudonym"]: row["case_id"] for record in records for row in read_csv(record / "cases.csv")}
    clear |= {pseudonym(name, secret): name for scan in scans.values() for ref in scan.refs for name in ids_of(ref)}
    theirs = {
        place: [ref for ref in scan.refs if pseudonym(ref.subject, secret) in subjects] for place, scan in scans.items()
    }
    people = frozenset(clear.get(code, asked) for code in subjects) or frozenset({asked})
    files = {file for refs in theirs.values() for ref in refs for file in all_files(ref)}
    # Where a dataset is gone, its files may still be remembered by their old places.
    files |= {
        Path(seen[record].root) / clear[code] for record, codes in cases.items() for code in codes if code in clear
    }
    return Subject(
        names=people | {asked} | {clear[code] for codes in cases.values() for code in codes if code in clear},
        people=people,
        codes=frozenset(subjects | start - {asked} | ({asked} & clear.keys())),
        cases=cases,
        files=frozenset(files),
        roots=tuple(sorted({scans[place].root for place, refs in theirs.items() if refs})),
        unread=tuple(f"{record.name}: {scan.problem}" for record, scan in seen.items() if scan.problem),
    )


@dataclass(frozen=True, slots=True)
class Scan:
    """The dataset of a run as it is today."""

    root: str = ""
    refs: tuple[CaseRef, ...] = ()
    problem: str = ""


def ids_of(ref: CaseRef) -> tuple[str, str]:
    """Case and subject."""
    return ref.case_id, ref.subject


def all_files(ref: CaseRef) -> tuple[Path, ...]:
    """The image and the label map of a case."""
    return (*files_of(ref), ref.label_map) if ref.label_map else files_of(ref)


def _scan(record: Path, scans: dict[str, Scan]) -> Scan:
    """The dataset of a record, scanned once for all records that share it; phantoms are nobody's."""
    if not (record / "experiment.yaml").is_file():
        return Scan()
    try:
        section = load(record / "experiment.yaml").dataset
    except (ConfigError, OSError):
        return Scan(problem="its experiment cannot be read")
    key = section.model_dump_json()
    if key not in scans:
        place = getattr(section, "path", None)
        root = section.name if place is None else url_of(place)
        try:
            scans[key] = Scan(root, () if section.name == "phantom" else scan(mirrored(section)).refs)
        except (ConfigError, InputError, OSError) as error:
            scans[key] = Scan(root, problem=f"its dataset cannot be looked at ({type(error).__name__})")
    return scans[key]


def _links(record: Path, dataset: Scan, secret: bytes) -> set[tuple[str, str]]:
    """(case, subject) pseudonyms in a record: of its split, and of its dataset, where refused cases are too."""
    rows = {(row["case"], row["subject"] or row["case"]) for row in read_csv(split_of(record))}
    return rows | {(pseudonym(ref.case_id, secret), pseudonym(ref.subject, secret)) for ref in dataset.refs}


def split_of(record: Path) -> Path:
    """The split table of a run's folder, or of its artifacts."""
    inner = record / "shared" / "split.csv"
    return inner if inner.is_file() else record / "split.csv"


def read_csv(file: Path) -> Rows:
    """The rows of a table, none where there is no file."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return list(csv.DictReader(stream))


def cached_hashes(cache: Path, subject: Subject) -> dict[str, str]:
    """Path -> sha256 of the subject's files that the cache of hashes remembers."""
    if not cache.is_file():
        return {}
    with contextlib.closing(sqlite3.connect(cache, timeout=60)) as table:
        rows = table.execute("select path, sha256 from hash").fetchall()
    return {path: sha256 for path, sha256 in rows if subject.names_path(path)}


def forget_hashes(cache: Path, paths: Iterable[str]) -> None:
    """Delete rows of the cache, and their bytes in the file."""
    with contextlib.closing(sqlite3.connect(cache, timeout=60, isolation_level=None)) as table:
        table.execute("pragma secure_delete = on")
        table.executemany("delete from hash where path = ?", [(path,) for path in paths])
        table.execute("vacuum")
        table.execute("pragma wal_checkpoint(truncate)")


def source_hashes(subject: Subject) -> set[str]:
    """sha256 of the subject's files that are there; no cache of hashes, which would remember them, is used."""
    found = set()
    for file in subject.files:
        with contextlib.suppress(OSError), file.open("rb") as stream:
            found.add(hashlib.file_digest(stream, "sha256").hexdigest())
    return found
