"""From a fingerprint to a classification: grid, network, batch and length of the training, under memory and time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from medray.config import ConfigError, load_plugin
from medray.networks.memory import GB
from medray.pipeline import recipe
from medray.pipeline.fingerprint import Fingerprint
from medray.pipeline.plan_rules import Because, Tree, by, case_augmentation, channels, flips, intensity, plain
from medray.pipeline.speed import Budget, Job, flops_of, memory_of, seconds_per_step, task_for
from medray.sections.augment import AugmentSection
from medray.types import NetworkIO


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid that images are put on, and the network that looks at it."""

    size: tuple[int, ...]
    depth: int
    """Layers of a ResNet; 0: a plain network, which is quicker."""
    own: bool
    """Whether every image has this size already."""

    def network(self) -> Tree:
        """The section `network` of an experiment."""
        if not self.depth:
            return {"name": "plain", "widths": Because(list(recipe.PLAIN), "a ResNet would take too long here")}
        small = max(self.size) <= recipe.KEPT_EDGE
        grid = f"the grid is {'at most' if small else 'more than'} {recipe.KEPT_EDGE} wide"
        stem = "the first layers keep it as it is" if small else "the first layers shrink it by 4"
        depth = "18 layers learn from few images" if self.depth == recipe.DEPTHS[0] else "more would take too long"
        return {
            "name": "resnet",
            "depth": Because(self.depth, depth),
            "stem": Because("small" if small else "default", f"{grid}: {stem}"),
        }


@dataclass(frozen=True, slots=True)
class ChosenCases:
    """What a training takes, and what it costs."""

    grid: Grid
    batch: int
    needs: str
    step_s: float
    per_epoch: int
    """Steps of an epoch."""
    epochs: int

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.per_epoch * self.epochs


def plan_classification(
    found: Fingerprint, budget: Budget, modality: str, multilabel: bool, train_cases: int
) -> tuple[Tree, ChosenCases]:
    """The sections of an experiment that the data decide; an epoch has `train_cases`.

    Raises:
        ConfigError: no classes, or not even the smallest grid fits into the memory.
    """
    if not found.classes:
        raise ConfigError(["dataset: cases have no classes and no label maps; there is nothing to learn"])
    dims = found.spatial_dims
    keep, in_channels = channels(found)
    scaled = intensity(found, modality)
    masks = all(case.two_valued for case in found.cases)
    augment = case_augmentation(flips(found.classes, dims, 0 if dims == 3 else 1), masks)
    section = AugmentSection.model_validate(plain(augment))
    chosen = _choose(found, budget, in_channels, section, multilabel, train_cases)
    preprocess: Tree = {} if keep is None else {"channels": keep}
    preprocess["intensity"] = scaled
    if not chosen.grid.own:
        preprocess["size"] = _size(found, chosen.grid)
        preprocess["fit"] = "contain"
    return {
        "preprocess": preprocess,
        "augment": augment,
        "task": _task(found),
        "network": chosen.grid.network(),
        "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.05},
        "schedule": {"name": "onecycle"},
        "train": _train(budget, chosen, train_cases),
    }, chosen


def grids(found: Fingerprint) -> list[Grid]:
    """Finer grids and deeper networks first: the images' own where they are small, else smaller and smaller ones."""
    shapes = found.shapes(False)
    median = [round(edge) for edge in np.median(shapes, axis=0).tolist()]
    if max(median) <= recipe.KEPT_EDGE:
        own = bool((shapes == shapes[0]).all())
        return [Grid(tuple(median), depth, own) for depth in (*recipe.DEPTHS, 0)]
    longest, step = max(median), recipe.EDGE_STEP[len(median)]
    sizes = [
        tuple(step * max(1, ceil(edge * min(1.0, most / longest) / step)) for edge in median)
        for most in recipe.EDGES[len(median)]
    ]
    tried = [Grid(size, recipe.DEPTHS[0], False) for size in sizes]
    return list(dict.fromkeys([*tried, *(Grid(sizes[-1], depth, False) for depth in (*recipe.DEPTHS, 0))]))


