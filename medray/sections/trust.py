"""What a model says of its own answers: calibration, sets, operating points, and what it has not seen."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from medray.sections.base import Section

Share = Annotated[float, Field(gt=0, lt=1)]


class OperatingRule(Section):
    """A threshold that reaches a sensitivity, or a specificity, on the validation cases."""

    of: str
    """The class that is called positive."""
    sensitivity: Share | None = None
    """At least this, with the highest specificity that goes with it."""
    specificity: Share | None = None
    """At least this, with the highest sensitivity that goes with it."""

    @model_validator(mode="after")
    def _check(self) -> OperatingRule:
        if (self.sensitivity is None) == (self.specificity is None):
            raise ValueError("needs one of sensitivity and specificity")
        return self


class TrustSection(Section):
    """Fitted on the validation cases when a training ends, kept in the bundle, applied to every answer."""

    temperature: bool = True
    """Scale confidence to what it is worth (Guo 2017, arXiv:1706.04599)."""
    conformal_alpha: Share | None = 0.1
    """Sets of classes that hold the true one in 1 - alpha of cases (Sadinle 2019, 10.1080/01621459.2017.1395341)."""
    per_class: bool = False
    """The same promise for each class by itself: rare classes get larger sets."""
    operating_points: tuple[OperatingRule, ...] = ()
    """The first of a class decides where two classes exclude each other, and for each label that may come alone."""
    contract: bool = True
    """Remember what the training images were like, and warn of others."""
