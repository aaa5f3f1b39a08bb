"""Predictor: a resident bundle that answers; the same road as training's validation and as serving."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch

from medray.bundle import GOLDEN_TOLERANCE, BundleError, ModelBundle, load
from medray.config import ConfigError
from medray.imaging.limits import Limits
from medray.imaging.preprocess import normalise, preprocess
from medray.imaging.quality import measure
from medray.imaging.reader import read
from medray.inference.classical import head_of
from medray.inference.classical import scores as head_scores
from medray.inference.contract import Contract, Facts, check, facts_of
from medray.inference.dense import on_patient_grid
from medray.inference.features import Embedder, Embedding
from medray.inference.glance import with_embedding
from medray.inference.trust import Trust
from medray.inference.whole import whole_probabilities, windowing
from medray.inference.window import Forward
from medray.networks.layers import Features, bottleneck, feature_layer
from medray.sections.inference import WindowSection
from medray.types import Array, Case, InputError, Prediction, Source

if TYPE_CHECKING:
    from medray.tasks.segmentation import Segmentation

CHANGED_VOXELS = 1e-3
"""Share of a golden window whose class may differ on another device: borders, where two classes are as likely."""

DISTANCE = "distance_to_training"
"""In Prediction.quality beside the measures of the image: how far its embedding lies from the training's, as a
multiple of the distance from which on it is unlike."""


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


Run = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""Network inputs or windows (B, C, *W) -> scores (B, K), of a dense task (B, K, *W), not calibrated; and embeddings
(B, F) of the same pass, or None where nothing is made of them."""


class Ready(NamedTuple):
    """A case that the network can be asked about, and what is stated of its image."""

    case: Case
    image: Array
    """(C, *S), the network's input."""
    quality: Mapping[str, float]
    facts: Facts | None
    """None where the bundle has no input contract."""


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
        self.contract = Contract.of(self.bundle)
        self.head = head_of(self.bundle.extras())
        self.network = self.bundle.network().to(self.device)
        embeds = self.head is not None or (self.contract is not None and self.contract.reference is not None)
        self.embedder = Embedder(self.network, self.bundle.io) if embeds else None
        self._check_golden()

    @cached_property
    def features(self) -> Features | None:
        """Where the network has its last feature map, if it has one; found by a pass without numbers."""
        if not self.bundle.io.dense:
            return feature_layer(self.network, self.bundle.io)
        name = bottleneck(self.network, self.bundle.io)
        return None if name is None else Features(name, "")

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
        return self._scored(images)[0]

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One pass, see `Run`, on the model's device."""
        with torch.inference_mode():
            batch = images.to(self.device)
            if self.embedder is None:
                return self.task.predict(self.network, batch)[1], None
            (_, scores), embedded = self.embedder(batch, self.task.predict)
            if self.head is not None:
                found = head_scores(self.head, np.asarray(embedded.cpu().numpy()))
                scores = torch.from_numpy(found.astype(np.float32))
            return scores, embedded

    def _scored(self, images: Array) -> tuple[Array, Array | None]:
        scores, embedded = self.run(torch.from_numpy(np.ascontiguousarray(images)))
        found = None if embedded is None else np.asarray(embedded.cpu().numpy())
        return np.asarray(scores.cpu().numpy()), found

    def predict(self, source: Source | Case, probabilities: bool = False) -> Prediction:
        """The model's answer for one image; `probabilities` asks for those of each voxel too.

        Raises:
            InputError: the image cannot be read, or is not what this model takes.
            ConfigError: the image needs more memory than window.memory_gb.
        """
        raw = self.read(source)
        return self.answer(raw, self.ready(raw), self.run, probabilities)

    def ready(self, raw: Case) -> Ready:
        """The case as the network can be asked about it.

        Raises:
            InputError: it is not what this model takes.
        """
        case, image = self.prepare(raw)
        quality = measure(raw)
        return Ready(case, image, quality, None if self.contract is None else facts_of(raw, quality))

    def answer(self, raw: Case, ready: Ready, run: Run, probabilities: bool = False) -> Prediction:
        """The answer for `raw`; `run` asks the network, its own `run` or one that has passes wait for their turn.

        Raises:
            ConfigError: the image needs more memory than window.memory_gb.
        """
        if self.task.dense:
            return self._segmented(raw, ready, run, probabilities)
        scores, embedded = run(torch.from_numpy(ready.image[None]))
        found = None if embedded is None else np.asarray(embedded[0].cpu().numpy())
        return self._decided(ready, np.asarray(scores[0].cpu().numpy()), found)

    def whole(self, image: Array, forward: Forward | None = None) -> torch.Tensor:
        """(K, *S) probabilities of a dense network for its whole input (C, *S), put together from windows."""
        batch = torch.from_numpy(image).to(self.device)
        return whole_probabilities(self.task, self.network, batch, self.window, self.bundle.io.size, forward)

    def _segmented(self, raw: Case, ready: Ready, run: Run, keep: bool) -> Prediction:
        image, embedded = ready.image, None
        if self.embedder is None:
            found = self.whole(image, lambda windows: run(windows)[0])
        else:
            cfg = windowing(self.window, self.bundle.io.size, image.shape[1:])
            batch = torch.from_numpy(image).to(self.device)
            with torch.inference_mode():
                found, middle = with_embedding(cast(Embedding, run), batch, cfg, lambda ask: self.whole(image, ask))
            embedded = np.asarray(middle.cpu().numpy())
        task = cast("Segmentation", self.task)
        return self._stated(on_patient_grid(task, found, ready.case, raw, self.window, keep), ready, embedded)

    def _decided(self, ready: Ready, scores: Array, embedded: Array | None) -> Prediction:
        """The answer for one case from its probabilities (K,), calibrated as the card says."""
        answer = self.trust.applied(self.task, ready.case.case_id, scores, ready.case.warnings)
        return self._stated(answer, ready, embedded)

    def _stated(self, answer: Prediction, ready: Ready, embedded: Array | None) -> Prediction:
        """The answer with the image's quality, and a word for all in which it is unlike the training's."""
        if self.contract is None or ready.facts is None:
            return replace(answer, quality=ready.quality)
        words, distance = check(self.contract, ready.facts, embedded)
        quality = dict(ready.quality) if distance is None else {**ready.quality, DISTANCE: distance}
        return replace(answer, quality=quality, warnings=(*answer.warnings, *words))

    def predict_all(self, sources: Sequence[Source | Case], batch_size: int = 32) -> list[Prediction | InputError]:
        """Answers in the order of `sources`; a bad image costs only its own."""
        if self.task.dense:
            return [self._attempt_whole(source) for source in sources]
        answers: list[Prediction | InputError] = []
        for start in range(0, len(sources), batch_size):
            answers += self._predict_batch(sources[start : start + batch_size])
        return answers

    def _predict_batch(self, sources: Sequence[Source | Case]) -> list[Prediction | InputError]:
        prepared = [self._attempt(source) for source in sources]
        good = [item for item in prepared if not isinstance(item, InputError)]
        if not good:
            return [item for item in prepared if isinstance(item, InputError)]
        scores, embedded = self._scored(np.stack([item.image for item in good]))
        found = iter(zip(good, scores, [None] * len(good) if embedded is None else embedded, strict=True))
        return [item if isinstance(item, InputError) else self._decided(*next(found)) for item in prepared]

    def _attempt(self, source: Source | Case) -> Ready | InputError:
        try:
            return self.ready(self.read(source))
        except InputError as error:
            return error

    def _attempt_whole(self, source: Source | Case) -> Prediction | InputError:
        try:
            return self.predict(source)
        except InputError as error:
            return error
