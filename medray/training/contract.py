"""Makes the input contract when a training ends: some training images are read again, and some stored ones embedded.

The same facts and embeddings, and the answers that the validation cases had, are what drift is held against.

The cost is bounded: MOST_READ images are read (what they took when the store was built), and MOST_EMBEDDED are passed
through the best network on the CPU, twice: as many of train as of val.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.config import ConfigError, Experiment
from medray.imaging.preprocess import normalise
from medray.imaging.reader import read
from medray.inference import drift
from medray.inference.contract import FEWEST_CASES, Contract, Facts, build, facts_of
from medray.inference.trust import Trust
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
MOST_ANSWERED = 5000
"""Validation cases whose answers drift is held against: 500 for each bin."""
BATCH = 16


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a model has seen: the contract, and what it was made of."""

    contract: Contract
    rows: list[int]
    """Training cases that were read."""
    facts: list[Facts]
    """Theirs."""
    val_rows: list[int]
    """Validation cases that were embedded."""
    val: Array | None
    """(M, F) what the network makes of them; None where it has no embedding."""


def seen_of(experiment: Experiment, prepared: Prepared, weights: Mapping[str, Tensor]) -> Seen | None:
    """What the training images were like, and what the network of `weights` makes of them; None if not asked for.

    The cases are drawn with the experiment's seed. One whose file has gone since the training began does not count.
    """
    if not experiment.trust.contract:
        return None
    read_ones = dict(_facts(prepared, _drawn(prepared.rows("train"), MOST_READ, experiment.seed)))
    if not read_ones:
        return None
    facts = list(read_ones.values())
    val_rows: list[int] = []
    train = val = None
    if len(prepared.rows("train")) >= FEWEST_CASES and len(prepared.rows("val")):
        io = prepared.network_io(task_of(experiment, prepared).outputs)
        network = _network(experiment, io, weights)
        most = MOST_EMBEDDED[io.spatial_dims]
        train_rows, val_rows = (_drawn(prepared.rows(name), most, experiment.seed) for name in ("train", "val"))
        with suppress(ConfigError):  # a dense network without a feature map has no embedding
            train, val = (_embedded(experiment, prepared, network, io, rows) for rows in (train_rows, val_rows))
    return Seen(build(facts, train, val), list(read_ones), facts, val_rows, val)


def drift_of(
    experiment: Experiment, prepared: Prepared, scores: Mapping[str, Array], card: Mapping[str, Any], seen: Seen | None
) -> dict[str, Any] | None:
    """What drift is held against, for the card that has all else; None where there is nothing.

    Args:
        experiment: the run.
        prepared: its data.
        scores: raw ones of the validation cases, as `Outcome.scores`.
        card: what is said of classes and trust.
        seen: what the model has seen, if that was asked for.
    """
    groups = []
    rows, raw = prepared.rows("val"), scores.get("val")
    if raw is not None and len(raw) and not prepared.dense:
        task, trust = task_of(experiment, prepared), Trust.of(card)
        places = _drawn(np.arange(len(rows)), MOST_ANSWERED, experiment.seed)
        answers = [drift.scores_named(trust.applied(task, "", raw[place], ())) for place in places]
        groups.append((answers, _subjects(prepared, rows[places].tolist())))
    reference = None if seen is None else seen.contract.reference
    if seen is not None and seen.val is not None and reference is not None:
        far = (reference.distances(seen.val) / reference.threshold).tolist()
        groups.append(([{drift.DISTANCE: value} for value in far], _subjects(prepared, seen.val_rows)))
    if seen is not None:
        facts = [drift.numbers_of(fact, seen.contract.unit) for fact in seen.facts]
        groups.append((facts, _subjects(prepared, seen.rows)))
    made = drift.build(groups)
    return None if made is None else made.as_dict()


def _subjects(prepared: Prepared, rows: Sequence[int]) -> int:
    return len({prepared.dataset.refs[row].subject for row in rows})


def _drawn(rows: Array, most: int, seed: int) -> list[int]:
    """At most so many of the rows, in their order."""
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    return [int(row) for row in rows]


def _facts(prepared: Prepared, rows: Sequence[int]) -> Iterator[tuple[int, Facts]]:
    for row in rows:
        with suppress(InputError):
            yield row, facts_of(read(prepared.dataset.refs[row].source))


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
