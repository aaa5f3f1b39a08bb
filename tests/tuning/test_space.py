"""The space of a search: what is drawn from it, what a grid holds, and which mistakes it reports."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.config import ConfigError, Experiment, load, override, to_yaml
from medray.tuning.parse import KINDS, parse
from medray.tuning.space import (
    Chance,
    Choice,
    Drawn,
    Range,
    Space,
    dimensions,
    draw,
    grid,
    locate,
)

NETWORKS = {
    "choice": [
        {"name": "plain", "widths": [8, 8], "dropout": {"uniform": [0.1, 0.5]}},
        {"name": "resnet", "dropout": {"choice": [0.0, {"uniform": [0.6, 0.9]}]}},
    ]
}


def experiment(space: dict[str, Any], train: dict[str, Any] | None = None, **tune: Any) -> Experiment:
    return tiny(Path("images"), tune={"space": space, **tune}, **({"train": train} if train else {}))


def space_of(**entries: dict[str, Any]) -> Space:
    """Entries by their keys, with a double underscore for the dot."""
    return parse(experiment({key.replace("__", "."): entry for key, entry in entries.items()}))


def mistakes_of(space: dict[str, Any], **rules: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(experiment(space, **rules))
    return list(caught.value.mistakes)


def points(space: Space, count: int, seed: int = 0) -> list[Drawn]:
    return [draw(space, Chance(seed, index)) for index in range(count)]


def drawn(entry: dict[str, Any], count: int = 800, key: str = "optimizer.lr") -> list[Any]:
    space = parse(experiment({key: entry}))
    return [point.settings[key] for point in points(space, count)]


# Spaces of any shape


def ranges(countable: bool) -> st.SearchStrategy[Range]:
    whole = st.builds(
        lambda low, more, log: Range(low, low + more, True, log), st.integers(1, 4), st.integers(0, 2), st.booleans()
    )
    return whole if countable else whole | st.builds(lambda log: Range(0.25, 4.0, False, log), st.booleans())


def choices(options: st.SearchStrategy[Any]) -> st.SearchStrategy[Choice]:
    return st.lists(options, min_size=1, max_size=3).map(
        lambda found: Choice(tuple(f"option {position}" for position in range(len(found))), tuple(found))
    )


def spaces(countable: bool) -> st.SearchStrategy[Space]:
    leaves = st.sampled_from([None, True, "he", 3, 0.5, [8, 8]]) | ranges(countable)
    parts = st.recursive(
        leaves,
        lambda inner: choices(inner) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
        max_leaves=4,
    )
    return st.dictionaries(st.sampled_from(["one", "two.x"]), ranges(countable) | choices(parts), min_size=1)


def every(part: Any) -> list[Any]:
    """All plain values of a part of a space, by the book."""
    match part:
        case Range():
            return list(range(int(part.low), int(part.high) + 1))
        case Choice():
            return [value for option in part.options for value in every(option)]
        case dict():
            return [dict(zip(part, values, strict=True)) for values in product(*map(every, part.values()))]
    return [part]


def holds(part: Any, value: Any) -> bool:
    """Whether a value can have been drawn from a part of a space."""
    match part:
        case Range():
            kind = int if part.whole else float
            return type(value) is kind and part.low <= value <= part.high
        case Choice():
            return any(holds(option, value) for option in part.options)
        case dict():
            same = isinstance(value, dict) and part.keys() == value.keys()
            return same and all(holds(part[key], value[key]) for key in part)
    return bool(part == value)


# What is drawn


@pytest.mark.parametrize(
    ("entry", "allowed"),
    [
        ({"uniform": [0.2, 0.4]}, lambda value: 0.2 <= value <= 0.4),
        ({"loguniform": [0.2, 0.4]}, lambda value: 0.2 <= value <= 0.4),
        ({"choice": [0.1, 0.7]}, lambda value: value in (0.1, 0.7)),
    ],
    ids=["uniform", "loguniform", "choice"],
)
def test_numbers_are_drawn_as_the_space_says(entry: dict[str, Any], allowed: Any) -> None:
    values = drawn(entry, 100)
    assert all(allowed(value) for value in values)
    assert len(set(values)) == (2 if "choice" in entry else 100)


@pytest.mark.parametrize("kind", ["randint", "lograndint"])
def test_whole_numbers_stay_below_the_high_end_and_are_taken_by_the_experiment(kind: str) -> None:
    base = experiment({"train.batch_size": {kind: [4, 8]}})
    values = {point.settings["train.batch_size"] for point in points(parse(base), 100)}
    assert values == {4, 5, 6, 7}
    assert {override(base, {"train.batch_size": value}).train.batch_size for value in values} == values


def test_a_range_of_one_whole_number_is_that_number() -> None:
    assert set(drawn({"lograndint": [1, 2]}, 20, "train.batch_size")) == {1}
    assert set(drawn({"randint": [7, 8]}, 20, "train.batch_size")) == {7}


def test_uniform_is_even_and_loguniform_even_in_the_logarithm() -> None:
    even, log = drawn({"uniform": [0.001, 1]}), drawn({"loguniform": [0.001, 1]})
    assert sum(value < 0.1 for value in even) == pytest.approx(80, abs=35)
    assert sum(value < 0.01 for value in log) == pytest.approx(800 / 3, abs=55)
    assert sum(value > 0.1 for value in log) == pytest.approx(800 / 3, abs=55)


def test_randint_is_even_over_the_numbers() -> None:
    counts = Counter(drawn({"randint": [1, 5]}, 2000, "train.batch_size"))
    assert all(counts[number] == pytest.approx(500, abs=90) for number in range(1, 5))


def test_lograndint_gives_each_number_its_share_of_the_logarithm() -> None:
    counts = Counter(drawn({"lograndint": [1, 1001]}, 2000, "train.batch_size"))
    assert all(type(value) is int for value in counts)
    whole = math.log(1000.5 / 0.5)
    for low, high in ((1, 1), (2, 4), (5, 31), (32, 200), (201, 1000)):
        share = math.log((high + 0.5) / (low - 0.5)) / whole
        found = sum(count for value, count in counts.items() if low <= value <= high)
        assert found == pytest.approx(2000 * share, abs=100), (low, high)


def test_options_are_drawn_equally_often() -> None:
    counts = Counter(drawn({"choice": ["sgd", "adam", "adamw"]}, 1500, "optimizer.name"))
    assert all(counts[name] == pytest.approx(500, abs=90) for name in ("sgd", "adam", "adamw"))


def test_entries_inside_an_option_are_drawn_only_there_and_have_names_of_their_own() -> None:
    found = points(space_of(network=NETWORKS, optimizer__lr={"uniform": [0.1, 0.2]}), 60)
    kinds = Counter()
    for point in found:
        network = point.settings["network"]
        kinds[network["name"], len(point.choices)] += 1
        expected = {"optimizer.lr": point.settings["optimizer.lr"], "network": network["name"]}
        if network["name"] == "plain":
            assert 0.1 <= network["dropout"] <= 0.5
            assert network["widths"] == [8, 8]
            expected["network[plain].dropout"] = network["dropout"]
        elif network["dropout"] == 0.0:
            expected["network[resnet].dropout"] = "0"
        else:
            assert 0.6 <= network["dropout"] <= 0.9
            label = str(point.choices["network[resnet].dropout"])
            expected["network[resnet].dropout"] = label
            expected[f"network[resnet].dropout[{label}]"] = network["dropout"]
        assert point.choices == expected
    assert set(kinds) == {("plain", 3), ("resnet", 3), ("resnet", 4)}


@settings(deadline=None)
@given(spaces(countable=False), st.integers(), st.integers(0, 10_000))
def test_whatever_is_drawn_lies_in_the_space(space: Space, seed: int, index: int) -> None:
    point = draw(space, Chance(seed, index))
    assert point.settings.keys() == space.keys()
    assert all(holds(space[key], value) for key, value in point.settings.items())


@settings(deadline=None)
@given(spaces(countable=False), st.integers(-5, 5), st.permutations(range(6)))
def test_a_point_depends_on_seed_and_number_alone(space: Space, seed: int, order: list[int]) -> None:
    straight = dict(enumerate(points(space, 6, seed)))
    assert {index: draw(space, Chance(seed, index)) for index in order} == straight


@settings(deadline=None)
@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(0, 99), st.integers(0, 99))
def test_another_seed_or_number_gives_another_point(seed: int, other: int, index: int, later: int) -> None:
    space: Space = {"optimizer.lr": Range(0.0, 1.0)}
    same = draw(space, Chance(seed, index)) == draw(space, Chance(other, later))
    assert same == ((seed, index) == (other, later))


# Grids and the decisions behind points


@settings(deadline=None)
@given(spaces(countable=True))
def test_a_grid_is_the_product_of_all_dimensions_each_point_once(space: Space) -> None:
    found = list(grid(space))
    assert [point.settings for point in found] == every(space)
    assert len({tuple(point.choices.items()) for point in found}) == len(found)


@settings(deadline=None)
@given(spaces(countable=True))
def test_dimensions_are_the_decisions_that_some_point_takes(space: Space) -> None:
    taken = {name for point in grid(space) for name in point.choices}
    assert taken == dimensions(space).keys()


@settings(deadline=None)
@given(spaces(countable=False), st.integers(0, 99))
def test_each_decision_lies_in_its_dimension(space: Space, index: int) -> None:
    known = dimensions(space)
    for name, value in draw(space, Chance(0, index)).choices.items():
        part = known[name]
        assert value in part if isinstance(part, tuple) else holds(part, value)


@pytest.mark.parametrize("kind", ["uniform", "loguniform"])
def test_a_grid_of_real_numbers_is_refused_wherever_they_are(kind: str) -> None:
    entry = {kind: [0.1, 0.2]}
    with pytest.raises(ConfigError, match=r"tune\.space\.optimizer\.lr: a grid has no end there"):
        list(grid(space_of(optimizer__lr=entry)))
    inside = {"choice": [{"name": "resnet"}, {"name": "plain", "dropout": entry}]}
    with pytest.raises(ConfigError, match=r"tune\.space\.network\[plain\]\.dropout: a grid has no end there"):
        list(grid(space_of(network=inside)))


def test_options_are_labelled_by_plug_in_else_by_their_text_and_never_alike() -> None:
    def labels(options: list[Any], key: str = "network") -> tuple[str, ...]:
        part = parse(experiment({key: {"choice": options}}))[key]
        assert isinstance(part, Choice)
        return part.labels

    assert labels([{"name": "plain", "widths": [8]}, {"name": "resnet"}]) == ("plain", "resnet")
    twice = labels([{"name": "plain", "widths": [8]}, {"name": "plain", "widths": [16]}])
    assert twice == ("name=plain widths=[8]", "name=plain widths=[16]")
    assert labels([0.5, None, 1e-05], "train.clip_norm") == ("0.5", "None", "1e-05")
    assert len(set(labels([0.1, 0.1000000001, 0.10000001], "optimizer.lr"))) == 3


def test_equal_options_are_refused_once() -> None:
    with pytest.raises(ConfigError) as found:
        parse(experiment({"optimizer.lr": {"choice": [0.1, 0.2, 0.1, 0.1]}}))
    assert found.value.mistakes == ("tune.space.optimizer.lr: the option 0.1 stands there twice",)


def test_a_range_of_real_numbers_is_refused_for_a_setting_of_whole_ones() -> None:
    """Its ends alone would be taken."""
    assert any("batch_size" in line for line in mistakes_of({"train.batch_size": {"uniform": [16, 64]}}))


# The experiment's own place


LOCATED = experiment(
    {
        "optimizer.lr": {"loguniform": [1e-3, 1e-1]},
        "train.batch_size": {"randint": [4, 33]},
        "optimizer.name": {"choice": ["adamw", "sgd"]},
    }
)
LOCATED_SPACE = parse(LOCATED)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e-1) | st.floats(1e-5, 1.0), st.integers(1, 40), st.sampled_from(["sgd", "adam", "adamw"]))
def test_the_experiment_is_found_in_the_space_exactly_where_it_lies_in_it(lr: float, batch: int, name: str) -> None:
    optimizer = LOCATED.optimizer.model_copy(update={"lr": lr, "name": name})
    train = LOCATED.train.model_copy(update={"batch_size": batch})
    own = LOCATED.model_copy(update={"optimizer": optimizer, "train": train})
    found = locate(LOCATED_SPACE, own)
    inside = 1e-3 <= lr <= 1e-1 and 4 <= batch <= 32 and name != "adam"
    assert (found is not None) == inside
    if found is not None:
        assert override(own, found.settings) == own
        assert found.choices == {"optimizer.lr": lr, "train.batch_size": batch, "optimizer.name": name}


def test_a_fraction_lies_in_no_range_of_whole_numbers() -> None:
    own = experiment({"train.max_minutes": {"randint": [1, 10]}}, {"max_minutes": 2.5})
    assert locate(parse(own), own) is None


def test_an_option_is_the_experiment_s_own_by_what_it_makes_of_it() -> None:
    space = {"network": {"choice": [{"name": "resnet"}, {"name": "plain", "widths": [8, 8], "norm": "none"}]}}
    own = experiment(space)
    found = locate(parse(own), own)
    assert found is not None
    assert found.choices == {"network": "plain"}
    assert override(own, found.settings) == own
    other = override(own, {"network": {"name": "plain", "widths": [8, 16]}})
    assert locate(parse(other), other) is None


def test_where_an_option_has_entries_of_its_own_the_experiment_has_no_place() -> None:
    own = experiment({"network": NETWORKS})
    assert locate(parse(own), own) is None


def test_a_setting_that_is_not_given_lies_outside_of_a_range() -> None:
    own = experiment({"train.clip_norm": {"uniform": [0.1, 1]}})
    assert own.train.clip_norm is None
    assert locate(parse(own), own) is None


# Mistakes

MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown key": ("optimizer.lrr", {"uniform": [0.1, 0.2]}, "optimizer.lrr: no such setting; did you mean 'lr'?"),
    "unknown section": ("optimiser.lr", {"uniform": [0.1, 0.2]}, "did you mean 'optimizer'?"),
    "unknown kind": ("optimizer.lr", {"normal": [0.1, 0.2]}, f"optimizer.lr: expected one of {', '.join(KINDS)}"),
    "two kinds": ("optimizer.lr", {"uniform": [0.1, 0.2], "choice": [1]}, "optimizer.lr: expected one of"),
    "no kind": ("optimizer.lr", {}, "optimizer.lr: expected one of"),
    "no list": ("optimizer.lr", {"uniform": 0.1}, "optimizer.lr: expected one of"),
    "empty range": ("optimizer.lr", {"uniform": [0.1, 0.1]}, "the range from 0.1 to 0.1 is empty"),
    "low above high": ("optimizer.lr", {"loguniform": [0.2, 0.1]}, "the range from 0.2 to 0.1 is empty"),
    "no whole number": ("train.batch_size", {"randint": [4, 4]}, "the range from 4 to 4 is empty"),
    "three ends": ("optimizer.lr", {"uniform": [0.1, 0.2, 0.3]}, "uniform takes two numbers, [low, high]"),
    "words": ("optimizer.lr", {"uniform": ["low", "high"]}, "uniform takes two numbers, [low, high]"),
    "log from 0": ("optimizer.weight_decay", {"loguniform": [0, 0.1]}, "loguniform begins above 0, got 0"),
    "whole log from 0": ("train.accumulate", {"lograndint": [0, 4]}, "lograndint begins above 0, got 0"),
    "fractions": ("train.batch_size", {"randint": [1.5, 4]}, "randint takes whole numbers, got [1.5, 4]"),
    "no options": ("optimizer.name", {"choice": []}, "optimizer.name: choice has no options"),
    "refused option": ("optimizer.name", {"choice": ["adamw", "adamax"]}, "(got 'adamax')"),
    "refused low end": ("train.batch_size", {"randint": [0, 4]}, "train.batch_size: Input should be greater"),
    "refused high end": ("train.ema", {"uniform": [0.5, 1.5]}, "train.ema: Input should be less than 1 (got 1.5)"),
    "refused end inside": (
        "network",
        {"choice": [{"name": "resnet"}, {"name": "plain", "dropout": {"uniform": [0, 2]}}]},
        "network.dropout: Input should be less than or equal to 1 (got 2)",
    ),
    "unknown key inside": (
        "network",
        {"choice": [{"name": "resnet"}, {"name": "plain", "width": [8]}]},
        "network.width: no such setting; did you mean 'widths'?",
    ),
    "bad range inside": (
        "network",
        {"choice": [{"name": "plain", "dropout": {"uniform": [1, 0]}}]},
        "tune.space.network.choice.dropout: the range from 1 to 0 is empty",
    ),
    "unknown network": ("network", {"choice": ["plain", "plane"]}, "'plane' not found; did you mean 'plain'?"),
    "dataset": ("dataset.max_bad_fraction", {"uniform": [0.1, 0.5]}, "dataset is common to all trials"),
    "split": ("split.val", {"uniform": [0.1, 0.3]}, "split is common to all trials"),
    "name": ("name", {"choice": ["one", "two"]}, "name is common to all trials"),
    "scaling": ("scaling.workers", {"randint": [1, 3]}, "scaling is common to all trials"),
    "tracking": ("tracking.model", {"choice": ["a", "b"]}, "tracking is common to all trials"),
    "serve": ("serve.port", {"randint": [1, 9]}, "serve is common to all trials"),
    "tune": ("tune.trials", {"randint": [1, 9]}, "tune is common to all trials"),
    "monitor": ("train.monitor", {"choice": ["val/loss", "val/auroc"]}, "train.monitor is common to all trials"),
    "mode": ("train.mode", {"choice": ["min", "max"]}, "train.mode is common to all trials"),
    "folds": ("train.folds", {"randint": [2, 4]}, "train.folds is common to all trials"),
    "task": ("task", {"choice": ["classification", "regression"]}, "the task is common to all trials"),
    "epochs": ("train.epochs", {"randint": [1, 9]}, "take tune.scheduler=none"),
}


@pytest.mark.parametrize(("key", "entry", "reason"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_key(key: str, entry: dict[str, Any], reason: str) -> None:
    (line,) = mistakes_of({key: entry})
    assert line.startswith("tune.space")
    assert key.partition(".")[0] in line
    assert reason in line


def test_every_mistake_is_reported_at_once() -> None:
    chosen = {key: (entry, reason) for key, entry, reason in MISTAKES.values()}
    lines = mistakes_of({key: entry for key, (entry, _) in chosen.items() if key not in ("network", "task")})
    for key, (_, reason) in chosen.items():
        if key not in ("network", "task"):
            assert any(reason in line for line in lines), key
    assert len(lines) == len(set(lines))


def test_every_mistake_inside_one_choice_is_reported_too() -> None:
    options = [{"name": "plain", "dropout": {"uniform": [1, 0]}}, {"name": "resnet", "dropout": {"loguniform": [0, 1]}}]
    lines = "\n".join(mistakes_of({"network": {"choice": options}}))
    assert "is empty" in lines
    assert "begins above 0" in lines


def test_a_key_inside_a_section_that_is_drawn_whole_belongs_into_its_options() -> None:
    (line,) = mistakes_of({"network": NETWORKS, "network.dropout": {"uniform": [0, 0.5]}})
    assert line == "tune.space.network.dropout: network is drawn whole; put network.dropout into its options"


def test_keys_that_only_begin_alike_do_not_disturb_each_other() -> None:
    space = {"train.ema": {"uniform": [0.1, 0.9]}, "optimizer.lr": {"uniform": [0.1, 0.2]}, "seed": {"choice": [1, 2]}}
    assert parse(experiment(space)).keys() == space.keys()


def test_the_length_of_trainings_can_be_searched_where_none_is_stopped() -> None:
    assert parse(experiment({"train.epochs": {"randint": [1, 9]}}, scheduler="none")) == {
        "train.epochs": Range(1, 8, True)
    }


@pytest.mark.parametrize(
    "rules",
    [{"train": {"monitor": "val/loss"}}, {"scheduler": "none", "objectives": ["val/auroc", "val/loss"]}],
    ids=["monitor", "objectives"],
)
def test_losses_of_different_tasks_are_not_compared(rules: dict[str, Any]) -> None:
    space = {"task.class_weights": {"choice": ["none", "balanced"]}}
    (line,) = mistakes_of(space, **rules)
    assert line.startswith("tune.space.task.class_weights: val/loss of two losses cannot be compared")
    assert parse(experiment(space)).keys() == space.keys()


def test_a_space_on_the_command_line_is_the_whole_space(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(to_yaml(tiny(Path("images"))), encoding="utf-8")
    given_space = (
        "tune.space={optimizer.lr: {loguniform: [1e-4, 1e-1]}, network: {choice: ["
        "{name: plain, widths: [8, 8], dropout: {uniform: [0.1, 0.5]}}, "
        "{name: resnet, dropout: {choice: [0.0, {uniform: [0.6, 0.9]}]}}]}}"
    )
    loaded = load(file, [given_space, "tune.trials=5"])
    space = parse(loaded)
    assert space == space_of(optimizer__lr={"loguniform": [1e-4, 1e-1]}, network=NETWORKS)
    assert loaded.tune.count == 5
    file.write_text(to_yaml(loaded), encoding="utf-8")
    assert load(file) == loaded
    assert points(parse(load(file)), 5) == points(space, 5)


def test_the_default_space_is_one_that_the_experiment_takes_and_lies_in() -> None:
    own = tiny(Path("images"))
    found = locate(parse(own), own)
    assert found is not None
    assert found.settings == {"optimizer.lr": 0.01, "optimizer.weight_decay": 1e-4}


# The rules of the section


@pytest.mark.parametrize(
    ("tune", "reason"),
    [
        ({"objectives": ["val/auroc", "val/loss"]}, "scheduler asha stops trials by one figure"),
        ({"objectives": ["val/auroc", "val/loss"], "scheduler": "pbt"}, "scheduler pbt stops trials by one figure"),
        ({"objectives": ["val/auroc", "val/auroc"], "scheduler": "none"}, "objectives names a metric twice"),
        ({"scheduler": "pbt", "searcher": "tpe"}, "take searcher=random and no minutes"),
        ({"scheduler": "pbt", "searcher": "grid"}, "take searcher=random and no minutes"),
        ({"scheduler": "pbt", "minutes": 5}, "take searcher=random and no minutes"),
        ({"scheduler": "pbt", "trials": 1}, "scheduler pbt needs 2 trials or more"),
        ({"space": {}}, "space holds no setting to search"),
        ({"reduction": 1}, "tune.reduction"),
        ({"searcher": "gird"}, "tune.searcher"),
    ],
    ids=str,
)
def test_rules_that_contradict_each_other_are_refused_with_the_reason(tune: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(Path("images"), tune=tune)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("tune", "count"),
    [
        ({}, 12),
        ({"searcher": "tpe"}, 12),
        ({"scheduler": "pbt"}, 12),
        ({"scheduler": "pbt", "trials": 2}, 2),
        ({"minutes": 5}, None),
        ({"minutes": 5, "trials": 7}, 7),
        ({"searcher": "grid"}, None),
        ({"searcher": "grid", "trials": 7}, 7),
        ({"objectives": ["val/auroc", "val/loss"], "scheduler": "none"}, 12),
        ({"objectives": ["val/auroc"]}, 12),
    ],
    ids=str,
)
def test_how_many_trials_there_are(tune: dict[str, Any], count: int | None) -> None:
    assert tiny(Path("images"), tune=tune).tune.count == count


@pytest.mark.parametrize("changes", [{"split.join_val": True}, {"train.folds": 3}])
def test_an_experiment_whose_trials_could_not_be_compared_is_refused(changes: dict[str, Any]) -> None:
    (key,) = changes
    with pytest.raises(ConfigError, match=key):
        parse(override(experiment({"optimizer.lr": {"uniform": [0.1, 0.2]}}), changes))
