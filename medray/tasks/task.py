"""What a task is to the rest of medray, and how one is made from its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from medray.config import load_plugin
from medray.sections.base import TaskSection
from medray.types import Array, Batch, Prediction

if TYPE_CHECKING:
    from torch import Tensor, nn


class Task(Protocol):
    """What differs between tasks, and nothing else."""

    @property
    def dense(self) -> bool:
        """Whether it is answered per voxel, on patches and from label maps, or per case."""

    @property
    def monitor(self) -> str:
        """The metric that chooses the best epoch, where the experiment does not say."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what is measured on each split, without the split's."""

    @property
    def decision(self) -> dict[str, float] | str:
        """How scores become labels: a threshold per class, or 'the likeliest class'."""

    @property
    def settled(self) -> TaskSection:
        """The settings with what the training cases decided: those that a bundle keeps."""

    @property
    def outputs(self) -> int:
        """Length of the network's output."""

    def step(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Losses of one batch; `loss` is minimised. It gets the network: a detector's loss lives in its forward."""

    def predict(self, network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        """Raw output and scores (B, K), of a dense task (B, K, *S), of images (B, C, *S)."""

    @property
    def columns(self) -> int:
        """Length of a row of `measure`."""

    def measure(self, output: Tensor, scores: Tensor, target: Tensor) -> Tensor:
        """(B, columns) what `summarise` needs to know of each case, and its loss in the last column.

        Of a dense task `output` and `scores` are the probabilities of the whole case, put together from windows.
        """

    def case_weights(self, targets: Array, weights: Array) -> Array:
        """(n,) weights of the training cases in the loss."""

    def case_chances(self, targets: Array) -> Array | None:
        """(n,) chances of the training cases to be drawn, None for a plain permutation."""

    def decode(self, case_id: str, scores: Array, warnings: tuple[str, ...] = ()) -> Prediction:
        """The answer for one case from its scores (K,), of a dense task (K, *S) on the patient's grid."""

    def summarise(self, rows: Array, targets: Array) -> dict[str, float]:
        """Metrics of the cases' rows (N, columns - 1) against targets (N, K)."""

    def headline(self, rows: Array, targets: Array) -> float:
        """The figure of `summarise` that `monitor` names, without the rest: for intervals."""

    def per_class(self, rows: Array, targets: Array) -> dict[str, dict[str, float]]:
        """Metrics of each class over the cases' rows (N, columns - 1)."""


def build(cfg: TaskSection, classes: tuple[str, ...], multilabel: bool, targets: Array) -> Task:
    """The task that `cfg` names, on a dataset with these classes and training targets (n, K)."""
    return cast(Task, load_plugin("tasks", cfg.name).build(cfg, classes, multilabel, targets))
