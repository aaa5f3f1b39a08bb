"""What is measured of a fault, and where: one home, in which an unbroken run is made once for those that it is like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medray.benchmarks.victim import PATIENCE_S, SLOWEST_EPOCH_S, Recovery, Training

EPOCHS = 12


@dataclass(frozen=True, slots=True)
class Row:
    """What one fault did to one run."""

    fault: str
    how: str
    codes: tuple[int, ...] = ()
    """Exit codes of the command, each time that it ended."""
    repeated: tuple[int, ...] = ()
    """Steps that were done again, after each fault."""
    lost: int | None = None
    """Epochs that MLflow does not have."""
    doubled: int | None = None
    """Figures that it has twice."""
    same: bool | None = None
    """Whether the run ended as the unbroken one did, to the last bit."""
    seconds: tuple[float, ...] = ()
    """Until the training moved on, after each fault."""
    found: str = ""


@dataclass(eq=False, slots=True)
class Bench:
    """Where faults are measured.

    Args:
        folder: for everything.
        kills: of workers in one run.
        outage_s: seconds that a disk is away.
    """

    folder: Path
    kills: int
    outage_s: float
    _clean: dict[tuple[int, int], Training] = field(default_factory=dict)

    def training(self, name: str, workers: int, *settings: str, epochs: int = EPOCHS, **environment: str) -> Training:
        """A run that is yet to be started."""
        size = [f"scaling.workers={workers}", f"train.epochs={epochs}"]
        return Training(self.folder / "home", name, [*size, *settings], **environment)

    def clean(self, workers: int, epochs: int = EPOCHS) -> Training:
        """The unbroken run of that size."""
        size = workers, epochs
        if size not in self._clean:
            with self.training(f"clean-{workers}-{epochs}", workers, epochs=epochs) as run:
                run.end(timeout_s=PATIENCE_S + SLOWEST_EPOCH_S * epochs)
            self._clean[size] = run
        return self._clean[size]

    def row(
        self,
        run: Training,
        fault: str,
        how: str,
        recoveries: Sequence[Recovery] = (),
        like: Training | None = None,
        found: str = "",
        database: Path | None = None,
    ) -> Row:
        """Wait until a run ends well, and tell what it lost.

        Args:
            run: after its faults.
            fault: its name.
            how: it was made.
            recoveries: from them.
            like: the unbroken run that it should end as.
            found: what else was seen.
            database: of MLflow, if not the embedded one.
        """
        run.end()
        tracked = run.tracked(database)
        seconds, repeated = ([getattr(one, name) for one in recoveries] for name in ("seconds", "repeated"))
        return Row(
            fault,
            how,
            tuple(run.codes),
            tuple(repeated),
            tracked.lost,
            tracked.doubled,
            None if like is None else run.same_as(like),
            tuple(round(second, 1) for second in seconds),
            found,
        )
