"""The workers of one training and what they do together; one process alone is a world of size 1."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from secrets import token_bytes

import torch
from torch import distributed

from medray.cluster import Allotment
from medray.pipeline.loader import Share


@dataclass(frozen=True, slots=True)
class World:
    """This worker's place among all, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def share(self) -> Share:
        """Which part of the data is this worker's."""
        return Share(self.rank, self.size)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any worker; the same answer everywhere."""
        return self.agree(flag)[0]

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag where it is set on any worker, in one message; the same answer everywhere."""
        if self.size == 1:
            return flags
        word = torch.tensor(flags, dtype=torch.float32, device=self.device)
        distributed.all_reduce(word, distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in word.tolist())

    def agreed_token(self) -> str:
        """A chance word, the same on every worker."""
        return bytes(self.from_first(list(token_bytes(4)))).hex()

    def from_first(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers, on every worker; all bring as many."""
        if self.size == 1:
            return numbers
        word = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        distributed.broadcast(word, src=0)
        return [int(number) for number in word.tolist()]

    def mean_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its mean over the workers."""
        if self.size == 1:
            return
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= self.size

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of `value` over the workers."""
        if self.size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def interleave(self, mine: torch.Tensor, count: int) -> torch.Tensor:
        """All rows (count, ...) in order, where each worker holds every size-th, beginning with its rank."""
        if self.size == 1:
            return mine
        longest = -(-count // self.size)
        padded = mine.new_zeros((longest, *mine.shape[1:]))
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        return torch.stack(parts, 1).flatten(0, 1)[:count]


def joined_world(device: torch.device) -> World:
    """The world of the process group that this process has joined, if any."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return World(device=device)
    return World(distributed.get_rank(), distributed.get_world_size(), device)


def device_of(allotment: Allotment) -> torch.device:
    """The device of a worker that has the process for itself."""
    return torch.device("cuda" if allotment.gpu else "cpu")


def set_threads(cpus: float) -> None:
    """Give torch as many threads as the worker has CPUs, so that workers of one node do not fight."""
    count = max(1, min(int(cpus), os.cpu_count() or 1))
    torch.set_num_threads(count)
