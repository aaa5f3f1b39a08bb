"""How settings are searched for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medray.sections.base import Count, Positive, Section

DEFAULT_TRIALS = 12


class TuneSection(Section):
    """The search: where it looks, who proposes, who stops what is weak, and what it may cost."""

    space: dict[str, dict[str, Any]] = Field(
        default_factory=lambda: {
            "optimizer.lr": {"loguniform": [1e-4, 1e-1]},
            "optimizer.weight_decay": {"loguniform": [1e-5, 1e-1]},
        }
    )
    """Dotted key of the experiment -> one of uniform, loguniform, randint, lograndint (with [low, high]; whole numbers
    stay below high) or choice (with its options). A mapping among the options may hold such entries again: they are
    drawn only where that option is."""
    trials: Count | None = None
    """By default 12, all points of a grid, or with `minutes` as many as there is time for."""
    minutes: Positive | None = None
    """No trial starts after these; what runs then comes to its end."""
    baseline: bool = True
    """The first trial is the experiment as it is, so that the search says whether it found better (not on a grid)."""
    searcher: Literal["random", "grid", "tpe"] = "random"
    """tpe: multivariate TPE (Bergstra 2011; Optuna's, with constant liar), of several objectives too."""
    scheduler: Literal["asha", "median", "hyperband", "pbt", "none"] = "asha"
    """Who stops weak trials: ASHA (Li 2020, arXiv:1810.05934), the median rule (Golovin 2017), HyperBand (Li 2018,
    arXiv:1603.06560); pbt: weak ones go on from the weights of good ones (Jaderberg 2017, arXiv:1711.09846)."""
    objectives: tuple[str, ...] = ()
    """Metrics that are traded against each other; by default what `train.monitor` says. The first one chooses."""
    concurrent: Count = 2
    """Trials at a time, where there are CPUs or GPUs for them; pbt and hyperband, which pause trials, run all that fit.
    """
    trials_per_gpu: Count = 1
    grace_epochs: Count | None = None
    """Epochs before a trial can be stopped, and of pbt between two looks at the others; by default a tenth of them all.
    """
    reduction: Annotated[int, Field(ge=2)] = 3
    """asha, hyperband: one in so many goes on."""
    refit: bool = False
    """Train the best settings again on train and validation cases together; that model is registered."""
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> TuneSection:
        if len(self.objectives) > 1 and self.scheduler != "none":
            raise ValueError(
                f"scheduler {self.scheduler} stops trials by one figure, and there are {len(self.objectives)} "
                "objectives: take scheduler=none"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives names a metric twice")
        if self.scheduler == "pbt" and (self.searcher != "random" or self.minutes is not None):
            raise ValueError("scheduler pbt keeps one population to the end: take searcher=random and no minutes")
        if self.scheduler == "pbt" and self.trials is not None and self.trials < 2:
            raise ValueError("scheduler pbt needs 2 trials or more, which learn from each other")
        if self.scheduler == "pbt" and self.refit:
            raise ValueError("refit trains with one set of settings from the start, which is not what a population did")
        if not self.space:
            raise ValueError("space holds no setting to search")
        return self

    @property
    def count(self) -> int | None:
        """Trials of the search; None where a grid or the time ends it."""
        if self.trials is not None:
            return self.trials
        return None if self.searcher == "grid" or self.minutes is not None else DEFAULT_TRIALS
