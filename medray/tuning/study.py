"""A search over an experiment's settings, from the first trial, or from where it was interrupted, to a better model."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import BasicVariantGenerator

from medray import cluster
from medray.cluster import Allotment
from medray.config import ConfigError, Experiment, load, nearest
from medray.pipeline.prepare import Prepared, prepare
from medray.training.checkpoint import StorageError
from medray.training.folder import EXPERIMENT, RESULT, RUNS, RunNotFound, interrupted, locked, new_folder, write_whole
from medray.training.goal import measured_by, monitor_of, monitor_sign, task_of
from medray.training.offsite import copied
from medray.training.offsite_store import bring, bring_back
from medray.training.progress import say
from medray.training.train import check_same_data
from medray.tuning import trials as records
from medray.tuning.conclude import conclude
from medray.tuning.folder import RAY, clear, spent, timed
from medray.tuning.mirror import Mirror
from medray.tuning.parse import parse
from medray.tuning.schedule import PAUSING, check_population, scheduler_of
from medray.tuning.searcher import Proposals, StudySearcher, planned
from medray.tuning.space import Drawn, Space
from medray.tuning.tpe import Memory
from medray.tuning.trial import Study, run_trial
from medray.tuning.watch import Progress, Watch

WAITING_BYTES = float(1 << 28)


def search(experiment: Experiment, new: bool = False) -> dict[str, Any]:
    """Run the study that `tune` describes; the same experiment again goes on with a study that was interrupted.

    Args:
        experiment: with the section `tune`.
        new: begin anew, whatever was interrupted.

    Returns:
        run, run_id, trials, finished, stopped, failed, best, settings, metrics, bundle, model, champion: the job's
        last line.

    Raises:
        ConfigError: with every mistake in the space and the rules of the search.
        RunLocked: another process is at this study.
        TrainingFailed: no trial came to its end.
    """
    space, points = _planned(experiment)
    if not new:
        bring_back(experiment)
    folder = None if new else interrupted(experiment, _is_study)
    if folder is None:
        folder = new_folder(experiment)
        (folder / records.TRIALS).mkdir()
        say(f"study {folder.name} in {folder}")
    else:
        done = sum(trial.ended for trial in records.load_all(folder).values())
        say(f"going on with study {folder.name} in {folder}: {done} trials are done (--new begins another)")
    with locked(folder), copied(folder):
        return _run(experiment, space, points, folder)


def resume(name: str) -> dict[str, Any]:
    """Go on with the study of that name; one that is finished gives its result again.

    Raises:
        RunNotFound: there is no such study.
        and what `search` raises.
    """
    folder = cluster.home() / RUNS / name
    bring(name)
    if not _is_study(folder):
        raise RunNotFound(f"no study '{name}' in {cluster.home() / RUNS}")
    if (folder / RESULT).is_file():
        say(f"study {name} is finished")
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return result
    experiment = load(folder / EXPERIMENT)
    with locked(folder), copied(folder):
        return _run(experiment, *_planned(experiment), folder)


def _is_study(folder: Path) -> bool:
    return (folder / records.TRIALS).is_dir()


def _planned(experiment: Experiment) -> tuple[Space, list[Drawn] | None]:
    """The space, and all its points where they are known before; whatever is wrong with them is said here."""
    space = parse(experiment)
    if experiment.tune.scheduler == "pbt":
        check_population(space)
    return space, planned(experiment, space)


def _run(experiment: Experiment, space: Space, points: list[Drawn] | None, folder: Path) -> dict[str, Any]:
    allotment, concurrent = allot_trials(experiment)
    # Ray Train's cleaner of trials that were stopped early works with the dashboard alone.
    cluster.connect(dashboard=allotment.workers > 1)
    # What failed is in the ranking.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    prepared = prepare(experiment, cluster.home() / "stores", cluster.parallel_map)
    check_same_data(folder / "data.json", prepared)
    signs = objectives(experiment, prepared)
    monitor, sign = next(iter(signs.items()))
    study = Study(experiment, prepared, allotment, folder, monitor, sign)
    proposals = _proposals(study, space, points, signs)
    progress = Progress(experiment, monitor, sign, proposals)
    for index, trial in proposals.trials.items():
        progress.know(trial, records.curve(folder, index))
    changed = set(proposals.trials)
    mirror = Mirror(experiment, folder, prepared, changed)
    _announce(study, space, concurrent, proposals)
    mirror.open()
    try:
        with timed(folder), progress.shown(), Watch(folder, progress, changed) as watch:
            tuner = _tuner(study, space, proposals, concurrent, watch)
            if tuner is not None:
                cluster.aside(tuner.fit)
        if short := next((trial.error for trial in proposals.trials.values() if trial.short_of_disk), ""):
            raise StorageError(f"{short.partition(': ')[2]}; with room made, the same command goes on")
        result = conclude(study, space, proposals.trials, signs, mirror)
    except BaseException as error:
        mirror.abandon("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    clear(folder, result["best"])
    write_whole(folder / RESULT, json.dumps(result))
    return result


def allot_trials(experiment: Experiment) -> tuple[Allotment, int]:
    """What one trial takes, and how many run at a time.

    Raises:
        ConfigError: the cluster can never give what one trial takes.
    """
    cfg = experiment.tune
    scaling = experiment.scaling.model_copy(update={"workers": 1} if experiment.scaling.workers == "auto" else {})
    cpus, gpus = cluster.resources()
    if isinstance(scaling.workers, tuple):
        raise ConfigError(["scaling.workers: a range is for a training; give the number of a trial's workers"])
    workers = int(scaling.workers)
    if workers > 1 and cfg.scheduler in PAUSING:
        reason = f"scheduler {cfg.scheduler} hands checkpoints from trial to trial, which takes trials of one worker"
        raise ConfigError([f"scaling.workers: {reason}"])
    if workers > 1 and cfg.trials_per_gpu > 1:
        raise ConfigError(["tune.trials_per_gpu: is for trials of one worker"])
    if gpus and scaling.gpu is not False and cfg.trials_per_gpu > 1:
        share = min(cfg.concurrent, gpus * cfg.trials_per_gpu)
        return replace(cluster.allot(scaling.model_copy(update={"gpu": False}), share), gpu=True), share
    on_gpus = gpus > 0 and scaling.gpu is not False
    share = max(1, min(cfg.concurrent, (gpus if on_gpus else int(cpus)) // workers))
    if scaling.cpus_per_worker != "auto":
        share = max(1, min(share, int(cpus // (workers * scaling.cpus_per_worker))))
    return cluster.allot(scaling, share), share


def objectives(experiment: Experiment, prepared: Prepared) -> dict[str, int]:
    """Each metric that the search goes by, with 1 where more is better and -1 where less is; the first one chooses.

    Raises:
        ConfigError: the task does not report it.
    """
    names = experiment.tune.objectives or (monitor_of(experiment, prepared),)
    known = measured_by(task_of(experiment, prepared))
    if len(names) > 1:  # those that the best weights are measured by at the end
        known = [name for name in known if name.startswith("val/")]
    key = "tune.objectives" if experiment.tune.objectives else "train.monitor"
    if mistakes := [f"{key}: '{name}' is not measured{nearest(name, known)}" for name in names if name not in known]:
        raise ConfigError(mistakes)
    mode = experiment.train.mode
    return {name: monitor_sign(name, mode if name == monitor_of(experiment, prepared) else None) for name in names}


def _proposals(study: Study, space: Space, points: list[Drawn] | None, signs: dict[str, int]) -> Proposals:
    """What is still to be run; after a restart first what was interrupted."""
    experiment, folder = study.experiment, study.folder
    trials = records.load_all(folder)
    memory = None
    if experiment.tune.searcher == "tpe":
        memory = Memory(folder, space, signs, experiment.tune.seed, set(trials))
    minutes = experiment.tune.minutes
    return Proposals(
        experiment,
        space,
        folder,
        trials,
        None if minutes is None else 60 * minutes - spent(folder),
        memory,
        points,
        [index for index, trial in trials.items() if not trial.ended or trial.short_of_disk],
    )


def _announce(study: Study, space: Space, concurrent: int, proposals: Proposals) -> None:
    """What is going to be searched, how, on what."""
    cfg, allotment = study.experiment.tune, study.allotment
    count = proposals.count()
    many = f"{count} trials" if count is not None else f"trials for {cfg.minutes:g} minutes"
    by = {"none": "", "pbt": ", a population"}.get(cfg.scheduler, f", weak ones stopped by {cfg.scheduler}")
    kind = "GPU" if allotment.gpu else "CPU"
    each = f"{allotment.workers} {kind} worker(s) of {allotment.cpus:g} CPUs"
    say(f"search of {', '.join(space)}: {many} ({cfg.searcher}){by}, {concurrent} at a time on {each}")
    for note in study.prepared.dataset.notes:
        say(f"note: {note}")
    for item in study.prepared.refused[:10]:
        say(f"left out: {item}")


def _tuner(study: Study, space: Space, proposals: Proposals, concurrent: int, watch: Watch) -> tune.Tuner | None:
    """Ray Tune over what is still to be run; None if that is nothing."""
    cfg, allotment = study.experiment.tune, study.allotment
    pausing = cfg.scheduler in PAUSING
    past = [records.curve(study.folder, trial.index) for trial in proposals.trials.values() if trial.ended]
    scheduler = scheduler_of(study.experiment, space, past, study.monitor, study.sign)
    searcher: Any = StudySearcher(proposals)
    param_space: dict[str, Any] = {}
    if cfg.scheduler == "pbt":
        # A population is there from the beginning; PBT takes no searcher.
        settings = {trial.index: trial.settings for trial in iter(proposals.next, None)}
        if not settings:
            return None
        searcher = BasicVariantGenerator()
        param_space = {
            "index": tune.grid_search(list(settings)),
            "settings": tune.sample_from(lambda spec: settings[spec.config.index]),
        }
    elif proposals.over():
        return None
    alone, failures = allotment.workers == 1, study.experiment.scaling.max_failures
    # Of a trial of several workers the trial itself only waits; the workers ask for their own.
    resources = {"CPU": allotment.cpus} if alone else {"memory": WAITING_BYTES}
    if alone and allotment.gpu:
        resources["GPU"] = 1 / cfg.trials_per_gpu
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, study=study), resources),
        param_space=param_space,
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            search_alg=searcher,
            num_samples=1 if cfg.scheduler == "pbt" else -1,
            # Paused trials would count, and none would be left to run.
            max_concurrent_trials=None if pausing else concurrent,
            reuse_actors=alone,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"start-{len(list((study.folder / RAY).glob('start-*')))}",
            storage_path=str(study.folder / RAY),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=failures if alone and failures != "auto" else 0),
            # Of a population each may still be taken over, and Ray deletes a donor's with those of its heir.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=None if cfg.scheduler == "pbt" else 2),
            callbacks=[watch],
        ),
    )


def _name(trial: Any) -> str:
    return f"{trial.config['index']:04d}"
