"""Experiments: every mistake at once, with the nearest right key; overrides; round trips."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import tiny

from medray.config import EXPERIMENTS, ConfigError, Experiment, load, override, parse, plugins, to_yaml


def mistakes(*overrides: str, source: str | Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(source, overrides)
    return list(caught.value.mistakes)


@pytest.mark.parametrize("name", sorted(file.stem for file in EXPERIMENTS.glob("*.yaml")))
def test_packaged_experiments_load(name: str) -> None:
    text = (EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8")
    overrides = ["dataset.path=somewhere"] if "path: ???" in text else []
    assert load(name, overrides).name == name


def test_every_mistake_is_reported_at_once() -> None:
    found = mistakes("train.epoch=3", "optimizer.lr=fast", "network.name=resnet", "network.depht=50", "colour=blue")
    assert len(found) == 4
    assert "train.epoch: no such setting; did you mean 'epochs'?" in found
    assert any(line.startswith("optimizer.lr:") and "'fast'" in line for line in found)
    assert "network.depht: no such setting; did you mean 'depth'?" in found


def test_unknown_plugin_names_the_nearest_and_all() -> None:
    (found,) = mistakes("network.name=resnett")
    assert "'resnett' not found; did you mean 'resnet'?" in found
    assert all(name in found for name in plugins("networks"))


def test_unknown_experiment_and_missing_file() -> None:
    assert "did you mean 'phantom'" in mistakes(source="phantm")[0]
    assert "does not exist" in mistakes(source="nowhere.yaml")[0]


def test_overrides_take_lists_nulls_and_nested_maps() -> None:
    experiment = load(None, ["preprocess.size=[32,32]", "train.patience=null", "augment.flip={p: 0.25, axes: [0, 1]}"])
    assert experiment.preprocess.size == (32, 32)
    assert experiment.train.patience is None
    assert experiment.augment.flip.axes == (0, 1)


def test_naming_another_plugin_drops_the_old_ones_settings() -> None:
    assert load(None, ["network.name=plain"]).network.name == "plain"


def test_a_bare_name_is_a_plugin_without_settings(tmp_path: Path, image_folder: Path) -> None:
    given = load(None, ["dataset=auto", f"dataset.path={image_folder}"])
    assert given.dataset.name == "auto"
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(to_yaml(given)), "dataset": "auto"}))
    assert load(file, [f"dataset.path={image_folder}"]).dataset == given.dataset


def test_a_mapping_replaces_a_mapping() -> None:
    assert load(None, ["preprocess.intensity={method: percentile}"]).preprocess.intensity.low is None
    assert list(load(None, ["tune.space={train.epochs: {randint: [1, 3]}}"]).tune.space) == ["train.epochs"]


def test_a_setting_without_equals_is_explained() -> None:
    assert "write key=value" in mistakes("train.epochs")[0]


def test_yaml_round_trip_and_interpolation(tmp_path: Path, image_folder: Path) -> None:
    experiment = tiny(image_folder)
    file = tmp_path / "experiment.yaml"
    file.write_text(to_yaml(experiment), encoding="utf-8")
    assert load(file) == experiment
    file.write_text(to_yaml(experiment).replace("seed: 0", "seed: ${train.epochs}", 1), encoding="utf-8")
    assert load(file).seed == 2


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "!!python/object/apply:os.system ['true']", "a: ${b"])
def test_bad_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    assert len(mistakes(source=file)) >= 1


def test_override_of_an_experiment_is_checked(image_folder: Path) -> None:
    experiment = tiny(image_folder)
    assert override(experiment, {"optimizer.lr": 0.5}).optimizer.lr == 0.5
    with pytest.raises(ConfigError, match=r"optimizer\.lrr: no such setting; did you mean 'lr'"):
        override(experiment, {"optimizer.lrr": 0.5})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("split={val: 0.6, test: 0.5}", "nothing would be left"),
        ("split={method: kfold, folds: 3, fold: 3}", "fold 3 does not exist"),
        ("preprocess.intensity={method: window, low: 5, high: 5}", "below high"),
        ("preprocess={dtype: float16, intensity: {method: range, low: 0, high: 1e5}}", "use float32"),
        ("preprocess.intensity={method: window}", "needs low and high"),
        ("optimizer={name: adam, nesterov: true}", "nesterov needs name: sgd"),
        ("serve={target_ongoing_requests: 9, max_ongoing_requests: 8}", "never scale up"),
        ("serve={min_replicas: 3, max_replicas: 2}", "above max_replicas"),
        ("name=../../etc", "pattern"),
    ],
)
def test_contradictions_are_refused(setting: str, message: str) -> None:
    assert any(message in line for line in mistakes(setting))


def test_experiments_are_frozen(image_folder: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        tiny(image_folder).seed = 1  # type: ignore[misc]


def test_missing_sections_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"name": "x"})
    assert {line.split(":")[0] for line in caught.value.mistakes} == {"dataset", "task", "network"}
    assert isinstance(load(), Experiment)
