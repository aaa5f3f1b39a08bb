"""From a fingerprint to a segmentation: window, batch, U-Net and length of the training, under memory and time.

First nnU-Net's own plan under the memory that there is; where steps would then be too few in the time that there is,
a slimmer network, a smaller batch, and at last a smaller window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from medray.config import ConfigError, load_plugin
from medray.networks.memory import GB
from medray.pipeline import recipe
from medray.pipeline.fingerprint import Fingerprint
from medray.pipeline.plan_rules import (
    Because,
    Tree,
    by,
    channels,
    crops,
    dense_augmentation,
    flips,
    intensity,
    median_shape,
    plain,
    rotation,
    spacing,
    spacing_reason,
)
from medray.pipeline.recipe import FILTERS, LEAST_BATCH
from medray.pipeline.speed import Budget, Job, flops_of, memory_of, seconds_per_step, task_for
from medray.pipeline.topology import Topology, first_patch, smaller, topology
from medray.sections.augment import AugmentSection
from medray.types import NetworkIO


@dataclass(frozen=True, slots=True)
class Frame:
    """What is settled before the network is."""

    found: Fingerprint
    budget: Budget
    spacing: tuple[float, ...]
    """Of the network's grid, in whatever unit the images have."""
    median: tuple[int, ...]
    """(*S) of the median case on that grid."""
    in_channels: int
    augment: AugmentSection

    @property
    def dims(self) -> int:
        """Axes of the network's grid."""
        return len(self.median)


@dataclass(frozen=True, slots=True)
class Rung:
    """One choice of network and batch."""

    shape: Topology
    filters: int
    batch: int

    def widths(self) -> list[int]:
        """Filters of each level: doubled, up to a limit."""
        most = recipe.MOST_FILTERS[len(self.shape.patch)]
        return [min(most, self.filters << level) for level in range(self.shape.levels)]

    def network(self) -> Tree:
        """The section `network` of an experiment."""
        shape = self.shape
        return {
            "name": "dynunet",
            "filters": self.widths(),
            "kernels": [list(edges) for edges in shape.kernels],
            "strides": [list(edges) for edges in shape.strides],
            "deep_supervision": max(0, shape.levels - 3),
        }


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a training takes, and what it costs."""

    rung: Rung
    planned: Rung
    """What the memory alone would allow."""
    needs: str
    step_s: float
    steps: int


def plan_segmentation(found: Fingerprint, budget: Budget, modality: str) -> tuple[Tree, Chosen]:
    """The sections of an experiment that the data decide.

    Raises:
        ConfigError: no classes to tell apart, or not even the smallest network fits into the memory.
    """
    if len(found.classes) < 2:
        raise ConfigError(["dataset: the label maps' classes are not named; name the background and one more"])
    target = spacing(found)
    median = median_shape(found, target if found.in_mm else None)
    flat = [axis for axis, edge in enumerate(median) if edge == 1] if len(median) == 3 else []
    slice_axis = flat[-1] if flat else None
    axes = [axis for axis in range(len(median)) if axis != slice_axis]
    sideways = 0 if len(median) == 3 else 1
    flip = flips(found.classes, len(axes), axes.index(sideways) if sideways in axes else None)
    augment = dense_augmentation(flip, rotation(target, median, axes, sided=len(flip.value) < len(axes)))
    keep, in_channels = channels(found)
    frame = Frame(
        found,
        budget,
        tuple(target[axis] for axis in axes),
        tuple(median[axis] for axis in axes),
        in_channels,
        AugmentSection.model_validate(plain(augment)),
    )
    chosen = _choose(frame, _within_memory(frame))
    preprocess: Tree = {} if keep is None else {"channels": keep}
    if found.in_mm:
        preprocess["spacing_mm"] = Because(list(target), spacing_reason(found, target))
    if (crop := crops(found)) is not None:
        preprocess["crop_foreground"] = crop
    preprocess["intensity"] = intensity(found, modality)
    return {
        "preprocess": preprocess,
        "window": _window(frame, chosen, slice_axis, median),
        "augment": augment,
        "task": {"name": "segmentation", "foreground": Because(recipe.FOREGROUND, recipe.FOREGROUND_WHY)},
        "network": _network(chosen),
        **_training(frame, chosen),
    }, chosen


def job_of(frame: Frame, rung: Rung) -> Job:
    """A step of a training with this network and batch."""
    network = load_plugin("networks", "dynunet").Config.model_validate(rung.network())
    task = load_plugin("tasks", "segmentation").Config()
    outputs = task_for(task, frame.found.classes).outputs
    io = NetworkIO(frame.in_channels, rung.shape.patch, outputs, dense=True)
    return Job(network, task, frame.augment, io, rung.batch, "adamw", frame.found.classes)


def _within_memory(frame: Frame) -> Rung:
    """nnU-Net's network and batch for the memory that there is."""
    limit = frame.budget.memory_bytes
    shape = topology(frame.spacing, first_patch(frame.spacing, frame.median))
    while (need := memory_of(job_of(frame, Rung(shape, FILTERS, LEAST_BATCH)), frame.budget).total) > limit:
        fewer = smaller(frame.spacing, shape, frame.median, 2 * recipe.SMALLEST_EDGE)
        if fewer is None:
            mend = "free some, or raise --memory"
            raise ConfigError(
                [f"memory: the smallest network needs {need / GB:.2f} GB, {limit / GB:.2f} GB may go; {mend}"]
            )
        shape = fewer
    more = memory_of(job_of(frame, Rung(shape, FILTERS, 2 * LEAST_BATCH)), frame.budget).total
    fits = LEAST_BATCH + int((limit - need) / max(1, (more - need) / LEAST_BATCH))
    return Rung(shape, FILTERS, max(LEAST_BATCH, min(fits, _largest_batch(frame, shape), recipe.MOST_BATCH)))


