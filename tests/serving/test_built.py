"""The service as a config of Ray Serve: Serve takes it, and what comes of it is what would have been served here."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient
from prediction_phantom import classifier
from pydantic import PydanticDeprecatedSince20

from medray.sections.service import ServeSection
from medray.serving.lineup import Wish, lineup
from medray.serving.messages import Entry
from medray.tracking import registry
from medray.tracking.registry import Standing
from medray.tracking.run import client, start

with warnings.catch_warnings():  # Ray's own
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    from ray.serve.schema import ServeDeploySchema

    from medray.serving import built


@pytest.fixture
def mlflow(database: Path, tmp_path: Path) -> MlflowClient:
    """A registry with net/1 (champion), net/2, net/3 (candidate) and other/1 (champion)."""
    found = client(f"sqlite:///{database}")
    for seed, name in enumerate(["net", "net", "net", "other"], 1):
        folder = classifier(tmp_path / f"registered{seed}", seed=seed).folder
        version = registry.register(start(found, "exp", "run"), name, folder, Standing("m", 0.5, 1, "d", "s"))
        if version == "1":
            registry.promote(found, name, version, "a test")
    return found


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `build` asks of `application`."""
    calls: list[Any] = []
    monkeypatch.setattr(built, "application", lambda *args: calls.append(args))
    return calls


def again(
    made: list[Any], wish: Wish, cfg: ServeSection | None = None, entries: Sequence[Entry] | None = None
) -> tuple[Sequence[Entry], ServeSection, float, bool]:
    """What the written file builds, on another machine as it were."""
    cfg = cfg or ServeSection()
    text = built.written(built.config(wish, lineup(wish) if entries is None else entries, cfg, 2.5, True))
    plain = yaml.safe_load(text)
    ServeDeploySchema.model_validate(plain)
    (app,) = plain["applications"]
    module, _, name = app["import_path"].partition(":")
    assert (module, name) == (built.__name__, "build")
    built.build(app["args"])
    found: tuple[Sequence[Entry], ServeSection, float, bool] = made[-1]
    return found


def named(entries: Sequence[Entry]) -> list[tuple[str, str, str, str, float]]:
    return [(one.reference, one.digest, one.folder, one.part, one.share) for one in entries]


def test_serve_takes_the_file(tmp_path: Path) -> None:
    wish = Wish(bundles=(classifier(tmp_path / "net").folder,))
    cfg = ServeSection(host="0.0.0.0", port=9000)  # noqa: S104  # nothing listens
    text = built.written(built.config(wish, lineup(wish), cfg, 1.0, False))
    assert text.startswith("# Ray Serve's config of medray")
    assert "Not a medical device" in text.partition("\napplications")[0]
    schema = ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert (schema.http_options.host, schema.http_options.port) == ("0.0.0.0", 9000)  # noqa: S104
    assert schema.applications[0].route_prefix == "/"
    assert not schema.logging_config or not schema.logging_config.enable_access_log, "no names in a log of requests"


@pytest.mark.parametrize(
    "wish",
    [
        Wish(),
        Wish(models=("net",)),
        Wish(models=("other", "net")),
        Wish(models=("net@2", "net@1")),
        Wish(models=("net",), canary="net@2", share=0.25, shadow="net@candidate"),
        Wish(models=("other", "net"), canary="net@candidate"),
    ],
    ids=["champion", "name", "two", "versions", "beside", "second"],
)
def test_what_is_built_is_what_was_resolved(mlflow: MlflowClient, made: list[Any], wish: Wish) -> None:
    """Also when the aliases have moved on since."""
    served = lineup(wish)
    text = built.written(built.config(wish, served, ServeSection(), 1.0, False))
    for name in ("net", "other"):
        folder = Path(served[0].folder)
        newest = registry.register(start(mlflow, "exp", "run"), name, folder, Standing("m", 0.5, 1, "d", "s"))
        registry.promote(mlflow, name, newest, "a test")
    (app,) = yaml.safe_load(text)["applications"]
    built.build(app["args"])
    assert named(made[-1][0]) == named(served)


@pytest.mark.usefixtures("mlflow")
def test_a_model_can_be_asked_by_its_alias_as_here(made: list[Any]) -> None:
    wish = Wish(models=("net@champion",))
    assert [one.alias for one in again(made, wish)[0]] == ["champion"]


def test_bundles_of_this_machine_are_served_from_where_they_are(
    tmp_path: Path, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = classifier(tmp_path / "net").folder
    monkeypatch.chdir(tmp_path)
    entries = again(made, Wish(bundles=(Path("net"),)))[0]
    assert named(entries) == named(lineup(Wish(bundles=(folder,))))


def test_the_first_bundle_stays_the_default(tmp_path: Path, made: list[Any]) -> None:
    wish = Wish(bundles=(classifier(tmp_path / "z", seed=1).folder, classifier(tmp_path / "a", seed=2).folder))
    assert named(again(made, wish)[0]) == named(lineup(wish))


@pytest.mark.usefixtures("mlflow")
def test_bundles_and_models_together(tmp_path: Path, made: list[Any]) -> None:
    wish = Wish(bundles=(classifier(tmp_path / "mine").folder,), models=("net",), canary="net@2")
    assert named(again(made, wish)[0]) == named(lineup(wish))


def test_all_settings_arrive(tmp_path: Path, made: list[Any]) -> None:
    wish = Wish(bundles=(classifier(tmp_path / "net").folder,))
    plain = {
        "port": 8123,
        "max_batch": 3,
        "batching": False,
        "keep_s": 7.5,
        "decoders": 3,
        "access": {"keys": str(tmp_path / "keys.json"), "per_minute": 5, "cors": ["https://a.example"]},
        "audit": {"folder": str(tmp_path / "audit"), "keep_days": 30},
        "drift": {"window": 50},
    }
    cfg = ServeSection.model_validate(plain)
    _, found, cpus, gpu = again(made, wish, cfg)
    assert found == cfg
    assert (cpus, gpu) == (2.5, True)
    assert again(made, wish)[1] == ServeSection()


def test_the_application_itself_can_be_built(tmp_path: Path) -> None:
    wish = Wish(bundles=(classifier(tmp_path / "net").folder,))
    plain = built.config(wish, lineup(wish), ServeSection(), 1.0, False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticDeprecatedSince20)
        from ray.serve import Application

        assert isinstance(built.build(plain["applications"][0]["args"]), Application)
