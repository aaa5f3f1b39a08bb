"""The verbs that look into a model: explain, features. They belong to medray/cli.py, which registers them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from medray.config import ConfigError
from medray.console import DATA, PARTIAL, Result

if TYPE_CHECKING:
    from medray.inference.predictor import Predictor

Data = Annotated[
    str,
    Parameter(
        help="A path to a labelled set, or an experiment (a .yaml file or a packaged name), then key=value settings; "
        "without it the data that the model was made from."
    ),
]
SANITY_CASES = 3


def register(app: App) -> None:
    """Add the verbs to `app`."""
    for verb in (explain, features):
        app.command(verb)


def explain(
    *images: Path,
    out: Path,
    model: str | None = None,
    bundle: Path | None = None,
    method: str = "gradcam",
    target: str | None = None,
    sanity: bool = False,
    device: str = "cpu",
    tracking: str | None = None,
) -> Result:
    """Show what of an image speaks for a class: a picture each, and of a volume the heat as NIfTI.

    A map shows where a network looked, not whether it is right. Exit code 5 where some images were refused.

    Args:
        images: files, or folders of files.
        out: folder of the pictures.
        model: name@alias or name@version in the registry; by default the newest champion.
        bundle: folder of a model, instead of one in the registry.
        method: gradcam, gradcam++, occlusion, integrated_gradients or smoothgrad.
        target: the class to explain; by default the likeliest, of a segmentation the largest structure.
        sanity: check with some of the images that the map changes when the network forgets what it learnt.
        device: cpu, or cuda.
        tracking: the registry's server; by default $MLFLOW_TRACKING_URI or the embedded one.
    """
    from medray.inference import explain as explaining
    from medray.inference import table
    from medray.types import InputError

    files = table.image_files(images, out)
    predictor, name = _predictor(model, bundle, device, tracking)
    explaining.check_method(predictor, method)
    if target is not None:
        explaining.index_of(predictor, target)
    written, refused, good = [], 0, []
    for number, (file, source) in enumerate(table.named_sources(predictor, files).items()):
        try:
            found = explaining.explain(predictor, source, method, target)
        except InputError as error:
            refused += 1
            sys.stderr.write(f"{file}  refused: {error}\n")
            continue
        good.append(source)
        written += explaining.write(found, out, f"{number:04d}-{file.name.split('.')[0]}")
        sys.stderr.write(f"{file}  {found.target}  {written[-1]}\n")
    outcome = Result(model=name, method=method, files=[str(file) for file in written], refused=refused)
    if sanity and good:
        from medray.inference.sanity import randomisation_check

        report = randomisation_check(predictor, good[:SANITY_CASES], method)
        sys.stderr.write(f"{report}\n")
        outcome["sanity"] = {"passed": report.passed, "rank_correlation": report.rank_correlation, "ssim": report.ssim}
    outcome.exit_code = 0 if not refused else PARTIAL if good else DATA
    return outcome


def features(
    *data: Data,
    out: Path,
    model: str | None = None,
    bundle: Path | None = None,
    fit: str = "softmax,svm,tree,forest,knn",
    device: str = "cpu",
    record: bool = True,
    tracking: str | None = None,
) -> Result:
    """Take what a network makes of each image, and fit classical classifiers to it.

    Writes features.parquet, cases.csv (which leads from pseudonyms back to cases), heads/heads.json and heads.csv, and
    bundle: the network with the classifier that is best on val. Exit code 5 where some cases were refused.

    Args:
        data: what to take the features of.
        out: folder of the results, never inside the data.
        model: name@alias or name@version in the registry; by default the newest champion.
        bundle: folder of a model, instead of one in the registry.
        fit: which of softmax, svm, tree, forest, knn, separated by commas; empty for the features alone.
        device: cpu, or cuda.
        record: also make a run in MLflow.
        tracking: the MLflow server and registry; by default $MLFLOW_TRACKING_URI or the embedded one.
    """
    from medray.cluster import parallel_map
    from medray.training.heads import Asked, run

    place = data[0] if data and "=" not in data[0] else None
    settings = data[1:] if place else data
    kinds = tuple(name.strip() for name in fit.split(",") if name.strip())
    predictor, name = _predictor(model, bundle, device, tracking)
    outcome = Result(run(Asked(predictor, name, out, place, settings, kinds, record, tracking), parallel_map))
    outcome.exit_code = PARTIAL if outcome["refused"] else 0
    return outcome


def _predictor(model: str | None, bundle: Path | None, device: str, uri: str | None) -> tuple[Predictor, str]:
    """The model that is meant, resident, and its name."""
    from medray.inference.predictor import Predictor as Resident
    from medray.tracking import registry
    from medray.tracking.run import client

    if bundle is not None:
        if model is not None:
            raise ConfigError(["give --model or --bundle, not both"])
        return Resident(bundle, device), bundle.absolute().name
    mlflow = client(uri)
    folder, name = registry.fetch(mlflow, model or registry.newest_champion(mlflow))
    return Resident(folder, device), name.replace("/", "-")
