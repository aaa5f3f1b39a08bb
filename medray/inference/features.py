"""Pooled features: what a network has made of an image before its last layer, taken from the pass that predicts.

Of a network that answers per case they are the input of its last linear layer, of a dense one the mean over the
grid of its coarsest feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from threading import get_ident
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from medray.bundle import ModelBundle
from medray.config import ConfigError
from medray.inference.classical import Head, scores
from medray.inference.whole import windowing
from medray.inference.window import Windowing, stream
from medray.networks.layers import bottleneck, last_linear
from medray.sections.inference import WindowSection
from medray.types import Array, Case, NetworkIO, Source

Answer = TypeVar("Answer")
Embedding = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Windows (B, C, *W) -> what is answered and the features (B, F); an Embedder is one."""
BATCH = 32


class Resident(Protocol):
    """What is asked of a Predictor, which itself takes features from here."""

    bundle: ModelBundle
    network: nn.Module
    device: torch.device
    window: WindowSection

    def prepare(self, source: Source | Case) -> tuple[Case, Array]:
        """The case on the network's grid, and the network's input (C, *S)."""


def call(network: nn.Module, images: Tensor) -> Any:
    """The network's own output."""
    return network(images)


class Embedder:
    """Takes a network's features from any of its passes.

    Hooks are on the network only during a pass, so it can be copied, compiled and exported as without; they cost
    microseconds, and passes in other threads do not mix.
    """

    def __init__(self, network: nn.Module, io: NetworkIO) -> None:
        """Find where the features are.

        Args:
            network: (B, C, *S) -> (B, K), or (B, K, *S) where `io` says dense.
            io: what it takes and gives.

        Raises:
            ConfigError: a dense network without a feature map.
        """
        self._network = network
        self._dense = io.dense
        name = bottleneck(network, io) if io.dense else last_linear(network)
        if name is None:
            raise ConfigError(["network.name: the network has no feature map of which a mean could be taken"])
        self._part = network.get_submodule(name)

    def __call__(self, images: Tensor, forward: Callable[[nn.Module, Tensor], Answer] = call) -> tuple[Answer, Tensor]:
        """What `forward` answers and the features (B, F) float32 of the same pass.

        Args:
            images: (B, C, *S) as the network takes them.
            forward: runs the network on them exactly once; `task.predict` is one.
        """
        kept: list[Tensor] = []
        thread = get_ident()

        def keep_input(_part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if get_ident() == thread:
                kept.append(inputs[0].detach())

        def keep_mean(_part: nn.Module, _inputs: object, output: Tensor) -> None:
            if get_ident() == thread:
                kept.append(output.detach().flatten(2).mean(2))

        part = self._part
        hook = part.register_forward_hook(keep_mean) if self._dense else part.register_forward_pre_hook(keep_input)
        try:
            answer = forward(self._network, images)
        finally:
            hook.remove()
        if len(kept) != 1 or len(kept[0]) != len(images):
            raise ValueError(f"one pass over {len(images)} images, got features {[tuple(part.shape) for part in kept]}")
        return answer, kept[0].float()


def head_answer(head: Head, bundle: ModelBundle, window: Array) -> Array:
    """(B, K) float32 scores that a head gives of network inputs (B, C, *S): what `bundle.answer` is to a network."""
    with torch.inference_mode():
        found = Embedder(bundle.network(), bundle.io)(torch.from_numpy(window))[1]
    return scores(head, found.numpy()).astype(np.float32)


def features(predictor: Resident, sources: Sequence[Source | Case]) -> Array:
    """(N, F) float32 pooled features of images, in their order; the same images give the same bits.

    Raises:
        InputError: of the first image that cannot be read, or is not what this model takes.
    """
    return embed(predictor, (predictor.prepare(source)[1] for source in sources))


def embed(predictor: Resident, images: Iterable[Array]) -> Array:
    """(N, F) float32 pooled features of network inputs (C, *S); a dense network's are the mean over its windows."""
    embedder = Embedder(predictor.network, predictor.bundle.io)
    rows: list[Tensor] = []
    with torch.inference_mode():
        if predictor.bundle.io.dense:
            rows += [_of_windows(predictor, embedder, torch.from_numpy(image)) for image in images]
        else:
            rows += [embedder(torch.from_numpy(batch).to(predictor.device))[1].cpu() for batch in _batches(images)]
    if not rows:
        raise ValueError("there are no images to take features of")
    return np.asarray(torch.cat(rows).numpy())


def _batches(images: Iterable[Array]) -> Iterator[Array]:
    """(b, C, *S), up to BATCH images at a time."""
    left = iter(images)
    while batch := list(islice(left, BATCH)):
        yield np.stack(batch)


def of_windows(run: Embedding, image: Tensor, cfg: Windowing) -> Tensor:
    """(F,) the mean over windows side by side of an image (C, *S)."""
    seen: list[Tensor] = []

    def forward(windows: Tensor) -> Tensor:
        answer, found = run(windows)
        seen.append(found)
        return answer

    for _ in stream(forward, image, replace(cfg, overlap=0.0, flips=())):
        pass
    return torch.cat(seen).mean(0)


def _of_windows(predictor: Resident, embedder: Embedder, image: Tensor) -> Tensor:
    """(1, F) as the image is read for a prediction."""
    cfg = windowing(predictor.window, predictor.bundle.io.size, tuple(image.shape[1:]))
    return of_windows(embedder, image.to(predictor.device), cfg)[None].cpu()
