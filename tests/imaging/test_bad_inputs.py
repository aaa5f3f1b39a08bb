"""The hostile files beside the checkout: each has the code that its manifest asks for, and none another exception."""

import runpy
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from medray.imaging.limits import Limits
from medray.imaging.reader import read
from medray.types import InputError

GENERATOR = Path(__file__).parents[3] / "shared" / "bad_inputs" / "make_bad_inputs.py"
LIMITS = Limits(max_decompressed_bytes=12 << 20)
DIFFERS = {
    "n_dtype_sign_flip": "the values are plausible to a reader: the training range decides later",
    "p_rgb_colour": "colour is read; the network's channels decide later",
    "j_corrupt_scan": "Pillow keeps the warnings of libjpeg to itself",
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    if not GENERATOR.exists():
        pytest.skip("no ../shared/bad_inputs beside this checkout")
    folder = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        # The generator imports pydicom for groups that are not asked for here.
        for name in ("pydicom", "pydicom.dataset", "pydicom.sequence", "pydicom.uid"):
            patch.setitem(sys.modules, name, sys.modules.get(name, MagicMock()))
        make = runpy.run_path(str(GENERATOR))["make"]
        manifest = make(folder, bomb_mib=16, only={"nifti", "raster"})
    assert not manifest["skipped"]
    return folder, manifest["cases"]


def answer(file: Path) -> tuple[str | None, tuple[str, ...]]:
    """(code of the refusal or None, warnings)."""
    try:
        case = read(file, LIMITS)
    except InputError as error:
        hidden = [str(file.parent), file.name.split(".")[0]]
        return ("path in the message" if any(word in str(error) for word in hidden) else error.code), ()
    return (None if np.isfinite(case.image).all() else "non-finite voxels"), case.warnings


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_case_has_the_code_of_the_manifest(cases: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, entries = cases
    wrong = {}
    for entry in entries:
        code = entry["serve"]["code"]
        expected = (code, ()) if entry["action"] == "reject" else (None, (code,) if code else ())
        given = answer(folder / entry["path"])
        if given != expected:
            wrong[entry["id"]] = (expected, given)
    assert set(wrong) == set(DIFFERS), wrong
