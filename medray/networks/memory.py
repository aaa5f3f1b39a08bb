"""How much memory a training step takes, told before it runs: 'needs X GB, has Y' instead of a killed process.

The network is run on shapes without numbers, and what autograd keeps for the way back is counted as it is handed over:
exact for every family, of any size, in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn import functional

from medray.config import ConfigError
from medray.types import NetworkIO

GB = 1 << 30
FLOAT_BYTES = 4
STATES = {"sgd": 1, "adagrad": 1, "rmsprop": 2, "adam": 2, "adamw": 2}
"""Numbers that each optimiser of sections/training.py keeps beside a weight."""
IN_USE = 2
"""Of an activation that the way back has come to: the gradient that comes, and the one that goes."""
RESERVE = 0.1
"""On top of what was counted: allocators round, and leave holes."""
RUNTIME = {"cpu": 160 << 20, "cuda": 600 << 20}
"""Compiled kernels, their scratch memory and the heaps of threads; on a GPU its context too."""
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and usage of a container, version 2 and version 1."""


MEND = "lower train.batch_size, window.size, preprocess.size or the network's width, or raise train.accumulate"


@dataclass(frozen=True, slots=True)
class Memory:
    """What a training step takes on its device, in bytes; the process and its libraries are there before."""

    weights: int
    """Parameters and buffers, with the copies that a training keeps of them."""
    states: int
    """What the optimiser remembers."""
    backward: int
    """Most that activations and gradients take together: the ones go as the others come."""
    runtime: int
    """What comes with the first step, whatever its size."""

    @property
    def total(self) -> int:
        """All of it, with a reserve."""
        return self.runtime + round((1 + RESERVE) * (self.weights + self.states + self.backward))

    def __str__(self) -> str:
        parts = {"weights": self.weights, "optimiser": self.states, "backward": self.backward, "runtime": self.runtime}
        listed = ", ".join(f"{name} {size / GB:.2f}" for name, size in parts.items())
        return f"{self.total / GB:.2f} GB ({listed}, reserve {RESERVE:.0%})"


def forecast(
    network: nn.Module,
    io: NetworkIO,
    batch: int,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    optimizer: str = "adamw",
    device: str = "cpu",
    ema: bool = False,
) -> Memory:
    """What an optimiser step of `batch` cases at once (a worker's share, over train.accumulate) takes on `device`.

    Args:
        network: in training mode, on any device, the meta device too; it is not changed.
        io: what it takes and gives.
        batch: cases per forward pass.
        precision: of the forward pass; weights, their gradients and the states are float32.
        optimizer: its name in the experiment.
        device: 'cpu' or 'cuda'.
        ema: whether a moving average of the weights is kept.
    """
    shapes = _shapes(network)
    inside, after = _Kept(), _Kept()
    image = torch.empty(batch, io.in_channels, *io.size, device="meta")
    with saved_tensors_hooks(inside.pack, _unchanged):
        answer = functional_call(network, shapes, (image,))
    with saved_tensors_hooks(after.pack, _unchanged):
        _run_loss(answer, io.dense)
    learned = {_key(tensor): FLOAT_BYTES * tensor.numel() for tensor in shapes.values() if tensor.requires_grad}
    owned = {_key(tensor) for tensor in shapes.values()}
    # Under autocast nearly all that is kept has two bytes a number, and so has a copy of every weight.
    share = 1.0 if precision == "fp32" else 0.5
    activations = {key: round(share * size) for key, size in inside.sizes.items() if key not in owned}
    activations |= {key: size for key, size in after.sizes.items() if key not in activations}
    gradients = sum(learned.values())
    # The best weights so far lie on the CPU, and so does a copy of what they are an average of.
    copies = 1 + ema + (device == "cpu")
    return Memory(
        weights=copies * sum(FLOAT_BYTES * tensor.numel() for tensor in shapes.values())
        + (0 if precision == "fp32" else gradients // 2),
        states=gradients * STATES[optimizer],
        # On a GPU the optimiser works on all weights at once, with as much again for intermediate results.
        backward=max(_highest(inside, activations, learned), gradients * (2 if device == "cuda" else 1)),
        runtime=RUNTIME[device],
    )


def available_bytes(device: str) -> int:
    """Memory that `device` ('cpu', 'cuda' or 'cuda:1') has left, of its container where that is less."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    left = [_machine_left()]
    for limit_file, usage_file in CGROUPS:
        limit, usage = Path(limit_file), Path(usage_file)
        # No limit is the word 'max' in version 2, and a number beyond any machine in version 1.
        if limit.is_file() and usage.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
            left.append(int(text) - int(usage.read_text(encoding="ascii")))
    return max(0, min(left))


def require_memory(need: Memory, device: str, workers: int = 1, available: int | None = None) -> None:
    """Refuse a training that would run out of memory.

    Args:
        need: of one worker.
        device: as for `available_bytes`.
        workers: on this node, that share its memory: 1 where each has a GPU of its own.
        available: bytes, instead of what there is.

    Raises:
        ConfigError: what it needs, what there is, and which settings lower the need.
    """
    has = available_bytes(device) if available is None else available
    if need.total * workers > has:
        each = f" in each of {workers} workers" if workers > 1 else ""
        raise ConfigError([f"memory: a step needs {need}{each}, {device} has {has / GB:.2f} GB free; {MEND}"])


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on the device or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "cannot allocate memory")
    return isinstance(error, RuntimeError | OSError) and any(word in str(error).lower() for word in words)


def explain(error: BaseException, need: Memory, device: str) -> str:
    """What ran out, what a step was thought to need, what there is, and which settings lower the need."""
    # The system's own words alone: a path may be a patient's.
    words = error.strerror or "" if isinstance(error, OSError) else str(error)
    said = " ".join(words.split())[:200] or type(error).__name__
    has = available_bytes(device) / GB
    return f"out of memory on {device}: {said}; a step was thought to need {need}, {has:.2f} GB are free now; {MEND}"


class _Kept:
    """The storages that autograd keeps for the way back, in the order of the way there."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self._held: list[Any] = []

    def pack(self, tensor: Tensor) -> Tensor:
        """Note the storage of a tensor that is kept."""
        storage = tensor.untyped_storage()
        if tensor.is_meta and storage._cdata not in self.sizes:
            # Held, so that no other storage gets its address.
            self._held.append(storage)
            self.sizes[storage._cdata] = storage.nbytes()
        return tensor


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _key(tensor: Tensor) -> int:
    """Which storage a tensor lies in; one without numbers has no address."""
    return int(tensor.untyped_storage()._cdata)


def _shapes(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers without numbers."""
    own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {
        name: torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
        for name, tensor in own.items()
    }


def _run_loss(answer: Any, dense: bool) -> None:
    """A loss of the common kind: cross-entropy, and where voxels are answered for, soft Dice on one-hot labels."""
    for head in answer if isinstance(answer, list) else [answer]:
        target = torch.empty(len(head), *head.shape[2:], dtype=torch.int64, device="meta")
        loss = functional.cross_entropy(head, target)
        if dense:
            loss = loss + (head.softmax(1) * torch.empty_like(head)).sum()


def _highest(inside: _Kept, activations: Mapping[int, int], learned: Mapping[int, int]) -> int:
    """Most that is there at once on the way back, which frees activations and makes gradients in reverse order."""
    held = sum(activations.values())
    made = highest = 0
    for key in reversed(inside.sizes):
        size = activations.get(key, 0)
        highest = max(highest, held + made + IN_USE * size)
        held -= size
        made += learned.get(key, 0)
    return highest


def _machine_left() -> int:
    """What Linux can give without swapping."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
