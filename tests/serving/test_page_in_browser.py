"""The page in a real browser: every kind of file, what is seen of the answer, and not one request to elsewhere."""

from __future__ import annotations

import base64
import io
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from answer_phantom import CLASSES, classified, facts, segmented
from chromium import Tab, tab
from fastapi import FastAPI
from page_api import application
from PIL import Image
from series_phantom import content, dataset, series

from medray.imaging.overlay import colour_of
from medray.imaging.writer import png_bytes, write_nifti
from medray.inference.about import Facts
from medray.serving import pages
from medray.types import Array, Case, Prediction

pytestmark = pytest.mark.slow

CARD = {
    "intended_use": "Research use only.",
    "decision": "the likeliest class",
    "metrics": {"test/auroc": 0.93, "val/auroc": 0.9},
    "intervals": {"test/auroc": [0.9, 0.96]},
    "cases": {"train": 20, "test": 10},
}
BRIGHT = 800
"""A voxel above it is of the lesion."""


def answer(_: bytes, raw: Case, __: str) -> tuple[Prediction, Facts, Array | None]:
    heat = (raw.image[0] > BRIGHT).astype(np.float32)
    if raw.spatial_dims == 2:
        return classified(0.1, 0.2, 0.7), facts(2, ()), np.ones(heat.shape, np.float32)
    return segmented(raw, heat.astype(np.uint8) * 2), facts(), heat


def volume() -> Array:
    """(slice, row, column) with a lesion in the middle."""
    image = np.random.default_rng(0).integers(0, 300, (12, 20, 16)).astype(np.int16)
    image[4:8, 6:14, 5:11] = 1000
    return image


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    grey = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    (folder / "a.png").write_bytes(png_bytes(grey))
    Image.fromarray(grey).save(folder / "b.jpg")
    (folder / "c.dcm").write_bytes(content(dataset(grey.astype(np.uint16))))
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive:
        for number, part in enumerate(series(volume(), FrameOfReferenceUID="1.2.9", SliceThickness=2.5)):
            archive.writestr(f"{number}.dcm", part)
            (folder / f"slice{number:02d}.dcm").write_bytes(part)
    (folder / "d.zip").write_bytes(packed.getvalue())
    write_nifti(folder / "e.nii.gz", volume().transpose(2, 1, 0), np.diag([0.7, 0.8, 2.5, 1.0]))
    (folder / "f.txt").write_text("no image")
    return {file.name: file for file in folder.iterdir()}


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield f"localhost:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def page(folder: Path, **options: Any) -> Iterator[tuple[Tab, FastAPI]]:
    app = application(answer, facts(), CARD, **options)
    with served(app) as host, tab(folder) as shown:
        shown.resize(1280, 800)
        shown.open(f"http://{host}/ui/")
        yield shown, app
        assert shown.hosts == {host}


def ready(shown: Tab) -> None:
    shown.until("document.getElementById('model') && !document.getElementById('model').disabled")


def ask(shown: Tab, *files: Path) -> str:
    """Send images; the answer's text."""
    shown.run("document.getElementById('answer').replaceChildren()")
    shown.choose("#files", files)
    shown.until("document.querySelector('.verdict, .problem') && document.getElementById('work').hidden")
    return str(shown.run("document.getElementById('answer').innerText"))


def middle(shown: Tab, plane: str, condition: str) -> None:
    """Wait until the colour r, g, b in the middle of a plane's canvas is such."""
    shown.until(f"""(() => {{ const canvas = document.querySelector('{plane} canvas');
        const [r, g, b] = canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data;
        return {condition}; }})()""")


def test_every_kind_of_file_is_answered(tmp_path: Path, images: dict[str, Path]) -> None:
    with page(tmp_path) as (shown, _):
        ready(shown)
        for name in ("a.png", "b.jpg", "c.dcm"):
            said = ask(shown, images[name])
            assert "lesion" in said
            assert "70.0 %" in said
            assert "percentiles 1, 50 or 99" in said, "warnings are put into words"
        slices = [file for name, file in sorted(images.items()) if name.startswith("slice")]
        for files in ([images["d.zip"]], slices, [images["e.nii.gz"]]):
            said = ask(shown, *files)
            assert "lesion" in said
            assert f"{4 * 8 * 6 * 0.7 * 0.8 * 2.5 / 1000:.3g} mL" in said
        assert shown.run("document.querySelectorAll('#history-list li').length") == 6
        assert not shown.complaints


def test_a_lesion_is_seen_in_its_colour(tmp_path: Path, images: dict[str, Path]) -> None:
    with page(tmp_path) as (shown, _):
        ready(shown)
        ask(shown, images["e.nii.gz"])
        shown.until("document.querySelector('.plane-2 .where')?.textContent === '7 / 12'")
        # At full opacity without the cross-hair the middle of the lesion is the colour of the legend.
        shown.run("""(() => { const [opacity] = document.querySelectorAll('.slider input');
            opacity.value = 1; opacity.dispatchEvent(new Event('input'));
            [...document.querySelectorAll('.box input')].at(-1).click(); })()""")
        red, green, blue = colour_of(CLASSES.index("lesion"))
        lesion = f"r === {red} && g === {green} && b === {blue}"
        middle(shown, ".plane-2", lesion)
        middle(shown, ".plane-1", lesion)
        legend = shown.run("getComputedStyle(document.querySelector('.legend li:last-child .key')).backgroundColor")
        assert legend == f"rgb({red}, {green}, {blue})"
        shown.run("document.querySelector('.plane-2 canvas').focus()")
        for _ in range(6):
            shown.press("ArrowUp")
        shown.until("document.querySelector('.plane-2 .where').textContent === '12 / 12'")
        middle(shown, ".plane-2", "r === g && g === b && r > 0")
        assert not shown.complaints


