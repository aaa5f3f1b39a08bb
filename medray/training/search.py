"""Ray Tune: a search over an experiment's settings; a trial is the same loop, in the trial's own process."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from medray import cluster
from medray.config import ConfigError, Experiment, override, to_yaml
from medray.pipeline.prepare import Prepared, prepare
from medray.tracking.run import RunRecord, client, start
from medray.training.goal import monitor_of, monitor_sign
from medray.training.launch import TrainingFailed
from medray.training.progress import Progress, say
from medray.training.record import close_record, describe, open_record, save_bundle
from medray.training.train import new_folder
from medray.training.worker import collect, work
from medray.training.world import World, device_of, set_threads

DISTRIBUTIONS = {
    "uniform": tune.uniform,
    "loguniform": tune.loguniform,
    "randint": tune.randint,
    "choice": lambda *options: tune.choice(list(options)),
}


def search(experiment: Experiment) -> dict[str, Any]:
    """Try `tune.trials` settings drawn from `tune.space` under ASHA and register the best.

    Returns:
        run, run_id, trials, settings, metrics, bundle, model, champion: the job's last line.

    Raises:
        ConfigError: the space names no setting of the experiment, or a distribution that does not exist.
        TrainingFailed: no trial came to its end.
    """
    space = parameter_space(experiment)
    cluster.connect()
    prepared = prepare(experiment, cluster.home() / "stores", cluster.parallel_map)
    allotment = _allot_trials(experiment)
    Progress(time.time()).announce(experiment, prepared, allotment)
    folder = new_folder(experiment)
    record = start(client(experiment.tracking.uri), experiment.name, f"{folder.name} (tune)")
    open_record(record, experiment, prepared)
    try:
        results = _run_trials(experiment, prepared, space, allotment, folder)
        best = _log_trials(record, experiment, results)
        with best.checkpoint.as_directory() as place:
            outcome = collect(Path(place))
        chosen = override(experiment, best.config)
        (folder / "best.yaml").write_text(to_yaml(chosen), encoding="utf-8")
        bundle = save_bundle(folder / "bundle", chosen, prepared_for(chosen, experiment, prepared), outcome)
        registered = close_record(record, folder, chosen, prepared_for(chosen, experiment, prepared), outcome)
    except BaseException as error:
        record.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    record.finish("FINISHED")
    if registered is not None:
        say(registered.verdict)
    return {
        "run": folder.name,
        "run_id": record.run_id,
        "trials": len(results),
        "settings": best.config,
        "metrics": describe(outcome),
        "bundle": str(bundle.folder),
        "refused": len(prepared.refused),
        "model": registered.model if registered else None,
        "champion": bool(registered and registered.champion),
    }


def _allot_trials(experiment: Experiment) -> cluster.Allotment:
    """What one trial takes; fewer run at once than tune.concurrent where there are fewer GPUs or CPUs.

    Raises:
        ConfigError: a trial has one worker.
    """
    if experiment.scaling.workers not in ("auto", 1):
        raise ConfigError([f"scaling.workers: a trial has one worker, {experiment.scaling.workers} were asked for"])
    scaling = experiment.scaling.model_copy(update={"workers": 1})
    cpus, gpus = cluster.resources()
    places = gpus if gpus and scaling.gpu is not False else int(cpus)
    return cluster.allot(scaling, share=max(1, min(experiment.tune.concurrent, places)))


def parameter_space(experiment: Experiment) -> dict[str, Any]:
    """Tune's distributions, each key checked against the experiment.

    Raises:
        ConfigError: with every mistake.
    """
    space, mistakes = {}, []
    for key, entry in experiment.tune.space.items():
        kind, arguments = next(iter(entry.items()), ("", None))
        if len(entry) != 1 or kind not in DISTRIBUTIONS or not isinstance(arguments, list) or not arguments:
            known = ", ".join(DISTRIBUTIONS)
            mistakes.append(f"tune.space.{key}: expected one of {known} with a list, got {entry}")
            continue
        try:
            space[key] = DISTRIBUTIONS[kind](*arguments)
            override(experiment, {key: space[key].sample()})
        except ConfigError as error:
            mistakes += [f"tune.space: {line}" for line in error.mistakes]
        except (TypeError, ValueError) as error:
            mistakes.append(f"tune.space.{key}: {error}")
    if mistakes:
        raise ConfigError(mistakes)
    return space


def _run_trials(
    experiment: Experiment, prepared: Prepared, space: dict[str, Any], allotment: cluster.Allotment, folder: Path
) -> Any:
    """The study; every trial reports the monitored metric of each epoch."""
    cfg = experiment.tune
    scheduler = ASHAScheduler(
        # One more than there are epochs: a trial that reaches the end is not stopped, it ends.
        max_t=experiment.train.epochs + 1,
        grace_period=min(cfg.grace_epochs, experiment.train.epochs),
        reduction_factor=cfg.reduction,
    )
    resources = {"CPU": allotment.cpus, **({"GPU": 1} if allotment.gpu else {})}
    trainable = partial(run_trial, experiment=experiment, prepared=prepared, allotment=allotment)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            scheduler=scheduler,
            num_samples=cfg.trials,
            # Here and not in TuneConfig, whose own limit does not count for this searcher.
            search_alg=tune.search.BasicVariantGenerator(max_concurrent=cfg.concurrent, random_state=cfg.seed),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )
    return cluster.aside(tuner.fit)


def run_trial(config: dict[str, Any], experiment: Experiment, prepared: Prepared, allotment: cluster.Allotment) -> None:
    """One trial: the loop in this process, an epoch a report, the checkpoint with the last one."""
    set_threads(allotment.cpus)
    chosen = override(experiment, config)
    sign = monitor_sign(monitor_of(chosen, prepared), chosen.train.mode)
    reporter = TuneReporter(monitor_of(chosen, prepared), sign)
    work(chosen, prepared_for(chosen, experiment, prepared), World(device=device_of(allotment)), reporter, None)


class TuneReporter:
    """Reports to Ray Tune: an epoch a result; the last one brings the checkpoint and says that the trial ended."""

    def __init__(self, monitor: str, sign: int) -> None:
        self.monitor = monitor
        self.sign = sign
        self.row: dict[str, float | None] = {}
        self.best = -math.inf

    def report(self, row: Mapping[str, float | None], place: Path | None) -> None:
        """`score` is the best monitored value so far, more being better."""
        self.row = dict(row) or self.row
        value = self.row.get(self.monitor)
        self.best = max(self.best, -math.inf if value is None else self.sign * value)
        found = {**self.row, "score": self.best, "finished": int(not row)}
        tune.report(found, checkpoint=None if place is None else tune.Checkpoint.from_directory(str(place)))

    def step(self, done: int, epoch: int) -> None:
        """Nothing: Tune hears of epochs."""


def prepared_for(chosen: Experiment, experiment: Experiment, prepared: Prepared) -> Prepared:
    """The data of a trial: shared, unless its settings change them; then built once, whoever comes first."""
    same = all(getattr(chosen, part) == getattr(experiment, part) for part in ("dataset", "split", "preprocess"))
    return prepared if same else prepare(chosen, cluster.home() / "stores")


def _log_trials(record: RunRecord, experiment: Experiment, results: Any) -> Any:
    """A nested run per trial, a ranked table on stderr; returns the best trial that came to its end."""
    ended = []
    for number, result in enumerate(results):
        metrics = {name: value for name, value in (result.metrics or {}).items() if isinstance(value, int | float)}
        trial = start(record.client, experiment.name, f"trial {number}", parent=record.run_id)
        trial.log_params(result.config)
        trial.log_metrics({name: float(v) for name, v in metrics.items() if "/" in name or name == "score"})
        finished = bool(metrics.get("finished"))
        trial.log_tags({"medray.trial": "failed" if result.error else "finished" if finished else "stopped early"})
        trial.finish("FAILED" if result.error else "FINISHED")
        if finished:
            ended.append(result)
    if not ended:
        errors = {str(result.error) for result in results if result.error}
        raise TrainingFailed(f"no trial came to its end: {'; '.join(errors) or 'all were stopped early'}")
    for result in sorted(results, key=lambda item: -_score(item)):
        state = "failed" if result.error else "finished" if result in ended else "stopped"
        settings = ", ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in result.config.items()
        )
        say(f"  {_score(result):8.4f}  {state:8}  {settings}")
    return max(ended, key=_score)


def _score(result: Any) -> float:
    score = (result.metrics or {}).get("score")
    return -math.inf if score is None or not math.isfinite(score) else float(score)
