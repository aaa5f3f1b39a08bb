"""The verb that plans a training from its data. It belongs to medray/cli.py, which registers it."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from medray.console import PARTIAL, Result


def register(app: App) -> None:
    """Add the verb to `app`."""
    app.command(plan)


def plan(
    data: str,
    *settings: str,
    out: Path | None = None,
    fingerprint: Path | None = None,
    memory: float | None = None,
    minutes: float | None = None,
    modality: str | None = None,
) -> Result:
    """Write an experiment that fits a dataset, this machine and the time there is; every number says why.

    After the rules of nnU-Net, for segmentation and classification, in 2D and 3D. Change what you like in the file.

    Args:
        data: a path to a dataset, or an experiment (a .yaml file or a packaged name) whose dataset counts.
        settings: changes to dataset, split and name, such as dataset.name=folder or name=chest.
        out: the file to write; by default plan-NAME.yaml here.
        fingerprint: a JSON file for what was measured of every case.
        memory: GB that a training may take; by default 80 % of what is free, of the GPU if there is one.
        minutes: how long it may take; by default 240 with a GPU, 18 without.
        modality: DICOM code of all images where their files do not say it, as in --modality CT.
    """
    import torch

    from medray.cluster import parallel_map
    from medray.config import ConfigError
    from medray.imaging.isolation.decoder import read_isolated
    from medray.networks.memory import GB, available_bytes
    from medray.pipeline.plan import Files
    from medray.pipeline.plan import plan as run
    from medray.pipeline.recipe import MEMORY_SHARE, MINUTES
    from medray.pipeline.speed import Budget
    from medray.training.learner import precision

    limits = {"memory": memory, "minutes": minutes}
    if wrong := [f"--{name}: {value:g} is not above 0" for name, value in limits.items() if value and not value > 0]:
        raise ConfigError(wrong)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    budget = Budget(
        device=device,
        precision=lambda dims: precision("auto", torch.device(device), dims),
        memory_bytes=int(MEMORY_SHARE * available_bytes(device) if memory is None else memory * GB),
        minutes=minutes or MINUTES[device],
    )
    files = Files(out, fingerprint)
    outcome = Result(run(data, settings, budget, modality, files, parallel_map, read_isolated))
    outcome.exit_code = PARTIAL if outcome["left_out"] else 0
    return outcome
