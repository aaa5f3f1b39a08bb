"""The end of a study: a ranking, figures, the best trial's model in the registry, and its experiment as a file."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medray import cluster
from medray.config import Experiment, override, to_yaml
from medray.pipeline.prepare import Prepared, prepare
from medray.reports.study import pareto_front
from medray.tracking.run import TrackingError, tracking_uri
from medray.training.gate import Registered
from medray.training.goal import monitor_of
from medray.training.launch import TrainingFailed, launch
from medray.training.progress import say
from medray.training.record import close_record, describe, intervals, save_bundle, trust_of
from medray.training.worker import Outcome, collect
from medray.tuning import trials as records
from medray.tuning.illustrate import illustrate
from medray.tuning.mirror import Mirror
from medray.tuning.space import Space
from medray.tuning.trial import Study, prepared_for
from medray.tuning.trials import Curve, Trial

BEST = "best.yaml"
SHOWN = 20
"""Rows of the ranking on the terminal; ranking.csv has all."""
Scored = tuple[Trial, float]


class TrackingFailed(RuntimeError):
    """The model is trained and safe on the disk, but MLflow does not know of it."""


def conclude(
    study: Study, space: Space, trials: dict[int, Trial], signs: dict[str, int], mirror: Mirror
) -> dict[str, Any]:
    """Rank the trials, keep and register the best one's model, and say whether the search found better.

    Raises:
        TrainingFailed: no trial came to its end.
        TrackingFailed: MLflow does not answer; the same command goes on from here.
    """
    folder = study.folder
    curves = {index: records.curve(folder, index) for index in trials}
    monitor, sign = study.monitor, study.sign
    scored = [(trial, records.score(trial, curves[trial.index], monitor, sign)) for trial in trials.values()]
    ranking = records.ranked(scored, sign)
    _say_ranking(ranking, monitor)
    if not ranking or ranking[0][0].state != "finished":
        causes = list(dict.fromkeys(trial.error for trial in trials.values() if trial.error))[:3]
        why = "; ".join(causes) or "all were stopped early"
        raise TrainingFailed(f"no trial came to its end: {why}; to begin again: the same command with --new")
    best, score = ranking[0]
    chosen = override(study.experiment, best.settings)
    header = f"# Trial {best.index} of study {folder.name}: {monitor} {score:.4f}. Run it: medray train {BEST}\n"
    (folder / BEST).write_text(_changed_on_the_way(best) + header + to_yaml(chosen), encoding="utf-8")
    prepared = prepared_for(chosen, study)
    outcome = collect(records.folder_of(folder, best.index))
    for line in outcome.unfit[:10]:
        say(f"network.weights: {line}")
    shown = folder / "study"
    shown.mkdir(exist_ok=True)
    _write_ranking(shown / "ranking.csv", ranking, curves, monitor, signs)
    illustrate(shown / "figures", space, scored, curves, signs)
    spread = intervals(chosen, prepared, outcome)
    registered = _keep(study, chosen, prepared, outcome, mirror)
    for line in _verdict(study, ranking, spread):
        say(line)
    states = [trial.state for trial in trials.values()]
    return {
        "run": folder.name,
        "run_id": mirror.parent().run_id,
        "trials": len(trials),
        **{state: states.count(state) for state in ("finished", "stopped", "failed")},
        "epochs": sum(found.spent for found in curves.values()),
        "best": best.index,
        "settings": best.settings,
        "metrics": describe(outcome),
        "tracking_uri": tracking_uri(study.experiment.tracking.uri),
        "front": [] if len(signs) < 2 else _front([pair[0] for pair in scored], signs),
        "bundle": str(folder / "bundle"),
        "refused": len(prepared.refused),
        "model": registered.model if registered else None,
        "champion": bool(registered and registered.champion),
    }


def _changed_on_the_way(best: Trial) -> str:
    """What a plain training with the settings cannot repeat."""
    if not best.events:
        return ""
    return "# These are its last settings; on the way the population changed them:\n" + "".join(
        f"#   {event}\n" for event in best.events
    )


def _keep(study: Study, chosen: Experiment, prepared: Prepared, outcome: Outcome, mirror: Mirror) -> Registered | None:
    """Write the bundle and register it."""
    folder = study.folder
    trust = trust_of(chosen, prepared, outcome)
    judged = (prepared, outcome.metrics.get(monitor_of(chosen, prepared), math.nan))
    if study.experiment.tune.refit:
        chosen, prepared, outcome = refit(study, chosen)
    shutil.rmtree(folder / "bundle", ignore_errors=True)
    bundle = save_bundle(folder / "bundle", chosen, prepared, outcome, trust)
    try:
        mirror.close()
        record = mirror.parent()
        record.log_folder(folder / "study", "study")
        record.log_tags({"medray.trials": str(len(list((folder / records.TRIALS).iterdir())))})
        registered = close_record(record, folder, chosen, prepared, outcome, judged)
        if registered is not None:
            say(registered.verdict)
        record.finish("FINISHED")
    except TrackingError as error:
        way = "when it answers again, run the same command"
        raise TrackingFailed(f"{error}; the model is safe in {bundle.folder}, but not in MLflow; {way}") from error
    return registered


def refit(study: Study, chosen: Experiment) -> tuple[Experiment, Prepared, Outcome]:
    """Train the best settings on train and validation cases together; the last epoch's weights are kept."""
    final = override(chosen, {"split.join_val": True})
    prepared = prepare(final, cluster.home() / "stores", cluster.parallel_map)
    folder = study.folder / "refit"
    folder.mkdir(exist_ok=True)
    (folder / "experiment.yaml").write_text(to_yaml(final), encoding="utf-8")
    say(f"training the best settings again on {len(prepared.split.train)} cases, those of train and val")
    return final, prepared, launch(final, prepared, folder, study.allotment)