def _largest_batch(frame: Frame, shape: Topology) -> int:
    """Patches that together are DATASET_SHARE of the dataset."""
    cases, patch = 1.0 * len(frame.found.cases), 1.0
    for edge, length in zip(shape.patch, frame.median, strict=True):
        cases, patch = cases * length, patch * edge
    return round(recipe.DATASET_SHARE * cases / patch)


def _choose(frame: Frame, first: Rung) -> Chosen:
    """The dearest choice that leaves enough steps: few are measured, arithmetic tells the time of the others."""
    budget = frame.budget
    seconds = 60 * budget.minutes * recipe.TRAIN_SHARE
    allowed = seconds / recipe.LEAST_STEPS
    small = min(first.batch, recipe.SMALL_BATCH[frame.dims])
    rungs = [replace(first, filters=width, batch=first.batch if same else small) for width, same in recipe.RUNGS]
    work = [flops_of(job_of(frame, rung)) for rung in rungs]
    measured: dict[int, float] = {}
    at = len(rungs) - 1
    while at not in measured:
        measured[at] = seconds_per_step(job_of(frame, rungs[at]), budget)
        # Slim networks do less arithmetic a second, so what a dearer one takes is guessed too high, not too low.
        guess = {index: measured.get(index, measured[at] * work[index] / work[at]) for index in range(len(rungs))}
        at = next((index for index, time in guess.items() if time <= allowed), len(rungs) - 1)
    rung, step_s = rungs[at], measured[at]
    if step_s > allowed:
        rung, step_s = _shrunk(frame, rung, step_s / work[at], allowed)
    steps = max(1, min(int(seconds / step_s), recipe.STEPS_PER_EPOCH * recipe.MOST_EPOCHS))
    return Chosen(rung, first, str(memory_of(job_of(frame, rung), budget)), step_s, steps)


