"""How a network that looks through a window reads a whole image."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medray.sections.base import Count, Positive, Section


class WindowSection(Section):
    """The window of a dense network: training patches have its size, and answers are put together from it.

    A window of two axes on volumes reads slice by slice.
    """

    size: tuple[Count, ...] | None = None
    """One per axis of the network; by default preprocess.size, the whole grid."""
    slice_axis: Annotated[int, Field(ge=0, le=2)] = 2
    """Two axes on volumes: the axis across which slices lie."""
    neighbours: Annotated[int, Field(ge=0, le=8)] = 0
    """Two axes on volumes: slices on each side that the network sees as further channels (2.5D)."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a window that it has in common with the next (Isensee 2021, 10.1038/s41592-020-01008-z)."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    batch: Count = 4
    """Windows per forward pass, fewer where memory_gb says so."""
    flips: tuple[Annotated[int, Field(ge=0, le=2)], ...] = ()
    """Axes to mirror at test time: the mean over all combinations, 2 ** len as much work."""
    half: bool = False
    """Accumulate in float16."""
    skip_below: float | None = None
    """Windows without a voxel above this, as the network sees it, are background and are not computed."""
    restore: Literal["probabilities", "labels"] = "probabilities"
    """What is resampled to the patient's grid: probabilities (smooth borders) or labels (less memory)."""
    memory_gb: Positive = 4.0
    """Most that the answer's parts may take beside the image and the result."""

    @model_validator(mode="after")
    def _check(self) -> WindowSection:
        if self.size is not None and len(self.size) not in (2, 3):
            raise ValueError(f"size has {len(self.size)} axes; a window has 2 or 3")
        return self
