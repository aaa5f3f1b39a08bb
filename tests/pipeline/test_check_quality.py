"""The check states the quality of every image, and names the few that are far worse than the rest."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from medray.config import parse
from medray.imaging.quality import QUALITIES
from medray.imaging.writer import write_png
from medray.pipeline.check import check
from medray.pipeline.verdict import as_csv, as_page, as_text
from medray.types import Array


def picture(number: int) -> Array:
    draw = np.random.default_rng(number)
    coarse = draw.uniform(40, 180, (12, 12)).repeat(6, 0).repeat(6, 1)
    return np.clip(coarse + draw.normal(0, 3, coarse.shape), 0, 255)


def test_poor_images_are_found_and_every_image_is_measured(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    odd = {
        3: gaussian_filter(picture(3), 9) * 4 - 330,
        8: picture(8) + draw.normal(0, 40, (72, 72)),
        13: np.where(picture(13) > 90, 255, picture(13)),
    }
    for number in range(24):
        folder = tmp_path / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        write_png(folder / f"{number:02d}.png", np.clip(odd.get(number, picture(number)), 0, 255).astype(np.uint8))
    tree = {"name": "set", "task": {"name": "classification"}, "network": {"name": "plain"}}
    done = check(parse({**tree, "dataset": {"name": "folder", "path": str(tmp_path)}}))
    (found,) = [finding for finding in done.findings if finding.code == "odd_quality"]
    assert found.severity == "warning"
    remarks = {Path(case).stem: remark for case, remark in zip(found.cases, found.remarks, strict=True)}
    assert {name: remark.split()[0] for name, remark in remarks.items()} == {
        "03": "sharpness",
        "08": "noise",
        "13": "clipping",
    }
    assert "the median is" in remarks["08"]
    rows = list(csv.DictReader(io.StringIO(as_csv(done))))
    assert all(0 <= float(row[name]) < 10 for row in rows for name in QUALITIES)
    assert "quality: noise 0.0" in as_text(done)
    assert "quality" in dict(as_page(done, "set", "next").facts)
