"""Predictor: a resident bundle that answers; the same road as training's validation and as serving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from medray.bundle import GOLDEN_TOLERANCE, BundleError, ModelBundle, load
from medray.config import ConfigError
from medray.imaging.limits import Limits
from medray.imaging.preprocess import normalise, preprocess
from medray.imaging.reader import read
from medray.types import Array, Case, InputError, Prediction, Source


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

    def __init__(self, folder: Path, device: str = "cpu", limits: Limits | None = None) -> None:
        """Load the bundle in `folder`.

        Raises:
            BundleError: the bundle is altered, or its network does not answer as it did when it was made.
        """
        self.bundle: ModelBundle = load(folder)
        self.device = _usable(device)
        self.limits = limits or Limits()
        self.task = self.bundle.task()
        self.network = self.bundle.network().to(self.device)
        self._check_golden()

    def _check_golden(self) -> None:
        window, expected = self.bundle.golden()
        found = self.scores(window)
        difference = float(np.abs(found - expected).max())
        # Other hardware rounds otherwise; there the card's tolerance counts, and the class may not change.
        on_cpu = self.device.type == "cpu"
        limit = GOLDEN_TOLERANCE if on_cpu else self.bundle.card["tolerance"]
        if not difference <= limit or not (on_cpu or (found.argmax(1) == expected.argmax(1)).all()):
            raise BundleError(
                f"{self.bundle.folder} answers its golden input with a difference of {difference:.2g}; "
                f"at most {limit:g} and the same class are allowed, so it is not used"
            )

    def prepare(self, source: Source | Case) -> tuple[Case, Array]:
        """The case on the network's grid, and the network's input (C, *S) float32.

        Raises:
            InputError: the image cannot be read, or is not what this model takes.
        """
        raw = source if isinstance(source, Case) else read(source, self.limits)
        cfg = self.bundle.experiment.preprocess
        case = preprocess(raw, cfg)
        expected = (self.bundle.io.in_channels, *self.bundle.io.size)
        if len(case.image) != expected[0]:
            fact = f"the image has {len(case.image)} channels, the model takes {expected[0]}"
            raise InputError("wrong_channels", fact, "send it as the training data were: grey, or colour")
        if case.image.shape != expected:
            raise InputError(
                "wrong_shape",
                f"the image has shape {case.image.shape} on the network's grid, the model takes {expected}",
                "send an image with the channels and axes of the model's training data",
            )
        return case, cast(Array, normalise(case.image.astype(np.float32), cfg))

    def scores(self, images: Array) -> Array:
        """(B, K) probabilities of network inputs (B, C, *S) float32."""
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            return np.asarray(self.task.predict(self.network, batch)[1].cpu().numpy())

    def predict(self, source: Source | Case) -> Prediction:
        """The model's answer for one image.

        Raises:
            InputError: the image cannot be read, or is not what this model takes.
        """
        case, image = self.prepare(source)
        return self.task.decode(case.case_id, self.scores(image[None])[0], case.warnings)

    def predict_all(self, sources: Sequence[Source], batch_size: int = 32) -> list[Prediction | InputError]:
        """Answers in the order of `sources`; a bad image costs only its own."""
        answers: list[Prediction | InputError] = []
        for start in range(0, len(sources), batch_size):
            answers += self._predict_batch(sources[start : start + batch_size])
        return answers

    def _predict_batch(self, sources: Sequence[Source]) -> list[Prediction | InputError]:
        prepared = [self._attempt(source) for source in sources]
        good = [item for item in prepared if not isinstance(item, InputError)]
        scores = iter(self.scores(np.stack([image for _, image in good]))) if good else iter(())
        return [
            item if isinstance(item, InputError) else self.task.decode(item[0].case_id, next(scores), item[0].warnings)
            for item in prepared
        ]

    def _attempt(self, source: Source) -> tuple[Case, Array] | InputError:
        try:
            return self.prepare(source)
        except InputError as error:
            return error
