"""The bundle is run over the labelled cases, read once each; what comes out is a table without pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import cast

from medray.evaluation import classification, regression, segmentation
from medray.evaluation.cases import Answered, Cases, Refused
from medray.inference.predictor import Predictor
from medray.tasks.segmentation import Segmentation
from medray.types import Case, CaseRef, Dataset, InputError

Watch = Callable[[int, int], None]
"""Told how many cases of how many are done."""
BATCH = 32
"""Pictures that are answered at once; volumes are held one at a time."""


def measure(predictor: Predictor, dataset: Dataset, refs: Sequence[CaseRef], watch: Watch | None = None) -> Cases:
    """The table of `refs`: what the bundle says of each and how far that is from the truth.

    A case whose image or label map cannot be read, or that the bundle does not take, is among `refused`.

    Raises:
        InputError: `none_readable`, if no case is left.
    """
    task = predictor.bundle.experiment.task.name
    refused: list[Refused] = []
    table: Cases
    answered = _answers(predictor, refs, refused, watch or (lambda *_: None))
    if task == "segmentation":
        table = segmentation.tabulate(answered, dataset, cast(Segmentation, predictor.task), refused)
    elif task == "regression":
        table = regression.tabulate(_light(answered), dataset.classes)
    else:
        table = classification.tabulate(_light(answered), dataset.classes, dataset.multilabel)
    if not len(table):
        first = f"{refused[0].code}: {refused[0].detail}" if refused else "there are none"
        raise InputError("none_readable", f"none of {len(refs)} cases could be evaluated; the first says {first}")
    return replace(table, refused=tuple(refused))


def _light(answered: Iterator[Answered]) -> list[Answered]:
    """Every case without its pixels."""
    return [replace(item, raw=None) for item in answered]


def _answers(predictor: Predictor, refs: Sequence[CaseRef], refused: list[Refused], watch: Watch) -> Iterator[Answered]:
    """The cases that can be answered, in order; the others go to `refused`."""
    batch = 1 if predictor.task.dense or len(predictor.bundle.io.size) == 3 else BATCH
    for start in range(0, len(refs), batch):
        raws: list[tuple[CaseRef, Case]] = []
        for ref in refs[start : start + batch]:
            try:
                raws.append((ref, predictor.read(ref.source)))
            except InputError as error:
                refused.append(refusal(ref, error))
        # The predictor takes cases that are read where it takes their sources.
        answers = predictor.predict_all([raw for _, raw in raws])
        for (ref, raw), answer in zip(raws, answers, strict=True):
            if isinstance(answer, InputError):
                refused.append(refusal(ref, answer))
            else:
                # Files often know the person where the layout does not.
                yield Answered(
                    ref if ref.subject_id else replace(ref, subject_id=raw.subject_id), answer, raw.attributes, raw
                )
        watch(min(start + batch, len(refs)), len(refs))


def refusal(ref: CaseRef, error: InputError) -> Refused:
    """The entry of a case that was refused."""
    return Refused(ref.case_id, ref.subject, error.code, error.detail, error.hint)
