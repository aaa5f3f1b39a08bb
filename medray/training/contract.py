"""Makes the input contract when a training ends: some training images are read again, and some stored ones embedded.

The cost is bounded: MOST_READ images are read (what they took when the store was built), and MOST_EMBEDDED are passed
through the best network on the CPU, twice: as many of train as of val.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from medray.config import ConfigError, Experiment
from medray.imaging.preprocess import normalise
from medray.imaging.reader import read
from medray.inference.contract import FEWEST_CASES, Contract, Facts, build, facts_of
from medray.networks.build import build as build_network
from medray.pipeline.prepare import Prepared
from medray.training.goal import task_of
from medray.types import Array, InputError, NetworkIO

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST_READ = 200
"""Of so many cases percentiles 1 and 99 are two cases from the end."""
MOST_EMBEDDED = {2: 400, 3: 120}
"""By the number of axes that the network sees; enough for a 99 % quantile, and no more than seconds to minutes."""
BATCH = 16


def contract_of(experiment: Experiment, prepared: Prepared, weights: Mapping[str, Tensor]) -> Contract | None:
    """What the training images were like, and what the network of `weights` makes of them; None if not asked for.

    The cases are drawn with the experiment's seed. One whose file has gone since the training began does not count.
    """
    if not experiment.trust.contract:
        return None
    facts = list(_facts(prepared, _drawn(prepared.rows("train"), MOST_READ, experiment.seed)))
    if not facts:
        return None
    train = val = None
    if len(prepared.rows("train")) >= FEWEST_CASES and len(prepared.rows("val")):
        io = prepared.network_io(task_of(experiment, prepared).outputs)
        network = _network(experiment, io, weights)
        most = MOST_EMBEDDED[io.spatial_dims]
        drawn = [_drawn(prepared.rows(name), most, experiment.seed) for name in ("train", "val")]
        with suppress(ConfigError):  # a dense network without a feature map has no embedding
            train, val = (_embedded(experiment, prepared, network, io, rows) for rows in drawn)
    return build(facts, train, val)


def _drawn(rows: Array, most: int, seed: int) -> list[int]:
    """At most so many of the rows, in their order."""
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    return [int(row) for row in rows]


def _facts(prepared: Prepared, rows: Sequence[int]) -> Iterator[Facts]:
    for row in rows:
        with suppress(InputError):
            yield facts_of(read(prepared.dataset.refs[row].source))


def _network(experiment: Experiment, io: NetworkIO, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network with `weights`, in eval mode on the CPU."""
    cfg = experiment.network.model_copy(update={"weights": None, "freeze": False})
    network = build_network(cfg, io, experiment.seed).network
    network.load_state_dict(dict(weights), strict=True)
    return network.eval()


def _embedded(
    experiment: Experiment, prepared: Prepared, network: nn.Module, io: NetworkIO, rows: Sequence[int]
) -> Array:
    """(N, F) embeddings of stored cases, as Predictor takes them."""
    import torch

    from medray.inference.features import Embedder
    from medray.inference.glance import embedding
    from medray.inference.whole import windowing

    embedder, found = Embedder(network, io), []
    with torch.inference_mode():
        if prepared.dense:
            cases = prepared.open_cases(experiment)
            for row in rows:
                image = torch.from_numpy(_input(experiment, cases.image(row)))
                cfg = windowing(experiment.window, io.size, tuple(image.shape[1:]))
                found.append(embedding(embedder, image, cfg)[None])
        else:
            images = prepared.open(experiment).images
            for start in range(0, len(rows), BATCH):
                batch = _input(experiment, images[list(rows[start : start + BATCH])])
                found.append(embedder(torch.from_numpy(batch))[1])
    return np.asarray(torch.cat(found).numpy())


def _input(experiment: Experiment, stored: Array) -> Array:
    """What the network is given of stored images."""
    return np.asarray(normalise(stored.astype(np.float32), experiment.preprocess))