def _choose(
    found: Fingerprint, budget: Budget, in_channels: int, augment: AugmentSection, multilabel: bool, cases: int
) -> ChosenCases:
    """The finest grid with which every case is seen often enough; arithmetic tells which are not worth measuring."""
    seconds = 60 * budget.minutes * recipe.TRAIN_SHARE
    need, per_flop, chosen = 0, 0.0, None
    tried = grids(found)
    for grid in tried:
        job = _job(grid, found, in_channels, augment, multilabel, _batch(cases))
        while (need := memory_of(job, budget).total) > budget.memory_bytes and job.batch > recipe.LEAST_BATCH:
            job = replace(job, batch=job.batch // 2)
        per_epoch = max(1, cases // job.batch)
        allowed = seconds / recipe.LEAST_PASSES / per_epoch
        hopeless = grid != tried[-1] and per_flop * flops_of(job) > recipe.SURELY * allowed
        if need > budget.memory_bytes or hopeless:
            continue
        step_s = seconds_per_step(job, budget)
        per_flop = step_s / flops_of(job)
        epochs = int(min(recipe.MOST_PASSES, seconds / step_s / per_epoch))
        chosen = ChosenCases(grid, job.batch, str(memory_of(job, budget)), step_s, per_epoch, max(1, epochs))
        if step_s <= allowed:
            break
    if chosen is None:
        has = budget.memory_bytes / GB
        raise ConfigError([f"memory: the smallest grid needs {need / GB:.2f} GB, {has:.2f} GB may go; raise --memory"])
    return chosen


def _job(
    grid: Grid, found: Fingerprint, in_channels: int, augment: AugmentSection, multilabel: bool, batch: int
) -> Job:
    section = plain(grid.network())
    network = load_plugin("networks", section["name"]).Config.model_validate(section)
    task = load_plugin("tasks", "classification").Config()
    io = NetworkIO(in_channels, grid.size, task_for(task, found.classes, multilabel).outputs)
    return Job(network, task, augment, io, batch, "adamw", found.classes, multilabel)


def _batch(cases: int) -> int:
    """A power of two that leaves an epoch enough steps."""
    batch = recipe.CASES_PER_STEP
    while batch > recipe.LEAST_BATCH and cases // batch < recipe.LEAST_STEPS_PER_PASS:
        batch //= 2
    return batch


def _size(found: Fingerprint, grid: Grid) -> Because:
    median = np.median(found.shapes(False), axis=0).tolist()
    what = f"the median image is {by(median)}"
    if max(grid.size) <= recipe.KEPT_EDGE and max(median) <= recipe.KEPT_EDGE:
        return Because(list(grid.size), f"{what}; small enough to be seen whole")
    step = recipe.EDGE_STEP[len(grid.size)]
    return Because(list(grid.size), f"{what}; what time and memory allow, in multiples of {step}")


def _task(found: Fingerprint) -> Tree:
    """Classes that are rare weigh as much as the others."""
    counts = dict(zip(found.classes, found.class_cases, strict=True))
    rare, common = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    tree: Tree = {"name": "classification"}
    if counts[common] > recipe.IMBALANCED * counts[rare]:
        why = (
            f"{counts[common]} cases of '{common}', {counts[rare]} of '{rare}': each class counts the same in the loss"
        )
        tree["class_weights"] = Because("balanced", why)
    return tree


def _train(budget: Budget, chosen: ChosenCases, cases: int) -> Tree:
    seconds = f"{60 * budget.minutes * recipe.TRAIN_SHARE:.0f} s of {budget.minutes:g} min for steps"
    pace = f"{chosen.step_s:.3g} s each, measured on {budget.device}"
    sizes = f"{cases} training cases give {chosen.per_epoch} steps an epoch"
    return {
        "epochs": Because(chosen.epochs, f"{seconds}, {pace}; at most {recipe.MOST_PASSES}"),
        "batch_size": Because(chosen.batch, sizes),
        "max_minutes": Because(budget.minutes, "a slower machine ends here, before the last epoch"),
    }
