import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from medray.reports import figures


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def data(k: int, n: int = 80) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(k)
    return rng.dirichlet([1] * k, n), np.eye(k)[rng.integers(k, size=n)], [f"class {i}" for i in range(k)]


HISTORY = [{"epoch": e, "lr": 1e-3 / (e + 1), "train/loss": 1 / (e + 1), "val/loss": 1.2 / (e + 1)} for e in range(5)]


def test_pyplot_is_never_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    pixels(figures.curves(HISTORY, "val/loss", "min"))
    pixels(figures.image_grid(np.zeros((1, 1, 8, 8))))


def test_heavy_libraries_wait_until_they_are_called() -> None:
    modules = "medray.reports.figures, medray.metrics.classification, medray.metrics.intervals"
    heavy = "{'matplotlib', 'sklearn', 'scipy', 'torch', 'torchmetrics'}"
    subprocess.run([sys.executable, "-c", f"import sys, {modules}; assert not {heavy} & set(sys.modules)"], check=True)


def test_curves_widen_by_a_panel_for_a_metric() -> None:
    metric = [row | {"val/auroc": 0.5 + 0.1 * row["epoch"]} for row in HISTORY]
    three = pixels(figures.curves(metric, "val/auroc"))
    two = pixels(figures.curves(HISTORY, "val/loss", "min"))
    assert three.shape[1] > 1.4 * two.shape[1]


def test_the_best_epoch_follows_the_mode() -> None:
    values = np.asarray([np.nan, 0.3, 0.9, 0.1, np.inf])
    assert figures._best(values, "max") == 2
    assert figures._best(values, "min") == 3
    assert figures._best(np.full(3, np.nan), "max") is None


@pytest.mark.parametrize("history", [[], HISTORY[:1], [{"epoch": 0}, {"epoch": 1, "val/auroc": float("nan")}]])
def test_curves_of_little_history(history: list[dict[str, float]]) -> None:
    pixels(figures.curves(history, "val/auroc"))


@pytest.mark.parametrize("k", [1, 2, 20])
def test_figures_of_any_number_of_classes(k: int) -> None:
    scores, targets, classes = data(k)
    counts = np.random.default_rng(0).integers(0, 10**6, (k, k))
    shape = pixels(figures.confusion(counts, classes)).shape
    assert shape[0] > 300
    for multilabel in (False, True):
        pixels(figures.roc(scores, targets, classes, multilabel))
        pixels(figures.precision_recall(scores, targets, classes, multilabel))
        pixels(figures.calibration(scores, targets, multilabel))


def test_figures_of_undefined_things() -> None:
    scores, targets, classes = data(3)
    targets[:] = [1, 0, 0]
    for some in (1, 0):
        pixels(figures.roc(scores[:some], targets[:some], classes))
        pixels(figures.precision_recall(scores[:some], targets[:some], classes))
        pixels(figures.calibration(scores[:some], targets[:some]))
    pixels(figures.confusion(np.zeros((3, 3), int), classes))


def test_the_same_arrays_are_the_same_bytes() -> None:
    scores, targets, classes = data(3)
    assert figures.roc(scores, targets, classes) == figures.roc(scores, targets, classes)


def test_a_name_of_any_length_or_script_fits() -> None:
    scores, targets, _ = data(2)
    names = ["non-neoplastic lymphoid hyperplasia, unclassified", "$x^$"]
    pixels(figures.roc(scores, targets, names, multilabel=True))
    pixels(figures.confusion(np.eye(2), names))
    pixels(figures.image_grid(np.zeros((2, 1, 8, 8)), names))


def test_misuse_is_refused() -> None:
    scores, targets, classes = data(3)
    with pytest.raises(ValueError, match="2 classes need"):
        figures.confusion(np.eye(3), classes[:2])
    with pytest.raises(ValueError, match="2 classes need"):
        figures.roc(scores, targets, classes[:2])
    with pytest.raises(ValueError, match="N titles or none"):
        figures.image_grid(np.zeros((2, 1, 8, 8)), ["one"])


def test_a_slice_of_a_volume_is_upright_as_radiologists_look_at_it() -> None:
    volume = np.zeros((1, 1, 4, 6, 3))
    volume[0, 0, 3, 5, 1] = 1
    picture = figures._picture(volume[0])
    # Right anterior of a RAS+ volume: the upper left corner of the picture.
    assert picture.shape == (6, 4)
    assert picture[0, 0] == 1
    assert picture.sum() == 1


@pytest.mark.parametrize(
    "shape", [(5, 1, 16, 24), (3, 3, 16, 16), (2, 2, 9, 9), (2, 1, 8, 10, 12), (2, 3, 8, 8, 8), (0, 1, 8, 8)]
)
def test_image_grids(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).normal(size=shape)
    pixels(figures.image_grid(images, [f"case {i}" for i in range(shape[0])], columns=2))


def test_images_share_one_scale() -> None:
    images = np.stack([np.full((1, 16, 16), value) for value in (-1.0, 0.0, 1.0)])
    shades = pixels(figures.image_grid(images, limits=(-1, 1)))
    middle = shades[shades.shape[0] // 2, :, 0]
    third = len(middle) // 6
    assert [int(middle[third]), int(middle[3 * third]), int(middle[5 * third])] == pytest.approx([0, 127, 255], abs=1)
    pixels(figures.image_grid(np.full((1, 1, 8, 8), np.nan)))
