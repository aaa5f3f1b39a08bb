"""`medray check`: which dataset is meant, where the report goes, what a person sees meanwhile, and what to do next."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medray.cluster import Mapper, home
from medray.config import EXPERIMENTS, ConfigError, Experiment, load, plugins
from medray.imaging import reader
from medray.pipeline.check import Check, check
from medray.pipeline.hashes import HASHES
from medray.pipeline.integrity import dataset_files, write_manifest
from medray.pipeline.survey import Read
from medray.pipeline.verdict import as_csv, as_page, as_text, headline, printable
from medray.reports.page import render
from medray.sections.base import is_remote, url_of

NEUTRAL = ("split={}", "preprocess={}", "augment={}", "dataset.name=auto")
"""What a path alone means: none of the default experiment's own data settings, and whatever layout is there."""
SAY_EVERY_S = 10.0
REDRAW_EVERY_S = 0.2
MOST_PIXELS, MOST_VOXELS = 224, 96
"""Longest edge of the grid that is proposed, for pictures and for volumes."""


def examine(
    data: str,
    settings: Sequence[str] = (),
    out: Path | None = None,
    manifest: Path | None = None,
    mapper: Mapper[Any, Any] = map,
    read: Read = reader.read,
) -> dict[str, Any]:
    """Check a dataset, write check.csv and check.html, tell a person on stderr, and return the result in numbers.

    Args:
        data: a path to a dataset, or an experiment (.yaml, or a packaged name).
        settings: key=value changes to it.
        out: folder of the report, made if need be; by default ./check-NAME, never inside the data.
        manifest: where to write the sha256 of every file that the dataset uses, for dataset.manifest.
        mapper: as for `check`.
        read: as for `check`.

    Raises:
        ConfigError: wrong settings, no such data, `out` inside the data, or `manifest` not above all of the files.
    """
    if manifest is not None and not manifest.absolute().parent.is_dir():
        raise ConfigError([f"--manifest: there is no folder '{manifest.absolute().parent}'"])
    experiment = experiment_of(data, settings)
    place: Path | None = getattr(experiment.dataset, "path", None)
    folder = report_folder(place, experiment.name, out)
    done = check(experiment, mapper, read, Meter())
    when, command = next_command(done, data, settings)
    sys.stderr.write(f"check of {printable(str(place or experiment.name))}\n{as_text(done)}")
    folder.mkdir(parents=True, exist_ok=True)
    files = {"csv": folder / "check.csv", "html": folder / "check.html"}
    # Names of files need not be valid Unicode.
    files["csv"].write_text(as_csv(done), encoding="utf-8", errors="backslashreplace")
    page = as_page(done, str(place or experiment.name), command, mapper, read)
    files["html"].write_text(render(page), encoding="utf-8", errors="backslashreplace")
    if manifest is not None:
        _list_files(done, manifest)
    sys.stderr.write(
        f"report: {files['html']}   each case: {files['csv']}\nnext{f', {when}' * bool(when)}:\n  {command}\n"
    )
    return {
        "verdict": headline(done),
        "ready": not done.errors and bool(done.survey.readable),
        "cases": len(done.survey.cases),
        "readable": len(done.survey.readable),
        "errors": done.errors,
        "warnings": len(done.findings) - done.errors,
        "findings": dict(Counter(finding.code for finding in done.findings)),
        "csv": str(files["csv"]),
        "html": str(files["html"]),
        "next": command,
    }


def _list_files(done: Check, manifest: Path) -> None:
    """Write the manifest of the checked dataset; its names are relative to where it lies."""
    root, files = manifest.absolute().parent, dataset_files(done.survey.dataset.refs)
    if not all(file.is_relative_to(root) for file in files):
        raise ConfigError([f"--manifest: files of the dataset lie outside of '{root}'; put it into or above the data"])
    cache = home() / "stores" / HASHES
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(files, root, manifest.absolute(), cache)
    sys.stderr.write(f"manifest: {manifest}; a training verifies it with dataset.manifest={manifest}\n")


