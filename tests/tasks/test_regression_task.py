"""Regression: losses in deviations of the training targets, answers in the targets' own units."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny
from hypothesis import given
from hypothesis import strategies as st

from medray.config import ConfigError, parse
from medray.imaging.writer import write_png
from medray.inference.predictor import Predictor
from medray.pipeline.prepare import DataRefused, prepare
from medray.tasks.regression import Config, Loss, build
from medray.training.train import train
from medray.types import Batch, InputError

TARGETS = np.random.default_rng(0).normal([50, 2], [10, 0.5], (40, 2)).astype(np.float32)
NAMES = ("age", "volume")


def task(**loss: object):
    return build(Config(loss=Loss.model_validate(loss)), NAMES, False, TARGETS)


class Constant(torch.nn.Module):
    """The same output for every image."""

    def __init__(self, output: list[float]) -> None:
        super().__init__()
        self.output = torch.tensor(output)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.output.expand(len(image), -1)


def test_the_networks_zero_is_the_mean_and_its_one_a_deviation() -> None:
    one = task()
    _, zero = one.predict(Constant([0.0, 0.0]), torch.zeros(1, 1, 4, 4))
    np.testing.assert_allclose(zero[0], TARGETS.mean(0), rtol=1e-5)
    _, up = one.predict(Constant([1.0, 1.0]), torch.zeros(1, 1, 4, 4))
    np.testing.assert_allclose(up[0] - zero[0], TARGETS.std(0), rtol=1e-4)


def test_the_settled_task_answers_the_same_without_the_training_cases() -> None:
    one = task(name="quantile")
    again = build(one.settled, NAMES, False, np.zeros((0, 2), np.float32))
    output = torch.randn(3, one.outputs)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, one.outputs))
    image = torch.randn(3, 1, 2, 2)
    torch.testing.assert_close(one.predict(network, image), again.predict(network, image))
    assert output.shape == (3, 6)


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "quantile"])
def test_the_right_answer_costs_nothing_and_another_something(name: str) -> None:
    one = task(name=name)
    target = torch.from_numpy(TARGETS[:5])
    right = ((target - torch.tensor(one.centre)) / torch.tensor(one.scale)).repeat(1, one.levels)
    assert float(one.case_losses(right, target).abs().max()) < 1e-5
    assert float(one.case_losses(right + 0.5, target).min()) > 0.01
    batch = Batch(torch.zeros(5, 1, 2, 2), target, torch.full((5,), 0.2), torch.arange(5))
    loss = one.step(Constant([0.0] * one.outputs), batch)["loss"]
    expected = one.case_losses(torch.zeros(5, one.outputs), target).mean()
    torch.testing.assert_close(loss, expected)


def test_the_quantile_loss_is_least_at_the_quantiles() -> None:
    one = build(
        Config(loss=Loss(name="quantile", low=0.1, high=0.9), centre=(0.0,), scale=(1.0,)), ("x",), False, TARGETS
    )
    sample = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    best = torch.quantile(sample[:, 0], torch.tensor([0.1, 0.5, 0.9]))
    least = float(one.case_losses(best.expand(len(sample), 3), sample).mean())
    for shift in (-0.2, 0.2):
        for position in range(3):
            moved = best.clone()
            moved[position] += shift
            assert float(one.case_losses(moved.expand(len(sample), 3), sample).mean()) > least


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_an_interval_holds_its_number(numbers: list[float]) -> None:
    answer = task(name="quantile").decode("case", np.asarray(numbers, np.float32))
    for value, name in zip(answer.scores.tolist(), NAMES, strict=True):
        low, high = answer.intervals[name]
        assert low <= value <= high


def test_summarise_takes_the_median_and_headline_is_its_mae() -> None:
    one = task(name="quantile")
    rows = np.concatenate([TARGETS - 9, TARGETS + 1, TARGETS + 9], 1)
    assert one.summarise(rows, TARGETS)["mae"] == pytest.approx(1, abs=1e-5)
    assert one.headline(rows, TARGETS) == pytest.approx(1, abs=1e-5)
    assert set(one.per_class(rows, TARGETS)) == set(NAMES)


def test_centre_without_scale_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="go together"):
        Config(centre=(1.0,))


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright discs, whose diameter is in the table."""
    folder = tmp_path_factory.mktemp("discs")
    draw = np.random.default_rng(0)
    rows, columns = np.indices((16, 16))
    lines = []
    for number in range(60):
        radius = draw.uniform(2, 7)
        disc = (rows - 8) ** 2 + (columns - 8) ** 2 < radius**2
        write_png(folder / f"{number}.png", (draw.integers(0, 60, (16, 16)) + 150 * disc).astype(np.uint8))
        lines.append([f"{number}.png", f"s{number // 2}", f"{2 * radius:.3f}", "x" if number == 3 else "1"])
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["image", "subject", "diameter", "broken"], *lines])
    return folder


def experiment(discs: Path, **sections: object):
    dataset = {"name": "table", "path": str(discs / "table.csv"), "numbers": ["diameter"]}
    network = {"name": "plain", "widths": [8, 8], "norm": "batch"}
    train = {"epochs": 10, "batch_size": 8, "precision": "fp32"}
    return tiny(discs, dataset=dataset, task={"name": "regression"}, network=network, train=train, **sections)


def test_it_learns_a_diameter_and_promises_an_interval(discs: Path, database: Path) -> None:
    assert database.is_file()
    result = train(experiment(discs))
    assert result["metrics"]["test/mae"] < 1.5
    assert result["metrics"]["test/r2"] > 0.6
    predictor = Predictor(Path(result["bundle"]))
    answer = predictor.predict(discs / "0.png")
    low, high = answer.intervals["diameter"]
    assert low < float(answer.scores[0]) < high
    assert predictor.bundle.classes == ("diameter",)


def test_what_is_no_number_and_no_column_is_refused(discs: Path, tmp_path: Path) -> None:
    plain = experiment(discs)
    tree = plain.model_dump(mode="json")
    tree["dataset"]["numbers"] = ["diametre"]
    with pytest.raises(ConfigError, match="did you mean 'diameter'"):
        prepare(parse(tree), tmp_path)
    tree["dataset"]["numbers"] = ["broken"]
    with pytest.raises(InputError, match=r"wrong_number.*lines 5"):
        prepare(parse(tree), tmp_path)
    tree["dataset"] = {"name": "table", "path": tree["dataset"]["path"], "label_column": "subject"}
    with pytest.raises(DataRefused, match=r"dataset\.numbers"):
        prepare(parse(tree), tmp_path)