def _say_ranking(ranking: Sequence[Scored], monitor: str) -> None:
    """The ranked table for a person."""
    say(f"{'trial':>5}  {monitor.removeprefix('val/'):>10}  {'state':8}  settings")
    for trial, score in ranking[:SHOWN]:
        shown = f"{score:10.4f}" if math.isfinite(score) else " " * 10
        text = trial.error if trial.state == "failed" else records.describe(trial.settings)
        say(f"{trial.index:>5}  {shown}  {trial.state:8}  {text}")
    if len(ranking) > SHOWN:
        say(f"       ... and {len(ranking) - SHOWN} more in study/ranking.csv")


def _write_ranking(
    file: Path, ranking: Sequence[Scored], curves: dict[int, Curve], monitor: str, signs: dict[str, int]
) -> None:
    keys = list(dict.fromkeys(key for trial, _ in ranking for key in trial.settings))
    others = [name for name in signs if name != monitor]
    with file.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["rank", "trial", "state", monitor, *others, "epochs", *keys, "error"])
        for rank, (trial, score) in enumerate(ranking, 1):
            values = [trial.measured.get(name, "") for name in others]
            settings = [trial.settings.get(key, "") for key in keys]
            epochs = curves[trial.index].spent
            table.writerow([rank, trial.index, trial.state, score, *values, epochs, *settings, trial.public_error])


def _front(trials: Sequence[Trial], signs: dict[str, int]) -> list[int]:
    """Numbers of the finished trials that no other one beats in every objective."""
    finished = [trial for trial in trials if trial.state == "finished"]
    values = [[trial.measured.get(name, math.nan) for name in signs] for trial in finished]
    return [finished[position].index for position in pareto_front(values, list(signs.values()))]


def _verdict(study: Study, ranking: Sequence[Scored], intervals: dict[str, list[float]]) -> list[str]:
    """Whether the search found better than the experiment as it is, and what went wrong on the way."""
    lines = []
    name, (best, score) = study.monitor.removeprefix("val/"), ranking[0]
    first = next((pair for pair in ranking if pair[0].as_it_is), None)
    if first is not None and first[0] is best:
        lines.append(f"no trial was better than the experiment as it is: {name} {score:.4f}")
    elif first is not None and not study.sign * score > study.sign * first[1]:
        if first[0].state == "stopped":
            line = f"no trial that came to its end was better than the experiment as it is: {name} {score:.4f}"
            lines.append(
                f"{line} against {first[1]:.4f}, where that was stopped early; a higher tune.grace_epochs helps"
            )
    elif first is not None and first[0].state != "failed":
        how = "" if first[0].state == "finished" else ", where it was stopped early"
        line = (
            f"trial {best.index} is better than the experiment as it is: {name} {score:.4f} against {first[1]:.4f}{how}"
        )
        low, high = intervals.get(study.monitor, [math.nan, math.nan])
        if low <= first[1] <= high:
            line += f"; that is within the interval of the best, {low:.4f} to {high:.4f} (95 %)"
        lines.append(line)
    failed = [trial for trial, _ in ranking if trial.state == "failed"]
    if failed:
        lines.append(f"note: {len(failed)} of {len(ranking)} trials failed: {failed[0].error}")
    return lines
