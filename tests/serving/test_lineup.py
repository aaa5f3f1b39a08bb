"""Which versions are served: what an alias means is asked once, and remembered for the day when nobody can be asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from prediction_phantom import classifier

from medray.bundle import SUMS, BundleError
from medray.config import ConfigError
from medray.serving.lineup import Wish, lineup, of_bundle, of_registry
from medray.serving.messages import Entry
from medray.tracking import registry
from medray.tracking.registry import RegistryError, Standing
from medray.tracking.run import client, start

STANDING = Standing("val/auroc", 0.7, 1, "d", "s")
Register = Callable[..., str]


@pytest.fixture
def mlflow(database: Path) -> MlflowClient:
    return client(f"sqlite:///{database}")


@pytest.fixture
def register(mlflow: MlflowClient, tmp_path: Path) -> Register:
    """Registers a small model of its own; its version."""

    def made(name: str = "net", champion: bool = False) -> str:
        seed = len(list(tmp_path.iterdir()))
        bundle = classifier(tmp_path / f"{name}-{seed}", seed=seed)
        version = registry.register(start(mlflow, "exp", "run"), name, bundle.folder, STANDING)
        if champion:
            registry.promote(mlflow, name, version, "a test")
        return version

    return made


def down(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    """From now on the registry does not answer."""

    def nobody(*_: object, **__: object) -> Any:
        raise error or ConnectionError("refused")

    monkeypatch.setattr("medray.tracking.run.client", nobody)


# The registry answers


def test_an_alias_becomes_a_version_whose_bundle_is_here(register: Register, home: Path) -> None:
    register(champion=True)
    register()
    (champion,) = lineup(Wish(models=("net@champion",)))
    (candidate,) = lineup(Wish(models=("net@candidate",)))
    assert (champion.name, champion.version, champion.alias) == ("net", "1", "champion")
    assert (candidate.version, candidate.alias) == ("2", "candidate")
    assert champion.digest != candidate.digest
    assert Path(champion.folder).is_relative_to(home)
    assert of_bundle(Path(champion.folder)).digest == champion.digest
    assert (champion.part, champion.share) == ("serving", 1.0)


def test_a_name_alone_means_its_champion(register: Register) -> None:
    register(champion=True)
    register()
    assert lineup(Wish(models=("net",))) == lineup(Wish(models=("net@champion",)))


def test_nothing_asked_for_is_the_newest_champion_and_with_a_bundle_the_bundle_alone(
    register: Register, tmp_path: Path
) -> None:
    register("old", champion=True)
    register("new", champion=True)
    register("none")
    assert [one.reference for one in lineup(Wish())] == ["new/1"]
    folder = classifier(tmp_path / "mine").folder
    (mine,) = lineup(Wish(bundles=(folder,)))
    assert (mine.name, mine.version, mine.alias) == ("mine", mine.digest[:12], "")
    both = lineup(Wish(bundles=(folder,), models=("old",)))
    assert [one.name for one in both] == ["mine", "old"], "the first is the default"


def test_a_version_by_its_number_has_no_alias(register: Register) -> None:
    register(champion=True)
    (one,) = lineup(Wish(models=("net@1",)))
    assert one.alias == ""


@pytest.mark.parametrize("reference", ["nobody@champion", "net@champion", "net@7"])
def test_what_the_registry_does_not_have_is_no_matter_of_memory(
    register: Register, mlflow: MlflowClient, reference: str
) -> None:
    """What was served once, and was taken out of the registry, does not come back."""
    register(champion=True)
    lineup(Wish(models=("net@champion",)))
    mlflow.delete_registered_model_alias("net", "champion")
    with pytest.raises(RegistryError, match="has no"):
        lineup(Wish(models=(reference,)))


def test_without_any_champion_it_is_said_how_to_get_one(mlflow: MlflowClient) -> None:  # noqa: ARG001
    with pytest.raises(RegistryError, match="no champion yet"):
        lineup(Wish())


@pytest.mark.parametrize("twice", [("net@1", "net@champion"), ("net", "net"), ("net@1", "net@1")])
def test_the_same_version_twice_is_refused(register: Register, twice: tuple[str, str]) -> None:
    register(champion=True)
    with pytest.raises(ConfigError, match="net/1 is served already"):
        lineup(Wish(models=twice))


def test_two_versions_of_a_model_can_be_served(register: Register) -> None:
    register(champion=True)
    register()
    assert [one.reference for one in lineup(Wish(models=("net@2", "net@1")))] == ["net/2", "net/1"]


# Canary and shadow


def test_a_canary_and_a_shadow_are_other_versions_of_what_is_served(register: Register) -> None:
    register(champion=True)
    register()
    register()
    found = lineup(Wish(models=("net",), canary="net@2", share=0.3, shadow="net@candidate"))
    assert [(one.version, one.part, one.share) for one in found] == [
        ("1", "serving", 1.0),
        ("2", "canary", 0.3),
        ("3", "shadow", 1.0),
    ]


@pytest.mark.parametrize("part", ["canary", "shadow"])
def test_beside_what_is_not_served_there_is_no_other(register: Register, part: str) -> None:
    register(champion=True)
    register("other", champion=True)
    with pytest.raises(ConfigError, match=f"--{part}: 'other' is not served"):
        lineup(replace(Wish(models=("net",)), **{part: "other@1"}))


@pytest.mark.parametrize("wish", [{"canary": "net@1"}, {"shadow": "net"}, {"canary": "net@2", "shadow": "net@2"}])
def test_a_version_is_beside_no_other_than_another(register: Register, wish: dict[str, Any]) -> None:
    register(champion=True)
    register()
    with pytest.raises(ConfigError, match="is served already"):
        lineup(Wish(models=("net",), **wish))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_no_share_is_refused(register: Register, share: float) -> None:
    register(champion=True)
    register()
    with pytest.raises(ConfigError, match="--share"):
        lineup(Wish(models=("net",), canary="net@2", share=share))


# The registry is down


@pytest.mark.parametrize(
    "error", [ConnectionError("refused"), MlflowException("503"), TimeoutError(), OSError(5, "io")]
)
@pytest.mark.parametrize("reference", ["net@champion", "net", "net@1", ""])
def test_what_was_served_last_stands_in_for_a_registry_that_is_down(
    register: Register, monkeypatch: pytest.MonkeyPatch, reference: str, error: Exception
) -> None:
    register(champion=True)
    wish = Wish(models=(reference,) if reference else ())
    before = lineup(wish)
    down(monkeypatch, error)
    assert lineup(wish) == before


def test_a_registry_that_fails_in_the_middle_is_down_too(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    register(champion=True)
    before = lineup(Wish(models=("net",)))

    def broken(*_: object) -> Any:
        raise MlflowException("the database is locked")

    monkeypatch.setattr(registry, "find", broken)
    assert lineup(Wish(models=("net",))) == before


def test_the_newest_answer_is_remembered(register: Register, mlflow: MlflowClient, monkeypatch: Any) -> None:
    register(champion=True)
    lineup(Wish(models=("net@champion",)))
    registry.promote(mlflow, "net", register(), "better")
    newest = lineup(Wish(models=("net@champion",)))
    down(monkeypatch)
    assert lineup(Wish(models=("net@champion",))) == newest
    assert newest[0].version == "2"


def test_what_was_never_served_cannot_be_while_the_registry_is_down(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(champion=True)
    lineup(Wish(models=("net@champion",)))
    down(monkeypatch)
    for reference in ("other", "net@candidate"):
        with pytest.raises(ConfigError, match=rf"cannot be asked \(ConnectionError\), and no .* of '{reference}'"):
            lineup(Wish(models=(reference,)))
    with pytest.raises(ConfigError, match="no verified copy of 'the champion' is here"):
        lineup(Wish())


@pytest.mark.parametrize("change", ["weights", "card and sums", "gone"])
def test_a_local_copy_that_was_altered_does_not_stand_in(
    register: Register, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    register(champion=True)
    (before,) = lineup(Wish(models=("net",)))
    folder = Path(before.folder)
    if change == "weights":
        content = bytearray((folder / "weights.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "weights.safetensors").write_bytes(content)
    elif change == "gone":
        folder.rename(tmp_path / "elsewhere")
    else:  # another whole bundle in its place
        other = classifier(tmp_path / "other", seed=99).folder
        for file in other.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        assert (folder / SUMS).read_bytes() == (other / SUMS).read_bytes()
    down(monkeypatch)
    with pytest.raises((ConfigError, BundleError)):
        lineup(Wish(models=("net",)))


def test_a_memory_that_cannot_be_read_is_none(register: Register, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(champion=True)
    lineup(Wish(models=("net",)))
    (file,) = (home / "models" / ".resolved").iterdir()
    file.write_text(file.read_text()[:20])
    down(monkeypatch)
    with pytest.raises(ConfigError):
        lineup(Wish(models=("net",)))


def test_nothing_half_written_is_left(register: Register, home: Path) -> None:
    register(champion=True)
    lineup(Wish(models=("net",)))
    (file,) = (home / "models" / ".resolved").iterdir()
    plain = json.loads(file.read_text())
    assert Entry.of(plain) == of_registry("net", None)


def test_a_model_that_is_called_champion_is_not_the_champion(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(champion=True)
    lineup(Wish())
    down(monkeypatch)
    with pytest.raises(ConfigError, match="no verified copy of 'champion'"):
        lineup(Wish(models=("champion",)))


def test_what_one_registry_said_does_not_stand_in_for_another(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(champion=True)
    lineup(Wish(models=("net",)))
    down(monkeypatch)
    with pytest.raises(ConfigError):
        lineup(Wish(models=("net",), tracking="https://another.example"))


def test_a_version_that_medray_did_not_register_is_not_taken_for_silence(
    register: Register, mlflow: MlflowClient
) -> None:
    register(champion=True)
    lineup(Wish(models=("net@champion",)))
    run = mlflow.get_model_version("net", "1").run_id
    foreign = str(mlflow.create_model_version("net", f"runs:/{run}/bundle", run).version)
    mlflow.set_registered_model_alias("net", "champion", foreign)
    with pytest.raises((RegistryError, BundleError)):
        lineup(Wish(models=("net@champion",)))


# Bundles


def test_two_bundles_of_one_name_are_told_apart_by_their_bytes(tmp_path: Path) -> None:
    folders = [classifier(tmp_path / str(seed) / "net", seed=seed).folder for seed in (1, 2)]
    found = lineup(Wish(bundles=tuple(folders)))
    assert [one.name for one in found] == ["net", "net"]
    assert found[0].version != found[1].version
    with pytest.raises(ConfigError, match="is served already"):
        lineup(Wish(bundles=(folders[0], folders[0])))


def test_a_folder_that_is_no_bundle_or_altered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        lineup(Wish(bundles=(tmp_path,)))
    folder = classifier(tmp_path / "net").folder
    (folder / "card.json").write_text((folder / "card.json").read_text() + " ")
    with pytest.raises(BundleError, match="altered"):
        lineup(Wish(bundles=(folder,)))


def test_a_relative_folder_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = classifier(tmp_path / "net").folder
    monkeypatch.chdir(tmp_path)
    (one,) = lineup(Wish(bundles=(Path("net"),)))
    assert one.folder == str(folder)