def test_a_job_shows_how_far_it_is_and_can_be_cancelled(tmp_path: Path, images: dict[str, Path]) -> None:
    with page(tmp_path, job_from=1000) as (shown, _):
        ready(shown)
        shown.choose("#files", [images["e.nii.gz"]])
        shown.until("/looking at it, \\d+ %/.test(document.getElementById('work-text').textContent)")
        shown.run("document.getElementById('work-cancel').click()")
        shown.until("document.getElementById('work').hidden")
        assert shown.run("document.querySelector('.verdict')") is None
        assert "lesion" in ask(shown, images["e.nii.gz"])
        assert not shown.complaints


def test_a_key_is_asked_for_and_kept_in_memory_alone(tmp_path: Path, images: dict[str, Path]) -> None:
    with page(tmp_path, key="mk_secret") as (shown, _):
        shown.until("document.getElementById('key-dialog')?.open")
        shown.run("""(() => { document.getElementById('key').value = 'mk_secret';
            document.querySelector('#key-form .main').click(); })()""")
        ready(shown)
        assert "lesion" in ask(shown, images["a.png"])
        assert shown.run("[localStorage.length, sessionStorage.length, document.cookie].join()") == "0,0,"
        assert all("401" in complaint for complaint in shown.complaints)


def test_a_problem_says_what_to_do(tmp_path: Path, images: dict[str, Path]) -> None:
    with page(tmp_path) as (shown, _):
        ready(shown)
        said = ask(shown, images["f.txt"])
        assert "Unsupported type" in said or "unsupported type" in said
        assert "give a DICOM, NIfTI" in said
        assert f"Request {'f' * 32}" in said


def test_feedback_card_and_explanation(tmp_path: Path, images: dict[str, Path]) -> None:
    with page(tmp_path) as (shown, app):
        ready(shown)
        shown.run("document.getElementById('explain').value = 'gradcam'")
        ask(shown, images["a.png"])
        shown.until("document.querySelector('input[value=heat]')?.checked")
        press = "[...document.querySelectorAll('#answer button')].find((button) => button.textContent === '{}').click()"
        shown.run(press.format("No"))
        shown.run("document.querySelector('#answer select').value = 'organ'")
        shown.run(press.format("Send"))
        shown.until("document.getElementById('answer').innerText.includes('Thank you')")
        (said,) = app.state.feedback
        assert (said["correct"], said["label"]) == (False, "organ")
        shown.run("document.getElementById('card-button').click()")
        shown.until("document.getElementById('card').innerText.includes('0.900 to 0.960')")
        assert not shown.complaints


@pytest.mark.parametrize("width", [1280, 820, 390])
def test_nothing_is_cut_off_or_moves_sideways(tmp_path: Path, images: dict[str, Path], width: int) -> None:
    with page(tmp_path) as (shown, _):
        shown.resize(width, 800)
        ready(shown)
        ask(shown, images["e.nii.gz"])
        shown.until("document.querySelectorAll('.plane canvas').length === 3")
        assert shown.run("document.documentElement.scrollWidth") <= width
        assert shown.run("document.querySelector('.banner').innerText").endswith("Not a medical device.")


def test_the_other_pages_work_offline(tmp_path: Path) -> None:
    with page(tmp_path) as (shown, _):
        ready(shown)
        address = str(shown.run("location.origin"))
        shown.open(f"{address}/ui/drift.html")
        shown.until("document.querySelectorAll('.checks tbody tr').length === 2")
        shown.open(f"{address}/docs")
        shown.until("document.querySelectorAll('.opblock').length > 5")
        assert not shown.complaints


def test_a_volume_is_seen_in_3d(tmp_path: Path, images: dict[str, Path]) -> None:
    if not (pages.WEB / pages.VIEWER).exists():
        pytest.skip("the viewer is not built: npm install && npm run build in medray/serving/web")
    with page(tmp_path) as (shown, _):
        ready(shown)
        ask(shown, images["e.nii.gz"])
        shown.run("[...document.querySelectorAll('.tabs button')].at(-1).click()")
        shown.until("document.querySelector('.solid canvas')?.width > 100")
        time.sleep(3)
        picture = shown.send("Page.captureScreenshot", format="png")["data"]
        seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")).astype(int)
        # In the quarter below on the right, where the volume is turned, some of it is as blue as the lesion.
        solid = seen[480:760, 620:930]
        assert ((solid[..., 2] - solid[..., 0]) > 40).mean() > 0.005
        assert not shown.complaints


def test_without_the_viewer_the_page_says_how_to_get_it(
    tmp_path: Path, images: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "VIEWER", "dist/none.js")
    with page(tmp_path) as (shown, _):
        ready(shown)
        ask(shown, images["e.nii.gz"])
        shown.run("[...document.querySelectorAll('.tabs button')].at(-1).click()")
        shown.until("document.getElementById('viewer').innerText.includes('npm run build')")
        assert not shown.complaints