def _shrunk(frame: Frame, rung: Rung, per_flop: float, allowed: float) -> tuple[Rung, float]:
    """The same with a smaller window, so that a step takes at most `allowed` seconds, and what it takes."""
    least = recipe.SMALLEST_PATCH[frame.dims]
    while (shape := smaller(frame.spacing, rung.shape, frame.median, least)) is not None:
        rung = replace(rung, shape=shape)
        if per_flop * flops_of(job_of(frame, rung)) <= allowed:
            break
    return rung, seconds_per_step(job_of(frame, rung), frame.budget)


def _window(frame: Frame, chosen: Chosen, slice_axis: int | None, median: tuple[int, ...]) -> Tree:
    patch = chosen.rung.shape.patch
    whole = all(edge >= length for edge, length in zip(patch, frame.median, strict=True))
    size = f"the median case is {by(median)} voxels on this grid"
    size += ", taken whole" if whole else f"; {by(patch)} of it fit into memory and time"
    tree: Tree = {"size": Because(list(patch), f"{size}; divisible by {by(chosen.rung.shape.factor)}")}
    if len(axes := frame.augment.flip.axes) == 1:
        tree["flips"] = Because(list(axes), "the mean of an image and its mirror image, in twice the time")
    if slice_axis is not None:
        tree["slice_axis"] = Because(slice_axis, "the median case has one slice along it: a network of two axes")
    return tree


def _network(chosen: Chosen) -> Tree:
    rung, planned = chosen.rung, chosen.planned
    tree = rung.network()
    why = f"doubled from level to level, from {rung.filters} on"
    if rung.filters < planned.filters:
        why += f"; with nnU-Net's {planned.filters} fewer than {recipe.LEAST_STEPS} steps would fit into the time"
    tree["filters"] = Because(tree["filters"], why)
    alike = all(edge == 3 for edges in rung.shape.kernels for edge in edges)
    thin = f"1 along an axis whose voxels are still {recipe.THIN:g} times as long as the shortest, or more"
    tree["kernels"] = Because(tree["kernels"], "voxels are alike along all axes" if alike else thin)
    halves = f"2 halves an axis, while {recipe.SMALLEST_EDGE} voxels are left at the deepest level"
    tree["strides"] = Because(tree["strides"], halves if alike else f"{halves}, and not before the finer ones")
    tree["deep_supervision"] = Because(tree["deep_supervision"], "further answers, of all levels but the two coarsest")
    return tree


def _training(frame: Frame, chosen: Chosen) -> Tree:
    """The sections optimizer, schedule and train."""
    steps, rung = chosen.steps, chosen.rung
    epochs = max(recipe.LEAST_EPOCHS, min(recipe.MOST_EPOCHS, steps // recipe.STEPS_PER_EPOCH))
    per_epoch = max(1, steps // epochs)
    long = steps >= recipe.SGD_FROM_STEPS
    budget = f"{60 * frame.budget.minutes * recipe.TRAIN_SHARE:.0f} s of {frame.budget.minutes:g} min for steps"
    batch = f"{recipe.DATASET_SHARE:.0%} of the dataset's voxels, memory and time allow so many"
    tree: Tree = {
        "optimizer": Because(dict(recipe.SGD if long else recipe.ADAMW), recipe.SGD_WHY if long else recipe.ADAMW_WHY),
        "schedule": {"name": "polynomial", "power": 0.9} if long else {"name": "onecycle"},
        "train": {
            "epochs": Because(
                min(epochs, steps), f"{budget}, {chosen.step_s:.3g} s each, measured on {frame.budget.device}"
            ),
            "steps_per_epoch": Because(per_epoch, f"{steps} steps in all"),
            "batch_size": Because(rung.batch, f"at least {LEAST_BATCH}; {batch}"),
            "clip_norm": Because(recipe.CLIP_NORM, "as nnU-Net"),
            "max_minutes": Because(frame.budget.minutes, "a slower machine ends here, before the last epoch"),
        },
    }
    return tree
