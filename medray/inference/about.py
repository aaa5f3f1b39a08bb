"""What is known of a model before its network is in memory: what it is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model before its network is in memory."""

    name: str
    digest: str
    """sha256 that names the bytes of all its bundles."""
    task: str
    """Name of the task's plug-in."""
    dense: bool
    """Whether it answers with a mask."""
    axes: int
    """Of the images that it takes."""
    channels: int
    classes: tuple[str, ...]
    structures: tuple[str, ...]
    """What a mask holds, from its value 1 on; of overlapping regions in their order."""
    outputs: tuple[str, ...]
    """What its probabilities are of."""
    members: int = 1

    def __str__(self) -> str:
        parts = [f"a {self.task} of {', '.join(self.outputs)}", f"on {self.axes}D images"]
        return " ".join([*parts, f"with {self.channels} channels"])
