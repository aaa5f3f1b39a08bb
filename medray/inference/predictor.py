"""Predictor: a resident bundle that answers; the same road as training's validation and as serving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from medray.bundle import GOLDEN_TOLERANCE, BundleError, ModelBundle, load
from medray.config import ConfigError
from medray.imaging.limits import Limits
from medray.imaging.preprocess import normalise, preprocess
from medray.imaging.reader import read
from medray.inference.dense import on_patient_grid
from medray.inference.trust import Trust
from medray.inference.whole import whole_probabilities
from medray.sections.inference import WindowSection
from medray.types import Array, Case, InputError, Prediction, Source

if TYPE_CHECKING:
    from medray.tasks.segmentation import Segmentation

CHANGED_VOXELS = 1e-3
"""Share of a golden window whose class may differ on another device: borders, where two classes are as likely."""


def _usable(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: this machine, or this build of torch, has none.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError([f"device: '{name}' cannot be used here: {str(error).splitlines()[0]}; take cpu"]) from None
    return device


class Predictor:
    """A model in memory, checked against its golden answer."""

    def __init__(
        self, folder: Path, device: str = "cpu", limits: Limits | None = None, window: WindowSection | None = None
    ) -> None:
        """Load the bundle in `folder`; `window` takes the place of the bundle's own way to read whole images.

        Raises:
            BundleError: the bundle is altered, or its network does not answer as it did when it was made.
        """
        self.bundle: ModelBundle = load(folder)
        self.device = _usable(device)
        self.limits = limits or Limits()
        self.window = window or self.bundle.experiment.window
        self.task = self.bundle.task()
        self.trust = Trust.of(self.bundle.card)
        self.network = self.bundle.network().to(self.device)
        self._check_golden()

    def _check_golden(self) -> None:
        window, expected = self.bundle.golden()
        found = self.bundle.thinned(self.scores(window))
        difference = float(np.abs(found - expected).max())
        # Other hardware rounds otherwise; there the card's tolerance counts, and the class may not change.
        on_cpu = self.device.type == "cpu"
        limit = GOLDEN_TOLERANCE if on_cpu else self.bundle.card["tolerance"]
        changed = float((found.argmax(1) != expected.argmax(1)).mean())
        if not difference <= limit or not (on_cpu or changed <= (CHANGED_VOXELS if self.task.dense else 0)):
            raise BundleError(
                f"{self.bundle.folder} answers its golden input with a difference of {difference:.2g}; "
                f"at most {limit:g} and the same class are allowed, so it is not used"
            )

    def read(self, source: Source | Case) -> Case:
        """The image as it lies in its file.

        Raises:
            InputError: the image cannot be read.
        """
        return source if isinstance(source, Case) else read(source, self.limits)

    def prepare(self, source: Source | Case) -> tuple[Case, Array]:
        """The case on the network's grid, and the network's input (C, *S) float32.

        Raises:
            InputError: the image cannot be read, or is not what this model takes.
        """
        cfg = self.bundle.experiment.preprocess
        case = preprocess(self.read(source), cfg)
        expected = (self.bundle.channels, *self.bundle.io.size)
        if len(case.image) != expected[0]:
            fact = f"the image has {len(case.image)} channels, the model takes {expected[0]}"
            raise InputError("wrong_channels", fact, "send it as the training data were: grey, or colour")
        axes = self.bundle.axes
        if (case.spatial_dims != axes) if self.task.dense else (case.image.shape != expected):
            takes = f"images of {axes} axes" if self.task.dense else str(expected)
            raise InputError(
                "wrong_shape",
                f"the image has shape {case.image.shape} on the network's grid, the model takes {takes}",
                "send an image with the channels and axes of the model's training data",
            )
        return case, cast(Array, normalise(case.image.astype(np.float32), cfg))

    def scores(self, images: Array) -> Array:
        """(B, K) probabilities of network inputs (B, C, *S) float32, of a dense task (B, K, *S); not calibrated."""
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            return np.asarray(self.task.predict(self.network, batch)[1].cpu().numpy())

    def predict(self, source: Source | Case, probabilities: bool = False) -> Prediction:
        """The model's answer for one image; `probabilities` asks for those of each voxel too.

        Raises:
            InputError: the image cannot be read, or is not what this model takes.
            ConfigError: the image needs more memory than window.memory_gb.
        """
        raw = self.read(source)
        case, image = self.prepare(raw)
        if self.task.dense:
            return self._segmented(raw, case, image, probabilities)
        return self._decided(case, self.scores(image[None])[0])

    def whole(self, image: Array) -> torch.Tensor:
        """(K, *S) probabilities of a dense network for its whole input (C, *S), put together from windows."""
        batch = torch.from_numpy(image).to(self.device)
        return whole_probabilities(self.task, self.network, batch, self.window, self.bundle.io.size)

    def _segmented(self, raw: Case, case: Case, image: Array, keep: bool) -> Prediction:
        return on_patient_grid(cast("Segmentation", self.task), self.whole(image), case, raw, self.window, keep)

    def _decided(self, case: Case, scores: Array) -> Prediction:
        """The answer for one case from its probabilities (K,), calibrated as the card says."""
        return self.trust.applied(self.task, case.case_id, scores, case.warnings)

    def predict_all(self, sources: Sequence[Source], batch_size: int = 32) -> list[Prediction | InputError]:
        """Answers in the order of `sources`; a bad image costs only its own."""
        if self.task.dense:
            return [self._attempt_whole(source) for source in sources]
        answers: list[Prediction | InputError] = []
        for start in range(0, len(sources), batch_size):
            answers += self._predict_batch(sources[start : start + batch_size])
        return answers

    def _predict_batch(self, sources: Sequence[Source]) -> list[Prediction | InputError]:
        prepared = [self._attempt(source) for source in sources]
        good = [item for item in prepared if not isinstance(item, InputError)]
        scores = iter(self.scores(np.stack([image for _, image in good]))) if good else iter(())
        return [item if isinstance(item, InputError) else self._decided(item[0], next(scores)) for item in prepared]

    def _attempt(self, source: Source) -> tuple[Case, Array] | InputError:
        try:
            return self.prepare(source)
        except InputError as error:
            return error

    def _attempt_whole(self, source: Source) -> Prediction | InputError:
        try:
            return self.predict(source)
        except InputError as error:
            return error
