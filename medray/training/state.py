"""The state of a learner: everything that its next step depends on, what all workers share apart from each one's own.

A training that goes on from it at the same number of workers ends with the same weights to the last bit (on CPUs).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from medray.training.checkpoint import Saved, State
from medray.training.learner import Learner

COUNTERS = ("epoch", "step", "skipped_steps", "best_epoch")


def take(learner: Learner) -> tuple[State, State]:
    """Copies, on the CPU: what all workers share, from rank 0 alone, and what is this worker's."""
    own = {f"buffers/{name.replace('/', '.', 1)}": tensor for name, tensor in _split(learner, own=True)}
    own |= {"random/cpu": torch.get_rng_state(), "loss": learner.loss_sum}
    if learner.world.device.type == "cuda":
        own["random/cuda"] = torch.cuda.get_rng_state(learner.world.device)
    mine = State(_copied(own), {"workers": learner.world.size})
    return (State({}) if learner.world.rank else _shared(learner)), mine


def _shared(learner: Learner) -> State:
    shared = dict(_split(learner, own=False))
    for number, moments in learner.optimizer.state_dict()["state"].items():
        shared |= {f"optimizer/{number}/{key}": value for key, value in moments.items() if torch.is_tensor(value)}
    # They are copies already, and are replaced, never changed.
    best = {f"best/{name}": tensor.contiguous() for name, tensor in learner.best_weights.items()}
    values = {
        **{name: getattr(learner, name) for name in COUNTERS},
        "best_score": learner.best_score if math.isfinite(learner.best_score) else None,
        "seconds": learner.seconds,
        "steps_per_epoch": learner.steps_per_epoch,
        "scaler": learner.scaler.state_dict(),
    }
    return State(_copied(shared) | best, values)


def give(learner: Learner, saved: Saved) -> None:
    """Put a learner where `saved` was taken, with settings of its own: a trial may go on from another's state.

    With another number of workers than before, each goes on with the mean of the buffers, and draws of its own.
    """
    tensors, values = saved.shared.tensors, saved.shared.values
    own = _own(saved.own, learner)
    for prefix, module in _modules(learner):
        found = _below(tensors, f"{prefix}/")
        found |= {
            name.removeprefix(f"{prefix}."): value
            for name, value in _below(own, "buffers/").items()
            if name.startswith(f"{prefix}.")
        }
        module.load_state_dict(found)
    _give_moments(learner, _below(tensors, "optimizer/"))
    learner.scaler.load_state_dict(values["scaler"])
    learner.best_weights = _below(tensors, "best/")
    for name in COUNTERS:
        setattr(learner, name, values[name])
    if values["steps_per_epoch"] != learner.steps_per_epoch:
        # Another batch size: what was done of an epoch cannot be found in the new one, which begins again.
        learner.step = learner.epoch * learner.steps_per_epoch
    learner.best_score = -math.inf if values["best_score"] is None else values["best_score"]
    learner.seconds = values["seconds"]
    learner.loss_sum = own["loss"].to(learner.world.device)
    if "random/cpu" in own:
        torch.set_rng_state(own["random/cpu"])
    if "random/cuda" in own and learner.world.device.type == "cuda":
        torch.cuda.set_rng_state(own["random/cuda"], learner.world.device)


def _modules(learner: Learner) -> Iterator[tuple[str, nn.Module]]:
    yield "network", learner.network
    if learner.averaged is not None:
        yield "averaged", learner.averaged


def _split(learner: Learner, own: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters are the same on all workers; buffers, such as running means, are each worker's own."""
    for prefix, module in _modules(learner):
        parameters = {name for name, _ in module.named_parameters()}
        for name, tensor in module.state_dict().items():
            if (name in parameters) != own:
                yield f"{prefix}/{name}", tensor


def _own(parts: Sequence[State], learner: Learner) -> Mapping[str, torch.Tensor]:
    """What is this worker's; of another number of workers the mean, without the state of their draws."""
    if len(parts) == learner.world.size:
        return parts[learner.world.rank].tensors
    names = [name for name in parts[0].tensors if not name.startswith("random/")]
    torch.manual_seed(hash((learner.experiment.seed, learner.epoch, learner.step, learner.world.rank)))
    return {name: _mean([part.tensors[name] for part in parts]) for name in names}


def _mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack(list(tensors)).mean(0)


def _give_moments(learner: Learner, moments: Mapping[str, torch.Tensor]) -> None:
    """The optimiser's memory, each moment in the memory order of its parameter."""
    state = learner.optimizer.state_dict()
    parameters = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
    state["state"] = {}
    for name, value in moments.items():
        number, _, key = name.partition("/")
        like = parameters[int(number)]
        fresh = torch.empty_like(like, dtype=value.dtype) if value.shape == like.shape else torch.empty_like(value)
        state["state"].setdefault(int(number), {})[key] = fresh.copy_(value)
    learner.optimizer.load_state_dict(state)


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU, in the plain memory order; they share no memory with the learner or each other."""
    return {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
