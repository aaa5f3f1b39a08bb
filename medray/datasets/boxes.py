"""Boxes around objects, as every layout that has them sees them: checked against their image, bad ones named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medray.config import nearest
from medray.datasets.files import some
from medray.sections.base import DatasetSection
from medray.types import Box, InputError

ROUNDING_PX = 0.01
"""Boxes are often written with two decimals; a face this far outside the image is put on its rim."""


class BoxSection(DatasetSection):
    """What every layout with boxes can be told."""

    drop_bad_boxes: bool = False
    """Leave out boxes without extent or outside their image, counted in a note; by default they refuse the dataset."""


@dataclass(frozen=True, slots=True)
class Boxed:
    """The objects of one case, before they are checked."""

    case_id: str
    size: tuple[int, int] | None
    """(rows, columns) as the annotation says; None where it does not."""
    boxes: Sequence[Box]


def check_boxes(cases: Sequence[Boxed], drop: bool) -> tuple[list[tuple[Box, ...]], tuple[str, ...]]:
    """The boxes of each case, and notes on those left out.

    Raises:
        InputError: `bad_box` for boxes without extent or outside their image, unless `drop`.
    """
    bad = [(case.case_id, why) for case in cases for box in case.boxes if (why := _fault(box, case.size))]
    if bad and not drop:
        count = sum(len(case.boxes) for case in cases)
        shown = "; ".join(f"'{case_id}': {why}" for case_id, why in bad[:3]) + ("; ..." if len(bad) > 3 else "")
        hint = "mend them, or leave them out with dataset.drop_bad_boxes=true"
        raise InputError("bad_box", f"{len(bad)} of {count} boxes are wrong: {shown}", hint)
    kept = [tuple(_clip(box, case.size) for box in case.boxes if not _fault(box, case.size)) for case in cases]
    notes = []
    if bad:
        notes.append(f"left out {len(bad)} boxes without extent or outside their image, in {some([i for i, _ in bad])}")
    blind = sum(case.size is None for case in cases)
    if blind:
        notes.append(f"{blind} annotations do not give the image's size: their boxes may lie outside")
    return kept, tuple(notes)


def class_index(index: Mapping[str, int], name: str, case_id: str) -> int:
    """The position of a class.

    Raises:
        InputError: `unknown_class`.
    """
    if name not in index:
        detail = f"'{case_id}' has a box of the unknown class '{name}'; classes are {some(list(index), 10)}"
        raise InputError("unknown_class", detail, f"name it in dataset.classes{nearest(name, index)}")
    return index[name]


def _fault(box: Box, size: tuple[int, int] | None) -> str:
    """What is wrong with a box, or ''."""
    if not all(map(math.isfinite, (*box.low, *box.high))):
        return "a face is no number"
    if size is not None:
        out = [-0.5 - low for low in box.low]
        out += [high - (edge - 0.5) for high, edge in zip(box.high, size, strict=True)]
        if max(out) > ROUNDING_PX:
            return f"{max(out):g} pixels outside the {size[0]} x {size[1]} image"
    clipped = _clip(box, size)
    edges = [high - low for low, high in zip(clipped.low, clipped.high, strict=True)]
    if min(edges) <= 0:
        return f"{edges[0]:g} x {edges[1]:g} pixels (rows x columns)"
    return ""


def _clip(box: Box, size: tuple[int, int] | None) -> Box:
    """The box with its faces on the image's rim where rounding put them outside."""
    if size is None:
        return box
    low = tuple(max(face, -0.5) for face in box.low)
    high = tuple(min(face, edge - 0.5) for face, edge in zip(box.high, size, strict=True))
    return replace(box, low=low, high=high)
