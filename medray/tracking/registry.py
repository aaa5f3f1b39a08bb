"""The model registry: versions of a model, their aliases `candidate` and `champion`, and the way to a bundle."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from medray.bundle import load
from medray.cluster import home
from medray.tracking.run import RunRecord

CHAMPION = "champion"
CANDIDATE = "candidate"
PREVIOUS = "medray.previous"
"""Tag of a champion: the versions that were it before, the last one first."""
MOST = 20


class RegistryError(LookupError):
    """The registry has no such model, version or alias; the message says what there is."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides who is champion: how well, by what, on which data."""

    monitor: str
    score: float
    sign: int
    """1 where more is better, -1 where less is."""
    data: str
    """Fingerprint of the data."""
    split: str
    """Fingerprint of the validation and test cases."""

    def tags(self) -> dict[str, str]:
        """As tags of a model version."""
        return {
            "medray.monitor": self.monitor,
            "medray.score": repr(self.score),
            "medray.sign": str(self.sign),
            "medray.data": self.data,
            "medray.split": self.split,
        }

    @staticmethod
    def of(version: ModelVersion) -> Standing:
        """As read from a model version's tags."""
        tags: Mapping[str, str] = version.tags
        return Standing(
            tags["medray.monitor"],
            float(tags["medray.score"]),
            int(tags["medray.sign"]),
            tags["medray.data"],
            tags["medray.split"],
        )

    def comparable(self, other: Standing) -> bool:
        """Whether the two scores are of the same metric on the same cases."""
        return (self.monitor, self.data, self.split) == (other.monitor, other.data, other.split)

    def beats(self, other_score: float) -> bool:
        """Whether this score is better; any is better than an undefined one."""
        return self.sign * self.score > self.sign * other_score or other_score != other_score


def register(record: RunRecord, name: str, bundle: Path, standing: Standing) -> str:
    """Log the bundle with its run, register it as the newest version and as `candidate`; returns the version."""
    mlflow = record.client
    record.log_folder(bundle, "bundle")
    try:
        mlflow.get_registered_model(name)
    except MlflowException as error:
        _only_if_missing(error)
        mlflow.create_registered_model(name)
    tags = {**standing.tags(), "medray.digest": load(bundle).digest}
    source = f"runs:/{record.run_id}/bundle"
    version = str(mlflow.create_model_version(name, source, record.run_id, tags=tags).version)
    mlflow.set_registered_model_alias(name, CANDIDATE, version)
    return version


def find(mlflow: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that `alias` names (a number names itself), or None."""
    try:
        if alias.isdigit():
            return mlflow.get_model_version(name, alias)
        return mlflow.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        _only_if_missing(error)
        return None


def _only_if_missing(error: MlflowException) -> None:
    """A registry that cannot be asked is not one that has nothing: anything but 'there is none' goes on."""
    if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        raise error


def promote(mlflow: MlflowClient, name: str, version: str, reason: str) -> None:
    """Make a version the champion and write down why, and who was it before."""
    before = find(mlflow, name, CHAMPION)
    if before is not None and str(before.version) != version:
        mlflow.set_model_version_tag(name, version, PREVIOUS, ",".join([str(before.version), *_before(before)][:MOST]))
    mlflow.set_model_version_tag(name, version, "medray.promoted", reason)
    mlflow.set_registered_model_alias(name, CHAMPION, version)


def rollback(mlflow: MlflowClient, name: str, reason: str) -> tuple[str, str]:
    """Make the champion before this one the champion again; both versions, the old one first.

    Raises:
        RegistryError: there is none.
    """
    now = find(mlflow, name, CHAMPION)
    if now is None:
        raise RegistryError(f"the registry has no '{name}@{CHAMPION}'; there are: {_known(mlflow)}")
    before, *earlier = [version for version in _before(now) if find(mlflow, name, version) is not None] or [""]
    if not before:
        raise RegistryError(f"{name}/{now.version} has no champion before it; medray promote {name}@VERSION names one")
    mlflow.set_model_version_tag(name, str(now.version), "medray.rolled_back", reason)
    mlflow.set_model_version_tag(name, before, PREVIOUS, ",".join(earlier))
    mlflow.set_registered_model_alias(name, CHAMPION, before)
    return before, str(now.version)


def _before(version: ModelVersion) -> list[str]:
    """The champions before a version, the last one first."""
    return [number for number in version.tags.get(PREVIOUS, "").split(",") if number]


def newest_champion(mlflow: MlflowClient) -> str:
    """`name@champion` of the champion that was registered last, over all models.

    Raises:
        RegistryError: there is none.
    """
    found = [
        version
        for model in mlflow.search_registered_models()
        if (version := find(mlflow, model.name, CHAMPION)) is not None
    ]
    if not found:
        raise RegistryError("the registry has no champion yet; train one: uv run jobs/train.py")
    return f"{max(found, key=lambda version: version.creation_timestamp).name}@{CHAMPION}"


def fetch(mlflow: MlflowClient, reference: str) -> tuple[Path, str]:
    """The bundle of `name@alias` or `name@3` on this machine, checked against the registry, and `name/version`.

    Raises:
        RegistryError: no such model or alias.
        BundleError: the files are not those that were registered.
    """
    match = re.fullmatch(r"([^@]+)@([^@]+)", reference)
    if not match:
        raise RegistryError(f"'{reference}' names no model; write name@champion, name@candidate or name@3")
    name, alias = match.groups()
    version = find(mlflow, name, alias)
    if version is None:
        raise RegistryError(f"the registry has no '{reference}'; there are: {_known(mlflow)}")
    if "medray.digest" not in version.tags:
        raise RegistryError(f"{name}/{version.version} was not registered by medray, so nothing says what it should be")
    folder = home() / "models" / name / f"{version.version}-{version.tags['medray.digest'][:16]}"
    if not folder.is_dir():
        _download(mlflow, version, folder)
    if load(folder).digest != version.tags["medray.digest"]:
        raise RegistryError(f"the files of {name}/{version.version} are not those that were registered; not used")
    return folder, f"{name}/{version.version}"


def _download(mlflow: MlflowClient, version: ModelVersion, folder: Path) -> None:
    """Copy a version's bundle here; the folder appears only when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".download-", dir=folder.parent))
    try:
        place = download_artifacts(
            artifact_uri=f"runs:/{version.run_id}/bundle", dst_path=str(temporary), tracking_uri=mlflow.tracking_uri
        )
        Path(place).rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _known(mlflow: MlflowClient) -> str:
    """All model names with their aliases."""
    names = [
        f"{model.name} ({', '.join(f'@{alias}' for alias in sorted(model.aliases))})"
        for model in mlflow.search_registered_models()
    ]
    return "; ".join(names) or "none"
