"""Plans of phantoms: what nnU-Net's rules say of spacing, intensities, window and network, and what budgets do to it.

A step's seconds are told by its arithmetic here, so that plans do not depend on how busy a machine is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medray.config import ConfigError, Experiment, load
from medray.imaging.writer import write_png
from medray.pipeline import plan_cases, plan_dense
from medray.pipeline.fingerprint import CasePrint, Fingerprint, Intensities
from medray.pipeline.plan import Files, plan
from medray.pipeline.plan_cases import grids
from medray.pipeline.plan_rules import flips, intensity, spacing
from medray.pipeline.plan_yaml import as_yaml
from medray.pipeline.speed import Budget, Job, flops_of

GB = 1 << 30
FLOPS_PER_S = 5e10


@pytest.fixture(autouse=True)
def steps_by_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(job: Job, _: Budget) -> float:
        return flops_of(job) / FLOPS_PER_S

    for module in (plan_dense, plan_cases):
        monkeypatch.setattr(module, "seconds_per_step", seconds)


def budget(memory_gb: float = 8, minutes: float = 60) -> Budget:
    return Budget("cpu", lambda _: "fp32", int(memory_gb * GB), minutes)


def planned(data: Path, out: Path, *settings: str, limits: Budget | None = None, **more: Any) -> Experiment:
    result = plan(str(data), settings, limits or budget(), files=Files(out / "plan.yaml", None), **more)
    assert result["experiment"] == str(out / "plan.yaml")
    return load(out / "plan.yaml")


def volumes(
    root: Path, shape: tuple[int, ...], spacings: list[tuple[float, float, float]], names: tuple[str, ...] = ("organ",)
) -> Path:
    """A Decathlon folder: noise around 0, a brighter block of each class, air around."""
    classes = ", ".join(f'"{value}": "{name}"' for value, name in enumerate(("background", *names)))
    entries = []
    for number, edges in enumerate(spacings):
        draw = np.random.default_rng(number)
        label = np.zeros(shape, np.uint8)
        for value in range(1, len(names) + 1):
            label[shape[0] // 4 : shape[0] // 2, 4 * value : 4 * value + 4] = value
        image = draw.normal(0, 20, shape) + 100.0 * (label > 0)
        image[0, 0, 0] = -1000
        for folder, voxels in (("imagesTr", image.astype(np.int16)), ("labelsTr", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.diag([*edges, 1.0])), root / folder / f"{number}.nii.gz")
        entries.append(f'{{"image": "imagesTr/{number}.nii.gz", "label": "labelsTr/{number}.nii.gz"}}')
    text = f'{{"modality": {{"0": "CT"}}, "labels": {{{classes}}}, "training": [{", ".join(entries)}]}}'
    (root / "dataset.json").write_text(text)
    return root


def pictures(root: Path, counts: tuple[int, int], edge: int) -> Path:
    """A folder per class of grey PNGs."""
    for kind, count in enumerate(counts):
        (root / f"kind{kind}").mkdir(parents=True)
        for number in range(count):
            draw = np.random.default_rng(100 * kind + number)
            write_png(root / f"kind{kind}" / f"{number}.png", draw.integers(0, 256, (edge, edge), np.uint8))
    return root


def test_thick_ct_slices(tmp_path: Path) -> None:
    """0.7 x 0.7 x 5 mm: the coarse axis takes its 10th percentile and waits to be halved; CT gets one window."""
    thin, thick = (0.7, 0.7, 4.0), (0.7, 0.7, 5.0)
    found = planned(volumes(tmp_path / "ct", (64, 64, 12), [thin] * 2 + [thick] * 8), tmp_path)
    assert found.preprocess.spacing_mm == (0.7, 0.7, 4.0)
    assert found.preprocess.intensity.method == "window"
    low, high = found.preprocess.intensity.bounds
    assert 30 < low < 70
    assert 130 < high < 170
    network = found.network.model_dump()
    # 12 slices of 5 mm are 15 of 4 mm, rounded up to what two halvings divide.
    assert found.window.size == (64, 64, 16)
    assert network["strides"][1:] == ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
    assert network["kernels"][0] == (3, 3, 1)
    assert network["kernels"][-1] == (3, 3, 3)
    assert found.augment.rotate.p == 0
    assert found.augment.flip.axes == (0,)
    assert found.split.method == "auto"


def test_one_slice_volumes_have_a_network_of_two_axes(tmp_path: Path) -> None:
    found = planned(volumes(tmp_path / "thin", (40, 48, 1), [(1.0, 1.0, 3.0)] * 8), tmp_path)
    assert found.window.size == (40, 48)
    assert found.window.slice_axis == 2
    assert found.preprocess.spacing_mm == (1.0, 1.0, 3.0)
    assert all(len(edges) == 2 for edges in found.network.model_dump()["strides"])
    assert found.augment.flip.axes == (0, 1)


def test_sides_are_not_mirrored(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "sides", (32, 32, 32), [(1.0, 1.0, 1.0)] * 8, ("lung_left", "lung_right"))
    assert planned(folder, tmp_path).augment.flip.axes == ()
    for name in ("LeftLung", "Lung_R", "kidney left", "rh"):
        assert flips(["background", name], 3, 0).value == []
        assert flips(["background", name], 2, 1).value == [0]
    for name in ("bright spot", "upright", "cleft", "tumour", "liver"):
        assert flips(["background", name], 3, 0).value == [0]
        assert flips(["background", name], 2, 1).value == [0, 1]


def test_less_memory_means_a_smaller_window_and_less_time_a_slimmer_network(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "ct", (96, 96, 64), [(1.0, 1.0, 1.0)] * 8)
    rich = planned(folder, tmp_path, limits=budget(64, 1e5))
    assert rich.window.size == (96, 96, 64)
    assert rich.network.model_dump()["filters"] == (32, 64, 128, 256, 320)
    assert rich.optimizer.name == "sgd"
    assert rich.train.steps_per_epoch == 250
    poor = planned(folder, tmp_path, limits=budget(2, 1e5))
    assert poor.window.size is not None
    assert np.prod(poor.window.size) < 96 * 96 * 64 * 0.7
    assert poor.network.model_dump()["filters"][0] == 32
    hurried = planned(folder, tmp_path, limits=budget(64, 40))
    assert hurried.network.model_dump()["filters"][0] < 32
    assert hurried.train.batch_size == 2
    assert hurried.optimizer.name == "adamw"
    assert hurried.train.epochs * (hurried.train.steps_per_epoch or 0) >= 600
    with pytest.raises(ConfigError, match=r"memory: the smallest network needs .* 0\.10 GB may go"):
        planned(folder, tmp_path, limits=budget(0.1, 40))


def test_pairs_of_pictures(tmp_path: Path) -> None:
    for number in range(10):
        draw = np.random.default_rng(number)
        colours = draw.integers(0, 256, (48, 64, 3) if number % 2 else (48, 64), np.uint8)
        for folder, image in (("images", colours), ("masks", 255 * (colours.reshape(48, 64, -1)[..., 0] > 99))):
            (tmp_path / "cells" / folder).mkdir(parents=True, exist_ok=True)
            write_png(tmp_path / "cells" / folder / f"{number}.png", image.astype(np.uint8))
    found = planned(tmp_path / "cells", tmp_path)
    assert found.dataset.model_dump(exclude_unset=True) == {"name": "pairs", "path": tmp_path / "cells"}
    assert found.preprocess.channels == "rgb"
    assert found.preprocess.intensity.model_dump() == {"method": "range", "low": 0, "high": 255}
    assert found.preprocess.spacing_mm is None
    assert found.window.size == (48, 64)
    assert found.name == "cells"


def test_small_pictures_are_seen_whole_and_rare_classes_weigh_more(tmp_path: Path) -> None:
    found = planned(pictures(tmp_path / "set", (30, 8), 28), tmp_path, "split.test=0.2", "name=mine")
    assert found.preprocess.size is None
    assert (found.name, found.split.test) == ("mine", 0.2)
    assert found.network.model_dump(exclude_unset=True) == {"name": "resnet", "depth": 18, "stem": "small"}
    assert found.task.model_dump()["class_weights"] == "balanced"
    assert found.train.epochs == 60
    assert found.train.batch_size < 8


def test_large_pictures_are_shrunk_as_time_allows(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", (20, 20), 300)
    slow = planned(folder, tmp_path, limits=budget(8, 60))
    assert slow.preprocess.size == (224, 224)
    assert slow.network.model_dump()["stem"] == "default"
    assert slow.task.model_dump()["class_weights"] == "none"
    quick = planned(folder, tmp_path, limits=budget(8, 0.5))
    assert quick.preprocess.size is not None
    assert quick.preprocess.size < (224, 224)


def test_what_is_not_the_plans_to_take(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", (10, 10), 16)
    with pytest.raises(ConfigError, match=r"'train\.epochs=3': a plan decides this"):
        planned(folder, tmp_path, "train.epochs=3")
    with pytest.raises(ConfigError, match="does not exist"):
        planned(tmp_path / "nowhere", tmp_path)


def test_the_file_says_why(tmp_path: Path) -> None:
    """A reason above every number that was decided, within the width of the house, and the head of an experiment."""
    folder = volumes(tmp_path / "ct", (32, 32, 32), [(1.0, 1.0, 1.0)] * 8)
    result = plan(str(folder), (), budget(), files=Files(tmp_path / "a.yaml", tmp_path / "fingerprint.json"))
    lines = (tmp_path / "a.yaml").read_text().splitlines()
    assert lines[0].startswith("# ct: segmentation of organ in 8 volumes")
    assert f"# Command: {result['next']}" in lines
    assert any(line.startswith("# Memory: a step needs") for line in lines)
    for key in ("spacing_mm", "size", "filters", "strides", "epochs", "batch_size", "intensity", "axes"):
        at = next(number for number, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
        assert lines[at - 1].strip().startswith("# "), key
    assert max(map(len, lines)) <= 120
    assert '"class_cases": [' in (tmp_path / "fingerprint.json").read_text()
    assert as_yaml(["a\nb: c"], {}).splitlines() == ["# a\\nb: c"]


WHOLE = Intensities(0, 5, 10, 5, 2)


def found_of(cases: int = 4, **facts: Any) -> Fingerprint:
    usual: dict[str, Any] = {
        "shape": (50, 50, 50), "cropped": (50, 50, 50), "spacing": (1.0, 1.0, 1.0), "unit": "mm", "modality": "MR",
        "channels": 1, "dtype": "int16", "low": 0.0, "high": 900.0, "two_valued": False, "whole": WHOLE,
        "foreground": None, "voxels": (),
    }  # fmt: skip
    kept = tuple(CasePrint(case_id=str(number), **{**usual, **facts}) for number in range(cases))
    return Fingerprint(kept, (), ("a", "b"), (cases, cases), False, None, WHOLE)


def test_intensities() -> None:
    assert intensity(found_of(), "MR").value == {"method": "zscore"}
    assert intensity(found_of(cropped=(40, 40, 40)), "MR").value == {"method": "zscore_nonzero"}
    assert intensity(found_of(cropped=(40, 40, 40), low=-5.0), "MR").value == {"method": "zscore"}
    assert intensity(found_of(), "CT").value == {"method": "window", "low": 0.0, "high": 10.0}
    assert intensity(found_of(dtype="uint8", high=1.0), "").value == {"method": "range", "low": 0, "high": 1}


def test_a_coarse_axis_is_never_finer_than_the_others() -> None:
    assert spacing(found_of(shape=(90, 90, 20), cropped=(90, 90, 20), spacing=(1.0, 1.0, 3.5))) == (1.0, 1.0, 3.5)
    many = found_of(shape=(90, 90, 20), cropped=(90, 90, 20), spacing=(1.0, 1.0, 3.5)).cases * 3
    few = found_of(shape=(90, 90, 20), cropped=(90, 90, 20), spacing=(1.0, 1.0, 0.2)).cases
    mixed = Fingerprint((*many, *few), (), ("a", "b"), (1, 1), False, None, WHOLE)
    assert spacing(mixed) == (1.0, 1.0, 1.0)


def test_grids_of_a_classification() -> None:
    small = grids(found_of(shape=(28, 28, 28)))
    assert [(grid.size, grid.depth, grid.own) for grid in small] == [
        ((28, 28, 28), depth, True) for depth in (18, 10, 0)
    ]
    large = grids(found_of(shape=(512, 512, 60)))
    assert large[0].size == (96, 96, 16)
    assert large[-1].size == (32, 32, 16)
    assert large[-1].network()["name"] == "plain"
