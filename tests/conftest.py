"""Phantoms and a home of their own for every test; Ray, MLflow and the network stay out unless a test asks."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from medray import cluster
from medray.config import Experiment, parse

cluster.prepare_environment()
# No token file is written to the home of whoever runs the tests.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Tiny tensors: a second thread only waits for the first, and tests may share their cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """medray's home, empty."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MEDRAY_HOME", str(folder))
    monkeypatch.delenv("MEDRAY_STORAGE", raising=False)
    return folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's SQLite file with its tables; making them takes seconds."""
    from medray.tracking.run import client

    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    client(f"sqlite:///{file}").search_registered_models()
    return file


@pytest.fixture
def database(home: Path, empty_database: Path) -> Path:
    """The embedded MLflow of the test's home, empty."""
    return Path(shutil.copy(empty_database, home / "mlflow.db"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images beside the checkout; the test is skipped where they are absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return SHARED / "data"


def draw_folder(folder: Path, cases: int = 40, size: int = 16, classes: int = 2) -> Path:
    """A folder per class with PNGs: stripes along rows or columns, two or four pixels wide, on noise."""
    from medray.imaging.writer import write_png

    draw = np.random.default_rng(0)
    for index in range(cases):
        label = index % classes
        stripes = (np.indices((size, size))[label % 2] // (1 + label // 2)) % 2
        image = (draw.integers(0, 100, (size, size)) + 100 * stripes).astype(np.uint8)
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        write_png(folder / f"class{label}" / f"case{index:03d}.png", image)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 PNGs of 16x16 in two classes; do not change them."""
    return draw_folder(tmp_path_factory.mktemp("images"))


def tiny(path: Path, **sections: object) -> Experiment:
    """A training of seconds on a folder of images: LeNet-sized, no BatchNorm, deterministic."""
    tree: dict[str, object] = {
        "name": "tiny",
        "dataset": {"name": "folder", "path": str(path)},
        "preprocess": {"intensity": {"method": "range", "low": 0, "high": 255}},
        "task": {"name": "classification"},
        "network": {"name": "plain", "widths": [8, 8], "norm": "none"},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "split": {"method": "fraction", "val": 0.2, "test": 0.2},
        "train": {"epochs": 2, "batch_size": 8, "precision": "fp32"},
        "scaling": {"workers": 1, "cpus_per_worker": 1},
    }
    return parse({**tree, **sections})


def draw_discs(folder: Path, cases: int = 24, size: int = 32) -> Path:
    """images/ and masks/ of PNGs, masks 0 and 255: a bright disc on noise."""
    from medray.imaging.writer import write_png

    draw = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows, columns = np.indices((size, size))
    for index in range(cases):
        row, column = draw.uniform(9, size - 9, 2)
        inside = np.hypot(rows - row, columns - column) < draw.uniform(4, 8)
        image = draw.integers(0, 80, (size, size)) + 150 * inside
        write_png(folder / "images" / f"case{index:03d}.png", image.astype(np.uint8))
        write_png(folder / "masks" / f"case{index:03d}.png", 255 * inside.astype(np.uint8))
    return folder


def draw_volumes(folder: Path, cases: int = 6) -> Path:
    """A Decathlon folder of small volumes of different shapes, axes to the left and back: a ball with a core."""
    from medray.imaging.writer import write_nifti

    draw = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(cases):
        shape = (20 + index, 18, 9 + index % 3)
        affine = np.diag([-1.5, -1.5, 3.0, 1.0])
        affine[:3, 3] = [30, 20, -10]
        centre = np.asarray(shape) / 2 + draw.uniform(-1.5, 1.5, 3)
        away = np.linalg.norm((np.indices(shape).T - centre) * [1.5, 1.5, 3.0], axis=-1).T
        label = (away < 9).astype(np.uint8) + (away < 5)
        image = (draw.integers(0, 60, shape) + 150 * label.astype(np.int64)).astype(np.int16)
        write_nifti(folder / "images" / f"case{index}.nii.gz", image, affine)
        write_nifti(folder / "labels" / f"case{index}.nii.gz", label, affine)
    names = [f"case{index}.nii.gz" for index in range(cases)]
    training = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
    labels = {"0": "background", "1": "ball", "2": "core"}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "training": training}))
    return folder


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pairs of an image of 32x32 and its mask; do not change them."""
    return draw_discs(tmp_path_factory.mktemp("discs"))


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six volumes with labels; do not change them."""
    return draw_volumes(tmp_path_factory.mktemp("volumes"))


def tiny_dense(path: Path, **sections: object) -> Experiment:
    """A training of seconds on `draw_discs`, or with another dataset, network and window on others."""
    tree: dict[str, object] = {
        "dataset": {"name": "pairs", "path": str(path)},
        "task": {"name": "segmentation"},
        "network": {"name": "unet", "channels": [8, 16], "residual_units": 0},
        "window": {"size": [32, 32]},
        "train": {"epochs": 1, "batch_size": 4, "precision": "fp32"},
    }
    return tiny(path, **{**tree, **sections})
