"""configs/inference.json of a MONAI bundle: preprocessing, inferer and evaluator in MONAI's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medray.config import ConfigError
from medray.inference.monai_network import Definition
from medray.inference.predictor import Predictor
from medray.sections.data import IntensitySection
from medray.tasks.classification import Classification
from medray.tasks.segmentation import Segmentation

KEYS = {"keys": ["image"]}


@dataclass(frozen=True, slots=True)
class Road:
    """How much of the way from a file to an answer MONAI's own parts can say."""

    unsaid: tuple[str, ...]
    """Settings of the preprocessing that no transform of MONAI's follows; empty: all is said."""
    slides: bool
    """Whether a window is moved over the image."""

    @staticmethod
    def of(predictor: Predictor) -> Road:
        """The road of a model."""
        bundle = predictor.bundle
        cfg = bundle.experiment.preprocess
        flat = predictor.task.dense and len(bundle.io.size) < bundle.axes
        unsaid = {
            "preprocess.channels": cfg.channels != "keep",
            "preprocess.denoise": cfg.denoise is not None,
            "preprocess.slice": cfg.slice is not None,
            "preprocess.spacing_mm": cfg.spacing_mm is not None,
            "preprocess.crop_foreground": cfg.crop_foreground,
            "preprocess.size": cfg.size is not None,
            "window.size (slices of volumes)": flat,
        }
        return Road(tuple(name for name, there in unsaid.items() if there), predictor.task.dense and not flat)


def channel_names(predictor: Predictor) -> list[str]:
    """What each channel of the network's output is the logit of.

    Raises:
        ConfigError: a task whose output is not classes.
    """
    task = predictor.task
    if isinstance(task, Segmentation):
        return list(task.classes if task.exclusive else task.structures)
    if not isinstance(task, Classification):
        name = predictor.bundle.experiment.task.name
        raise ConfigError([f"task.name: a MONAI bundle is for classification and segmentation, not for {name}"])
    if task.mode == "binary":
        return [task.classes[1]]
    return [f"above {name}" for name in task.classes[:-1]] if task.mode == "ordinal" else list(task.classes)


def _exclusive(predictor: Predictor) -> bool:
    """Whether the channels of the output are a distribution (softmax), else each is a probability (sigmoid)."""
    task = predictor.task
    return task.exclusive if isinstance(task, Segmentation) else getattr(task, "mode", "") == "multiclass"


def inference(predictor: Predictor, road: Road, said: Definition) -> dict[str, Any]:
    """configs/inference.json."""
    volumes = predictor.bundle.axes == 3
    pattern = "*.npy" if road.unsaid else "*.nii*" if volumes else "*.png"
    activation = "torch.nn.Softmax(dim=1)" if _exclusive(predictor) else "torch.nn.Sigmoid()"
    dense = predictor.task.dense
    return {
        "imports": ["$import glob", "$import os", "$import torch"],
        "bundle_root": ".",
        "output_dir": "$os.path.join(@bundle_root, 'eval')",
        "dataset_dir": "$os.path.join(@bundle_root, 'data')",
        "datalist": f"$sorted(glob.glob(os.path.join(@dataset_dir, '{pattern}')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": said,
        "network": f"$torch.nn.Sequential(@network_def, {activation}).to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(predictor, road)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': file} for file in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": _inferer(predictor, road),
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(predictor, road)} if dense else None,
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$os.path.join(@bundle_root, 'models', 'model.pt')",
                "load_dict": {"model": "@network_def"},
                "map_location": "@device",
            },
            *([] if dense else [_table()]),
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _preprocessing(predictor: Predictor, road: Road) -> list[Definition]:
    """From a file to what the network sees; without MONAI's own words from an array (C, *S) that medray prepared."""
    channel_first = {"_target_": "EnsureChannelFirstd", **KEYS}
    if road.unsaid:
        return [{"_target_": "LoadImaged", **KEYS, "reader": "NumpyReader", "channel_dim": 0}, channel_first]
    cfg = predictor.bundle.experiment.preprocess
    # Without the transposition that is MONAI's default a picture stays (row, column).
    pictures = {"reader": "PILReader", "reverse_indexing": False}
    volumes = predictor.bundle.axes == 3
    load = {"_target_": "LoadImaged", **KEYS, **({"reader": "NibabelReader"} if volumes else pictures)}
    turn = [{"_target_": "Orientationd", **KEYS, "axcodes": cfg.orientation}] if _turns(predictor) else []
    return [load, channel_first, *turn, _intensity(cfg.intensity)]


def _turns(predictor: Predictor) -> bool:
    return predictor.bundle.axes == 3 and predictor.bundle.experiment.preprocess.orientation is not None


def _intensity(cfg: IntensitySection) -> Definition:
    low, high = cfg.bounds
    to = {"b_min": -1.0, "b_max": 1.0, "clip": True}
    if cfg.method in ("range", "window"):
        return {"_target_": "ScaleIntensityRanged", **KEYS, "a_min": low, "a_max": high, **to}
    if cfg.method == "percentile":
        return {"_target_": "ScaleIntensityRangePercentilesd", **KEYS, "lower": low, "upper": high, **to}
    return {"_target_": "NormalizeIntensityd", **KEYS, "nonzero": cfg.method == "zscore_nonzero"}


def _inferer(predictor: Predictor, road: Road) -> Definition:
    if not road.slides:
        return {"_target_": "SimpleInferer"}
    cfg = predictor.window
    return {
        "_target_": "SlidingWindowInferer",
        "roi_size": list(predictor.bundle.io.size),
        "sw_batch_size": cfg.batch,
        "overlap": cfg.overlap,
        "mode": cfg.blend,
        "sigma_scale": 0.125,
    }


def _postprocessing(predictor: Predictor, road: Road) -> list[Definition]:
    """From probabilities to a label map in a NIfTI file, on the axes of the image's own."""
    pred = {"keys": ["pred"]}
    task = predictor.bundle.experiment.task
    rule = {"argmax": True} if _exclusive(predictor) else {"threshold": getattr(task, "threshold", 0.5)}
    decide = {"_target_": "AsDiscreted", **pred, **rule}
    back = {
        "_target_": "Invertd",
        **pred,
        "transform": "@preprocessing",
        "orig_keys": ["image"],
        "nearest_interp": True,
    }
    save = {
        "_target_": "SaveImaged",
        **pred,
        "output_dir": "@output_dir",
        "output_ext": ".nii.gz",
        "output_dtype": "uint8",
        "resample": False,
        "separate_folder": False,
    }
    return [decide, *([back] if _turns(predictor) and not road.unsaid else []), save]


def _table() -> Definition:
    """predictions.csv: a row per image, a probability per channel."""
    return {
        "_target_": "ClassificationSaver",
        "output_dir": "@output_dir",
        "batch_transform": "$lambda batch: [item['image'].meta for item in batch]",
        "output_transform": "$lambda output: [item['pred'] for item in output]",
    }