def experiment_of(data: str, settings: Sequence[str]) -> Experiment:
    """The experiment that `data` means: a path that exists is a dataset, unless it ends in .yaml.

    Raises:
        ConfigError: neither a path nor an experiment, or wrong settings.
    """
    path = Path(data).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return load(path, settings)
    if path.exists() or is_remote(path):
        # As JSON: a path may hold what YAML reads as something else.
        return load(None, [*NEUTRAL, f"dataset.path={json.dumps(_as_setting(path))}", *settings])
    packaged = sorted(file.stem for file in EXPERIMENTS.glob("*.yaml"))
    if data in packaged:
        return load(data, settings)
    known = ", ".join(packaged)
    raise ConfigError(
        [f"'{data}' does not exist (looked in {Path.cwd()}), and is no experiment; packaged are: {known}"]
    )


def _as_setting(path: Path) -> str:
    """A path as dataset.path takes it, from any working folder."""
    return url_of(path) if is_remote(path) else str(path.absolute())


def report_folder(data: Path | None, name: str, out: Path | None) -> Path:
    """Where the report goes: `out`, else check-NAME here, or in medray's home where here is inside the data.

    Raises:
        ConfigError: `out` is inside the data, where a later scan would meet it.
    """
    root = data.parent if data and data.is_file() else data
    if out is not None:
        if root and out.absolute().resolve().is_relative_to(root.resolve()):
            raise ConfigError([f"--out: '{out}' lies inside the data; name a folder outside of it"])
        return out.absolute()
    known = data.resolve() if data else Path(name)
    title = f"check-{(known.stem if known.is_file() else known.name) or name}"
    here = Path.cwd() / title
    # A table in the working folder makes that the data's folder: the report beside it is what one expects.
    inside = data is not None and data.is_dir() and here.resolve().is_relative_to(data.resolve())
    return home() / "checks" / title if inside else here


def next_command(done: Check, data: str, settings: Sequence[str]) -> tuple[str, str]:
    """(when, what) to type next: train, or this check again when the errors are mended."""
    words = [shlex.quote(word) for word in settings]
    if done.errors or not done.survey.readable:
        return "when that is mended", " ".join(["medray check", shlex.quote(data), *words])
    dataset = done.survey.dataset
    labelled = dataset.multilabel or any(ref.target for ref in dataset.refs)
    if not labelled and "segmentation" not in plugins("tasks"):
        return f"no class per case, and the tasks are so far {', '.join(plugins('tasks'))}", "medray config list"
    path = Path(data).expanduser()
    if not (path.exists() or is_remote(path)) or path.suffix in (".yaml", ".yml"):
        return "", " ".join(["medray train", shlex.quote(data), *words])
    given = {word.partition("=")[0].split(".")[0] for word in settings}
    named = [] if any(word.startswith("dataset.name=") for word in settings) else ["dataset.name=auto"]
    named.append(shlex.quote(f"dataset.path={_as_setting(path)}"))
    # The default experiment is made for its phantoms: another data set needs its own grid.
    title = re.sub(r"[^A-Za-z0-9_.-]", "-", path.absolute().name.split(".")[0]).lstrip("_.-") or "mine"
    fitting = {"name": title, "preprocess": _preprocess_for(done), "augment": "{}"}
    words += [shlex.quote(f"{section}={value}") for section, value in fitting.items() if section not in given]
    return "", " ".join(["medray train", *named, *words])


def _preprocess_for(done: Check) -> str:
    """A grid on which most images are shown whole and a network of any family fits: in multiples of 32."""
    shapes = [done.survey.cases[row].shape for row in done.survey.readable]
    rank = Counter(map(len, shapes)).most_common(1)[0][0]
    edges = np.median([shape for shape in shapes if len(shape) == rank], axis=0)
    most = MOST_PIXELS if rank == 2 else MOST_VOXELS
    size = [min(most, max(32, 32 * round(edge / 32))) for edge in edges.tolist()]
    return f"{{channels: gray, size: {size}, intensity: {{method: percentile}}}}"


class Meter:
    """Cases per second and the time left, on stderr: a line that is written over on a terminal, else one in a while."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` cases are read."""
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if done < total and now - self._said < (REDRAW_EVERY_S if terminal else SAY_EVERY_S):
            return
        self._said = now
        rate = done / max(1e-9, now - self._began)
        minutes, seconds = divmod(round((total - done) / rate), 60)
        line = f"read {done}/{total} cases, {rate:.1f} cases/s, {minutes}:{seconds:02d} left"
        if terminal:
            sys.stderr.write(f"\r{line:60}" if done < total else f"\r{'':60}\r")
            sys.stderr.flush()
        elif done < total:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
