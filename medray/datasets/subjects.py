"""Who is in an image: subjects from file names, and the warning where nobody knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import AfterValidator

from medray.datasets.files import some
from medray.types import CaseRef, InputError


def _one_group(pattern: str | None) -> str | None:
    """The regular expression, if it is one and has one group."""
    if pattern is None:
        return None
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"needs exactly one group in parentheses, as in '^(P[0-9]+)_'; it has {groups}")
    return pattern


SubjectPattern = Annotated[str | None, AfterValidator(_one_group)]
"""Regular expression with one group, searched in each file name: the group is the subject, as in '^(P[0-9]+)_'."""


def with_subjects(refs: Sequence[CaseRef], pattern: str | None) -> list[CaseRef]:
    """The references with the subject that the pattern finds in the last part of each case id; None finds nothing.

    Raises:
        InputError: `subject_pattern` where it finds none.
    """
    if pattern is None:
        return list(refs)
    matches = [re.search(pattern, ref.case_id.rsplit("/", 1)[-1]) for ref in refs]
    unmatched = [ref.case_id for ref, match in zip(refs, matches, strict=True) if not match or not match[1]]
    if unmatched:
        raise InputError(
            "subject_pattern",
            f"'{pattern}' finds no subject in {len(unmatched)} of {len(refs)} file names: {some(unmatched)}",
            "widen dataset.subject_pattern",
        )
    return [replace(ref, subject_id=match[1]) for ref, match in zip(refs, matches, strict=True) if match]


def subject_notes(refs: Sequence[CaseRef], mend: str) -> tuple[str, ...]:
    """A warning where cases have no subject; `mend` says how this layout can be told."""
    unknown = sum(not ref.subject_id for ref in refs)
    if not unknown:
        return ()
    if unknown == len(refs):
        what = "no subject column or pattern: every file counts as a subject of its own"
    else:
        what = f"{unknown} of {len(refs)} cases have no subject: each counts as a subject of its own"
    return (f"{what}; images of one patient may be torn between train and test ({mend})",)
