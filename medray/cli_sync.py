"""The verb sync: what MLflow missed. It belongs to medray/cli.py."""

from __future__ import annotations

from cyclopts import App

from medray.console import FAILED, Result


def register(app: App) -> None:
    """Add the verb to `app`."""
    app.command(sync)


def sync(*runs: str) -> Result:
    """Deliver to MLflow what it missed of trainings while it was away.

    Exit code 1 where it still does not answer.

    Args:
        runs: names of runs; by default all that MLflow does not have in full.
    """
    from medray.training.sync import sync as deliver

    outcome = Result(deliver(runs))
    outcome.exit_code = FAILED if outcome["waiting"] else 0
    return outcome
