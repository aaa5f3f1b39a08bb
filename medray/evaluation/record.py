"""An evaluation in MLflow: one run with its figures, their intervals and the files that may leave the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medray.evaluation.result import Evaluation
from medray.evaluation.tables import metrics
from medray.tracking.run import client, start


class NotRecorded(RuntimeError):
    """The report is written, but MLflow does not know of it."""


def record(evaluation: Evaluation, files: Sequence[Path], uri: str | None) -> str:
    """A run 'evaluate-MODEL' beside the model's trainings; returns its id.

    Args:
        evaluation: the result.
        files: what is kept with it: nothing in them names a patient.
        uri: the tracking server, see `medray.tracking.run`.

    Raises:
        NotRecorded: the server cannot be reached or refuses.
    """
    model, data = evaluation.model, evaluation.data
    tags = {
        "medray.kind": "evaluation",
        "medray.model": model.name,
        "medray.digest": model.digest,
        "medray.data": data.fingerprint,
        "medray.data_name": data.name,
        "medray.part": data.part,
        "medray.provenance": data.provenance.relation,
        "medray.refused": str(len(evaluation.cases.refused)),
    }
    if evaluation.comparison is not None:
        tags["medray.compared"] = evaluation.comparison.other.digest
    try:
        run = start(client(uri), model.experiment, f"evaluate-{model.name}")
        run.log_tags(tags)
        run.log_metrics(metrics(evaluation))
        for file in files:
            run.client.log_artifact(run.run_id, str(file))
        run.finish("FINISHED")
    except Exception as error:
        # Whatever a server and its database can raise: the report is whole without it.
        raise NotRecorded((str(error).splitlines() or [type(error).__name__])[0]) from error
    return run.run_id
