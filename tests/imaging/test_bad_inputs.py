"""The hostile files beside the checkout: each has the code that its manifest asks for, in the reader and in a store."""

from __future__ import annotations

import runpy
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray.imaging.labels import read_label
from medray.imaging.limits import Limits
from medray.imaging.reader import read
from medray.pipeline.store import build
from medray.sections.data import PreprocessSection
from medray.types import CaseRef, InputError

GENERATOR = Path(__file__).parents[3] / "shared" / "bad_inputs" / "make_bad_inputs.py"
LIMITS = Limits(max_decompressed_bytes=12 << 20)
ELSEWHERE = {
    "p_rgb_colour": "wrong_channels is for a model of grey images to say: see the store below, and Predictor",
}
MODELS = {"m_pickle_pt", "m_pickle_raw", "m_mlflow_loader", "m_yaml", "m_yaml_bomb", "m_bundle", "m_safetensors"}
"""No images: tests/networks/test_build.py and tests/test_config.py."""

Entries = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Entries:
    if not GENERATOR.exists():
        pytest.skip("no ../shared/bad_inputs beside this checkout")
    folder = tmp_path_factory.mktemp("bad")
    manifest = runpy.run_path(str(GENERATOR))["make"](folder, bomb_mib=64)
    assert not manifest["skipped"]
    return folder, [entry for entry in manifest["cases"] if entry["group"] != "http" and entry["id"] not in MODELS]


def expected(entry: dict[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """(code of the refusal or None, warnings)."""
    code = entry["serve"]["code"]
    return (code, ()) if entry["action"] == "reject" else (None, (code,) if code else ())


def answer(folder: Path, entry: dict[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """What the reader makes of a file, or of a label map beside its image."""
    file = folder / entry["path"]
    try:
        case = read(file, LIMITS)
        if "label" in entry:
            case = read_label(folder / entry["label"], case, range(3))
    except InputError as error:
        leaks = any(word in str(error) for word in (str(folder), entry["id"]))
        return ("path in the message" if leaks else error.code), ()
    return (None if np.isfinite(case.image).all() else "non-finite voxels"), case.warnings


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_case_has_the_code_of_the_manifest_within_a_second(cases: Entries) -> None:
    folder, entries = cases
    read(folder / "nifti" / "n_good.nii.gz")  # the imports of the first file take longer
    wrong = {}
    for entry in entries:
        started = time.process_time()
        given = answer(folder, entry)
        if given != expected(entry) or time.process_time() - started > 1:
            wrong[entry["id"]] = (expected(entry), given, time.process_time() - started)
    assert set(wrong) == set(ELSEWHERE), wrong


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("axes", [2, 3])
def test_a_store_leaves_out_every_bad_case_by_its_code(cases: Entries, tmp_path: Path, axes: int) -> None:
    """The road of a training: cases of another rank than the first one's are refused too, and no bad one ends it."""
    folder, entries = cases
    good = {2: "p_gray8", 3: "n_good"}[axes]
    images = [entry for entry in entries if "label" not in entry]
    images.sort(key=lambda entry: entry["id"] != good)
    refs = [CaseRef(entry["id"], folder / entry["path"]) for entry in images]
    cfg = PreprocessSection(size=(16,) * axes)
    store = build(refs, cfg, tmp_path / "stores")
    refused = {refusal.case_id: refusal.code for refusal in store.refused}
    for entry in images:
        code = expected(entry)[0]
        if code and (entry["id"] != "p_rgb_colour" or axes == 2):
            assert refused[entry["id"]] == code, entry["id"]
    assert good not in refused
    assert np.isfinite(store.images).all()
