"""The verb that hands a model to other programs: export. It belongs to medray/cli.py, which registers it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from medray.config import ConfigError
from medray.console import Result

if TYPE_CHECKING:
    from medray.inference.predictor import Predictor

Images = Annotated[tuple[Path, ...], Parameter(consume_multiple=True)]


def register(app: App) -> None:
    """Add the verb to `app`."""
    app.command(export)


def export(
    *,
    to: Literal["onnx", "torch", "monai"],
    out: Path,
    model: str | None = None,
    bundle: Path | None = None,
    samples: Images = (),
    dynamic_batch: bool = True,
    tracking: str | None = None,
) -> Result:
    """Write a model for programs without medray: ONNX, torch.export or a MONAI bundle.

    What is written is held against the model, and kept only where no probability differs by more than 1e-4. Its card
    (OUT.export.json; of a MONAI bundle export.json in it) says what goes in and comes out, and how far it is off.

    Args:
        to: onnx (*.onnx), torch (*.pt2, for torch.export.load) or monai (a folder, for python -m monai.bundle run).
        out: the file or folder, which does not exist yet.
        model: name@alias or name@version in the registry; by default the newest champion.
        bundle: folder of a model, instead of one in the registry.
        samples: real images to compare on: files, or folders of one DICOM series each; without them on the model's
            golden windows alone.
        dynamic_batch: take any number of images at once, else exactly one (onnx and torch).
        tracking: the registry's server; by default $MLFLOW_TRACKING_URI or the embedded one.
    """
    if missing := [str(sample) for sample in samples if not sample.exists()]:
        raise ConfigError([f"--samples: '{name}' does not exist (looked in {Path.cwd()})" for name in missing])
    if to == "monai" and not dynamic_batch:
        raise ConfigError(["--no-dynamic-batch: a MONAI bundle holds a network, which takes any number of images"])
    predictor, name = _predictor(model, bundle, tracking)
    if to == "monai":
        from medray.inference.monai_bundle import to_monai

        card = to_monai(predictor, out, samples)
    else:
        from medray.inference.export import to_onnx, to_torch

        card = (to_onnx if to == "onnx" else to_torch)(predictor, out, samples, dynamic_batch)
    parity = card["parity"]
    sys.stderr.write(
        f"{name} -> {out}: the largest difference of a probability is {parity['largest']:.2g} "
        f"(golden windows, and {len(samples)} samples)\n"
    )
    return Result(model=name, to=to, out=str(out), sha256=card["sha256"], parity=parity)


def _predictor(model: str | None, bundle: Path | None, uri: str | None) -> tuple[Predictor, str]:
    """The model that is meant, resident on the CPU, and its name."""
    from medray.inference.predictor import Predictor as Resident

    if bundle is not None:
        if model is not None:
            raise ConfigError(["give --model or --bundle, not both"])
        return Resident(bundle), bundle.absolute().name
    from medray.tracking import registry
    from medray.tracking.run import client

    mlflow = client(uri)
    folder, name = registry.fetch(mlflow, model or registry.newest_champion(mlflow))
    return Resident(folder), name
